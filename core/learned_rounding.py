"""Learned rounding: between an element and its floor a parameter v decides; while it is trained, softly (AdaRound).

``floor(x / s) + [h(v) > 1/2]``, or ``floor(x / s) + h(v)`` where `LearnedRounding.soft`. Everything here is computed in
float32, whatever the dtype of v, every operation rounded to nearest, so that it has the same bits everywhere; libraries
differ in their exponentials. With constants rounded to float32 and ``a = min(|t|, 32)``:

    n = ties_to_even(a * 1.4426950)                         a whole number of halvings
    y = (n * 0.693359375 - a) + n * -2.12194440e-4          n ln 2 - a, in [-0.35, 0.35]
    p = y**2 * (((((P0 y + P1) y + P2) y + P3) y + P4) y + P5)
    e = ((p + y) + 1) * 2**-n                               exp(-a)
    sigmoid(t) = 1 / (1 + e) where t >= 0, else e / (1 + e)

with the P of Cephes' ``expf``. Relative to the exact sigmoid of t in [-32, 32] the error is below 2**-22; beyond, it is
that of the nearest end. NaN stays NaN. Source: Nagel et al., arXiv 2004.10568, section 3; Brevitas ``learned_round``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .arguments import check_operands
from .blocks import expand_blocks
from .descriptions import QParams, Quantizer
from .directions import LearnedRounding, Relaxation

Array = NDArray[Any]
LARGEST = np.float32(32)
LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
POLYNOMIAL = tuple(
    map(
        np.float32,
        (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    )
)
STRETCH, SHIFT = np.float32(1.2), np.float32(-0.1)
HALVINGS = 24  # of the interval in which `initial_rounding` looks


@np.errstate(invalid="ignore", over="ignore")  # special values are meant
def rounding_share(rule: LearnedRounding, v: Array) -> Array:
    """``h(v)``, in [0, 1]: how much of a step is added to the floor; the fraction that the element should have.

    HARD_SIGMOID: ``clamp(1.2 * sigmoid(v) - 0.1, 0, 1)``. SIGMOID: ``sigmoid(v / temperature)``. Differentiable in the
    frontends, by `rounding_slope`.

    Args:
        v: float32 or float64 (which is rounded to float32 first).
    Returns:
        Same shape and dtype.
    """
    low, high = _both_sides(_argument(rule, v))
    share = np.where(_argument(rule, v) < 0, low, high)
    if rule.relaxation is Relaxation.HARD_SIGMOID:
        share = np.clip(share * STRETCH + SHIFT, np.float32(0), np.float32(1))
    return np.where(np.isnan(v), np.float32(np.nan), share).astype(v.dtype)


@np.errstate(invalid="ignore", over="ignore")  # special values are meant
def rounding_slope(rule: LearnedRounding, v: Array) -> Array:
    """``h'(v)``, not negative. HARD_SIGMOID: ``1.2 * d`` where ``0 <= 1.2 * sigmoid(v) - 0.1 <= 1``, else 0.

    SIGMOID: ``d / temperature``. With ``d = sigmoid(t) * sigmoid(-t)``, one product. Shape and dtype of ``v``.
    """
    low, high = _both_sides(_argument(rule, v))
    slope = low * high
    if rule.relaxation is Relaxation.HARD_SIGMOID:
        stretched = np.where(_argument(rule, v) < 0, low, high) * STRETCH + SHIFT
        slope = np.where((stretched >= 0) & (stretched <= 1), slope * STRETCH, np.float32(0))
    else:
        slope = slope / np.float32(rule.temperature)
    return np.where(np.isnan(v), np.float32(np.nan), slope).astype(v.dtype)


@np.errstate(invalid="ignore", over="ignore")  # special values are meant
def rounding_offset(rule: LearnedRounding, v: Array) -> Array:
    """What is added to the floor: ``h(v)`` if `LearnedRounding.soft`, else 1 where the element goes up, and 0.

    HARD_SIGMOID goes up where ``h(v) > 1/2``, SIGMOID where ``v > 0``; at the limit and for NaN down. (Brevitas in
    evaluation.) Shape and dtype of ``v``.
    """
    if rule.soft:
        return rounding_share(rule, v)
    up = rounding_share(rule, v) > 0.5 if rule.relaxation is Relaxation.HARD_SIGMOID else v > 0
    return np.asarray(up, v.dtype)


@np.errstate(all="ignore")  # special values are meant
def initial_rounding(q: Quantizer, x: Array, qparams: QParams) -> Array:
    """A parameter with which learned rounding begins: soft, it leaves ``x / s`` as it is; hard, it rounds to nearest.

    The largest of 2**24 equally spaced numbers whose share does not exceed the fraction ``x / s - floor(x / s)``, found
    by bisection: of [-4, 4], or for SIGMOID of ``temperature * [-16, 16]``. The lowest for NaN.

    Returns:
        The shape of ``x``, the dtype of the scale.
    Raises:
        TypeError, ValueError: as `fake_quantize`.
    """
    x, (scale, *_) = check_operands(q, x, qparams._replace(rounding=None))
    quotient = x.astype(scale.dtype) / expand_blocks(scale, q.granularity, x.shape)
    fraction = (quotient - np.floor(quotient)).astype(np.float32)
    rule = q.learned_rounding
    step = np.float32(4 if rule.relaxation is Relaxation.HARD_SIGMOID else 16 * rule.temperature)
    low = np.full(x.shape, -step, np.float32)
    for _ in range(HALVINGS):
        middle = low + step
        low = np.where(rounding_share(rule, middle) <= fraction, middle, low)
        step = step / np.float32(2)
    return low.astype(scale.dtype)


def _argument(rule: LearnedRounding, v: Array) -> Array:
    """What the sigmoid is taken of, in float32; 0 for NaN."""
    checks.check_subnormals()
    t = np.where(np.isnan(v), 0, v).astype(np.float32)
    return t / np.float32(rule.temperature) if rule.relaxation is Relaxation.SIGMOID else t


def _both_sides(t: Array) -> tuple[Array, Array]:
    """The sigmoid of ``-|t|`` and of ``|t|``."""
    a = np.minimum(np.abs(t), LARGEST)
    n = np.rint(a * LOG2_E)
    y = (n * LN2_HIGH - a) + n * LN2_LOW
    p = np.zeros_like(y)
    for coefficient in POLYNOMIAL:
        p = p * y + coefficient
    e = np.ldexp((p * (y * y) + y) + np.float32(1), -n.astype(np.int32))
    return e / (1 + e), 1 / (1 + e)
