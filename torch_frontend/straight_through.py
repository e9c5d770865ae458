"""The named straight-through rules of the field, by torch's native operators and `torch.autograd.Function`.

They work in eager code, in ``torch.compile(fullgraph=True)``, under ``torch.func`` and in forward mode. Formulas,
special values and sources stand in `samebits.core.straight_through`, of which these have the bits. 16-bit ``x`` is
widened, since a compiler may hand on a value that it has not rounded.
"""

from typing import Any

import torch
from torch import Tensor

from ..core import checks
from ..core.choice import choice
from ..core.directions import Rounding
from .arguments import check_tensor
from .arrays import apply, dtype_name, narrowed, refuse_flushing, rounded_to, wide_dtype, widened
from .rounding import round_to_integer


def pass_through_vjp(g: Tensor) -> Tensor:
    """``g``: the gradient of every ``*_ste`` towards ``x``."""
    return g.clone()


def round_ste(x: Tensor, rounding: Rounding | str = Rounding.TIES_TO_EVEN, noise: Tensor | None = None) -> Tensor:
    """``x`` rounded to an integer in a direction of `Rounding`, gradient 1.

    Args:
        noise: what the direction needs besides ``x``, see `round_to_integer`; same shape.
    Raises:
        TypeError: ``x`` is no floating-point tensor.
        ValueError: ``rounding`` is no direction, or ``noise`` is missing.
    """
    direction = choice("rounding", rounding, Rounding)
    value = _value(x)
    return _straight_through(x, round_to_integer(value, direction, noise))


def tensor_clamp(x: Tensor, lo: Tensor | float, hi: Tensor | float) -> Tensor:
    """``x`` limited to ``[lo, hi]``, lo wins if lo > hi; differentiable in all three, see `tensor_clamp_vjp`.

    Args:
        lo, hi: tensors or numbers that broadcast to the shape of ``x``.
    Raises:
        TypeError: ``x`` is no floating-point tensor.
    """
    _check("x", x)
    return apply(_TensorClamp, x, _like(x, "lo", lo), _like(x, "hi", hi))


