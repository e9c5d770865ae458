"""SmoothQuant: the outliers of inputs are moved into weights, column by column; see `samebits.core.smoothquant`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.checks import SMALLEST_NORMAL
from ...core.layerwise import check_alpha, check_ranges
from ..arrays import divide
from ..elementary import power

Array = jax.Array


def smoothing_factors(x_absmax: Array, w_absmax: Array, alpha: float = 0.5) -> Array:
    """The factor of every column.

    Args:
        x_absmax, w_absmax: float32, ``(in,)``: the largest magnitudes in each column of inputs and weights.
        alpha: in [0, 1]: 0 makes the ranges of all columns of weights 1, and 1 those of inputs.
    Returns:
        float32, ``(in,)``, positive.
    Raises:
        ValueError: another ``alpha``, ranges that are not finite, negative, or of different shapes.
    """
    check_alpha(alpha)
    finite = bool(jnp.isfinite(x_absmax).all()) and bool(jnp.isfinite(w_absmax).all())
    check_ranges(x_absmax.shape, w_absmax.shape, finite)
    factors: Array = _factors(alpha, x_absmax, w_absmax)
    return factors


@partial(jax.jit, static_argnums=0)
def _factors(alpha: float, x_absmax: Array, w_absmax: Array) -> Array:
    least, largest = np.float32(SMALLEST_NORMAL["float32"]), np.finfo(np.float32).max
    used = (x_absmax >= least) & (w_absmax >= least)
    of_x, of_w = (jnp.where(used, r, np.float32(1)) for r in (x_absmax, w_absmax))
    factors = divide(power(of_x, alpha), power(of_w, 1 - alpha))
    return lax.select((factors >= least) & (factors <= largest), factors, jnp.ones_like(factors))
