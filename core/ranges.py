"""Ranges that scales come from, other than the smallest and largest element; see `Statistic`.

A range is a pair ``(low, high)`` per block; symmetric ones are ``(-m, m)``. A block that holds NaN or an infinity has
the range ``(NaN, NaN)``.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import split_blocks
from .descriptions import Quantizer
from .scales import Statistic
from .statistics import absmax, nth_smallest
from .sums import in_units, of_units, ordered_sum, square_root, unit_of, without_small

Array = NDArray[Any]


def percentile_range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """The PERCENTILE of ``x``; 0 for an empty block. Exact.

    Source: Brevitas ``AbsPercentile``, ``NegativePercentileOrZero`` and ``PercentileInterval`` (the ranks).
    """
    blocks = split_blocks(x, q.granularity)
    n = blocks.shape[-1]
    if n == 0:
        zero = absmax(x, q.granularity)
        return zero, zero
    bad = np.where(np.isfinite(blocks).all(axis=-1), 0, np.nan).astype(x.dtype)
    high_rank = min(max(math.floor(0.01 * q.scale.percentile * n + 0.5), 1), n)
    if not q.affine:
        high = nth_smallest(np.abs(blocks), high_rank) + bad
        return -high, high
    low_rank = min(max(math.ceil(0.01 * q.scale.low_percentile * n), 1), n)
    return nth_smallest(blocks, low_rank) + bad, nth_smallest(blocks, high_rank) + bad


def average_range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """ABSMEAN, MEAN_SIGMA, L1, L2 and RMS of ``x``; 0 for an empty block. Every operation rounds to the dtype.

    Args:
        x: float32 or float64.
    """
    largest = absmax(x, q.granularity)
    unit = unit_of(largest)
    v = in_units(split_blocks(x, q.granularity), unit)
    n, low = max(v.shape[-1], 1), None
    size = np.asarray(n, x.dtype)
    match q.scale.statistic:
        case Statistic.L1:
            high = ordered_sum(np.abs(v))
        case Statistic.L2:
            high = square_root(ordered_sum(v * v))
        case Statistic.RMS:
            high = square_root(ordered_sum(v * v) / size)
        case Statistic.ABSMEAN:
            high = ordered_sum(np.abs(v)) / size
        case Statistic.MEAN_SIGMA:
            mean, deviation, _ = mean_and_deviation(q, x)
            spread = np.asarray(q.scale.sigma, x.dtype) * deviation
            low, high = mean - spread, mean + spread
        case other:
            raise ValueError(f"`q.scale.statistic` must be a mean or a norm, got '{other}'")
    bad = np.where(np.isfinite(largest), 0, np.nan).astype(x.dtype)
    high = of_units(high, unit) + bad
    return (of_units(low, unit) + bad if low is not None and q.affine else -high), high


def mean_and_deviation(q: Quantizer, x: Array) -> tuple[Array, Array, Array]:
    """Mean and standard deviation of ``|x|`` (affine: of ``x``), divided by the unit, and the unit of each block.

    The deviation divides by n - 1, every operation rounds. NaN for a block that holds NaN or an infinity, 0 for an
    empty one.

    Args:
        x: float32 or float64.
    """
    largest = absmax(x, q.granularity)
    unit = unit_of(largest)
    v = in_units(split_blocks(x, q.granularity), unit)
    terms, n = v if q.affine else np.abs(v), v.shape[-1]
    mean = ordered_sum(terms) / np.asarray(max(n, 1), x.dtype)
    difference = without_small(terms - mean[..., None])
    variance = ordered_sum(difference * difference) / np.asarray(max(n - 1, 1), x.dtype)
    bad = np.where(np.isfinite(largest), 0, np.nan).astype(x.dtype)
    return mean + bad, square_root(variance) + bad, unit


def searched_range(
    q: Quantizer, x: Array, low: Array, high: Array, fake: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """The MSE search: of ``(low * c, high * c)``, ``c = k / search_steps`` rounded, the one with the least error.

    The error is the `ordered_sum` of ``((x_hat - x) / unit)**2``, every operation rounded; differences below 2**-60
    units (float64: 2**-508) count as 0. Of equal errors the first counts.

    Args:
        x: float32 or float64; ``low``, ``high``: its range, which includes 0.
        fake: ``x_hat`` for a range.

    Source: Brevitas ``MSE`` with ``mse_grid_search``.
    """
    blocks = split_blocks(x, q.granularity)
    unit = unit_of(np.maximum(-low, high).astype(x.dtype))
    best_low, best_high, best = low, high, np.full_like(low, np.inf)
    for k in range(1, q.scale.search_steps + 1):
        factor = np.asarray(k / q.scale.search_steps, low.dtype)
        a, b = low * factor, high * factor
        difference = in_units(split_blocks(fake(a, b), q.granularity) - blocks, unit)
        error = ordered_sum(difference * difference)
        better = error < best
        best_low, best_high = np.where(better, a, best_low), np.where(better, b, best_high)
        best = np.where(better, error, best)
    return best_low, best_high
