"""Scales by mean and standard deviation with a sigma that is a number of a program, and its gradient.

Formulas and sources stand in `samebits.core.learned_sigma`. The slopes are operands beside sigma.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks
from ..core.descriptions import Quantizer
from ..core.granularity import PerTensor
from .arguments import check_array
from .arrays import as_array, is_concrete, product, widen, with_float64
from .derivatives import Tangents, differentiable
from .operations import round_to_dtype
from .parameters import is_other_rule
from .ranges import mean_and_deviation
from .scale_rules import flushed, parameters_of_range, scale_dtypes
from .scaling import restrict_scale, scale_slope, symmetric_scale
from .sharding import EVERYWHERE, laid_out_by, spec_of_qparams
from .ste import block_sum
from .sums import of_units

Array = jax.Array
LARGEST = 2.0**20  # sigma


def scale_at_sigma(q: Quantizer, x: Array, sigma: Array) -> Array:
    """The scale of `choose_qparams` for the statistic MEAN_SIGMA with this sigma: that of ``m = mean + sigma * std``.

    Differentiable in sigma (`sigma_gradient`), constant in ``x``. Specials as in core.

    Args:
        x: any floating-point dtype; ``sigma``: 0-d, float32 or the dtype of the scale.
    Raises:
        TypeError: wrong dtypes. ValueError: an affine quantizer, another statistic, a sigma that is not 0-d; NaN or an
            infinity in ``x``, where values are at hand.
    """
    scale: Array = _scale(q, *_operands(q, x, sigma))
    return scale


def sigma_gradient(q: Quantizer, x: Array, sigma: Array, d_scale: Array) -> Array:
    """Gradient of sigma: the sum over all blocks of ``fl(d_scale * slope)``; 0-d, dtype of the scale.

    Subnormal terms may count as zero; summed as `ste.block_sum` states.

    Args:
        d_scale: gradient of the scale, of its shape and dtype; the others as `scale_at_sigma`.
    Raises:
        TypeError, ValueError: as `scale_at_sigma`, and another shape or dtype of ``d_scale``.
    """
    x, sigma = _operands(q, x, sigma)
    d_scale = as_array("d_scale", d_scale)
    checks.check_d_scale(q, x.shape, x.dtype.name, d_scale.shape, d_scale.dtype.name)
    d_sigma: Array = _gradient(q, x, sigma, d_scale)
    return d_sigma


def _operands(q: Quantizer, x: Any, sigma: Any) -> tuple[Array, Array]:
    """Both as arrays, if they fit."""
    array, number = check_array(q, x), as_array("sigma", sigma)
    checks.check_sigma(q, array.dtype.name, number.shape, number.dtype.name)
    finite = jnp.isfinite(array).all()
    if is_concrete(finite):
        checks.check_finite_statistic(bool(finite))
    return array, number


@partial(jax.jit, static_argnums=0)
@laid_out_by(lambda q, x, sigma: spec_of_qparams(q, x))
def _scale(q: Quantizer, x: Array, sigma: Array) -> Array:
    magnitude, deviation = _magnitude(q, x, sigma)
    if is_other_rule(q):
        of_range = scale_dtypes(q, x.dtype)[0]
        with with_float64(of_range):
            seen = round_to_dtype(_magnitude_by_rule(q, x, sigma)[0], of_range)
            scale = parameters_of_range(q, x.dtype, -seen, seen).scale
    else:
        scale = restrict_scale(q, symmetric_scale(q, -magnitude, magnitude))
    moving: Array = _of_sigma(None, sigma, scale, scale_slope(q, magnitude, deviation))
    return moving


@partial(jax.jit, static_argnums=0)
@laid_out_by(lambda *_: EVERYWHERE)
def _gradient(q: Quantizer, x: Array, sigma: Array, d_scale: Array) -> Array:
    return _summed(scale_slope(q, *_magnitude(q, x, sigma)), d_scale)


def _magnitude(q: Quantizer, x: Array, sigma: Array) -> tuple[Array, Array]:
    """``m`` and the std of ``|x|``, in the wide dtype; constants in the gradient."""
    if is_other_rule(q):
        of_range = scale_dtypes(q, x.dtype)[0]
        with with_float64(of_range):
            magnitude, size = _magnitude_by_rule(q, x, sigma)
            wide = checks.scale_dtype(x.dtype.name)
            return round_to_dtype(round_to_dtype(magnitude, of_range), wide), round_to_dtype(size, wide)
    return _moments(q, widen(lax.stop_gradient(x)), sigma)


def _magnitude_by_rule(q: Quantizer, x: Array, sigma: Array) -> tuple[Array, Array]:
    """Both from what a scale rule sees of ``x``, in float32 or float64."""
    of_range = scale_dtypes(q, x.dtype)[0]
    wide = np.dtype(checks.scale_dtype(of_range.name))
    seen = round_to_dtype(flushed(q, lax.stop_gradient(x), of_range), wide)
    return _moments(q, seen, round_to_dtype(sigma, wide))


def _moments(q: Quantizer, x: Array, sigma: Array) -> tuple[Array, Array]:
    mean, deviation, unit = mean_and_deviation(q, x)
    used = jnp.clip(lax.stop_gradient(sigma).astype(mean.dtype), 0, LARGEST)
    total = mean + product(deviation, jnp.broadcast_to(used, mean.shape))
    magnitude, size = of_units(total, unit), of_units(deviation, unit)
    return jnp.where(jnp.isnan(mean) | jnp.isnan(used), jnp.nan, magnitude), jnp.where(jnp.isnan(mean), jnp.nan, size)


def _summed(slope: Array, d_scale: Array) -> Array:
    terms = jnp.where(slope == 0, jnp.zeros_like(slope), product(d_scale, slope))
    return block_sum(terms, PerTensor())


def _moved(_: None, operands: tuple[Any, ...], tangents: Tangents) -> Array:
    slope, d_sigma = operands[2], tangents[0]
    if d_sigma is None:
        return jnp.zeros_like(slope)
    spread = jnp.broadcast_to(d_sigma.astype(slope.dtype), slope.shape)
    return jnp.where(slope == 0, jnp.zeros_like(slope), product(spread, slope))


def _gathered(_: None, operands: tuple[Any, ...], g: Array) -> tuple[Any, ...]:
    sigma, _, slope = operands
    return _summed(slope, g).astype(sigma.dtype), None, None


# the scale, with its slopes as derivatives by sigma
_of_sigma = differentiable(lambda _, sigma, scale, slope: scale, _moved, _gathered)
