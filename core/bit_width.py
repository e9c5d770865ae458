"""Bit widths that are numbers of a program: the range of codes that they leave, and its derivative."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .descriptions import Quantizer

Array = NDArray[Any]


def code_range(q: Quantizer, bit_width: Array) -> tuple[Array, Array]:
    """Smallest and largest code of the format at another width, rounded to nearest even; int32, 0-d.

    Raises:
        ValueError: a width beyond the format's, or that leaves no positive code.
    """
    format = checks.at_width(q, float(bit_width)).format
    return np.asarray(format.lo, np.int32), np.asarray(format.hi, np.int32)


def range_slopes(q: Quantizer, bit_width: Array) -> tuple[Array, Array]:
    """Derivatives of both by the width b, with straight-through rounding of b; float64, 0-d.

    ``-2**(b - 1) * ln 2`` and ``2**(b - 1) * ln 2`` where signed, 0 and ``2**b * ln 2`` where not: exact multiples of
    ``ln 2`` rounded to float32.

    Source: autograd of Brevitas ``min_int`` and ``max_int``.
    """
    lowest, highest = (
        getattr(checks.at_width(q, float(bit_width)).replace(narrow=False).format, e) for e in ("lo", "hi")
    )
    slope = np.asarray(float(np.float32(math.log(2))) * (highest + 1))  # of a power of two
    return (-slope if lowest else np.zeros(())), slope


def whole_width(bit_width: Array) -> Array:
    """The width rounded to nearest even, int32."""
    return np.asarray(np.rint(bit_width), np.int32)
