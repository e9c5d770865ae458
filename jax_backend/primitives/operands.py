"""Operands of primitives as JAX arrays of one dtype; the decorator that makes functions differentiable primitives."""

import math
from collections.abc import Callable
from functools import reduce, wraps
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.granularity import Shape
from ...core.operands import check_condition, check_operands
from ...core.partial_derivatives import RULES, Linear
from ..arrays import as_array, is_concrete
from ..derivatives import differentiable_again

Array = jax.Array
Operand = Any  # an array, or a number of Python: functions themselves get arrays
Function = TypeVar("Function", bound=Callable[..., Any])
COMPUTE: dict[str, Callable[..., Array]] = {}  # by name, what primitives do with operands that fit each other


def primitive(count: int, *, conditions: int = 0) -> Callable[[Function], Function]:
    """Decorator of ``function(*conditions, *arrays, **options)``: operands are checked, numbers become arrays.

    The derivative is that of `RULES`, or 0 where these have none.

    Args:
        count: how many arrays or numbers the function takes.
        conditions: how many arrays of truth values it takes before those.
    """

    def decorator(function: Function) -> Function:
        names, name = function.__code__.co_varnames[: conditions + count], function.__name__
        COMPUTE[name] = function

        @wraps(function)
        def checked(*given: Any, **options: Any) -> Array:
            given += tuple(options.pop(one) for one in names[len(given) :] if one in options)
            truths = tuple(map(condition, given[:conditions]))
            arrays = operands(names[conditions:], given[conditions : conditions + count])
            shape = jnp.broadcast_shapes(*(v.shape for v in (*truths, *arrays)))
            truths = tuple(jnp.broadcast_to(v, shape) for v in truths)
            arrays = tuple(broadcast(v, shape) for v in arrays)
            if name in RULES:
                return moved(name, (*given[conditions + count :], *options.values()), *truths, *arrays)
            fixed = map(lax.stop_gradient, arrays)
            return cast(Array, function(*truths, *fixed, *given[conditions + count :], **options))

        return cast(Function, checked)

    return decorator


def operands(names: tuple[str, ...], given: tuple[Any, ...]) -> tuple[Array, ...]:
    """Arrays of one dtype; numbers of Python rounded to it.

    Raises:
        TypeError: a dtype that is no float, two different ones, only numbers, or no array.
        ValueError: shapes that do not broadcast.
    """
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


def number(value: float, dtype: Any) -> Array:
    """A number rounded once to a dtype, 0-d. To bfloat16 by way of the float32 that is odd where it is not exact."""
    wide = np.float64(value)
    with np.errstate(over="ignore"):
        if dtype == jnp.bfloat16:
            single = np.float32(wide)
            if np.isfinite(wide) and np.float64(single) != wide and single.view(np.uint32) % 2 == 0:
                single = np.nextafter(single, np.float32(np.inf if wide > single else -np.inf))
            return jnp.asarray(single.astype(dtype))
        return jnp.asarray(wide.astype(dtype))


def condition(value: Any) -> Array:
    """An array of truth values. TypeError for others."""
    array = as_array("condition", value)
    check_condition(array.dtype.name)
    return array


def broadcast(x: Array, shape: Shape) -> Array:
    """``x`` repeated to a shape; the gradient is the `sum` over what was repeated."""
    lengths = (1,) * (len(shape) - x.ndim) + x.shape
    repeated = [i for i, n in enumerate(shape) if n != lengths[i]]
    if not repeated:
        return x.reshape(shape)
    kept = [i for i in range(len(shape)) if i not in repeated]
    order = [*kept, *repeated]
    ones = x.reshape([lengths[i] for i in kept])
    wide = moved("spread", (math.prod(shape[i] for i in repeated),), ones).reshape([shape[i] for i in order])
    return wide.transpose([order.index(i) for i in range(len(shape))])


def spread(x: Array, n: int) -> Array:
    """``x`` repeated along a new last axis."""
    return jnp.broadcast_to(x[..., None], (*x.shape, n))


COMPUTE["spread"] = spread


def _computed(static: tuple[str, tuple[Any, ...]], *arrays: Array) -> Array:
    name, options = static
    return COMPUTE[name](*arrays, *options)


_compiled = jax.jit(_computed, static_argnums=0)


def _compute(static: tuple[str, tuple[Any, ...]], *arrays: Array) -> Array:
    """Outside of `jax.jit` a program of its own: op by op, a sum of 5,000 numbers would be 471 programs."""
    value: Array = (_compiled if is_concrete(*arrays) else _computed)(static, *arrays)
    return value


def _maps(static: tuple[str, tuple[Any, ...]], value: Array, *arrays: Array) -> tuple[Linear | None, ...]:
    from .. import primitives as p

    maps: tuple[Linear | None, ...] = RULES[static[0]](p, value, *arrays)
    return maps


def _total(pushed: list[Array]) -> Array:
    from .. import primitives as p

    return reduce(p.add, pushed)


_differentiable = differentiable_again(_compute, _maps, _total)


def moved(name: str, options: tuple[Any, ...], *arrays: Array) -> Array:
    """A primitive that has a rule, of arrays that fit each other."""
    value: Array = _differentiable((name, options), *arrays)
    return value
