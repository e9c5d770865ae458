"""Prototypes on tensors: what the formula says, its gradient, and a module that holds its parameters.

Semantics and errors: `samebits.core.prototypes`, of which these have the bits. The backward pass runs the formula again
instead of keeping what it computed: only its operands stay in memory.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.descriptions import QParams
from ..core.formula_values import Room, Run
from ..core.prototype import Prototype
from . import primitives
from .arguments import check_tensor
from .arrays import narrowed


def _array(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    return narrowed(torch.tensor(numbers, dtype=torch.float64, device=like.device), like.dtype)


def _put(g: Tensor, index: Any, like: Tensor) -> Tensor:
    zeros = torch.zeros_like(like)
    zeros[index] = g
    return zeros


ROOM = Room(
    "torch",
    primitives,
    lambda value: isinstance(value, Tensor),
    _array,
    lambda x, index: x[index],
    _put,
    lambda x, axes: x.permute(axes),
)


def apply(prototype: Prototype, x: Tensor, **given: Any) -> Tensor:
    """The result of a formula.

    Args:
        x: float32, float64, bfloat16 or float16, any shape.
        given: static options, and tensors of parameters: those that are missing are where they begin.
    Returns:
        Shape and dtype of ``x``.
    Raises:
        TypeError, ValueError: what the formula does that is no primitive, with its line; other dtypes or keywords.
    """
    return updated(prototype, x, **given)[0]


def updated(prototype: Prototype, x: Tensor, **given: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """As `apply`, and the new states by name, which have no gradient."""
    options, arrays = prototype.split(given)
    check_tensor("x", x)
    for name in prototype.parameters:
        if name not in arrays:
            with torch.no_grad():
                arrays[name] = prototype.initial(name, ROOM, x, options)
        else:
            check_tensor(name, arrays[name])
    states = [name for name, one in prototype.parameters.items() if one.kind == "state"]
    names, tensors = tuple(arrays), tuple(arrays.values())
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (x, *tensors)):
        y, *new = _Formula.apply(prototype, options, names, x, *tensors)  # type: ignore[no-untyped-call]
        return y, dict(zip(states, new, strict=True))
    return _forward(prototype, options, names, x, tensors)


def _forward(
    prototype: Prototype, options: Mapping[str, Any], names: tuple[str, ...], x: Tensor, tensors: tuple[Any, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    run = Run(ROOM, guarded=not torch.compiler.is_compiling())
    with torch.no_grad():
        y, _, states = prototype.run(run, x, dict(zip(names, tensors, strict=True)), options)
    return y.array, {name: value.array for name, value in states.items()}


class _Formula(torch.autograd.Function):
    """A formula of x and its parameters, with new states as further results."""

    @staticmethod
    def forward(
        prototype: Prototype, options: dict[str, Any], names: tuple[str, ...], x: Tensor, *tensors: Any
    ) -> tuple[Tensor, ...]:
        y, states = _forward(prototype, options, names, x, tensors)
        return (y.clone() if y is x else y, *states.values())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.prototype, ctx.options, ctx.names, *operands = inputs
        ctx.save_for_backward(*operands)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_states: Any) -> tuple[Any, ...]:
        x, *tensors = ctx.saved_tensors
        run = Run(ROOM, keeps_steps=True, guarded=not torch.compiler.is_compiling())
        with torch.no_grad():
            found = ctx.prototype.pull(run, x, dict(zip(ctx.names, tensors, strict=True)), ctx.options, g)
        return None, None, None, found["x"], *(found.get(name) for name in ctx.names)


class PrototypeQuantizer(nn.Module):
    """A prototype with its parameters: learned ones are parameters, states and seeds buffers, under their names.

    In training every call leaves the new states, and seeds are one more; in evaluation all stay. Layers take it, or the
    prototype, as a quantizer; it has no codes, so they contract values.

    Args:
        prototype: the formula.
        like: a tensor like those to come, for parameters that begin as a formula of it.
        given: static options, and numbers or tensors where parameters begin.
    Raises:
        TypeError: a keyword that the prototype does not have; a parameter that needs ``like``.
    """

    quantizer = None
    bit_width = None

    def __init__(self, prototype: Prototype, like: Tensor | None = None, **given: Any) -> None:
        super().__init__()
        self.prototype, (options, arrays) = prototype, prototype.split(given)
        self.options = {name: options[name] for name in options if name != "training" or name in given}
        for name, parameter in prototype.parameters.items():
            value = arrays.get(name)
            if value is None:
                prototype.check_start(name, like)
                x = torch.zeros(()) if like is None else like.detach()
                with torch.no_grad():
                    value = prototype.initial(name, ROOM, x, options)
            if parameter.kind == "learned":
                self.register_parameter(name, nn.Parameter(_tensor(value)))
            else:
                self.register_buffer(name, _tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        """The result of the formula, of the shape and dtype of ``x``."""
        options = dict(self.options)
        if "training" in self.prototype.options:
            options.setdefault("training", self.training)
        arrays = {name: getattr(self, name) for name in self.prototype.parameters}
        kept = [name for name, one in self.prototype.parameters.items() if one.kind != "learned"]
        arrays |= {name: arrays[name].clone() for name in kept}
        y, states = updated(self.prototype, x, **options, **arrays)
        if self.training:
            with torch.no_grad():
                for name in kept:
                    old = getattr(self, name)
                    if name in states:
                        old.copy_(states[name])
                    elif self.prototype.parameters[name].kind == "seed":
                        old.add_(1)
        return y

    def qparams(self, x: Tensor) -> QParams:
        """It has none."""
        return QParams(None)

    def waits(self) -> None:
        """Nothing is delayed."""

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
        """`forward`."""
        return self.forward(x)

    def extra_repr(self) -> str:
        """Its name, and options."""
        return ", ".join([self.prototype.name, *(f"{name}={value!r}" for name, value in self.options.items())])


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float32)
