"""Negative scales, which the statistic SIGNED_ABSMAX makes: x and its scale change their signs together.

``x / s = -x / -s`` and ``code * s = -(code * -s)``, exactly; so everything behind this file sees positive scales.
"""

import torch
from torch import Tensor

from ..core.descriptions import Quantizer
from .blocks import expand_blocks


def with_positive_scales(q: Quantizer, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """An array and a positive scale with the same quotients."""
    return torch.where(is_negative(q, x, scale), -x, x), scale.abs()


def with_signs(q: Quantizer, values: Tensor, scale: Tensor) -> Tensor:
    """Values of positive scales as those of ``scale``. No result is -0.0."""
    values = torch.where(is_negative(q, values, scale), -values, values)
    return torch.where(values == 0, 0.0, values)


def is_negative(q: Quantizer, x: Tensor, scale: Tensor) -> Tensor:
    """Whether the scale of an element of ``x`` is negative."""
    return expand_blocks(scale < 0, q.granularity, tuple(x.shape))
