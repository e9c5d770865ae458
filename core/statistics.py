"""Statistics of the blocks of an array. Exact: none of them rounds, so their order of evaluation does not matter."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import split_blocks
from .granularity import Granularity

Array = NDArray[Any]


def absmax(x: Array, granularity: Granularity) -> Array:
    """Largest magnitude of each block, 0 for an empty one; NaN if the block holds NaN. Dtype and range as ``x``."""
    return np.asarray(np.max(np.abs(split_blocks(x, granularity)), axis=-1, initial=0))


def min_max(x: Array, granularity: Granularity) -> tuple[Array, Array]:
    """Smallest and largest element of each block, both widened to include 0; NaN if the block holds NaN."""
    blocks = split_blocks(x, granularity)
    return np.min(blocks, axis=-1, initial=0), np.max(blocks, axis=-1, initial=0)


def positive_peak(x: Array, granularity: Granularity) -> Array:
    """Whether the first of the largest magnitudes of each block, in row-major order, is that of a positive number.

    False for blocks that are empty or zero; no meaning for those with NaN. Shape `qparams_shape`.

    Source: Brevitas ``SignedAbsMax``, whose scales are negative there.
    """
    blocks = split_blocks(x, granularity)
    if blocks.shape[-1] == 0:
        return np.zeros(blocks.shape[:-1], np.bool_)
    first = np.argmax(np.abs(blocks), axis=-1)[..., None]
    return np.asarray(np.take_along_axis(blocks, first, -1)[..., 0] > 0)


def nth_smallest(values: Array, n: int | Array) -> Array:
    """The ``n``-th number from below along the last axis, counted from 1. A zero may have either sign.

    Args:
        values: no NaN; ``n``: from 1 to the length of the last axis, for all or for each.
    """
    ranks = np.broadcast_to(np.asarray(n) - 1, values.shape[:-1])
    return np.take_along_axis(np.sort(values, axis=-1), ranks[..., None], axis=-1)[..., 0]
