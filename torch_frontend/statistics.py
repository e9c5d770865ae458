"""Statistics of the blocks of an array: amin and amax over the axes that lie inside a block. Nothing rounds."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.granularity import Granularity, PerTensor, qparams_shape
from .arrays import broadcast_views
from .blocks import split_blocks


def absmax(x: Tensor, granularity: Granularity) -> Tensor:
    """Largest magnitude of each block, 0 for an empty one; NaN if the block holds NaN. Dtype and range as ``x``."""
    low, high = _reduced(x, granularity, torch.amin), _reduced(x, granularity, torch.amax)
    return torch.maximum(-low, high).abs()


def min_max(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Smallest and largest element of each block, both widened to include 0; NaN if the block holds NaN."""
    return _reduced(x, granularity, torch.amin).clamp(max=0), _reduced(x, granularity, torch.amax).clamp(min=0)


def positive_peak(x: Tensor, granularity: Granularity) -> Tensor:
    """Whether the first of the largest magnitudes of each block, in row-major order, is that of a positive number.

    False for blocks that are empty or zero; no meaning for those with NaN. Shape `qparams_shape`.

    Source: Brevitas ``SignedAbsMax``, whose scales are negative there.
    """
    blocks = split_blocks(x, granularity)
    if not blocks.shape[-1]:
        return torch.zeros(blocks.shape[:-1], dtype=torch.bool, device=x.device)
    first = blocks.abs().argmax(-1, keepdim=True)
    return blocks.gather(-1, first)[..., 0] > 0


def nth_smallest(values: Tensor, n: int | Tensor) -> Tensor:
    """The ``n``-th number from below along the last axis, counted from 1. A zero may have either sign.

    Args:
        values: no NaN; ``n``: from 1 to the length of the last axis, for all or for each.
    """
    if isinstance(n, Tensor):
        return values.sort(-1).values.gather(-1, (n - 1)[..., None])[..., 0]
    return values.kthvalue(n).values


def _reduced(x: Tensor, granularity: Granularity, reduce: Callable[..., Tensor]) -> Tensor:
    """``reduce`` over each block, 0 for empty ones; shape `qparams_shape`."""
    shape = qparams_shape(granularity, tuple(x.shape))
    if x.numel() == 0:
        return x.new_zeros(shape)
    if isinstance(granularity, PerTensor):
        return reduce(x, tuple(range(x.ndim))) if x.ndim else x.clone()
    array, own = broadcast_views(granularity, tuple(x.shape))
    axes = [axis for axis, n in enumerate(own) if n == 1 and array[axis] != 1]
    return (reduce(x.reshape(array), axes) if axes else x).reshape(shape)
