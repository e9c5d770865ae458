"""Operands of primitives as tensors of one dtype; the decorator that makes functions differentiable primitives."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ...core.granularity import Shape
from ...core.operands import check_condition, check_operands
from ...core.partial_derivatives import RULES, Linear
from ..arguments import check_tensor
from ..arithmetics import number_of
from ..arrays import (
    apply,
    dtype_name,
    is_concrete,
    loses_gradients,
    narrowed,
    records_gradient,
    refuse_flushing,
    widened,
)
from ..expressions import bits_of, carried, sign_of

Operand = Any  # an array, or a number of Python: functions themselves get arrays
Function = TypeVar("Function", bound=Callable[..., Any])
COMPUTE: dict[str, Callable[..., Tensor]] = {}  # by name, what primitives do with operands that fit each other

LIMITS: dict[str, Callable[..., Tensor | None]] = {}  # by name, what is simpler where the operands behind x are numbers


def primitive(count: int, *, conditions: int = 0) -> Callable[[Function], Function]:
    """Decorator of ``function(*conditions, *tensors, **options)``: operands are checked, numbers become tensors.

    The derivative is that of `RULES`, or 0 where these have none. Its attribute ``of_rounded`` is the same for tensors
    that other primitives made: `rounded` is left out, which compilers would write out again at every use.

    Args:
        count: how many tensors or numbers the function takes.
        conditions: how many tensors of truth values it takes before those.
    """

    def decorator(function: Function) -> Function:
        names, name = function.__code__.co_varnames[: conditions + count], function.__name__
        COMPUTE[name] = function

        @wraps(function)
        def of_rounded(*given: Any, **options: Any) -> Tensor:
            tensors = operands(names[conditions:], given[conditions:][:count])
            if len(given) < conditions + count or may_move(tensors):
                return checked(*given, **options)
            if name in LIMITS and (limited := _limited(name, tensors, given[1:])) is not None:
                return limited
            truths = map(condition, given[:conditions])
            result: Tensor = function(*truths, *tensors, *given[conditions + count :], **options)
            return result

        @wraps(function)
        def checked(*given: Any, **options: Any) -> Tensor:
            given += tuple(options.pop(one) for one in names[len(given) :] if one in options)
            truths = tuple(condition(one) for one in given[:conditions])
            tensors = operands(names[conditions:], given[conditions : conditions + count])
            limited = LIMITS[name](tensors[0], *given[1:]) if name in LIMITS and not may_move(tensors) else None
            if limited is not None:
                return limited
            if name in RULES:
                return differentiable(name, (*truths, *tensors), (*given[conditions + count :], *options.values()))
            fixed = [rounded(v.detach()) for v in tensors]
            result: Tensor = function(*truths, *fixed, *given[conditions + count :], **options)
            return result

        checked.of_rounded = of_rounded  # type: ignore[attr-defined]
        return cast(Function, checked)

    return decorator


def operands(names: tuple[str, ...], given: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Tensors of one dtype; numbers of Python rounded to it.

    Raises:
        TypeError: a dtype that is no float, two different ones, only numbers, or no tensor.
        ValueError: shapes that do not broadcast.
        RuntimeError: this thread flushes subnormal numbers.
    """
    for name, value in zip(names, given, strict=True):
        if not is_number(value):
            check_tensor(name, value)
    tensors = [v for v in given if isinstance(v, Tensor)]
    if not torch.compiler.is_compiling():
        refuse_flushing(*tensors)
    dtypes = [dtype_name(v.dtype) if isinstance(v, Tensor) else None for v in given]
    check_operands(names, dtypes, [tuple(v.shape) if isinstance(v, Tensor) else () for v in given])
    return tuple(v if isinstance(v, Tensor) else number(v, tensors[0]) for v in given)


def rounded(x: Tensor) -> Tensor:
    """``x``; in compiled code of 16 bits rounded to its dtype, since it may come from an operation that was not.

    By its bits, through which no gradient goes: so only where derivatives are taken care of."""
    if x.element_size() != 2 or not torch.compiler.is_compiling():
        return x
    return widened(x).to(x.dtype)


def is_number(value: object) -> bool:
    """Whether this is a number of Python, and no truth value."""
    return isinstance(value, int | float | torch.SymInt | torch.SymFloat) and not isinstance(value, bool)


