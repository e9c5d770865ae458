"""Gradients of fake quantization towards x, scale and zero point, without checks and without `jax.jit`."""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from ..core.descriptions import Gradient, Quantizer
from . import kernels
from .arrays import hidden_zero, widen
from .blocks import expand_blocks
from .ieee import multiply_exactly
from .learned_rounding import rounding_slope
from .ste import block_sum, clip_mask, learned_scale_factor

Array = jax.Array


def gradients(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    g: Array,
    noise: Callable[[], Array | None] = lambda: None,
) -> tuple[Array, Array, Array | None]:
    """Gradients towards x, scale and zero point, each by itself, so that XLA drops those that nobody uses.

    Args:
        noise: what stochastic rounding compares with, made where it is used.
    """

    def quotient_and_mask(subnormals: bool) -> tuple[Array, Array, Array]:
        quotient, unclamped = kernels.unclamped_codes(q, x, scale, zero_point, noise(), subnormals=subnormals)
        through = q.gradient is Gradient.PASS_THROUGH
        return quotient, unclamped, jnp.ones(x.shape, bool) if through else clip_mask(q, unclamped)

    def towards_x(subnormals: bool) -> Array:
        passes = quotient_and_mask(subnormals)[2]
        return jnp.where(passes, g, expand_blocks(hidden_zero(scale).astype(g.dtype), q.granularity, x.shape))

    def towards_scale(subnormals: bool) -> Array:
        quotient, _, passes = quotient_and_mask(subnormals)
        codes = kernels.codes(q, x, scale, zero_point, noise(), subnormals=subnormals)
        steps = codes - kernels.zero_points(q, zero_point, scale, x.shape)
        return _reduced(q, widen(g) * (steps - jnp.where(passes, quotient, 0)), scale)

    def towards_zero_point(subnormals: bool) -> Array:
        passes = quotient_and_mask(subnormals)[2]
        return _reduced(q, jnp.where(passes, 0, widen(g) * -expand_blocks(scale, q.granularity, x.shape)), scale)

    dx, d_scale = kernels.by_scale(q, scale, towards_x, x), kernels.by_scale(q, scale, towards_scale, x)
    return dx, d_scale, kernels.by_scale(q, scale, towards_zero_point, x) if q.affine else None


def rounding_gradient(q: Quantizer, x: Array, scale: Array, zero_point: Array | None, g: Array, v: Array) -> Array:
    """``g * s * h'(v)`` where the code was not clamped and the slope is not 0, else +0.0; see `core.quantizer`."""
    noise, slope = kernels.noise_of(q, v, x.shape), rounding_slope(q.learned_rounding, v)
    passes = slope != 0
    if q.gradient is not Gradient.PASS_THROUGH:
        passes &= clip_mask(q, kernels.unclamped_codes(q, x, scale, zero_point, noise, subnormals=True)[1])
    of_codes = multiply_exactly(widen(g), expand_blocks(scale, q.granularity, x.shape))
    return jnp.where(passes, multiply_exactly(of_codes, jnp.where(passes, slope, 1)), 0)


def _reduced(q: Quantizer, terms: Array, scale: Array) -> Array:
    """Terms summed over each block, times the factor of the gradient rule."""
    factor = learned_scale_factor(q, prod(q.granularity.block_size(terms.shape)))
    return jnp.multiply(block_sum(terms, q.granularity), np.dtype(scale.dtype).type(factor))
