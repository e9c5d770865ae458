"""What is used instead of a state that training changes: another value, with a gradient towards the state."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.descriptions import QParams, Quantizer
from . import routes
from .arrays import apply, apply_plainly, is_concrete, records_gradient, rounded_to


class Call(NamedTuple):
    """What one call of a quantizer used: to be used again where it is repeated."""

    used: QParams
    collects: Tensor | None  # whether the state, learned later, still was a statistic
    waits: Tensor | None  # whether the tensor passed unquantized

    @classmethod
    def of(cls, used: QParams, collects: Tensor | None, waits: Tensor | None) -> "Call":
        """The same, a constant to autograd."""
        zero = used.zero_point
        values = QParams(used.scale.detach(), None if zero is None else zero.detach(), seed=used.seed)
        return cls(values, collects, waits)


def unless_waiting(q: Quantizer, x: Tensor, qparams: QParams, waits: Tensor) -> Tensor:
    """`fake_quantize` of ``x``, but ``x``, with the gradients of the identity, where it ``waits``."""
    return apply(_UnlessWaiting, x, *qparams[:4], waits, q)


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


def unlearned(state: Tensor, of_batch: Tensor | None, collects: Tensor) -> Tensor:
    """The state, or what the batch gives instead, with a gradient of 0, where the state ``collects``."""
    return torch.where(collects, state.detach() if of_batch is None else of_batch.to(state.dtype), state)


def give_shape(state: Tensor, shape: tuple[int, ...]) -> None:
    """Lets a state of unknown shape, which holds nothing, take this one; parameters stay the same objects."""
    if not state.numel() and state.shape != shape:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "a scale of yet unknown shape cannot be set in compiled code: run the first batch eagerly"
            )
        state.data = torch.full(shape, torch.nan, dtype=state.dtype, device=state.device)


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
        ctx.save_for_forward(used)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (used,) = ctx.saved_tensors
        return g * (used * math.log(2)) if ctx.logarithm else g, None, None

    @staticmethod
    def tangent(ctx: Any, t: Tensor, *_: None) -> Tensor:
        (used,) = ctx.saved_tensors
        return t * (used * math.log(2)) if ctx.logarithm else t.clone()


class _UnlessWaiting(torch.autograd.Function):
    """`fake_quantize`, but the identity where ``waits``: one function, so that no gradient is added to another."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        bit_width: Tensor | None,
        seed: Tensor | None,
        waits: Tensor,
        q: Quantizer,
    ) -> Tensor:
        return torch.where(waits, x, routes.forward(q, x, scale, zero_point, seed, bit_width))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # zeros times infinite slopes would be NaN
        *tensors, ctx.q = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 7
        x, scale, zero_point, width, seed, waits = ctx.saved_tensors
        d = routes.gradients(ctx.q, x, scale, zero_point, g, ctx.needs_input_grad[:4], seed, width)
        others = (None if t is None else torch.where(waits, 0.0, t) for t in d[1:4])
        return None if d.x is None else torch.where(waits, g, d.x), *others, None, None, None

    @staticmethod
    def tangent(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, scale, zero_point, width, seed, waits = ctx.saved_tensors
        t = routes.tangent(ctx.q, x, scale, zero_point, tangents[:5], seed, width)
        return torch.where(waits, torch.zeros_like(x) if tangents[0] is None else tangents[0], t)