def number(value: float, like: Tensor) -> Tensor:
    """A number rounded once to the dtype of a tensor, 0-d. -0.0 by its bits, since compilers drop signs.

    In compiled code it is rounded while that is made, if it is a constant there: expressions that round it would be
    written out again wherever it is used.
    """
    known = torch.compiler.is_compiling() and _is_static(value)
    if known:
        value = number_of(value, like.dtype)
    if value == 0:
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        bits = sign_of(wide) if math.copysign(1.0, value) < 0 else 0
        return torch.full((), bits, dtype=bits_of(wide), device=like.device).view(wide).to(like.dtype)
    if known:
        return torch.full((), value, dtype=like.dtype, device=like.device)
    return narrowed(torch.full((), value, dtype=torch.float64, device=like.device), like.dtype)


def _limited(name: str, tensors: tuple[Tensor, ...], given: tuple[Any, ...]) -> Tensor | None:
    """What is simpler between numbers, of 16 bits in the dtype that compilers hold them in."""
    x, *others = tensors
    known = (number_of(v, x.dtype) if is_number(v) and _is_static(v) else t for v, t in zip(given, others, strict=True))
    limited = LIMITS[name](carried(x), *known)
    return None if limited is None else limited.to(x.dtype)


def _is_static(value: float) -> bool:
    """Whether dynamo knows a number, which it does not if it varies between calls."""
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return bool(has_static_value(value))


def condition(value: Any) -> Tensor:
    """A tensor of truth values. TypeError for others."""
    check_tensor("condition", value)
    check_condition(dtype_name(value.dtype))
    return cast(Tensor, value)


def differentiable(name: str, tensors: tuple[Tensor, ...], options: tuple[Any, ...] = ()) -> Tensor:
    """A primitive that has a rule, of tensors that fit each other."""
    if not may_move(tensors):
        return COMPUTE[name](*map(rounded, tensors), *options)
    if name not in WHOLE:
        shape = torch.broadcast_shapes(*(v.shape for v in tensors))  # type: ignore[no-untyped-call]
        tensors = tuple(broadcast(v, shape) for v in tensors)
    return apply(_Primitive, name, options, *tensors)


# whose result may lie in the memory of an operand, which autograd must not see
VIEWS = ("spread", "added", "cast", "straight_through")
WHOLE = ("spread", "added", "nth", "looked_up")  # whose operands have shapes of their own


def broadcast(x: Tensor, shape: Shape) -> Tensor:
    """``x`` repeated to a shape; the gradient is the `sum` over what was repeated."""
    lengths = (1,) * (len(shape) - x.ndim) + tuple(x.shape)
    repeated = [i for i, n in enumerate(shape) if n != lengths[i]]
    if not repeated or not x.is_floating_point() or not may_move((x,)):
        return x.expand(shape)
    kept = [i for i in range(len(shape)) if i not in repeated]
    ones = x.reshape([lengths[i] for i in kept])
    spread = apply(_Primitive, "spread", (math.prod([shape[i] for i in repeated]),), ones)
    order = [*kept, *repeated]
    return spread.reshape([shape[i] for i in order]).permute([order.index(i) for i in range(len(shape))])


def spread(x: Tensor, n: int) -> Tensor:
    """``x`` repeated along a new last axis."""
    return x[..., None].expand(*x.shape, n)


COMPUTE["spread"] = spread


def may_move(tensors: tuple[Tensor, ...]) -> bool:
    """Whether derivatives may be asked for. In backward passes that are compiled they are not."""
    if torch.compiler.is_compiling():
        return records_gradient(*tensors) or loses_gradients()
    return records_gradient(*tensors) or not is_concrete(*tensors)


class _Primitive(torch.autograd.Function):
    """Operands of one shape, and the rule of the name."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, options: tuple[Any, ...], *tensors: Tensor) -> Tensor:
        value = COMPUTE[name](*map(rounded, tensors), *options)
        return value.clone() if name in VIEWS else value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]
        if not torch.compiler.is_compiling():  # what does not move adds nothing, not even a zero's sign
            ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, *inputs[2:])
        ctx.save_for_forward(output, *inputs[2:])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        asked = ctx.needs_input_grad[2:]
        if g is None:
            return None, None, *(None for _ in asked)
        maps = _maps(ctx)
        given = tuple(one.pull(g) if one and ask else None for one, ask in zip(maps, asked, strict=True))
        return None, None, *given

    @staticmethod
    def tangent(ctx: Any, _name: None, _options: None, *tangents: Tensor | None) -> Tensor:
        from .. import primitives as p

        pushed = [one.push(t) for one, t in zip(_maps(ctx), tangents, strict=True) if one and t is not None]
        if not pushed:
            return torch.zeros_like(ctx.saved_tensors[0])
        total: Tensor = pushed[0]
        for one in pushed[1:]:
            total = p.add(total, one)
        return total


def _maps(ctx: Any) -> tuple[Linear | None, ...]:
    from .. import primitives as p

    maps: tuple[Linear | None, ...] = RULES[ctx.name](p, *ctx.saved_tensors)
    return maps
