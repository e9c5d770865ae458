"""``a * b + c`` rounded once, of tensors: by error-free transformations and rounding to odd. No fused instruction.

Products of float32 numbers are exact in float64. The sum is not, but its error is again a number (Knuth's TwoSum): so
the sum can be rounded to odd, after which rounding to half as many bits, or fewer, rounds once. Products of float64
numbers are two numbers (Dekker and Veltkamp), and three are then added as Boldo and Melquiond do, on significands, so
that nothing overflows or vanishes; results that are subnormal are rounded where their last bit is.

Sources: S. Boldo, G. Melquiond, Emulation of a FMA and correctly rounded sums, IEEE Trans. Comput. 57 (2008);
J.-M. Muller et al., Handbook of Floating-Point Arithmetic, chapters 4 and 5.
"""

import torch
from torch import Tensor

from . import devices
from .arrays import narrowed

SPLIT = 2.0**27 + 1  # Veltkamp's, which halves the significand of a float64
APART = 200  # binary places between product and addend beyond which only the sign of the smaller one counts
MANTISSA, BIAS = 52, 1023
FIELD = 0x7FF << MANTISSA


def rounded_once(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` of float32 tensors, or tensors of 16 bits, rounded once to their dtype; special values as IEEE 754.

    Args:
        a, b, c: of one dtype, of shapes that broadcast.
    """
    product, addend = a.to(torch.float64) * b.to(torch.float64), c.to(torch.float64)
    total, lacking = _sum(product, addend)
    if a.dtype != torch.float32:
        return narrowed(_odd(total, lacking), a.dtype)
    return _to_single(total, lacking)


def _to_single(total: Tensor, lacking: Tensor) -> Tensor:
    """``total + lacking``, a float64 sum and its error, rounded once to float32. Without bits, which compilers store.

    Where the sum lies halfway between two numbers, the error says to which it belongs.
    """
    near = _single(total)
    rest = total - near.to(torch.float64)
    other = total + rest  # the number on the other side, if the sum lies halfway
    far = _single(other)
    same_side = _sign(_large(lacking) * _large(rest))
    beyond = (_sign(_large(far.to(torch.float64) - other)) == 0) & (same_side > 0) & (near.abs() < torch.inf)
    single = torch.where(beyond, far, near)
    halfway = 2.0**128 - 2.0**103  # to infinity
    below = (_sign(_large(total.abs() - halfway)) == 0) & (_sign(_large(lacking) * _large(total * 2.0**-128)) < 0)
    return torch.where(below, torch.copysign(torch.full_like(single, torch.finfo(torch.float32).max), single), single)


def _large(x: Tensor) -> Tensor:
    """Products and sums of float32 numbers, and what these lack, so large that their products do not vanish."""
    return x * 2.0**400


def _sign(x: Tensor) -> Tensor:
    """float32, of the sign of what is 0 or large: comparing float64 takes compilers several times as long."""
    return x.clamp(-1.0, 1.0).to(torch.float32)


def _single(x: Tensor) -> Tensor:
    """float32; the maximum keeps compilers from dropping a narrowing that is widened again."""
    return x.to(torch.float32).clamp(min=-torch.inf)


def rounded_once_wide(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The same of float64 tensors."""
    (m, i), (n, j), (k, of_c) = (_parts(t) for t in (a, b, c))
    shift = i + j  # a * b = m * n * 2**shift
    above, product = of_c - shift, a * b
    high, low = _product(m, n)
    addend = k * _power(above.clamp(-APART, APART))
    top, rest = _sum(addend, low)
    top, rest_of_top = _sum(high, top)
    rest = _odd(*_sum(rest, rest_of_top))
    sticky = top + rest
    subnormal = _subnormal(top, rest, shift)
    first = shift.div(2, rounding_mode="floor")
    tiny = _exponent(sticky) + shift < 1 - BIAS
    value = torch.where(tiny, subnormal, sticky) * _power(first) * _power(shift - first)
    value = torch.where(above > APART, c, value)
    value = torch.where(c == 0, product, value)
    finite, infinite = (a.abs() < torch.inf) & (b.abs() < torch.inf), c.abs() == torch.inf
    value = torch.where(finite & (a != 0) & (b != 0) & (c.abs() < torch.inf), value, product + c)
    return torch.where(finite & infinite, c, value)  # though the rounded product may overflow to the other infinity


def _subnormal(top: Tensor, rest: Tensor, shift: Tensor) -> Tensor:
    """``top + rest`` rounded to a multiple of ``2**(-1074 - shift)``, of which it holds at most 2**52."""
    negative = top < 0
    top, rest = torch.where(negative, -top, top), torch.where(negative, -rest, rest)
    large = _power((1 - BIAS - shift).clamp(1 - BIAS, BIAS))  # the last bit of numbers from there on is that multiple
    near, left = _sum(large, top)
    value = (near + _odd(*_sum(left, rest))) - large
    return torch.where(negative, -value, value)


def _sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded sum, and what it lacks, exactly."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded product, and what it lacks, exactly; of numbers whose product neither overflows nor vanishes."""
    total = devices.product(a, b)
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    return total, ((a_high * b_high - total) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a: Tensor) -> tuple[Tensor, Tensor]:
    large = devices.product(a, SPLIT)
    high = large - (large - a)
    return high, a - high


def _odd(total: Tensor, lacking: Tensor) -> Tensor:
    """``total + lacking``, a sum and its error, rounded to odd: inexact results have 1 for their last bit."""
    inexact = (lacking < 0) | (lacking > 0)  # no NaN, which infinities leave
    smaller = inexact & ((lacking < 0) != (total < 0))
    bits = (total.view(torch.int64) - smaller.to(torch.int64)) | inexact.to(torch.int64)
    return bits.view(torch.float64)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """A significand of the sign of ``x``, of magnitude in [1, 2), and the exponent, int64. No meaning for 0."""
    small = x.abs() < 2.0**-900
    normal = torch.where(small, x * 2.0**200, x)
    exponent = _exponent(normal) - torch.where(small, 200, 0)
    bits = (normal.view(torch.int64) & ~FIELD) | (BIAS << MANTISSA)
    return bits.view(torch.float64), exponent


def _exponent(x: Tensor) -> Tensor:
    return ((x.view(torch.int64) & FIELD) >> MANTISSA) - BIAS


def _power(exponent: Tensor) -> Tensor:
    """``2**exponent`` for normal numbers; the nearest such elsewhere."""
    return ((exponent.clamp(1 - BIAS, BIAS) + BIAS) << MANTISSA).view(torch.float64)
