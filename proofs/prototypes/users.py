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


def steps_of(prototype: Prototype, x: Array, **given: Any) -> list[Step]:
    """What the formula does with an array, step by step, in NumPy; first `x` and the parameters, in their order."""
    options, arrays = prototype.split(given)
    for name in prototype.parameters:
        if name not in arrays:
            arrays[name] = prototype.initial(name, prototypes.ROOM, x, options)
        arrays[name] = np.asarray(arrays[name])
    ordered = {name: arrays[name] for name in prototype.parameters}
    run = Run(prototypes.ROOM, keeps_steps=True, file=prototype.function.__code__.co_filename)
    prototype.run(run, x, ordered, options)
    return run.steps or []


def what_mixes(prototype: Prototype, x: Array, **given: Any) -> str:
    """The first step by which the result of an element depends on others, or on its place; "" if there is none.

    Parameters that are given, or that begin as a number, are no such step.
    """
    for name, one in prototype.parameters.items():
        if name not in given and callable(one.initial):
            return f"`{name}` of `{prototype.name}` begins as a formula of the array: give {name}=VALUE"
    moving = {0}
    for number, step in enumerate(steps_of(prototype, x, **given)):
        operands = [one for one in (*step.operands, *step.options.values()) if isinstance(one, Value)]
        if not any(one.number in moving for one in operands) and step.name != "random_bits":
            continue
        moving.add(number)
        if step.name in (*MIXING, "random_bits"):
            file, line = step.place or (prototype.function.__code__.co_filename, 0)
            return f"{file}:{line}: `{step.name}` of `{prototype.name}` makes an element depend on others or its place"
    return ""
