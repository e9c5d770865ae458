"""The calls of a tile: arrays with their parameters, and what every mode must make of them.

That follows from the list of steps: on plateau i the code is ``codes[i]``, the value ``fl(units[i] * s)`` (rounded once
more to a 16-bit dtype), and the gradient the incoming one or 0 as ``passes[i]`` says.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core.blocks import expand_blocks
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerTensor
from ..inputs.bits import place
from ..inputs.knife_edges import knife_edge_array
from .steps import LARGEST, Steps, plateau_of, thresholds
from .tiles import CHUNK, Tile, critical_scales, rows_at_once

Array = NDArray[Any]
IN_CACHE = 1 << 17  # elements at a time in mode numpy, whose operations each read and write them anew
CRITICAL = ("critical", "zero point")  # kinds of tiles that hold the critical scales
SHARE = 1021  # of a long list of inputs one in so many is asked for its gradient
DTYPES: Mapping[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
NAN, MINUS = 0x7F800001, 1 << 31  # bits of the first NaN and of -0.0


class Case(NamedTuple):
    """One call: an array, its parameters, the scale of every element (or what broadcasts to it), what must come out.

    Attributes:
        codes, values: as ``x``, or what broadcasts to it.
        passes: the mask, of the elements (or of the columns) in ``beside``.
        number: ``x`` with 0.0 for NaN, for modes that refuse it; None where nothing is NaN.
        beside: for which columns or elements the mask is asked (None: all).
    """

    x: Array
    qparams: QParams
    s: Array
    codes: Array
    values: Array
    passes: Array
    number: Array | None = None
    beside: Array | None = None


def _scale_cases(q: Quantizer, found: Steps, tile: Tile) -> Iterator[Case]:
    """Rows of one scale each: the inputs on both sides of every step; behind them the special ones."""
    part = found if tile.steps is None else _sliced(found, *tile.steps)
    start = tile.steps[0] if tile.steps else 0
    count = len(part.last)
    special = [-np.inf, -LARGEST, -0.0, 0.0, LARGEST, np.inf] if tile.steps is None else []
    row = np.concatenate([np.arange(count) + start, np.arange(count) + start + 1])
    ends = [0, 0, *found.zeros, len(found.last), len(found.last)] if special else []
    row = np.concatenate([row, np.array(ends, row.dtype)])
    changes = np.flatnonzero(found.passes[1:] != found.passes[:-1])
    column = np.arange(len(row))
    beside = np.flatnonzero(np.isin(column % max(1, count) + start, changes) | (column >= 2 * count))
    scales = _scales_of(found, tile)
    rows = rows_at_once(len(row))
    if tile.kind in CRITICAL:  # filled up to a whole array, lest it be compiled for
        scales = np.append(scales, np.full(-len(scales) % rows, scales[0]))
    for i in range(0, len(scales), rows):
        s = scales[i : i + rows]
        before, after = thresholds(part, s)
        x = np.empty((len(s), len(row)), np.float32)
        x[:, :count], x[:, count : 2 * count], x[:, 2 * count :] = before, after, np.array(special, np.float32)
        apart = (before[:, 1:] > before[:, :-1]).all(axis=1) & (np.abs(before).max(axis=1, initial=0) < LARGEST)
        plateaus = row
        if not apart.all():
            plateaus = np.tile(row, (len(s), 1))
            plateaus[~apart] = _plateaus_of_rows(before[~apart], x[~apart])
        yield _case(found, x, rows_of(s, tile.zero_point), plateaus, s[:, None], beside)


def _plateaus_of_rows(before: Array, x: Array) -> Array:
    """`plateau_of` row by row, for rows in which steps may share their inputs; no NaN."""
    row = np.arange(len(x))[:, None]
    keys, wanted = place(before) + (row << 34), place(x) + (row << 34)  # one ascending list; places have 33 bits
    return np.asarray(np.searchsorted(keys.reshape(-1), wanted) - row * before.shape[1])


def _dtype_cases(q: Quantizer, found: Steps, tile: Tile) -> Iterator[Case]:
    """Rows of one scale each: every number of a 16-bit dtype."""
    x = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[tile.dtype])
    s = _scales_of(found, tile)
    with np.errstate(invalid="ignore"):  # signalling NaN
        plateaus = np.stack([plateau_of(found, a, x.astype(np.float32)) for a in s])
    yield _case(found, np.tile(x, (len(s), 1)), rows_of(s, tile.zero_point), plateaus, s[:, None])


def _input_cases(q: Quantizer, found: Steps, tile: Tile) -> Iterator[Case]:
    """Inputs whose bits are an arithmetic progression, at one scale; per tensor or in rows.

    What they must give is written run by run: there are few plateaus in millions of neighbours.
    """
    scale = np.uint32(tile.scale).view(np.float32)
    before = place(thresholds(found, scale.reshape(1))[0][0])
    codes, units, passes = found.answers
    with np.errstate(over="ignore"):
        values = units * scale
    for start in range(0, tile.count, CHUNK):
        count = min(CHUNK, tile.count - start)
        bits = np.arange(tile.first + tile.stride * start, tile.first + tile.stride * (start + count), tile.stride)
        plateaus, lengths = _runs_of(bits, before)
        beside = _filled(np.concatenate([np.arange(0, count, SHARE), *_near_changes(passes[plateaus], lengths)]), count)
        shape: tuple[int, ...] = (count,)
        qparams = QParams(np.asarray(scale), _zero_of(tile))
        if not isinstance(q.granularity, PerTensor):
            rows = max(1, count // IN_CACHE)
            shape, qparams = (rows, count // rows), rows_of(np.full(rows, scale), tile.zero_point)
            beside = _filled(beside % shape[1], shape[1])
        x = bits.astype(np.uint32).view(np.float32).reshape(shape)
        wanted, got, mask = (np.repeat(a[plateaus], lengths).reshape(shape) for a in (codes, values, passes))
        with_nan = lengths[plateaus > len(before)].any()
        number = np.where(np.isnan(x), np.float32(0), x) if with_nan else None
        yield Case(x, qparams, qparams.scale, wanted, got, mask[..., beside], number, beside)


def _runs_of(bits: Array, before: Array) -> tuple[Array, Array]:
    """On which plateaus float32 numbers of ascending bits lie, one after the other, and how many on each.

    Bits of positive numbers are their places; those of negative ones descend with theirs. NaN is the last plateau.
    """
    count, nan = len(before), len(before) + 1
    start, end, minus, last = (int(i) for i in np.searchsorted(bits, [0, NAN, MINUS, MINUS + NAN]))
    up = np.clip(np.searchsorted(bits, before, side="right"), start, end)
    down = np.clip(np.searchsorted(bits, MINUS - 1 - before), minus, last)[::-1]
    edges = np.concatenate([[start], up, [end, minus], down, [last, len(bits)]])
    plateaus = np.concatenate([np.arange(count + 1), [nan], np.arange(count, -1, -1), [nan]])
    return plateaus, np.diff(edges)


def _filled(indices: Array, most: int) -> Array:
    """Indices, each once, and the first again until there are a power of two (or ``most``): few shapes are compiled."""
    once = np.unique(indices)
    count = min(most, 1 << max(0, len(once) - 1).bit_length())
    return np.concatenate([once, np.full(count - len(once), once[0])])


def _near_changes(passes: Array, lengths: Array) -> Iterator[Array]:
    """Where in a list of inputs the mask changes from one run to the next, with a few neighbours."""
    some = lengths > 0
    ends, inside = np.cumsum(lengths[some]), passes[some]
    for at in ends[:-1][inside[1:] != inside[:-1]] - 1:
        yield np.arange(max(0, int(at) - 3), min(int(ends[-1]), int(at) + 5))


def _own_cases(q: Quantizer, found: Steps, tile: Tile) -> Iterator[Case]:
    """Knife edges and special values of every scale, laid out as the granularity of the quantizer wants them."""
    scales = _scales_of(found, tile)
    groups = scales[:, None] if isinstance(q.granularity, PerTensor) else [scales]
    for s in groups:
        zeros = None if tile.zero_point is None else np.full(len(s), tile.zero_point, np.int32)
        x, qparams = knife_edge_array(q, QParams(s, zeros), np.float32)
        each = expand_blocks(qparams.scale, q.granularity, x.shape)
        plateaus = np.empty(x.shape, np.intp)
        for scale in s:
            plateaus[each == scale] = plateau_of(found, scale, x[each == scale])
        yield _case(found, x, qparams, plateaus, each)


CASES: Mapping[str, Callable[[Quantizer, Steps, Tile], Iterator[Case]]] = {
    "scales": _scale_cases,
    "critical": _scale_cases,
    "zero point": _scale_cases,
    "inputs": _input_cases,
    "whole": _input_cases,
    "dtype": _dtype_cases,
    "granularity": _own_cases,
}


def _scales_of(found: Steps, tile: Tile) -> Array:
    bits = tile.first + tile.stride * np.arange(tile.count, dtype=np.int64)
    if tile.kind in CRITICAL:
        bits = np.concatenate([bits, critical_scales(found)])
    return bits.astype(np.uint32).view(np.float32)


def rows_of(s: Array, zero_point: int | None) -> QParams:
    """A scale for every row, and the same zero point for all (None when symmetric)."""
    return QParams(s[:, None], None if zero_point is None else np.full((len(s), 1), zero_point, np.int32))


def _zero_of(tile: Tile) -> Array | None:
    return None if tile.zero_point is None else np.asarray(tile.zero_point, np.int32)


def _case(found: Steps, x: Array, qparams: QParams, plateaus: Array, s: Array, beside: Array | None = None) -> Case:
    """A call on elements whose plateaus are known, each or (one-dimensional) those of the columns of all rows."""
    codes, units, passes = found.answers
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaN
        values = np.broadcast_to(units[plateaus] * s, x.shape).astype(x.dtype, copy=False)
        nan = plateaus > len(found.last)
        number = np.where(nan, np.zeros_like(x), x) if nan.any() else None
    mask = passes[plateaus if beside is None else plateaus[..., beside]]
    return Case(x, qparams, s, codes[plateaus], values, mask, number, beside)


def _sliced(found: Steps, first: int, end: int) -> Steps:
    return found._replace(
        last=found.last[first:end], middles=found.middles[first:end], tie_stays=found.tie_stays[first:end]
    )
