"""Softmax over 8-bit codes, in integers: a table of exponentials, an exact sum, one division.

    d_i = max x - x_i                                   the largest of the positions that take part
    e_i = exponentials[d_i]                             0 where a position takes no part
    p_i = round(255 * e_i / sum e)                      to nearest, ties to even, once

With ``exponentials[d] = round(2**bits * exp(-d * scale))`` (`core.integer_tables.exponential_table`) it is the softmax
of ``scale * x`` in units of 1/255. A row in which no position takes part gets zeros. For n positions

    |p_i / 255 - softmax| <= 1 / 510 + (n + 1) / (2 * (2**bits - n / 2))

Every number is below 2**31. The order of the sum does not matter.

Here the division is one of float64: a quotient of integers below 2**31 is a half exactly, or further from it than
2**-32, and a float64 of at most 255 is off by less than 2**-45. So ``torch.round`` decides what the exact one would.

Source of the scheme: Kim et al., I-BERT: Integer-only BERT Quantization (ICML 2021), section 3.5, which takes a
polynomial for the exponential; 256 differences fit a table, which is exact.
"""

import torch
from torch import Tensor

from ..core import integer_checks as checks
from . import devices
from .arguments import check_codes, check_tensor, ends
from .arrays import dtype_name


def integer_softmax(x: Tensor, exponentials: Tensor, bits: int, mask: Tensor | None = None) -> Tensor:
    """Softmax over the last axis; see the module.

    Args:
        x: codes ``(..., n)``, int8 or uint8; ``n * 2**bits`` at most 2**31 - 1.
        exponentials: int32 ``(256,)``, each 0 to ``2**bits``.
        bits: 8 to 22.
        mask: bool, broadcasts to ``x``; True where a position takes part. None for all.
    Returns:
        uint8 of the shape of ``x``, in units of 1/255.
    Raises:
        TypeError: other dtypes. ValueError: other shapes, more positions than fit int32, or larger exponentials.
    """
    least = check_codes("x", x)
    check_tensor("exponentials", exponentials)
    checks.check_softmax(
        tuple(x.shape), dtype_name(x.dtype), tuple(exponentials.shape), dtype_name(exponentials.dtype), bits
    )
    checks.check_ends("exponentials", ends(exponentials), (0, 1 << bits))
    codes = x.to(torch.int32)
    if mask is not None:
        check_tensor("mask", mask)
        checks.check_mask(tuple(x.shape), tuple(mask.shape), dtype_name(mask.dtype))
        codes = torch.where(mask, codes, least)  # as small as any that takes part
    if not x.numel():
        return torch.empty_like(x, dtype=torch.uint8)
    e = exponentials[(codes.amax(-1, keepdim=True) - codes).long()]
    e = e if mask is None else torch.where(mask, e, 0)
    total = e.sum(-1, keepdim=True, dtype=torch.int64)
    return devices.quotient((255 * e).double(), total.clamp(min=1).double()).round().to(torch.uint8)
