"""Straight-through gradients: which elements pass, and the terms of the gradients of scale and zero point."""

import math

import torch
from torch import Tensor

from ..core.descriptions import Gradient, Quantizer
from ..core.granularity import Granularity
from .blocks import split_blocks


def clip_mask(q: Quantizer, unclamped: Tensor) -> Tensor:
    """True where a code was not clamped: ``lo <= unclamped <= hi``, and NaN, which is not clamped either.

    Args:
        unclamped: codes as the clamp sees them: rounded, with the zero point.
    """
    return ~((unclamped < q.format.lo) | (unclamped > q.format.hi))


def passing_mask(q: Quantizer, quotient: Tensor, unclamped: Tensor) -> Tensor:
    """True where the gradient of ``x`` passes: the factor m of `Gradient`. NaN passes.

    Args:
        quotient: ``x / s``.
        unclamped: codes as the clamp sees them.
    """
    match q.gradient:
        case Gradient.PASS_THROUGH:
            return torch.ones_like(unclamped, dtype=torch.bool)
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


def block_sum(terms: Tensor, granularity: Granularity) -> Tensor:
    """Sum over each block in float64, rounded once to the dtype of ``terms``. 0 for an empty block.

    Error before that rounding: at most ``n * 2**-53 * sum(|terms|)`` over the n elements of a block.
    """
    return split_blocks(terms, granularity).sum(-1, dtype=torch.float64).to(terms.dtype)
