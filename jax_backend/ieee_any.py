"""Sum, product, quotient and fused product and sum of any two or three numbers, as IEEE 754 has them.

`ieee` divides and multiplies by scales, which are positive and normal. Here every operand may be anything: zeros of
both signs, subnormals, infinities, NaN. Special values are told by their bit patterns, since XLA on CPU takes a
subnormal for zero; significands between 1 and 2 are computed with, and results are put together from integers, so no
compiler contracts them with what follows.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .arrays import add, bit_pattern, from_pattern, layout, magnitude, ordered, with_sign_of
from .ieee import from_one_to_two, parts, placed, quotient_of_parts

Array = jax.Array


def is_zero(x: Array) -> Array:
    """Whether ``x`` is zero, of either sign; no subnormal is."""
    place = ordered(x)
    return (place == 0) | (place == -1)


def is_infinite(x: Array) -> Array:
    """Whether ``x`` is an infinity."""
    return jnp.equal(magnitude(x), layout(x.dtype).exponent)


def add_any(a: Array, b: Array) -> Array:
    """``a + b``, correctly rounded. Float32 or float64, same shape. A zero is -0.0 where both operands are."""
    return with_sign_of_sum(add(a, b), a, b)


def with_sign_of_sum(total: Array, a: Array, b: Array) -> Array:
    """``total``, a correctly rounded ``a + b``; where that is zero, of the sign that a sum of zeros has."""
    both = from_pattern(bit_pattern(a) & bit_pattern(b) & layout(a.dtype).sign, a.dtype)
    return jnp.where(is_zero(total), both, total)


def multiply_any(a: Array, b: Array) -> Array:
    """``a * b``, correctly rounded. Float32 or float64, same shape."""
    (first, exponent), (second, other) = parts(a), parts(b)
    rounded = from_one_to_two(first, a.dtype) * from_one_to_two(second, a.dtype)
    product, shift = parts(rounded)  # in [1, 4)
    lost = first * second - (product << (layout(a.dtype).mantissa + shift))  # small: wrapping does no harm
    size = placed(product, exponent + other + shift, lost, a.dtype)
    infinite, zero = is_infinite(a) | is_infinite(b), is_zero(a) | is_zero(b)
    return _special(a, b, jnp.where(zero, 0, size), infinite, infinite & zero)


def divide_any(a: Array, b: Array) -> Array:
    """``a / b``, correctly rounded. Float32 or float64, same shape."""
    (first, exponent), (second, other) = parts(a), parts(b)
    quotient, shift, lost = quotient_of_parts(first, second, a.dtype)
    size = placed(quotient, exponent - other + shift, lost, a.dtype)
    infinite, zero = is_infinite(a) | is_zero(b), is_zero(a) | is_infinite(b)
    return _special(a, b, jnp.where(zero, 0, size), infinite, infinite & zero)


def _special(a: Array, b: Array, size: Array, infinite: Array, invalid: Array) -> Array:
    """A product or quotient of this magnitude, with the sign of the operands; or infinite, or NaN."""
    form = layout(a.dtype)
    size = jnp.where(infinite, form.exponent, size)
    result = from_pattern(size | ((bit_pattern(a) ^ bit_pattern(b)) & form.sign), a.dtype)
    return jnp.where(jnp.isnan(a) | jnp.isnan(b) | invalid, jnp.asarray(jnp.nan, a.dtype), result)


def multiply_add_any(a: Array, b: Array, c: Array, *, odd: bool = False) -> Array:
    """``a * b + c``, rounded once, to nearest, or to odd (`ieee.placed`). Float32 or float64, same shape.

    Significands are multiplied exactly, as a sum of two numbers, and that of ``c`` is scaled to where it stands beside
    them; no further away than rounding can see.
    """
    form = layout(a.dtype)
    (first, of_a), (second, of_b), (third, of_c) = parts(a), parts(b), parts(c)
    x = with_sign_of(from_one_to_two(first, a.dtype), a)
    y = with_sign_of(from_one_to_two(second, a.dtype), b)
    of_product, reach = of_a + of_b, form.integer(2 * form.mantissa + 16)
    apart = lax.clamp(-reach, of_c - of_product, reach)
    beside = from_pattern(((apart << form.mantissa) + form.one) | form.integer(0), a.dtype)
    addend = jnp.where(is_zero(c), jnp.zeros_like(c), with_sign_of(from_one_to_two(third, a.dtype) * beside, c))
    # a product of its own (see `arrays.product`); that x and y are no NaN, compilers may know
    whole = jnp.where(jnp.isnan(a), y, jnp.where(jnp.isnan(b), x, x * y))
    high, low = exact_product(x, y, whole)
    total, rest = _rounded_sum(high, low, addend)
    significand, shift = parts(total)
    lost = jnp.where(rest == 0, 0, jnp.where((rest > 0) == (total > 0), 1, -1)).astype(form.integer)
    exponent = jnp.where(of_c - of_product > reach, of_c - reach, of_product) + shift
    sized = placed(significand, exponent, lost, a.dtype, odd=odd) | (bit_pattern(total) & form.sign)
    result = jnp.where(total == 0, jnp.zeros_like(total), from_pattern(sized, a.dtype))
    plain = multiply_any(a, b)
    empty, infinite = is_zero(a) | is_zero(b), is_infinite(plain) & (is_infinite(a) | is_infinite(b))
    result = jnp.where(empty, with_sign_of_sum(c, plain, c), result)
    nan = jnp.isnan(a) | jnp.isnan(b) | jnp.isnan(c) | jnp.isnan(jnp.where(infinite | empty, plain, c))
    nan |= infinite & is_infinite(c) & (bit_pattern(plain) ^ bit_pattern(c) < 0)
    result = jnp.where(infinite, plain, jnp.where(is_infinite(c), c, result))
    return jnp.where(nan, jnp.asarray(jnp.nan, a.dtype), result)


def exact_product(x: Array, y: Array, product: Array) -> tuple[Array, Array]:
    """``x * y`` as the rounded product and what it lost, exactly: neither may be subnormal or overflow.

    Halves of significands multiply exactly, so the sums below may be contracted or not.

    Args:
        product: ``x * y``, rounded, which compilers may contract with nothing.

    Source: Dekker, A floating-point technique for extending the available precision (1971).
    """
    (x1, x2), (y1, y2) = halves(x), halves(y)
    return product, ((x1 * y1 - product) + x1 * y2 + x2 * y1) + x2 * y2


def halves(x: Array) -> tuple[Array, Array]:
    """The nearest number with half as many bits (of float64 26), and the rest, which has no more."""
    form = layout(x.dtype)
    last = form.integer(1 << (form.mantissa + 2) // 2)
    half = from_pattern((bit_pattern(x) + (last >> 1)) & ~(last - 1), x.dtype)
    return half, x - half


def exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """``a + b`` as the rounded sum and what it lost, exactly (Knuth); neither operand may be a bare product."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def to_odd(total: Array, rest: Array) -> Array:
    """``total + rest`` rounded to odd, where ``total`` is that rounded to nearest."""
    form, bits = layout(total.dtype), bit_pattern(total)
    inwards = lax.shift_right_logical(bits ^ bit_pattern(rest), form.integer(8 * bits.dtype.itemsize - 1))
    return from_pattern(jnp.where(rest == 0, bits, (bits - inwards) | form.integer(1)), total.dtype)


def _rounded_sum(high: Array, low: Array, addend: Array) -> tuple[Array, Array]:
    """``high + low + addend``, rounded once, and a number of the sign of what it lost; ``low`` is less than a last bit.

    Source: Boldo and Melquiond, Emulation of FMA and correctly rounded sums (2008).
    """
    total, rest = exact_sum(high, addend)
    rest = to_odd(*exact_sum(rest, low))
    return exact_sum(total, rest)


def rounded_sum(high: Array, low: Array, addend: Array) -> Array:
    """``high + low + addend``, rounded once; ``low`` is less than a last bit of ``high``."""
    return _rounded_sum(high, low, addend)[0]
