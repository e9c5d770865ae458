"""Prototypes that users name, ``FILE.py:NAME`` or ``package.module:NAME``, and the parameters that they give them."""

from ast import literal_eval
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import prototypes
from ...core.formula_values import Run, Step, Value
from ...core.prototype import Prototype
from ..inputs.named import named

Array = NDArray[Any]
MIXING = ("absmax", "amax", "amin", "sum", "mean", "percentile", "index", "reshape", "transpose", "broadcast_to")


def is_named(name: str) -> bool:
    """Whether a name is of a user's code, not of the catalog."""
    return ":" in name


def shown(name: str, parameters: Sequence[str]) -> str:
    """A prototype with its parameters, ``NAME=VALUE``, as it is listed."""
    return ", ".join([name, *parameters])


def prototype_of(name: str) -> Prototype:
    """The prototype that a name stands for.

    Raises:
        ImportError, KeyError: as `named`.
        TypeError: it is none.
    """
    found = named(name)
    if not isinstance(found, Prototype):
        raise TypeError(f"{name!r} must be a prototype, got {type(found).__name__}")
    return found


def parameters_of(prototype: Prototype, texts: Sequence[str]) -> dict[str, Any]:
    """What ``NAME=VALUE`` says, by name: a number, string, tuple or truth value of Python each.

    Raises:
        ValueError: a text that is none of that; a number too few for a parameter that is an array.
        TypeError: a name that the prototype does not have.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"a parameter is NAME=VALUE, got {text!r}")
        try:
            found[name.strip()] = literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[name.strip()] = value.strip()
        if name.strip() in prototype.parameters and not isinstance(found[name.strip()], int | float):
            raise ValueError(f"`{name.strip()}` of `{prototype.name}` must be a number, got {value!r}")
    prototype.split(found)
    return found


def arrays_of(prototype: Prototype, given: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Static options, and numbers given for parameters as arrays: of a dtype, seeds as integers."""
    return {
        name: np.asarray(value).astype(np.uint32 if prototype.parameters[name].kind == "seed" else dtype)
        if name in prototype.parameters
        else value
        for name, value in given.items()
    }


def complete(prototype: Prototype, x: Array, given: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is given, and the arrays of all other parameters where they begin at ``x``."""
    options, arrays = prototype.split(given)
    for name in prototype.parameters:
        value = arrays[name] if name in arrays else prototype.initial(name, prototypes.ROOM, x, options)
        arrays[name] = np.asarray(value)
    return {**options, **arrays}


def what_mixes(prototype: Prototype, x: Array, **given: Any) -> str:
    """By which step the result of an element, or its gradient, depends on others or on its place; "" if by none.

    Parameters that are given, or that begin as a number, are no such step; if they are arrays with axes, they are.
    """
    for name, one in prototype.parameters.items():
        if name not in given and callable(one.initial):
            return f"`{name}` of `{prototype.name}` begins as a formula of the array: give {name}=VALUE"
        if name in given and np.ndim(given[name]):
            return f"`{name}` of `{prototype.name}` is an array of shape {np.shape(given[name])}"
    options, arrays = prototype.split(complete(prototype, x, given))
    file = prototype.function.__code__.co_filename
    run = Run(prototypes.ROOM, keeps_steps=True, file=file)
    y = prototype.run(run, x, arrays, options)[0]._array
    reason = _mixing(prototype, run.steps or [], {"x"}, y)
    if not reason and prototype.backward is not None:
        run = Run(prototypes.ROOM, keeps_steps=True, file=prototype.backward.__code__.co_filename)
        dx = prototype.pull(run, x, arrays, options, np.ones_like(x))["x"]
        reason = _mixing(prototype, run.steps or [], {"x", "g"}, dx)
    return reason


def _mixing(prototype: Prototype, steps: Sequence[Step], leaves: set[str], result: Array) -> str:
    """Of the steps that lead from leaves to a result the first by which elements meet."""
    reasons: dict[int, str] = {}  # of all that depends on the leaves, by number
    for number, step in enumerate(steps):
        before = [one.number for one in (*step.operands, *step.options.values()) if isinstance(one, Value)]
        moving = [reasons[one] for one in before if one in reasons]
        if not moving and step.name not in (*leaves, "random_bits"):
            continue
        file, line = step.place or (prototype.function.__code__.co_filename, 0)
        own = f"{file}:{line}: `{step.name}` of `{prototype.name}` makes an element depend on others or its place"
        reasons[number] = next(filter(None, moving), own if step.name in (*MIXING, "random_bits") else "")
    return next((reasons.get(i, "") for i in reversed(range(len(steps))) if steps[i].result is result), "")
