"""Rounding to integers, with XLA's rounding instructions where it has one and bit patterns where it has none.

XLA on CPU takes a subnormal for zero. The patterns tell them apart for the two directions that move a subnormal.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ..core.directions import Rounding
from .arrays import bit_pattern, layout, widen, with_sign_of


def round_to_integer(x: jax.Array, rounding: Rounding, noise: jax.Array | None = None) -> jax.Array:
    """``x`` rounded to an integer in the given direction; NaN, infinities and the sign of zero are kept.

    Args:
        x: any shape, floating point.
        rounding: the direction.
        noise: of stochastic rounding, as `rounding_noise` gives it, shape of ``x``. Away from zero if
            ``|x - trunc(x)| * 2**24 > noise``: with a probability of the fraction, rounded up to a multiple of 2**-24.
            Of learned rounding, as `rounding_offset` gives it: ``floor(x) + noise``, one addition; None for the floor.
    Returns:
        Same shape and dtype; zero results carry the sign of ``x`` (a floor to which noise was added: +0).
    Raises:
        ValueError: stochastic rounding without ``noise``.
    """
    match rounding:
        case Rounding.TIES_TO_EVEN:
            return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)
        case Rounding.TIES_TO_AWAY:
            return lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO)
        case Rounding.TIES_TOWARD_POSITIVE:
            return _half_up(x)
        case Rounding.DPU:
            return jnp.where(x < 0, _half_up(x), lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN))
        case Rounding.TOWARD_ZERO:
            return jnp.where(x < 0, lax.ceil(x), lax.floor(x))
        case Rounding.TOWARD_POSITIVE:
            return jnp.where(_inside_unit(x), 1, lax.ceil(x))
        case Rounding.TOWARD_NEGATIVE:
            return jnp.where(_inside_unit(x, negative=True), -1, lax.floor(x))
        case Rounding.LEARNED:
            below = jnp.where(_inside_unit(x, negative=True), -1, lax.floor(x))
            return below if noise is None else below + noise
        case Rounding.STOCHASTIC:
            if noise is None:
                raise ValueError("`noise` must be given for stochastic rounding, got None")
            wide = widen(x)
            whole = jnp.where(wide < 0, lax.ceil(wide), lax.floor(wide))
            away = jnp.abs(wide - whole) * 2.0**24 > noise  # exact; false for NaN
            away |= (noise == 0) & (_inside_unit(x) | _inside_unit(x, negative=True))  # subnormals too
            return jnp.where(away, whole + with_sign_of(jnp.ones_like(wide), wide), whole).astype(x.dtype)


def _half_up(x: jax.Array) -> jax.Array:
    """Nearest, halves upward. ``x - floor(x)`` is exact, or (just below 0) rounds to a number above 1/2."""
    below = lax.floor(x)
    return with_sign_of(jnp.where(x - below >= 0.5, below + 1, below), x)


def _inside_unit(x: jax.Array, *, negative: bool = False) -> jax.Array:
    """``0 < x < 1``, or ``-1 < x < 0``, subnormals included: positive numbers are in the order of their patterns."""
    bits = bit_pattern(x) ^ layout(x.dtype).sign if negative else bit_pattern(x)
    return jnp.logical_and(bits > 0, bits < layout(x.dtype).one)
