"""An oracle of exact rationals: every quantizer of `samebits.core`, one element at a time, over `fractions.Fraction`.

Machine numbers are Python floats (float64 holds every float32, bfloat16 and float16); an operation computes the exact
rational and rounds it once with `round_fraction`, which knows nothing but precision and exponent range. It shares
neither code nor method with `samebits.core`. Infinities, NaN and exact zeros are left to Python's own operators.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from samebits.core import Arithmetic, Quantizer, Rounding
from samebits.proofs.inputs.bits import neighbours

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": BFLOAT16,
    "float16": np.dtype(np.float16),
    "float64": np.dtype(float),
}

# precision in bits (the hidden one included), smallest and largest exponent of a normal number (IEEE 754, table 3.5)
PARAMETERS = {
    "float32": (24, -126, 127),
    "bfloat16": (8, -126, 127),
    "float16": (11, -14, 15),
    "float64": (53, -1022, 1023),
}

HALF = Fraction(1, 2)
# what each direction makes of a number, for those that look at nothing else; see `stochastic` for the other
DIRECTIONS: dict[Rounding, Callable[[Fraction], int]] = {
    Rounding.TIES_TO_EVEN: round,
    Rounding.TIES_TO_AWAY: lambda v: math.floor(v + HALF) if v > 0 else math.ceil(v - HALF),
    Rounding.TIES_TOWARD_POSITIVE: lambda v: math.floor(v + HALF),
    Rounding.TOWARD_ZERO: math.trunc,
    Rounding.TOWARD_POSITIVE: math.ceil,
    Rounding.TOWARD_NEGATIVE: math.floor,
    Rounding.DPU: lambda v: math.ceil(v) if v < 0 and v % 1 == HALF else round(v),
}


def stochastic(value: Fraction, noise: int) -> int:
    """``value`` away from zero if 2**24 times its fraction exceeds the noise, else toward zero."""
    whole = math.trunc(value)
    return whole + (abs(value - whole) * 2**24 > noise) * (1 if value > 0 else -1)


def round_fraction(value: Fraction, dtype: str) -> float:
    """``value`` rounded to nearest, ties to even, to the dtype: by counting quanta of its binade."""
    if value == 0:
        return 0.0
    precision, smallest, largest = PARAMETERS[dtype]
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    quantum = Fraction(2) ** (max(exponent, smallest) - precision + 1)
    rounded = round(size / quantum) * quantum
    magnitude = math.inf if rounded >= Fraction(2) ** (largest + 1) else float(rounded)
    return -magnitude if value < 0 else magnitude


class Machine:
    """Elementary operations of an `Arithmetic` on input of a dtype: exact, then rounded once."""

    def __init__(self, arithmetic: Arithmetic, dtype: str) -> None:
        wide = "float64" if dtype == "float64" else "float32"
        self.dtype = {"widened": wide, "input": dtype, "float64": "float64"}[arithmetic.compute_dtype]
        self.arithmetic = arithmetic

    def flush(self, a: float) -> float:
        """Subnormals to zero where the arithmetic flushes."""
        subnormal = a != 0 and abs(a) < 2.0 ** PARAMETERS[self.dtype][1]
        return math.copysign(0.0, a) if subnormal and self.arithmetic.flush_subnormals else a

    def number(self, a: float) -> float:
        """``a`` in the dtype of this machine."""
        return round_number(a, self.dtype)

    def _rounded(self, special: float, exact: Callable[[], Fraction], *operands: float) -> float:
        value = exact() if all(map(math.isfinite, operands)) else Fraction(0)
        return self.flush(round_fraction(value, self.dtype) if value else special)

    def multiply(self, a: float, b: float) -> float:
        """``a * b``."""
        a, b = self.flush(a), self.flush(b)
        return self._rounded(a * b, lambda: Fraction(a) * Fraction(b), a, b)

    def add(self, a: float, b: float) -> float:
        """``a + b``."""
        a, b = self.flush(a), self.flush(b)
        return self._rounded(a + b, lambda: Fraction(a) + Fraction(b), a, b)

    def true_divide(self, a: float, b: float) -> float:
        """``a / b`` for a positive finite ``b``."""
        a, b = self.flush(a), self.flush(b)
        return self._rounded(a / b, lambda: Fraction(a) / Fraction(b), a, b)

    def divide(self, a: float, b: float) -> float:
        """``a / b`` as the arithmetic divides."""
        if self.arithmetic.division == "reciprocal":
            return self.multiply(a, self.true_divide(1.0, b))
        return self.true_divide(a, b)

    def multiply_add(self, a: float, b: float, c: float) -> float:
        """``a * b + c``, rounded once where the arithmetic fuses."""
        if not self.arithmetic.fused_multiply_add:
            return self.add(self.multiply(a, b), c)
        a, b, c = self.flush(a), self.flush(b), self.flush(c)
        if math.isinf(c) and math.isfinite(a) and math.isfinite(b):
            return c  # an exact product does not overflow
        return self._rounded(a * b + c, lambda: Fraction(a) * Fraction(b) + Fraction(c), a, b, c)


def round_number(a: float, dtype: str) -> float:
    """A machine number rounded once to another dtype; zeros, infinities and NaN stay."""
    return round_fraction(Fraction(a), dtype) if math.isfinite(a) and a else a


def integer(value: float, rounding: Rounding) -> float:
    """``value`` as an integer, zero with the sign of ``value``; NaN and infinities stay."""
    if not math.isfinite(value):
        return value
    return math.copysign(float(DIRECTIONS[rounding](Fraction(value))), value)


def code(q: Quantizer, x: float, scale: float, zero: float, dtype: str) -> float:
    """The code of one element, NaN where it propagates."""
    a, m, lo, hi = q.arithmetic, Machine(q.arithmetic, dtype), q.format.lo, q.format.hi
    scale, zero = m.number(scale), m.number(zero)
    given, after = zero, a.zero_point_order == "after_rounding"
    if a.zero_point_domain == "float":
        x, zero = m.add(x, -m.multiply_add(scale, -middle(q), zero)), 0.0
    elif a.zero_point_domain == "shift":
        x, zero = m.add(x, zero), 0.0
    if after:
        shifted = m.divide(x, scale)
    elif a.division == "reciprocal":
        shifted = m.multiply_add(x, m.true_divide(1.0, scale), zero)
    else:
        shifted = m.add(m.true_divide(x, scale), zero)
    offset = zero if after and q.affine else None
    if a.clamp_order == "before_rounding":
        value = integer(_clamp(shifted, lo - (offset or 0), hi - (offset or 0)), q.rounding)
        value = value if offset is None else m.add(value, offset)
    else:
        value = integer(shifted, q.rounding)
        value = _clamp(value if offset is None else m.add(value, offset), lo, hi)
    if value == 0 and not a.keep_negative_zero:
        value = 0.0
    if math.isnan(value):
        if a.nan == "zero_point":
            return code(q.replace(nan="propagate"), 0.0, scale, given, dtype)
        return {"propagate": math.nan, "lowest": lo, "highest": hi, "zero": min(max(0, lo), hi)}[a.nan]
    return value


def fake_quantized(q: Quantizer, x: float, scale: float, zero: float, dtype: str) -> float:
    """One element quantized and dequantized, rounded once to the dtype."""
    m, value = Machine(q.arithmetic, dtype), code(q, x, scale, zero, dtype)
    scale, zero = m.number(scale), m.number(zero)
    if q.arithmetic.zero_point_domain == "float":
        return round_number(m.multiply_add(m.add(value, -middle(q)), scale, zero), dtype)
    if q.arithmetic.zero_point_domain == "shift":
        return round_number(m.multiply_add(value, scale, -zero), dtype)
    return round_number(m.multiply(m.add(value, -zero) if q.affine else value, scale), dtype)


def middle(q: Quantizer) -> float:
    """The code that a zero point in the floating-point domain is the value of."""
    return float((q.format.lo + q.format.hi + 1) // 2)


def _clamp(value: float, lo: float, hi: float) -> float:
    return value if math.isnan(value) else min(max(value, lo), hi)


def elementwise(function: Callable[..., float], q: Quantizer, x: Array, scale: float, zero: float = 0.0) -> Array:
    """``function(q, element, scale, zero, dtype)`` of every element, in the dtype of ``x``."""
    values = [function(q, float(v), float(scale), float(zero), x.dtype.name) for v in x.ravel()]
    return np.array(values).astype(x.dtype).reshape(x.shape)


def edges(q: Quantizer, scale: float, zero: float, dtype: np.dtype[Any], codes: int = 5) -> Array:
    """Inputs at and around the boundaries and values of the codes near lo, near hi and near zero; specials too.

    Args:
        codes: how many codes on either side of each of the three.
    """
    near = {c + k for c in (q.format.lo, q.format.hi, round(zero)) for k in range(-codes, codes + 1)}
    places = np.array([(c - zero + half) * float(scale) for c in sorted(near) for half in (-0.5, 0.0, 0.5)])
    with np.errstate(over="ignore"):
        return np.concatenate([neighbours(places.astype(dtype), 2), specials(dtype)])


def specials(dtype: np.dtype[Any]) -> Array:
    """Zeros, subnormals, the ends of the range, infinities, NaN."""
    info = ml_dtypes.finfo(dtype)
    tiny, normal = float(info.smallest_subnormal), float(info.smallest_normal)
    sizes = [0.0, tiny, normal - tiny, normal, 1.0, float(info.max), math.inf]
    return np.array([sign * v for v in sizes for sign in (1, -1)] + [math.nan]).astype(dtype)
