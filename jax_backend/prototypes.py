"""Prototypes on JAX arrays: what the formula says, and its gradient.

Semantics and errors: `samebits.core.prototypes`, of which these have the bits. The backward pass runs the formula again
instead of keeping what it computed. There is no forward mode (``jax.jvp``), and no second derivative.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from ..core.formula_values import Room, Run
from ..core.prototype import Prototype
from . import primitives
from .arrays import as_array
from .plain_formulas import GRADIENT, computed
from .primitives.operands import number

Array = jax.Array
Moving = dict[str, None]  # names of what is differentiated: keys, which are static among residuals
RESULT = ""  # its name among new states
Static = tuple[Prototype, tuple[tuple[str, Any], ...]]


ROOM = Room(
    "jax",
    primitives,
    lambda value: isinstance(value, jax.Array),
    lambda numbers, like: jnp.stack([number(n, like.dtype) for n in numbers]),
    lambda x, index: x[index],
    lambda g, index, like: jnp.zeros_like(like).at[index].set(g),
    lambda x, axes: x.transpose(axes),
)


def apply(prototype: Prototype, x: Array, **given: Any) -> Array:
    """The result of a formula.

    Args:
        x: float32, float64, bfloat16 or float16, any shape.
        given: static options, and arrays of parameters: those that are missing are where they begin.
    Returns:
        Shape and dtype of ``x``.
    Raises:
        TypeError, ValueError: what the formula does that is no primitive, with its line; other dtypes or keywords.
    """
    return updated(prototype, x, **given)[0]


def updated(prototype: Prototype, x: Array, **given: Any) -> tuple[Array, dict[str, Array]]:
    """As `apply`, and the new states by name, which have no gradient."""
    x, arrays, options = _given(prototype, x, given)
    return _formula((prototype, tuple(options.items())), x, arrays)


def vjp(prototype: Prototype, x: Array, g: Array, **given: Any) -> dict[str, Array]:
    """Gradients of ``x`` and of learned parameters, by name, from that of the result; what `jax.vjp` gives.

    Args:
        x, given: as `apply`.
        g: shape and dtype of ``x``.
    """
    return prototype.pull(Run(ROOM, keeps_steps=True), *_given(prototype, x, given), as_array("g", g))


def _given(prototype: Prototype, x: Any, given: dict[str, Any]) -> tuple[Array, dict[str, Array], dict[str, Any]]:
    options, arrays = prototype.split(given)
    x = as_array("x", x)
    for name in prototype.parameters:
        start = arrays[name] if name in arrays else prototype.initial(name, ROOM, jax.lax.stop_gradient(x), options)
        arrays[name] = jnp.asarray(start, np.uint32) if isinstance(start, int) else as_array(name, start)
    return x, arrays, options


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _formula(static: Static, x: Array, arrays: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    prototype, options = static

    def results(room: Room, operands: dict[str, Any]) -> dict[str, Any]:
        given = {name: operands[name] for name in arrays}
        y, _, states = prototype.run(Run(room), operands["x"], given, dict(options))
        return {RESULT: y.array, **{name: value.array for name, value in states.items()}}

    operands = {"x": x, **arrays}
    found = computed(results, operands, lambda: results(ROOM, operands))
    return found.pop(RESULT), found


def _forward(static: Static, x: Any, arrays: dict[str, Any]) -> tuple[Any, tuple[Array, dict[str, Array], Moving]]:
    moving = {name: None for name, one in {"x": x, **arrays}.items() if one.perturbed}
    values = {name: one.value for name, one in arrays.items()}
    return _formula(static, x.value, values), (x.value, values, moving)


def _backward(static: Static, kept: tuple[Array, dict[str, Array], Moving], g: Any) -> tuple[Any, dict[str, Any]]:
    prototype, options = static
    x, arrays, moving = kept

    def results(room: Room, operands: dict[str, Any]) -> dict[str, Any]:
        given = {name: operands[name] for name in arrays}
        run = Run(room, keeps_steps=True)
        return prototype.pull(run, operands["x"], given, dict(options), operands[GRADIENT], tuple(moving))

    of_y = jnp.zeros_like(x) if isinstance(g[0], SymbolicZero) else g[0]
    operands = {"x": x, **arrays, GRADIENT: of_y}
    found = computed(results, operands, lambda: results(ROOM, operands))
    return found.get("x", _no_gradient(x)), {name: found.get(name, _no_gradient(a)) for name, a in arrays.items()}


def _no_gradient(array: Array) -> Any:
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.zeros_like(array)
    return np.zeros(array.shape, jax.dtypes.float0)


_formula.defvjp(_forward, _backward, symbolic_zeros=True)
