"""Straight-through gradients: which elements pass, and the terms of the gradients of scale and zero point."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import split_blocks
from .descriptions import Gradient, Quantizer
from .granularity import Granularity
from .operations import round_to_dtype

Array = NDArray[Any]


def clip_mask(q: Quantizer, unclamped: Array) -> Array:
    """True where a code was not clamped: ``lo <= unclamped <= hi``, and NaN, which is not clamped either.

    Args:
        unclamped: codes as the clamp sees them (rounded, with the zero point, in the default arithmetic).
    """
    outside = (unclamped < q.format.lo) | (unclamped > q.format.hi)
    return np.asarray(~outside)


def passing_mask(q: Quantizer, quotient: Array, unclamped: Array) -> Array:
    """True where the gradient of ``x`` passes: the factor m of `Gradient`. NaN passes.

    Args:
        quotient: ``x / s``.
        unclamped: codes as the clamp sees them.
    """
    match q.gradient:
        case Gradient.PASS_THROUGH:
            return np.ones_like(unclamped, bool)
        case Gradient.CLIPPED_QUOTIENT:
            return clip_mask(q, quotient)
        case Gradient.LEARNED_CLIP:
            return np.asarray(~((quotient < 0) | (quotient >= q.format.hi)))
        case _:
            return clip_mask(q, unclamped)


def learned_scale_factor(q: Quantizer, block_elements: int) -> float:
    """Factor on the gradients of scale and zero point: ``1 / sqrt(n * hi)`` for LEARNED_SCALE, else 1.

    Rounded to float32 (float64 sums use it unrounded). Source: LSQ, arXiv 1902.08153, section 2.2.
    """
    if q.gradient is not Gradient.LEARNED_SCALE or block_elements == 0:
        return 1.0
    return 1 / math.sqrt(block_elements * max(q.format.hi, 1))


def block_sum(terms: Array, granularity: Granularity) -> Array:
    """Sum over each block, exact and then rounded once to the dtype of ``terms``. +0.0 for an empty block.

    NaN where the block holds NaN or infinities of both signs, else the infinity that it holds.
    """
    blocks = split_blocks(terms, granularity)
    flat = blocks.reshape(math.prod(blocks.shape[:-1]), blocks.shape[-1]).astype(np.float64)
    with np.errstate(all="ignore"):
        sums = flat.sum(axis=-1) + 0.0  # of no elements, and of negative zeros, +0
        rounded = ~_adds_exactly(flat) if terms.dtype != np.float64 else np.ones(sums.shape, bool)
    for i in np.flatnonzero(rounded):
        values = flat[i].tolist()
        finite = all(map(math.isfinite, values))
        sums[i] = _exact_sum(values, terms.dtype != np.float64) if finite else _special_sum(values)
    return round_to_dtype(sums, terms.dtype).reshape(blocks.shape[:-1])


def _adds_exactly(rows: Array) -> Array:
    """Whether float64 adds the numbers of each row, which are float32 numbers, without rounding in any order.

    With ``2**e`` at most the least magnitude, all are multiples of ``2**(e - 23)``, and so are all partial sums: they
    are float64 numbers while they stay below ``2**(e - 23 + 53)``. False for infinities and NaN.
    """
    sizes = np.abs(rows)
    least = np.min(np.where(sizes > 0, sizes, np.inf), axis=-1, initial=np.inf)
    _, exponent = np.frexp(least)  # least = f * 2**exponent, f in [1/2, 1)
    total = sizes.sum(axis=-1)
    return np.asarray((total == 0) | (total < np.ldexp(1.0, exponent - 1 - 23 + 52)))  # one bit less: total is rounded


def _special_sum(values: list[float]) -> float:
    """NaN, or the infinity that is there: infinities of both signs make NaN, as NaN does."""
    return sum(value for value in values if not math.isfinite(value))


def _exact_sum(values: list[float], odd: bool) -> float:
    """Correctly rounded sum of finite numbers, +0.0 where it is 0.

    With ``odd`` it is rounded to odd, so that a later rounding to a narrower dtype is the only one.
    """
    try:
        total = math.fsum(values) + 0.0
    except OverflowError:  # of a partial sum: only float64 terms can
        return _float(sum(map(Fraction, values)))
    if not odd:
        return total
    rest = math.fsum([*values, -total])
    if rest and np.float64(total).view(np.uint64) % np.uint64(2) == 0:
        return math.nextafter(total, math.copysign(math.inf, rest))
    return total


def _float(value: Fraction | int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
