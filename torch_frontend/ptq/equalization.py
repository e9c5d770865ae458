"""Cross-layer equalization of two layers with ReLU between them; see `samebits.core.equalization`."""

import torch
from torch import Tensor

from ...core.checks import SMALLEST_NORMAL
from ...core.layerwise import check_ranges
from ..sums import square_root


def equalization_factors(r_out: Tensor, r_in: Tensor) -> Tensor:
    """The factor of every channel.

    Args:
        r_out, r_in: float32, ``(n,)``: the largest magnitudes in the rows of the first layer, and in the columns of
            the second.
    Returns:
        float32, ``(n,)``, positive.
    Raises:
        ValueError: ranges that are not finite, or of different shapes.
    """
    finite = bool((r_out.isfinite() & r_in.isfinite()).all()) if r_out.shape == r_in.shape else True
    check_ranges(tuple(r_out.shape), tuple(r_in.shape), finite)
    least = SMALLEST_NORMAL["float32"]
    ratio = r_out / r_in
    unused = (torch.minimum(r_out, r_in) < least) | (ratio < least) | ~ratio.isfinite()
    return square_root(ratio.masked_fill_(unused, 1.0))
