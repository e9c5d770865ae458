"""Knife edges of anything: where the answers of a function change, found by asking it; nothing else is known of it.

`found_edges` asks a grid over all numbers of a dtype, then bisects between inputs whose answers differ, until they are
neighbours: for all edges and all parameters at once. `found_differences` asks two functions, which need not be step
functions, and finds where they part.

What `found_edges` promises, the function being elementwise and deterministic:

- Every edge it gives is one: two neighbouring numbers, both asked, with different answers.
- Of a function that never returns to an answer it has left (any monotone one: quantizers, casts, rounding) it gives all
  edges, however narrow the plateaus between them.
- Of any other it gives all edges between two plateaus of at least ``spacing`` numbers each; so all edges there are, if
  every plateau is that wide. It also sees a plateau between two of another answer if that is at least as wide as it is
  far from an edge that was found, or holds a power of two, a neighbour of one, a special value or one of ``start``.
- With ``spacing=1``, the default for 16 bits, everything was asked.

A narrower plateau that the function enters and leaves, such as one wrong number among right ones, may be missed: a
number alone among 2**32 is found by nothing but asking it, which ``spacing=1`` does, in a range given by ``between``.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .bisection import (
    CONVERTERS,
    Function,
    Intervals,
    Questions,
    TooManyIntervals,
    around,
    bisected,
    from_grid,
    line_of,
    once,
    without,
)
from .bits import at_place, is_float, neighbours, place, stored_bits
from .knife_edges import NEIGHBOURS, special_values

Array = NDArray[Any]
PER_BINADE = 128  # inputs of the grid from a power of two to the next
MOST = 2**20  # edges, more than any quantizer of 16 bits has for a few scales
DENSE = 32
NARROW = ("bfloat16", "float16")


class Edges(NamedTuple):
    """Where answers change: M edges, by row and then ascending.

    Attributes:
        before, after: (M,), of the dtype: the last input with one answer and the first with another, neighbours.
        row: (M,), int64: which of the parameters.
        asked: inputs that were asked, those that fill up a call not counted; ``calls``: of the function.
    """

    before: Array
    after: Array
    row: Array
    asked: int
    calls: int

    def knife_edges(self, row: int = 0) -> Array:
        """What `knife_edges.knife_edges` gives of a quantizer: `NEIGHBOURS` numbers on either side; special values."""
        which = self.row == row
        near = [neighbours(side[which], NEIGHBOURS - 1) for side in (self.before, self.after)]
        return np.concatenate([neighbours(np.concatenate(near), 0), special_values(self.before.dtype)])


class Parting(NamedTuple):
    """Where two functions part.

    Attributes:
        x, row: (N,): the inputs asked at which they differ, by row and then ascending, NaN last.
        edges: where differing begins or ends.
        asked: inputs that both were asked.
    """

    x: Array
    row: Array
    edges: Edges
    asked: int


class TooManyEdges(ValueError):
    """More edges than are looked for; ``edges``: inputs between which some of them are, no neighbours yet."""

    def __init__(self, most: int, edges: Edges) -> None:
        super().__init__(
            f"`function` has more than {most:,} edges (`most`), so it seems to be no step function; "
            "`found_differences` compares two functions of any kind"
        )
        self.edges = edges


def found_edges(
    function: Function,
    dtype: DTypeLike,
    *parameters: Any,
    spacing: int | None = None,
    between: tuple[Any, Any] | None = None,
    start: Any = None,
    width: int | None = None,
    library: str = "numpy",
    most: int = MOST,
) -> Edges:
    """Where the answers of an elementwise function change, for all of its parameters at once; see the module.

    Args:
        function: ``(x, *parameters)``, all of them 1-d arrays of one length, an element of the parameters for each of
            x. It returns an array of that length, or a tuple of several, of which any may change: floats compared bit
            for bit (any NaN the same), integers, booleans.
        dtype: of x: float32, float64, bfloat16 or float16.
        parameters: 1-d arrays of one length, such as scales and zero points; row i of the result is for element i of
            each. None for a function of x alone, which has row 0.
        spacing: numbers of the dtype from one input of the grid to the next; None for `PER_BINADE` inputs from a power
            of two to the next, and for 16 bits 1.
        between: the first and last input to ask; None for the infinities.
        start: inputs to begin with besides the grid and the powers of two: 1-d, or one row for each of the parameters.
        width: every call has exactly so many elements, so that a compiled function is compiled once; None for as many
            as there are, up to 2**20.
        library: whose arrays the function takes: "numpy", "torch" or "jax".
        most: edges of all rows together.
    Raises:
        TooManyEdges: there are more than ``most``.
        TypeError: a dtype that is none of floats; an answer that is no array of numbers.
        ValueError: any other argument that is not as said; an answer of another shape than x.
    """
    if most < 1:
        raise ValueError(f"`most` must be positive, got {most}")
    ask, rows = _questions(function, dtype, parameters, width, library)
    line, step = line_of(ask.dtype, between), _spacing(ask.dtype, spacing)
    starts = np.concatenate([_powers(ask.dtype, rows, 1), _given(ask.dtype, rows, start)], axis=1)
    try:
        found = new = from_grid(ask, rows, line, step, starts, most)
        while len(new.low):  # as long as the neighbourhood of edges shows others
            more = found.and_(bisected(ask, around(ask, found, new, line, step), most))
            found, new = more, without(more, found)
            if len(found.low) > most:
                raise TooManyIntervals(found)
    except TooManyIntervals as stopped:
        raise TooManyEdges(most, _edges(ask, stopped.intervals)) from None
    return _edges(ask, found)


def found_differences(
    f: Function,
    g: Function,
    dtype: DTypeLike,
    *parameters: Any,
    spacing: int | None = None,
    start: Any = None,
    width: int | None = None,
    library: str = "numpy",
) -> Parting:
    """Where two elementwise functions part, continuous ones too: the inputs asked at which they differ.

    Of continuous functions every number is an edge, so nothing can be bisected but whether the two differ. Asked are
    the grid of `found_edges`; the `DENSE` numbers on either side of every power of two; special values, NaN among them;
    the midpoints of neighbouring bfloat16 and of float16 numbers, where narrowing is decided, with their neighbours;
    and the edges of either function, with neighbours, if it is a step function. From these on, the places where
    differing begins and ends are bisected.

    A difference that holds between two of these inputs only may be missed: for 16 bits everything is asked, for other
    dtypes nothing is promised but what was asked.

    Args:
        f, g: as ``function`` of `found_edges`, as are ``dtype``, ``parameters``, ``spacing``, ``start``, ``width`` and
            ``library``.
    Raises:
        TypeError, ValueError: as `found_edges`; answers of f and g that are of different dtypes.
    """
    (one, rows), (other, _) = (_questions(function, dtype, parameters, width, library) for function in (f, g))
    kind, step = one.dtype, _spacing(one.dtype, spacing)
    starts = [_powers(kind, rows, DENSE), _given(kind, rows, start)]
    if step > 1:
        starts += [_narrowing(kind, rows)]
        starts += [_own(function, dtype, parameters, rows, step, width, library) for function in (f, g)]
    seen: list[tuple[Array, Array]] = []

    def differ(places: Array, row: Array) -> Array:
        answers = one(places, row), other(places, row)
        if one.kinds != other.kinds:
            raise ValueError(f"`f` and `g` must return the same dtypes, got {one.kinds} and {other.kinds}")
        apart = (answers[0] != answers[1]).any(1)
        seen.append((row[apart], places[apart]))
        return np.asarray(apart[:, None], np.uint64)

    found = from_grid(differ, rows, line_of(kind, None), step, np.concatenate(starts, axis=1), 2**62)
    row, places = once(*(np.concatenate(part) for part in zip(*seen, strict=True)))
    nan = np.full(rows, np.nan, kind), np.arange(rows)
    unlike = (one.of_numbers(*nan) != other.of_numbers(*nan)).any(1)
    x = np.concatenate([at_place(places, kind), nan[0][unlike]])
    row = np.concatenate([row, nan[1][unlike]])
    order = np.argsort(row, kind="stable")
    return Parting(x[order], row[order], _edges(one, found), one.asked)


def _questions(
    function: Function, dtype: DTypeLike, parameters: tuple[Any, ...], width: int | None, library: str
) -> tuple[Questions, int]:
    """The function as it is asked, and how many rows of parameters there are."""
    kind = np.dtype(dtype)
    if not is_float(kind) or kind.itemsize > 8:
        raise TypeError(f"`dtype` must be float32, float64, bfloat16 or float16, got {kind}")
    arrays = [np.asarray(parameter) for parameter in parameters]
    lengths = {array.shape for array in arrays} or {(1,)}
    if len(lengths) > 1 or any(len(shape) != 1 or shape == (0,) for shape in lengths):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"`parameters` must be 1-d arrays of one length, at least 1, got shapes {shapes}")
    if width is not None and width < 1:
        raise ValueError(f"`width` must be positive, got {width}")
    if library not in CONVERTERS:
        raise ValueError(f"`library` must be one of {', '.join(CONVERTERS)}, got {library!r}")
    return Questions(function, kind, arrays, width, library), lengths.pop()[0]


def _spacing(dtype: np.dtype[Any], spacing: int | None) -> int:
    if spacing is None:
        return 1 if dtype.itemsize == 2 else max(1, 2 ** stored_bits(dtype) // PER_BINADE)
    most = 2 ** stored_bits(dtype)
    if not 1 <= spacing <= most:
        raise ValueError(f"`spacing` must be in 1..{most} for {dtype}, got {spacing}")
    return spacing


def _given(dtype: np.dtype[Any], rows: int, start: Any) -> Array:
    """Places of the inputs to begin with, (rows, n)."""
    x = np.asarray([] if start is None else start).astype(dtype)
    table = x if x.ndim == 2 else x.reshape(1, -1)
    if table.shape[0] not in (1, rows) or x.ndim > 2 or np.isnan(table).any():
        raise ValueError(f"`start` must be numbers, 1-d or of shape ({rows}, n), got shape {x.shape}, or NaN in it")
    return np.broadcast_to(place(table), (rows, table.shape[1]))


def _powers(dtype: np.dtype[Any], rows: int, distance: int) -> Array:
    """Places of all powers of two, of either sign, with neighbours so far away, and of special values: (rows, n)."""
    bits, top = stored_bits(dtype), int(place(np.asarray(np.inf, dtype)))
    powers = np.concatenate([2 ** np.arange(bits), np.arange(2**bits, top, 2**bits)])
    special = special_values(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        special = special[~np.isnan(special)]
    near = np.concatenate([np.add.outer(powers, np.arange(-distance, distance + 1)).reshape(-1), place(special)])
    near = np.unique(near[(near >= 0) & (near <= top)])
    return np.broadcast_to(np.concatenate([~near, near]), (rows, 2 * len(near)))


def _narrowing(dtype: np.dtype[Any], rows: int) -> Array:
    """Places of the midpoints of neighbouring numbers of 16 bits, of either sign, with neighbours: (rows, n)."""
    found = []
    for name in NARROW:
        numbers = at_place(np.arange(int(place(np.asarray(np.inf, name)))), name).astype(dtype)
        middle = place(numbers[1:] / 2 + numbers[:-1] / 2)
        found.append(np.add.outer(middle, [-1, 0, 1]).reshape(-1))
    places = np.unique(np.concatenate(found))
    return np.broadcast_to(np.concatenate([~places, places]), (rows, 2 * len(places)))


def _own(
    function: Function, dtype: DTypeLike, parameters: tuple[Any, ...], rows: int, step: int, width: int | None, lib: str
) -> Array:
    """Places of the edges of a function with neighbours, (rows, n); none where it is no step function."""
    try:
        found = found_edges(function, dtype, *parameters, spacing=step, width=width, library=lib, most=MOST // 4)
    except TooManyEdges:
        return np.zeros((rows, 0), np.int64)
    counts = np.bincount(found.row, minlength=rows)
    column = np.arange(len(found.row)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.zeros((rows, counts.max()), np.int64)
    table[found.row, column] = place(found.before)
    offsets = np.arange(1 - NEIGHBOURS, NEIGHBOURS + 1)
    return np.add.outer(table, offsets).reshape(rows, -1)


def _edges(ask: Questions, found: Intervals) -> Edges:
    return Edges(at_place(found.low, ask.dtype), at_place(found.high, ask.dtype), found.row, ask.asked, ask.calls)
