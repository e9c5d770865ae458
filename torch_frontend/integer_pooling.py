"""Pooling of 8-bit codes: the largest code of each window, or their mean, rounded once to nearest, ties to even.

Windows lie side by side: one of 2 by 2 moves by 2. What is left at the end of an axis and fills no window is left out.
Scale and zero point of the result are those of the codes. The mean of codes is rounded as it is, not as distance from
the zero point: with an odd one halves go the other way.

Here windows are unfolded, and the mean is a float64 quotient: a sum below 2**31 over at most 2**23 is a half exactly or
differs from it by far more than a float64 rounds, so ``torch.round`` decides.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..core import integer_checks as checks
from . import devices
from .arguments import check_tensor
from .arrays import dtype_name


def integer_average_pool(codes: Tensor, size: Sequence[int]) -> Tensor:
    """The mean of each window.

    Args:
        codes: ``(batch, channels, *lengths)``, int8 or uint8.
        size: the lengths of a window, at most 2**23 places.
    Returns:
        ``(batch, channels, *lengths')``, same dtype, ``lengths' = lengths // size``.
    Raises:
        TypeError: another dtype. ValueError: windows that do not fit.
    """
    total = _windows(codes, size).sum(-1, dtype=torch.int64)
    return devices.quotient_by_number(total.double(), prod(size)).round().to(codes.dtype)


def integer_max_pool(codes: Tensor, size: Sequence[int]) -> Tensor:
    """The largest code of each window. Arguments, result and errors as `integer_average_pool`."""
    return _windows(codes, size).amax(-1)


def _windows(codes: Tensor, size: Sequence[int]) -> Tensor:
    """Windows, with their places along the last axis."""
    check_tensor("codes", codes)
    checks.check_pool(tuple(codes.shape), dtype_name(codes.dtype), size)
    for axis, length in enumerate(size, 2):
        codes = codes.unfold(axis, length, length)
    return codes.flatten(2 + len(size))
