"""Straight-through gradients: which elements pass, and the terms of the gradients of scale and zero point."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from ..core.descriptions import Gradient, Quantizer
from ..core.formats import IntegerFormat
from ..core.granularity import Granularity, qparams_shape
from .arrays import by_blocks, constant_ordered, ordered

ROW = 64  # terms added in one go; rows of sums are then added in the same way


def clip_mask(q: Quantizer, unclamped: jax.Array) -> jax.Array:
    """True where a code was not clamped: ``lo <= unclamped <= hi``, and NaN, which is not clamped either.

    Args:
        unclamped: codes as the clamp sees them (rounded, with the zero point).
    """
    if isinstance(q.format, IntegerFormat):
        return ~((unclamped < q.format.lo) | (unclamped > q.format.hi))
    lo = constant_ordered(q.format.lo or -0.0, unclamped.dtype)
    hi = constant_ordered(q.format.hi, unclamped.dtype)
    places = ordered(unclamped)  # XLA compares subnormals as zeros
    inside: jax.Array = ((lo <= places) & (places <= hi)) | jnp.isnan(unclamped)
    return inside


def passing_mask(q: Quantizer, quotient: jax.Array, unclamped: jax.Array) -> jax.Array:
    """True where the gradient of ``x`` passes: the factor m of `Gradient`. NaN passes.

    Args:
        quotient: ``x / s``.
        unclamped: codes as the clamp sees them.
    """
    match q.gradient:
        case Gradient.PASS_THROUGH:
            return jnp.ones(unclamped.shape, bool)
        case Gradient.CLIPPED_QUOTIENT:
            return clip_mask(q, quotient)
        case Gradient.LEARNED_CLIP:
            return ~((quotient < 0) | (quotient >= q.format.hi))
        case _:
            return clip_mask(q, unclamped)


def learned_scale_factor(q: Quantizer, block_elements: int) -> float:
    """Factor on the gradients of scale and zero point: ``1 / sqrt(n * hi)`` for LEARNED_SCALE, else 1.

    Rounded to float32 (float64 sums use it unrounded). Source: LSQ, arXiv 1902.08153, section 2.2.
    """
    if q.gradient is not Gradient.LEARNED_SCALE or block_elements == 0:
        return 1.0
    return 1 / math.sqrt(block_elements * max(q.format.hi, 1))


def block_sum(terms: jax.Array, granularity: Granularity) -> jax.Array:
    """Sum over each block, in the dtype of ``terms``; 0 for an empty block.

    Along each axis `ROW` of them at a time, then as many of those sums.

    Off the exact sum of n terms by at most ``ROW * ceil(log(n, ROW)) * u * sum(|terms|)``, u = 2**-24 (2**-53 in
    float64), and the smallest normal number for every addition, since subnormal terms and sums may become zero.
    """
    sums = _summed(terms, granularity)
    steps = max(math.prod(granularity.block_size(terms.shape)) - 1, 0).bit_length() + 1

    def anew() -> jax.Array:
        """Where a sum on the way was infinite: of terms so small that none can be."""
        smaller = _summed(jnp.multiply(terms, terms.dtype.type(2.0**-steps)), granularity)
        return jnp.where(jnp.isfinite(sums), sums, jnp.multiply(smaller, terms.dtype.type(2.0**steps)))

    total: jax.Array = lax.cond(jnp.all(jnp.isfinite(sums)), lambda: sums, anew)
    return total


def _summed(terms: jax.Array, granularity: Granularity) -> jax.Array:
    """`block_sum`, which may be infinite where only a sum on the way is."""
    sums, axes = by_blocks(terms, granularity)
    for axis in axes:
        while (n := sums.shape[axis]) > 1:
            rows = -(-n // ROW)
            padded = jnp.pad(sums, [(0, rows * ROW - n if i == axis else 0) for i in range(sums.ndim)])
            before, after = sums.shape[:axis], sums.shape[axis + 1 :]
            if n > ROW * ROW:
                sums = _added_one_by_one(padded.reshape(*before, ROW, rows, *after), axis)
            else:
                sums = jnp.sum(padded.reshape(*before, rows, ROW, *after), axis=axis + 1)
    return jnp.sum(sums, axis=axes).reshape(qparams_shape(granularity, terms.shape))


def _added_one_by_one(x: jax.Array, axis: int) -> jax.Array:
    """Sum over ``axis``, by a loop: XLA makes one number after the other of a sum that it fuses with its terms."""

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return jnp.add(total, lax.dynamic_index_in_dim(x, i, axis, keepdims=False))

    total: jax.Array = lax.fori_loop(1, x.shape[axis], add, lax.index_in_dim(x, 0, axis, keepdims=False))
    return total
