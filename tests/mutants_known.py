"""Mutants that no test can notice, each with the reason: what they compute is the same."""


def _changed(module: str, line: str, before: str, after: str) -> str:
    """How `mutants.Mutant.key` names a line in which one thing was replaced."""
    return f"{module}: {line} => {line.replace(before, after, 1)}"


_INSIDE = "if len(at) == value.ndim and all(i < n for i, n in zip(at, value.shape, strict=True)):"
_SMALL = "small = max(largest_code(q_x), largest_code(q_w)) <= 256 and a.dtype == torch.float32"
_EXTREME = "[[-128, 127], [127, -128], [-128, -128], [127, 127]], dtype=torch.int8).repeat(16, 64)"

_ROOM = "work = room[: rows * piece[0].numel()].view(rows, *piece[0].shape)"
_GRADIENTS = "routes.gradients(layer.q_x, x, x_scale, x_zero, narrowed(dx, x.dtype), wanted[:3], x_seed)[:3]"

EQUIVALENT: dict[str, str] = {
    _changed("proofs/inputs/compare.py", _INSIDE, "True", "False"): "both have one length, which is asked just before",
    _changed("jax_backend/layers.py", "class Options(TypedDict, total=False):", "False", "True"): (
        "type checkers look at it, no program does"
    ),
    _changed("jax_backend/layers.py", "padding: tuple[Pair, ...] = ((0, 0), (0, 0))", "0", " -1"): (
        "the default is that of linear layers, which do not look at it; every convolution gives its own"
    ),
    _changed(
        "jax_backend/tensor_quantizer.py",
        "for variable, value in zip(self._variables(), state, strict=True):",
        "True",
        "False",
    ): "a state has one value for each variable, on every path",
    _changed("torch_frontend/eager_gradients.py", _ROOM, "piece[0]", "piece[ 1]"): (
        "pieces of the incoming gradient, which has the shape of x, are as large as those of x"
    ),
    _changed("torch_frontend/exact.py", "codes = codes.view(torch.int8).bitwise_xor_(-128)", "-128", "128"): (
        "one bit pattern as int8: torch wraps the number"
    ),
    _changed("torch_frontend/exact.py", _SMALL, "256", "257"): (
        "no largest code is 257: they are 2**n, 2**n - 1 or 2**n - 2"
    ),
    _changed("torch_frontend/exact.py", f"extreme = torch.tensor({_EXTREME}", "(16,", "( 17,"): (
        "the product of a machine that saturates is wrong for one repetition as for another"
    ),
    _changed("torch_frontend/matmul.py", f"of_x = {_GRADIENTS}", "[:3]", "[: 4]"): (
        "the fourth is looked at for a bit width alone, which is refused here"
    ),
    _changed(
        "torch_frontend/tensor_quantizer.py",
        "for state, average in zip(states, averages, strict=True):",
        "True",
        "False",
    ): "both are made one from the other, of one length",
}
