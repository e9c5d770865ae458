"""Statistics of the blocks of an array. Exact: none of them rounds, so their order of evaluation does not matter.

XLA on CPU compares subnormals as zeros. So where an extreme comes out as zero, the subnormals of the array are scaled
into the normal range, and the extreme among those decides. (Reducing the bit patterns of all elements as integers is
right too, but four times slower than a floating-point reduction.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ..core.granularity import Granularity
from .arrays import bit_pattern, from_pattern, is_subnormal_or_zero, layout, scaled_subnormal
from .blocks import split_blocks


def absmax(x: jax.Array, granularity: Granularity) -> jax.Array:
    """Largest magnitude of each block, 0 for an empty one; NaN if the block holds NaN. Dtype and range as ``x``."""
    return _extreme(jnp.abs(split_blocks(x, granularity)), jnp.max)


def min_max(x: jax.Array, granularity: Granularity) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest element of each block, both widened to include 0; NaN if the block holds NaN.

    Zeros come out as +0.0.
    """
    blocks = split_blocks(x, granularity)
    return _extreme(blocks, jnp.min), _extreme(blocks, jnp.max)


def _extreme(blocks: jax.Array, reduce: Callable[..., jax.Array]) -> jax.Array:
    """``reduce`` over the last axis, including 0, with subnormals told from zeros."""
    normal = reduce(blocks, axis=-1, initial=0)

    def with_subnormals() -> jax.Array:
        small = jnp.where(is_subnormal_or_zero(blocks), scaled_subnormal(blocks), jnp.zeros((), blocks.dtype))
        return jnp.where(normal == 0, _unscaled(reduce(small, axis=-1, initial=0)), normal)

    extreme: jax.Array = lax.cond(jnp.any(normal == 0), with_subnormals, lambda: normal)
    return extreme


def _unscaled(scaled: jax.Array) -> jax.Array:
    """The subnormal (or +0.0) whose `scaled_subnormal` this is, put together from sign bit and mantissa."""
    form = layout(scaled.dtype)
    mantissa = bit_pattern(jnp.abs(scaled) + 1) & ~(form.exponent | form.sign)
    return from_pattern(jnp.where(scaled < 0, mantissa | form.sign, mantissa), scaled.dtype)
