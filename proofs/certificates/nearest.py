"""Whether a result is the number nearest to the exact one, for primitives that are rounded once: an independent oracle.

It computes no result. Between a number y and its neighbours lie two midpoints; y is right if the exact value lies
between them, or on one of them and y is even. A midpoint has one bit more than the dtype, so products with it, and
squares of it, are exact in float64 for float32 and 16 bits; sums are exact as a float64 and its error (Knuth's TwoSum).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.bits import from_ordinal, ordinal, raw_bits

Array = NDArray[Any]
Beside = Callable[..., Array]  # (midpoints, *operands), float64: the sign of the exact value less the midpoint
FARTHEST = 600  # powers of two by which a number of float32 is surely 0 or infinite


def _sum(m: Array, a: Array, b: Array) -> Array:
    s = a + b
    back = s - a
    error = (a - (s - back)) + (b - back)
    return np.asarray(np.where(s == m, np.sign(error), np.sign(s - m)))


def _quotient(m: Array, a: Array, b: Array) -> Array:
    return np.asarray(np.sign(a - m * b) * np.sign(b))


def _scaled(m: Array, x: Array, n: Array) -> Array:
    return np.asarray(np.sign(np.ldexp(x, np.clip(np.trunc(n), -FARTHEST, FARTHEST).astype(np.int32)) - m))


BESIDE: Mapping[str, Beside] = MappingProxyType(
    {
        "add": _sum,
        "subtract": lambda m, a, b: _sum(m, a, -b),
        "multiply": lambda m, a, b: np.sign(a * b - m),
        "divide": _quotient,
        "fused_multiply_add": lambda m, a, b, c: _sum(m, a * b, c),
        "sqrt": lambda m, x: np.sign(x - m * np.abs(m)),
        "cast": lambda m, x: np.sign(x - m),
        "scale_by_power": _scaled,
    }
)


@np.errstate(all="ignore")
def not_nearest(name: str, operands: tuple[Array, ...], y: Array) -> Array:
    """Where ``y`` is not the nearest number, ties to even: bool, of the shape of ``y``.

    Special values are no subject: operands that are not finite, a divisor of 0, a square root of a negative number.

    Args:
        name: of `BESIDE`.
        operands: arrays of float32, bfloat16 or float16 of one shape, at most; ``y``: the result, of such a dtype.
    """
    wide = [np.asarray(one).astype(np.float64) for one in operands]
    asked = np.logical_and.reduce([np.isfinite(one) for one in wide])
    if name == "divide":
        asked &= wide[1] != 0
    if name == "sqrt":
        asked &= wide[0] >= 0
    below, above = _middle(y, -np.inf), _middle(y, np.inf)
    even = (raw_bits(y) & 1) == 0
    low, high = BESIDE[name](below, *wide), BESIDE[name](above, *wide)
    fits = np.where(even, (low >= 0) & (high <= 0), (low > 0) & (high < 0))
    return np.asarray(asked & (np.isnan(y) | ~fits))


def _middle(y: Array, toward: float) -> Array:
    """Midpoint with the next number; beyond the largest one stands the next power of two, and then infinity."""
    largest = float(from_ordinal(ordinal(np.asarray(np.inf, y.dtype)) - 1, y.dtype))
    beyond = 2.0 ** np.ceil(np.log2(largest))
    number, other = y.astype(np.float64), np.nextafter(y, y.dtype.type(toward)).astype(np.float64)
    last = np.isinf(number)
    other = np.where(np.isinf(other) & ~last, np.copysign(beyond, other), other)
    number = np.where(last & np.isfinite(other), np.copysign(beyond, number), number)
    return np.asarray(number / 2 + other / 2)
