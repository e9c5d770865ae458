"""Knife edges: the inputs at and around every point where a quantizer changes its mind. Computed, not drawn.

A quantizer at a fixed scale is a step function. Two implementations that agree on both sides of every step, and on the
special values, agree on every input between; random inputs hardly ever meet a step (2 in 4,000,000 do).
"""

from collections.abc import Iterator
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.arithmetic import ZeroPointDomain
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken
from .bits import from_ordinal, neighbours, ordinal, stored_bits
from .numbers import decisions

Array = NDArray[Any]
NEIGHBOURS = 2  # two inputs on each side of a step can still have the quotient of the step itself


def special_values(dtype: DTypeLike) -> Array:
    """Both zeros, the ends of the subnormal and normal numbers, infinities, NaN of both signs, +-1/2, +-1 and around.

    1-D, in the dtype given; each magnitude with both signs.
    """
    dtype = np.dtype(dtype)
    inf, one = int(ordinal(np.asarray(np.inf, dtype))), int(ordinal(np.asarray(1, dtype)))
    half, normal = int(ordinal(np.asarray(0.5, dtype))), 2 ** stored_bits(dtype)
    places = np.array([1, 2, normal - 1, normal, normal + 1, half, one - 1, one, one + 1, inf - 1, inf])
    magnitudes = np.concatenate([np.zeros(1, dtype), from_ordinal(places, dtype), np.full(1, np.nan, dtype)])
    return np.concatenate([magnitudes, -magnitudes])


