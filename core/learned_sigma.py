"""Scales by mean and standard deviation with a sigma that is a number of a program, and its gradient."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .descriptions import Quantizer
from .granularity import PerTensor
from .operations import round_to_dtype
from .ranges import mean_and_deviation
from .scale_rules import flushed, parameters_of_range, scale_dtypes
from .scaling import scale_slope
from .ste import block_sum
from .sums import of_units

Array = NDArray[Any]
LARGEST = 2.0**20  # sigma


@np.errstate(all="ignore")  # special values are meant
def scale_at_sigma(q: Quantizer, x: Array, sigma: Array) -> Array:
    """The scale of `choose_qparams` for the statistic MEAN_SIGMA with this sigma: that of ``m = mean + sigma * std``.

    With mean and std of ``|x|`` in units (`ranges.mean_and_deviation`), ``m = fl(fl(mean + fl(sigma * std)) * unit)``.
    Sigma is clamped into [0, 2**20] first; NaN makes every scale NaN. In the frontends the scale has a gradient towards
    sigma, `sigma_gradient`, and none towards ``x``.

    Args:
        x: any floating-point dtype; ``sigma``: 0-d, float32 or the dtype of the scale.
    Raises:
        TypeError: wrong dtypes. ValueError: an affine quantizer, another statistic, a sigma that is not 0-d, NaN or an
            infinity in ``x`` (where values can be looked at).
    Source: Brevitas ``MeanLearnedSigmaStd``, without its epsilon.
    """
    x, magnitude, _ = _magnitude(q, x, sigma)
    return np.asarray(parameters_of_range(q, x.dtype, -magnitude, magnitude).scale)


@np.errstate(all="ignore")  # special values are meant
def sigma_gradient(q: Quantizer, x: Array, sigma: Array, d_scale: Array) -> Array:
    """Gradient of sigma: the sum over all blocks of ``fl(d_scale * slope)``; 0-d, dtype of the scale.

    ``slope = fl(std / divisor)``, of the std of ``|x|`` rounded; +0.0 where the scale is the floor
    (`scaling.scale_slope`). Restrictions of scales, and the clamp of sigma, pass the gradient unchanged. A slope of 0
    makes a term of 0, whatever ``d_scale`` is. The sum is exact and rounded once here; over the n blocks torch is off
    by at most ``n * 2**-53 * sum(|terms|)`` before it rounds, JAX as `ste.block_sum` says.

    Args:
        d_scale: gradient of the scale, of its shape and dtype; the others as `scale_at_sigma`.
    Raises:
        TypeError, ValueError: as `scale_at_sigma`, and another shape or dtype of ``d_scale``.
    """
    x, magnitude, deviation = _magnitude(q, x, sigma)
    d_scale = np.asarray(d_scale)
    checks.check_d_scale(q, x.shape, x.dtype.name, d_scale.shape, d_scale.dtype.name)
    slope = scale_slope(q, magnitude.astype(d_scale.dtype), deviation.astype(d_scale.dtype))
    return block_sum(np.where(slope == 0, np.zeros_like(slope), d_scale * slope), PerTensor())


def _magnitude(q: Quantizer, x: Array, sigma: Array) -> tuple[Array, Array, Array]:
    """``x`` as the range of `choose_qparams` sees it, ``m``, and the std of ``|x|``."""
    checks.check_subnormals()
    checks.check_quantizer(q)
    x, sigma = np.asarray(x), np.asarray(sigma)
    checks.check_float("x", x.dtype.name)
    q.granularity.block_size(x.shape)
    checks.check_sigma(q, x.dtype.name, sigma.shape, sigma.dtype.name)
    seen = flushed(q, x, scale_dtypes(q, x.dtype)[0])
    wide = np.dtype(checks.scale_dtype(seen.dtype.name))
    mean, deviation, unit = mean_and_deviation(q, seen.astype(wide))
    checks.check_finite_statistic(bool(np.isfinite(mean).all()))
    used = np.clip(sigma.astype(wide), 0, np.asarray(LARGEST, wide))
    magnitude = of_units(mean + used * deviation, unit)
    return x, round_to_dtype(magnitude, seen.dtype), of_units(deviation, unit)
