"""Prototypes on JAX arrays: what the formula says, and its gradient.

Semantics and errors: `samebits.core.prototypes`, of which these have the bits. The backward pass runs the formula again
instead of keeping what it computed. Forward mode and further derivatives are those of the primitives.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.formula_values import Room, Run
from ..core.prototype import Prototype
from . import primitives
from .arrays import as_array
from .derivatives import Tangents, differentiable_beside
from .primitives.operands import number

Array = jax.Array

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


def _values(static: Static, x: Array, *arrays: Array) -> tuple[Array, dict[str, Array]]:
    """The result of a formula, and new states."""
    prototype, options, names = static
    y, _, states = prototype.run(Run(ROOM), x, dict(zip(names, arrays, strict=True)), dict(options))
    return y._array, {name: value._array for name, value in states.items()}


def _tangent(static: Static, operands: Tangents, tangents: Tangents) -> Array:
    """By the rules of the primitives, along what moves."""
    static[0].check_forward_mode("jax.jvp")
    moving = [i for i, t in enumerate(tangents) if t is not None]

    def along(*moved: Any) -> Array:
        return _values(static, *(dict(enumerate(operands)) | dict(zip(moving, moved, strict=True))).values())[0]

    pushed: Array = jax.jvp(along, [operands[i] for i in moving], [tangents[i] for i in moving])[1]
    return pushed


def _gradient(static: Static, operands: Any, g: Array) -> Tangents:
    """The transpose, by the formula again."""
    prototype, options, names = static
    x, *arrays = operands
    found = prototype.pull(Run(ROOM, keeps_steps=True), x, dict(zip(names, arrays, strict=True)), dict(options), g)
    return found["x"], *(found.get(name) for name in names)


_formula = differentiable_beside(_values, _tangent, _gradient)
