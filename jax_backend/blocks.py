"""Blocks: from one parameter per block to one per element, and back. By broadcasting and reshaping, nothing is copied
that XLA can fuse."""

import math

import jax
import jax.numpy as jnp

from ..core.granularity import Granularity, PerTensor, Shape, qparams_shape


def expand_blocks(parameter: jax.Array, granularity: Granularity, shape: Shape) -> jax.Array:
    """A parameter of shape `qparams_shape`, broadcast so that every element of an array of ``shape`` has its own."""
    counts = parameter.shape
    if isinstance(granularity, PerTensor) or all(c in (1, n) for c, n in zip(counts, shape, strict=True)):
        return jnp.broadcast_to(parameter, shape)
    block = granularity.block_size(shape)
    apart = parameter.reshape([n for count in counts for n in (count, 1)])
    return jnp.broadcast_to(apart, [n for pair in zip(counts, block, strict=True) for n in pair]).reshape(shape)


def split_blocks(x: jax.Array, granularity: Granularity) -> jax.Array:
    """``x`` as ``(*qparams_shape, elements of a block)``: the last axis runs over one block, in row-major order."""
    if isinstance(granularity, PerTensor):
        return x.reshape(-1)
    block, counts = granularity.block_size(x.shape), qparams_shape(granularity, x.shape)
    pairs = x.reshape([n for pair in zip(counts, block, strict=True) for n in pair])
    order = [*range(0, 2 * x.ndim, 2), *range(1, 2 * x.ndim, 2)]
    return pairs.transpose(order).reshape(*counts, math.prod(block))
