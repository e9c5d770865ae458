"""The edges that a function has of itself, asked beside those that the quantizer has: where it is wrong between these.

Knife edges show every difference between two functions that never go back to a value they have left. A function that
does, by an overflow, a branch or a wrong entry of a table, may differ between two of them. Its own edges are found by
bisection, from the knife edges and a grid.
"""

from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.blocks import expand_blocks
from ...core.descriptions import QParams, Quantizer
from ..inputs.bits import place, stored_bits
from ..inputs.found_edges import Edges, TooManyEdges, found_edges
from .calls import once

Array = NDArray[Any]
PER_BINADE = 8  # inputs of the grid from a power of two to the next
MORE = 2**12  # edges that a function may have beyond those inputs that the quantizer has


def own_edges(
    q: Quantizer, function: Callable[..., Any], library: str, x: Array, qparams: QParams, spacing: int | None
) -> Iterator[Array]:
    """Arrays of the shape of ``x`` that hold, in the blocks of every scale, the edges that are not in ``x``.

    None where all of them are. Every call of the function has this shape and these parameters, so that what is compiled
    is compiled once. What the function raises, or returns of another shape, is no matter here: the array that shows it
    is given, and asked again by who judges.

    Args:
        x: knife edges; ``qparams``: their parameters.
        spacing: of the grid, as in `found_edges`; None for `PER_BINADE` inputs from a power of two to the next.
    """
    table = _Table(q, function, library, x, qparams)
    step = max(1, 2 ** stored_bits(x.dtype) // PER_BINADE) if spacing is None else spacing
    try:
        found = found_edges(
            table, x.dtype, np.arange(len(table.slots)), spacing=step, start=table.start(), most=x.size + MORE
        )
    except TooManyEdges as many:
        yield from table.arrays(*_first(many.edges, table.slots))
    except (Exception, SystemExit):  # whatever a function raises
        yield table.last
    else:
        yield from table.arrays(np.concatenate([found.before, found.after]), np.tile(found.row, 2))


def _first(edges: Edges, slots: list[Array]) -> tuple[Array, Array]:
    """Of more edges than can be asked, as many of every row as fit an array."""
    kept = [np.flatnonzero(edges.row == row)[: len(slots[row]) // 2] for row in range(len(slots))]
    which = np.concatenate(kept)
    return np.concatenate([edges.before[which], edges.after[which]]), np.tile(edges.row[which], 2)


class _Table:
    """A function of ``x`` and the number of a pair of parameters, asked in arrays of one shape.

    Attributes:
        slots: for each pair of parameters the places of the array whose blocks have it.
        last: the array that was asked last.
    """

    def __init__(self, q: Quantizer, function: Callable[..., Any], library: str, x: Array, qparams: QParams) -> None:
        self.function, self.library, self.x, self.last = function, library, x, x
        self.scale = np.asarray(qparams.scale)
        self.zero = None if qparams.zero_point is None else np.asarray(qparams.zero_point)
        given = (self.scale,) if self.zero is None else (self.scale, self.zero)
        pairs = np.stack([parameter.reshape(-1).astype(np.float64) for parameter in given], 1)
        owner = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(self.scale.shape)
        of_element = np.broadcast_to(expand_blocks(owner, q.granularity, x.shape), x.shape).reshape(-1)
        self.slots = [np.flatnonzero(of_element == row) for row in range(owner.max() + 1)]

    def __call__(self, x: Array, row: Array) -> Array:
        """Answers of the function, elementwise."""
        answers = None
        for array, which, slots in self._filled(x, row):
            self.last = array
            with redirect_stdout(StringIO()):
                result, _ = once(self.function, self.library, (array, self.scale, self.zero))
            if result is None or result.shape != array.shape:
                raise ValueError("no array, or of another shape")
            answers = np.empty(len(x), result.dtype) if answers is None else answers
            answers[which] = result.reshape(-1)[slots]
        return np.zeros(0) if answers is None else answers

    def start(self) -> Array:
        """The knife edges of every pair of parameters, a row for each, without NaN."""
        with np.errstate(invalid="ignore"):  # signalling NaN
            flat = np.where(np.isnan(self.x), np.zeros_like(self.x), self.x).reshape(-1)
        width = max(map(len, self.slots))
        return np.stack([np.resize(flat[slots], width) for slots in self.slots])

    def arrays(self, x: Array, row: Array) -> Iterator[Array]:
        """Arrays that hold those inputs that the knife edges have not."""
        fresh = np.ones(len(x), np.bool_)
        for i, slots in enumerate(self.slots):
            own = row == i
            fresh[own] = ~np.isin(place(x[own]), place(self.x.reshape(-1)[slots]))
        for array, _, _ in self._filled(x[fresh], row[fresh]):
            yield array

    def _filled(self, x: Array, row: Array) -> Iterator[tuple[Array, Array, Array]]:
        """Arrays that hold inputs in blocks of their parameters, which of them, and at which places."""
        waiting = [np.flatnonzero(row == i) for i in range(len(self.slots))]
        turn = 0
        while any(len(w) > turn * len(s) for w, s in zip(waiting, self.slots, strict=True)):
            which = [w[turn * len(s) : (turn + 1) * len(s)] for w, s in zip(waiting, self.slots, strict=True)]
            slots = np.concatenate([s[: len(w)] for w, s in zip(which, self.slots, strict=True)])
            inputs = np.concatenate(which)
            array = self.x.copy()
            array.reshape(-1)[slots] = x[inputs]
            yield array, inputs, slots
            turn += 1
