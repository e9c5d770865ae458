"""Quotients and products that round once on every device: where torch computes otherwise, and what is done about it.

On the CPU inductor divides and multiplies as it is written. On a GPU Triton divides float32 with an error of up to two
units in the last place, inductor multiplies by the reciprocal of a divisor that is a constant, and a product is
contracted with the sum that it enters. Eager CUDA divides by a number that lies in main memory by its reciprocal, too.

A quotient is guessed there in float64 and then decided: between two neighbouring float32 numbers lies one of 25 bits,
and that times the divisor is exact in float64, so a comparison tells on which side of it the dividend is. It does not
matter how the guess came about. Products are kept apart from sums by a select, or by a zero that is not known as one.
"""

import torch
from torch import Tensor

LINEAR = 1 << 24  # halves of the least distance of two float32 numbers, up to where that distance is the least
BEYOND = 2.0**128  # float32 ends below it
INFINITE = 0x7F800000
UNITS = 896 << 52  # between the exponents of float32 and float64, in the bits of the latter


def rounds_once(x: Tensor) -> bool:
    """Whether ``x / s``, and ``x * s`` before it is added to, are rounded once as they are written."""
    return x.is_cpu or x.is_meta or not torch.compiler.is_compiling()


def quotient(x: Tensor, s: Tensor) -> Tensor:
    """``x / s``, rounded once; special values as IEEE 754 has them.

    Args:
        x: float32 or float64; ``s``: the same dtype, broadcasts against ``x``. Of float64 the device's own division is
            taken, which rounds (PTX ``div.rn.f64``), by a divisor that no compiler takes for a constant.
    """
    if s.device != x.device:
        s = s.to(x.device)  # eager CUDA multiplies by the reciprocal of a number in main memory
    if rounds_once(x):
        return x / s
    if x.dtype == torch.float64:
        return x / torch.where(x != x, x, s)
    dividend, divisor = x.to(torch.float64), s.to(torch.float64)
    inverse = torch.ones_like(divisor) / divisor
    finite = (dividend.abs() < torch.inf) & (divisor.abs() < torch.inf) & (divisor != 0)
    decided = _decided(dividend, divisor, _refined(dividend, divisor, inverse, guess(dividend, inverse)))
    return torch.where(finite, decided, (dividend * inverse).to(torch.float32))


def guess(dividend: Tensor, inverse: Tensor) -> Tensor:
    """About the quotient, float64; `quotient` is right if this is off by four units of float32, or by thousands."""
    return dividend * inverse


def _refined(dividend: Tensor, divisor: Tensor, inverse: Tensor, guessed: Tensor) -> Tensor:
    """The quotient to within a unit of float32 in the last place: the rest is exact, or as good as that."""
    guessed = guessed.clamp(-BEYOND, BEYOND)
    return (guessed + (dividend - guessed * divisor) * inverse).to(torch.float32)


def _decided(dividend: Tensor, divisor: Tensor, near: Tensor) -> Tensor:
    """Of ``near`` and its neighbours the one that the quotient is rounded to, halves to the even one."""
    size = near.view(torch.int32) & 0x7FFFFFFF
    of_dividend, of_divisor = dividend.abs(), divisor.abs()
    above, below = _halfway(2 * size.to(torch.int64) + 1), _halfway(2 * size.to(torch.int64) - 1)
    upper, lower = above * of_divisor, below * of_divisor
    odd = (size & 1) == 1
    up = (of_dividend > upper) | ((of_dividend == upper) & odd)
    down = (of_dividend < lower) | ((of_dividend == lower) & odd)
    negative = (dividend.view(torch.int64) ^ divisor.view(torch.int64)) < 0
    size = (size + up.to(torch.int32) - down.to(torch.int32)).clamp(max=INFINITE)
    return torch.where(negative, size | -(2**31), size).view(torch.float32)


def _halfway(halves: Tensor) -> Tensor:
    """The number between two neighbours, float64, from twice the place of the lower one among them, and 1."""
    wide = ((halves << 28) + UNITS).view(torch.float64)
    return torch.where(halves < LINEAR, halves.to(torch.float64) * 2.0**-150, wide)


def product(a: Tensor, b: Tensor | float) -> Tensor:
    """``a * b``, which no compiler contracts with a sum behind it.

    The selects ask what is known of constants and of converted integers: one of both must be something else.
    """
    if rounds_once(a):
        return a * b
    whole = a * b if isinstance(b, float) else torch.where(b != b, b, a * b)
    return torch.where(a != a, a, whole)


def product_of_codes(codes: Tensor, s: Tensor) -> Tensor:
    """``codes * s``, which no compiler contracts with a sum behind it, of codes whose last bit is 0, or that are NaN.

    As a number that bit, with the sign of -0.0, is the zero that may be added to anything. A product may be contracted
    with that addition, which changes nothing, and then with no other. Where the codes are constants of the program, the
    scale hides the zero; of two constants the product is one.
    """
    if rounds_once(codes):
        return codes * s
    integer, sign = (torch.int64, -(2**63)) if codes.dtype == torch.float64 else (torch.int32, -(2**31))
    last = (codes.view(integer) & 1) | (s.view(integer) == 0).to(integer)
    return codes * s + (last | sign).view(codes.dtype)
