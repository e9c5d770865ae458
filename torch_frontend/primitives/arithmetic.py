"""Sums, products, quotients, square roots, and what only looks at signs and order: each result rounded once.

Semantics, errors and derivatives: `samebits.core.primitives`, of which these have the bits. By torch's operators; signs
of zeros by their bits, since inductor compiles with ``-fno-signed-zeros``.
"""

import math

import torch
from torch import Tensor

from ...core.arithmetic import Arithmetic, ComputeDtype
from .. import operations
from ..arrays import is_concrete, narrowed
from ..expressions import bits_of, carried, sign_of
from ..sums import square_root
from .operands import LIMITS, Operand, is_number, primitive

EXACT = Arithmetic(compute_dtype=ComputeDtype.INPUT, fused_multiply_add=True, keep_negative_zero=True)


@primitive(2)
def add(a: Operand, b: Operand) -> Tensor:
    """``a + b``."""
    return operations.add(a, b, EXACT)


@primitive(2)
def subtract(a: Operand, b: Operand) -> Tensor:
    """``a - b``."""
    return operations.add(a, _negated(b), EXACT)


@primitive(2)
def multiply(a: Operand, b: Operand) -> Tensor:
    """``a * b``."""
    return operations.multiply(a, b, EXACT)


@primitive(2)
def divide(a: Operand, b: Operand) -> Tensor:
    """``a / b``; infinite for a zero ``b``, NaN for two zeros."""
    return operations.true_divide(a, b, EXACT)


@primitive(1)
def sqrt(x: Operand) -> Tensor:
    """The square root; -0 for -0, NaN for other negative numbers.

    Torch's own may be off by one in the last place. Rounded to half as many bits, that of float64 is right anyway.
    """
    if x.dtype != torch.float64:
        return narrowed(x.to(torch.float64).sqrt(), x.dtype)
    small = x < 2.0**-900
    root = square_root(torch.where(small, x * 2.0**200, x))
    root = torch.where(small, root * 2.0**-100, root)
    root = torch.where((x > 0) & (x < torch.inf), root, x)
    return torch.where(x < 0, torch.nan, root)


@primitive(3)
def fused_multiply_add(a: Operand, b: Operand, c: Operand) -> Tensor:
    """``a * b + c``, rounded once."""
    return operations.multiply_add(a, b, c, EXACT)


@primitive(2)
def minimum(a: Operand, b: Operand) -> Tensor:
    """The smaller one; NaN if one is, and -0 is smaller than +0 (IEEE 754-2019, ``minimum``)."""
    return _chosen(a, b, larger=False)


@primitive(2)
def maximum(a: Operand, b: Operand) -> Tensor:
    """The larger one; NaN if one is, and -0 is smaller than +0 (IEEE 754-2019, ``maximum``)."""
    return _chosen(a, b, larger=True)


@primitive(3)
def clamp(x: Operand, lo: Operand, hi: Operand) -> Tensor:
    """``minimum(maximum(x, lo), hi)``: so hi wins where ``lo > hi``, and NaN propagates from a bound, too."""
    return _chosen(_chosen(x, lo, larger=True), hi, larger=False)


@primitive(1)
def absolute(x: Operand) -> Tensor:
    """``|x|``."""
    return from_bits(bits(x) & ~_sign(x), x)


@primitive(1)
def negative(x: Operand) -> Tensor:
    """``-x``, also of zeros."""
    return _negated(x)


@primitive(1)
def sign(x: Operand) -> Tensor:
    """1 or -1; a zero for itself, with its sign; NaN for NaN."""
    wide = carried(x)
    one = from_bits(bits(torch.ones_like(x)) | (bits(x) & _sign(x)), x)
    chosen = torch.where((wide < 0) | (wide > 0), bits(one), bits(x))
    return from_bits(chosen, x)


@primitive(2)
def copysign(x: Operand, of: Operand) -> Tensor:
    """``|x|`` with the sign of ``of``, a zero's too; NaN if one is."""
    signed = (bits(x) & ~_sign(x)) | (bits(of) & _sign(of))
    wide = carried(of)
    return from_bits(torch.where(wide != wide, bits(of), signed), x)


def limits_of(x: Tensor, lo: Operand | None, hi: Operand | None) -> list[float | None] | None:
    """Limits as numbers between which torch's own operator has the bits of `clamp`: none is a zero, or NaN, or unknown.

    Else None.
    """
    limits = [None if v is None else _known(v) for v in (lo, hi)]
    known = torch.finfo(x.dtype)
    ordinary = x.element_size() > 2 and all(v is None or known.tiny <= abs(v) <= known.max for v in limits)
    return limits if ordinary else None


def _limited(x: Tensor, lo: Operand | None, hi: Operand | None) -> Tensor | None:
    limits = limits_of(x, lo, hi)
    return None if limits is None else x.clamp(*limits)


def _known(limit: Operand) -> float:
    """A number, or that of a 0-d tensor which may be looked at; else NaN."""
    if is_number(limit):
        return float(limit)
    return float(limit.item()) if limit.ndim == 0 and is_concrete(limit) and limit.is_cpu else math.nan


LIMITS["clamp"] = _limited
LIMITS["maximum"] = lambda x, lo: _limited(x, lo, None)
LIMITS["minimum"] = lambda x, hi: _limited(x, None, hi)


def bits(x: Tensor) -> Tensor:
    """The bits of a number, of 16 bits as those of float32 (whose value compilers may not have rounded)."""
    wide = carried(x)
    return wide.view(bits_of(wide.dtype))


def from_bits(pattern: Tensor, like: Tensor) -> Tensor:
    """The number of the dtype of ``like`` that has these `bits`."""
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    return pattern.view(wide).to(like.dtype)


def _sign(x: Tensor) -> int:
    return sign_of(carried(x).dtype)


def _negated(x: Tensor) -> Tensor:
    return from_bits(bits(x) ^ _sign(x), x)


def _chosen(a: Tensor, b: Tensor, *, larger: bool) -> Tensor:
    """By numbers where they differ, by bits where they are equal: those of both, or of one, make the sign of a zero."""
    x, y = carried(a), carried(b)
    of_a, of_b = bits(a), bits(b)
    first = (x > y) if larger else (x < y)
    equal = (of_a & of_b) if larger else (of_a | of_b)
    chosen = torch.where(first, of_a, torch.where(x == y, equal, of_b))
    chosen = torch.where(x != x, of_a, torch.where(y != y, of_b, chosen))
    return from_bits(chosen, a)