def boundaries(q: Quantizer, scale: SupportsFloat, zero_point: SupportsFloat | None = None) -> Array:
    """Where the code changes, in real numbers: float64, 1-D, ascending, from below the first number to above the last.

    Of integers ``(k + 1/2 - z) * s`` for the nearest roundings, ``(k - z) * s`` for the directed ones, for each integer
    k from lo - 1 to hi (to hi + 1 if directed); of other formats what `decisions` says, times s. The outermost are the
    edges of the gradient's clipping mask. For an arithmetic that clamps before it rounds, also the ends of the range
    themselves, where its mask changes. Products are exact for float32 scales and correctly rounded for float64 ones.

    These are real numbers: what the arithmetic rounds may move a code's change by several numbers of the dtype where
    the zero point is a float, by an error of its size near 0, and where a binary format has a large scale, whose
    quotients of small numbers are 0. `found_edges` finds these.

    Args:
        scale: one positive number.
        zero_point: one number; None for 0. Of other domains than integers: what `ZeroPointDomain` says.
    """
    lo, hi = q.format.lo, q.format.hi
    step = decisions(q)
    step = np.union1d(step, [lo, hi]) if q.arithmetic.clamp_order == "before_rounding" else step
    s, z = np.float64(scale), np.float64(0 if zero_point is None else zero_point)
    if q.arithmetic.zero_point_domain is ZeroPointDomain.FLOAT:
        return np.asarray((step - (hi + lo + 1) // 2) * s + z)
    if q.arithmetic.zero_point_domain is ZeroPointDomain.SHIFT:
        return np.asarray(step * s - z)
    with np.errstate(over="ignore"):
        return np.asarray((step - z) * s)


def knife_edges(q: Quantizer, scale: SupportsFloat, zero_point: SupportsFloat | None, dtype: DTypeLike) -> Array:
    """Inputs of one block at which its quantizer is decided: 1-D, in ``dtype``.

    Every boundary rounded to ``dtype`` with `NEIGHBOURS` numbers on each side, ascending, without repetitions
    (boundaries may share numbers when the dtype is coarse); then `special_values`.

    Args:
        q: format, rounding and arithmetic count; the granularity does not.
        scale: one positive number; zero_point: one number, or None when symmetric.
        dtype: of the result: float32, float64, bfloat16 or float16.
    """
    with np.errstate(over="ignore"):
        edges = boundaries(q, scale, zero_point).astype(dtype)
    return np.concatenate([neighbours(edges, NEIGHBOURS), special_values(dtype)])


def knife_edge_array(q: Quantizer, qparams: QParams, dtype: DTypeLike) -> tuple[Array, QParams]:
    """An array in whose blocks every edge of every given scale stands, and the parameters that belong to it.

    The parameters may have any shape; they are taken as a list of blocks (one only for `PerTensor`). Edges that do not
    fit one block go on in further blocks of the same scale; blocks are filled up by repeating their edges.

        ==================  =======================  ==================
        granularity         shape of x               of the parameters
        ==================  =======================  ==================
        PerTensor           (edges,)                 ()
        PerAxis(0)          (scales, edges)          (scales, 1)
        PerAxis(axis)       2-d or as deep as the axis needs, scales along the axis
        PerToken            (scales, edges)          (scales, 1)
        PerGroup(n, -1)     (blocks, n)              (blocks, 1)
        PerGroup(n, axis)   as deep as the axis needs, n along the axis, blocks along another
        PerBlock(shape)     (blocks * shape[0], *shape[1:]), 2-d at least
        ==================  =======================  ==================

    Raises:
        ValueError: more than one scale for `PerTensor`.
    """
    scales = np.asarray(qparams.scale).reshape(-1)
    zeros = None if qparams.zero_point is None else np.asarray(qparams.zero_point).reshape(-1)
    if isinstance(q.granularity, PerTensor) and scales.size != 1:
        raise ValueError(f"`qparams` of {q.granularity} must hold one scale, got {scales.size}")
    edges = [knife_edges(q, s, None if zeros is None else zeros[i], dtype) for i, s in enumerate(scales)]
    capacity = _capacity(q.granularity) or max(map(len, edges))
    owner, rows = zip(*_rows(edges, capacity), strict=True)
    table, index = np.stack(rows), np.array(owner)
    x = _arrange(q.granularity, table)
    shape = _parameter_shape(q.granularity, len(index), x.ndim)
    return x, QParams(scales[index].reshape(shape), None if zeros is None else zeros[index].reshape(shape))


def _capacity(granularity: Granularity) -> int | None:
    """Elements of a block; None where a block is as long as the array."""
    if isinstance(granularity, PerGroup):
        return granularity.size
    return int(np.prod(granularity.shape)) if isinstance(granularity, PerBlock) else None


def _rows(edges: list[Array], capacity: int) -> Iterator[tuple[int, Array]]:
    """Each list of edges cut into rows of the capacity, the last filled by repetition; with the number of its list."""
    for number, values in enumerate(edges):
        count = -(-len(values) // capacity)
        for row in np.resize(values, count * capacity).reshape(count, capacity):
            yield number, row


def _arrange(granularity: Granularity, table: Array) -> Array:
    """Rows of elements, each of one block, as an array whose blocks are the rows."""
    match granularity:
        case PerTensor():
            return table.reshape(-1)
        case PerToken():
            return table
        case PerBlock(shape):
            blocks = table.reshape(-1, *shape)
            return blocks.reshape(-1, *shape[1:]) if len(shape) > 1 else blocks
        case PerAxis(axis):
            return _along(table, axis)
        case PerGroup(_, axis):
            return _along(np.ascontiguousarray(table.T), axis)


def _along(table: Array, axis: int) -> Array:
    """A table of two axes, the first moved to ``axis`` of an array just deep enough, other axes of length 1."""
    depth = max(2, axis + 1 if axis >= 0 else -axis)
    at = axis % depth
    deep = table.reshape(table.shape + (1,) * (depth - 2))
    return np.ascontiguousarray(np.moveaxis(deep, (0, 1), (at, 0 if at else 1)))


def _parameter_shape(granularity: Granularity, blocks: int, depth: int) -> tuple[int, ...]:
    match granularity:
        case PerTensor():
            return ()
        case PerToken():
            return (blocks, 1)
        case PerBlock(shape):
            return (blocks, *(1 for _ in shape[1:])) if len(shape) > 1 else (blocks, 1)
        case PerAxis(axis):
            at = axis % depth
        case PerGroup(_, axis):
            at = 0 if axis % depth else 1
    return tuple(blocks if i == at else 1 for i in range(depth))
