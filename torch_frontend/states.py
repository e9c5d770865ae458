"""What is used instead of a state that training changes: another value, with a gradient towards the state."""

import math
from typing import Any

import torch
from torch import Tensor

from .arrays import apply, apply_plainly, is_concrete, records_gradient, rounded_to


def replaced(state: Tensor, used: Tensor, *, logarithm: bool = False) -> Tensor:
    """The value that is used instead of a state, with the gradient of the identity, or of ``exp2``."""
    if is_concrete(state):
        return apply_plainly(_Replaced, state, used, logarithm) if records_gradient(state) else used
    return apply(_Replaced, state, used, logarithm)


def widened_state(state: Tensor) -> Tensor:
    """A floating-point tensor of 16 bits in float32, exactly, with its history; others as they are.

    In compiled code rounded to its own precision first, as in `arrays.widened`.
    """
    if state.element_size() != 2 or not state.is_floating_point():
        return state
    wide = state.to(torch.float32)
    return replaced(wide, rounded_to(wide.detach(), state.dtype)) if torch.compiler.is_compiling() else wide


class _Replaced(torch.autograd.Function):
    """The value that is used, with the gradient ``g``; of a logarithm ``g * (s * ln 2)``, both products rounded."""

    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, used: Tensor, logarithm: bool) -> Tensor:
        return used.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, used, ctx.logarithm = inputs
        ctx.save_for_backward(used)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (used,) = ctx.saved_tensors
        return g * (used * math.log(2)) if ctx.logarithm else g, None, None
