"""Zero points."""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.descriptions import Quantizer, Rounding
from .arrays import divide
from .clamp import clamp
from .rounding import round_to_integer


def affine_zero_point(q: Quantizer, low: jax.Array, scale: jax.Array) -> jax.Array:
    """The code of 0.0: ``clamp(lo - ties_to_even(low / scale), lo, hi)``, int32, per block.

    The quotient rounds to nearest even whatever the quantizer's own direction is. A NaN scale gives the code nearest 0.
    """
    lo, hi = q.format.lo, q.format.hi
    code = clamp(lo - round_to_integer(divide(low, scale), Rounding.TIES_TO_EVEN), lo, hi)
    return jnp.where(jnp.isnan(code), np.clip(0, lo, hi).astype(code.dtype), code).astype(jnp.int32)
