"""Learned rounding: between an element and its floor a parameter v decides; while it is trained, softly (AdaRound).

Formulas, special values and sources stand in `samebits.core.learned_rounding`, of which these have the bits: the same
sequence of float32 operations, with `product` wherever XLA would contract a product and a sum.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.descriptions import QParams, Quantizer
from ..core.directions import LearnedRounding, Relaxation
from .arguments import check_operands
from .arrays import divide, from_pattern, product, tiny_quotient, widen
from .blocks import expand_blocks
from .sharding import laid_out_by, like_first

Array = jax.Array
LARGEST = np.float32(32)
LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
POLYNOMIAL = (
    np.float32(1.9875691500e-4),
    np.float32(1.3981999507e-3),
    np.float32(8.3334519073e-3),
    np.float32(4.1665795894e-2),
    np.float32(1.6666665459e-1),
    np.float32(5.0000001201e-1),
)
STRETCH, SHIFT = np.float32(1.2), np.float32(-0.1)
HALVINGS = 24


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@laid_out_by(like_first)
def rounding_share(rule: LearnedRounding, v: Array) -> Array:
    """``h(v)``, in [0, 1]: how much of a step is added to the floor. Differentiable, by `rounding_slope`.

    Args:
        v: float32 or float64 (which is rounded to float32 first).
    Returns:
        Same shape and dtype.
    """
    t = _argument(rule, v)
    low, high = _both_sides(t)
    share = jnp.where(t < 0, low, high)
    if rule.relaxation is Relaxation.HARD_SIGMOID:
        share = lax.clamp(np.float32(0), _times(share, STRETCH) + SHIFT, np.float32(1))
    return jnp.where(jnp.isnan(v), np.float32(np.nan), share).astype(v.dtype)


@laid_out_by(like_first)
def rounding_slope(rule: LearnedRounding, v: Array) -> Array:
    """``h'(v)``, not negative; 0 where HARD_SIGMOID is cut off. Shape and dtype of ``v``."""
    t = _argument(rule, v)
    low, high = _both_sides(t)
    slope = product(low, high)
    if rule.relaxation is Relaxation.HARD_SIGMOID:
        stretched = _times(jnp.where(t < 0, low, high), STRETCH) + SHIFT
        slope = jnp.where((stretched >= 0) & (stretched <= 1), _times(slope, STRETCH), 0)
    else:
        slope = divide(slope, jnp.asarray(np.float32(rule.temperature)), subnormals=False)
    return jnp.where(jnp.isnan(v), np.float32(np.nan), slope).astype(v.dtype)


def rounding_offset(rule: LearnedRounding, v: Array) -> Array:
    """What is added to the floor: ``h(v)`` if `LearnedRounding.soft`, else 1 where the element goes up, and 0.

    Shape and dtype of ``v``. Not differentiable.
    """
    v = lax.stop_gradient(v)
    if rule.soft:
        return rounding_share(rule, v)
    if rule.relaxation is Relaxation.HARD_SIGMOID:
        return (rounding_share(rule, v) > 0.5).astype(v.dtype)
    return _positive(v).astype(v.dtype)


def initial_rounding(q: Quantizer, x: Array, qparams: QParams) -> Array:
    """A parameter with which learned rounding begins: soft, it leaves ``x / s`` as it is; hard, it rounds to nearest.

    Returns:
        The shape of ``x``, the dtype of the scale. The lowest for NaN.
    Raises:
        TypeError, ValueError: as `fake_quantize`.
    """
    x, scale, _, _ = check_operands(q, x, qparams._replace(rounding=None))
    found: Array = _initial(q, x, scale)
    return found


def _positive(v: Array) -> Array:
    """``v > 0``, also of subnormal numbers, which XLA compares as zeros."""
    integer = np.dtype(f"int{8 * v.dtype.itemsize}")
    above: Array = (lax.bitcast_convert_type(v, integer) > 0) & ~jnp.isnan(v)
    return above


@partial(jax.jit, static_argnums=0)
@laid_out_by(like_first)
def _initial(q: Quantizer, x: Array, scale: Array) -> Array:
    value, s = widen(lax.stop_gradient(x)), expand_blocks(lax.stop_gradient(scale), q.granularity, x.shape)
    quotient = tiny_quotient(value, s, divide(value, s))
    below = jnp.where((quotient < 0) & (quotient > -1), -1, lax.floor(quotient))
    fraction = (quotient - below).astype(np.float32)
    rule = q.learned_rounding
    width = np.float32(4) if rule.relaxation is Relaxation.HARD_SIGMOID else 16 * np.float32(rule.temperature)

    def halve(_: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        low, step = found
        middle = low + step
        return jnp.where(rounding_share(rule, middle) <= fraction, middle, low), step / 2

    start = jnp.full(x.shape, -width), jnp.asarray(width)
    low: Array = lax.fori_loop(0, HALVINGS, halve, start)[0]
    return low.astype(scale.dtype)


@rounding_share.defjvp
def _rounding_share_jvp(rule: LearnedRounding, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (v,), (move,) = primals, tangents
    return rounding_share(rule, v), move * rounding_slope(rule, v)


def _argument(rule: LearnedRounding, v: Array) -> Array:
    """What the sigmoid is taken of, in float32; 0 for NaN."""
    t = jnp.where(jnp.isnan(v), 0, v).astype(np.float32)
    if rule.relaxation is not Relaxation.SIGMOID:
        return t
    return divide(t, jnp.asarray(np.float32(rule.temperature)), subnormals=False)


def _both_sides(t: Array) -> tuple[Array, Array]:
    """The sigmoid of ``-|t|`` and of ``|t|``, float32."""
    a = jnp.minimum(jnp.abs(t), LARGEST)
    n = lax.round(a * LOG2_E, lax.RoundingMethod.TO_NEAREST_EVEN)
    y = (n * LN2_HIGH - a) + _times(n, LN2_LOW)  # the first product is exact
    p = jnp.full(y.shape, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        p = product(y, p) + coefficient  # not (p, y): of a constant p the select would be folded away
    halvings = from_pattern((127 - n.astype(np.int32)) << 23, np.float32)
    e = ((product(p, product(y, y)) + y) + 1) * halvings  # the last product is exact
    return divide(e, e + 1, subnormals=False), divide(jnp.ones_like(e), e + 1, subnormals=False)


def _times(x: Array, constant: np.float32) -> Array:
    return product(x, jnp.asarray(constant))
