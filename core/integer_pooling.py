"""Pooling of 8-bit codes: the largest code of each window, or their mean, rounded once to nearest, ties to even.

Windows lie side by side: one of 2 by 2 moves by 2. What is left at the end of an axis and fills no window is left out.
Scale and zero point of the result are those of the codes. The mean of codes is rounded as it is, not as distance from
the zero point: with an odd one halves go the other way.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import integer_checks as checks
from .arguments import as_array
from .integer_arithmetic import _rounded_quotient

Array = NDArray[Any]


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
    total = _windows(codes, size).astype(np.int64).sum(_inside(size))
    return _rounded_quotient(total, np.int64(prod(size))).astype(codes.dtype)


def integer_max_pool(codes: Array, size: Sequence[int]) -> Array:
    """The largest code of each window. Arguments, result and errors as `integer_average_pool`."""
    codes = as_array("codes", codes)
    return np.asarray(_windows(codes, size).max(_inside(size)))


def _windows(codes: Array, size: Sequence[int]) -> Array:
    """Codes with two axes in the place of each: the windows, and the places in one."""
    counts = checks.check_pool(codes.shape, codes.dtype.name, size)
    inside = tuple(slice(n * length) for n, length in zip(counts, size, strict=True))
    kept = codes[(slice(None), slice(None), *inside)]
    return kept.reshape(*codes.shape[:2], *(n for pair in zip(counts, size, strict=True) for n in pair))


def _inside(size: Sequence[int]) -> tuple[int, ...]:
    return tuple(3 + 2 * axis for axis in range(len(size)))
