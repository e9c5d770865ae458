"""Reductions over axes: the largest and smallest element and percentiles, exactly; sums in one stated order.

Every function takes an array (float32, float64, bfloat16, float16), the axes that go away, and whether they stay with
length 1. TypeError for other dtypes, ValueError for axes that are not there.
"""

from typing import Any

import numpy as np

from ..checks import scale_dtype
from ..operands import axes_of, check_not_empty, rank_of
from ..operations import round_to_dtype
from . import arithmetic
from .operands import Array, number, primitive

Axis = int | tuple[int, ...] | None


@primitive(1)
def amax(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The largest element, +0 larger than -0; NaN if one is. ValueError if there are none.

    Derivative: the elements that equal it share it evenly.
    """
    rows = _rows(x, axis)
    check_not_empty(rows.shape[-1])
    return _shaped(_nth(rows, rows.shape[-1]), x, axis, keepdims)


@primitive(1)
def amin(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The smallest element, -0 smaller than +0; NaN if one is. ValueError if there are none. Derivative as `amax`."""
    rows = _rows(x, axis)
    check_not_empty(rows.shape[-1])
    return _shaped(_nth(rows, 1), x, axis, keepdims)


@primitive(1)
def absmax(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """``amax(absolute(x))``."""
    return amax(np.abs(x), axis, keepdims)


@primitive(1)
def percentile(x: Array, percent: float, axis: Axis = None, keepdims: bool = False) -> Array:
    """The element of rank ``floor(percent / 100 * n + 1/2)``, at least 1, in ascending order: no interpolation.

    NaN if one element is. Derivative as `amax`.

    Args:
        percent: in [0, 100].
    Raises:
        ValueError: no elements, another ``percent``.
    """
    rows = _rows(x, axis)
    check_not_empty(rows.shape[-1])
    return _shaped(_nth(rows, rank_of(percent, rows.shape[-1])), x, axis, keepdims)


@primitive(1)
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The sum in one order: zeros appended up to a power of two, then ``v[: n/2] + v[n/2 :]`` until one is left.

    The elements are taken in row-major order of the axes that go away. Every addition is rounded, in float32 for 16
    bits, and the result once more to the dtype. With ``u = 2**-24`` (float64: 2**-53) and ``d = ceil(log2 n)`` the
    error before that is at most ``((1 + u)**d - 1) * sum(|x|)``. 0 if there are no elements.
    """
    return round_to_dtype(_shaped(_sum(_wide(_rows(x, axis))), x, axis, keepdims), x.dtype)


@primitive(1)
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """`sum`, not yet rounded to 16 bits, divided by the count of elements. ValueError if there are none."""
    rows = _wide(_rows(x, axis))
    check_not_empty(rows.shape[-1])
    value = arithmetic.divide(_sum(rows), number(rows.shape[-1], rows.dtype))
    return round_to_dtype(_shaped(value, x, axis, keepdims), x.dtype)


def _wide(x: Array) -> Array:
    return x.astype(scale_dtype(x.dtype.name))


def _rows(x: Array, axis: Axis) -> Array:
    """``x`` with the axes that go away as its last one."""
    axes = axes_of(x.shape, axis)
    kept = [i for i in range(x.ndim) if i not in axes]
    return x.transpose(*kept, *axes).reshape(*(x.shape[i] for i in kept), int(np.prod([x.shape[i] for i in axes])))


def _shaped(value: Any, x: Array, axis: Axis, keepdims: bool) -> Array:
    return np.expand_dims(value, axes_of(x.shape, axis)) if keepdims else np.asarray(value)


def _nth(rows: Array, rank: int) -> Array:
    """The element of a rank, from 1, along the last axis."""
    bits = rows.view(f"int{8 * rows.dtype.itemsize}")
    order = np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)
    chosen = np.sort(order, axis=-1)[..., rank - 1]
    value = np.where(chosen < 0, chosen ^ np.iinfo(bits.dtype).max, chosen).astype(bits.dtype).view(rows.dtype)
    return np.where(np.isnan(rows).any(axis=-1), np.asarray(np.nan, rows.dtype), value)


def _sum(rows: Array) -> Array:
    n = rows.shape[-1]
    size = 1 << max(n - 1, 0).bit_length()
    v = np.concatenate([rows, np.zeros((*rows.shape[:-1], size - n), rows.dtype)], axis=-1)
    while v.shape[-1] > 1:
        half = v.shape[-1] // 2
        v = arithmetic.add(v[..., :half], v[..., half:])
    return np.asarray(v[..., 0])
