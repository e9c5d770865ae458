"""Negative scales, which the statistic SIGNED_ABSMAX makes: x and its scale change their signs together.

``x / s = -x / -s`` and ``code * s = -(code * -s)``, exactly; so everything behind this file sees positive scales.
"""

import jax
import jax.numpy as jnp

from ..core.descriptions import Quantizer
from .arrays import bit_pattern, from_pattern, layout
from .blocks import expand_blocks
from .ieee_any import is_zero

Array = jax.Array


def with_positive_scales(q: Quantizer, x: Array, scale: Array) -> tuple[Array, Array]:
    """An array and a positive scale with the same quotients."""
    return _changed(q, x, scale), jnp.abs(scale)


def with_signs(q: Quantizer, values: Array, scale: Array) -> Array:
    """Values of positive scales as those of ``scale``. No result is -0.0."""
    if q.scale.floor == 0:
        return jnp.where(is_zero(values), jnp.zeros_like(values), _changed(q, values, scale))
    return jnp.where(values == 0, 0, _changed(q, values, scale))


def _changed(q: Quantizer, x: Array, scale: Array) -> Array:
    """``-x`` where the scale is negative, by the sign bit."""
    sign = layout(x.dtype).sign
    below_zero = scale < 0 if q.scale.floor != 0 else bit_pattern(scale) < 0  # XLA takes subnormals for zeros
    flips = expand_blocks(below_zero, q.granularity, x.shape)
    return from_pattern(bit_pattern(x) ^ jnp.where(flips, sign, sign ^ sign), x.dtype)
