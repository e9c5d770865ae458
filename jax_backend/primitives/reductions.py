"""Reductions over axes: the largest and smallest element and percentiles, exactly; sums in one stated order.

Semantics and errors: `samebits.core.primitives`, of which these have the bits. Order is that of integers; sums are
those of `arithmetic`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ...core.checks import scale_dtype
from ...core.operands import axes_of, check_not_empty, rank_of
from ..arrays import barrier, from_pattern, layout, ordered
from .arithmetic import is_not_a_number
from .operands import COMPUTE, moved, number, operands
from .roundings import cast

Array = jax.Array
Axis = int | tuple[int, ...] | None


def amax(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The largest element, +0 larger than -0; NaN if one is. ValueError if there are none.

    Derivative: the elements that equal it share it evenly.
    """
    rows = _rows(x, axis)
    check_not_empty(rows.shape[-1])
    return _shaped(moved("nth", (rows.shape[-1],), rows), x, axis, keepdims)


def amin(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The smallest element, -0 smaller than +0; NaN if one is. ValueError if there are none. Derivative as `amax`."""
    rows = _rows(x, axis)
    check_not_empty(rows.shape[-1])
    return _shaped(moved("nth", (1,), rows), x, axis, keepdims)


def absmax(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """``amax(absolute(x))``."""
    return amax(moved("absolute", (), *operands(("x",), (x,))), axis, keepdims)


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
    return _shaped(moved("nth", (rank_of(percent, rows.shape[-1]),), rows), x, axis, keepdims)


def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """The sum in one order: zeros appended up to a power of two, then ``v[: n/2] + v[n/2 :]`` until one is left.

    The elements are taken in row-major order of the axes that go away. Every addition is rounded, in float32 for 16
    bits, and the result once more to the dtype. With ``u = 2**-24`` (float64: 2**-53) and ``d = ceil(log2 n)`` the
    error before that is at most ``((1 + u)**d - 1) * sum(|x|)``. 0 if there are no elements.
    """
    rows = _wide(_rows(x, axis))
    return _shaped(_narrow(moved("added", (), rows), x), x, axis, keepdims)


def plain_sum(x: Array, axis: Axis, keepdims: bool) -> Array:
    """`sum` in float32 by XLA's additions, where neither operands nor sums are subnormal, nor bare products."""
    return _shaped(_added(_rows(x, axis), jnp.add), x, axis, keepdims)


def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """`sum`, not yet rounded to 16 bits, divided by the count of elements. ValueError if there are none."""
    rows = _wide(_rows(x, axis))
    check_not_empty(rows.shape[-1])
    total = moved("added", (), rows)
    value = moved("divide", (), total, jnp.broadcast_to(number(rows.shape[-1], rows.dtype), total.shape))
    return _shaped(_narrow(value, x), x, axis, keepdims)


def _wide(x: Array) -> Array:
    return x if x.dtype.itemsize > 2 else cast(x, scale_dtype(x.dtype.name))


def _narrow(value: Array, like: Array) -> Array:
    return value if value.dtype == like.dtype else cast(value, like.dtype.name)


def _rows(x: Array, axis: Axis) -> Array:
    """``x`` with the axes that go away as its last one."""
    (x,) = operands(("x",), (x,))
    axes = axes_of(x.shape, axis)
    kept = [i for i in range(x.ndim) if i not in axes]
    return x.transpose(*kept, *axes).reshape(*(x.shape[i] for i in kept), math.prod(x.shape[i] for i in axes))


def _shaped(value: Array, x: Array, axis: Axis, keepdims: bool) -> Array:
    return jnp.expand_dims(value, axes_of(x.shape, axis)) if keepdims else value


def _nth(rows: Array, rank: int) -> Array:
    """The element of a rank, from 1, along the last axis; NaN if one is."""
    most = np.iinfo(layout(rows.dtype).integer).max
    order, nan = ordered(rows), is_not_a_number(rows)
    if rank == rows.shape[-1]:
        chosen = jnp.where(nan, most, order).max(-1)
    elif rank == 1:
        chosen = jnp.where(nan, -most - 1, order).min(-1)
    else:
        chosen = jnp.where(nan.any(-1), most, jnp.sort(order, axis=-1)[..., rank - 1])
    return from_pattern(jnp.where(chosen < 0, chosen ^ most, chosen), rows.dtype)


def _added(rows: Array, add: Callable[[Array, Array], Array] | None = None) -> Array:
    """The sum along the last axis, by a function that adds; without one that of `arithmetic`."""
    n = rows.shape[-1]
    steps = max(n - 1, 0).bit_length()
    v = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, (1 << steps) - n)])
    for _ in range(steps):
        v = (add or COMPUTE["add"])(*jnp.split(barrier(v), 2, axis=-1))
    return v[..., 0]


COMPUTE["nth"], COMPUTE["added"] = _nth, _added
