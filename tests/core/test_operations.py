"""`core.operations`: every elementary operation is the exact result, rounded once."""

import ctypes
import ctypes.util
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import Arithmetic
from samebits.core.operations import (
    add,
    divide,
    flush,
    multiply,
    multiply_add,
    reciprocal,
    round_to_dtype,
    smallest_normal,
    true_divide,
    working_dtype,
)
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import BFLOAT16, DTYPES, PARAMETERS, Machine, round_fraction, round_number, specials

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow and NaN are what is tested
DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
PLAIN = Arithmetic()


def numbers(dtype: np.dtype[Any], count: int, seed: int) -> NDArray[Any]:
    """Numbers of all exponents, spread by their bits, and special values."""
    bits = np.random.default_rng(seed).integers(0, 2 ** (8 * dtype.itemsize), count, dtype=np.uint64)
    return np.concatenate([bits.astype(f"u{dtype.itemsize}").view(dtype), specials(dtype)])


def two_of_each(dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pairs: random ones, every special value with every other, and pairs of near magnitude (which cancel)."""
    a, b, s = numbers(dtype, 400, 0), numbers(dtype, 400, 1), specials(dtype)
    rng = np.random.default_rng(2)
    near = (rng.standard_normal(400) * 3).astype(dtype), (rng.standard_normal(400) * 5).astype(dtype)
    return np.concatenate([a, np.repeat(s, s.size), near[0]]), np.concatenate([b, np.tile(s, s.size), near[1]])


def machine(dtype: np.dtype[Any], **switches: Any) -> Machine:
    return Machine(Arithmetic(compute_dtype="input", **switches), dtype.name)


def apply(function: Callable[..., float], dtype: np.dtype[Any], *operands: NDArray[Any]) -> NDArray[Any]:
    return np.array([function(*map(float, v)) for v in zip(*operands, strict=True)]).astype(dtype)


@DTYPE
@pytest.mark.parametrize("flushing", [False, True])
def test_sum_and_product_are_exact_and_rounded_once(dtype: np.dtype[Any], flushing: bool) -> None:
    a, b = two_of_each(dtype)
    m = machine(dtype, flush_subnormals=flushing)
    assert_same_bits(apply(m.add, dtype, a, b), add(a, b, m.arithmetic), call="add", inputs={"a": a, "b": b})
    assert_same_bits(apply(m.multiply, dtype, a, b), multiply(a, b, m.arithmetic), call="*", inputs={"a": a, "b": b})


@DTYPE
@pytest.mark.parametrize("flushing", [False, True])
def test_quotients_are_exact_and_rounded_once(dtype: np.dtype[Any], flushing: bool) -> None:
    a, b = two_of_each(dtype)
    keep = (b >= smallest_normal(dtype)) & np.isfinite(b)  # what a scale may be
    a, b = a[keep], b[keep]
    m = machine(dtype, flush_subnormals=flushing)
    assert_same_bits(apply(m.true_divide, dtype, a, b), true_divide(a, b, m.arithmetic), inputs={"a": a, "b": b})
    assert_same_bits(true_divide(a, b, m.arithmetic), divide(a, b, m.arithmetic))
    m = machine(dtype, division="reciprocal", flush_subnormals=flushing)
    assert_same_bits(apply(m.divide, dtype, a, b), divide(a, b, m.arithmetic), inputs={"a": a, "b": b})
    ones = np.ones_like(b)
    assert_same_bits(apply(m.true_divide, dtype, ones, b), reciprocal(b, m.arithmetic), inputs=b)


@DTYPE
@pytest.mark.parametrize("fused", [True, False])
def test_multiply_add_rounds_once_or_twice(dtype: np.dtype[Any], fused: bool) -> None:
    a, b = two_of_each(dtype)
    with np.errstate(all="ignore"):
        c = np.where(np.arange(a.size) % 3 == 0, -(a * b), np.roll(a, 7))  # a third of the products cancel, nearly
    m = machine(dtype, fused_multiply_add=fused)
    got = multiply_add(a, b, c, m.arithmetic)
    assert_same_bits(apply(m.multiply_add, dtype, a, b, c), got, inputs={"a": a, "b": b, "c": c})


def test_fused_multiply_add_shows_the_rest_of_a_product() -> None:
    # (1 + 2**-12)**2 - (1 + 2**-11) is 2**-24, which the rounded product has lost
    a, c = np.float32(1 + 2.0**-12), np.float32(-(1 + 2.0**-11))
    assert multiply_add(a, a, c, Arithmetic(fused_multiply_add=True)) == 2.0**-24
    assert multiply_add(a, a, c, PLAIN) == 0


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_an_infinity_is_not_met_by_a_finite_product(dtype: np.dtype[Any]) -> None:
    most, infinity = np.array(ml_dtypes.finfo(dtype).max, dtype), np.array(np.inf, dtype)
    fused = Arithmetic(fused_multiply_add=True)
    assert multiply_add(most, most, -infinity, fused) == -np.inf
    assert multiply_add(-most, most, infinity, fused) == np.inf
    with np.errstate(invalid="ignore"):
        assert np.isnan(multiply_add(infinity, most, -infinity, fused))


def test_fused_multiply_add_of_special_numbers_is_that_of_the_c_library() -> None:
    fma = ctypes.CDLL(ctypes.util.find_library("m")).fma
    fma.restype, fma.argtypes = ctypes.c_double, [ctypes.c_double] * 3
    most = np.finfo(np.float64).max
    some = np.array([0.0, -0.0, 5e-324, 1e-300, -0.5, 1, 2, 1e300, most, -most, np.inf, -np.inf, np.nan])
    a, b, c = (v.ravel() for v in np.meshgrid(some, some, some))
    with np.errstate(all="ignore"):
        got = multiply_add(a, b, c, Arithmetic(fused_multiply_add=True, keep_negative_zero=True))
    assert_same_bits(np.array([fma(*one) for one in zip(a, b, c, strict=True)]), got)


def test_multiply_add_broadcasts() -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.float32(2)
    for fused in (True, False):
        got = multiply_add(a, b, np.ones((2, 1), np.float32), Arithmetic(fused_multiply_add=fused))
        assert got.tolist() == [[1, 3, 5], [7, 9, 11]]
        assert got.dtype == np.float32


@pytest.mark.parametrize("source", DTYPES.values(), ids=str)
@pytest.mark.parametrize("target", DTYPES.values(), ids=str)
def test_conversion_rounds_once(source: np.dtype[Any], target: np.dtype[Any]) -> None:
    x = numbers(source, 2000, 3)
    expected = np.array([round_number(float(v), target.name) for v in x]).astype(target)
    assert_same_bits(expected, round_to_dtype(x, target), inputs=x)


@pytest.mark.parametrize("target", ["float32", "bfloat16", "float16"])
def test_conversion_from_float64_at_every_halfway_point(target: str) -> None:
    """Halfway points of the target and a float64 neighbour on both sides: what a second rounding would get wrong."""
    precision, smallest, largest = PARAMETERS[target]
    rng = np.random.default_rng(4)
    halves = []
    for exponent in (smallest - precision + 1, smallest - 3, smallest, -1, 0, 5, largest - 1, largest):
        quantum = 2.0 ** (max(exponent, smallest) - precision + 1)
        steps = {0, 1, 2, 3, 2 ** (precision - 1), 2**precision - 1, *rng.integers(0, 2**precision, 50).tolist()}
        halves += [(k + 0.5) * quantum for k in sorted(steps)]
    x = neighbours(np.array([*halves, *(-v for v in halves)]), 1)
    expected = np.array([round_fraction(Fraction(v), target) if v else v for v in x.tolist()]).astype(DTYPES[target])
    assert_same_bits(expected, round_to_dtype(x, DTYPES[target]), inputs=x)


def test_float64_reaches_bfloat16_without_a_stop_in_float32() -> None:
    x = np.array([1 + 2.0**-8 + 2.0**-40])  # just over halfway; float32 would drop the rest and tie to even
    assert float(round_to_dtype(x, BFLOAT16)[0]) == 1 + 2.0**-7
    assert float(x.astype(np.float32).astype(BFLOAT16)[0]) == 1.0


@DTYPE
def test_flush(dtype: np.dtype[Any]) -> None:
    x = np.concatenate([neighbours(np.array([smallest_normal(dtype), -smallest_normal(dtype)]), 3), specials(dtype)])
    assert_same_bits(x, flush(x, PLAIN))
    limit = 2.0 ** PARAMETERS[dtype.name][1]
    expected = [math.copysign(0.0, v) if abs(v) < limit else v for v in x.astype(float).tolist()]
    assert_same_bits(np.array(expected).astype(dtype), flush(x, Arithmetic(flush_subnormals=True)), inputs=x)


@DTYPE
def test_smallest_normal(dtype: np.dtype[Any]) -> None:
    assert float(smallest_normal(dtype)) == 2.0 ** PARAMETERS[dtype.name][1]
    assert (smallest_normal(dtype).dtype, smallest_normal(dtype).shape) == (dtype, ())


def test_working_dtype() -> None:
    float64 = np.dtype(np.float64)
    for dtype in DTYPES.values():
        wide = float64 if dtype == float64 else np.dtype(np.float32)
        assert working_dtype(PLAIN, dtype) == wide
        assert working_dtype(Arithmetic(compute_dtype="input"), dtype) == dtype
        assert working_dtype(Arithmetic(compute_dtype="float64"), dtype) == float64
