"""Batch invariance: a row of a batch has the same bits whatever else is in the batch.

A property of any function over batches, in floating point or not. Most floating-point models do not have it: a matrix
product of another size is another kernel, with another order of its sums. Where codes are contracted, no order matters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.choice import check_count
from ..inputs.compare import differences
from ..modes.arrays import to_numpy

Array = NDArray[Any]


@dataclass(frozen=True)
class Invariance:
    """What `batch_invariance` found.

    Attributes:
        compared: rows of batches compared with the row alone; ``differing``: how many of them differ.
        first: the first that differs, None if none does.
    """

    compared: int
    differing: int
    first: "Row | None" = None

    @property
    def holds(self) -> bool:
        """Whether every row had the same bits in every batch."""
        return not self.differing


@dataclass(frozen=True)
class Row:
    """A row that differs.

    Attributes:
        input: its place among the inputs. ``batch``: places of the inputs that were together with it, in order.
        arrangement: how that batch came about.
        element: place in the row; ``alone`` and ``together``: what is there by itself, and in the batch. None where
            rows have other shapes or dtypes, which ``reason`` says.
    """

    input: int
    batch: tuple[int, ...]
    arrangement: str
    element: tuple[int, ...] | None
    alone: Any
    together: Any
    reason: str

    def __str__(self) -> str:
        element = f"element {self.element} is {self.together}, alone {self.alone}"
        what = self.reason if self.element is None else element
        return f"row {self.input}, {self.arrangement}, batch of {len(self.batch)}: {what}"


def batch_invariance(
    run: Callable[[Any], Any], inputs: Any, sizes: Sequence[int] = (2, 3, 7, 16, 256), seed: int = 0
) -> Invariance:
    """Whether ``run`` gives each row the bits that it gives it alone: in batches of any size, in another order, padded.

    For every size: the inputs in order, what is left in a smaller batch; the last batch filled with rows of others;
    the inputs in reverse; and in an order that is drawn. Then all inputs at once.

    Args:
        run: from a batch to an array, or a tuple of arrays, whose first axis is that of the batch; of any library.
        inputs: an array of any library that takes a list of integers for an index, ``(rows, ...)``.
        sizes: of batches, at least 1.
        seed: of the order that is drawn.
    Raises:
        TypeError: inputs that are no array, or a size that is no int. ValueError: no inputs, a size below 1, or results
            of another number of rows, or none.
    """
    if not getattr(inputs, "shape", ()):
        raise TypeError(f"`inputs` must be an array of rows, got {type(inputs).__name__}")
    rows = len(inputs)
    if not rows:
        raise ValueError("`inputs` must have a row, got none")
    for size in sizes:
        check_count("sizes", size, 1)
    alone = [_results(run, inputs, [place])[0] for place in range(rows)]
    compared = differing = 0
    first = None
    for arrangement, batch, kept in _batches(rows, sizes, seed):
        for place, together in zip(batch[:kept], _results(run, inputs, batch), strict=False):
            found = differences(alone[place], together)
            compared += 1
            differing += not found.same
            if first is None and not found.same:
                first = Row(place, tuple(batch), arrangement, found.index, found.expected, found.got, found.reason)
    return Invariance(compared, differing, first)


def _results(run: Callable[[Any], Any], inputs: Any, batch: list[int]) -> list[Any]:
    """What a batch gives, row by row."""
    result = run(inputs[np.asarray(batch)])
    parts = tuple(map(to_numpy, result)) if isinstance(result, tuple) else (to_numpy(result),)
    if not parts:
        raise ValueError("`run` must give an array, or a tuple of arrays, gave none")
    for part in parts:
        if part.ndim == 0 or len(part) != len(batch):
            raise ValueError(f"`run` must give a row for each of {len(batch)} inputs, gave shape {part.shape}")
    return [
        tuple(np.array(part[i]) for part in parts) if len(parts) > 1 else np.array(parts[0][i])
        for i in range(len(batch))
    ]


def _batches(rows: int, sizes: Sequence[int], seed: int) -> Iterator[tuple[str, list[int], int]]:
    """How a batch came about, the places of its inputs, and how many of them are looked at."""
    drawn = np.random.default_rng(seed).permutation(rows).tolist()
    for size in sizes:
        for arrangement, order in (
            ("in order", list(range(rows))),
            ("in reverse", list(range(rows))[::-1]),
            ("in an order that is drawn", drawn),
        ):
            for start in range(0, rows, size):
                yield arrangement, order[start : start + size], size
        last = list(range(rows))[rows - rows % size :] if rows % size else [rows - 1]
        yield "padded", (last + drawn * size)[: max(size, len(last) + 1)], len(last)
    yield "all at once", list(range(rows)), rows
