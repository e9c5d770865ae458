"""Cutting tensors of any shape into pieces of one shape, block by block, so that one program takes them all.

A block is what shares a scale. Every tensor is taken as the matrix (first axis, all others), a vector as one row, as a
quantized layer takes its weight; a matrix whose length is no multiple of a group or block is filled up with zeros,
which change no scale, because the range of a block always includes 0. A block longer than a row of the table below goes
on in further rows, each of which repeats the smallest and largest element of the block: so each row has the scale of
its block, where that comes from these. By any other statistic the rows of a long block, and blocks filled up, have
scales of their own. What is filling or repetition is marked, and is not counted as compared.

    ========================  =====================================  =====================  ============
    granularity               a block of the matrix                  elements of a row      in a piece
    ========================  =====================================  =====================  ============
    ``PerTensor``             all of it, in row-major order          all 128 * 256          one
    ``PerAxis(0), PerToken``  a row                                  256                    128
    ``PerGroup(n)``           n consecutive elements of a row        n                      128 * 256/n
    ``PerBlock((a, b))``      a tile of a rows and b columns         a * b                  128/a * 256/b
    ========================  =====================================  =====================  ============

Pieces are ``(128, 256)`` where groups and blocks divide that, so that even the operations of eager JAX, each of which
is compiled for its shapes, are the same for all quantizers; of another height where that is asked for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import ZeroPointDomain
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken, qparams_shape
from ...core.quantizer import choose_qparams
from ..inputs.knife_edges import knife_edges
from ..inputs.ranges import knife_edge_ranges

Array = NDArray[Any]
HEIGHT, BREADTH = 128, 256  # of a piece
CHUNK = 2**20  # elements of a tensor looked at at once
RANGES = 6  # at least: per tensor, each of them is a piece of its own


@dataclass(frozen=True)
class Rows:
    """Blocks in the making: one row each.

    Args:
        values: ``(rows, width)``, in the dtype to check.
        real: which of them are to be compared (no filling, no repetition).
        source: what they are, for messages.
        scale, zero_point: one per row, when the parameters are given; else None, and they are chosen from the values.
    """

    values: Array
    real: Array
    source: str
    scale: Array | None = None
    zero_point: Array | None = None


@dataclass(frozen=True)
class Piece:
    """An array to compare on.

    Args:
        x: of the shape that the module names.
        real: bool, as ``x``: which elements count.
        block: int, as ``x``: in which block (entry of the flattened parameters) an element lies.
        sources: what each block is, for messages.
        qparams: parameters given, or None to choose them from ``x``.
    """

    x: Array
    real: Array
    block: Array
    sources: tuple[str, ...]
    qparams: QParams | None


def not_applicable(granularity: Granularity) -> str | None:
    """Why matrices cannot be cut into blocks of this granularity, or None when they can."""
    match granularity:
        case PerTensor() | PerToken() | PerAxis(0) | PerGroup(_, -1):
            return None
        case PerBlock(shape) if len(shape) == 2:
            return None
    return f"no piece of a matrix is defined for the granularity {granularity}"


def piece_shape(granularity: Granularity, height: int = HEIGHT) -> tuple[int, int]:
    """Shape of a piece: ``height`` and `BREADTH`, or the multiples of group or block next below, at least one."""
    rows, columns = granularity.shape if isinstance(granularity, PerBlock) else (1, 1)
    columns = granularity.size if isinstance(granularity, PerGroup) else columns
    return rows * max(height // rows, 1), columns * max(BREADTH // columns, 1)


def table_shape(granularity: Granularity, height: int = HEIGHT) -> tuple[int, int]:
    """The same elements as rows of one block each: how many, how long (``height`` changes that per tensor only)."""
    elements = int(np.prod(piece_shape(granularity, height)))
    match granularity:
        case PerTensor():
            return 1, elements
        case PerGroup(size, _):
            width = size
        case PerBlock(shape):
            width = int(np.prod(shape))
        case _:
            width = BREADTH
    return elements // width, width


def as_matrix(values: Array) -> Array:
    """A tensor as (first axis, all others): a view. A scalar is (1, 1), a vector (1, n)."""
    return values.reshape(1 if values.ndim < 2 else len(values), -1)


def tensor_rows(q: Quantizer, values: Array, dtype: Any, source: str) -> Iterator[Rows]:
    """The blocks of a tensor cast to ``dtype``, a bounded number at a time.

    A block that holds NaN or an infinity has no scale of its own; it gets the one of its finite elements, as given.
    """
    width = table_shape(q.granularity)[1]
    for table, real in _tables(q.granularity, as_matrix(values), np.dtype(dtype), width):
        finite = np.isfinite(table).all(1)
        if finite.any():
            yield Rows(table[finite], real[finite], source)
        if not finite.all():
            odd = table[~finite]
            chosen = _choose(q, np.where(np.isfinite(odd), odd, np.zeros_like(odd)))
            yield Rows(odd, real[~finite], f"{source} (not all finite)", *chosen)


def chosen_parameters(q: Quantizer, rows: Rows) -> tuple[Array, Array | None]:
    """Scale and zero point of each row: those given, or those that the specification chooses.

    In the dtype of scales, and int32 (or that dtype both, with floating-point zero points).
    """
    return (rows.scale, rows.zero_point) if rows.scale is not None else _choose(q, rows.values)


def edge_rows(q: Quantizer, scale: Any, zero_point: Any, dtype: Any, source: str) -> Rows:
    """The knife edges of one scale, in as many rows as they need. The special values stand at the end."""
    return given_rows(q, knife_edges(q, scale, zero_point, dtype), scale, zero_point, f"knife edges of {source}")


def given_rows(q: Quantizer, values: Array, scale: Any, zero_point: Any, source: str, height: int = HEIGHT) -> Rows:
    """A list of values under one scale, in as many rows as they need; the last is filled up with zeros."""
    width = table_shape(q.granularity, height)[1]
    count = -(-len(values) // width)
    table, real = np.zeros((count, width), values.dtype), np.zeros((count, width), np.bool_)
    table.reshape(-1)[: len(values)] = values
    real.reshape(-1)[: len(values)] = True
    wide = np.float64 if values.dtype == np.float64 else np.float32
    kind = np.int32 if q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER else wide
    zero = None if zero_point is None else np.full(count, zero_point, kind)
    return Rows(table, real, source, np.full(count, scale, wide), zero)


def range_rows(q: Quantizer, dtype: Any) -> Rows:
    """Blocks at whose ranges parameters are decided, filled with both ends: as many as a piece holds, and `RANGES`."""
    rows, width = table_shape(q.granularity)
    ends = knife_edge_ranges(q, dtype, max(rows, RANGES))
    real = np.broadcast_to(np.arange(width) < 2, (len(ends), width))
    return Rows(np.tile(ends, -(-width // 2))[:, :width], real, "ranges at which parameters are decided")


def pack(q: Quantizer, parts: Iterable[Rows], height: int = HEIGHT) -> Iterator[Piece]:
    """Pieces of one size from rows of many sources, all with parameters or all without; the last one is filled up."""
    shape = piece_shape(q.granularity, height)
    rows, waiting, held = table_shape(q.granularity, height)[0], list[Rows](), 0
    for part in parts:
        waiting.append(part)
        held += len(part.values)
        while held >= rows:
            taken, waiting = _split(waiting, rows)
            held -= rows
            yield _piece(q, taken, rows, shape)
    if held:
        yield _piece(q, waiting, rows, shape)


def _tables(granularity: Granularity, matrix: Array, dtype: np.dtype[Any], width: int) -> Iterator[tuple[Array, Array]]:
    """Blocks of a matrix as rows of ``width``, and which elements are real; casts chunk by chunk."""
    match granularity:
        case PerTensor():
            yield from _long_rows(matrix.reshape(1, -1), dtype, width)
        case PerGroup(size, _):
            for chunk in _chunks(matrix, 1):
                groups, real = _filled(_cast(chunk, dtype), 1, size)
                yield groups.reshape(-1, size), real.reshape(-1, size)
        case PerBlock((height, breadth)):
            for chunk in _chunks(matrix, height):
                yield _tiles(*_filled(_cast(chunk, dtype), height, breadth), height, breadth)
        case _:
            for chunk in _chunks(matrix, 1):
                yield from _long_rows(chunk, dtype, width)


def _long_rows(matrix: Array, dtype: np.dtype[Any], width: int) -> Iterator[tuple[Array, Array]]:
    """Rows of any length; one that does not fit goes on in others, each with the extremes of the whole in front."""
    rows, length = matrix.shape
    if length <= width:
        yield _filled(_cast(matrix, dtype), 1, width)
        return
    step = width - 2
    low, high = np.zeros((2, rows), dtype)
    for start in range(0, length, CHUNK):
        part = _cast(matrix[:, start : start + CHUNK], dtype)
        part = np.where(np.isfinite(part), part, np.zeros_like(part))
        low, high = np.minimum(low, part.min(1)), np.maximum(high, part.max(1))
    span = step * max(CHUNK // (step * rows), 1)
    for start in range(0, length, span):
        part, real = _filled(_cast(matrix[:, start : start + span], dtype), 1, step)
        count = part.shape[1] // step
        ends = np.broadcast_to(np.stack([low, high], 1)[:, None], (rows, count, 2))
        table = np.concatenate([ends, part.reshape(rows, count, step)], 2)
        marks = np.concatenate([np.zeros(ends.shape, np.bool_), real.reshape(rows, count, step)], 2)
        yield table.reshape(-1, width), marks.reshape(-1, width)


def _chunks(matrix: Array, height: int) -> Iterator[Array]:
    """Consecutive rows, a multiple of ``height`` at a time, about CHUNK elements."""
    rows = height * max(CHUNK // (height * matrix.shape[1]), 1)
    return (matrix[start : start + rows] for start in range(0, len(matrix), rows))


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(values).astype(dtype)


def _filled(matrix: Array, height: int, breadth: int) -> tuple[Array, Array]:
    """The matrix with zeros up to multiples of height and breadth, and where it is itself."""
    shape = tuple(-(-n // m) * m for n, m in zip(matrix.shape, (height, breadth), strict=True))
    out, real = np.zeros(shape, matrix.dtype), np.zeros(shape, np.bool_)
    inside = tuple(map(slice, matrix.shape))
    out[inside], real[inside] = matrix, True
    return out, real


def _tiles(matrix: Array, real: Array, height: int, breadth: int) -> tuple[Array, Array]:
    def tiles(a: Array) -> Array:
        cut = a.reshape(a.shape[0] // height, height, a.shape[1] // breadth, breadth)
        return cut.transpose(0, 2, 1, 3).reshape(-1, height * breadth)

    return tiles(matrix), tiles(real)


def _choose(q: Quantizer, table: Array) -> tuple[Array, Array | None]:
    """Scale and zero point of each row: per token, a row is a block whatever the granularity is."""
    chosen = choose_qparams(q.replace(granularity=PerToken()), table)
    return chosen.scale.reshape(-1), chosen.zero_point.reshape(-1) if q.affine else None


def _arrange(granularity: Granularity, table: Array, shape: tuple[int, int]) -> Array:
    """Rows of a table as a piece whose blocks they are, in the order of the flattened parameters."""
    rows, columns = shape
    if isinstance(granularity, PerBlock):
        height, breadth = granularity.shape
        tiles = table.reshape(rows // height, columns // breadth, height, breadth)
        return tiles.transpose(0, 2, 1, 3).reshape(rows, columns)
    return table.reshape(rows, columns)


def _split(parts: list[Rows], rows: int) -> tuple[list[Rows], list[Rows]]:
    """The first ``rows`` rows, and the others."""
    taken: list[Rows] = []
    for i, part in enumerate(parts):
        if rows < len(part.values):
            return [*taken, _sliced(part, 0, rows)] if rows else taken, [_sliced(part, rows, None), *parts[i + 1 :]]
        taken.append(part)
        rows -= len(part.values)
    return taken, []


def _sliced(part: Rows, start: int, stop: int | None) -> Rows:
    at = slice(start, stop)
    scale = None if part.scale is None else part.scale[at]
    zero = None if part.zero_point is None else part.zero_point[at]
    return Rows(part.values[at], part.real[at], part.source, scale, zero)


def _piece(q: Quantizer, parts: list[Rows], rows: int, shape: tuple[int, int]) -> Piece:
    """Rows as a piece of a shape; missing ones are zeros with the last scale, and do not count."""
    missing = rows - sum(len(part.values) for part in parts)
    fill = ((0, missing), (0, 0))
    table = np.pad(np.concatenate([part.values for part in parts]), fill)
    real = np.pad(np.concatenate([part.real for part in parts]), fill)
    block = np.broadcast_to(np.arange(rows)[:, None], table.shape)
    names = tuple(part.source for part in parts for _ in part.values) + ("filling",) * missing

    def parameter(values: list[Array | None]) -> Array | None:
        known = [value for value in values if value is not None]
        if not known:
            return None
        flat = np.pad(np.concatenate(known), (0, missing), "edge")
        return flat.reshape(qparams_shape(q.granularity, shape))

    scale = parameter([part.scale for part in parts])
    qparams = None if scale is None else QParams(scale, parameter([part.zero_point for part in parts]))
    x, marks, owner = (_arrange(q.granularity, np.ascontiguousarray(a), shape) for a in (table, real, block))
    return Piece(x, marks, owner, names, qparams)
