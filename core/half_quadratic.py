"""Half-quadratic optimization of scales (HQO) and of zero points that are not rounded (HQQ): `Statistic.HQO`.

The error ``sum(|x - x_hat|**p)``, p below 1, is split: one part of each difference counts as an outlier, and what is
left is followed by the parameter. A step, in units of the power of two ``u`` below absmax, every operation rounded:

    e = (x - x_hat) / u
    t = power(|e|, p - 1) * (power(u, p - 2) * (1 / beta))   in units of the data: |x - x_hat|**(p - 1) / beta
    w = sign(e) * (|e| - t) where |e| > t, else 0
    y = x / u - w
    symmetric: absmax becomes u * (d * median(y / code))     d the denominator of the scale
    affine: the minimum becomes u * (sum(y - code * (s / u)) / n), for the zero point; the scale s stays

beta is multiplied by kappa after every step. The median is over the elements where neither ``y`` nor the code is 0, the
lower one of two; sums are `sums.ordered_sum`. A block goes on as long as ``sum(|e|)`` falls, `ScaleRule.search_steps`
steps at most, and keeps the best that it had. Powers are those of `elementary`, float32 also for float64; 1 / beta and
its product with the power of ``u`` count as 0 below 2**-100.

Source: Badri & Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023); Brevitas
``HalfQuadraticOptimizerScale``, quanto ``HqqOptimizer``. These stop when the mean over all blocks no longer falls.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import split_blocks
from .descriptions import Quantizer
from .elementary import power
from .scales import inverse_betas
from .scaling import divisor
from .statistics import absmax, nth_smallest
from .sums import in_units, of_units, ordered_sum, unit_of

Array = NDArray[Any]
LEAST = 2.0**-100


def half_quadratic_range(
    q: Quantizer, x: Array, low: Array, high: Array, attempt: Callable[..., tuple[Array, Array, Array]]
) -> tuple[Array, ...]:
    """The range that the search finds. When affine it stays, and a third end follows, for the zero point.

    Args:
        x: float32 or float64; ``low``, ``high``: where the search starts.
        attempt: scale, codes and ``x_hat`` for such a result.
    """
    values, unit = split_blocks(x, q.granularity), unit_of(absmax(x, q.granularity))
    candidate = best = low if q.affine else high
    least, going = np.full(unit.shape, np.inf, x.dtype), np.ones(unit.shape, np.bool_)
    for inverse_beta in inverse_betas(q.scale, q.affine):
        scale, codes, hat = attempt(*(low, high, candidate) if q.affine else (-candidate, candidate))
        codes = split_blocks(codes, q.granularity).astype(x.dtype)
        e = in_units(values - split_blocks(hat, q.granularity), unit)
        error = ordered_sum(np.abs(e))
        going &= error < least
        best, least = np.where(going, candidate, best), np.where(going, error, least)
        if not going.any():
            break
        y = in_units(values, unit) - outliers(q, e, unit, inverse_beta)
        found = _mean_rest(y, codes, scale.astype(x.dtype), unit) if q.affine else _median_ratio(y, codes)
        found = found if q.affine else found * np.asarray(divisor(q), x.dtype)
        good = np.isfinite(found) & (q.affine | (found > 0))
        candidate = np.where(good, of_units(found, unit).astype(candidate.dtype), candidate)
    return (low, high, best) if q.affine else (-best, best)


def outliers(q: Quantizer, e: Array, unit: Array, inverse_beta: float) -> Array:
    """``w``, in units: errors less the threshold.

    Args:
        e: one axis more than ``unit``, the last.
    """
    p = q.scale.search_norm
    factor = power(unit, p - 2) * np.asarray(inverse_beta, e.dtype)
    factor = np.where(factor < LEAST, np.zeros_like(factor), factor)
    size = np.abs(e)
    threshold = power(size, p - 1) * factor[..., None]
    return np.where(size > threshold, np.copysign(size - threshold, e), np.zeros_like(e))


def _median_ratio(y: Array, codes: Array) -> Array:
    """Infinite where no element counts."""
    counts = (y != 0) & (codes != 0)
    if not y.shape[-1]:
        return np.full(y.shape[:-1], np.inf, y.dtype)
    ratios = np.where(counts, y / codes, np.asarray(np.inf, y.dtype))
    return nth_smallest(ratios, np.maximum((counts.sum(-1) + 1) // 2, 1))


def _mean_rest(y: Array, codes: Array, scale: Array, unit: Array) -> Array:
    """The mean of what the codes leave, in units."""
    total = ordered_sum(y - codes * in_units(scale[..., None], unit))
    return np.asarray(total / np.asarray(y.shape[-1], y.dtype))
