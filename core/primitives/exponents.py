"""Exponent and significand, from the bits, and scaling by a power of two: exact but for the range.

Operands and errors as in `arithmetic`. Exponents are whole numbers in the dtype of ``x``, so that they can be computed
with.
"""

from typing import Any

import numpy as np

from ..operations import round_to_dtype
from .operands import Array, Operand, primitive


@primitive(1)
def exponent(x: Operand) -> Array:
    """``floor(log2 |x|)``, exact, also of subnormal numbers: -inf for zeros, inf for infinities, NaN for NaN.

    IEEE 754 ``logB``.
    """
    x = np.asarray(x)
    whole = (np.frexp(x.astype(np.float64))[1] - 1).astype(x.dtype)
    special = np.where(x == 0, -np.inf, np.abs(x.astype(np.float64))).astype(x.dtype)
    return np.where(np.isfinite(x) & (x != 0), whole, special)


@primitive(1)
def significand(x: Operand) -> Array:
    """``x / 2**exponent(x)``, exact: its magnitude is in [1, 2). Zeros, infinities and NaN are themselves."""
    x = np.asarray(x)
    within = np.frexp(x.astype(np.float64))[0] * 2
    return np.where(np.isfinite(x), within.astype(x.dtype), x)


@primitive(2)
def scale_by_power(x: Operand, n: Operand) -> Array:
    """``x * 2**n``, rounded once (IEEE 754 ``scaleB``).

    Args:
        n: whole numbers; others count as they are rounded toward zero. Infinities count as the limits: ``x * inf`` and
            ``x * 0``.
    """
    x, n = np.broadcast_arrays(np.asarray(x), np.asarray(n))
    return round_to_dtype(scaled(x.astype(np.float64), n.astype(np.float64)), x.dtype)


def scaled(x: Array, n: Any) -> Array:
    """`scale_by_power` of float64."""
    whole = np.clip(np.where(np.isfinite(n), n, 0), -5000, 5000).astype(np.int32)
    value = np.ldexp(x, whole)
    return np.where(np.isfinite(n), value, x * np.where(n < 0, 0.0, np.asarray(n, np.float64)))
