"""Softmax over 8-bit codes, in integers: a table of exponentials, an exact sum, one division.

    d_i = max x - x_i                                   the largest of the positions that take part
    e_i = exponentials[d_i]                             0 where a position takes no part
    p_i = round(255 * e_i / sum e)                      to nearest, ties to even, once

With ``exponentials[d] = round(2**bits * exp(-d * scale))`` (`core.integer_tables.exponential_table`) it is the softmax
of ``scale * x`` in units of 1/255. A row in which no position takes part gets zeros. For n positions

    |p_i / 255 - softmax| <= 1 / 510 + (n + 1) / (2 * (2**bits - n / 2))

Every number is below 2**31. The order of the sum does not matter.

Source of the scheme: Kim et al., I-BERT: Integer-only BERT Quantization (ICML 2021), section 3.5, which takes a
polynomial for the exponential; 256 differences fit a table, which is exact.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import integer_checks as checks
from .arguments import as_array, ends
from .integer_arithmetic import _rounded_quotient, lookup

Array = NDArray[Any]


def integer_softmax(x: Array, exponentials: Array, bits: int, mask: Array | None = None) -> Array:
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
    x, exponentials = as_array("x", x), as_array("exponentials", exponentials)
    checks.check_softmax(x.shape, x.dtype.name, exponentials.shape, exponentials.dtype.name, bits)
    checks.check_ends("exponentials", ends(exponentials), (0, 1 << bits))
    takes_part = np.ones(x.shape, bool)
    if mask is not None:
        mask = as_array("mask", mask)
        checks.check_mask(x.shape, mask.shape, mask.dtype.name)
        takes_part = np.broadcast_to(mask, x.shape)
    wide = np.where(takes_part, x.astype(np.int64), -(2**31))
    below = wide.max(-1, keepdims=True, initial=-(2**31)) - wide
    e = np.where(takes_part, lookup(below.clip(0, 255).astype(np.uint8), exponentials).astype(np.int64), 0)
    total = e.sum(-1, keepdims=True)
    return np.where(total > 0, _rounded_quotient(255 * e, np.maximum(total, 1)), 0).astype(np.uint8)
