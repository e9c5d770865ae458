"""A program as a list of operations: what a jaxpr and a graph of torch's functions have in common.

Operations that a compiler rewrites have one name here, whichever framework they come from (`KNOWN`); all others are
evaluated by their framework, one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Computed by `strict` from their definition; everything else by the framework it comes from.
KNOWN = ("add", "sub", "mul", "div", "neg", "abs", "round", "floor", "max", "min", "clamp", "convert")


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        name: one of `KNOWN`, or what the framework calls it.
        operands: places of the operands: of the arguments of the program first, then of the operations in their order.
        dtype: of the result.
        text: as it is shown.
        native: the operation by its framework, eagerly, over NumPy arrays.
    """

    name: str
    operands: tuple[int, ...]
    dtype: np.dtype[Any]
    text: str
    native: Callable[..., Array]


@dataclass(frozen=True)
class Graph:
    """A program: ``inputs`` and then ``operations`` are numbered through; ``outputs`` are places.

    ``inputs`` holds None for each argument, and the array for each constant of the program.
    """

    inputs: tuple[Array | None, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[int, ...]

    def place(self, index: int) -> int:
        """The place of the operation with this index."""
        return len(self.inputs) + index

    def users(self, place: int) -> tuple[int, ...]:
        """Indexes of the operations that take what stands at a place."""
        return tuple(i for i, operation in enumerate(self.operations) if place in operation.operands)


class Builder:
    """Collects operations while a framework's own graph is walked."""

    def __init__(self) -> None:
        self.inputs: list[Array | None] = []
        self.pending: list[tuple[str, tuple[Any, ...], np.dtype[Any], str, Callable[..., Array]]] = []

    def input(self, value: Array | None) -> "Place":
        """An argument (None), or a constant."""
        self.inputs.append(value)
        return Place(True, len(self.inputs) - 1)

    def add(
        self, name: str, operands: Sequence["Place"], dtype: np.dtype[Any], text: str, native: Callable[..., Array]
    ) -> "Place":
        """An operation."""
        self.pending.append((name, tuple(operands), dtype, text, native))
        return Place(False, len(self.pending) - 1)

    def graph(self, outputs: Sequence["Place"]) -> Graph:
        """The graph, once everything is there."""
        count = len(self.inputs)

        def number(place: "Place") -> int:
            return place.index if place.is_input else count + place.index

        made = tuple(
            Operation(name, tuple(map(number, operands)), dtype, text, native)
            for name, operands, dtype, text, native in self.pending
        )
        return Graph(tuple(self.inputs), made, tuple(map(number, outputs)))


@dataclass(frozen=True)
class Place:
    """Where a value stands while the graph is built."""

    is_input: bool
    index: int
