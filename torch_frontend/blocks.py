"""Blocks: from one parameter per block to one per element, and back. By views and broadcasting."""

import math

from torch import Tensor

from ..core.granularity import Granularity, PerTensor, Shape, qparams_shape
from .arrays import broadcast_views


def expand_blocks(parameter: Tensor, granularity: Granularity, shape: Shape) -> Tensor:
    """A parameter of shape `qparams_shape`, expanded so that every element of an array of ``shape`` has its own."""
    array, own = broadcast_views(granularity, shape)
    return parameter.reshape(own).expand(array).reshape(shape)


def split_blocks(x: Tensor, granularity: Granularity) -> Tensor:
    """``x`` as ``(*qparams_shape, elements of a block)``: the last axis runs over one block, in row-major order."""
    if isinstance(granularity, PerTensor):
        return x.reshape(-1)
    block = granularity.block_size(tuple(x.shape))
    counts = qparams_shape(granularity, tuple(x.shape))
    pairs = x.reshape([n for pair in zip(counts, block, strict=True) for n in pair])
    order = [*range(0, 2 * x.ndim, 2), *range(1, 2 * x.ndim, 2)]
    return pairs.permute(order).reshape(*counts, math.prod(block))
