"""Half-quadratic optimization of scales (HQO) and of zero points that are not rounded (HQQ): `Statistic.HQO`.

Formulas and sources stand in `samebits.core.half_quadratic`. Every product that a sum follows is an `arrays.product`,
and differences that may be subnormal are those of `arrays.add`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.descriptions import Quantizer
from ..core.scales import inverse_betas
from .arrays import add, divide, product
from .blocks import split_blocks
from .elementary import power
from .operations import round_to_dtype
from .scaling import divisor
from .statistics import absmax, nth_smallest
from .sums import in_units, of_units, ordered_sum, unit_of

Array = jax.Array
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
    if not x.size:
        return low, high
    inverses = jnp.asarray(np.asarray(inverse_betas(q.scale, q.affine), x.dtype))

    def advance(k: Any, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        candidate, best, least, going = state
        scale, codes, hat = attempt(low, high, candidate) if q.affine else attempt(-candidate, candidate)
        e = in_units(add(values, -split_blocks(hat, q.granularity)), unit)
        error = ordered_sum(jnp.abs(e))
        going = going & (error < least)
        y = in_units(values, unit) - outliers(q, e, unit, inverses[k])
        codes = split_blocks(codes, q.granularity)
        if q.affine:
            found = _mean_rest(y, codes, scale, unit)
            good = jnp.isfinite(found)
        else:
            ratio = _median_ratio(y, codes)
            found = product(ratio, jnp.full(ratio.shape, divisor(q), ratio.dtype))
            good = (found > 0) & jnp.isfinite(found)
        new = round_to_dtype(of_units(found, unit), candidate.dtype)
        candidate, best = jnp.where(good, new, candidate), jnp.where(going, candidate, best)
        return candidate, best, jnp.where(going, error, least), going

    moved = low if q.affine else high
    start = moved, moved, jnp.full(high.shape, jnp.inf, x.dtype), jnp.ones(high.shape, bool)
    best: Array = lax.fori_loop(0, len(inverses), advance, start)[1]
    return (low, high, best) if q.affine else (-best, best)


def outliers(q: Quantizer, e: Array, unit: Array, inverse_beta: Array) -> Array:
    """``w``, in units: errors less the threshold.

    Args:
        e: one axis more than ``unit``, the last.
    """
    p = q.scale.search_norm
    factor = product(power(unit, p - 2), jnp.broadcast_to(inverse_beta, unit.shape))
    factor = jnp.where(factor < LEAST, 0, factor)
    size = jnp.abs(e)
    threshold = product(power(size, p - 1), jnp.broadcast_to(factor[..., None], e.shape))
    rest = jnp.where(size > threshold, size - threshold, 0)
    return jnp.where(e < 0, -rest, rest)


def _median_ratio(y: Array, codes: Array) -> Array:
    """Infinite where no element counts."""
    counts = (y != 0) & (codes != 0)
    ratios = divide(y, jnp.where(counts, codes, 1), subnormals=False)
    middle = jnp.maximum((jnp.sum(counts, -1, dtype=np.int32) + 1) // 2, 1)
    return nth_smallest(jnp.where(counts, ratios, jnp.inf), middle)


def _mean_rest(y: Array, codes: Array, scale: Array, unit: Array) -> Array:
    """The mean of what the codes leave, in units."""
    step = jnp.broadcast_to(in_units(scale[..., None], unit), codes.shape)
    total = ordered_sum(y - product(step, codes))  # that order: of codes compilers know where they are 0
    return divide(total, jnp.full_like(total, y.shape[-1]))
