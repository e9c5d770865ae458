"""Codes by integer arithmetic: the correctly rounded quotient as a significand and an exponent, then its rounding.

A hardware division only guesses the significand; the remainder, an integer, corrects it. So neither approximate
division, as Triton has it, nor a multiplication by a reciprocal, which XLA makes of a division, changes a bit.
"""

import jax
import jax.numpy as jnp

from ...core.descriptions import Quantizer
from ...core.directions import Rounding
from ..arrays import bit_pattern
from ..devices import quotient_of
from ..ieee import parts

Array = jax.Array
MANTISSA = 23
LEAST, LARGEST = -3, 22  # exponents that matter: smaller quotients round to 0, larger ones are clamped


def clamped_codes(q: Quantizer, x: Array, scale: Array, zero_point: Array) -> Array:
    """Codes of float32 ``x``, int32; those of NaN have no meaning.

    Args:
        q: of integers of at most 16 bits, in the default arithmetic, with a direction of `ROUNDINGS`.
        scale: float32, shape of ``x``, positive normal numbers. ``zero_point``: int32, broadcasts against ``x``.
    """
    significand, exponent = _quotient(x, scale)
    size = _rounded(q.rounding, significand, exponent, bit_pattern(x) < 0)
    code = jnp.where(bit_pattern(x) < 0, -size, size) + zero_point
    return jnp.minimum(jnp.maximum(code, int(q.format.lo)), int(q.format.hi))


def _quotient(x: Array, s: Array) -> tuple[Array, Array]:
    """The correctly rounded ``|x| / s`` as ``significand * 2**(exponent - 23)``, from 2**23 to 2**24.

    The quotient of two significands of 24 bits never lies halfway between two others, so nearest is one of them.
    """
    (of_x, x_exponent), (of_s, s_exponent) = parts(x), parts(s)
    found, less, _ = quotient_of(of_x, of_s, x.dtype)
    return found, x_exponent - s_exponent - less


def _rounded(rounding: Rounding, significand: Array, exponent: Array, negative: Array) -> Array:
    """The magnitude of the integer that the quotient becomes."""
    drop = MANTISSA - jnp.minimum(jnp.maximum(exponent, LEAST), LARGEST)  # from 1 to 26 bits
    whole, rest = significand >> drop, significand & ((1 << drop) - 1)
    half = jnp.left_shift(1, drop - 1)
    odd = (whole & 1) == 1
    match rounding:
        case Rounding.TIES_TO_EVEN:
            up = (rest > half) | ((rest == half) & odd)
        case Rounding.TIES_TO_AWAY:
            up = rest >= half
        case Rounding.TIES_TOWARD_POSITIVE:
            up = (rest > half) | ((rest == half) & ~negative)
        case Rounding.DPU:
            up = (rest > half) | ((rest == half) & odd & ~negative)
        case Rounding.TOWARD_ZERO:
            up = jnp.zeros_like(odd)
        case _:
            raise ValueError(f"`rounding` must be one of {', '.join(ROUNDINGS)}, got {rounding}")
    return whole + up.astype(jnp.int32)


# Directions that cannot tell the least quotient from 0
ROUNDINGS = (
    Rounding.TIES_TO_EVEN,
    Rounding.TIES_TO_AWAY,
    Rounding.TIES_TOWARD_POSITIVE,
    Rounding.DPU,
    Rounding.TOWARD_ZERO,
)
