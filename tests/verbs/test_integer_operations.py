"""Integer operations over codes: the bits of the specification in all modes, and the specification against exact ints.

Oracles: Python's integers and `fractions`, whose ``round`` takes ties to even; for maxima and means torch's pooling.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import prod
from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import IntegerFormat, integer_tables
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend.int8 import integer_matmul_int8

Array = NDArray[Any]
INT8, UINT8, INT4 = IntegerFormat(8), IntegerFormat(8, signed=False), IntegerFormat(4)
ROOMS: dict[str, tuple[Any, Callable[[Array], Any]]] = {
    "core": (core, np.asarray),
    "torch": (torch_frontend, to_torch),
    "jax": (jax_backend, to_jax),
}
SHIFTS = (23, 24, 31, 32, 33, 47, 61, 62)
TIES = ((2**30, 31), (3 * 2**29, 31), (2**30, 33), (2**30, 47), (2**30, 61))  # whose quotients may be exact halves
ADDED = ((3, 5), 3), ((1, 1), 1), ((1, 1), 0), ((2**22, 2**22), 22), ((2**23 - 1, 1), 30)


@cache
def inputs() -> dict[str, Array]:
    """Codes at their ends and drawn ones; sums at and beside the places where `requantize` decides."""
    random = np.random.default_rng(0)
    every = np.arange(-128, 128).astype(np.int8)
    acc = [np.array([0, 1, -1, 2, -2, 3, 5, 6, 7, 2**31 - 1, -(2**31), 1 - 2**31, 2**30], np.int64)]
    multipliers = np.array([2**30, 2**31 - 1, 2**30 + 1, *random.integers(2**30, 2**31, 5), *(m for m, _ in TIES)])
    shifts = (*SHIFTS, *(s for _, s in TIES))
    for m, s in zip(multipliers, shifts, strict=True):
        halves = [
            round((k + Fraction(1, 2)) * 2**s / int(m)) + d for k in (-128, -3, 0, 1, 126, 127) for d in (-1, 0, 1)
        ]
        acc.append(np.array([h for h in halves if abs(h) < 2**31], np.int64))
    column = np.concatenate(acc).astype(np.int32)
    return {
        "a": np.where(random.random((3, 5, 40)) < 0.2, -128, random.integers(-128, 128, (3, 5, 40))).astype(np.int8),
        "u": random.integers(0, 256, (3, 5, 40)).astype(np.uint8),
        "w": random.integers(-128, 128, (7, 40)).astype(np.int8),
        "v": random.integers(-128, 128, (3, 6, 40)).astype(np.int8),
        "bias": np.array([2**30, -(2**30), 0, 1, -1, 12345, -54321], np.int32),
        "acc": np.broadcast_to(column[:, None], (len(column), len(shifts))).copy(),
        "multiplier": multipliers.astype(np.int32),
        "shift": np.array(shifts, np.int32),
        "left": np.repeat(every, 256),
        "right": np.tile(every, 256),
        "image": random.integers(-128, 128, (2, 3, 7, 9)).astype(np.int8),
        "bytes": np.where(random.random((2, 3, 7, 9)) < 0.3, 255, random.integers(0, 256, (2, 3, 7, 9))).astype(
            np.uint8
        ),
        "table": random.integers(-128, 128, 256).astype(np.int8),
    }


def everything(room: Any, matmul: Any, given: dict[str, Any]) -> list[Any]:
    """Every operation, with and without zero points."""
    g = given
    quotients = (g["acc"], g["multiplier"], g["shift"])
    return [
        matmul(g["a"], g["w"]),
        matmul(g["a"], g["w"], g["bias"], 7),
        matmul(g["u"], g["w"], g["bias"], 255),
        matmul(g["a"], g["v"], None, -128),
        matmul(g["u"], g["v"]),
        matmul(g["v"], g["u"], None, 3),
        room.requantize(*quotients),
        room.requantize(*quotients, 5, INT4),
        room.requantize(*quotients, 0, UINT8),
        *(room.integer_add(g["left"], g["right"], m, s) for m, s in ADDED),
        room.integer_add(g["left"], g["right"], (2**22, 2**22), 23, 127, -128, -3, INT4),
        room.integer_add(g["bytes"], g["image"], (7, 9), 4, 255, 3, 200, UINT8),
        room.lookup(g["image"], g["table"]),
        room.lookup(g["bytes"], g["table"]),
        *(room.integer_average_pool(g[name], size) for name in ("image", "bytes") for size in ((2, 3), (7, 9), (1, 2))),
        *(room.integer_max_pool(g[name], size) for name in ("image", "bytes") for size in ((2, 3), (7, 9))),
    ]


@cache
def specified() -> list[Array]:
    return everything(core, core.integer_matmul, inputs())


def run(mode: str) -> list[Any]:
    if mode.startswith("torch"):
        matmul = integer_matmul_int8 if mode == "torch int8" else torch_frontend.integer_matmul
        arguments = {name: to_torch(x) for name, x in inputs().items()}
        program = lambda given: everything(torch_frontend, matmul, given)  # noqa: E731
        return (torch.compile(program, fullgraph=True) if mode == "torch compiled" else program)(arguments)
    program = lambda given: everything(jax_backend, jax_backend.integer_matmul, given)  # noqa: E731
    with jax.disable_jit(mode == "jax eager"):
        return jax.jit(program)({name: to_jax(x) for name, x in inputs().items()})


@pytest.mark.parametrize("mode", ["torch eager", "torch int8", "torch compiled", "jax eager", "jax jit"])
def test_every_mode_has_the_bits_of_the_specification(mode: str) -> None:
    for place, (want, got) in enumerate(zip(specified(), run(mode), strict=True)):
        assert_same_bits(want, to_numpy(got), call=f"result {place} of {mode}")


def test_sums_of_products_against_python() -> None:
    g = inputs()
    cases = [("a", "w", None, 0), ("a", "w", "bias", 7), ("u", "w", "bias", 255), ("a", "v", None, -128)]
    for (a, b, bias, zero), got in zip(cases, specified(), strict=False):
        assert got.dtype == np.int32
        for place in [(0, 0, 0), (2, 4, 5), (1, 3, 2)]:
            rows = g[b][place[2]] if g[b].ndim == 2 else g[b][place[0], place[2]]
            terms = [(int(x) - zero) * int(y) for x, y in zip(g[a][place[:2]], rows, strict=True)]
            assert got[place] == sum(terms) + (int(g[bias][place[2]]) if bias else 0)


def test_requantized_sums_against_fractions() -> None:
    g = inputs()
    halves = g["acc"].astype(object) * g["multiplier"].astype(object) * 2 % [2 ** int(s) for s in g["shift"]] == 0
    odd = g["acc"].astype(object) * g["multiplier"].astype(object) * 2 // [2 ** int(s) for s in g["shift"]] % 2 == 1
    assert ((halves & odd).sum(0)[len(SHIFTS) :] > 0).all()  # ties, on both sides of 0
    for (zero, format), got in zip([(0, INT8), (5, INT4), (0, UINT8)], specified()[6:], strict=False):
        for row, column in np.ndindex(*got.shape):
            exact = Fraction(int(g["acc"][row, column]) * int(g["multiplier"][column]), 2 ** int(g["shift"][column]))
            assert got[row, column] == min(max(zero + round(exact), format.lo), format.hi)


def test_sums_of_codes_against_fractions() -> None:
    g = inputs()
    for (multipliers, shift), got in zip(ADDED, specified()[9:], strict=False):
        pairs = zip(g["left"], g["right"], strict=True)
        exact = [Fraction(int(a) * multipliers[0] + int(b) * multipliers[1], 2**shift) for a, b in pairs]
        assert_same_bits(np.array([min(max(round(e), -128), 127) for e in exact], np.int8), got)


def test_looked_up_codes() -> None:
    g = inputs()
    assert_same_bits(np.array([g["table"][int(c) + 128] for c in g["image"].flat], np.int8), specified()[16].ravel())
    assert_same_bits(np.array([g["table"][int(c)] for c in g["bytes"].flat], np.int8), specified()[17].ravel())


def test_pooled_codes_against_torch_and_fractions() -> None:
    places = 18
    for name in ("image", "bytes"):
        for size in ((2, 3), (7, 9), (1, 2)):
            x, got = inputs()[name], specified()[places]
            places += 1
            for at in np.ndindex(*got.shape):
                window = x[
                    at[0], at[1], at[2] * size[0] : (at[2] + 1) * size[0], at[3] * size[1] : (at[3] + 1) * size[1]
                ]
                assert got[at] == round(Fraction(sum(map(int, window.flat)), prod(size)))
    for name in ("image", "bytes"):
        for size in ((2, 3), (7, 9)):
            want = torch.nn.functional.max_pool2d(to_torch(inputs()[name]).float(), size).to(
                getattr(torch, str(inputs()[name].dtype))
            )
            assert_same_bits(to_numpy(want), specified()[places])
            places += 1
    assert places == len(specified())


@pytest.mark.parametrize("room", ROOMS)
def test_empty_and_strided_arrays(room: str) -> None:
    functions, to = ROOMS[room]
    g = inputs()
    assert to_numpy(functions.integer_matmul(to(g["a"][:0]), to(g["w"]))).shape == (0, 5, 7)
    assert not to_numpy(functions.integer_matmul(to(g["a"][..., :0]), to(g["w"][:, :0]))).any()
    assert to_numpy(functions.lookup(to(g["a"][:0]), to(g["table"]))).shape == (0, 5, 40)
    none = functions.requantize(to(g["acc"][:0]), to(g["multiplier"]), to(g["shift"]))
    assert to_numpy(none).shape == (0, len(g["shift"]))
    strided = to(g["image"])[:, ::-1, ::2, 1:] if room != "torch" else to(g["image"]).flip(1)[:, :, ::2, 1:]
    want = core.integer_average_pool(np.ascontiguousarray(g["image"][:, ::-1, ::2, 1:]), (2, 2))
    assert_same_bits(want, to_numpy(functions.integer_average_pool(strided, (2, 2))))
    scalar = np.int32(3), np.int32(2**30), np.int32(31)
    assert int(functions.requantize(*(to(np.asarray(n)) for n in scalar))) == 2  # 1.5, to even


def test_the_longest_sum_that_fits() -> None:
    """Extremes of int8 over as many terms as fit int32: nothing wraps or rounds."""
    most = (2**31 - 1) // (128 * 128)
    a, w = np.full((1, most), -128, np.int8), np.full((1, most), -128, np.int8)
    want = np.array([[most * 128 * 128]], np.int32)
    for functions, to in ROOMS.values():
        assert_same_bits(want, to_numpy(functions.integer_matmul(to(a), to(w))))
    assert_same_bits(want, to_numpy(integer_matmul_int8(to_torch(a), to_torch(w))))


CODES = np.zeros((2, 4), np.int8)
LONG = np.zeros((1, 2**17), np.int8)
ONE = np.int32(2**30)
REFUSED: list[tuple[str, tuple[Any, ...], type[Exception], str]] = [
    (
        "integer_matmul",
        (CODES.astype(np.int32), CODES),
        TypeError,
        "`a` must be codes of dtype int8 or uint8, got int32",
    ),
    ("integer_matmul", (CODES, CODES[:, :3]), ValueError, r"`a` must fit `b` of shape \(2, 3\)"),
    ("integer_matmul", (CODES, CODES[None]), ValueError, "`a` must fit `b`"),
    ("integer_matmul", (LONG, LONG), ValueError, "at most 131071 terms in a sum, to fit int32, got 131072"),
    ("integer_matmul", (LONG, LONG, np.zeros(1, np.int32)), ValueError, "at most 65536 terms"),
    ("integer_matmul", (CODES, CODES, np.zeros(3, np.int32)), ValueError, r"`bias` must have shape \(2,\)"),
    ("integer_matmul", (CODES, CODES, np.zeros(2, np.float32)), TypeError, "`bias` must have dtype int32"),
    ("integer_matmul", (CODES, CODES, np.int32([0, 2**30 + 1])), ValueError, "`bias` must be in .*, got 1073741825"),
    ("integer_matmul", (CODES, CODES, None, 128), ValueError, r"`a_zero` must be in -128\.\.127, got 128"),
    ("integer_matmul", (CODES, CODES, None, 1.0), TypeError, "`a_zero` must be an int"),
    ("requantize", (CODES, ONE, np.int32(31)), TypeError, "`acc` must have dtype int32, got int8"),
    ("requantize", (CODES.astype(np.int32), ONE - 1, np.int32(31)), ValueError, "`multiplier` must be in 1073741824"),
    ("requantize", (CODES.astype(np.int32), ONE, np.int32(63)), ValueError, r"`shift` must be in 23\.\.62, got 63"),
    ("requantize", (CODES.astype(np.int32), np.full(3, ONE), np.int32(31)), ValueError, "`multiplier` must have shape"),
    (
        "requantize",
        (CODES.astype(np.int32), ONE, np.int32(31), 8, INT4),
        ValueError,
        r"`zero_point` must be in -8\.\.7",
    ),
    ("requantize", (CODES.astype(np.int32), ONE, np.int32(31), 0, IntegerFormat(9)), TypeError, "at most 8 bits"),
    ("integer_add", (CODES, CODES[:1], (1, 1), 1), ValueError, "`b` must have the shape of `a`"),
    ("integer_add", (CODES, CODES, (2**23, 1), 1), ValueError, r"of a sum of at most 2\*\*23"),
    ("integer_add", (CODES, CODES, (0, 1), 1), ValueError, "`multipliers` must be positive"),
    ("integer_add", (CODES, CODES, (1,), 1), ValueError, r"`multipliers` must be two, of `a` and of `b`, got \(1,\)"),
    ("integer_add", (CODES, CODES, (1, 2, 3), 1), ValueError, "`multipliers` must be two"),
    ("integer_add", (CODES, CODES, 5, 1), ValueError, "`multipliers` must be two.*got 5"),
    ("integer_add", (CODES, CODES, (1, 1), 31), ValueError, r"`shift` must be in 0\.\.30, got 31"),
    ("lookup", (CODES, np.zeros(255, np.int8)), ValueError, r"`table` must have shape \(256,\)"),
    ("lookup", (CODES.astype(np.int16), np.zeros(256, np.int8)), TypeError, "`codes` must be codes"),
    ("integer_average_pool", (CODES, (2,)), ValueError, "`size` must have a length for each axis"),
    ("integer_max_pool", (CODES[None], 2), ValueError, "`size` must have a length for each axis.*got 2"),
    ("integer_average_pool", (CODES[None], (5,)), ValueError, r"`size` must be in 1\.\.4 for an axis of 4, got 5"),
    ("integer_max_pool", (CODES[None], (0,)), ValueError, r"`size` must be in 1\.\.4"),
    ("integer_max_pool", (CODES[None].astype(np.float32), (2,)), TypeError, "`codes` must be codes"),
    ("integer_average_pool", (np.zeros((1, 1, 2**24), np.int8), (2**24,)), ValueError, r"at most 2\*\*23 places"),
]


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize(("function", "arguments", "error", "words"), REFUSED)
def test_refused(room: str, function: str, arguments: tuple[Any, ...], error: type[Exception], words: str) -> None:
    functions, to = ROOMS[room]
    given = [to(np.asarray(a)) if isinstance(a, np.ndarray | np.generic) else a for a in arguments]
    with pytest.raises(error, match=words):
        getattr(functions, function)(*given)


def test_fixed_points_are_the_nearest() -> None:
    """No other 31-bit multiplier, with any shift, is nearer to the exact quotient of scales."""
    random = np.random.default_rng(1)
    x, w, y = (np.exp(random.uniform(-3, 1, 200)).astype(np.float32) for _ in range(3))
    for a, b, c in zip(x, w, y, strict=True):
        ratio = Fraction(float(a)) * Fraction(float(b)) / Fraction(float(c))
        m, s = (int(part) for part in integer_tables.fixed_point(a, b, c))
        assert 2**30 <= m < 2**31
        assert abs(Fraction(m, 2**s) - ratio) <= Fraction(1, 2 ** (s + 1))
    assert [int(n) for n in integer_tables.fixed_point(1.0, 0.5, 1.0)] == [2**30, 31]
    just_below = 1 - Fraction(1, 2**40)  # rounds up to a power of two
    assert [int(n) for n in integer_tables.fixed_point(1.0, 1.0, 1 / just_below)] == [2**30, 30]
    assert integer_tables.fixed_point(1.0, np.zeros(0), 1.0)[0].shape == (0,)
    for scales, words in [
        ((0.0, 1, 1), "`x_scale` must be positive"),
        ((1, np.nan, 1), "`w_scale`"),
        ((1, 256, 1), "in"),
    ]:
        with pytest.raises(ValueError, match=words):
            integer_tables.fixed_point(*scales)


def test_two_fixed_points_share_a_shift() -> None:
    for a, b, c in [(0.1, 0.2, 0.15), (1.0, 1.0, 1.0), (3.0, 1e-5, 0.5), (100.0, 100.0, 0.001)]:
        (m, n), shift = integer_tables.fixed_points(a, b, c)
        assert m + n <= 2**23
        for multiplier, scale in ((m, a), (n, b)):
            assert abs(Fraction(multiplier, 2**shift) - Fraction(scale) / Fraction(c)) <= Fraction(1, 2 ** (shift + 1))
    with pytest.raises(ValueError, match="within a factor"):
        integer_tables.fixed_points(1.0, 1e-9, 1.0)
    with pytest.raises(ValueError, match="within a factor"):
        integer_tables.fixed_points(1.0, 1.0, 1e-9)
