"""Parameters of arrays where the description says more than the default rule and arithmetic: by `scale_rules`.

Without checks and without `jax.jit`, as `kernels`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.descriptions import Quantizer
from ..core.directions import Rounding
from ..core.scales import SEARCHED, Denominator, Statistic
from .arithmetics import codes, values
from .arrays import with_float64
from .half_quadratic import half_quadratic_range
from .ieee_any import is_zero
from .operations import FLOAT32, FLOAT64, round_to_dtype
from .ranges import average_range, percentile_range, searched_range
from .scale_rules import data_range, flushed, parameters_of_range, scale_dtypes, widened_range
from .small_numbers import by_range, is_other
from .statistics import absmax, min_max, positive_peak

Array = jax.Array


def is_other_rule(q: Quantizer) -> bool:
    """Whether parameters are chosen here."""
    return is_other(q) or not q.scale.is_usual


def choose_by_rule(q: Quantizer, x: Array) -> tuple[Array, Array | None, Array]:
    """Scale, zero point, and whether all of ``x`` is finite."""
    dtypes = scale_dtypes(q, x.dtype)
    with with_float64(*dtypes):
        low, high = _range(q, flushed(q, x, dtypes[0]))
        finite = jnp.all(jnp.isfinite(low) & jnp.isfinite(high))
        search = q if q.deterministic else q.replace(rounding=Rounding.TIES_TO_EVEN)
        found = searched_by_rule(search, x, low, high) if q.scale.statistic in SEARCHED else (low, high)
        scale, zero_point, *_ = parameters_of_range(q, x.dtype, *found)
        if q.scale.signed:
            scale = jnp.where(positive_peak(x, q.granularity), -scale, scale)
        return scale, zero_point, finite


def _range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """The range that the scale of each block comes from, in the dtype of ``x``, which is `flushed`."""
    wide = x if x.dtype == FLOAT64 else round_to_dtype(x, FLOAT32)
    if q.scale.statistic not in (Statistic.EXTREMES, Statistic.SIGNED_ABSMAX, *SEARCHED):
        found = (percentile_range if q.scale.statistic is Statistic.PERCENTILE else average_range)(q, wide)
        low, high = (round_to_dtype(end, x.dtype) for end in found)
        if not q.affine:
            return low, high
        return widened_range(q, jnp.where(is_zero(low), jnp.zeros_like(low), low), high)  # either sign until here
    if q.affine:
        return data_range(q, x)
    if q.scale.denominator is Denominator.LARGER:
        low, high = (round_to_dtype(end, x.dtype) for end in min_max(wide, q.granularity))
        return low, high
    high = round_to_dtype(absmax(wide, q.granularity), x.dtype)
    return -high, high


def searched_by_rule(q: Quantizer, x: Array, low: Array, high: Array) -> tuple[Array, ...]:
    """The range that a search finds, for rounding that is deterministic."""
    wide = np.dtype(checks.scale_dtype(x.dtype.name))

    def attempt(low: Array, high: Array, lower_end: Array | None = None) -> tuple[Array, Array, Array]:
        scale, zero, *_ = parameters_of_range(q, x.dtype, low, high, lower_end)

        def compute(subnormals: bool) -> tuple[Array, Array]:
            found = codes(q, x, scale, zero, subnormals=subnormals)
            return round_to_dtype(found, wide), values(q, found, scale, zero, wide, subnormals=subnormals)

        return scale, *by_range(q, scale, zero, compute, x, x.dtype)

    exact = round_to_dtype(x, wide)
    if q.scale.statistic is Statistic.HQO:
        return half_quadratic_range(q, exact, low, high, attempt)
    return searched_range(q, exact, low, high, lambda low, high: attempt(low, high)[2])
