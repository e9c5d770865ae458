"""Values of a formula: arrays of one room whose operators are primitives, and the steps by which they were made."""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .granularity import Shape
from .operands import check_index

OPERANDS: Mapping[str, int] = {  # the primitives, and how many arrays or numbers each takes first
    **dict.fromkeys(("absolute", "negative", "sign", "sqrt", "exponent", "significand", "is_nan", "is_finite"), 1),
    **dict.fromkeys(("exp", "exp2", "log", "log2", "tanh", "sigmoid", "erf", "floor", "ceil", "trunc"), 1),
    **dict.fromkeys(("round", "to_format", "cast", "broadcast_to", "stop_gradient"), 1),
    **dict.fromkeys(("absmax", "amax", "amin", "sum", "mean", "percentile"), 1),
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "minimum", "maximum", "copysign", "power"), 2),
    **dict.fromkeys(("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"), 2),
    **dict.fromkeys(("scale_by_power", "straight_through", "take"), 2),
    **dict.fromkeys(("fused_multiply_add", "clamp", "where"), 3),
}
OPTIONS: Mapping[str, tuple[str, ...]] = {  # what may follow them by place
    **dict.fromkeys(("absmax", "amax", "amin", "sum", "mean"), ("axis", "keepdims")),
    "percentile": ("percent", "axis", "keepdims"),
    "round": ("direction", "noise"),
    "to_format": ("format", "rounding", "noise"),
    "cast": ("dtype",),
    "broadcast_to": ("shape",),
}


class Room(NamedTuple):
    """What runs formulas: the primitives of a room, and what it takes to move its arrays about."""

    name: str
    primitives: Any
    array: Callable[[Any, Any], Any]  # an array of a tuple of numbers, in the dtype and on the device of another
    taken: Callable[[Any, Any], Any]  # x[index]
    put: Callable[[Any, Any, Any], Any]  # zeros like the second, with the first at an index
    transposed: Callable[[Any, tuple[int, ...]], Any]


class Step(NamedTuple):
    """One primitive that ran: its name, operands (values or numbers), options, result, and where it was called."""

    name: str
    operands: tuple[Any, ...]
    options: Mapping[str, Any]
    result: Any
    place: tuple[str, int] | None = None


class Run:
    """One run of a formula.

    Attributes:
        room: whose primitives run.
        steps: those that ran, if they are kept; else None.
        file: of the formula, if every step is to say its line.
        guarded: whether errors are to say theirs; not while a compiler follows.
        sees_shapes: whether the formula asked for the shape of a value.
    """

    __slots__ = ("file", "guarded", "room", "sees_shapes", "steps")

    def __init__(self, room: Room, keeps_steps: bool = False, file: str | None = None, guarded: bool = True) -> None:
        self.room, self.file, self.guarded = room, file, guarded
        self.steps: list[Step] | None = [] if keeps_steps else None
        self.sees_shapes = False

    def value(self, name: str, array: Any, operands: tuple[Any, ...] = (), /, **options: Any) -> "Value":
        """The result of a step."""
        if self.steps is None:
            return Value(self, array, 0)
        place = None if self.file is None else _line(self.file)
        self.steps.append(Step(name, operands, options, array, place))
        return Value(self, array, len(self.steps) - 1)


