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
from . import devices
from .arrays import narrowed
from .expressions import carried, signed_sum
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
    return torch.where(subnormal, wide * 0.0, wide).to(x.dtype)  # a product with 0 has the sign, in compiled code too


def multiply(a: Tensor, b: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``a * b``, rounded once."""
    return flush(_computed(devices.product, flush(a, arithmetic), flush(b, arithmetic)), arithmetic)


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
        return flush(_computed(devices.product, flush(a, arithmetic), reciprocal(b, arithmetic)), arithmetic)
    return true_divide(a, b, arithmetic)


def true_divide(a: Tensor, b: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``a / b``, rounded once."""
    return flush(_computed(devices.quotient, flush(a, arithmetic), flush(b, arithmetic)), arithmetic)


def reciprocal(b: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``1 / b``, rounded once."""
    one = torch.ones_like(b)
    return flush(_computed(devices.quotient, one, flush(b, arithmetic)), arithmetic)


def multiply_add(a: Tensor, b: Tensor, c: Tensor, arithmetic: Arithmetic) -> Tensor:
    """``a * b + c``: rounded once when the arithmetic fuses, else twice."""
    if not arithmetic.fused_multiply_add:
        return add(multiply(a, b, arithmetic), c, arithmetic)
    a, b, c = flush(a, arithmetic), flush(b, arithmetic), flush(c, arithmetic)
    fused = rounded_once_wide if a.dtype == torch.float64 else rounded_once
    return flush(fused(a, b, c), arithmetic)


def _computed(operation: Callable[..., Any], *operands: Tensor) -> Tensor:
    """An operation of torch, rounded to the dtype of its operands in compiled code, too."""
    dtype = operands[0].dtype
    if dtype.itemsize > 2 or not torch.compiler.is_compiling():
        result: Tensor = operation(*operands)
        return result
    return narrowed(operation(*map(carried, operands)), dtype)
