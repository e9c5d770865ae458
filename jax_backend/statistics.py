"""Statistics of the blocks of an array. Exact: none of them rounds, so their order of evaluation does not matter.

XLA on CPU compares subnormals as zeros. So where an extreme comes out as zero, the subnormals of the array are scaled
into the normal range, and the extreme among those decides. Its reductions also lose NaN, depending on where it stands:
NaN takes part as an infinity, and where the extreme is infinite, a search for NaN decides. (Reducing the bit patterns
of all elements as integers is right too, but four times slower than a floating-point reduction.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.granularity import Granularity, Shape, qparams_shape
from .arrays import (
    bit_pattern,
    by_blocks,
    from_pattern,
    is_subnormal_or_zero,
    layout,
    magnitude,
    ordered,
    scaled_subnormal,
)
from .blocks import split_blocks


def absmax(x: jax.Array, granularity: Granularity) -> jax.Array:
    """Largest magnitude of each block, 0 for an empty one; NaN if the block holds NaN. Dtype and range as ``x``."""
    return _extreme(x, granularity, lambda a, axes: jnp.max(_no_nan(jnp.abs(a), jnp.inf), axes, initial=0))


def min_max(x: jax.Array, granularity: Granularity) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest element of each block, both widened to include 0; NaN if the block holds NaN.

    Zeros come out as +0.0.
    """
    low = _extreme(x, granularity, lambda a, axes: jnp.min(_no_nan(a, -jnp.inf), axes, initial=0))
    return low, _extreme(x, granularity, lambda a, axes: jnp.max(_no_nan(a, jnp.inf), axes, initial=0))


def positive_peak(x: jax.Array, granularity: Granularity) -> jax.Array:
    """Whether the first of the largest magnitudes of each block, in row-major order, is that of a positive number.

    False for blocks that are empty or zero; no meaning for those with NaN. Shape `qparams_shape`.

    Source: Brevitas ``SignedAbsMax``, whose scales are negative there.
    """
    blocks = split_blocks(x, granularity)
    if not blocks.shape[-1]:
        return jnp.zeros(blocks.shape[:-1], bool)
    first = jnp.argmax(magnitude(blocks), axis=-1, keepdims=True)
    return jnp.take_along_axis(bit_pattern(blocks), first, axis=-1)[..., 0] > 0


def nth_smallest(values: jax.Array, n: int | jax.Array) -> jax.Array:
    """The ``n``-th number from below along the last axis, counted from 1. A zero may have either sign.

    Its place in the order of all numbers is found bit by bit: the largest place with fewer than ``n`` numbers below it.
    As many passes as the dtype has bits take a tenth of the time that XLA takes to sort.

    Args:
        values: no NaN; ``n``: from 1 to the length of the last axis, for all or for each.
    """
    form = layout(values.dtype)
    unsigned = np.dtype(f"uint{8 * values.dtype.itemsize}")
    places = lax.bitcast_convert_type(ordered(values) ^ form.sign, unsigned)
    bits = 8 * values.dtype.itemsize

    def decide(i: Any, place: jax.Array) -> jax.Array:
        higher = place | (unsigned.type(1) << (bits - 1 - i).astype(unsigned))
        below = jnp.sum(places < higher[..., None], axis=-1, dtype=jnp.int32)
        return jnp.where(below < n, higher, place)

    place = lax.fori_loop(0, bits, lambda i, p: decide(jnp.asarray(i), p), jnp.zeros(values.shape[:-1], unsigned))
    signed = lax.bitcast_convert_type(place, form.integer) ^ form.sign
    return from_pattern(signed ^ ((signed >> (bits - 1)) & ~form.sign), values.dtype)


def _extreme(x: jax.Array, granularity: Granularity, reduce: Callable[[jax.Array, Shape], jax.Array]) -> jax.Array:
    """The extreme of each block and 0, with subnormals told from zeros and NaN from infinities."""
    blocks, axes = by_blocks(x, granularity)
    shape = qparams_shape(granularity, x.shape)
    normal = reduce(blocks, axes).reshape(shape)

    def told_apart() -> jax.Array:
        small = jnp.where(is_subnormal_or_zero(blocks), scaled_subnormal(blocks), jnp.zeros((), x.dtype))
        extreme = jnp.where(normal == 0, _unscaled(reduce(small, axes).reshape(shape)), normal)
        return jnp.where(jnp.any(jnp.isnan(blocks), axes).reshape(shape), jnp.asarray(jnp.nan, x.dtype), extreme)

    extreme: jax.Array = lax.cond(jnp.any((normal == 0) | jnp.isinf(normal)), told_apart, lambda: normal)
    return extreme


def _no_nan(x: jax.Array, instead: float) -> jax.Array:
    return jnp.where(jnp.isnan(x), jnp.asarray(instead, x.dtype), x)


def _unscaled(scaled: jax.Array) -> jax.Array:
    """The subnormal (or +0.0) whose `scaled_subnormal` this is, put together from sign bit and mantissa."""
    form = layout(scaled.dtype)
    mantissa = bit_pattern(jnp.abs(scaled) + 1) & ~(form.exponent | form.sign)
    return from_pattern(jnp.where(scaled < 0, mantissa | form.sign, mantissa), scaled.dtype)
