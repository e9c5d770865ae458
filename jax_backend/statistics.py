"""Statistics of the blocks of an array. Exact: none of them rounds, so their order of evaluation does not matter.

XLA on CPU compares subnormals as zeros. So where an extreme comes out as zero, the subnormals of the array are scaled
into the normal range, and the extreme among those decides. (Reducing the bit patterns of all elements as integers is
right too, but four times slower than a floating-point reduction.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ..core.granularity import Granularity, Shape, qparams_shape
from .arrays import bit_pattern, by_blocks, from_pattern, is_subnormal_or_zero, layout, scaled_subnormal


def absmax(x: jax.Array, granularity: Granularity) -> jax.Array:
    """Largest magnitude of each block, 0 for an empty one; NaN if the block holds NaN. Dtype and range as ``x``."""
    return _extreme(x, granularity, lambda a, axes: jnp.max(jnp.abs(a), axes, initial=0))


def min_max(x: jax.Array, granularity: Granularity) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest element of each block, both widened to include 0; NaN if the block holds NaN.

    Zeros come out as +0.0.
    """
    low = _extreme(x, granularity, lambda a, axes: jnp.min(a, axes, initial=0))
    return low, _extreme(x, granularity, lambda a, axes: jnp.max(a, axes, initial=0))


def _extreme(x: jax.Array, granularity: Granularity, reduce: Callable[[jax.Array, Shape], jax.Array]) -> jax.Array:
    """The extreme of each block and 0, with subnormals told from zeros."""
    blocks, axes = by_blocks(x, granularity)
    shape = qparams_shape(granularity, x.shape)
    normal = reduce(blocks, axes).reshape(shape)

    def with_subnormals() -> jax.Array:
        small = jnp.where(is_subnormal_or_zero(blocks), scaled_subnormal(blocks), jnp.zeros((), x.dtype))
        return jnp.where(normal == 0, _unscaled(reduce(small, axes).reshape(shape)), normal)

    extreme: jax.Array = lax.cond(jnp.any(normal == 0), with_subnormals, lambda: normal)
    return extreme


def _unscaled(scaled: jax.Array) -> jax.Array:
    """The subnormal (or +0.0) whose `scaled_subnormal` this is, put together from sign bit and mantissa."""
    form = layout(scaled.dtype)
    mantissa = bit_pattern(jnp.abs(scaled) + 1) & ~(form.exponent | form.sign)
    return from_pattern(jnp.where(scaled < 0, mantissa | form.sign, mantissa), scaled.dtype)
