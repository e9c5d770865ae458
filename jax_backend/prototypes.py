"""Prototypes on JAX arrays: what the formula says, its gradient, and a module that holds its parameters.

Semantics and errors: `samebits.core.prototypes`, of which these have the bits. The backward pass runs the formula again
instead of keeping what it computed. There is no forward mode (``jax.jvp``), and no second derivative.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..core.formula_values import Room, Run
from ..core.prototype import Prototype
from . import primitives
from .arrays import as_array
from .layers import Axes
from .primitives.operands import number

Array = jax.Array
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
    options, arrays = prototype.split(given)
    x = as_array("x", x)
    for name in prototype.parameters:
        start = arrays[name] if name in arrays else prototype.initial(name, ROOM, jax.lax.stop_gradient(x), options)
        arrays[name] = jnp.asarray(start, np.uint32) if isinstance(start, int) else as_array(name, start)
    return _formula((prototype, tuple(options.items())), x, arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _formula(static: Static, x: Array, arrays: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    prototype, options = static
    y, _, states = prototype.run(Run(ROOM), x, arrays, dict(options))
    return y.array, {name: value.array for name, value in states.items()}


def _forward(static: Static, x: Array, arrays: dict[str, Array]) -> tuple[Any, tuple[Array, dict[str, Array]]]:
    return _formula(static, x, arrays), (x, arrays)


def _backward(static: Static, kept: tuple[Array, dict[str, Array]], g: Any) -> tuple[Array, dict[str, Any]]:
    prototype, options = static
    x, arrays = kept
    found = prototype.pull(Run(ROOM, keeps_steps=True), x, arrays, dict(options), g[0])
    return found["x"], {name: found.get(name, _no_gradient(array)) for name, array in arrays.items()}


def _no_gradient(array: Array) -> Any:
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.zeros_like(array)
    return np.zeros(array.shape, jax.dtypes.float0)


_formula.defvjp(_forward, _backward)


class PrototypeQuantizer(nnx.Module):
    """A prototype with its parameters: learned ones are ``nnx.Param``, states and seeds ``nnx.BatchStat``, by name.

    In training every call leaves the new states, and seeds are one more; in evaluation all stay. Layers take it, or the
    prototype, as a quantizer; it has no codes, so they contract values.

    Args:
        prototype: the formula.
        like: an array like those to come, for parameters that begin as a formula of it.
        use_running_average: whether states stay as they are, which ``train()`` and ``eval()`` set.
        given: static options, and numbers or arrays where parameters begin.
    Raises:
        TypeError: a keyword that the prototype does not have; a parameter that needs ``like``.
    """

    quantizer = None
    bit_width = None

    def __init__(
        self, prototype: Prototype, like: Array | None = None, *, use_running_average: bool = False, **given: Any
    ) -> None:
        options, arrays = prototype.split(given)
        self.prototype = prototype
        self.use_running_average = use_running_average
        self.options = tuple((name, options[name]) for name in options if name != "training" or name in given)
        for name, parameter in prototype.parameters.items():
            value = arrays.get(name)
            if value is None:
                prototype.check_start(name, like)
                value = prototype.initial(
                    name, ROOM, jnp.zeros(()) if like is None else as_array("like", like), options
                )
            if isinstance(value, int):
                value = jnp.asarray(value, np.uint32 if parameter.kind == "seed" else np.float32)
            kind = nnx.Param if parameter.kind == "learned" else nnx.BatchStat
            setattr(self, name, kind(jnp.asarray(value)))

    def waits(self) -> None:
        """Nothing is delayed."""

    def __call__(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> Array:
        """The result of the formula, of the shape and dtype of ``x``.

        Args:
            use_running_average: whether states stay as they are; None for what the attribute says.
            axes: for an array laid out in another way: it is ``x.transpose(axes)`` that the formula is of.
        """
        frozen = self.use_running_average if use_running_average is None else use_running_average
        options = dict(self.options)
        if "training" in self.prototype.options:
            options.setdefault("training", not frozen)
        arrays = {name: getattr(self, name)[...] for name in self.prototype.parameters}
        lying = x if axes is None else x.transpose(axes)
        y, states = updated(self.prototype, lying, **options, **arrays)
        for name, parameter in self.prototype.parameters.items():
            if name in states and not frozen:
                getattr(self, name).set_value(states[name])
            elif parameter.kind == "seed" and not frozen:
                getattr(self, name).set_value(arrays[name] + np.uint32(1))
        return y if axes is None else y.transpose(tuple(np.argsort(axes)))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What ``nnx.view`` calls.

        Args:
            use_running_average: whether the state stays as it is; None to leave that.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
