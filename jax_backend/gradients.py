"""Gradients of fake quantization towards x, scale and zero point, without checks and without `jax.jit`."""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.descriptions import Gradient, Quantizer
from ..core.granularity import PerTensor, Shape
from . import arithmetic_gradients, kernels
from .arrays import hidden_zero, widen
from .bit_width import code_range, range_slopes, whole_width
from .blocks import expand_blocks
from .ieee import multiply_exactly
from .learned_rounding import rounding_slope
from .small_numbers import is_other
from .ste import block_sum, learned_scale_factor, passing_mask

Array = jax.Array


def gradients(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    g: Array,
    noise: Callable[[], Array | None] = lambda: None,
    bit_width: Array | None = None,
) -> tuple[Array, Array, Array | None]:
    """Gradients towards x, scale and zero point, of which XLA drops those that nobody uses.

    Args:
        noise: what stochastic rounding compares with, made where it is used.
    """
    if is_other(q):
        factor = rule_factor(q, x.shape, scale, bit_width)
        return arithmetic_gradients.gradients(q, x, scale, zero_point, g, noise, bit_width, factor)

    def compute(subnormals: bool) -> tuple[Array, Array, Array | None]:
        quotient, unclamped = kernels.unclamped_codes(q, x, scale, zero_point, noise(), subnormals=subnormals)
        passes = passing(q, quotient, unclamped, bit_width)
        dx = jnp.where(passes, g, expand_blocks(hidden_zero(scale).astype(g.dtype), q.granularity, x.shape))
        codes = kernels.limited(q, x, scale, unclamped, bit_width)
        wide = widen(g)
        if q.arithmetic.has_float_zeros:
            steps, quotient = (
                kernels.centred(q, codes, scale, zero_point),
                kernels.quotient_of_rest(q, x, scale, zero_point),
            )
        else:
            steps = codes - kernels.zero_points(q, zero_point, scale, x.shape)
        terms = wide * (steps - jnp.where(passes, quotient, 0))
        terms = jnp.where(passes, 0, terms) if q.gradient is Gradient.LEARNED_CLIP else terms
        d_scale = _reduced(q, terms, scale, bit_width)
        if not q.affine:
            return dx, d_scale, None
        per_zero = wide if q.arithmetic.has_float_zeros else wide * -expand_blocks(scale, q.granularity, x.shape)
        terms = jnp.where(passes, 0, per_zero)
        return dx, d_scale, _reduced(q, terms, scale, bit_width)

    return kernels.by_scale(q, scale, compute, x)


def rounding_gradient(q: Quantizer, x: Array, scale: Array, zero_point: Array | None, g: Array, v: Array) -> Array:
    """``g * s * h'(v)`` where the code was not clamped and the slope is not 0, else +0.0; see `core.quantizer`."""
    if is_other(q):
        noise = kernels.noise_of(q, v, x.shape)
        return arithmetic_gradients.rounding_gradient(q, x, scale, zero_point, g, v, noise)
    noise, slope = kernels.noise_of(q, v, x.shape), rounding_slope(q.learned_rounding, v)
    passes = passing_mask(q, *kernels.unclamped_codes(q, x, scale, zero_point, noise, subnormals=True)) & (slope != 0)
    of_codes = multiply_exactly(widen(g), expand_blocks(scale, q.granularity, x.shape))
    return jnp.where(passes, multiply_exactly(of_codes, jnp.where(passes, slope, 1)), 0)


def bit_width_gradient(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    g: Array,
    noise: Callable[[], Array | None],
    bit_width: Array,
) -> Array:
    """Gradient towards the bit width, dtype of the scale; arguments as `gradients`."""
    if is_other(q):
        return arithmetic_gradients.bit_width_gradient(q, x, scale, zero_point, g, noise, bit_width)
    hi = code_range(q, bit_width)[1].astype(scale.dtype)

    def towards_bit_width(subnormals: bool) -> Array:
        quotient, unclamped = kernels.unclamped_codes(q, x, scale, zero_point, noise(), subnormals=subnormals)
        below = -widen(g) if q.format.lo else jnp.zeros(x.shape, scale.dtype)
        terms = jnp.where(unclamped > hi, widen(g), below) * expand_blocks(scale, q.granularity, x.shape)
        return block_sum(jnp.where(passing(q, quotient, unclamped, bit_width), 0, terms), PerTensor())

    slope = range_slopes(q, bit_width)[1].astype(scale.dtype)
    total: Array = kernels.by_scale(q, scale, towards_bit_width, x)
    return jnp.multiply(total, slope)


def passing(q: Quantizer, quotient: Array, unclamped: Array, bit_width: Array | None) -> Array:
    """Where the gradient passes."""
    if q.gradient is Gradient.PASS_THROUGH or bit_width is None:
        return passing_mask(q, quotient, unclamped)
    lo, hi = (end.astype(unclamped.dtype) for end in code_range(q, bit_width))
    return ~((unclamped < lo) | (unclamped > hi))


def _reduced(q: Quantizer, terms: Array, scale: Array, bit_width: Array | None) -> Array:
    """Terms summed over each block, times the factor of the gradient rule."""
    return jnp.multiply(block_sum(terms, q.granularity), rule_factor(q, terms.shape, scale, bit_width))


def rule_factor(q: Quantizer, shape: Shape, scale: Array, bit_width: Array | None) -> Any:
    """The factor of the gradient rule on the gradients of scale and zero point, 0-d, dtype of the scale."""
    elements, dtype = prod(q.granularity.block_size(shape)), np.dtype(scale.dtype).type
    if bit_width is None or q.gradient is not Gradient.LEARNED_SCALE:
        return dtype(learned_scale_factor(q, elements))
    least, most = checks.widths(q)
    factors = [dtype(learned_scale_factor(checks.at_width(q, bits), elements)) for bits in range(least, most + 1)]
    place = jnp.clip(whole_width(bit_width) - least, 0, most - least)
    return jnp.asarray(factors)[place]
