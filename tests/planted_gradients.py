"""Faults to plant (see `tests.planted`) in straight-through rules, gradient rules and learned rounding, as data.

``m`` is `torch` or `jax.numpy`, so that each is written once for both frameworks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import torch

from samebits.torch_frontend import straight_through

from .planted import JAX, TORCH, Make


@dataclass(frozen=True)
class GradientFault:
    """A fault: its name, which subject must find it, the function ("room.file.function") and what makes it wrong."""

    name: str
    subject: str  # "rules", "learned" or "quotient"
    target: str
    make: Make


def value_of(wrong: Callable[..., Any]) -> Make:
    """A straight-through rule with another value, and the gradient of the identity."""
    return lambda original: lambda x, *rest: straight_through._straight_through(x, wrong(x.detach(), *rest))


def _in_torch(name: str, function: str, wrong: Callable[..., Any]) -> GradientFault:
    return GradientFault(name, "rules", f"{TORCH}.straight_through.{function}", value_of(wrong))


def _instead(room: str, name: str, of: str, direction: str) -> GradientFault:
    """One direction rounds as another."""

    def make(original: Any) -> Any:
        return lambda x, rounding="ties_to_even", *rest: original(x, direction if rounding == of else rounding, *rest)

    return GradientFault(name, "rules", f"{room}.straight_through.round_ste", make)


def _vjp(room: str, name: str, function: str, wrong: Callable[..., Any]) -> GradientFault:
    return GradientFault(name, "rules", f"{room}.straight_through.{function}", lambda original: wrong)


def _zero(m: Any, x: Any) -> Any:
    return m.zeros_like(x)


def _open_clamp(m: Any) -> Callable[..., Any]:
    """The gradient of x stops at the bounds."""

    def vjp(x: Any, lo: Any, hi: Any, g: Any) -> Any:
        inside = ~((x >= hi) | (x <= lo))
        return m.where(inside, g, _zero(m, g)), m.where(x < lo, g, _zero(m, g)), m.where(x > hi, g, _zero(m, g))

    return vjp


def _open_sides(x: Any, lo: Any, hi: Any) -> tuple[Any, Any]:
    """So it does where the derivative comes from what is beyond a bound."""
    return x <= lo, x >= hi


def _clipped(original: Any) -> Any:
    """The derivative of clipping to [-1, 1] in the place of the identity's."""
    return lambda x, value: original(jnp.clip(x, -1, 1), value)


def _masked_by_product(m: Any) -> Callable[..., Any]:
    """``g * 0`` is -0, or NaN."""

    def vjp(x: Any, lo: Any, hi: Any, g: Any) -> Any:
        limited = m.where(x > hi, hi, x)
        below, above = limited < lo, x > hi
        return g * ~(below | above), g * below, g * (above & ~below)

    return vjp


RULES = [
    _instead(TORCH, "negative halves of dpu go to even", "dpu", "ties_to_even"),
    _instead(JAX, "negative halves of dpu go to even", "dpu", "ties_to_even"),
    _instead(TORCH, "halves upward instead of away", "ties_to_away", "ties_toward_positive"),
    _instead(JAX, "toward zero by floor", "toward_zero", "toward_negative"),
    _in_torch("hi wins", "tensor_clamp_ste", lambda x, lo, hi: torch.minimum(torch.maximum(x, x * 0 + lo), x * 0 + hi)),
    _in_torch("NaN becomes lo", "scalar_clamp_ste", lambda x, lo, hi: torch.clamp(x.nan_to_num(nan=lo), lo, hi)),
    _in_torch("the sign of 0 is 0", "binary_sign_ste", lambda x: x.sign()),
    _in_torch("NaN is positive", "binary_sign_ste", lambda x: torch.where(x < 0, -1.0, 1.0).to(x.dtype)),
    _in_torch("NaN has a sign", "ternary_sign_ste", lambda x: torch.where(x == 0, 0.0, torch.where(x > 0, 1.0, -1.0))),
    _in_torch("-0 goes to -lo", "signed_clamp_min_ste", lambda x, lo: torch.copysign(x.abs().clamp(min=lo), x)),
    _vjp(TORCH, "slope 0 at zero", "abs_binary_sign_grad_vjp", lambda x, g: g * x.sign()),
    _vjp(JAX, "slope 0 at zero", "abs_binary_sign_grad_vjp", lambda x, g: g * jnp.sign(x)),
    _vjp(TORCH, "bounds are outside", "tensor_clamp_vjp", _open_clamp(torch)),
    GradientFault("bounds are outside", "rules", f"{JAX}.straight_through._sides", lambda _: _open_sides),
    _vjp(TORCH, "masked by a product", "tensor_clamp_vjp", _masked_by_product(torch)),
    _vjp(TORCH, "straight-through is clipped", "pass_through_vjp", lambda g: g.clamp(-1, 1)),
    GradientFault("straight-through is clipped", "rules", f"{JAX}.straight_through._straight_through", _clipped),
]


def _library_sigmoid(original: Any) -> Any:
    def both_sides(t: Any) -> Any:
        return torch.sigmoid(-t.abs()), torch.sigmoid(t.abs())

    return both_sides


def _never_cut(original: Any) -> Any:
    """The slope goes on where the relaxation is cut off."""

    def slope(rule: Any, v: Any) -> Any:
        share = torch.sigmoid(v)
        return torch.where(original(rule, v) == 0, 1.2 * share * (1 - share), original(rule, v))

    return slope


def _down_where_up(original: Any) -> Any:
    """The limit itself goes up."""

    def offset(rule: Any, v: Any) -> Any:
        return original(rule, v) if rule.soft else torch.where(v == 0, torch.ones_like(v), original(rule, v))

    return offset


def _without_mask(original: Any) -> Any:
    """The parameter of a clamped element gets a gradient."""

    def gradient(q: Any, *operands: Any) -> Any:
        return original(q.replace(gradient="pass_through"), *operands)

    return gradient


LEARNED = [
    GradientFault("sigmoid of the library", "learned", f"{TORCH}.learned_rounding._both_sides", _library_sigmoid),
    GradientFault("slope beyond the ends", "learned", f"{TORCH}.learned_rounding.rounding_slope", _never_cut),
    GradientFault("the limit goes up", "learned", f"{TORCH}.learned_rounding.rounding_offset", _down_where_up),
    GradientFault("clamped elements learn", "learned", f"{TORCH}.routes.rounding_gradient", _without_mask),
    GradientFault("clamped elements learn", "learned", f"{JAX}.gradients.rounding_gradient", _without_mask),
]


def _of_codes(original: Any) -> Any:
    """The mask of the code, not of the quotient."""
    return lambda q, quotient, unclamped: original(q.replace(gradient="clipped"), quotient, unclamped)


def _with_hi(original: Any) -> Any:
    """``x / s = hi`` passes under the learned clip."""
    return lambda q, quotient, unclamped: original(q.replace(gradient="clipped_quotient"), quotient, unclamped)


QUOTIENT = [
    GradientFault(name, "quotient", f"{room}.ste.passing_mask", make)
    for room in (TORCH, JAX)
    for name, make in (("mask of the code", _of_codes), ("the end passes", _with_hi))
]
FAULTS = [*RULES, *LEARNED, *QUOTIENT]
