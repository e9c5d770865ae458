"""Quotients and products that round once on every device: where torch computes otherwise, and what is done about it.

On the CPU inductor divides and multiplies as it is written. On a GPU Triton divides float32 with an error of up to two
units in the last place, inductor multiplies by the reciprocal of a divisor that is a constant, and a product is
contracted with the sum that it enters. Eager CUDA divides by a number that lies in main memory by its reciprocal, too.

A quotient is guessed there, and its rest brings it so near in float64 that only one rounding to float32 is possible: no
quotient lies next to where rounding turns. It does not matter how the guess came about. Products are kept apart from
sums by a select, or by a zero that is not known as one.
"""

import torch
from torch import Tensor


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
    usual = (dividend.abs() < torch.inf) & (dividend != 0) & (divisor.abs() < torch.inf) & (divisor != 0)
    near = _refined(dividend, divisor, inverse, guess(dividend, inverse))
    return torch.where(usual, _decided(near), dividend * inverse).to(torch.float32)


def reciprocal(s: Tensor) -> Tensor:
    """``1 / s``, rounded once."""
    return 1.0 / s if s.is_cpu else quotient(torch.ones_like(s), s)


def quotient_by_number(x: Tensor, n: int) -> Tensor:
    """``x / n``, rounded once. Eager CUDA multiplies by the reciprocal of a number of Python."""
    return x / n if x.is_cpu else quotient(x, torch.full_like(x, n))


def guess(dividend: Tensor, inverse: Tensor) -> Tensor:
    """About the quotient, a finite float64; it may be off by four units of float32, or by thousands."""
    return dividend * inverse


def _refined(dividend: Tensor, divisor: Tensor, inverse: Tensor, guessed: Tensor) -> Tensor:
    """The quotient, less than 2 units of float64 off, from an inverse and a guess that are good to 2**-20.

    Every product here may be contracted with the sum that it enters, or not.
    """
    inverse = inverse + inverse * (1.0 - inverse * divisor)
    near = guessed
    for _ in range(2):
        near = near + (dividend - near * divisor) * inverse
    return near


def _decided(near: Tensor) -> Tensor:
    """The quotient that `_refined` came near, to 50 bits: rounded to float32 it is what the quotient itself is.

    With significands M of 25 bits and S of 24, a number halfway between two of float32 and a divisor, the quotient is
    either M or at least 1 / S units of M away from it, which are 16 of float64. Less than 2 and at most 4 more are near
    enough to stay on its side; and M, where it is the quotient (which only subnormals have), is hit.
    """
    return ((near.view(torch.int64) + 4) & -8).view(torch.float64)


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
