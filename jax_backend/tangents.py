"""Tangents of fake quantization: forward-mode differentiation, element for element the terms of `gradients`.

The tangent of a value is the sum of what x, the scale, the zero point, the bit width and the parameter of learned
rounding add to it, of those that move, in this order, and every operation is rounded. With a tangent in the place of
``g``, what it adds has the bits of the terms in `gradients`.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..core.descriptions import Gradient, Quantizer
from . import arithmetic_gradients, kernels
from .arrays import add, narrow, widen
from .bit_width import code_range, range_slopes
from .blocks import expand_blocks
from .gradients import passing, rule_factor
from .ieee import multiply_exactly
from .learned_rounding import rounding_slope
from .small_numbers import is_other

Array = jax.Array


class Moves(NamedTuple):
    """Tangents of the operands, of their shapes; None for those that do not move."""

    x: Array | None = None
    scale: Array | None = None
    zero_point: Array | None = None
    rounding: Array | None = None
    bit_width: Array | None = None


def tangent(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    moves: Moves,
    noise: Callable[[], Array | None] = lambda: None,
    bit_width: Array | None = None,
    rounding: Array | None = None,
) -> Array:
    """Tangent of the values, rounded once to the dtype of ``x``; operands as `gradients` takes them.

    Args:
        rounding: the parameter of learned rounding, if it moves.
    """
    if is_other(q):
        factor = rule_factor(q, x.shape, scale, bit_width)
        return arithmetic_gradients.tangent(q, x, scale, zero_point, moves, noise, bit_width, rounding, factor)

    def compute(subnormals: bool) -> Array:
        quotient, unclamped = kernels.unclamped_codes(q, x, scale, zero_point, noise(), subnormals=subnormals)
        passes = passing(q, quotient, unclamped, bit_width)
        spread = expand_blocks(scale, q.granularity, x.shape)
        addends = []
        if moves.x is not None:
            addends.append(jnp.where(passes, moves.x, jnp.zeros_like(moves.x)))
        if moves.scale is not None:
            slope = _slope_of_scale(q, x, scale, zero_point, quotient, unclamped, passes, bit_width)
            terms = _product(expand_blocks(moves.scale, q.granularity, x.shape), slope)
            terms = jnp.where(passes, 0, terms) if q.gradient is Gradient.LEARNED_CLIP else terms
            addends.append(_by_rule(q, terms, scale, bit_width))
        if moves.zero_point is not None:
            terms = expand_blocks(moves.zero_point, q.granularity, x.shape)
            terms = terms if q.arithmetic.has_float_zeros else _product(terms, -spread)
            addends.append(_by_rule(q, jnp.where(passes, 0, terms), scale, bit_width))
        if moves.rounding is not None and rounding is not None:
            addends.append(_of_rounding(q, passes, spread, moves.rounding, rounding))
        if moves.bit_width is not None and bit_width is not None:
            end = jnp.broadcast_to(moves.bit_width.astype(scale.dtype), x.shape)
            below = -end if q.format.lo else jnp.zeros_like(end)
            above = unclamped > code_range(q, bit_width)[1].astype(scale.dtype)
            terms = _product(jnp.where(above, end, below), spread)
            slope = jnp.broadcast_to(range_slopes(q, bit_width)[1].astype(scale.dtype), x.shape)
            addends.append(jnp.where(passes, 0, _product(terms, slope)))
        total = addends[0] if len(addends) == 1 else reduce(add, map(widen, addends))
        return narrow(total, x.dtype)

    moved: Array = kernels.by_scale(q, scale, compute, x)
    return moved


def _slope_of_scale(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    quotient: Array,
    unclamped: Array,
    passes: Array,
    bit_width: Array | None,
) -> Array:
    """``(code - z) - m * x / s``, as in `gradients`."""
    codes = kernels.limited(q, x, scale, unclamped, bit_width)
    if q.arithmetic.has_float_zeros:
        quotient = kernels.quotient_of_rest(q, x, scale, zero_point)
        return kernels.centred(q, codes, scale, zero_point) - jnp.where(passes, quotient, 0)
    return codes - kernels.zero_points(q, zero_point, scale, x.shape) - jnp.where(passes, quotient, 0)


def _of_rounding(q: Quantizer, passes: Array, spread: Array, move: Array, rounding: Array) -> Array:
    slope = rounding_slope(q.learned_rounding, rounding)
    counts = passes & (slope != 0)
    return jnp.where(counts, multiply_exactly(multiply_exactly(move, spread), jnp.where(counts, slope, 1)), 0)


def _by_rule(q: Quantizer, terms: Array, scale: Array, bit_width: Array | None) -> Array:
    """Times the factor of the gradient rule."""
    if q.gradient is not Gradient.LEARNED_SCALE:
        return terms
    return _product(terms, jnp.broadcast_to(rule_factor(q, terms.shape, scale, bit_width), terms.shape))


def _product(a: Array, b: Array) -> Array:
    """``a * b``, not to be fused with what follows; the selects stay where one of both is a constant."""
    return jnp.where(jnp.isnan(a), a, jnp.where(jnp.isnan(b), b, a * b))
