"""Rounding to floating-point formats, and their codes, on bit patterns: shifted, compared with one half, put back.

Where subnormals of the dtype decide, no number is computed with as a float, so they are like any others. A format's
numbers are numbers of float32, its smallest normal number included, so a pattern never needs more exponents than it
has. Rounding to nearest even to other formats is one addition and one subtraction, of a number made from ``u``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.directions import Rounding
from ..core.formats import FloatFormat, Specials
from .arrays import Layout, bit_pattern, constant_pattern, from_pattern, layout, magnitude

Array = jax.Array


def round_to_float(u: Array, format: FloatFormat, rounding: Rounding, noise: Array | None = None) -> Array:
    """``u`` rounded to a number of the format, as if its exponents had no upper end.

    Args:
        u: any shape, float32 or float64.
        noise: of stochastic rounding, see `round_to_integer`; here of the multiple of the quantum.
    Returns:
        Same shape and dtype. NaN and infinities are kept. Zero keeps the sign of ``u``, except in formats without a
        negative zero.
    """
    form, bits, size = layout(u.dtype), bit_pattern(u), magnitude(u)
    if rounding is Rounding.TIES_TO_EVEN and _has_sums(format, form):
        return _nearest(u, format)
    one = form.integer(1)
    significand, drop = _quanta(size, format, u.dtype)
    rest, odd = significand & ((one << drop) - 1), (significand >> drop) & 1 == 1
    if rounding is Rounding.STOCHASTIC:
        up = _exceeds(rest, size, format, u.dtype, noise)
    else:
        up = _away(rounding, rest, one << (drop - 1), odd, bits >= 0)
    # A carry out of the significand makes the next exponent. With `drop` beyond the leading one nothing is kept.
    kept = jnp.where(drop <= form.mantissa, size >> drop << drop, 0)
    step = jnp.where(drop <= form.mantissa, one << drop, constant_pattern(_quantum(format), u.dtype))
    rounded = kept + jnp.where(up, step, 0)
    signed = rounded | (bits & form.sign)
    if format.specials is Specials.NEGATIVE_ZERO:
        signed = jnp.where(rounded == 0, 0, signed)
    return jnp.where(jnp.isnan(u), u, from_pattern(signed, u.dtype))


def _has_sums(format: FloatFormat, form: Layout) -> bool:
    """Whether `_nearest` meets no subnormals of the dtype that decide."""
    return format.min_exponent - form.mantissa - 2 >= form.min_exponent


def _nearest(u: Array, format: FloatFormat) -> Array:
    """`round_to_float` to nearest even, where `_has_sums`: a subnormal ``u`` may then be read as zero.

    By adding and subtracting a number next to which floats lie as far apart as those of the format next to ``u``. Both
    are made so much smaller first that no sum overflows: with ``2**e`` the power of two below ``u``, and not below the
    format's smallest normal number, that number is ``1.5 * 2**(e - 1)``.

    ``u`` is used once, as bits: XLA on CPU stores a quotient that is used twice, which takes as long as all of this.
    XLA folds no sum here, since the number comes from ``u``.
    """
    form, bits = layout(u.dtype), bit_pattern(u)
    size, down = bits & ~form.sign, u.dtype.type(2.0 ** (format.mantissa_bits - form.mantissa - 1))
    power = jnp.maximum(size & form.exponent, form.integer(_first_field(format, form) << form.mantissa))
    large = from_pattern(power - form.integer(1 << (form.mantissa - 1)), u.dtype)
    rounded = bit_pattern(((from_pattern(size, u.dtype) * down + large) - large) * (1 / down))
    signed = rounded | (bits & form.sign)
    if format.specials is Specials.NEGATIVE_ZERO:
        signed = jnp.where(rounded == 0, 0, signed)
    return from_pattern(signed, u.dtype)


def overflow(rounded: Array, format: FloatFormat) -> Array:
    """Magnitudes beyond the largest number: that number when the format saturates or has neither infinity nor NaN, else
    infinity, else NaN. NaN stays NaN.
    """
    form, size = layout(rounded.dtype), magnitude(rounded)
    if format.saturate or format.specials is Specials.NONE:
        instead = format.hi
    else:
        instead = float("inf") if format.specials is Specials.IEEE else float("nan")
    beyond = (size > constant_pattern(format.hi, rounded.dtype)) & (size <= form.exponent)
    limited = jnp.where(beyond, constant_pattern(instead, rounded.dtype), size)
    return from_pattern(limited | (bit_pattern(rounded) & form.sign), rounded.dtype)


def decode_float(codes: Array, format: FloatFormat) -> Array:
    """Values of codes (bits in any integer dtype), float32: exact for every format."""
    form = layout(jnp.float32)
    bits = codes.astype(form.integer)
    size = bits & (2 ** (format.bits - 1) - 1)
    significand, exponent = size & (2**format.mantissa_bits - 1), size >> format.mantissa_bits
    normal = (size << (form.mantissa - format.mantissa_bits)) + (_first_field(format, form) - 1 << form.mantissa)
    pattern = jnp.where(exponent > 0, normal, _subnormals(significand, format))
    top, ones = 2**format.exponent_bits - 1, 2**format.mantissa_bits - 1
    nan = constant_pattern(float("nan"), jnp.float32)
    match format.specials:
        case Specials.IEEE:
            pattern = jnp.where(exponent == top, jnp.where(significand == 0, form.exponent, nan), pattern)
        case Specials.NAN_ONLY:
            pattern = jnp.where((exponent == top) & (significand == ones), nan, pattern)
        case Specials.NEGATIVE_ZERO:
            pattern = jnp.where(bits == 2 ** (format.bits - 1), nan, pattern)
        case Specials.NONE:
            pass
    negative = bits >> (format.bits - 1) & 1 == 1
    return from_pattern(jnp.where(negative, pattern | form.sign, pattern), jnp.float32)


def encode_float(values: Array, format: FloatFormat) -> Array:
    """Codes of numbers of the format; the NaN of a format is its code with sign 0. Other numbers have no meaning.

    Returns:
        Same shape, dtype `format.storage`.
    """
    form, size = layout(values.dtype), magnitude(values)
    significand, drop = _quanta(size, format, values.dtype)
    above = jnp.maximum((size >> form.mantissa) - _first_field(format, form), 0)
    code = (significand >> drop) + (above << format.mantissa_bits)
    top, ones = 2**format.exponent_bits - 1, 2**format.mantissa_bits - 1
    sign_bit, infinity = 2 ** (format.bits - 1), top << format.mantissa_bits
    nan = {
        Specials.IEEE: infinity + (format.mantissa_bits > 0),
        Specials.NAN_ONLY: infinity + ones,
        Specials.NEGATIVE_ZERO: sign_bit,
        Specials.NONE: 0,
    }[format.specials]
    code = jnp.where(size == form.exponent, infinity, code)
    code = jnp.where(bit_pattern(values) < 0, code | sign_bit, code)
    return jnp.where(size > form.exponent, nan, code).astype(format.storage)


def _away(rounding: Rounding, rest: Array, half: Array, odd: Array, positive: Array) -> Array:
    """Whether magnitudes of which ``rest`` is beyond the last bit go to the next larger one."""
    match rounding:
        case Rounding.TIES_TO_EVEN:
            return (rest > half) | ((rest == half) & odd)
        case Rounding.TIES_TO_AWAY:
            return rest >= half
        case Rounding.TIES_TOWARD_POSITIVE:
            return (rest > half) | ((rest == half) & positive)
        case Rounding.DPU:
            return (rest > half) | ((rest == half) & positive & odd)
        case Rounding.TOWARD_ZERO:
            return jnp.zeros_like(odd)
        case Rounding.TOWARD_POSITIVE:
            return (rest > 0) & positive
        case Rounding.TOWARD_NEGATIVE:
            return (rest > 0) & ~positive
        case Rounding.STOCHASTIC | Rounding.LEARNED:
            raise AssertionError("`_exceeds` decides, and only integers have learned rounding")


def _exceeds(rest: Array, size: Array, format: FloatFormat, dtype: Any, noise: Array | None) -> Array:
    """Whether 2**24 times the fraction that ``rest`` is of a quantum exceeds the noise, an integer."""
    if noise is None:
        raise ValueError("`noise` must be given for stochastic rounding, got None")
    form = layout(dtype)
    beyond = _below(size, format, form) + (form.mantissa - format.mantissa_bits)  # the fraction is rest / 2**beyond
    up = 24 - beyond
    many = jnp.clip(-up, 0, form.mantissa + 2).astype(form.integer)
    ceiling = ((rest << jnp.maximum(up, 0).astype(form.integer)) + ((form.integer(1) << many) - 1)) >> many
    exceeds: Array = ceiling > noise.astype(form.integer)
    return exceeds


def _quanta(size: Array, format: FloatFormat, dtype: Any) -> tuple[Array, Array]:
    """Significand with its leading one, and how many of its last bits are less than the quantum.

    That is more for every exponent below the format's smallest; at most so many that nothing, not even half, is left.
    """
    form = layout(dtype)
    leading = jnp.where(size >> form.mantissa > 0, form.integer(1 << form.mantissa), 0)
    drop = jnp.minimum(_below(size, format, form) + (form.mantissa - format.mantissa_bits), form.mantissa + 2)
    return size & form.integer((1 << form.mantissa) - 1) | leading, drop


def _below(size: Array, format: FloatFormat, form: Any) -> Array:
    """How many exponents a magnitude lies below the format's smallest."""
    return jnp.maximum(_first_field(format, form) - jnp.maximum(size >> form.mantissa, 1), 0)


def _first_field(format: FloatFormat, form: Any) -> int:
    """Exponent field, in the pattern of a dtype, of the format's smallest normal number."""
    return int(format.min_exponent - form.min_exponent + 1)


def _quantum(format: FloatFormat) -> float:
    """The smallest positive number."""
    return float(2.0 ** (format.min_exponent - format.mantissa_bits))


def _subnormals(count: Array, format: FloatFormat) -> Array:
    """float32 patterns of ``count`` quanta, fewer than a normal number holds."""
    form, quantum = layout(jnp.float32), format.min_exponent - format.mantissa_bits
    normal = bit_pattern(count.astype(jnp.float32)) + (np.int32(quantum) << form.mantissa)
    least = max(form.min_exponent - quantum, 0)  # from 2**least quanta upwards the product is a normal number
    subnormal = count << max(quantum - (form.min_exponent - form.mantissa), 0)
    return jnp.where(count >= 2 ** min(least, 30), jnp.where(count == 0, 0, normal), subnormal)
