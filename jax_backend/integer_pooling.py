"""Pooling of 8-bit codes: the largest code of each window, or their mean, rounded once to nearest, ties to even.

Windows lie side by side: one of 2 by 2 moves by 2. What is left at the end of an axis and fills no window is left out.
Scale and zero point of the result are those of the codes. The mean of codes is rounded as it is, not as distance from
the zero point: with an odd one halves go the other way.

Here windows are those of ``lax.reduce_window``, and the mean is an int32 division of magnitudes with its remainder.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import integer_checks as checks
from .arrays import as_array
from .integer_arithmetic import _rounded_division

Array = jax.Array


def integer_average_pool(codes: Array, size: Sequence[int]) -> Array:
    """The mean of each window.

    Args:
        codes: ``(batch, channels, *lengths)``, int8 or uint8.
        size: the lengths of a window, at most 2**23 places.
    Returns:
        ``(batch, channels, *lengths')``, same dtype, ``lengths' = lengths // size``.
    Raises:
        TypeError: another dtype. ValueError: windows that do not fit.
    """
    codes = as_array("codes", codes)
    checks.check_pool(codes.shape, codes.dtype.name, size)
    total = _reduced(codes.astype(np.int32), np.int32(0), lax.add, size)
    whole = _rounded_division(jnp.abs(total), jnp.full_like(total, prod(size)))
    return jnp.where(total < 0, -whole, whole).astype(codes.dtype)


def integer_max_pool(codes: Array, size: Sequence[int]) -> Array:
    """The largest code of each window. Arguments, result and errors as `integer_average_pool`."""
    codes = as_array("codes", codes)
    checks.check_pool(codes.shape, codes.dtype.name, size)
    return _reduced(codes, codes.dtype.type(checks.CODES[codes.dtype.name][0]), lax.max, size)


def _reduced(codes: Array, first: Any, operation: Callable[[Any, Any], Any], size: Sequence[int]) -> Array:
    """Each window reduced to a number."""
    window = (1, 1, *size)
    reduced: Array = lax.reduce_window(codes, first, operation, window, window, "VALID")
    return reduced
