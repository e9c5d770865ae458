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
    finite = np.asarray(np.isfinite(flat).all(axis=-1))
    rows, odd = zip(flat.tolist(), finite.tolist(), strict=True), terms.dtype != np.float64
    sums = np.array([_exact_sum(row, odd) if number else _special_sum(row) for row, number in rows], np.float64)
    return round_to_dtype(sums, terms.dtype).reshape(blocks.shape[:-1])


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
