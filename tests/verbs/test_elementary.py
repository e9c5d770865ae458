"""Logarithm, exponential and power: the same bits in all modes, exact where they say so, and how far they are off.

Expected values: `numpy.longdouble` (64 bits of significand), of which these keep 24.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import elementary as of_core
from samebits.jax_backend import elementary as of_jax
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import elementary as of_torch

Array = NDArray[Any]
POWERS = (-0.3, -0.5, 0.7, -1.3, 2.0, 0.0, -8.0, 1 / 3)
SMALLEST = np.float32(2.0**-126)


def arguments() -> Array:
    """Patterns drawn from all, every power of two and whole exponent with its neighbours, and special values."""
    random = np.random.default_rng(0)
    drawn = random.integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near_one = random.uniform(0.5, 2, 50_000).astype(np.float32)
    exponents = (random.standard_normal(50_000) * 60).astype(np.float32)
    edges = np.concatenate([np.ldexp(np.float32(1), np.arange(-149, 128)), np.arange(-160, 160).astype(np.float32)])
    edges = np.concatenate([np.nextafter(edges, np.float32(side)) for side in (-np.inf, np.inf)] + [edges, -edges])
    special = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(np.float32).max])
    return np.concatenate([drawn, near_one, exponents, edges, special])


def functions(room: Any) -> list[Callable[[Any], Any]]:
    return [room.log2, room.exp2, *(lambda a, r=r: room.power(a, r) for r in POWERS)]


def differences(room: Any, run: Callable[..., Any], x: Array, to: Callable[[Array], Any]) -> None:
    """Every function against core, in one program."""
    got = run(lambda a: [f(a) for f in functions(room)])(to(x))
    for k, (f, value) in enumerate(zip(functions(of_core), got, strict=True)):
        assert_same_bits(f(x), to_numpy(value), call=f"function {k}", inputs=x)


def test_torch_eager_and_jax_jitted_have_the_bits_of_the_specification() -> None:
    differences(of_torch, lambda f: f, arguments(), to_torch)
    differences(of_jax, jax.jit, arguments(), to_jax)


def test_jax_eager_has_the_bits_of_the_specification() -> None:
    with jax.disable_jit():
        differences(of_jax, lambda f: f, arguments(), to_jax)


def test_float64_is_rounded_to_float32_first() -> None:
    with np.errstate(invalid="ignore"):
        x = arguments().astype(np.float64) * (1 + 1e-12)
    differences(of_torch, lambda f: f, x, to_torch)
    for f in functions(of_core):
        assert f(x).dtype == np.float64
        with np.errstate(over="ignore"):
            assert_same_bits(f(x.astype(np.float32)).astype(np.float64), f(x))
    with jax.enable_x64(True):
        differences(of_jax, jax.jit, x, to_jax)


def test_torch_compiled_has_the_bits_of_the_specification_among_other_operations() -> None:
    """Products before, sums after: none may be merged with what is inside."""

    def program(x: Any, room: Any) -> list[Any]:
        y = x * 1.5
        return [room.log2(y) * 3.0 + 1.0, room.exp2(y) * 3.0 + 1.0, room.power(y, -0.3) * 3.0 + y]

    x = arguments()[50_000:]
    with np.errstate(all="ignore"):
        want = program(to_torch(x), of_torch)
        for value, expected in zip(want, program_in_core(x), strict=True):
            assert_same_bits(expected, to_numpy(value), inputs=x)
    got = torch.compile(lambda a: program(a, of_torch), fullgraph=True)(to_torch(x))
    for value, expected in zip(got, program_in_core(x), strict=True):
        assert_same_bits(expected, to_numpy(value), inputs=x)


def test_jax_programs_have_the_bits_of_the_specification_among_other_operations() -> None:
    """What is multiplied afterwards is hidden behind `arrays.product` by whoever calls; before, nothing merges."""
    x = arguments()
    x = x[~((np.abs(x) < 1e-30) & (x != 0))]  # XLA writes subnormal products as zeros
    with np.errstate(all="ignore"):
        y = x * np.float32(1.5)
    got = jax.jit(lambda a: [f(a * np.float32(1.5)) for f in functions(of_jax)])(to_jax(x))
    for f, value in zip(functions(of_core), got, strict=True):
        assert_same_bits(f(y), to_numpy(value), inputs=x)


def program_in_core(x: Array) -> list[Array]:
    three, one = np.float32(3), np.float32(1)
    with np.errstate(all="ignore"):
        y = x * np.float32(1.5)
        return [
            of_core.log2(y) * three + one,
            of_core.exp2(y) * three + one,
            of_core.power(y, -0.3) * three + y,
        ]


def ulps(got: Array, exact: NDArray[np.longdouble]) -> float:
    """The largest distance, in units in the last place of the exact result, a normal float32 other than 0."""
    unit = np.ldexp(np.longdouble(1), np.frexp(exact)[1] - 24)
    return float(np.max(np.abs(got.astype(np.longdouble) - exact) / unit))


def test_errors_of_the_logarithm() -> None:
    """Every float32 in [1/2, 2) but 1: all significands where ``k`` is 0, or -1 and takes most away; then any."""
    start, stop = np.float32(0.5).view(np.int32), np.float32(2).view(np.int32)
    for low in range(int(start), int(stop), 1 << 22):
        x = np.arange(low, low + (1 << 22), dtype=np.int32).view(np.float32)
        x = x[x != 1]
        assert ulps(of_core.log2(x), np.log2(x.astype(np.longdouble))) < 3
    x = arguments()
    x = x[(x >= SMALLEST) & (x < np.inf) & (x != 1)]
    assert ulps(of_core.log2(x), np.log2(x.astype(np.longdouble))) < 3


def test_errors_of_the_exponential() -> None:
    """The error is that of the fraction, since the power of two is exact: every seventh float32 in [1/64, 1/2]."""
    steps = np.arange(np.float32(1 / 64).view(np.int32), np.float32(0.5).view(np.int32), 7, dtype=np.int32)
    for sign in (1, -1):
        x = steps.view(np.float32) * np.float32(sign)
        assert ulps(of_core.exp2(x), np.exp2(x.astype(np.longdouble))) < 1.25
    x = arguments()
    x = x[(x >= -126) & (x < 128)]
    assert ulps(of_core.exp2(x), np.exp2(x.astype(np.longdouble))) < 1.25


@pytest.mark.parametrize("r", POWERS)
def test_errors_of_powers(r: float) -> None:
    x = np.abs(arguments())
    x = x[(x >= SMALLEST) & (x < np.inf)]
    exact = np.power(x.astype(np.longdouble), np.longdouble(r))
    normal = (exact >= 2.0**-126) & (exact < 2.0**128 * (1 - 2.0**-22))
    assert normal.sum() > 10_000
    near = np.where(exact < 2.0**-126 * (1 + 2.0**-20), 0, 1)[normal]  # just above it, 0 may come out
    got = of_core.power(x[normal], r)
    assert ulps(got[(near == 1) | (got > 0)], exact[normal][(near == 1) | (got > 0)]) < 2 + abs(r)


def test_powers_of_two_are_exact() -> None:
    k = np.arange(-126, 128)
    x = np.ldexp(np.float32(1), k)
    assert np.array_equal(of_core.log2(x), k)
    assert np.array_equal(of_core.exp2(k.astype(np.float32)), x)
    for r in (-1.0, 0.5, 2.0, 1.0, -0.5):
        whole = (k * r == np.rint(k * r)) & (np.abs(k * r) <= 126)
        assert np.array_equal(of_core.power(x[whole], r), np.exp2(k[whole] * r))


@pytest.mark.parametrize(
    ("function", "arguments_", "expected"),
    [
        ("log2", [0.0, -0.0, 2.0**-127, -(2.0**-149), np.inf, -np.inf, np.nan, -1.0, 1.0], "-i -i -i -i i n n n 0"),
        ("exp2", [np.inf, -np.inf, np.nan, 128.0, 127.99999, -126.0, -126.00001, 2.0**-149], "i 0 n i 1p 1s 0 1"),
    ],
)
def test_special_values(function: str, arguments_: list[float], expected: str) -> None:
    names = {"i": np.inf, "-i": -np.inf, "n": np.nan, "0": 0.0, "1": 1.0, "1s": 2.0**-126}
    x = np.float32(arguments_)
    for room, to in ((of_core, np.asarray), (of_torch, to_torch), (of_jax, to_jax)):
        got = to_numpy(getattr(room, function)(to(x)))
        for value, name in zip(got.tolist(), expected.split(), strict=True):
            if name == "1p":
                assert 3.4e38 < value < np.inf
            else:
                assert value == names[name] or (np.isnan(value) and name == "n")


def test_special_values_of_powers() -> None:
    x = np.float32([0.0, -0.0, 2.0**-149, np.inf, np.nan, -1.0, -np.inf, 1.0])
    nan = np.nan
    table = {
        0.7: [0, 0, 0, np.inf, nan, nan, nan, 1],
        -0.3: [np.inf, np.inf, np.inf, 0, nan, nan, nan, 1],
        0.0: [1, 1, 1, 1, nan, nan, nan, 1],
    }
    for room, to in ((of_core, np.asarray), (of_torch, to_torch), (of_jax, to_jax)):
        for r, want in table.items():
            assert_same_bits(np.float32(want), to_numpy(room.power(to(x), r)))
        for wrong in (8.5, np.nan, 1e-30):
            with pytest.raises(ValueError, match="`r` must be 0, or"):
                room.power(to(x), wrong)