class Value:
    """An array inside a formula, whose operators are primitives.

    So ``+ - * / ** -x abs(x) round(x) < <= > >= == !=``, and of truth values ``& | ~``.

    ``x ** 2`` is ``x * x``, rounded once; other powers are `power`. ``x[...]``, ``reshape`` and ``transpose`` move
    elements, ``shape``, ``ndim`` and ``dtype`` (a name) are known while the formula runs. The array itself is not for
    formulas: what they computed on it would be no primitive.
    """

    __slots__ = ("_array", "number", "run")
    __hash__ = None  # type: ignore[assignment]
    __iter__ = None
    __array_ufunc__ = None
    __array_priority__ = 1000

    def __init__(self, run: Run, array: Any, number: int) -> None:
        self.run, self._array, self.number = run, array, number

    @property
    def shape(self) -> Shape:
        """Lengths of the axes."""
        self.run.sees_shapes = True
        return tuple(self._array.shape)

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        self.run.sees_shapes = True
        return len(self._array.shape)

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return str(self._array.dtype).removeprefix("torch.")

    def reshape(self, *shape: Any) -> "Value":
        """The same elements in another shape, in row-major order; one length may be -1."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        known, count = math.prod([n for n in wanted if n != -1]), math.prod(self.shape)
        if (known != count) if -1 not in wanted else (not known or count % known):
            raise ValueError(f"`reshape` must keep the {count} elements of shape {self.shape}, got {wanted}")
        return self.run.value("reshape", self._array.reshape(wanted), (self,))

    def transpose(self, *axes: int) -> "Value":
        """The axes in another order; reversed, if none is given."""
        order = axes or tuple(range(self.ndim))[::-1]
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"`transpose` must name every axis of shape {self.shape} once, from 0, got {axes}")
        return self.run.value("transpose", self.run.room.transposed(self._array, order), (self,), axes=order)

    def __getitem__(self, index: Any) -> "Value":
        check_index(index, self.shape)
        return self.run.value("index", self.run.room.taken(self._array, index), (self,), index=index)

    def __add__(self, other: Any) -> "Value":
        return called("add", self, other)

    def __radd__(self, other: Any) -> "Value":
        return called("add", other, self)

    def __sub__(self, other: Any) -> "Value":
        return called("subtract", self, other)

    def __rsub__(self, other: Any) -> "Value":
        return called("subtract", other, self)

    def __mul__(self, other: Any) -> "Value":
        return called("multiply", self, other)

    def __rmul__(self, other: Any) -> "Value":
        return called("multiply", other, self)

    def __truediv__(self, other: Any) -> "Value":
        return called("divide", self, other)

    def __rtruediv__(self, other: Any) -> "Value":
        return called("divide", other, self)

    def __pow__(self, other: Any) -> "Value":
        if not isinstance(other, Value) and other == 2:
            return called("multiply", self, self)
        return called("power", self, other)

    def __rpow__(self, other: Any) -> "Value":
        return called("power", other, self)

    def __neg__(self) -> "Value":
        return called("negative", self)

    def __abs__(self) -> "Value":
        return called("absolute", self)

    def __round__(self) -> "Value":
        return called("round", self)

    def __lt__(self, other: Any) -> "Value":
        return called("less", self, other)

    def __le__(self, other: Any) -> "Value":
        return called("less_equal", self, other)

    def __gt__(self, other: Any) -> "Value":
        return called("greater", self, other)

    def __ge__(self, other: Any) -> "Value":
        return called("greater_equal", self, other)

    def __eq__(self, other: object) -> "Value":  # type: ignore[override]
        return called("equal", self, other)

    def __ne__(self, other: object) -> "Value":  # type: ignore[override]
        return called("not_equal", self, other)

    def __and__(self, other: Any) -> "Value":
        return self.run.value("and", _truths(self) & _truths(other), (self, other))

    def __or__(self, other: Any) -> "Value":
        return self.run.value("or", _truths(self) | _truths(other), (self, other))

    def __invert__(self) -> "Value":
        return self.run.value("not", ~_truths(self), (self,))

    def __bool__(self) -> bool:
        raise TypeError(
            "a formula has no `if`, `and`, `or`, `max` or `min` on values, which differ by element: use where"
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a value of a formula is no array of NumPy")

    def __array_function__(self, *_: Any) -> Any:
        raise TypeError("a function of NumPy is no primitive")


def called(name: str, *given: Any, **options: Any) -> Value:
    """A primitive of the room whose values are given.

    Raises:
        TypeError: an operand that is neither a value nor a number of Python, or no value among them; and what the
            primitive raises, as its ValueError.
    """
    operands, further = given[: OPERANDS[name]], given[OPERANDS[name] :]
    if len(operands) < OPERANDS[name] or len(further) > len(OPTIONS.get(name, ())):
        then = "".join(f", {option}" for option in OPTIONS.get(name, ()))
        raise TypeError(f"`{name}` takes by place {OPERANDS[name]} operands{then}, got {len(given)} by place")
    options = {**dict(zip(OPTIONS.get(name, ()), further, strict=False)), **options}
    for value in operands:
        if not isinstance(value, Value) and type(value) not in (int, float):  # no bool, nor float64 of NumPy
            raise _foreign(name, value)
    values = [v for v in operands if isinstance(v, Value)]
    if not values:
        raise TypeError(f"`{name}` must be given a value of the formula, got numbers only")
    run = values[0].run
    for value in options.values():
        if not isinstance(value, Value) and hasattr(value, "dtype"):
            raise _foreign(name, value)
    plain = {key: v._array if isinstance(v, Value) else v for key, v in options.items()}
    array = getattr(run.room.primitives, name)(*[v._array if isinstance(v, Value) else v for v in operands], **plain)
    return run.value(name, array, operands, **options)


def _foreign(name: str, value: Any) -> TypeError:
    return TypeError(
        f"`{name}` takes values of the formula and numbers of Python, got {type(value).__module__}."
        f"{type(value).__qualname__}: arrays come in as parameters or by constant, numbers of NumPy by float()"
    )


def _truths(value: Any) -> Any:
    if not isinstance(value, Value) or value.dtype != "bool":
        raise TypeError("`&`, `|` and `~` are of truth values, as comparisons give them")
    return value._array


def _line(file: str) -> tuple[str, int] | None:
    """Where in the file of the formula this is."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else (file, frame.f_lineno)
