"""Parts, transpositions and other shapes of codes, with the scales that belong to them: no value changes a bit.

Each function gives the quantizer of the result as well, or says that no granularity describes its scales.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.arithmetic import ZeroPointDomain
from ...core.descriptions import Quantizer
from ...core.formats import BinaryFormat, IntegerFormat, TernaryFormat
from ...core.granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken, qparams_shape
from ..arrays import is_concrete

Array = jax.Array
Index = slice | Array


class Coded(NamedTuple):
    """Codes, unpacked, with what they mean."""

    q: Quantizer
    codes: Array
    scale: Array
    zero_point: Array | None


def spans(granularity: Granularity, axes: int) -> tuple[int | None, ...]:
    """How many elements share a scale along each axis of an array; None: all, however long it is."""
    match granularity:
        case PerTensor():
            return (None,) * axes
        case PerAxis(axis):
            return tuple(1 if i == axis % axes else None for i in range(axes))
        case PerToken():
            return (*(1,) * (axes - 1), None)
        case PerGroup(size, axis):
            return tuple(size if i == axis % axes else 1 for i in range(axes))
        case PerBlock(shape):
            return (*(1,) * (axes - len(shape)), *shape)


def full_index(index: Any, axes: int) -> tuple[Index, ...] | None:
    """A slice or array for each axis, or None: an index of another kind, such as an integer, which takes an axis away.

    Arrays of integers, or of one axis; one array at most.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    if sum(part is Ellipsis for part in parts) > 1:
        return None
    if any(part is Ellipsis for part in parts):
        place = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[place : place + 1] = [slice(None)] * (axes + 1 - len(parts))
    parts += [slice(None)] * (axes - len(parts))
    arrays = [part for part in parts if not isinstance(part, slice)]
    if len(parts) != axes or len(arrays) > 1:
        return None
    if any(not hasattr(a, "dtype") or np.ndim(a) == 0 or (a.dtype == bool and np.ndim(a) > 1) for a in arrays):
        return None
    return tuple(parts)


def taken(w: Coded, index: tuple[Index, ...]) -> Coded | None:
    """The elements at an index, as `full_index` gives it; None where these scales are those of no granularity.

    A slice may not cut through what shares a scale, and an array may not take single elements of it.
    """
    of_scale: list[Index] = []
    whole = isinstance(w.q.granularity, PerTensor)
    for span, part, length in zip(spans(w.q.granularity, w.codes.ndim), index, w.codes.shape, strict=True):
        own = slice(None) if whole else _of_scales(span, part, length)
        if own is None:
            return None
        of_scale.append(own)
    q = w.q
    for axis, part in enumerate(index):
        extra = 0 if isinstance(part, slice) or part.dtype == bool else np.ndim(part) - 1
        if extra:
            moved = _with_more_axes(q.granularity, axis, extra, w.codes.ndim)
            if moved is None:
                return None
            q = q.replace(granularity=moved)
    codes = w.codes[index]
    scale, zero = _both(w, lambda p: p[tuple(of_scale)] if p.ndim else p)
    return Coded(q, codes, scale, zero)


