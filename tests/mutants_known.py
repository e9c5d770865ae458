"""Mutants that no test can notice, each with the reason: what they compute is the same."""

_INSIDE = "all(i < n for i, n in zip(at, value.shape, strict={}))"
EQUIVALENT: dict[str, str] = {
    f"proofs/inputs/compare.py: if len(at) == value.ndim and {_INSIDE.format(True)}: => "
    f"if len(at) == value.ndim and {_INSIDE.format(False)}:": "both have one length, which is asked just before",
}
