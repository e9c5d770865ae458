"""Elementary operations as an `Arithmetic` has them: in which dtype they round, and what happens to subnormals.

Tensors have the dtype that they are rounded to. Operators of torch round once in each of them, those of 16 bits through
float32, which is enough for ``+ - * /`` (Figueroa, 1995). Compilers keep float32 between such operators: so there each
result is rounded by its bits before it is narrowed. Zeros and signs are made of bits too, where they count, since
inductor compiles with ``-fno-signed-zeros``. Products that are added to unrounded: see `fused`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.arithmetic import Arithmetic, ComputeDtype, Division
from .arrays import narrowed
from .fused import rounded_once, rounded_once_wide


def working_dtype(arithmetic: Arithmetic, dtype: torch.dtype) -> torch.dtype:
    """Dtype in which every operation rounds, for input of this dtype."""
    if arithmetic.compute_dtype is ComputeDtype.INPUT:
        return dtype
    wide = arithmetic.compute_dtype is ComputeDtype.FLOAT64 or dtype == torch.float64
    return torch.float64 if wide else torch.float32


def round_to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` rounded once, to nearest even, to ``dtype``."""
    return x.to(dtype) if x.element_size() < dtype.itemsize else narrowed(x, dtype)


def smallest_normal(dtype: torch.dtype) -> Tensor:
    """Smallest positive normal number of a dtype, 0-d and of that dtype."""
    return torch.full((), torch.finfo(dtype).smallest_normal, dtype=dtype)


def flush(x: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Subnormals to zero of the same sign when the arithmetic flushes, else ``x``."""
    if not arithmetic.flush_subnormals:
        return x
    wide = carried(x)
    subnormal = wide.abs() < torch.finfo(x.dtype).smallest_normal
    bits = wide.view(bits_of(wide.dtype))
    return torch.where(subnormal, bits & sign_of(wide.dtype), bits).view(wide.dtype).to(x.dtype)


def multiply(a: Tensor, b: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``a * b``, rounded once."""
    return flush(_computed(torch.mul, flush(a, arithmetic), flush(b, arithmetic)), arithmetic)


def add(a: Tensor, b: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``a + b``, rounded once."""
    a, b = flush(a, arithmetic), flush(b, arithmetic)
    total = flush(_computed(torch.add, a, b), arithmetic)
    if not (arithmetic.keep_negative_zero and torch.compiler.is_compiling()):
        return total
    return signed_sum(a, b, total)


def divide(a: Tensor, b: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``a / b`` as the arithmetic divides by a scale: rounded once, or ``a * (1 / b)`` with both steps rounded."""
    if arithmetic.division is Division.RECIPROCAL:
        return multiply(a, reciprocal(b, arithmetic), arithmetic)
    return true_divide(a, b, arithmetic)


def true_divide(a: Tensor, b: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``a / b``, rounded once."""
    return flush(_computed(torch.true_divide, flush(a, arithmetic), flush(b, arithmetic)), arithmetic)


def reciprocal(b: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``1 / b``, rounded once."""
    return true_divide(torch.ones_like(b), b, arithmetic)


def multiply_add(a: Tensor, b: Tensor, c: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``a * b + c``: rounded once when the arithmetic fuses, else twice."""
    if not arithmetic.fused_multiply_add:
        return add(multiply(a, b, arithmetic), c, arithmetic)
    a, b, c = flush(a, arithmetic), flush(b, arithmetic), flush(c, arithmetic)
    fused = rounded_once_wide if a.dtype == torch.float64 else rounded_once
    return flush(fused(a, b, c), arithmetic)


def signed_sum(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """``total = a + b`` with the sign of IEEE 754, should it be 0: -0 if both numbers have that sign."""
    a, b, wide = carried(a), carried(b), carried(total)
    integer = bits_of(wide.dtype)
    signs = a.view(integer) & b.view(integer) & sign_of(wide.dtype)
    return torch.where(wide == 0, signs, wide.view(integer)).view(wide.dtype).to(total.dtype)


def carried(x: Tensor) -> Tensor:
    """``x`` in the dtype that compilers hold it in, float32 for 16 bits: exactly."""
    return x.to(torch.float32) if x.element_size() == 2 else x


def bits_of(dtype: torch.dtype) -> torch.dtype:
    """The integer dtype of the bits of float32 or float64."""
    return torch.int64 if dtype == torch.float64 else torch.int32


def sign_of(dtype: torch.dtype) -> int:
    """The bit of the sign, as a number of that integer dtype."""
    return -(2**63) if dtype == torch.float64 else -(2**31)


def _computed(operation: Callable[..., Any], *operands: Tensor) -> Tensor:
    """An operation of torch, rounded to the dtype of its operands in compiled code, too."""
    dtype = operands[0].dtype
    if dtype.itemsize > 2 or not torch.compiler.is_compiling():
        result: Tensor = operation(*operands)
        return result
    return narrowed(operation(*map(carried, operands)), dtype)