def tensor_clamp_vjp(x: Tensor, lo: Tensor | float, hi: Tensor | float, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``g`` to the one of ``x``, ``lo`` and ``hi`` that `tensor_clamp` took, +0.0 to the others; each shaped as ``x``.

    Raises:
        TypeError, ValueError: as `tensor_clamp`; ``g`` of another shape or dtype than ``x``.
    """
    _check_cotangent(x, g)
    value, low, high = _value(x), _bound(x, "lo", lo), _bound(x, "hi", hi)
    above = value > high
    below = torch.where(above, high, value) < low
    nothing = torch.zeros_like(g)
    return (
        torch.where(below | above, nothing, g),
        torch.where(below, g, nothing),
        torch.where(above & ~below, g, nothing),
    )


def tensor_clamp_ste(x: Tensor, lo: Tensor | float, hi: Tensor | float) -> Tensor:
    """As `tensor_clamp`, gradient 1 everywhere, none to the bounds."""
    return _straight_through(x, _clamped(_value(x), _bound(x, "lo", lo), _bound(x, "hi", hi)))


def scalar_clamp_ste(x: Tensor, lo: float, hi: float) -> Tensor:
    """``x`` limited to ``[lo, hi]``, gradient 1 everywhere.

    Raises:
        TypeError: ``x`` is no floating-point tensor. ValueError: not ``lo <= hi``.
    """
    checks.check_interval(lo, hi)
    return tensor_clamp_ste(x, lo, hi)


def scalar_clamp_min_ste(x: Tensor, lo: float) -> Tensor:
    """``lo`` where ``x < lo``, else ``x``; gradient 1 everywhere.

    Raises:
        TypeError: ``x`` is no floating-point tensor. ValueError: ``lo`` is NaN.
    """
    checks.check_interval(lo, float("inf"))
    return tensor_clamp_ste(x, lo, float("inf"))


def binary_sign_ste(x: Tensor) -> Tensor:
    """1 where ``x >= 0`` (both zeros), else -1 (NaN too); gradient 1."""
    value = _value(x)
    return _straight_through(x, torch.where(value >= 0, 1.0, -1.0).to(value.dtype))


def ternary_sign_ste(x: Tensor) -> Tensor:
    """1 where ``x > 0``, -1 where ``x < 0``, else +0 (both zeros and NaN); gradient 1."""
    return _straight_through(x, _value(x).sign())


def abs_binary_sign_grad(x: Tensor) -> Tensor:
    """``|x|``, with the gradient of `abs_binary_sign_grad_vjp`, which is 1 at both zeros."""
    _check("x", x)
    return apply(_AbsBinarySignGrad, x)


def abs_binary_sign_grad_vjp(x: Tensor, g: Tensor) -> Tensor:
    """``g`` where ``x >= 0`` (both zeros), else ``-g`` (NaN too).

    Raises:
        TypeError, ValueError: ``x`` is no floating-point tensor, ``g`` of another shape or dtype.
    """
    _check_cotangent(x, g)
    return torch.where(_value(x) >= 0, g, -g)


def signed_clamp_min_ste(x: Tensor, lo: float) -> Tensor:
    """``sign(x) * max(|x|, lo)``, both zeros to ``+lo``; gradient 1 everywhere, NaN stays.

    Raises:
        TypeError: ``x`` is no floating-point tensor. ValueError: not ``lo > 0``.
    """
    checks.check_positive("lo", lo)
    value = _value(x)
    bound = _bound(x, "lo", lo)
    away = torch.where(value >= 0, bound, -bound)
    return _straight_through(x, torch.where(value.abs() < bound, away, value))


class _StraightThrough(torch.autograd.Function):
    """``value``, which was computed from ``x``, with the gradient of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return pass_through_vjp(g), None

    @staticmethod
    def tangent(ctx: Any, t: Tensor, _: None) -> Tensor:
        return t.clone()


class _TensorClamp(torch.autograd.Function):
    """`tensor_clamp` of three tensors of one shape and dtype."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return narrowed(_clamped(widened(x), widened(lo), widened(hi)), x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, lo, hi = ctx.saved_tensors
        return tensor_clamp_vjp(x, lo, hi, g)

    @staticmethod
    def tangent(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, lo, hi = map(widened, ctx.saved_tensors)
        t_x, t_lo, t_hi = (torch.zeros_like(ctx.saved_tensors[0]) if t is None else t for t in tangents)
        above = x > hi
        return torch.where(torch.where(above, hi, x) < lo, t_lo, torch.where(above, t_hi, t_x))


class _AbsBinarySignGrad(torch.autograd.Function):
    """`abs_binary_sign_grad`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return narrowed(widened(x).abs(), x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return abs_binary_sign_grad_vjp(x, g)

    @staticmethod
    def tangent(ctx: Any, t: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return abs_binary_sign_grad_vjp(x, t)


def _straight_through(x: Tensor, value: Tensor) -> Tensor:
    return apply(_StraightThrough, x, narrowed(value, x.dtype))


def _clamped(value: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    below_hi = torch.where(value > hi, hi, value)
    return torch.where(below_hi < lo, lo, below_hi)


def _check(name: str, x: object) -> None:
    check_tensor(name, x)
    if not torch.compiler.is_compiling():
        refuse_flushing(x)
    checks.check_float(name, dtype_name(x.dtype))  # type: ignore[attr-defined]  # a tensor, as just checked


def _check_cotangent(x: Tensor, g: Tensor) -> None:
    _check("x", x)
    check_tensor("g", g)
    checks.check_cotangent(tuple(x.shape), dtype_name(x.dtype), tuple(g.shape), dtype_name(g.dtype))


def _value(x: Tensor) -> Tensor:
    """``x`` in the wide dtype, without its history."""
    _check("x", x)
    return widened(x.detach())


def _bound(x: Tensor, name: str, bound: Any) -> Tensor:
    """A bound in the wide dtype, rounded to that of ``x``, without its history."""
    given = bound.detach() if isinstance(bound, Tensor) else _constant(x, name, bound)
    return rounded_to(given.to(wide_dtype(x.dtype)), x.dtype)


def _like(x: Tensor, name: str, bound: Any) -> Tensor:
    """A bound in the dtype and shape of ``x``, with its history."""
    given = bound.to(wide_dtype(x.dtype)) if isinstance(bound, Tensor) else _constant(x, name, bound)
    return given.to(x.dtype).expand(x.shape)


def _constant(x: Tensor, name: str, bound: Any) -> Tensor:
    """A number in the wide dtype, +0 for -0 (whose sign inductor drops)."""
    checks.check_unmasked(name, bound)
    return torch.tensor(bound + 0.0, dtype=wide_dtype(x.dtype), device=x.device)
