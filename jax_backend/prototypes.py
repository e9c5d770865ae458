"""Prototypes on JAX arrays: what the formula says, and its gradient.

Semantics and errors: `samebits.core.prototypes`, of which these have the bits. The backward pass runs the formula again
instead of keeping what it computed. Forward mode and further derivatives are those of the primitives.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.formula_values import Room, Run
from ..core.prototype import Prototype
from . import primitives
from .arrays import as_array
from .derivatives import Tangents, differentiable_beside
from .plain_formulas import GRADIENT, computed
from .primitives.operands import number

Array = jax.Array
RESULT = ""  # its name among new states

ROOM = Room(
    "jax",
    primitives,
    lambda numbers, like: jnp.stack([number(n, like.dtype) for n in numbers]),
    lambda x, index: x[index],
    lambda g, index, like: jnp.zeros_like(like).at[index].set(g),
    lambda x, axes: x.transpose(axes),
)


def apply(prototype: Prototype, x: Array, **given: Any) -> Array:
    """The result of a formula.

    Args:
        x: float32, float64, bfloat16 or float16, any shape.
        given: static options, and arrays or numbers for parameters: those that are missing are where they begin.
    Returns:
        Shape and dtype of ``x``.
    Raises:
        TypeError, ValueError: what the formula does that is no primitive, with its line; other dtypes or keywords.
    """
    return updated(prototype, x, **given)[0]


def updated(prototype: Prototype, x: Array, **given: Any) -> tuple[Array, dict[str, Array]]:
    """As `apply`, and the new states by name, which have no gradient."""
    x, arrays, options = _given(prototype, x, given)
    value: tuple[Array, dict[str, Array]] = _formula(
        (prototype, tuple(options.items()), tuple(arrays)), x, *arrays.values()
    )
    return value


def vjp(prototype: Prototype, x: Array, g: Array, **given: Any) -> dict[str, Array]:
    """Gradients of ``x`` and of learned parameters, by name, from that of the result; what `jax.vjp` gives.

    Args:
        x, given: as `apply`.
        g: shape and dtype of ``x``.
    """
    return prototype.pull(Run(ROOM, keeps_steps=True), *_given(prototype, x, given), as_array("g", g))


def _given(prototype: Prototype, x: Any, given: dict[str, Any]) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    options, arrays = prototype.split(given)
    prototype.check_library("jax", x, arrays)
    x = as_array("x", x)
    for name in prototype.parameters:
        if name in arrays:
            start = prototype.number(name, ROOM, x, arrays[name])
        else:
            start = prototype.initial(name, ROOM, jax.lax.stop_gradient(x), options)
        arrays[name] = jnp.asarray(start, np.uint32) if isinstance(start, int) else as_array(name, start)
    return x, arrays, options


Static = tuple[Prototype, tuple[tuple[str, Any], ...], tuple[str, ...]]  # with static options, and names of arrays
Results = dict[str, Array]


def _results(static: Static, room: Room, operands: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a formula, and new states, in a room."""
    prototype, options, names = static
    y, _, states = prototype.run(Run(room), operands["x"], {name: operands[name] for name in names}, dict(options))
    return {RESULT: y._array, **{name: value._array for name, value in states.items()}}


def _values(static: Static, x: Array, *arrays: Array) -> tuple[Array, Results]:
    """The result of a formula, and new states."""
    operands = {"x": x, **dict(zip(static[2], arrays, strict=True))}
    found = computed(lambda *of: _results(static, *of), operands, lambda: _results(static, ROOM, operands))
    return found.pop(RESULT), found


def _tangent(static: Static, operands: Tangents, tangents: Tangents) -> Array:
    """By the rules of the primitives, along what moves."""
    static[0].check_forward_mode("jax.jvp")
    names = ("x", *static[2])
    moving = [i for i, t in enumerate(tangents) if t is not None]

    def along(*moved: Any) -> Array:
        whole = dict(enumerate(operands)) | dict(zip(moving, moved, strict=True))
        result: Array = _results(static, ROOM, {names[i]: array for i, array in whole.items()})[RESULT]
        return result

    pushed: Array = jax.jvp(along, [operands[i] for i in moving], [tangents[i] for i in moving])[1]
    return pushed


def _pulled(static: Static, asked: tuple[str, ...], room: Room, operands: Mapping[str, Any]) -> dict[str, Any]:
    """Gradients that are asked for, by the formula again, in a room."""
    prototype, options, names = static
    given = {name: operands[name] for name in names}
    return prototype.pull(Run(room, keeps_steps=True), operands["x"], given, dict(options), operands[GRADIENT], asked)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradients(static: Static, asked: tuple[str, ...], operands: dict[str, Array]) -> Results:
    return computed(lambda *of: _pulled(static, asked, *of), operands, lambda: _pulled(static, asked, ROOM, operands))


@_gradients.defjvp
def _gradients_jvp(static: Static, asked: tuple[str, ...], operands: Any, tangents: Any) -> tuple[Results, Results]:
    """By the rules of the primitives: what is computed instead of them has others."""
    moved: tuple[Results, Results] = jax.jvp(lambda own: _pulled(static, asked, ROOM, own), operands, tangents)
    return moved


def _gradient(static: Static, moving: tuple[bool, ...], operands: Any, g: Array) -> Tangents:
    """The transpose."""
    names = ("x", *static[2])
    asked = tuple(name for name, moves in zip(names, moving, strict=True) if moves)
    found = _gradients(static, asked, {**dict(zip(names, operands, strict=True)), GRADIENT: g})
    return tuple(found.get(name) for name in names)


_formula = differentiable_beside(_values, _tangent, _gradient)
