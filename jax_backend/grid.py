"""From a quotient to a number of the format: rounding as if there were no ends, then the rule at the ends.

What lies between is what the clipping mask looks at. All numbers here are in units of the scale. What is compared here
are bit patterns, as integers in the order of the numbers, because XLA compares subnormals as zeros.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.descriptions import Grid, Quantizer
from ..core.formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat, TernaryFormat
from .arrays import bit_pattern, constant_ordered, constant_pattern, from_pattern, layout, ordered, widen_exactly
from .clamp import clamp
from .minifloat import decode_float, encode_float, overflow, round_to_float
from .rounding import round_to_integer

Array = jax.Array
FEW = 32  # up to so many numbers are looked up by comparing with each, more by bisection


def round_to_grid(q: Quantizer | Grid, u: Array, noise: Array | None = None) -> Array:
    """``u`` rounded in the direction of ``q``, as if the format had no smallest and largest number.

    For binary, ternary and codebook formats, whose steps do not go on beyond their ends, ``u`` itself.

    Args:
        noise: of stochastic rounding, see `round_to_integer`.
    """
    match q.format:
        case IntegerFormat():
            return round_to_integer(u, q.rounding, noise)
        case FloatFormat():
            return round_to_float(u, q.format, q.rounding, noise)
        case _:
            return u


def limit_to_grid(q: Quantizer | Grid, rounded: Array) -> Array:
    """The number of the format for a result of `round_to_grid`. NaN stays NaN."""
    form = layout(rounded.dtype)
    match q.format:
        case IntegerFormat():
            return clamp(rounded, q.format.lo, q.format.hi)
        case FloatFormat():
            return overflow(rounded, q.format)
        case BinaryFormat():
            negative = ordered(rounded) < constant_ordered(-0.0, rounded.dtype)
            pattern = form.one | jnp.where(negative, form.sign, 0)
        case TernaryFormat():
            lo, hi = constant_ordered((-q.format.threshold, q.format.threshold), rounded.dtype)
            beyond = (ordered(rounded) < lo) | (ordered(rounded) > hi)
            pattern = jnp.where(beyond, form.one | (bit_pattern(rounded) & form.sign), 0)
        case CodebookFormat():
            patterns = constant_pattern(q.format.values, rounded.dtype)
            ends = constant_ordered(tuple(end + 0.0 for end in q.format.midpoints), rounded.dtype)  # none is -0.0
            pattern = _step(ordered(rounded), ends, patterns)
    return jnp.where(jnp.isnan(rounded), rounded, from_pattern(pattern, rounded.dtype))


def encode(q: Quantizer, numbers: Array) -> Array:
    """Codes of numbers of the format, in its `storage` dtype."""
    match q.format:
        case FloatFormat():
            return encode_float(numbers, q.format)
        case CodebookFormat():
            every = np.arange(len(q.format.values), dtype=q.format.storage)
            return _step(ordered(numbers), constant_ordered(q.format.values[:-1], numbers.dtype), every)
        case _:
            return numbers.astype(q.format.storage)


def decode(q: Quantizer, codes: Array, dtype: Any) -> Array:
    """Numbers of the format in ``dtype``, float32 or float64."""
    match q.format:
        case FloatFormat():
            return widen_exactly(decode_float(codes, q.format), dtype)
        case CodebookFormat():
            every = np.arange(len(q.format.values) - 1, dtype=q.format.storage)
            return from_pattern(_step(codes, every, constant_pattern(q.format.values, dtype)), dtype)
        case _:
            return codes.astype(dtype)


def _step(x: Array, ends: Any, entries: Any) -> Array:
    """The one of ``entries`` whose place is how many of the ascending ``ends``, one fewer, are below ``x``."""
    if len(ends) <= FEW:
        result = jnp.full(x.shape, entries[0])
        for end, entry in zip(ends, entries[1:], strict=True):
            result = jnp.where(x > end, entry, result)
        return result
    steps = [1 << k for k in reversed(range(len(ends).bit_length()))]
    padded = jnp.asarray(np.pad(ends, (0, sum(steps) - len(ends)), constant_values=np.iinfo(ends.dtype).max))
    below = jnp.zeros(x.shape, jnp.int32)
    for step in steps:
        below = jnp.where(padded[below + (step - 1)] < x, below + step, below)
    return jnp.asarray(entries)[below]
