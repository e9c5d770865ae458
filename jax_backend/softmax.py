"""Softmax over 8-bit codes, in integers: a table of exponentials, an exact sum, one division.

    d_i = max x - x_i                                   the largest of the positions that take part
    e_i = exponentials[d_i]                             0 where a position takes no part
    p_i = round(255 * e_i / sum e)                      to nearest, ties to even, once

With ``exponentials[d] = round(2**bits * exp(-d * scale))`` (`core.integer_tables.exponential_table`) it is the softmax
of ``scale * x`` in units of 1/255. A row in which no position takes part gets zeros. For n positions

    |p_i / 255 - softmax| <= 1 / 510 + (n + 1) / (2 * (2**bits - n / 2))

Every number is below 2**31. The order of the sum does not matter.

Here all is int32, and the division one of int32 with its remainder.

Source of the scheme: Kim et al., I-BERT: Integer-only BERT Quantization (ICML 2021), section 3.5, which takes a
polynomial for the exponential; 256 differences fit a table, which is exact.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..core import integer_checks as checks
from .arguments import ends
from .arrays import as_array
from .integer_arithmetic import _rounded_division

Array = jax.Array


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
    takes_part = jnp.ones(x.shape, bool)
    if mask is not None:
        mask = as_array("mask", mask)
        checks.check_mask(x.shape, mask.shape, mask.dtype.name)
        takes_part = jnp.broadcast_to(mask, x.shape)
    codes = x.astype(np.int32)
    largest = jnp.max(codes, -1, keepdims=True, where=takes_part, initial=-128)
    e = jnp.take(exponentials, largest - codes, mode="clip")
    e = jnp.where(takes_part, e, 0)
    total = jnp.sum(e, -1, keepdims=True, dtype=np.int32)
    return _rounded_division(255 * e, jnp.broadcast_to(jnp.maximum(total, 1), e.shape)).astype(np.uint8)
