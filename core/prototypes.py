"""Prototypes on arrays of NumPy: what the formula says, and its gradient.

Parameters and errors are the same in the other rooms, where autograd and `jax.grad` give these gradients.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import primitives
from .arguments import as_array
from .formula_values import Room, Run
from .operations import round_to_dtype
from .prototype import Prototype

Array = NDArray[Any]


def _array(numbers: tuple[float, ...], like: Array) -> Array:
    return np.asarray(round_to_dtype(np.asarray(numbers, np.float64), like.dtype))


def _put(g: Array, index: Any, like: Array) -> Array:
    zeros = np.zeros_like(like)
    zeros[index] = g
    return zeros


ROOM = Room(
    "numpy",
    primitives,
    _array,
    lambda x, index: np.asarray(x[index]),
    _put,
    lambda x, axes: np.asarray(x.transpose(axes)),
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
    """As `apply`, and the new states by name."""
    x, arrays, options = _given(prototype, x, given)
    y, _, states = prototype.run(Run(ROOM), x, arrays, options)
    value = y._array.copy() if np.may_share_memory(y._array, x) else y._array
    return value, {name: state._array for name, state in states.items()}


def vjp(prototype: Prototype, x: Array, g: Array, **given: Any) -> dict[str, Array]:
    """Gradients of ``x`` and of learned parameters, by name, from that of the result.

    Args:
        x, given: as `apply`.
        g: shape and dtype of ``x``.
    """
    run = Run(ROOM, keeps_steps=True)
    return prototype.pull(run, *_given(prototype, x, given), as_array("g", g))


def _given(prototype: Prototype, x: Any, given: Mapping[str, Any]) -> tuple[Array, dict[str, Any], dict[str, Any]]:
    options, arrays = prototype.split(given)
    prototype.check_library("numpy", x, arrays)
    x = as_array("x", x)
    for name in prototype.parameters:
        if name in arrays:
            arrays[name] = as_array(name, prototype.number(name, ROOM, x, arrays[name]))
        else:
            arrays[name] = prototype.initial(name, ROOM, x, options)
    return x, arrays, options
