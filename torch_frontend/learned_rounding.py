"""Learned rounding: between an element and its floor a parameter v decides; while it is trained, softly (AdaRound).

Formulas, special values and sources stand in `samebits.core.learned_rounding`, of which these have the bits: the same
sequence of float32 operations, of which torch contracts none.
"""

from typing import Any

import torch
from torch import Tensor

from ..core.descriptions import QParams, Quantizer
from ..core.directions import LearnedRounding, Relaxation
from . import arguments, devices
from .arrays import apply, broadcast_views, widened

LARGEST, LOG2_E = 32.0, 1.44269504088896341
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
STRETCH, SHIFT = 1.2, -0.1
HALVINGS = 24


def rounding_share(rule: LearnedRounding, v: Tensor) -> Tensor:
    """``h(v)``, in [0, 1]: how much of a step is added to the floor. Differentiable, by `rounding_slope`.

    Args:
        v: float32 or float64 (which is rounded to float32 first).
    Returns:
        Same shape and dtype.
    """
    return apply(_Share, v, rule)


def rounding_slope(rule: LearnedRounding, v: Tensor) -> Tensor:
    """``h'(v)``, not negative; 0 where HARD_SIGMOID is cut off. Shape and dtype of ``v``."""
    t = _argument(rule, v)
    low, high = _both_sides(t)
    slope = low * high
    if rule.relaxation is Relaxation.HARD_SIGMOID:
        stretched = devices.product(torch.where(t < 0, low, high), STRETCH) + SHIFT
        slope = torch.where((stretched >= 0) & (stretched <= 1), slope * STRETCH, 0.0)
    else:
        slope = devices.quotient(slope, _constant(slope, rule.temperature))
    return torch.where(v != v, torch.nan, slope).to(v.dtype)


def rounding_offset(rule: LearnedRounding, v: Tensor) -> Tensor:
    """What is added to the floor: ``h(v)`` if `LearnedRounding.soft`, else 1 where the element goes up, and 0.

    Shape and dtype of ``v``. Not differentiable.
    """
    v = v.detach()
    if rule.soft:
        return _share(rule, v)
    up = _share(rule, v) > 0.5 if rule.relaxation is Relaxation.HARD_SIGMOID else v > 0
    return up.to(v.dtype)


def initial_rounding(q: Quantizer, x: Tensor, qparams: QParams) -> Tensor:
    """A parameter with which learned rounding begins: soft, it leaves ``x / s`` as it is; hard, it rounds to nearest.

    Returns:
        The shape of ``x``, the dtype of the scale. The lowest for NaN.
    Raises:
        TypeError, ValueError: as `fake_quantize`.
    """
    qparams = arguments.check_operands(q, x, qparams._replace(rounding=None))
    array, own = broadcast_views(q.granularity, tuple(x.shape))
    over = qparams.scale.detach().reshape(own)
    quotient = devices.quotient(widened(x.detach()).reshape(array), over).reshape(x.shape)
    fraction = (quotient - quotient.floor()).to(torch.float32)
    rule = q.learned_rounding
    step = 4.0 if rule.relaxation is Relaxation.HARD_SIGMOID else 16 * float(_constant(fraction, rule.temperature))
    low = torch.full_like(fraction, -step)
    for _ in range(HALVINGS):
        middle = low + step
        low = torch.where(_share(rule, middle) <= fraction, middle, low)
        step = step / 2
    return low.to(qparams.scale.dtype)


class _Share(torch.autograd.Function):
    """`rounding_share`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, rule: LearnedRounding) -> Tensor:
        return _share(rule, v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        v, ctx.rule = inputs
        ctx.save_for_backward(v)
        ctx.save_for_forward(v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return g * rounding_slope(ctx.rule, v), None

    @staticmethod
    def tangent(ctx: Any, t: Tensor, _: None) -> Tensor:
        (v,) = ctx.saved_tensors
        return t * rounding_slope(ctx.rule, v)


def _share(rule: LearnedRounding, v: Tensor) -> Tensor:
    t = _argument(rule, v)
    low, high = _both_sides(t)
    share = torch.where(t < 0, low, high)
    if rule.relaxation is Relaxation.HARD_SIGMOID:
        share = (devices.product(share, STRETCH) + SHIFT).clamp(0.0, 1.0)
    return torch.where(v != v, torch.nan, share).to(v.dtype)


def _argument(rule: LearnedRounding, v: Tensor) -> Tensor:
    """What the sigmoid is taken of, in float32; 0 for NaN."""
    t = torch.where(v != v, 0.0, v).to(torch.float32)
    return devices.quotient(t, _constant(t, rule.temperature)) if rule.relaxation is Relaxation.SIGMOID else t


def _constant(like: Tensor, value: float) -> Tensor:
    """A float32 that no compiler takes for a float64."""
    return torch.tensor(value, dtype=torch.float32, device=like.device)


def _both_sides(t: Tensor) -> tuple[Tensor, Tensor]:
    """The sigmoid of ``-|t|`` and of ``|t|``, float32."""
    a = t.abs().clamp(max=LARGEST)
    n = (a * LOG2_E).round()
    y = (n * LN2_HIGH - a) + devices.product(n, LN2_LOW)  # the first product is exact
    p = torch.full_like(y, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        p = devices.product(p, y) + coefficient
    halvings = ((127 - n.to(torch.int32)) << 23).view(torch.float32)
    e = ((devices.product(p, y * y) + y) + 1.0) * halvings
    return devices.quotient(e, e + 1.0), devices.reciprocal(e + 1.0)
