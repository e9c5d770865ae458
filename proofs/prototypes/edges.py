"""Knife edges of prototypes: inputs of which one element stands where the formula decides, found by asking it.

What decides are its steps whose results jump: rounding, formats, exponents, comparisons, and which operand `clamp`,
`minimum` and `maximum` take. A statistic of the tensor moves with the element, and with it all edges; so each edge is
found with all other elements as they are, and gives an input of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import prototypes
from ...core.formula_values import Run, Step
from ...core.prototype import Prototype
from ..inputs.bits import stored_bits
from ..inputs.found_edges import Edges, found_edges

Array = NDArray[Any]
JUMPS = {
    *("round", "floor", "ceil", "trunc", "to_format", "exponent", "sign"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
}
SMALLEST = 2.0**-6  # of the largest magnitude: below lie zero and its neighbours, which are special values
CHOICES = {"clamp", "minimum", "maximum"}


def edges_of(prototype: Prototype, x: Array, g: Array, place: int = 0, vary: str = "x", **given: Any) -> Edges:
    """Where one element is decided anew, by the formula or by its gradient, all others staying as they are.

    Args:
        x, g: an array and the gradient of the result, of one shape and dtype.
        place: which element, counted in row-major order.
        vary: whose element: "x", or "g", on which a gradient may decide as well.
        given: static options, and arrays of parameters; those that are missing begin as ``x`` says.
    Returns:
        Edges among numbers of the element's sign, from `SMALLEST` to twice the largest magnitude: of what is monotone
        in the element all of them, of anything else those between powers of two that are decided otherwise (see
        `found_edges`).
    """
    options, arrays = _operands(prototype, x, given)
    whole = {"x": x, "g": g}

    def ask(values: Array) -> tuple[Array, ...]:
        answers = []
        for value in values:
            moved = {name: array.copy() for name, array in whole.items()}
            moved[vary].reshape(-1)[place] = value
            answers.append([_decided(step, place, x.size) for step in _steps(prototype, moved, arrays, options)])
        return tuple(np.asarray(column) for column in zip(*answers, strict=True))

    line = np.sort(
        np.copysign(np.abs(whole[vary]).max() * np.asarray((SMALLEST, 2), x.dtype), whole[vary].reshape(-1)[place])
    )
    with np.errstate(all="ignore"):
        return found_edges(ask, x.dtype, between=tuple(line), spacing=2 ** stored_bits(x.dtype))


def at_edges(prototype: Prototype, x: Array, g: Array, most: int = 4, **given: Any) -> Iterator[dict[str, Any]]:
    """Both sides of edges, with the first element or the last one there: ``x``, ``g`` and arrays of parameters.

    Args:
        most: edges of each of the two elements, as far from each other as there are.
    """
    _, arrays = _operands(prototype, x, given)
    for vary in ("x", "g") if prototype.backward is not None else ("x",):
        for place in (0, x.size - 1):
            edges = edges_of(prototype, x, g, place, vary, **given)
            chosen: Any = (
                np.unique(np.linspace(0, len(edges.row) - 1, most).round().astype(int)) if len(edges.row) else []
            )
            for value in (side[i] for i in chosen for side in (edges.before, edges.after)):
                moved = {"x": x.copy(), "g": g.copy()}
                moved[vary].reshape(-1)[place] = value
                yield {**moved, **arrays}


def _operands(prototype: Prototype, x: Array, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Static options, and arrays of parameters, which begin as ``x`` says."""
    options, arrays = prototype.split(given)
    for name in prototype.parameters:
        arrays[name] = arrays.get(name, prototype.initial(name, prototypes.ROOM, x, options))
    return options, arrays


def _steps(
    prototype: Prototype, whole: Mapping[str, Array], arrays: Mapping[str, Any], options: Mapping[str, Any]
) -> Sequence[Step]:
    """Those that decide, of the formula and of a gradient of its own."""
    run = Run(prototypes.ROOM, keeps_steps=True)
    prototype.run(run, whole["x"], arrays, options)
    if prototype.backward is not None:
        prototype.pull(run, whole["x"], arrays, options, whole["g"])
    return [step for step in run.steps or [] if step.name in JUMPS | CHOICES]


def _decided(step: Step, place: int, size: int) -> float:
    """What a step decides of an element, or of the block of which it is; 0 where there is no such correspondence."""
    result = np.asarray(step.result)
    if not result.size or size % result.size:
        return 0.0
    at = place * result.size // size
    value = result.reshape(-1)[at]
    if step.name in JUMPS:
        return float(value)
    first = getattr(step.operands[0], "_array", step.operands[0])
    return float(np.broadcast_to(first, result.shape).reshape(-1)[at] == value)
