"""Knife edges of a prototype where it stands: inputs of a tensor between which its result, or its gradient, changes.

A formula may look at the whole tensor: a scale is a statistic of it. So an element is decided by its value and by the
statistics, and those are held while elements are bisected, all at once, each between its value and a smaller one. With
the elements that were moved the statistics may be others; then it is done again with these, until they stay.
"""

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core import primitives, prototypes
from ...core.formula_values import OPERANDS, Run
from ...core.prototype import Prototype
from ..inputs.bits import at_place, place, raw_bits
from .users import complete

Array = NDArray[Any]
STATISTICS = ("absmax", "amax", "amin", "sum", "mean", "percentile")
ROUNDS = 12  # until statistics stay
SHARE = 0.25  # of the elements that are moved: the others hold the statistics
WHICH = ("y", "d x")  # what changes


class Pair(NamedTuple):
    """Two tensors, one just before its edges and one just behind them.

    Attributes:
        moved: bool: elements that stand beside an edge, if the statistics are those with which it was found.
        edges: how many of them have another result, or gradient, in the one tensor than in the other, as they are.
    """

    before: Array
    after: Array
    moved: Array
    edges: int


Given = tuple[Prototype, Mapping[str, Any], Mapping[str, Any], Array]  # options, arrays of parameters, g


def beside_edges(prototype: Prototype, x: Array, which: str = "y", seed: int = 0, **given: Any) -> Pair:
    """A tensor whose elements lie beside edges.

    Args:
        x: where it begins: float32, bfloat16, float16 or float64. What is not finite is not moved.
        which: of `WHICH`: the result, or the gradient of x.
        seed: of the draw which elements are moved, and how far.
        given: static options, and arrays of parameters; others begin at ``x``.
    Raises:
        ValueError: another ``which``; and what the formula raises.
    """
    if which not in WHICH:
        raise ValueError(f"`which` must be one of {', '.join(map(repr, WHICH))}, got {which!r}")
    options, arrays = prototype.split(complete(prototype, x, given))
    random = np.random.default_rng(seed)
    own: Given = (prototype, options, arrays, random.standard_normal(x.shape).astype(x.dtype))
    held = _held(own, which, x)
    with np.errstate(all="ignore"):
        end = (x * random.uniform(-1, 1, x.shape).astype(x.dtype)).astype(x.dtype)
        movable = np.isfinite(x) & (random.random(x.shape) < SHARE) & ~held
    before, after, moved = x, x, np.zeros(x.shape, np.bool_)
    for _ in range(ROUNDS):
        statistics = _statistics(own, which, before)
        before, after, moved = _bisected(lambda v, s=statistics: _answer(own, which, v, s), x, end, movable)  # type: ignore[misc]
        if _same(statistics, _statistics(own, which, before)):
            break
    one, other = (_answer(own, which, v, None) for v in (before, after))
    return Pair(before, after, moved, int((_bits(one) != _bits(other))[moved].sum()))


def found_inputs(prototype: Prototype, x: Array, count: int = 1, **given: Any) -> Iterator[Array]:
    """Tensors with edges of the result and of the gradient of x, ``count`` pairs of each."""
    for which in WHICH:
        for seed in range(count):
            pair = beside_edges(prototype, x, which, seed, **given)
            if pair.moved.any():
                yield from (pair.before, pair.after)


def _bisected(ask: Callable[[Array], Array], x: Array, end: Array, movable: Array) -> tuple[Array, Array, Array]:
    """Neighbours between which the answer changes, each element in its place; and which there are."""
    low, high = place(x), np.where(movable, place(end), place(x))
    first = _bits(ask(x))
    moved = movable & (_bits(ask(at_place(high, x.dtype).reshape(x.shape))) != first)
    high = np.where(moved, high, low)
    while (np.abs(high - low) > 1).any():
        middle = low + np.where(high > low, (high - low) // 2, -((low - high) // 2))
        same = _bits(ask(np.where(moved, at_place(middle, x.dtype), x))) == first
        low, high = np.where(same, middle, low), np.where(same, high, middle)
        low, high = np.where(moved, low, place(x)), np.where(moved, high, place(x))
    before, after = (np.where(moved, at_place(v, x.dtype), x) for v in (low, high))
    return before, after, moved


def _answer(own: Given, which: str, x: Array, statistics: list[tuple[Array, Array]] | None) -> Array:
    """The result, or the gradient of x, with statistics that are given."""
    held = None if statistics is None else iter(statistics)
    return _run(own, which, x, lambda name: _statistic(name) if held is None else lambda *_, **__: next(held)[1])


def _statistics(own: Given, which: str, x: Array) -> list[tuple[Array, Array]]:
    """Of every statistic that is taken, in their order, the array and the result."""
    found: list[tuple[Array, Array]] = []

    def noting(name: str) -> Callable[..., Array]:
        def function(array: Array, *rest: Any, **options: Any) -> Array:
            found.append((array, _statistic(name)(array, *rest, **options)))
            return found[-1][1]

        return function

    _run(own, which, x, noting)
    return found


def _statistic(name: str) -> Callable[..., Array]:
    found: Callable[..., Array] = getattr(primitives, name)
    return found


def _run(own: Given, which: str, x: Array, statistic: Callable[[str], Callable[..., Array]]) -> Array:
    prototype, options, arrays, g = own
    every = {name: getattr(primitives, name) for name in (*OPERANDS, "random_bits")}
    taken = {name: statistic(name) for name in STATISTICS}
    room = prototypes.ROOM._replace(primitives=SimpleNamespace(**every | taken))
    if which == "y":
        return np.asarray(prototype.run(Run(room), x, arrays, options)[0]._array)
    return np.asarray(prototype.pull(Run(room, keeps_steps=True), x, arrays, options, g)["x"])


def _held(own: Given, which: str, x: Array) -> Array:
    """Elements at which an extreme is taken: without them the statistic is another."""
    found = np.zeros(x.size, np.bool_)
    for array, result in _statistics(own, which, x):
        if array.size == x.size:
            found |= np.isin(np.abs(array.reshape(-1)), np.abs(result.reshape(-1)))
    return found.reshape(x.shape)


def _same(one: list[tuple[Array, Array]], other: list[tuple[Array, Array]]) -> bool:
    return all(np.array_equal(_bits(a), _bits(b)) for (_, a), (_, b) in zip(one, other, strict=True))


def _bits(values: Array) -> Array:
    """Bit patterns; one for every NaN."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        return raw_bits(np.where(np.isnan(values), np.asarray(np.nan, values.dtype), values))
