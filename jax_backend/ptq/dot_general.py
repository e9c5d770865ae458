"""`jax.lax.dot_general` over stored codes: any axes contracted, any of them batched."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ...core.contraction import accumulator_bound, contracts_codes, largest_code
from ...core.descriptions import Quantizer
from ...core.granularity import PerTensor
from .. import kernels
from ..arrays import as_array, narrow, widen
from ..exact import integer_contraction
from ..grid import decode
from ..layers import scaled_by_both
from ..platforms import type_of_codes
from ..quantizer import choose_qparams, fake_quantize, quantize
from .products import with_derivative_of
from .qarray import QArray, codes_of
from .rearranging import Coded, permuted, spans

Array = jax.Array
Axes = Sequence[int]
DimensionNumbers = tuple[tuple[Axes, Axes], tuple[Axes, Axes]]


class Side(NamedTuple):
    """One operand: its values, and its codes where it has some; axes are (batch, free, contracted)."""

    values: Array
    coded: Coded | None
    order: tuple[int, ...]
    batch: int
    contracted: int


def dot_general(
    lhs: QArray | Array,
    rhs: QArray | Array,
    dimension_numbers: DimensionNumbers,
    *,
    preferred_element_type: DTypeLike | None = None,
) -> Array:
    """The product, as `jax.lax.dot_general` names axes; codes are contracted where both operands have them.

    A float operand is quantized by the ``act_quant`` of the other, at every call, with its gradient; without one, or
    where formats, zero points or scales that vary along contracted axes rule it out, values are contracted in float32
    (float64 for float64), whose bits are those of no order. Over codes it is ``sum * (s_lhs * s_rhs)``, of exact sums,
    as `samebits.core.linear` has it: the same bits in any mode.

    Args:
        lhs, rhs: one `QArray` at least; of one dtype.
        dimension_numbers: ``((lhs contracted, rhs contracted), (lhs batch, rhs batch))``.
        preferred_element_type: None for the dtype of the operands; int32 for the sums of ``(code - z) * (code - z)``
            themselves, exact.
    Returns:
        ``(batch, free of lhs, free of rhs)``.
    Raises:
        TypeError: no `QArray`, different dtypes, another element type. ValueError: axes that do not fit; int32 where
            codes are not contracted, or sums do not fit; as `choose_qparams` of a float operand.
    """
    if not isinstance(lhs, QArray) and not isinstance(rhs, QArray):
        raise TypeError(f"`lhs` or `rhs` must be a QArray, got {type(lhs).__name__} and {type(rhs).__name__}")
    lhs, rhs = (
        side if isinstance(side, QArray) else as_array(name, side) for name, side in (("lhs", lhs), ("rhs", rhs))
    )
    if lhs.dtype != rhs.dtype:
        raise TypeError(
            f"`lhs` and `rhs` must have one dtype, got {jnp.dtype(lhs.dtype).name}, {jnp.dtype(rhs.dtype).name}"
        )
    integers = preferred_element_type is not None and jnp.dtype(preferred_element_type) == np.int32
    if preferred_element_type is not None and not integers and jnp.dtype(preferred_element_type) != lhs.dtype:
        raise TypeError(
            f"`preferred_element_type` must be None, int32 or {jnp.dtype(lhs.dtype).name}, got "
            f"{preferred_element_type!r}"
        )
    of_left, of_right = _checked(dimension_numbers, lhs.shape, rhs.shape)
    a, b = _side(lhs, rhs, *of_left), _side(rhs, lhs, *of_right)
    why = _why_values(a, b)
    if integers:
        if why:
            raise ValueError(f"`preferred_element_type` int32 needs codes on both sides, but {why}")
        return _integer_sums(a, b)
    like = _over_values(a, b)
    return like if why else with_derivative_of(_over_codes(a, b, lhs.dtype), like)


def _checked(numbers: Any, left: Sequence[int], right: Sequence[int]) -> tuple[Any, Any]:
    """(batch, free, contracted) axes of both. ValueError unless they fit each other."""
    (of_left, of_right), (batch_left, batch_right) = numbers
    found = []
    for name, shape, contracted, batch in (("lhs", left, of_left, batch_left), ("rhs", right, of_right, batch_right)):
        used = [*contracted, *batch]
        if sorted(set(used)) != sorted(used) or any(not 0 <= axis < len(shape) for axis in used):
            raise ValueError(
                f"`dimension_numbers` must name axes of `{name}`, of shape {tuple(shape)}, once; got {used}"
            )
        found.append((tuple(batch), tuple(i for i in range(len(shape)) if i not in used), tuple(contracted)))
    for one, other, kind in ((batch_left, batch_right, "batch"), (of_left, of_right, "contracted")):
        lengths = [left[axis] for axis in one], [right[axis] for axis in other]
        if lengths[0] != lengths[1]:
            raise ValueError(
                f"`dimension_numbers` must pair {kind} axes of one length, got {lengths[0]} and {lengths[1]}"
            )
    return found[0], found[1]


def _side(own: QArray | Array, other: QArray | Array, batch: Axes, free: Axes, contracted: Axes) -> Side:
    """An operand with its axes as (batch, free, contracted)."""
    order = (*batch, *free, *contracted)
    if isinstance(own, QArray):
        coded = Coded(own.quantizer, codes_of(own), own.scale, own.zero_point)
        if own.transposed:
            coded = permuted(coded, (1, 0))
        values = own.dequantize()
    else:
        q = other.act_quant if isinstance(other, QArray) else None
        if q is None:
            return Side(own, None, order, len(batch), len(contracted))
        qparams = choose_qparams(q, own)
        fixed = lax.stop_gradient(own)
        coded = Coded(q, quantize(q, fixed, qparams), qparams.scale, qparams.zero_point)
        values = fake_quantize(q, own, qparams)
    return Side(values, coded, order, len(batch), len(contracted))


def _why_values(a: Side, b: Side) -> str:
    """Why codes cannot be contracted; nothing if they can."""
    if a.coded is None or b.coded is None:
        return "one side is of floats, and the other has no `act_quant`"
    quantizers: list[Quantizer] = [side.coded.q.replace(granularity=PerTensor()) for side in (a, b) if side.coded]
    if not contracts_codes(*quantizers, per_token=False):
        return f"these do not have codes that are integers: {a.coded.q.format} and {b.coded.q.format}"
    for name, side in (("lhs", a), ("rhs", b)):
        q = side.coded.q if side.coded else a.coded.q
        shared = spans(q.granularity, len(side.order))
        if any(shared[axis] is not None for axis in side.order[len(side.order) - side.contracted :]):
            return f"scales of `{name}`, {q.granularity}, vary along contracted axes"
    return ""


def _matrices(array: Array, side: Side) -> Array:
    """Axes joined to (batch, free, contracted)."""
    moved = array.transpose(side.order)
    shape, last = moved.shape, len(side.order) - side.contracted
    return moved.reshape(prod(shape[: side.batch]), prod(shape[side.batch : last]), prod(shape[last:]))


def _shape(a: Side, b: Side) -> tuple[int, ...]:
    """Of the result."""
    left, right = ([side.values.shape[axis] for axis in side.order] for side in (a, b))
    free = left[a.batch : len(left) - a.contracted], right[b.batch : len(right) - b.contracted]
    return (*left[: a.batch], *free[0], *free[1])


def _product(a: Array, b: Array, dtype: DTypeLike) -> Array:
    axes = (((2,), (2,)), ((0,), (0,)))
    return lax.dot_general(a, b, axes, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)


def _over_values(a: Side, b: Side) -> Array:
    left, right = (_matrices(widen(side.values), side) for side in (a, b))
    return narrow(_product(left, right, left.dtype).reshape(_shape(a, b)), a.values.dtype)


def _centred(side: Side) -> Array:
    """``code - z`` in the dtype of the scales."""
    w: Any = side.coded
    return _matrices(kernels.centred(w.q, decode(w.q, w.codes, w.scale.dtype), w.scale, w.zero_point), side)


def _integer_sums(a: Side, b: Side) -> Array:
    left, right = _centred(a), _centred(b)
    q_a, q_b = a.coded.q, b.coded.q  # type: ignore[union-attr]  # `_why_values` has said that they are there
    bound = accumulator_bound(q_a, q_b, left.shape[-1])
    if bound >= 2**31:
        raise ValueError(f"`preferred_element_type` int32 must hold sums of up to {bound}; use fewer bits or terms")
    return _product(left.astype(np.int32), right.astype(np.int32), np.int32).reshape(_shape(a, b))


def _over_codes(a: Side, b: Side, dtype: DTypeLike) -> Array:
    left, right = _centred(a), _centred(b)
    q_a, q_b = a.coded.q, b.coded.q  # type: ignore[union-attr]
    largest = largest_code(q_a), largest_code(q_b)
    bound = accumulator_bound(q_a, q_b, left.shape[-1])

    def contract(x: Array, y: Array) -> Array:
        """Integers of at most 256."""
        if x.dtype == np.float64:
            return _product(x, y, x.dtype)
        return _product(x.astype(type_of_codes()), y.astype(type_of_codes()), np.float32)

    acc = integer_contraction(contract, left, right, (2,), 2, largest, bound)
    scales = _scales(a), jnp.swapaxes(_scales(b), 1, 2)
    return scaled_by_both(q_a, q_b, acc, *scales, None, dtype).reshape(_shape(a, b))


def _scales(side: Side) -> Array:
    """``(batch, free, 1)``, or ``(1, 1, 1)`` of the whole array."""
    scale = side.coded.scale  # type: ignore[union-attr]
    if scale.ndim == 0:
        return scale.reshape(1, 1, 1)
    kept = set(side.order[: len(side.order) - side.contracted])
    shape = [length if axis in kept else 1 for axis, length in enumerate(side.values.shape)]
    for axis, (length, count) in enumerate(zip(shape, scale.shape, strict=True)):
        scale = jnp.repeat(scale, length // max(count, 1), axis) if count != length else scale
    return _matrices(scale, side)
