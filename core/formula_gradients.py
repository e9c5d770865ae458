"""The gradient of a formula: its steps backwards, by the rules of the primitives, in one order for every room.

What meets at a value is added from the last step that used it to the first. That of an operand that was repeated is
summed over what was repeated, by `sum`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .checks import scale_dtype
from .formula_values import Room, Run, Step, Value
from .operands import axes_of
from .partial_derivatives import RULES

NAMES = {"absmax", "amax", "amin", "percentile", "sum", "mean", "take", "broadcast_to", "reshape", "transpose", "index"}


def gradients(run: Run, result: Value, g: Any, wanted: Sequence[Value]) -> list[Any]:
    """Those of values from which a result was made; None where it does not depend on one, or by no derivative.

    Args:
        run: that kept its steps.
        g: an array, the gradient of the result.
    """
    steps, p = run.steps or [], run.room.primitives
    moving = _moving(steps, wanted)
    totals: dict[int, Any] = {result.number: g}
    for number in range(result.number, -1, -1):
        step = steps[number]
        if number not in totals or number not in moving or not step.operands:
            continue
        for operand, part in zip(step.operands, _parts(run.room, step, totals[number], moving), strict=True):
            if part is not None:
                known = totals.get(operand.number)
                totals[operand.number] = part if known is None else p.add(known, part)
    return [totals.get(value.number) for value in wanted]


def _moving(steps: Sequence[Step], wanted: Sequence[Value]) -> set[int]:
    """Which steps depend on what is differentiated, by a derivative that is not 0."""
    moving = {value.number for value in wanted}
    for number, step in enumerate(steps):
        has_rule = step.name in RULES or step.name in NAMES
        if has_rule and any(isinstance(v, Value) and v.number in moving for v in step.operands):
            moving.add(number)
    return moving


def _parts(room: Room, step: Step, g: Any, moving: set[int]) -> list[Any]:
    """For each operand what it gets, of its shape; None for those that do not move."""
    asked = [isinstance(v, Value) and v.number in moving for v in step.operands]
    if step.name in NAMES:  # the index of `take` has no derivative
        return [_moved(room, step, g) if asked[0] else None, *(None for _ in asked[1:])]
    p = room.primitives
    arrays = [v._array if isinstance(v, Value) else v for v in step.operands]
    if step.name == "power":  # whose rule compares them
        arrays = [
            a if isinstance(v, Value) else p.straight_through(a, g) for a, v in zip(arrays, step.operands, strict=True)
        ]
    maps = RULES[step.name](p, step.result, *arrays)
    return [
        _gathered(p, one.pull(g), tuple(v._array.shape)) if ask and one is not None else None
        for one, ask, v in zip(maps, asked, step.operands, strict=True)
    ]


def _gathered(p: Any, g: Any, shape: tuple[int, ...]) -> Any:
    """The sum over what was repeated from this shape."""
    lengths = (1,) * (len(g.shape) - len(shape)) + tuple(shape)
    repeated = tuple(i for i, n in enumerate(g.shape) if n != lengths[i])
    if tuple(g.shape) == tuple(shape):
        return g
    return (p.sum(g, repeated) if repeated else g).reshape(shape)


def _moved(room: Room, step: Step, g: Any) -> Any:
    """Of primitives of one array that moves elements or reduces axes, and of the entries of a table."""
    p, x = room.primitives, step.operands[0]
    match step.name:
        case "reshape":
            return g.reshape(tuple(x._array.shape))
        case "transpose":
            order = step.options["axes"]
            return room.transposed(g, tuple(order.index(i) for i in range(len(order))))
        case "index":
            return room.put(g, step.options["index"], x._array)
        case "broadcast_to":
            return _gathered(p, g, x.shape)
        case "take":
            return _of_entries(room, x._array, step.operands[1]._array, g)
        case name:
            return _of_reduction(p, name, _reduction(step), x, g, step.result)


def _reduction(step: Step) -> Mapping[str, Any]:
    return {"axis": None, "keepdims": False, **step.options}


def _of_reduction(p: Any, name: str, options: Mapping[str, Any], x: Value, g: Any, value: Any) -> Any:
    axes = axes_of(x.shape, options["axis"])
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    g, value, dtype = g.reshape(kept), value.reshape(kept), x.dtype
    if name == "sum":
        return p.broadcast_to(g, x.shape)
    if name == "mean":
        count = 1
        for axis in axes:
            count *= x.shape[axis]
        return p.broadcast_to(p.cast(p.divide(p.cast(g, scale_dtype(dtype)), float(count)), dtype), x.shape)
    of = p.absolute(x._array) if name == "absmax" else x._array
    taken = p.equal(of, value)
    count = p.sum(p.where(taken, p.where(taken, 1.0, of), 0.0), axes, True)
    part = p.where(taken, p.divide(g, count), 0.0)
    return p.multiply(part, p.sign(x._array)) if name == "absmax" else part


def _of_entries(room: Room, table: Any, index: Any, g: Any) -> Any:
    wide = scale_dtype(str(table.dtype).removeprefix("torch."))
    places = room.primitives.cast(room.array(tuple(range(len(table))), room.primitives.cast(table, wide)), wide)
    return RULES["looked_up"](room.primitives, None, table, index, places)[0].pull(g)
