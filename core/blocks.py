"""Blocks: from one parameter per block to one per element, and back. By repetition and by explicit reshaping."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .granularity import Granularity, PerTensor, Shape, qparams_shape


def expand_blocks(parameter: NDArray[Any], granularity: Granularity, shape: Shape) -> NDArray[Any]:
    """A parameter of shape `qparams_shape`, repeated so that every element of an array of ``shape`` has its own."""
    if isinstance(granularity, PerTensor):
        return np.broadcast_to(parameter, shape)
    for axis, (n, block) in enumerate(zip(shape, granularity.block_size(shape), strict=True)):
        parameter = np.repeat(parameter, block if n else 0, axis)
    return parameter


def split_blocks(x: NDArray[Any], granularity: Granularity) -> NDArray[Any]:
    """``x`` as ``(*qparams_shape, elements of a block)``: the last axis runs over one block, in row-major order."""
    if isinstance(granularity, PerTensor):
        return x.reshape(-1)
    block = granularity.block_size(x.shape)
    counts = qparams_shape(granularity, x.shape)
    pairs = x.reshape([n for pair in zip(counts, block, strict=True) for n in pair])
    order = [*range(0, 2 * x.ndim, 2), *range(1, 2 * x.ndim, 2)]
    return pairs.transpose(order).reshape(*counts, int(np.prod(block)))
