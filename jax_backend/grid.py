"""From a quotient to a number of the format: rounding as if there were no ends, then the rule at the ends.

What lies between is what the clipping mask looks at. All numbers here are in units of the scale. What is compared here
are bit patterns, as integers in the order of the numbers, because XLA compares subnormals as zeros.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.descriptions import Quantizer
from ..core.formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat, TernaryFormat
from .arrays import bit_pattern, constant_pattern, from_pattern, layout, magnitude, ordered, widen_exactly
from .clamp import clamp
from .minifloat import decode_float, encode_float, overflow, round_to_float
from .rounding import round_to_integer

Array = jax.Array
FEW = 32  # up to so many numbers are looked up by comparing with each, more by bisection


def round_to_grid(q: Quantizer, u: Array) -> Array:
    """``u`` rounded in the direction of ``q``, as if the format had no smallest and largest number.

    For binary, ternary and codebook formats, whose steps do not go on beyond their ends, ``u`` itself.
    """
    match q.format:
        case IntegerFormat():
            return round_to_integer(u, q.rounding)
        case FloatFormat():
            return round_to_float(u, q.format, q.rounding)
        case _:
            return u


def limit_to_grid(q: Quantizer, rounded: Array) -> Array:
    """The number of the format for a result of `round_to_grid`. NaN stays NaN."""
    form, sign = layout(rounded.dtype), bit_pattern(rounded) & layout(rounded.dtype).sign
    match q.format:
        case IntegerFormat():
            return clamp(rounded, q.format.lo, q.format.hi)
        case FloatFormat():
            return overflow(rounded, q.format)
        case BinaryFormat():
            pattern = form.one | jnp.where(magnitude(rounded) == 0, 0, sign)
        case TernaryFormat():
            beyond = magnitude(rounded) > constant_pattern(q.format.threshold, rounded.dtype)
            pattern = jnp.where(beyond, form.one | sign, 0)
        case CodebookFormat():
            pattern = _entry(q.format.values, _smaller(q.format.midpoints, rounded), rounded.dtype)
    return jnp.where(jnp.isnan(rounded), rounded, from_pattern(pattern, rounded.dtype))


def encode(q: Quantizer, numbers: Array) -> Array:
    """Codes of numbers of the format, in its `storage` dtype."""
    match q.format:
        case FloatFormat():
            return encode_float(numbers, q.format)
        case CodebookFormat():
            return _smaller(q.format.values, numbers).astype(q.format.storage)
        case _:
            return numbers.astype(q.format.storage)


def decode(q: Quantizer, codes: Array, dtype: Any) -> Array:
    """Numbers of the format in ``dtype``, float32 or float64."""
    match q.format:
        case FloatFormat():
            return widen_exactly(decode_float(codes, q.format), dtype)
        case CodebookFormat():
            return from_pattern(_entry(q.format.values, codes.astype(jnp.int32), dtype), dtype)
        case _:
            return codes.astype(dtype)


def _smaller(numbers: tuple[float, ...], x: Array) -> Array:
    """How many of the ascending ``numbers`` are smaller than each ``x``, int32."""
    keys = np.array([_key(number, x.dtype) for number in numbers])
    places = ordered(x)
    count = jnp.zeros(x.shape, jnp.int32)
    if len(keys) <= FEW:
        for key in keys:
            count = count + (places > key)
        return count
    padded = jnp.asarray(np.append(keys, np.full(512 - len(keys), np.iinfo(keys.dtype).max)))
    for step in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        count = jnp.where(padded[count + (step - 1)] < places, count + step, count)
    return count


def _entry(numbers: tuple[float, ...], index: Array, dtype: Any) -> Array:
    """Patterns of the numbers at these places."""
    patterns = [constant_pattern(number, dtype) for number in numbers]
    if len(patterns) > FEW:
        return jnp.asarray(np.array(patterns))[index]
    result = jnp.full(index.shape, patterns[0])
    for place, pattern in enumerate(patterns[1:], 1):
        result = jnp.where(index >= place, pattern, result)
    return result


def _key(number: float, dtype: Any) -> Any:
    """`ordered` of a constant."""
    form = layout(dtype)
    size = constant_pattern(abs(number), dtype)
    return form.integer(-size if number < 0 else size)
