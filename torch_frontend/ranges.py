"""Ranges that scales come from, other than the smallest and largest element; see `Statistic`.

A range is a pair ``(low, high)`` per block; symmetric ones are ``(-m, m)``. A block that holds NaN or an infinity has
the range ``(NaN, NaN)``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..core.descriptions import Quantizer
from ..core.scales import Statistic
from . import devices
from .arithmetics import number_of, product
from .arrays import is_concrete
from .blocks import split_blocks
from .operations import round_to_dtype
from .statistics import absmax, nth_smallest
from .sums import in_units, of_units, ordered_sum, square_root, unit_of, without_small


def percentile_range(q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The PERCENTILE of ``x``; 0 for an empty block. Exact.

    Source: Brevitas ``AbsPercentile``, ``NegativePercentileOrZero`` and ``PercentileInterval`` (the ranks).
    """
    blocks, largest = split_blocks(x, q.granularity), absmax(x, q.granularity)
    n = int(blocks.shape[-1])
    if x.numel() == 0:
        return largest, largest
    percentile, low_percentile = map(float, q.scale.decimals[:2])
    finite = largest < torch.inf
    high_rank = min(max(math.floor(0.01 * percentile * n + 0.5), 1), n)
    if not q.affine:
        high = torch.where(finite, nth_smallest(blocks.abs(), high_rank), torch.nan)
        return -high, high
    low_rank = min(max(math.ceil(0.01 * low_percentile * n), 1), n)
    low, high = nth_smallest(blocks, low_rank), nth_smallest(blocks, high_rank)
    return torch.where(finite, low, torch.nan), torch.where(finite, high, torch.nan)


def average_range(q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """ABSMEAN, MEAN_SIGMA, L1, L2 and RMS of ``x``; 0 for an empty block. Every operation rounds to the dtype.

    Args:
        x: float32 or float64.
    """
    if q.scale.statistic is Statistic.MEAN_SIGMA:
        mean, deviation, unit = mean_and_deviation(q, x)
        spread = deviation * float(q.scale.decimals[2])
        high = of_units(mean + spread, unit)
        return of_units(mean - spread, unit) if q.affine else -high, high
    largest = absmax(x, q.granularity)
    unit, finite = unit_of(largest), largest < torch.inf
    v = in_units(split_blocks(x, q.granularity), unit)
    n = int(v.shape[-1])
    squared = q.scale.statistic in (Statistic.L2, Statistic.RMS)
    total = ordered_sum(v * v if squared else v.abs())
    if q.scale.statistic in (Statistic.ABSMEAN, Statistic.RMS):
        total = _over(total, max(n, 1))
    high = torch.where(finite, of_units(square_root(total) if squared else total, unit), torch.nan)
    return -high, high


def mean_and_deviation(q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of ``|x|`` (affine: of ``x``), divided by the unit, and the unit of each block.

    The deviation divides by n - 1, every operation rounds. NaN for a block that holds NaN or an infinity, 0 for an
    empty one.

    Args:
        x: float32 or float64.
    """
    largest = absmax(x, q.granularity)
    unit, finite = unit_of(largest), largest < torch.inf
    v = in_units(split_blocks(x, q.granularity), unit)
    n, v = int(v.shape[-1]), v if q.affine else v.abs()
    mean = _over(ordered_sum(v), max(n, 1))
    difference = without_small(v - mean[..., None])
    deviation = square_root(_over(ordered_sum(devices.product(difference, difference)), max(n - 1, 1)))
    return torch.where(finite, mean, torch.nan), torch.where(finite, deviation, torch.nan), unit


def searched_range(
    q: Quantizer, x: Tensor, low: Tensor, high: Tensor, fake: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The MSE search: of ``(low * c, high * c)``, ``c = k / search_steps`` rounded, the one with the least error.

    The error is the `ordered_sum` of ``((x_hat - x) / unit)**2``, every operation rounded; differences below 2**-60
    units (float64: 2**-508) count as 0. Of equal errors the first counts.

    One candidate after another; in compiled code all at once, along an axis of their own, which compiles faster.

    Args:
        x: float32 or float64; ``low``, ``high``: its range, which includes 0.
        fake: ``x_hat`` as `split_blocks` arranges it, for ranges of shape ``(candidates, *shape of the range)``.

    Source: Brevitas ``MSE`` with ``mse_grid_search``.
    """
    blocks, steps = split_blocks(x, q.granularity), q.scale.search_steps
    unit = unit_of(round_to_dtype(torch.maximum(-low, high), x.dtype))
    best_low, best_high, best = low, high, torch.full_like(low, torch.inf, dtype=x.dtype)
    numbers = [number_of(k / steps, low.dtype) for k in range(1, steps + 1)]
    factors = torch.tensor(numbers, dtype=low.dtype, device=x.device)
    factors = factors.reshape(-1, *(1 for _ in low.shape))
    for some in torch.split(factors, 1 if is_concrete(x) else steps):
        lows, highs = product(low, some), product(high, some)
        difference = in_units(fake(lows, highs) - blocks, unit.expand(lows.shape))
        for a, b, error in zip(lows, highs, ordered_sum(devices.product(difference, difference)), strict=True):
            better = error < best
            best_low, best_high = torch.where(better, a, best_low), torch.where(better, b, best_high)
            best = torch.where(better, error, best)
    return best_low, best_high


def _over(total: Tensor, n: int) -> Tensor:
    """``total / n``, correctly rounded."""
    return devices.quotient(total, torch.full_like(total, n))
