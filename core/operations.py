"""Elementary operations as an `Arithmetic` has them: in which dtype they round, and what happens to subnormals.

NumPy's own operators are correctly rounded in every dtype used here. The 16-bit ones are computed in float32 and
rounded again, which gives the correctly rounded result for ``+ - * /`` because 24 >= 2 * 11 + 2 (Figueroa, 1995).
"""

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .arithmetic import Arithmetic, ComputeDtype, Division

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def working_dtype(arithmetic: Arithmetic, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Dtype in which every operation rounds, for input of this dtype."""
    if arithmetic.compute_dtype is ComputeDtype.INPUT:
        return dtype
    wide = arithmetic.compute_dtype is ComputeDtype.FLOAT64 or dtype == np.float64
    return np.dtype(np.float64 if wide else np.float32)


def round_to_dtype(x: Array, dtype: np.dtype[Any]) -> Array:
    """``x`` rounded once, to nearest even, to ``dtype``.

    float64 reaches bfloat16 through float32 in ml_dtypes, which would round twice; rounding to odd in between does not.
    """
    if x.dtype == np.float64 and dtype == BFLOAT16:
        return _odd_float32(x).astype(dtype)
    return x.astype(dtype)


def _odd_float32(x: Array) -> Array:
    """float64 to float32, inexact results to the neighbour with an odd significand: a later rounding is then exact."""
    nearest = x.astype(np.float32)
    inexact = (nearest.astype(np.float64) != x) & np.isfinite(x)
    even = nearest.view(np.uint32) % 2 == 0
    toward = np.where(x > nearest, np.float32(np.inf), np.float32(-np.inf))
    odd = np.where(inexact & even, np.nextafter(nearest, toward), nearest)
    return np.asarray(odd, np.float32)


def smallest_normal(dtype: np.dtype[Any]) -> Array:
    """Smallest positive normal number of a dtype, 0-d and of that dtype."""
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return np.asarray(info.smallest_normal, dtype)


def flush(x: Array, arithmetic: Arithmetic) -> Array:
    """Subnormals to zero of the same sign when the arithmetic flushes, else ``x``."""
    if not arithmetic.flush_subnormals:
        return x
    return np.where(np.abs(x) < smallest_normal(x.dtype), np.copysign(np.zeros_like(x), x), x)


def multiply(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a * b``, rounded once."""
    return flush(flush(a, arithmetic) * flush(b, arithmetic), arithmetic)


def add(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a + b``, rounded once."""
    return flush(flush(a, arithmetic) + flush(b, arithmetic), arithmetic)


def divide(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a / b`` as the arithmetic divides by a scale: rounded once, or ``a * (1 / b)`` with both steps rounded."""
    if arithmetic.division is Division.RECIPROCAL:
        return multiply(a, reciprocal(b, arithmetic), arithmetic)
    return true_divide(a, b, arithmetic)


def true_divide(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a / b``, rounded once."""
    return flush(flush(a, arithmetic) / flush(b, arithmetic), arithmetic)


def reciprocal(b: Array, arithmetic: Arithmetic) -> Array:
    """``1 / b``, rounded once."""
    return true_divide(np.ones_like(b), b, arithmetic)


def multiply_add(a: Array, b: Array, c: Array, arithmetic: Arithmetic) -> Array:
    """``a * b + c``: rounded once when the arithmetic fuses, else twice."""
    if not arithmetic.fused_multiply_add:
        return add(multiply(a, b, arithmetic), c, arithmetic)
    a, b, c = np.broadcast_arrays(flush(a, arithmetic), flush(b, arithmetic), flush(c, arithmetic))
    exact = np.frompyfunc(_exact_multiply_add, 3, 1)(*(v.astype(np.float64) for v in (a, b, c)))
    return flush(_round_fractions(np.asarray(exact, object), a.dtype), arithmetic)


def _exact_multiply_add(a: float, b: float, c: float) -> Fraction | float:
    if np.isinf(c) and np.isfinite(a) and np.isfinite(b):
        return c  # though the product in float64 may overflow to the other infinity
    if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)) or a == 0 or b == 0:
        return a * b + c  # IEEE 754 says what; a Fraction has neither infinities nor signs of zero
    return Fraction(a) * Fraction(b) + Fraction(c)


def _round_fractions(values: Array, dtype: np.dtype[Any]) -> Array:
    """Exact numbers (or floats that are special) rounded once to ``dtype``."""
    out = np.empty(values.shape, dtype)
    for index, value in np.ndenumerate(values):
        wide = _odd_float64(value) if dtype != np.float64 and isinstance(value, Fraction) else _nearest_float64(value)
        out[index] = round_to_dtype(np.asarray(wide), dtype)
    return out


def _nearest_float64(value: Fraction | float) -> np.float64:
    try:
        return np.float64(float(value))
    except OverflowError:
        return np.float64(np.inf if value > 0 else -np.inf)


def _odd_float64(value: Fraction) -> np.float64:
    """The float64 nearest to ``value``, or, when inexact, the neighbour with an odd significand."""
    nearest = _nearest_float64(value)
    if not np.isfinite(nearest) or Fraction(float(nearest)) == value or nearest.view(np.uint64) % np.uint64(2):
        return nearest
    toward = np.inf if value > Fraction(float(nearest)) else -np.inf
    return np.float64(np.nextafter(nearest, np.float64(toward)))
