"""Clamping, in floating point and before any cast to an integer."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def clamp(x: jax.Array, lo: ArrayLike, hi: ArrayLike) -> jax.Array:
    """``x`` limited to ``[lo, hi]``, bounds included; NaN stays NaN. Shape and dtype as ``x``."""
    return jnp.clip(x, jnp.asarray(lo, x.dtype), jnp.asarray(hi, x.dtype))
