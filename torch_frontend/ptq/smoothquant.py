"""SmoothQuant: the outliers of inputs are moved into weights, column by column; see `samebits.core.smoothquant`."""

import torch
from torch import Tensor

from ...core.checks import SMALLEST_NORMAL
from ...core.layerwise import check_alpha, check_ranges
from ..elementary import power


def smoothing_factors(x_absmax: Tensor, w_absmax: Tensor, alpha: float = 0.5) -> Tensor:
    """The factor of every column.

    Args:
        x_absmax, w_absmax: float32, ``(in,)``: the largest magnitudes in each column of inputs and weights.
        alpha: in [0, 1]: 0 makes the ranges of all columns of weights 1, and 1 those of inputs.
    Returns:
        float32, ``(in,)``, positive.
    Raises:
        ValueError: another ``alpha``, ranges that are not finite, negative, or of different shapes.
    """
    check_alpha(alpha)
    finite = bool((x_absmax.isfinite() & w_absmax.isfinite()).all()) if x_absmax.shape == w_absmax.shape else True
    check_ranges(tuple(x_absmax.shape), tuple(w_absmax.shape), finite)
    least = SMALLEST_NORMAL["float32"]
    factors = power(x_absmax, alpha).div_(power(w_absmax, 1 - alpha))
    unused = (torch.minimum(x_absmax, w_absmax) < least) | (factors < least) | ~factors.isfinite()
    return factors.masked_fill_(unused, 1.0)
