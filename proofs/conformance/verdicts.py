"""What a fingerprint finds: a verdict, with the inputs that decide it. Nouns, and their words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.descriptions import Quantizer


@dataclass(frozen=True)
class Evidence:
    """One input and what was answered; numbers in decimal, hexadecimal and bits.

    Args:
        x: the input; ``block``: the parameters it was asked with.
        got: what the target answered; ``expected``: what a candidate would.
    """

    x: str
    block: str
    got: str
    expected: str

    def __str__(self) -> str:
        return f"at {self.x}, {self.block}: {self.got}, not {self.expected}"


@dataclass(frozen=True)
class Excluded:
    """A value that a field has not, and the input that says so."""

    field: str
    value: str
    evidence: Evidence


@dataclass(frozen=True)
class Verdict:
    """What a target computes.

    Args:
        target: its name.
        recognised: whether one candidate gives every answer, bit for bit.
        fields: what was found, by field of `samebits.core.Quantizer`. Where nothing was recognised, those of the
            candidate that explains most.
        undetermined: fields that no input can tell for this target, and the values that remain.
        excluded: alternatives, each with the input that excludes it.
        conduct: what becomes of NaN, infinities and -0, and other things to know.
        dialects: the dialects of `samebits.core.dialects` that give the same answers to all questions.
        candidates: how many there were.
        asked: inputs that the target was asked; ``exhaustive``: those of a comparison with every candidate.
        supporting: answers that the candidate explains; ``unexplained``: that it does not.
        smallest: the smallest unexplained input.
        fault: what is wrong with the target itself, and ``fault_at`` the input; "" where nothing is.
        quantizer: the description with the fields found, or None.
    """

    target: str
    recognised: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    undetermined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    excluded: tuple[Excluded, ...] = ()
    conduct: Mapping[str, str] = field(default_factory=dict)
    dialects: tuple[str, ...] = ()
    candidates: int = 0
    asked: int = 0
    exhaustive: int = 0
    supporting: int = 0
    unexplained: int = 0
    smallest: Evidence | None = None
    fault: str = ""
    fault_at: str = ""
    quantizer: Quantizer | None = None

    @property
    def residual(self) -> float:
        """Share of the answers that the candidate does not explain."""
        return self.unexplained / max(1, self.supporting + self.unexplained)

    @property
    def shortfall(self) -> str:
        """What the nearest candidate does not explain: answers, or where there are none, a scale that was chosen."""
        if not self.unexplained:
            return "a chosen scale unexplained"
        return f"{self.unexplained:,} of {self.supporting + self.unexplained:,} answers unexplained"

    @property
    def words(self) -> str:
        """The verdict in one line."""
        if self.fault:
            return f"{self.fault} ({self.fault_at})"
        named = ", ".join(f"{name}={value}" for name, value in self.fields.items())
        if self.recognised:
            return named
        return f"none of the candidates: {self.shortfall}; nearest {named}"


def as_data(verdict: Verdict) -> dict[str, Any]:
    """The verdict as one object for JSON."""
    return {
        "target": verdict.target,
        "recognised": verdict.recognised,
        "fields": dict(verdict.fields),
        "undetermined": {name: list(values) for name, values in verdict.undetermined.items()},
        "conduct": dict(verdict.conduct),
        "dialects": list(verdict.dialects),
        "excluded": [{"field": e.field, "value": e.value, **vars(e.evidence)} for e in verdict.excluded],
        "candidates": verdict.candidates,
        "asked": verdict.asked,
        "exhaustive": verdict.exhaustive,
        "supporting": verdict.supporting,
        "unexplained": verdict.unexplained,
        "residual": verdict.residual,
        "smallest_unexplained": None if verdict.smallest is None else vars(verdict.smallest),
        "fault": verdict.fault,
        "fault_at": verdict.fault_at,
    }
