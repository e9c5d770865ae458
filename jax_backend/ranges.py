"""Ranges that scales come from, other than the smallest and largest element; see `Statistic`.

A range is a pair ``(low, high)`` per block; symmetric ones are ``(-m, m)``. A block that holds NaN or an infinity has
the range ``(NaN, NaN)``.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.arithmetic import Arithmetic
from ..core.descriptions import Quantizer
from ..core.scales import Statistic
from .arrays import add, divide, from_pattern, magnitude, product
from .blocks import split_blocks
from .ieee import multiply_exactly
from .operations import multiply, round_to_dtype
from .statistics import absmax, nth_smallest
from .sums import in_units, of_units, ordered_sum, square_root, unit_of, without_small

Array = jax.Array


def percentile_range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """The PERCENTILE of ``x``; 0 for an empty block. Exact.

    Source: Brevitas ``AbsPercentile``, ``NegativePercentileOrZero`` and ``PercentileInterval`` (the ranks).
    """
    blocks, largest = split_blocks(x, q.granularity), absmax(x, q.granularity)
    n = blocks.shape[-1]
    if x.size == 0:
        return largest, largest
    finite = jnp.isfinite(largest)
    high_rank = min(max(math.floor(0.01 * q.scale.percentile * n + 0.5), 1), n)
    high = jnp.where(finite, nth_smallest(blocks if q.affine else jnp.abs(blocks), high_rank), jnp.nan)
    if not q.affine:
        return -high, high
    low_rank = min(max(math.ceil(0.01 * q.scale.low_percentile * n), 1), n)
    return jnp.where(finite, nth_smallest(blocks, low_rank), jnp.nan), high


def average_range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """ABSMEAN, MEAN_SIGMA, L1, L2 and RMS of ``x``; 0 for an empty block. Every operation rounds to the dtype.

    Args:
        x: float32 or float64.
    """
    largest = absmax(x, q.granularity)
    unit = unit_of(largest)
    v = in_units(split_blocks(x, q.granularity), unit)
    v = v if q.affine else jnp.abs(v)
    n = v.shape[-1]

    def range_of(low: Array, high: Array) -> tuple[Array, Array]:
        low, high = (jnp.where(jnp.isfinite(largest), of_units(end, unit), jnp.nan) for end in (low, high))
        return (low if q.affine else -high), high

    match q.scale.statistic:
        case Statistic.L2:
            return range_of(largest, square_root(ordered_sum(product(v, v))))
        case Statistic.RMS:
            return range_of(largest, square_root(_over(ordered_sum(product(v, v)), n)))
        case Statistic.MEAN_SIGMA:
            mean, deviation, _ = mean_and_deviation(q, x)
            spread = product(deviation, jnp.full_like(mean, q.scale.sigma))
            return range_of(mean - spread, mean + spread)
        case Statistic.L1:
            return range_of(largest, ordered_sum(v))
        case _:
            return range_of(largest, _over(ordered_sum(v), n))


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
    v, n = v if q.affine else jnp.abs(v), v.shape[-1]
    mean = _over(ordered_sum(v), n)
    difference = without_small(v - mean[..., None])
    deviation = square_root(_over(ordered_sum(product(difference, difference)), n - 1))
    mean, deviation = (jnp.where(jnp.isfinite(largest), number, jnp.nan) for number in (mean, deviation))
    return mean, deviation, unit


def searched_range(
    q: Quantizer, x: Array, low: Array, high: Array, fake: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """The MSE search: of ``(low * c, high * c)``, ``c = k / search_steps`` rounded, the one with the least error.

    The error is the `ordered_sum` of ``((x_hat - x) / unit)**2``, every operation rounded; differences below 2**-60
    units (float64: 2**-508) count as 0. Of equal errors the first counts.

    Args:
        x: float32 or float64; ``low``, ``high``: its range, which includes 0, of the dtype of ``x`` or another, in
            which products then round.
        fake: ``x_hat`` for a range.

    Source: Brevitas ``MSE`` with ``mse_grid_search``.
    """
    blocks = split_blocks(x, q.granularity)
    larger = from_pattern(jnp.maximum(magnitude(low), magnitude(high)), low.dtype)
    alike, steps = low.dtype == x.dtype, q.scale.search_steps
    unit = unit_of(larger if alike else round_to_dtype(larger, x.dtype))
    factors = jnp.asarray(np.asarray([k / steps for k in range(1, steps + 1)], low.dtype))

    def times(end: Array, factor: Array) -> Array:
        return multiply_exactly(end, factor) if alike else multiply(end, factor, Arithmetic())

    def attempt(k: Any, found: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        best_low, best_high, best = found
        factor = jnp.broadcast_to(factors[k], low.shape)
        a, b = times(low, factor), times(high, factor)
        difference = in_units(add(split_blocks(fake(a, b), q.granularity), -blocks), unit)
        error = ordered_sum(product(difference, difference))
        better = error < best
        return jnp.where(better, a, best_low), jnp.where(better, b, best_high), jnp.where(better, error, best)

    found: tuple[Array, Array, Array] = lax.fori_loop(
        0, steps, attempt, (low, high, jnp.full(low.shape, jnp.inf, x.dtype))
    )
    return found[:2]


def _over(total: Array, n: int) -> Array:
    """``total / n``, correctly rounded; ``total`` itself where n is 0."""
    return divide(total, jnp.full_like(total, max(n, 1)))
