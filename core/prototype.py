"""A quantizer that is a formula: a Python function over values, its parameters, and its gradient. A noun.

What it computes stands in `prototypes.py` of the three rooms.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any

from .formula_errors import guarded, misreturned, misshapen
from .formula_gradients import gradients
from .formula_values import Room, Run, Value

ARRAYS = ("learned", "state", "seed")  # kinds of parameters that are arrays


@dataclass(frozen=True)
class Parameter:
    """A parameter that is an array: ``kind`` is learned, state or seed; see `learned`, `state`, `seed`."""

    kind: str
    initial: Any


def learned(initial: Any) -> Any:
    """Default of a keyword that is trained.

    Args:
        initial: a number, for one scalar; or a formula of ``x``, and of the static options it names, whose result has
            the shape of the parameter.
    Raises:
        TypeError: something else.
    """
    return Parameter("learned", _checked(initial))


def state(initial: Any) -> Any:
    """Default of a keyword that runs along, without a gradient: the formula returns ``y, {name: new value}``.

    Args:
        initial: as of `learned`.
    Raises:
        TypeError: as `learned`.
    """
    return Parameter("state", _checked(initial))


def seed(initial: int = 0) -> Any:
    """Default of a keyword that is the seed of `random_bits`: in layers one more after every step of training."""
    return Parameter("seed", initial)


class Prototype:
    """A formula as a quantizer, made by `samebits.proofs.prototype`. Hashable by identity, so static under ``jax.jit``.

    Args:
        function: ``function(x, *, parameters)``, whose result has the shape and dtype of ``x``, or is a pair of it and
            of new states by name. Keywords need defaults: `learned`, `state`, `seed`, or anything hashable, which is a
            static option. An option named ``training`` is set by layers.
    Raises:
        TypeError: other parameters.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = function.__name__
        self.__doc__, self.__module__, self.__qualname__ = function.__doc__, function.__module__, function.__qualname__
        self.backward: Callable[..., Any] | None = None
        self.parameters: dict[str, Parameter] = {}
        self.options: dict[str, Any] = {}
        first, *others = inspect.signature(function).parameters.values()
        for one in (first, *others):
            if (one is first) != (one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)) or (
                one is not first and (one.kind is not one.KEYWORD_ONLY or one.default is one.empty)
            ):
                raise TypeError(
                    f"`{self.name}` must take one array, then keywords with defaults behind `*`, got {one.name!r} of "
                    f"{inspect.signature(function)}"
                )
            if isinstance(one.default, Parameter):
                self.parameters[one.name] = one.default
            elif one is not first:
                self.options[one.name] = one.default

    def gradient(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator of ``function(g, x, *, ...)`` in the same language, with the keywords that it needs.

        It gives the gradient of ``x``, or a pair of it and of gradients of learned parameters by name; others are 0.

        Raises:
            TypeError: there is one already; a keyword that the prototype does not have.
        """
        if self.backward is not None:
            raise TypeError(f"`{self.name}` has a gradient already")
        _, _, *names = inspect.signature(function).parameters
        self.split(dict.fromkeys(names))
        self.backward = function
        return function

    def __repr__(self) -> str:
        return f"<prototype {self.name}>"

    def __copy__(self) -> "Prototype":
        return self

    def __deepcopy__(self, _: Any) -> "Prototype":
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled by name, as functions are; what has no name in a module, as the pickler can."""
        try:
            found = recalled(self.__module__, self.__qualname__)
        except (AttributeError, ImportError):
            found = None
        if found is self:
            return recalled, (self.__module__, self.__qualname__)
        return super().__reduce_ex__(protocol)

    def split(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords as static options, all of them, and arrays, those that are given.

        Raises:
            TypeError: a keyword that it does not have; text for an array.
        """
        unknown = given.keys() - self.parameters.keys() - self.options.keys()
        if unknown:
            known = ", ".join((*self.parameters, *self.options)) or "none"
            raise TypeError(f"`{self.name}` has no parameter {', '.join(sorted(unknown))}; it has {known}")
        arrays = {name: value for name, value in given.items() if name in self.parameters}
        for name, value in arrays.items():
            if isinstance(value, str):
                raise TypeError(f"`{name}` of `{self.name}` must be a number or an array, got {value!r}")
        return {name: given.get(name, value) for name, value in self.options.items()}, arrays

    def initial(self, name: str, room: Room, x: Any, options: Mapping[str, Any]) -> Any:
        """Where a parameter begins: an array of the room, of the dtype of ``x``; an int for a seed."""
        parameter = self.parameters[name]
        if parameter.kind == "seed":
            return parameter.initial
        if not callable(parameter.initial):
            return room.array((float(parameter.initial),), x).reshape(())
        run = Run(room)

        def call() -> Any:
            names = [n for n in _keywords(parameter.initial) if n in options]
            return parameter.initial(run.value("x", x), **{n: options[n] for n in names})

        value = guarded(run, parameter.initial, call, f"`{name}` of `{self.name}`, where it begins")
        if not isinstance(value, Value):
            raise TypeError(f"`{name}` of `{self.name}` must begin as a value of a formula, got {type(value).__name__}")
        return value._array

    def number(self, name: str, room: Room, x: Any, value: Any) -> Any:
        """A number of Python for a parameter as an array of the room, of the dtype of ``x``; anything else as it is."""
        if type(value) not in (int, float) or self.parameters[name].kind == "seed":
            return value
        return room.array((float(value),), x).reshape(())

    def check_forward_mode(self, called: str) -> None:
        """TypeError if it has a gradient of its own, from which no tangent follows."""
        if self.backward is not None:
            raise TypeError(
                f"`{self.name}` has a gradient of its own, `{self.backward.__name__}`, and so no forward mode "
                f"({called}): leave that out, or use straight_through"
            )

    def check_library(self, own: str, x: Any, arrays: Mapping[str, Any]) -> None:
        """TypeError if arrays are of several libraries.

        Args:
            own: the one that runs, for which arrays of NumPy count as its own.
        """
        seen = {name: _library(value, own) for name, value in {"x": x, **arrays}.items()}
        named = {name: library for name, library in seen.items() if library}
        if len(set(named.values())) > 1:
            listed = ", ".join(f"`{name}` of {library}" for name, library in named.items())
            raise TypeError(f"`{self.name}` takes arrays of one library, got {listed}")

    def check_start(self, name: str, like: Any) -> None:
        """TypeError if a parameter begins as a formula of an array that is not given."""
        if callable(self.parameters[name].initial) and like is None:
            raise TypeError(
                f"`{name}` of `{self.name}` begins as a formula of the array: give `like`, or `{name}` "
                f"(to a layer with the prefix of its tensor, as in input_like, input_{name})"
            )

    def run(
        self, run: Run, x: Any, arrays: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[Value, dict[str, Value], dict[str, Value]]:
        """The formula on arrays of a room: the result; ``x`` and the parameters, by name; and new states, by name."""
        leaves = {"x": run.value("x", x)}
        for name, array in arrays.items():
            leaves[name] = run.value(name, array)
        call = partial(self.function, leaves["x"], **options, **{name: leaves[name] for name in arrays})
        result = guarded(run, self.function, call)
        y, states = _pair(self.function, result, call)
        if not _alike(y, leaves["x"]):
            misshapen(self.function, y, leaves["x"], "x", call)
        wanted = {name for name, one in self.parameters.items() if one.kind == "state"}
        if not set(states) <= wanted:
            raise TypeError(f"`{self.name}` returns states {sorted(states)}, declared are {sorted(wanted)}")
        for name, value in states.items():
            if not isinstance(value, Value) or (name in leaves and value.shape != leaves[name].shape):
                misshapen(self.function, value, leaves[name], name, call)
        return y, leaves, states

    def pull(
        self,
        run: Run,
        x: Any,
        arrays: Mapping[str, Any],
        options: Mapping[str, Any],
        g: Any,
        asked: Collection[str] | None = None,
    ) -> dict[str, Any]:
        """Gradients of ``x`` and of learned parameters, arrays by name.

        Args:
            run: one that keeps its steps.
            g: an array, the gradient of the result.
            asked: names of those that are wanted; None for all.
        """
        wanted = ["x", *(name for name, one in self.parameters.items() if one.kind == "learned")]
        if self.backward is None:
            wanted = [name for name in wanted if asked is None or name in asked]
            y, leaves, _ = self.run(run, x, arrays, options)
            found = dict(zip(wanted, gradients(run, y, g, [leaves[name] for name in wanted]), strict=True))
        else:
            leaves = {"x": run.value("x", x), **{name: run.value(name, array) for name, array in arrays.items()}}
            names = inspect.signature(self.backward).parameters
            keywords = {name: value for name, value in {**options, **leaves}.items() if name in names and name != "x"}
            call = partial(self.backward, run.value("g", g), leaves["x"], **keywords)
            result = guarded(run, self.backward, call)
            of_x, others = _pair(self.backward, result, call)
            unknown = set(others) - set(wanted)
            if unknown:
                raise TypeError(f"the gradient of `{self.name}` names {sorted(unknown)}, learned are {wanted[1:]}")
            for name, value in {"x": of_x, **others}.items():
                if not _alike(value, leaves[name]):
                    misshapen(self.backward, value, leaves[name], name, call)
            found = {name: value._array for name, value in {"x": of_x, **others}.items()}
        wanted = [name for name in wanted if asked is None or name in asked]
        for name in wanted:
            if found.get(name) is None:
                zero = run.room.array((0.0,), leaves[name]._array).reshape(())
                found[name] = run.room.primitives.broadcast_to(zero, tuple(leaves[name]._array.shape))
        return {name: found[name] for name in wanted}


def _keywords(function: Callable[..., Any]) -> Collection[str]:
    """Names of its arguments; none of one that is built in, which is no primitive and says so when it is called."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return ()


def _checked(initial: Any) -> Any:
    """TypeError unless it is one number, or a function."""
    if (
        callable(initial)
        or isinstance(initial, int | float)
        or (hasattr(initial, "dtype") and not tuple(initial.shape))
    ):
        return initial
    raise TypeError(
        f"`initial` must be a number, or a formula of the array (as absmax is one), got {type(initial).__name__}: "
        "numbers in an array begin as a formula by constant, and a call may give arrays"
    )


def recalled(module: str, name: str) -> Any:
    """What is so called in a module: a prototype that was pickled."""
    return attrgetter(name)(import_module(module))


def _library(value: Any, own: str) -> str | None:
    """Which library an array is of; None for numbers, lists and whatever else NumPy reads."""
    root = type(value).__module__.partition(".")[0]
    known = {"numpy": own, "ml_dtypes": own, "torch": "torch", "jax": "jax", "jaxlib": "jax"}
    return known.get(root)


def _pair(function: Callable[..., Any], result: Any, again: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What a function of the user returned: a value, and others by name, if it returned some."""
    if not isinstance(result, tuple):
        return result, {}
    if len(result) != 2 or not isinstance(result[1], dict):
        misreturned(function, result, again)
    return result


def _alike(value: Any, other: Value) -> bool:
    """Not by `Value.shape`, which formulas ask for."""
    if not isinstance(value, Value):
        return False
    return tuple(value._array.shape) == tuple(other._array.shape) and value.dtype == other.dtype
