"""Blocks: from one parameter per block to one per element, and back. By repetition and by explicit reshaping."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .granularity import Granularity, PerTensor, Shape, qparams_shape


def expand_blocks(parameter: NDArray[Any], granularity: Granularity, shape: Shape) -> NDArray[Any]:
    """A parameter of shape `qparams_shape`, repeated for every element of an array of ``shape``; read only."""
    if not isinstance(granularity, PerTensor):
        for axis, (count, block) in enumerate(zip(parameter.shape, granularity.block_size(shape), strict=True)):
            if count > 1 and block > 1:
                parameter = np.repeat(parameter, block, axis)
    return np.broadcast_to(parameter, shape)


def split_blocks(x: NDArray[Any], granularity: Granularity) -> NDArray[Any]:
    """``x`` as ``(*qparams_shape, elements of a block)``: the last axis runs over one block, in row-major order."""
    if isinstance(granularity, PerTensor):
        return x.reshape(-1)
    block = granularity.block_size(x.shape)
    counts = qparams_shape(granularity, x.shape)
    pairs = x.reshape([n for pair in zip(counts, block, strict=True) for n in pair])
    order = [*range(0, 2 * x.ndim, 2), *range(1, 2 * x.ndim, 2)]
    return pairs.transpose(order).reshape(*counts, int(np.prod(block)))
