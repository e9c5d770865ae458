"""Clamping, in floating point and before any cast to an integer."""

import torch
from torch import Tensor


def clamp(x: Tensor, lo: float, hi: float) -> Tensor:
    """``x`` limited to ``[lo, hi]``, bounds included; NaN stays NaN. Shape and dtype as ``x``."""
    return torch.clamp(x, lo, hi)
