"""The first primitive of a prototype at which two modes part: file and line, operands and results in full."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import prototypes
from ...core.formula_values import Room, Run, Step, Value
from ...core.prototype import Prototype
from ..inputs.compare import Comparison, describe, differences
from ..modes.arrays import to_jax, to_numpy, to_torch
from ..modes.execution import MODES
from ..modes.programs import jax_types, own_code

Array = NDArray[Any]


def explain(prototype: Prototype, x: Array, mode: str, other: str = "numpy", **given: Any) -> str:
    """Where the formula has other bits in one mode than in another, in words; "" if every step has the same.

    Every step is a result of the compiled programs here, so that what a compiler merges across steps is not seen.

    Args:
        x: an array; ``given``: static options, and arrays of parameters.
        mode, other: of `MODES`.
    Returns:
        File and line, primitive, how many elements differ, and for one of them operands and both results, in decimal,
        hexadecimal and bits.
    Raises:
        ValueError: another mode; and what the formula raises.
    """
    for name in (mode, other):
        if name not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(map(repr, MODES))}; got {name!r}")
    return _explained(prototype, x, (other, mode), (None, None), given)


def explain_textbook(prototype: Prototype, x: Array, mode: str, given: Mapping[str, Any]) -> str:
    """As `explain`, of textbook code in a mode of torch or JAX beside mode "numpy" of the primitives."""
    from .textbook import textbook_room

    return _explained(prototype, x, ("numpy", mode), (None, textbook_room(mode.partition(" ")[0])), given)


def _explained(
    prototype: Prototype, x: Array, modes: tuple[str, str], rooms: tuple[Room | None, ...], given: Mapping[str, Any]
) -> str:
    """The first step with other bits in the second mode than in the first, in rooms of ours unless others are given."""
    steps = _steps(prototype, x, given)
    pairs = zip(modes, rooms, strict=True)
    expected, found = (_results(name, prototype, x, given, room) for name, room in pairs)
    first = 1 + len(prototype.parameters)  # what comes in is no step
    for step, a, b in list(zip(steps, expected, found, strict=True))[first:]:
        difference = differences(a, b)
        if not difference.same:
            return _told(prototype, step, expected, difference, modes)
    return ""


def _told(prototype: Prototype, step: Step, values: Sequence[Array], found: Comparison, modes: tuple[str, str]) -> str:
    file, line = step.place or (prototype.function.__code__.co_filename, 0)
    lines = [f"{file}:{line}: `{step.name}` of {prototype.name}: {found.differing} of {found.compared} elements differ"]
    if found.index is None:
        return f"{lines[0]}\n  {found.reason}"
    lines.append(f"  {'index':<16}{found.index}")
    for place, operand in enumerate(step.operands):
        value = values[operand.number] if isinstance(operand, Value) else operand
        lines.append(f"  {f'operand {place}':<16}{_element(value, found.index, found.compared)}")
    lines += [f"  {key:<16}{value!r}" for key, value in step.options.items()]
    for name, value in zip(modes, (found.expected, found.got), strict=True):
        lines.append(f"  {name:<16}{describe(value)}")
    return "\n".join(lines)


def _element(value: Any, index: tuple[int, ...], count: int) -> str:
    if not isinstance(value, np.ndarray):
        return str(value)
    if value.size == 1:
        return describe(value)
    if value.ndim > len(index) or (value.ndim == len(index) and value.size > count):
        return f"all of an array of shape {value.shape}"
    at = index[len(index) - value.ndim :]
    return describe(value[tuple(0 if n == 1 else i for i, n in zip(at, value.shape, strict=True))])


def _operands(prototype: Prototype, x: Array, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Static options; and arrays by name, x the first of them."""
    options, arrays = prototype.split(given)
    for name, one in prototype.parameters.items():
        value = arrays[name] if name in arrays else prototype.initial(name, prototypes.ROOM, x, options)
        arrays[name] = np.asarray(value, np.int64 if one.kind == "seed" else None)
    return options, {"": x, **arrays}


def _run(run: Run, prototype: Prototype, options: Any, names: Sequence[str], operands: Sequence[Any]) -> list[Step]:
    prototype.run(run, operands[0], dict(zip(names[1:], operands[1:], strict=True)), options)
    return run.steps or []


def _steps(prototype: Prototype, x: Array, given: Mapping[str, Any]) -> list[Step]:
    options, arrays = _operands(prototype, x, given)
    run = Run(prototypes.ROOM, keeps_steps=True, file=prototype.function.__code__.co_filename)
    return _run(run, prototype, options, list(arrays), list(arrays.values()))


def _results(
    mode: str, prototype: Prototype, x: Array, given: Mapping[str, Any], room: Room | None = None
) -> list[Array]:
    """What every step gives, in another room than ours if one is given."""
    options, arrays = _operands(prototype, x, given)

    def program(room: Room, guarded: bool, *operands: Any) -> list[Any]:
        run = Run(room, keeps_steps=True, guarded=guarded)
        return [step.result for step in _run(run, prototype, options, list(arrays), operands)]

    operands = list(arrays.values())
    if mode == "numpy":
        return program(prototypes.ROOM, True, *operands)
    found = (_in_torch if mode.startswith("torch") else _in_jax)(program, mode, operands, room)
    return [to_numpy(value) for value in found]


def _in_torch(program: Any, mode: str, operands: Sequence[Array], other: Room | None) -> Any:
    import torch

    from ...torch_frontend.prototypes import ROOM

    room, tensors = other or ROOM, [to_torch(a) for a in operands]
    with torch.no_grad():
        if mode == "torch eager":
            return program(room, True, *tensors)
        return torch.compile(own_code(lambda *t: program(room, False, *t), "steps"), fullgraph=True)(*tensors)


def _in_jax(program: Any, mode: str, operands: Sequence[Array], other: Room | None) -> Any:
    import jax

    from ...jax_backend.prototypes import ROOM

    room = other or ROOM
    narrow = [a.astype(np.uint32) if a.dtype == np.int64 else a for a in operands]
    with jax_types(wide=operands[0].dtype == np.float64):
        arrays = [to_jax(a) for a in narrow]
        if mode == "jax jit":
            return jax.jit(lambda *a: program(room, True, *a))(*arrays)
        with jax.disable_jit():
            return program(room, True, *arrays)
