"""Bit widths that are numbers of a program: the range of codes that they leave, and its derivative. By shifts."""

import math

import numpy as np
import torch
from torch import Tensor

from ..core.descriptions import Quantizer
from ..core.formats import IntegerFormat

LN_2 = float(np.float32(math.log(2)))


def code_range(q: Quantizer, bit_width: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest code of the format at another width, rounded to nearest even; int32, 0-d."""
    signed, narrow = _kind(q)
    power = _power(q, bit_width)
    if signed:
        return -power + narrow, power - 1
    return torch.zeros_like(power), power - (1 + narrow)


def range_slopes(q: Quantizer, bit_width: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of both by the width b, with straight-through rounding of b; float64, 0-d.

    ``-2**(b - 1) * ln 2`` and ``2**(b - 1) * ln 2`` where signed, 0 and ``2**b * ln 2`` where not: exact multiples of
    ``ln 2`` rounded to float32.

    Source: autograd of Brevitas ``min_int`` and ``max_int``.
    """
    slope = _power(q, bit_width).to(torch.float64) * LN_2
    return (-slope if _kind(q)[0] else torch.zeros_like(slope)), slope


def whole_width(bit_width: Tensor) -> Tensor:
    """The width rounded to nearest even, int32."""
    return (bit_width.round() if bit_width.is_floating_point() else bit_width).to(torch.int32)


def _power(q: Quantizer, bit_width: Tensor) -> Tensor:
    """``2**(b - 1)`` where signed, else ``2**b``."""
    whole = whole_width(bit_width)
    return torch.ones_like(whole) << (whole - 1 if _kind(q)[0] else whole)


def _kind(q: Quantizer) -> tuple[bool, int]:
    """Whether signed, and 1 if narrow."""
    if not isinstance(q.format, IntegerFormat):
        raise TypeError(f"`qparams.bit_width` needs an IntegerFormat, got {q.format}")
    return q.format.signed, int(q.format.narrow)
