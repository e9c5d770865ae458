"""What is used instead of a state that training changes: another value, with a gradient towards the state."""

import math
from typing import Any

import torch
from torch import Tensor

from .arrays import apply_plainly, is_concrete, records_gradient


def replaced(state: Tensor, used: Tensor, *, logarithm: bool = False) -> Tensor:
    """The value that is used instead of a state, with the gradient of the identity, or of ``exp2``."""
    function: type[torch.autograd.Function] = _OfLogarithm if logarithm else _Replaced
    if is_concrete(state):
        return apply_plainly(function, state, used) if records_gradient(state) else used
    value: Tensor = function.apply(state, used)  # type: ignore[no-untyped-call]
    return value


class _OfLogarithm(torch.autograd.Function):
    """The scale of a logarithm, with the gradient ``g * (s * ln 2)``, both products rounded."""

    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, used: Tensor) -> Tensor:
        return used.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (used,) = ctx.saved_tensors
        return g * (used * math.log(2)), None


class _Replaced(torch.autograd.Function):
    """The value that is used instead of a state, with the gradient of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, used: Tensor) -> Tensor:
        return used.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None
