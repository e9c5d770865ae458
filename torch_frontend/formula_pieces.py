"""Elementwise formulas piece by piece, in eager mode: what one operation writes is in cache when the next reads it.

A first piece shows which primitives are called with what. If every element is made of those at its place, these calls
are made for each piece, without those on which the result does not depend, and in the place of operands that nothing
needs any more.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.formula_values import OPERANDS, Room, Run
from . import primitives
from .arrays import CHUNK, is_concrete
from .primitives.arithmetic import limits_of
from .primitives.operands import is_number, number

REDUCTIONS = {"absmax", "amax", "amin", "sum", "mean", "percentile", "take", "broadcast_to"}
ELEMENTWISE = (OPERANDS.keys() - REDUCTIONS) | {"logical_or"}
SAME = ("straight_through", "stop_gradient")  # whose result is the first operand
OPERATORS: dict[str, Callable[..., Tensor]] = {  # what these primitives are in eager mode
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.true_divide,
    "round": torch.round,
    "negative": torch.neg,
    "absolute": torch.abs,
    "where": torch.where,
    "clamp": torch.clamp,
}
COMPARISONS: dict[str, Callable[..., Tensor]] = {
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "logical_or": torch.logical_or,
}


class Place(NamedTuple):
    """Which array: arguments come first, then results of calls."""

    number: int


class Call(NamedTuple):
    """A call of a primitive: arguments are places of arrays, tensors of numbers, or as they are."""

    name: str
    given: tuple[Any, ...]
    options: dict[str, Any]
    result: int
    dtype: torch.dtype | None  # of its operands; None of truth values
    operator: Callable[..., Tensor] | None = None


class Recorder:
    """The primitives, which writes down how they are called."""

    def __init__(self, arguments: Sequence[Tensor], shape: torch.Size) -> None:
        self.arrays, self.shape = list(arguments), shape  # kept, so that no other has their ids
        self.places = {id(t): i for i, t in enumerate(arguments)}
        self.calls: list[Call] = []
        self.elementwise = True

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        function = torch.logical_or if name == "logical_or" else getattr(primitives, name)

        def called(*given: Any, **options: Any) -> Tensor:
            result: Tensor = function(*given, **options)
            tensors = [v for v in (*given, *options.values()) if isinstance(v, Tensor)]
            fits = result.shape == self.shape or result.numel() == 1
            self.elementwise &= name in ELEMENTWISE and fits and all(id(t) in self.places for t in tensors)
            kept = {key: self._place(v) for key, v in options.items()}
            dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)
            self.calls.append(Call(name, tuple(map(self._place, given)), kept, len(self.arrays), dtype))
            self.places.setdefault(id(result), len(self.arrays))
            self.arrays.append(result)
            return result

        return called

    def _place(self, value: Any) -> Any:
        return Place(self.places.get(id(value), -1)) if isinstance(value, Tensor) else value


def by_pieces(
    compute: Callable[[Room, Sequence[Any]], tuple[Run, Tensor]], room: Room, arrays: Sequence[Tensor], others: Any
) -> Tensor | None:
    """What ``compute`` makes of arrays, in their shape; None where they are few elements, or it is not elementwise.

    Args:
        compute: of a room, and of pieces of the arrays and the others; the run, and the result.
        arrays: of one shape and dtype.
        others: what it computes with besides.
    """
    first = arrays[0]
    tensors = [*arrays, *others]
    if first.numel() < 2 * CHUNK or not all(isinstance(t, Tensor) for t in tensors) or not is_concrete(*tensors):
        return None
    if any(t.numel() != 1 for t in others) or not all(t.is_cpu and t.is_contiguous() for t in arrays):
        return None
    flat = [t.detach().reshape(-1) for t in arrays]
    arguments = [*(t[:CHUNK] for t in flat), *(t.detach().clone() for t in others)]
    recorder = Recorder(arguments, arguments[0].shape)
    try:
        run, result = compute(room._replace(primitives=recorder), arguments)
    except Exception:  # of the shape of a piece; any other comes again
        return None
    if not recorder.elementwise or run.sees_shapes:
        return None
    if id(result) not in recorder.places or result.shape != recorder.shape:
        return None
    calls, place = _needed(recorder.calls, recorder.places[id(result)], first)
    fixed, last = arguments[len(arrays) :], _last_uses(calls)
    del recorder, run, result
    out = torch.empty_like(flat[0])
    for start in range(0, len(out), CHUNK):
        pieces = [t[start : start + CHUNK] for t in flat]
        _replay(calls, last, [*pieces, *fixed], place, out[start : start + CHUNK])
    return out.reshape(first.shape)


def _needed(calls: list[Call], place: int, like: Tensor) -> tuple[list[Call], int]:
    """The calls that a result depends on, with numbers as tensors; and its place, without those that change nothing."""
    same: dict[int, int] = {}
    found: list[Call] = []
    for call in calls:
        given = tuple(Place(same.get(v.number, v.number)) if isinstance(v, Place) else v for v in call.given)
        if call.name in SAME and isinstance(given[0], Place):
            same[call.result] = given[0].number
        else:
            found.append(call._replace(given=given))
    place = same.get(place, place)
    needed, kept = {place}, []
    for call in reversed(found):
        if call.result in needed:
            needed |= {v.number for v in (*call.given, *call.options.values()) if isinstance(v, Place)}
            kept.append(_prepared(call, like))
    return kept[::-1], place


def _prepared(call: Call, like: Tensor) -> Call:
    """With torch's operator, where that has the bits of the primitive, and tensors of its dtype for its numbers."""
    other = call.options or call.dtype not in (None, like.dtype)
    operator = None if other else (OPERATORS | COMPARISONS).get(call.name)
    if operator is torch.clamp:  # whose limits stay numbers
        limits = [v if is_number(v) else math.nan for v in call.given[1:]]
        return call._replace(operator=None if limits_of(like, *limits) is None else operator)
    if operator is None:
        return call
    return call._replace(given=tuple(number(v, like) if is_number(v) else v for v in call.given), operator=operator)


def _last_uses(calls: list[Call]) -> dict[int, set[int]]:
    """By the place of a result, which arrays nothing needs behind that call."""
    last: dict[int, int] = {}
    for call in calls:
        last |= {v.number: call.result for v in (*call.given, *call.options.values()) if isinstance(v, Place)}
    return {call.result: {index for index, at in last.items() if at == call.result} for call in calls}


def _replay(calls: list[Call], last: dict[int, set[int]], arguments: list[Tensor], place: int, out: Tensor) -> None:
    """The calls on one piece, whose result is written to ``out``."""
    arrays: dict[int, Tensor] = dict(enumerate(arguments))
    own = {call.result for call in calls if call.operator is not None}  # not the memory of an operand
    for call in calls:
        given = [arrays[v.number] if isinstance(v, Place) else v for v in call.given]
        options = {key: arrays[v.number] if isinstance(v, Place) else v for key, v in call.options.items()}
        alike = [v for v in given if isinstance(v, Tensor) and v.dtype == out.dtype and v.shape == out.shape]
        if call.operator is not None and call.name in COMPARISONS:
            arrays[call.result] = call.operator(*given)
        elif call.operator is not None and alike:
            free = [arrays[i] for i in last[call.result] if i in own]
            into = [out] if call.result == place else [t for t in alike if any(t is other for other in free)]
            arrays[call.result] = call.operator(*given, out=into[0] if into else torch.empty_like(out))
        else:
            arrays[call.result] = getattr(primitives, call.name)(*given, **options)
        for index in last[call.result]:
            del arrays[index]
    if arrays[place] is not out:
        out.copy_(arrays[place])
