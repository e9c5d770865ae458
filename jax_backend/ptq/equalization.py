"""Cross-layer equalization of two layers with ReLU between them; see `samebits.core.equalization`."""

import jax
import jax.numpy as jnp
import numpy as np

from ...core.checks import SMALLEST_NORMAL
from ...core.layerwise import check_ranges
from ..arrays import divide
from ..sums import square_root

Array = jax.Array


def equalization_factors(r_out: Array, r_in: Array) -> Array:
    """The factor of every channel.

    Args:
        r_out, r_in: float32, ``(n,)``: the largest magnitudes in the rows of the first layer, and in the columns of
            the second.
    Returns:
        float32, ``(n,)``, positive.
    Raises:
        ValueError: ranges that are not finite, or of different shapes.
    """
    finite = bool(jnp.isfinite(r_out).all()) and bool(jnp.isfinite(r_in).all())
    check_ranges(r_out.shape, r_in.shape, finite)
    factors: Array = _factors(r_out, r_in)
    return factors


@jax.jit
def _factors(r_out: Array, r_in: Array) -> Array:
    least, largest = np.float32(SMALLEST_NORMAL["float32"]), np.finfo(np.float32).max
    used = (r_out >= least) & (r_in >= least)
    ratio = divide(*(jnp.where(used, r, np.float32(1)) for r in (r_out, r_in)))
    return square_root(jnp.where((ratio >= least) & (ratio <= largest), ratio, np.float32(1)))
