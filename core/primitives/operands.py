"""Operands of primitives as NumPy arrays of one dtype, and the decorator that makes a function a primitive."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..arguments import as_array
from ..operands import check_condition, check_operands
from ..operations import round_to_dtype

Array = NDArray[Any]
Operand = Array | float
Function = TypeVar("Function", bound=Callable[..., Any])


def primitive(count: int, *, conditions: int = 0) -> Callable[[Function], Function]:
    """Decorator of ``function(*conditions, *arrays, **options)``: operands are checked, numbers become arrays.

    Args:
        count: how many arrays or numbers the function takes.
        conditions: how many arrays of truth values it takes before those.
    """

    def decorator(function: Function) -> Function:
        names = function.__code__.co_varnames[: conditions + count]

        @wraps(function)
        def checked(*given: Any, **options: Any) -> Array:
            given += tuple(options.pop(name) for name in names[len(given) :] if name in options)
            truths = tuple(map(condition, given[:conditions]))
            arrays = operands(names[conditions:], given[conditions : conditions + count])
            with np.errstate(all="ignore"):  # special values are meant
                return np.asarray(function(*truths, *arrays, *given[conditions + count :], **options))

        return cast(Function, checked)

    return decorator


def operands(names: tuple[str, ...], given: tuple[Any, ...]) -> tuple[Array, ...]:
    """Arrays of one dtype; numbers of Python rounded to it.

    Raises:
        TypeError: a dtype that is no float, two different ones, only numbers, or no array.
        ValueError: shapes that do not broadcast.
        RuntimeError: this thread flushes subnormal numbers.
    """
    checks.check_subnormals()
    arrays: tuple[Any, ...] = tuple(
        v if is_number(v) else as_array(name, v) for name, v in zip(names, given, strict=True)
    )
    dtypes = [None if is_number(v) else v.dtype for v in arrays]
    check_operands(names, [d and d.name for d in dtypes], [getattr(v, "shape", ()) for v in arrays])
    dtype = next(d for d in dtypes if d is not None)
    return tuple(number(v, dtype) if is_number(v) else v for v in arrays)


def is_number(value: object) -> bool:
    """Whether this is a number of Python, and no truth value; numbers of NumPy have a dtype."""
    return isinstance(value, int | float) and not isinstance(value, bool | np.generic)


def number(value: float, dtype: np.dtype[Any]) -> Array:
    """A number rounded once to a dtype, 0-d."""
    return np.asarray(round_to_dtype(np.asarray(value, np.float64), dtype))


def condition(value: Any) -> Array:
    """An array of truth values. TypeError for others."""
    array = as_array("condition", value)
    check_condition(array.dtype.name)
    return array