def _of_scales(span: int | None, part: Index, length: int) -> Index | None:
    """The index of scales along an axis; None where the elements that share one are parted."""
    if span is None:
        return slice(None) if isinstance(part, slice) or np.ndim(part) == 1 else None
    if span == 1:
        return part
    if not isinstance(part, slice):
        return None
    start, stop, step = part.indices(length)
    if step != 1 or start % span or (stop % span and stop > start):
        return None
    return slice(start // span, max(start, stop) // span)


def _with_more_axes(granularity: Granularity, axis: int, extra: int, axes: int) -> Granularity | None:
    """The granularity when so many axes more stand in the place of one."""
    match granularity:
        case PerTensor():
            return granularity
        case PerToken() if axis < axes - 1:
            return granularity
        case PerAxis(own) if own % axes == axis:
            return PerToken() if axes == 2 and axis == 0 else None
        case PerAxis(own):
            return PerAxis(own % axes + (extra if own % axes > axis else 0))
        case PerGroup(size, own) if own % axes != axis:
            return PerGroup(size, own % axes + (extra if own % axes > axis else 0))
        case PerBlock(shape) if axis < axes - len(shape):
            return granularity
        case _:
            return None


def permuted(w: Coded, axes: Sequence[int]) -> Coded:
    """The transposition. ValueError for axes that are no permutation, or where no granularity describes its scales."""
    n, order = w.codes.ndim, tuple(axis % w.codes.ndim for axis in axes if -w.codes.ndim <= axis < w.codes.ndim)
    if sorted(order) != list(range(n)) or len(axes) != n:
        raise ValueError(f"`axes` must be a permutation of {n} axes, got {tuple(axes)}")
    granularity = w.q.granularity
    match granularity:
        case PerAxis(axis):
            granularity = PerAxis(order.index(axis % n))
        case PerGroup(size, axis):
            granularity = PerGroup(size, order.index(axis % n))
        case PerBlock():
            every = spans(granularity, n)
            granularity = PerBlock(tuple(every[axis] or 1 for axis in order))
        case PerToken() if order[-1] != n - 1:
            if n != 2:
                raise ValueError(f"a QArray {granularity} must keep its last axis, got `axes` {tuple(axes)}")
            granularity = PerAxis(1)
        case _:
            pass
    scale, zero = _both(w, lambda p: p.transpose(order) if p.ndim else p)
    return Coded(w.q.replace(granularity=granularity), w.codes.transpose(order), scale, zero)


def reshaped(w: Coded, shape: Sequence[int]) -> Coded:
    """The codes in another shape. ValueError where the elements that share a scale would not do so any more.

    Any shape per tensor; per axis 0 that axis stays, per token and per group along the last axis the last one.
    """
    codes = w.codes.reshape(tuple(shape))
    first, last = w.codes.shape[:1] == codes.shape[:1], w.codes.shape[-1:] == codes.shape[-1:]
    granularity = w.q.granularity
    along_last = isinstance(granularity, PerToken) or (
        isinstance(granularity, PerGroup) and granularity.axis % w.codes.ndim == w.codes.ndim - 1
    )
    if isinstance(granularity, PerGroup) and along_last:
        granularity = PerGroup(granularity.size)
    if codes.ndim == 0 or not (
        isinstance(granularity, PerTensor) or (granularity == PerAxis(0) and first) or (along_last and last)
    ):
        raise ValueError(
            f"a QArray {w.q.granularity} of shape {w.codes.shape} has no shape {tuple(shape)}, in which other elements "
            "would share a scale; reshape its .dequantize()"
        )
    own = qparams_shape(granularity, codes.shape)
    scale, zero = _both(w, lambda p: p.reshape(own))
    return Coded(w.q.replace(granularity=granularity), codes, scale, zero)


def _both(w: Coded, change: Callable[[Array], Array]) -> tuple[Array, Array | None]:
    """Scales and zero points, changed alike."""
    return change(w.scale), None if w.zero_point is None else change(w.zero_point)


def times(w: Coded, factor: Any, dtype: Any) -> Coded:
    """The values times a positive power of two: the same codes, and every scale times that.

    Raises:
        TypeError: a factor that is no positive power of two, as a number of Python; formats that are no integers, zero
            points that are no codes, or scales that are not at hand, which cannot be checked. ValueError: a scale or
            value that would leave the normal numbers of its dtype.
    """
    power = isinstance(factor, int | float) and not isinstance(factor, bool) and 0 < factor < float("inf")
    if not power or np.frexp(float(factor))[0] != 0.5:
        shown = factor if isinstance(factor, int | float) else type(factor).__name__
        raise TypeError(
            f"a QArray has no product (*) with {shown}, only with positive powers of two; use .dequantize()"
        )
    kinds = IntegerFormat | BinaryFormat | TernaryFormat
    if not isinstance(w.q.format, kinds) or w.q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        raise TypeError(f"a QArray of {w.q.format} has no product (*); use .dequantize()")
    if not is_concrete(w.scale):
        raise TypeError("a QArray whose scales are not at hand has no product (*); use .dequantize()")
    scales = np.asarray(w.scale).astype(np.float64) * factor
    ends: list[Any] = [jnp.finfo(d) for d in (w.scale.dtype, dtype)]  # type: ignore[no-untyped-call]
    tiny, huge = max(float(end.tiny) for end in ends), min(float(end.max) for end in ends)
    reach = max(abs(w.q.format.lo), abs(w.q.format.hi)) + (w.q.format.hi - w.q.format.lo if w.q.affine else 0)
    if scales.size and (scales.min() < tiny or scales.max() * float(reach) > huge):
        raise ValueError(f"a QArray times {factor!r} has values that are no normal numbers; use .dequantize()")
    return w._replace(scale=jnp.asarray(scales.astype(w.scale.dtype)))
