"""Prototypes on tensors: what the formula says, and its gradient.

Semantics and errors: `samebits.core.prototypes`, of which these have the bits. The backward pass runs the formula again
instead of keeping what it computed: only its operands stay in memory. Forward mode and further derivatives are those of
the primitives.
"""

from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..core.formula_values import Room, Run
from ..core.prototype import Prototype
from . import primitives
from .arguments import check_tensor
from .arrays import LOST_GRADIENTS, is_concrete, loses_gradients, may_have_tangent, narrowed, records_gradient
from .examined import examine, examine_start
from .formula_pieces import by_pieces
from .primitives.comparisons import where_by_bytes
from .primitives.operands import rounded


def _array(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    return narrowed(torch.tensor(numbers, dtype=torch.float64, device=like.device), like.dtype)


def _put(g: Tensor, index: Any, like: Tensor) -> Tensor:
    zeros = torch.zeros_like(like)
    zeros[index] = g
    return zeros


ROOM = Room(
    "torch",
    primitives,
    _array,
    lambda x, index: x[index],
    _put,
    lambda x, axes: x.permute(axes),
)
# When compiled, where what comes in is rounded first: that done at every primitive again takes inductor minutes.
INSIDE = {name: getattr(function, "of_rounded", function) for name, function in vars(primitives).items()}
FORWARD = ROOM._replace(primitives=SimpleNamespace(**INSIDE))
BACKWARD = ROOM._replace(primitives=SimpleNamespace(**{**INSIDE, "where": where_by_bytes}))


def apply(prototype: Prototype, x: Tensor, **given: Any) -> Tensor:
    """The result of a formula.

    Args:
        x: float32, float64, bfloat16 or float16, any shape.
        given: static options, and tensors or numbers for parameters: those that are missing are where they begin.
    Returns:
        Shape and dtype of ``x``.
    Raises:
        TypeError, ValueError: what the formula does that is no primitive, with its line; other dtypes or keywords.
    """
    return updated(prototype, x, **given)[0]


def updated(prototype: Prototype, x: Tensor, **given: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """As `apply`, and the new states by name, which have no gradient."""
    options, arrays = _given(prototype, x, given)
    names, tensors = tuple(arrays), tuple(arrays.values())
    moves = records_gradient(*(t for t in (x, *tensors) if isinstance(t, Tensor)))
    if torch.compiler.is_compiling():
        if loses_gradients():
            raise RuntimeError(LOST_GRADIENTS)
        examine(prototype, options, names, (x, *tensors), moves)
    elif _has_tangents(x, *tensors):
        prototype.check_forward_mode("torch.func.jvp, torch.autograd.forward_ad")
        value, _, states = prototype.run(Run(ROOM), x, arrays, options)
        return value._array, {name: state._array.detach() for name, state in states.items()}
    if not moves:
        return _forward(prototype, options, names, x, tensors)
    y, *new = _Formula.apply(prototype, options, names, x, *tensors)  # type: ignore[no-untyped-call]
    if torch.compiler.is_exporting():
        y = torch.ops.samebits.inference_only(y, [t for t in (x, *tensors) if t.is_floating_point()])
    return y, dict(zip([n for n, one in prototype.parameters.items() if one.kind == "state"], new, strict=True))


def vjp(prototype: Prototype, x: Tensor, g: Tensor, **given: Any) -> dict[str, Tensor]:
    """Gradients of ``x`` and of learned parameters, by name, from that of the result; what autograd gives.

    Args:
        x, given: as `apply`.
        g: shape and dtype of ``x``.
    """
    check_tensor("g", g)
    options, arrays = _given(prototype, x, given)
    with torch.no_grad():
        return _gradients(prototype, options, arrays, x, g)


def _given(prototype: Prototype, x: Tensor, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    options, arrays = prototype.split(given)
    check_tensor("x", x)
    for name in prototype.parameters:
        with torch.no_grad():
            if name not in arrays:
                by_formula = callable(prototype.parameters[name].initial)
                if by_formula and torch.compiler.is_compiling() and not loses_gradients():
                    examine_start(prototype, name, options, x)
                arrays[name] = prototype.initial(name, ROOM, x, options)
            arrays[name] = prototype.number(name, ROOM, x, arrays[name])
        if isinstance(arrays[name], int):
            arrays[name] = torch.tensor(arrays[name])
        else:
            check_tensor(name, arrays[name])
    return options, {name: arrays[name] for name in prototype.parameters}


def _has_tangents(*tensors: Any) -> bool:
    """Whether forward mode is at work, as far as these tensors can tell."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    if any(level.key() == torch._C._functorch.TransformType.Jvp for level in stack):
        return True
    return forward_ad._current_level >= 0 and any(isinstance(t, Tensor) and may_have_tangent(t) for t in tensors)


def _gradients(
    prototype: Prototype,
    options: Mapping[str, Any],
    arrays: Mapping[str, Any],
    x: Tensor,
    g: Tensor,
    asked: Collection[str] | None = None,
) -> dict[str, Tensor]:
    def of_x(room: Room, operands: Sequence[Any]) -> tuple[Run, Tensor]:
        run, (of_y, x, *tensors) = _run(room, keeps_steps=True), operands
        given = dict(zip(arrays, tensors, strict=True))
        return run, prototype.pull(run, x, given, options, of_y, asked)["x"]

    if not torch.is_grad_enabled() and asked is not None and set(asked) == {"x"} and g.dtype == x.dtype:
        gradient = by_pieces(of_x, ROOM, (g, x), tuple(arrays.values()))
        if gradient is not None:
            return {"x": gradient}
    room = ROOM
    if torch.compiler.is_compiling():
        room, x, g = BACKWARD, rounded(x), rounded(g)
        arrays = {name: _rounded(v) for name, v in arrays.items()}
    return prototype.pull(_run(room, keeps_steps=True), x, arrays, options, g, asked)


def _forward(
    prototype: Prototype, options: Mapping[str, Any], names: tuple[str, ...], x: Tensor, tensors: tuple[Any, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    def result(room: Room, operands: Sequence[Any]) -> tuple[Run, Tensor]:
        run, (x, *tensors) = _run(room), operands
        return run, prototype.run(run, x, dict(zip(names, tensors, strict=True)), options)[0]._array

    with torch.no_grad():
        if all(one.kind == "learned" for one in prototype.parameters.values()):
            found = by_pieces(result, ROOM, (x,), tensors)
            if found is not None:
                return found, {}
        room, operand = ROOM, x
        if torch.compiler.is_compiling():
            room, operand, tensors = FORWARD, rounded(x), tuple(map(_rounded, tensors))
        y, _, states = prototype.run(_run(room), operand, dict(zip(names, tensors, strict=True)), options)
    value = y._array
    same = value is x or (is_concrete(x) and value.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() != 0)
    return (value.clone() if same else value), {name: value._array for name, value in states.items()}


def _rounded(given: Any) -> Any:
    return rounded(given) if isinstance(given, Tensor) and given.is_floating_point() else given


def _run(room: Room, keeps_steps: bool = False) -> Run:
    return Run(room, keeps_steps, guarded=not torch.compiler.is_compiling())


class _Formula(torch.autograd.Function):
    """A formula of x and its parameters, with new states as further results."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        prototype: Prototype, options: dict[str, Any], names: tuple[str, ...], x: Tensor, *tensors: Any
    ) -> tuple[Tensor, ...]:
        y, states = _forward(prototype, options, names, x, tensors)
        return (y, *states.values())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.prototype, ctx.options, ctx.names, *operands = inputs
        ctx.save_for_backward(*operands)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_states: Any) -> tuple[Any, ...]:
        x, *tensors = ctx.saved_tensors
        arrays = dict(zip(ctx.names, tensors, strict=True))
        asked = [name for name, ask in zip(("x", *ctx.names), ctx.needs_input_grad[3:], strict=True) if ask]
        again = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # to be differentiated once more
        with torch.set_grad_enabled(again):
            found = _gradients(ctx.prototype, ctx.options, arrays, x, g, asked)
        return None, None, None, *(found.get(name) for name in ("x", *ctx.names))
