"""Clamping, in floating point and before any cast to an integer."""

from typing import Any

import jax
import jax.numpy as jnp


def clamp(x: jax.Array, lo: Any, hi: Any) -> jax.Array:
    """``x`` limited to ``[lo, hi]``, bounds included; NaN stays NaN. Shape and dtype as ``x``."""
    return jnp.clip(x, jnp.asarray(lo, x.dtype), jnp.asarray(hi, x.dtype))
