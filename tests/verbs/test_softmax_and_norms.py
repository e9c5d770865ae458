"""Softmax and norms over codes: the bits of the specification in all modes, and how far that is from real numbers.

Oracles: Python's integers and `fractions` for every integer; `numpy.longdouble` and torch's float64 for the real ones.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import IntegerFormat, integer_tables
from samebits.jax_backend import norms as jax_norms
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import norms as torch_norms

Array = NDArray[Any]
UINT8 = IntegerFormat(8, signed=False)
ROOMS: dict[str, tuple[Any, Callable[[Array], Any]]] = {
    "core": (core, np.asarray),
    "torch": (torch_frontend, to_torch),
    "jax": (jax_backend, to_jax),
}
SCALES = (0.3, 0.02)
EPSILON = 12345


@cache
def inputs() -> dict[str, Array]:
    """Rows of codes: drawn, all equal, all but one at an end; masks, one of a row in which nothing takes part."""
    random = np.random.default_rng(0)
    x = random.integers(-128, 128, (40, 24)).astype(np.int8)
    x[0], x[1], x[2], x[3] = -128, 127, 0, 5
    x[4], x[4, 7] = -128, 127
    x[5], x[5, 7] = 0, 1
    x[6, ::2], x[6, 1::2] = -128, 127
    mask = random.random((40, 24)) < 0.7
    mask[7], mask[8], mask[8, 3] = False, False, True
    weight, bias = integer_tables.norm_weights(random.normal(1, 0.3, 24), random.normal(0, 0.3, 24), 0.02)
    weight[3], weight[4], bias[4] = 0, 2**28, -(2**28)
    tables = {f"e{i}": integer_tables.exponential_table(s, 24)[0] for i, s in enumerate(SCALES)}
    return {"x": x, "u": x.view(np.uint8), "mask": mask, "weight": weight, "bias": bias, **tables}


def everything(room: Any, given: dict[str, Any]) -> list[Any]:
    g = given
    affine = g["weight"], g["bias"]
    return [
        room.integer_softmax(g["x"], g["e0"], 22),
        room.integer_softmax(g["x"], g["e1"], 22, g["mask"]),
        room.integer_softmax(g["u"], g["e1"], 22, g["mask"][:1]),
        room.integer_layer_norm(g["x"], *affine),
        room.integer_layer_norm(g["u"], *affine, EPSILON, 100, UINT8),
        room.integer_rms_norm(g["x"], *affine),
        room.integer_rms_norm(g["u"], *affine, EPSILON, 17, 3, IntegerFormat(5)),
    ]


@cache
def specified() -> list[Array]:
    return everything(core, inputs())


def run(mode: str) -> list[Any]:
    if mode.startswith("torch"):
        program = lambda given: everything(torch_frontend, given)  # noqa: E731
        arguments = {name: to_torch(x) for name, x in inputs().items()}
        return (torch.compile(program, fullgraph=True) if mode == "torch compiled" else program)(arguments)
    with jax.disable_jit(mode == "jax eager"):
        program = lambda given: everything(jax_backend, given)  # noqa: E731
        return jax.jit(program)({name: to_jax(x) for name, x in inputs().items()})


@pytest.mark.parametrize("mode", ["torch eager", "torch compiled", "jax eager", "jax jit"])
def test_every_mode_has_the_bits_of_the_specification(mode: str) -> None:
    for place, (want, got) in enumerate(zip(specified(), run(mode), strict=True)):
        assert_same_bits(want, to_numpy(got), call=f"result {place} of {mode}")


def test_softmax_against_integers() -> None:
    g = inputs()
    cases = [("x", "e0", None), ("x", "e1", g["mask"]), ("u", "e1", np.broadcast_to(g["mask"][:1], g["x"].shape))]
    for (name, table, mask), got in zip(cases, specified(), strict=False):
        assert got.dtype == np.uint8
        for r, row in enumerate(g[name]):
            places = [i for i in range(24) if mask is None or mask[r, i]]
            top = max((int(row[i]) for i in places), default=0)
            e = {i: int(g[table][top - int(row[i])]) for i in places}
            want = [round(Fraction(255 * e[i], sum(e.values()))) if i in e else 0 for i in range(24)]
            assert got[r].tolist() == want
    assert not specified()[1][7].any()  # where nothing takes part
    assert specified()[1][8].tolist() == [255 if i == 3 else 0 for i in range(24)]


@pytest.mark.parametrize("n", [1, 8, 511, 512, 5000])
def test_error_of_softmax_is_what_it_says(n: int) -> None:
    """Beside the exact softmax of the codes; and the bound is not far above what is seen."""
    random = np.random.default_rng(n)
    worst = 0.0
    for scale in (0.01, 0.05, 0.3):
        x = random.integers(-128, 128, (20, n)).astype(np.int8)
        x[0], x[1, 1:] = 3, -128
        table, bits = integer_tables.exponential_table(scale, n)
        assert n * 2**bits < 2**31 <= n * 2 ** (bits + 1) or bits == 22
        got = core.integer_softmax(x, table, bits).astype(np.longdouble) / 255
        real = np.exp((x - x.max(-1, keepdims=True).astype(np.longdouble)) * np.longdouble(scale))
        exact = real / real.sum(-1, keepdims=True)
        error = float(np.abs(got - exact).max())
        assert error <= 1 / 510 + (n + 1) / (2 * (2**bits - n / 2))
        worst = max(worst, error)
    assert n == 1 or worst > 0.8 / 510


def test_ties_of_softmax_go_to_even() -> None:
    """Of two equal positions each gets 127.5, of six 42.5."""
    table, bits = integer_tables.exponential_table(0.1, 6)
    for functions, to in ROOMS.values():
        for n, want in ((2, 128), (6, 42)):
            got = functions.integer_softmax(to(np.full((1, n), -7, np.int8)), to(table), bits)
            assert to_numpy(got).tolist() == [[want] * n]


def exact_norm(row: Array, weight: Array, bias: Array, epsilon: int, zero: int | None) -> list[Fraction]:
    """The quotients of the definition, before they are rounded."""
    n, c = len(row), [int(v) - (zero or 0) for v in row]
    d = [n * v - (sum(c) if zero is None else 0) for v in c]
    w = n * sum(v * v for v in c) - (sum(c) ** 2 if zero is None else 0) + epsilon
    r = max(math.isqrt(w << 20), 1)
    return [Fraction(1024 * di * int(g) + r * int(b), 65536 * r) for di, g, b in zip(d, weight, bias, strict=True)]


def test_norms_against_integers() -> None:
    g = inputs()
    cases = [
        ("x", 0, None, 0, IntegerFormat(8)),
        ("u", EPSILON, None, 100, UINT8),
        ("x", 0, 0, 0, IntegerFormat(8)),
        ("u", EPSILON, 17, 3, IntegerFormat(5)),
    ]
    for (name, epsilon, zero, y_zero, format), got in zip(cases, specified()[3:], strict=True):
        for row, given in zip(g[name], got, strict=True):
            y = exact_norm(row, g["weight"], g["bias"], epsilon, zero)
            assert given.tolist() == [min(max(y_zero + round(v), format.lo), format.hi) for v in y]


def test_halves_of_norms_go_to_even() -> None:
    """With weight 0 the bias alone is rounded: 0.5, 1.5, 2.5, -0.5, -1.5, -2.5 and the numbers beside them."""
    halves = np.array([k * 2**15 + d for k in (1, 3, 5, -1, -3, -5) for d in (-1, 0, 1)], np.int32)
    x = np.arange(len(halves), dtype=np.int8)[None]
    for functions, to in ROOMS.values():
        got = to_numpy(functions.integer_layer_norm(to(x), to(np.zeros_like(halves)), to(halves)))[0]
        assert got.tolist() == [round(Fraction(int(h), 65536)) for h in halves]


@pytest.mark.parametrize("n", [2, 64, 2**13])
def test_norms_beside_those_of_floats(n: int) -> None:
    """torch's float64 norms of the codes, with weights as they are stored: half a step, and the bound of the root."""
    random = np.random.default_rng(n)
    x = random.integers(-128, 128, (8, n)).astype(np.int8)
    x[0, : n // 2], x[0, n // 2 :] = -128, 127
    if n > 2:
        x[1], x[1, 0] = 0, 1
    weight, bias = integer_tables.norm_weights(random.normal(1, 0.1, n), random.normal(0, 0.1, n), 0.05)
    w, b = (torch.from_numpy(part / 65536) for part in (weight, bias))
    centred = x - x.astype(np.float64).mean(-1, keepdims=True)
    for kind, root in (("layer", centred.std(-1, keepdims=True)), ("rms", np.sqrt((x.astype(float) ** 2).mean(-1)))):
        given = torch.from_numpy(x).double()
        if kind == "layer":
            real = torch.nn.functional.layer_norm(given, (n,), w, b, eps=0).numpy()
            got, size = core.integer_layer_norm(x, weight, bias), np.abs(centred)
        else:
            real = (torch.nn.functional.rms_norm(given, (n,), w, eps=0) + b).numpy()
            got, size, root = core.integer_rms_norm(x, weight, bias), np.abs(x.astype(float)), root[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            allowed = 0.5 + size / root * np.abs(weight / 65536) / (1024 * n * root - 1) + 1e-9
        inside = (np.abs(real) < 127) & (root > 0)
        assert inside.any()
        assert (np.abs(got - real) <= allowed)[inside].all()


def test_roots_are_exact() -> None:
    """Squares and the integers beside them, up to the largest that a norm has."""
    random = np.random.default_rng(0)
    k = np.concatenate([np.arange(50), 2 ** np.arange(31), [3037000498, 2**31 - 1], random.integers(0, 2**31, 200)])
    x = np.unique(np.concatenate([k * k + d for d in (-1, 0, 1)]).clip(0))
    want = np.array([math.isqrt(int(n)) for n in x])
    assert_same_bits(want, to_numpy(torch_norms._root(to_torch(x))))
    with jax.enable_x64(True):
        assert_same_bits(want, np.asarray(jax_norms._root(to_jax(x))))


def test_the_most_features_at_their_extremes() -> None:
    """The largest squares and products of 2**13 features fit int64, in every room."""
    n = 2**13
    weight, bias = np.full(n, 2**28, np.int32), np.full(n, -(2**28), np.int32)
    x = np.full((2, n), 127, np.int8)
    x[0, ::2] = -128
    got = [
        [
            to_numpy(functions.integer_layer_norm(to(x), to(weight), to(bias), 2**40)),
            to_numpy(functions.integer_rms_norm(to(x), to(weight), to(bias), 2**40, -128)),
        ]
        for functions, to in ROOMS.values()
    ]
    for zero, of_core in zip((None, -128), got[0], strict=True):
        for row, given in zip(x[:, :3], of_core[:, :3], strict=True):
            whole = np.resize(row[:2], n)
            y = exact_norm(whole, weight, bias, 2**40, zero)[:3]
            assert given.tolist() == [min(max(round(v), -128), 127) for v in y]
    assert_same_bits(got[0][0], got[1][0])
    for others in got[1:]:
        assert_same_bits(tuple(got[0]), tuple(others))


@pytest.mark.parametrize("room", ROOMS)
def test_empty_rows(room: str) -> None:
    functions, to = ROOMS[room]
    g = inputs()
    assert to_numpy(functions.integer_softmax(to(g["x"][:, :0]), to(g["e0"]), 22)).shape == (40, 0)
    assert to_numpy(functions.integer_softmax(to(g["x"][:0]), to(g["e0"]), 22, to(g["mask"][:0]))).shape == (0, 24)
    assert to_numpy(functions.integer_layer_norm(to(g["x"][:0]), to(g["weight"]), to(g["bias"]))).shape == (0, 24)
    vector = to_numpy(functions.integer_layer_norm(to(g["x"][9]), to(g["weight"]), to(g["bias"])))
    assert_same_bits(specified()[3][9], vector)


X = np.zeros((2, 4), np.int8)
E = integer_tables.exponential_table(0.1, 4)[0]
W = np.zeros(4, np.int32)
REFUSED: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    (
        "integer_softmax",
        (X.astype(np.float32), E, 22),
        TypeError,
        "`x` must be codes of dtype int8 or uint8, got float32",
    ),
    (
        "integer_softmax",
        (np.zeros((1, 512), np.int8), E, 22),
        ValueError,
        "at most 511 positions .* of 22 bits, got 512",
    ),
    ("integer_softmax", (X, E, 21), ValueError, r"`exponentials` must be in 0\.\.2097152, got 4194304"),
    ("integer_softmax", (X, E, 23), ValueError, r"`bits` must be in 8\.\.22, got 23"),
    ("integer_softmax", (X, E[:255], 22), ValueError, "`exponentials` must have shape"),
    ("integer_softmax", (X, E, 22, np.ones((2, 3), bool)), ValueError, "`mask` must broadcast to the shape of `x`"),
    ("integer_softmax", (X, E, 22, np.ones((1, 2, 4), bool)), ValueError, "`mask` must broadcast"),
    ("integer_softmax", (X, E, 22, np.ones((2, 4), np.int8)), TypeError, "`mask` must have dtype bool"),
    ("integer_layer_norm", (X, W[:3], W), ValueError, r"`weight` must have shape \(4,\)"),
    ("integer_layer_norm", (X, W, W.astype(np.int8)), TypeError, "`bias` must have dtype int32"),
    ("integer_layer_norm", (X, W + np.int32(2**28 + 1), W), ValueError, "`weight` must be in .*, got 268435457"),
    ("integer_layer_norm", (X[:, :0], W, W), ValueError, r"1\.\.8192 features"),
    (
        "integer_rms_norm",
        (np.zeros((1, 8193), np.int8), W, W),
        ValueError,
        "features, for their squares to fit int64, got",
    ),
    ("integer_rms_norm", (X, W, W, 2**41), ValueError, r"`epsilon` must be in 0\.\.2\*\*40"),
    ("integer_rms_norm", (X, W, W, 0, 200), ValueError, "`x_zero` must be in"),
]


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize(("function", "arguments", "error", "words"), REFUSED)
def test_refused(room: str, function: str, arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    functions, to = ROOMS[room]
    given = [to(a) if isinstance(a, np.ndarray) else a for a in arguments]
    with pytest.raises(error, match=words):
        getattr(functions, function)(*given)
