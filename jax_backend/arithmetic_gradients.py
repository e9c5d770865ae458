"""Gradients and tangents of fake quantization in every `Arithmetic` but the default: `gradients` and `tangents` for it.

Terms round in the working dtype, as the formula of `Gradient` in that arithmetic; their sums are those of
`ste.block_sum` in float32 (or float64), rounded once to the working dtype. Without checks and without `jax.jit`.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arithmetic import ZeroPointDomain
from ..core.descriptions import Gradient, Quantizer
from ..core.granularity import Granularity, PerTensor
from .arithmetics import Operations, codes, in_work, operations_for, passing, unclamped_codes
from .arrays import add as added
from .bit_width import code_range, range_slopes
from .blocks import expand_blocks
from .learned_rounding import rounding_slope
from .operations import FLOAT64, multiply, round_to_dtype, working_dtype
from .small_numbers import by_range
from .ste import block_sum
from .zero_point import middle_code

Array = jax.Array
Noise = Callable[[], Array | None]


def gradients(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    g: Array,
    noise: Noise,
    bit_width: Array | None,
    factor: Any,
) -> tuple[Array, Array, Array | None]:
    """As `gradients.gradients`; ``factor`` is that of the gradient rule."""

    def compute(subnormals: bool) -> tuple[Array, Array, Array | None]:
        by, work = operations_for(subnormals, x, scale), working_dtype(q.arithmetic, x.dtype)
        passes, _, distance = _distances(q, x, scale, zero_point, noise(), bit_width, subnormals=subnormals)
        wide = round_to_dtype(g, work)
        terms = by.multiply(wide, distance, q.arithmetic)
        terms = jnp.where(passes, jnp.zeros_like(terms), terms) if q.gradient is Gradient.LEARNED_CLIP else terms
        dx, d_scale = jnp.where(passes, g, jnp.zeros_like(g)), _reduced(terms, q.granularity, factor, scale.dtype)
        if not q.affine:
            return dx, d_scale, None
        terms = by.multiply(wide, _per_zero(q, scale, wide), q.arithmetic)
        terms = jnp.where(passes, jnp.zeros_like(terms), terms)
        return dx, d_scale, _reduced(terms, q.granularity, factor, scale.dtype)

    return by_range(q, scale, zero_point, compute, x, x.dtype, quotients=True)


def rounding_gradient(
    q: Quantizer, x: Array, scale: Array, zero_point: Array | None, g: Array, v: Array, noise: Array | None
) -> Array:
    """As `gradients.rounding_gradient`."""

    def compute(subnormals: bool) -> Array:
        passes, _, _ = _distances(q, x, scale, zero_point, noise, None, subnormals=subnormals)
        return _of_rounding(q, passes, scale, g, v, x.dtype)

    return by_range(q, scale, zero_point, compute, x, x.dtype)


def bit_width_gradient(
    q: Quantizer, x: Array, scale: Array, zero_point: Array | None, g: Array, noise: Noise, bit_width: Array
) -> Array:
    """As `gradients.bit_width_gradient`."""

    def compute(subnormals: bool) -> Array:
        work = working_dtype(q.arithmetic, x.dtype)
        passes, found, _ = _distances(q, x, scale, zero_point, noise(), bit_width, subnormals=subnormals)
        terms = _at_ends(q, found, scale, round_to_dtype(g, work), bit_width, operations_for(subnormals, x, scale))
        terms = jnp.where(passes, jnp.zeros_like(terms), terms)
        slope = round_to_dtype(range_slopes(q, bit_width)[1], work)
        return _reduced(terms, PerTensor(), slope, scale.dtype)

    return by_range(q, scale, zero_point, compute, x, x.dtype)


def tangent(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    moves: tuple[Array | None, ...],
    noise: Noise,
    bit_width: Array | None,
    rounding: Array | None,
    factor: Any,
) -> Array:
    """As `tangents.tangent`; ``factor`` is that of the gradient rule."""
    of_x, of_scale, of_zero, of_rounding, of_width = moves

    def compute(subnormals: bool) -> Array:
        by, work = operations_for(subnormals, x, scale), working_dtype(q.arithmetic, x.dtype)
        passes, found, distance = _distances(q, x, scale, zero_point, noise(), bit_width, subnormals=subnormals)

        def spread(move: Array) -> Array:
            return round_to_dtype(expand_blocks(move, q.granularity, x.shape), work)

        def by_rule(terms: Array) -> Array:
            if q.gradient is not Gradient.LEARNED_SCALE:
                return terms
            return by.multiply(terms, round_to_dtype(jnp.asarray(factor), work), q.arithmetic)

        addends = []
        if of_x is not None:
            addends.append(jnp.where(passes, of_x, jnp.zeros_like(of_x)))
        if of_scale is not None:
            terms = by.multiply(spread(of_scale), distance, q.arithmetic)
            terms = jnp.where(passes, jnp.zeros_like(terms), terms) if q.gradient is Gradient.LEARNED_CLIP else terms
            addends.append(by_rule(terms))
        if of_zero is not None:
            terms = by.multiply(spread(of_zero), _per_zero(q, scale, distance), q.arithmetic)
            addends.append(by_rule(jnp.where(passes, jnp.zeros_like(terms), terms)))
        if of_rounding is not None and rounding is not None:
            addends.append(_of_rounding(q, passes, scale, of_rounding, rounding, x.dtype))
        if of_width is not None and bit_width is not None:
            end = jnp.broadcast_to(round_to_dtype(of_width.astype(scale.dtype), work), x.shape)
            terms = _at_ends(q, found, scale, end, bit_width, by)
            slope = round_to_dtype(range_slopes(q, bit_width)[1].astype(scale.dtype), work)
            terms = by.multiply(terms, slope, q.arithmetic)
            addends.append(jnp.where(passes, jnp.zeros_like(terms), terms))
        wide = FLOAT64 if work == FLOAT64 else np.dtype(np.float32)
        alone = len(addends) == 1
        total = addends[0] if alone else reduce(added, (round_to_dtype(a, wide) for a in addends))
        return round_to_dtype(total, x.dtype)

    return by_range(q, scale, zero_point, compute, x, x.dtype, quotients=of_scale is not None)


def _distances(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    noise: Array | None,
    bit_width: Array | None,
    *,
    subnormals: bool,
) -> tuple[Array, Array, Array]:
    """Where the gradient passes, the codes, and what the scale is multiplied by: ``(code - z) - m * x / s``."""
    by, a, work = operations_for(subnormals, x, scale), q.arithmetic, working_dtype(q.arithmetic, x.dtype)
    quotient, unclamped, later = unclamped_codes(q, x, scale, zero_point, noise, subnormals=subnormals)
    passes = passing(q, quotient, unclamped, later, bit_width, subnormals=subnormals)
    found = codes(q, x, scale, zero_point, noise, subnormals=subnormals, bit_width=bit_width)
    s = round_to_dtype(scale, work)
    zero = expand_blocks(in_work(zero_point, s), q.granularity, x.shape)
    offset = zero
    if a.zero_point_domain is ZeroPointDomain.FLOAT:
        over = expand_blocks(s, q.granularity, x.shape)
        quotient, offset = (
            by.divide(by.add(round_to_dtype(x, work), -zero, a), over, a),
            jnp.full_like(zero, middle_code(q)),
        )
    elif a.zero_point_domain is ZeroPointDomain.SHIFT:
        offset = jnp.zeros_like(zero)
    steps = by.add(found, -offset, a)
    return passes, found, by.add(steps, -jnp.where(passes, quotient, jnp.zeros_like(quotient)), a)


def _per_zero(q: Quantizer, scale: Array, like: Array) -> Array:
    """What the zero point is multiplied by, where the gradient does not pass."""
    match q.arithmetic.zero_point_domain:
        case ZeroPointDomain.INTEGER:
            return -expand_blocks(round_to_dtype(scale, like.dtype), q.granularity, like.shape)
        case ZeroPointDomain.FLOAT:
            return jnp.ones_like(like)
        case ZeroPointDomain.SHIFT:
            return -jnp.ones_like(like)


def _at_ends(q: Quantizer, found: Array, scale: Array, move: Array, bit_width: Array, by: Operations) -> Array:
    """``move * s`` where codes are the largest, ``-move * s`` elsewhere if signed."""
    wide = found if found.dtype == FLOAT64 else round_to_dtype(found, np.float32)
    hi = round_to_dtype(code_range(q, bit_width)[1].astype(wide.dtype), found.dtype)
    ends = jnp.where(found == hi, move, -move if q.format.lo else jnp.zeros_like(move))
    over = expand_blocks(round_to_dtype(scale, move.dtype), q.granularity, found.shape)
    return by.multiply(ends, over, q.arithmetic)


def _of_rounding(q: Quantizer, passes: Array, scale: Array, g: Array, v: Array, dtype: Any) -> Array:
    """``g * s * h'(v)`` where the code was not clamped and the slope is not 0, in the dtype of the scale."""
    work, a = working_dtype(q.arithmetic, dtype), q.arithmetic
    slope = round_to_dtype(rounding_slope(q.learned_rounding, v), work)
    over = expand_blocks(round_to_dtype(scale, work), q.granularity, passes.shape)
    term = multiply(multiply(round_to_dtype(g, work), over, a), slope, a)
    return round_to_dtype(jnp.where(passes & (slope != 0), term, jnp.zeros_like(term)), scale.dtype)


def _reduced(terms: Array, granularity: Granularity, factor: Any, dtype: Any) -> Array:
    """Terms summed over each block, times a factor, in this dtype."""
    wide = terms if terms.dtype == FLOAT64 else round_to_dtype(terms, np.float32)
    total = round_to_dtype(block_sum(wide, granularity), terms.dtype)
    times = round_to_dtype(jnp.asarray(factor), terms.dtype)
    product = total.astype(wide.dtype) * times.astype(wide.dtype)
    return round_to_dtype(round_to_dtype(product, terms.dtype), dtype)
