"""Bisection along the line of all numbers of a dtype, between inputs whose answers differ: the engine of `found_edges`.

Numbers are places on that line (`bits.place`), neighbours one apart; an answer is a row of bit patterns. Everything is
done to all intervals, and all rows of parameters, at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..modes.arrays import to_jax, to_numpy, to_torch
from ..modes.programs import jax_types
from .bits import at_place, is_float, place, raw_bits

Array = NDArray[Any]
Function = Callable[..., Any]  # (x, *parameters), 1-d arrays of one length, to an array of it or a tuple of such
Ask = Callable[[Array, Array], Array]  # from places and rows, (n,) each, to answers (n, parts)
AT_ONCE = 2**20  # elements of a call, unless a width is given
CONVERTERS: dict[str, Callable[[Array], Any]] = {"numpy": np.asarray, "torch": to_torch, "jax": to_jax}


class Intervals(NamedTuple):
    """Places between which there is at least one edge: both ends, their answers (n, parts), and the row."""

    low: Array
    high: Array
    first: Array
    last: Array
    row: Array

    def at(self, which: Array) -> "Intervals":
        """Some of them."""
        return Intervals(*(part[which] for part in self))

    def and_(self, other: "Intervals") -> "Intervals":
        """These and others, by row and then ascending, each once."""
        both = Intervals(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))
        order = np.lexsort((both.low, both.row))
        row, low = both.row[order], both.low[order]
        return both.at(order[np.append(True, (row[1:] != row[:-1]) | (low[1:] != low[:-1]))[: len(order)]])


class TooManyIntervals(ValueError):
    """More than are looked for; ``intervals``: those that are open."""

    def __init__(self, intervals: Intervals) -> None:
        super().__init__(f"{len(intervals.low):,} intervals")
        self.intervals = intervals


class Questions:
    """A function, asked at places of a dtype; counts how often.

    Attributes:
        asked: inputs, those that fill up a call not counted; calls: of the function.
        kinds: dtypes of the parts of an answer; () before the first.
    """

    def __init__(
        self, function: Function, dtype: np.dtype[Any], parameters: Sequence[Array], width: int | None, library: str
    ) -> None:
        self.function, self.dtype, self.parameters = function, dtype, parameters
        self.width, self.convert = width, CONVERTERS[library]
        self.wide = library == "jax" and any(array.dtype.itemsize == 8 for array in (np.empty(0, dtype), *parameters))
        self.asked = self.calls = 0
        self.kinds: tuple[np.dtype[Any], ...] = ()

    def __call__(self, places: Array, row: Array) -> Array:
        """Answers at places, each with the parameters of a row."""
        return self.of_numbers(at_place(places, self.dtype), row)

    def of_numbers(self, x: Array, row: Array) -> Array:
        """Answers to numbers, NaN included."""
        step = self.width or AT_ONCE
        pieces = [self._call(x[i : i + step], row[i : i + step]) for i in range(0, len(x), step)]
        self.asked += len(x)
        return np.concatenate(pieces)

    def _call(self, x: Array, row: Array) -> Array:
        count = len(x)
        if self.width is not None and count < self.width:
            x, row = np.resize(x, self.width), np.resize(row, self.width)
        self.calls += 1
        with np.errstate(all="ignore"), jax_types(wide=True) if self.wide else nullcontext():
            found = self.function(self.convert(x), *(self.convert(parameter[row]) for parameter in self.parameters))
            parts = [to_numpy(part) for part in (found if isinstance(found, tuple) else (found,))]
        for part in parts:
            if part.dtype.kind not in "iub" and not is_float(part.dtype):
                raise TypeError(f"`function` must return numbers, got an array of {part.dtype}")
            if part.shape != x.shape:
                raise ValueError(f"`function` must return arrays of the shape of x, {x.shape}, got {part.shape}")
        kinds = tuple(part.dtype for part in parts)
        if kinds != (self.kinds or kinds):
            raise ValueError(f"`function` must return the same dtypes every time, got {self.kinds}, then {kinds}")
        self.kinds = kinds
        return np.stack([_bits(part[:count]) for part in parts], axis=1)


def from_grid(ask: Ask, rows: int, line: tuple[int, int], spacing: int, starts: Array, most: int) -> Intervals:
    """Edges between places of a grid and further ones, of all rows; by row and then ascending.

    Args:
        line: first and last place, which are asked as well.
        starts: (rows, n), any order; those outside the line are not asked.
    Raises:
        TooManyIntervals: there are more than ``most`` edges.
    """
    found: Intervals | None = None
    for grid in _grid(line, spacing, max(2, AT_ONCE // rows)):
        table = np.concatenate([np.broadcast_to(grid, (rows, len(grid))), np.clip(starts, grid[0], grid[-1])], axis=1)
        row, places = once(np.repeat(np.arange(rows), table.shape[1]), table.reshape(-1))
        edges = bisected(ask, between(places, row, ask(places, row)), most)
        found = edges if found is None else found.and_(edges)
        if len(found.low) > most:
            raise TooManyIntervals(found)
    return found  # type: ignore[return-value]  # a grid has at least one piece


def bisected(ask: Ask, intervals: Intervals, most: int) -> Intervals:
    """All edges that halving shows: of intervals whose ends are neighbours; by row and then ascending.

    An interval whose ends have one answer is given up: it holds no edge, or the function returns to that answer.

    Raises:
        TooManyIntervals: more than ``most`` at a time.
    """
    done = intervals.at(intervals.high - intervals.low == 1)
    while True:
        intervals = intervals.at(intervals.high - intervals.low > 1)
        if not len(intervals.low):
            return done
        low, high, first, last, row = intervals
        middle = low + (high - low) // 2
        answer = ask(middle, row)
        halves = zip((low, middle, first, answer, row), (middle, high, answer, last, row), strict=True)
        both = Intervals(*(np.concatenate(pair) for pair in halves))
        intervals = both.at((both.first != both.last).any(1))
        done = done.and_(intervals.at(intervals.high - intervals.low == 1))
        if len(done.low) + len(intervals.low) > most:
            raise TooManyIntervals(intervals)


def around(ask: Ask, found: Intervals, new: Intervals, line: tuple[int, int], spacing: int) -> Intervals:
    """Intervals that show when the neighbourhood of new edges is asked: 1, 2, 4, ... places away, up to ``spacing``.

    As far as the next edge on either side, or the end of the line.
    """
    if spacing == 1 or not len(new.low):
        return found.at(np.zeros(len(found.low), np.bool_))
    at, (first, last) = _where(found, new), line
    lowest = np.where(np.append(-1, found.row[:-1])[at] == new.row, np.append(first, found.high[:-1])[at], first)
    highest = np.where(np.append(found.row[1:], -1)[at] == new.row, np.append(found.low[1:], last)[at], last)
    far = 2 ** np.arange((spacing - 1).bit_length() + 1)
    low, high, row = new.low[:, None], new.high[:, None], np.repeat(new.row[:, None], len(far), axis=1)
    below, above = np.maximum(low, first + far) - far, np.minimum(high, last - far) + far  # nothing overflows
    kept = (below > lowest[:, None]), (above < highest[:, None])
    places = np.concatenate([below[kept[0]], above[kept[1]]])
    row = np.concatenate([row[kept[0]], row[kept[1]]])
    if not len(places):
        return found.at(np.zeros(len(found.low), np.bool_))
    answers = ask(places, row)
    places = np.concatenate([places, found.low, found.high])
    row = np.concatenate([row, found.row, found.row])
    answers = np.concatenate([answers, found.first, found.last])
    order = np.lexsort((places, row))
    return between(places[order], row[order], answers[order])


def between(places: Array, row: Array, answers: Array) -> Intervals:
    """Intervals of consecutive places of a row, ascending, whose answers differ."""
    which = np.flatnonzero((row[1:] == row[:-1]) & (answers[1:] != answers[:-1]).any(1))
    return Intervals(places[which], places[which + 1], answers[which], answers[which + 1], row[which])


def without(found: Intervals, known: Intervals) -> Intervals:
    """Those of ``found`` that are not known; both sorted, all known ones among the found."""
    fresh = np.ones(len(found.low), np.bool_)
    fresh[_where(found, known)] = False
    return found.at(fresh)


def _where(found: Intervals, some: Intervals) -> Array:
    """The index in ``found`` of each of ``some``, which are among them; both sorted by row and place."""
    row, low = np.concatenate([found.row, some.row]), np.concatenate([found.low, some.low])
    order = np.lexsort((np.arange(len(row)) >= len(found.row), low, row))
    own = order < len(found.row)
    return np.asarray((np.cumsum(own) - 1)[~own])


def _grid(line: tuple[int, int], spacing: int, at_once: int) -> Iterator[Array]:
    """Multiples of ``spacing`` on the line and its ends, ascending, in pieces that share their ends."""
    first, last = line[0] // spacing + 1, -(-line[1] // spacing)
    lower = line[0]
    for i in range(first, max(last, first + 1), at_once):
        end = min(i + at_once, last)
        inner = np.arange(i, end, dtype=np.int64) * spacing
        upper = line[1] if end == last or not len(inner) else int(inner[-1])
        yield np.unique(np.concatenate([[lower], inner, [upper]]).astype(np.int64))
        lower = upper


def once(row: Array, places: Array) -> tuple[Array, Array]:
    """Rows and places, by row and then ascending, each pair once."""
    order = np.lexsort((places, row))
    row, places = row[order], places[order]
    fresh = np.append(True, (row[1:] != row[:-1]) | (places[1:] != places[:-1]))[: len(row)]
    return row[fresh], places[fresh]


def _bits(values: Array) -> Array:
    """Bit patterns, uint64; one for every NaN."""
    bits = raw_bits(values)
    if is_float(values.dtype):
        with np.errstate(invalid="ignore"):  # signalling NaN
            bits = np.where(np.isnan(values), raw_bits(np.asarray(np.nan, values.dtype)), bits)
    return bits.astype(np.uint64)


def line_of(dtype: np.dtype[Any], ends: tuple[Any, Any] | None) -> tuple[int, int]:
    """First and last place of a dtype, or of a range.

    Raises:
        ValueError: ends that are not two numbers of the dtype, ascending.
    """
    with np.errstate(over="ignore"):
        numbers = np.asarray((-np.inf, np.inf) if ends is None else ends).astype(dtype)
    if numbers.shape != (2,) or np.isnan(numbers).any():
        raise ValueError(f"`between` must be two numbers, got {ends!r}")
    first, last = (int(i) for i in place(numbers))
    if first >= last:
        raise ValueError(f"`between` must be two different numbers of {dtype}, ascending, got {ends!r}")
    return first, last
