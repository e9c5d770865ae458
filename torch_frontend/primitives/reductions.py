"""Reductions over axes: the largest and smallest element and percentiles, exactly; sums in one stated order.

Semantics and errors: `samebits.core.primitives`, of which these have the bits. Largest and smallest by torch's own
reductions, but for the sign of a zero, which those of integers in the order of the numbers tell.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ...core.checks import scale_dtype
from ...core.operands import axes_of, check_not_empty, rank_of
from ..arrays import dtype_name, is_concrete
from .operands import COMPUTE, differentiable, may_move, number, operands
from .roundings import cast

Axis = int | tuple[int, ...] | None


def amax(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest element, +0 larger than -0; NaN if one is. ValueError if there are none.

    Derivative: the elements that equal it share it evenly.
    """
    rows = _rows(x, axis)
    check_not_empty(rows.shape[-1])
    return _shaped(differentiable("nth", (rows,), (rows.shape[-1],)), x, axis, keepdims)


def amin(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest element, -0 smaller than +0; NaN if one is. ValueError if there are none. Derivative as `amax`."""
    rows = _rows(x, axis)
    check_not_empty(rows.shape[-1])
    return _shaped(differentiable("nth", (rows,), (1,)), x, axis, keepdims)


def absmax(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """``amax(absolute(x))``."""
    size = differentiable("absolute", operands(("x",), (x,)))
    if may_move((size,)):
        return amax(size, axis, keepdims)
    rows = _rows(size, axis)  # whose zeros have one sign, so that torch's own reduction has the bits
    check_not_empty(rows.shape[-1])
    return _shaped(rows.amax(-1), x, axis, keepdims)


def percentile(x: Tensor, percent: float, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The element of rank ``floor(percent / 100 * n + 1/2)``, at least 1, in ascending order: no interpolation.

    NaN if one element is. Derivative as `amax`.

    Args:
        percent: in [0, 100].
    Raises:
        ValueError: no elements, another ``percent``.
    """
    rows = _rows(x, axis)
    check_not_empty(rows.shape[-1])
    return _shaped(differentiable("nth", (rows,), (rank_of(percent, rows.shape[-1]),)), x, axis, keepdims)


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum in one order: zeros appended up to a power of two, then ``v[: n/2] + v[n/2 :]`` until one is left.

    The elements are taken in row-major order of the axes that go away. Every addition is rounded, in float32 for 16
    bits, and the result once more to the dtype. With ``u = 2**-24`` (float64: 2**-53) and ``d = ceil(log2 n)`` the
    error before that is at most ``((1 + u)**d - 1) * sum(|x|)``. 0 if there are no elements.
    """
    rows = _wide(_rows(x, axis))
    return _shaped(cast(differentiable("added", (rows,)), dtype_name(x.dtype)), x, axis, keepdims)


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """`sum`, not yet rounded to 16 bits, divided by the count of elements. ValueError if there are none."""
    rows = _wide(_rows(x, axis))
    check_not_empty(rows.shape[-1])
    value = differentiable("divide", (differentiable("added", (rows,)), number(rows.shape[-1], rows)))
    return _shaped(cast(value, dtype_name(x.dtype)), x, axis, keepdims)


def _wide(x: Tensor) -> Tensor:
    return cast(x, scale_dtype(dtype_name(x.dtype)))


def _rows(x: Tensor, axis: Axis) -> Tensor:
    """``x`` with the axes that go away as its last one."""
    (x,) = operands(("x",), (x,))
    axes = axes_of(tuple(x.shape), axis)
    kept = [i for i in range(x.ndim) if i not in axes]
    return x.permute([*kept, *axes]).reshape([*[x.shape[i] for i in kept], math.prod([x.shape[i] for i in axes])])


def _shaped(value: Tensor, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    if not keepdims:
        return value
    axes = axes_of(tuple(x.shape), axis)
    return value.reshape([1 if i in axes else n for i, n in enumerate(x.shape)])


def _nth(rows: Tensor, rank: int) -> Tensor:
    """The element of a rank, from 1, along the last axis; NaN if one is."""
    end = rows.amax(-1) if rank == rows.shape[-1] else rows.amin(-1) if rank == 1 else None
    if end is not None and is_concrete(end) and bool((end != 0).all()):
        return end
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[rows.element_size()]
    most = torch.iinfo(integer).max
    bits = _bits(rows, integer)
    order = torch.where(bits < 0, bits ^ most, bits)
    beyond = -most - 1 if rank == 1 else most  # NaN, which is to be found
    nan = (rows != rows) if rank in (1, rows.shape[-1]) else (rows != rows).any(-1, keepdim=True)
    order = torch.where(nan, beyond, order)
    if rank == rows.shape[-1]:
        chosen = order.amax(-1)
    elif rank == 1:
        chosen = order.amin(-1)
    else:
        chosen = order.sort(-1).values[..., rank - 1]
    return torch.where(chosen < 0, chosen ^ most, chosen).view(rows.dtype)


def _bits(x: Tensor, integer: torch.dtype) -> Tensor:
    return x.contiguous().view(integer)


def _added(rows: Tensor) -> Tensor:
    n = int(rows.shape[-1])
    half = (1 << max(n - 1, 0).bit_length()) // 2
    v = functional.pad(rows, (0, max(2 * half, 1) - n))
    while half:
        v = COMPUTE["add"](v[..., :half], v[..., half:])
        half //= 2
    return v[..., 0]


COMPUTE["nth"], COMPUTE["added"] = _nth, _added
