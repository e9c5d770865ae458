"""Zero points."""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.descriptions import Quantizer
from ..core.directions import Rounding
from .arrays import add, divide, multiple, tiny_quotient
from .clamp import clamp
from .rounding import round_to_integer

DIRECTED = (Rounding.TOWARD_POSITIVE, Rounding.TOWARD_NEGATIVE)  # tell the least quotient from 0


def affine_zero_point(q: Quantizer, low: jax.Array, scale: jax.Array) -> jax.Array:
    """The code of 0.0: ``clamp(lo - round(low / scale), lo, hi)``, int32, per block.

    The quotient rounds as `ScaleRule.zero_point_rounding` says. A NaN scale gives the code nearest 0.
    """
    lo, hi = q.format.lo, q.format.hi
    quotient = divide(low, scale)
    if q.scale.zero_point_rounding in DIRECTED:
        quotient = tiny_quotient(low, scale, quotient)
    code = clamp(lo - round_to_integer(quotient, q.scale.zero_point_rounding), lo, hi)
    return jnp.where(jnp.isnan(code), np.clip(0, lo, hi).astype(code.dtype), code).astype(jnp.int32)


def float_zero_point(q: Quantizer, low: jax.Array, scale: jax.Array) -> jax.Array:
    """The value of `middle_code`: ``scale * mid + low``, in the dtype of both, per block; infinite if too large.

    Source: torchao ``_choose_qparams_affine_tinygemm``.
    """
    return add(multiple(middle_code(q), scale), low)


def middle_code(q: Quantizer) -> int:
    """The code halfway up the range, the upper one of two: 8 of 0 to 15, 0 of -8 to 7."""
    return int(q.format.hi) - int(q.format.hi - q.format.lo) // 2
