"""The named straight-through rules of the field, on bit patterns where XLA would misread subnormals, by custom_jvp.

Jit-able, vmap-able, differentiable in both modes. Formulas, special values and sources stand in
`samebits.core.straight_through`, of which these have the bits. XLA on CPU compares subnormals as zeros, so all
comparisons here are of `_place`, the integer that says where a number lies among the others.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ..core import checks
from ..core.choice import choice
from ..core.directions import Rounding
from .arrays import as_array, bit_pattern, from_pattern, layout, magnitude, narrow, ordered, widen
from .derivatives import differentiable, varying_as
from .rounding import round_to_integer
from .sharding import lying_as

Array = jax.Array


def pass_through_vjp(g: Array) -> Array:
    """``g``: the gradient of every ``*_ste`` towards ``x``."""
    return g


def round_ste(x: Array, rounding: Rounding | str = Rounding.TIES_TO_EVEN, noise: Array | None = None) -> Array:
    """``x`` rounded to an integer in a direction of `Rounding`, gradient 1.

    Args:
        noise: what the direction needs besides ``x``, see `round_to_integer`; same shape.
    Raises:
        TypeError: ``x`` is no floating-point array.
        ValueError: ``rounding`` is no direction, or ``noise`` is missing.
    """
    x, direction = _checked("x", x), choice("rounding", rounding, Rounding)
    return _straight_through(x, narrow(round_to_integer(widen(lax.stop_gradient(x)), direction, noise), x.dtype))


def tensor_clamp(x: Array, lo: ArrayLike, hi: ArrayLike) -> Array:
    """``x`` limited to ``[lo, hi]``, lo wins if lo > hi; differentiable in all three, see `tensor_clamp_vjp`.

    Args:
        lo, hi: arrays or numbers that broadcast to the shape of ``x``.
    Raises:
        TypeError: ``x`` is no floating-point array.
    """
    x = _checked("x", x)
    value: Array = _tensor_clamp(x, _like(x, "lo", lo), _like(x, "hi", hi))
    return value


def tensor_clamp_vjp(x: Array, lo: ArrayLike, hi: ArrayLike, g: Array) -> tuple[Array, Array, Array]:
    """``g`` to the one of ``x``, ``lo`` and ``hi`` that `tensor_clamp` took, +0.0 to the others; each shaped as ``x``.

    Raises:
        TypeError, ValueError: as `tensor_clamp`; ``g`` of another shape or dtype than ``x``.
    """
    x, g = _checked("x", x), as_array("g", g)
    checks.check_cotangent(x.shape, x.dtype.name, g.shape, g.dtype.name)
    below, above = _sides(x, _like(x, "lo", lo), _like(x, "hi", hi))
    nothing = jnp.zeros_like(g)
    return jnp.where(below | above, nothing, g), jnp.where(below, g, nothing), jnp.where(above & ~below, g, nothing)


def tensor_clamp_ste(x: Array, lo: ArrayLike, hi: ArrayLike) -> Array:
    """As `tensor_clamp`, gradient 1 everywhere, none to the bounds."""
    x = _checked("x", x)
    fixed = (lax.stop_gradient(v) for v in (x, _like(x, "lo", lo), _like(x, "hi", hi)))
    return _straight_through(x, _clamped(*fixed))


def scalar_clamp_ste(x: Array, lo: float, hi: float) -> Array:
    """``x`` limited to ``[lo, hi]``, gradient 1 everywhere.

    Raises:
        TypeError: ``x`` is no floating-point array. ValueError: not ``lo <= hi``.
    """
    checks.check_interval(lo, hi)
    return tensor_clamp_ste(x, lo, hi)


def scalar_clamp_min_ste(x: Array, lo: float) -> Array:
    """``lo`` where ``x < lo``, else ``x``; gradient 1 everywhere.

    Raises:
        TypeError: ``x`` is no floating-point array. ValueError: ``lo`` is NaN.
    """
    checks.check_interval(lo, float("inf"))
    return tensor_clamp_ste(x, lo, float("inf"))


def binary_sign_ste(x: Array) -> Array:
    """1 where ``x >= 0`` (both zeros), else -1 (NaN too); gradient 1."""
    x = _checked("x", x)
    one = jnp.ones_like(x)
    return _straight_through(x, jnp.where(_not_negative(x), one, -one))


def ternary_sign_ste(x: Array) -> Array:
    """1 where ``x > 0``, -1 where ``x < 0``, else +0 (both zeros and NaN); gradient 1."""
    x = _checked("x", x)
    place, number = _place(x), ~_is_nan(x)
    sign = jnp.where(place > 0, 1, jnp.where(place < 0, -1, 0))
    return _straight_through(x, jnp.where(number, sign, 0).astype(x.dtype))


def abs_binary_sign_grad(x: Array) -> Array:
    """``|x|``, with the gradient of `abs_binary_sign_grad_vjp`, which is 1 at both zeros.

    Raises:
        TypeError: ``x`` is no floating-point array.
    """
    value: Array = _absolute(None, _checked("x", x))
    return value


def abs_binary_sign_grad_vjp(x: Array, g: Array) -> Array:
    """``g`` where ``x >= 0`` (both zeros), else ``-g`` (NaN too).

    Raises:
        TypeError, ValueError: ``x`` is no floating-point array, ``g`` of another shape or dtype.
    """
    x, g = _checked("x", x), as_array("g", g)
    checks.check_cotangent(x.shape, x.dtype.name, g.shape, g.dtype.name)
    return jnp.where(_not_negative(x), g, from_pattern(bit_pattern(g) ^ layout(g.dtype).sign, g.dtype))


def signed_clamp_min_ste(x: Array, lo: float) -> Array:
    """``sign(x) * max(|x|, lo)``, both zeros to ``+lo``; gradient 1 everywhere, NaN stays.

    Raises:
        TypeError: ``x`` is no floating-point array. ValueError: not ``lo > 0``.
    """
    checks.check_positive("lo", lo)
    x = _checked("x", x)
    bound = _like(x, "lo", lo)
    away = jnp.where(_not_negative(x), bound, -bound)
    return _straight_through(x, jnp.where(magnitude(x) < magnitude(bound), away, lax.stop_gradient(x)))


_absolute = differentiable(
    lambda _, x: from_pattern(magnitude(x), x.dtype),
    lambda _, operands, tangents: abs_binary_sign_grad_vjp(operands[0], tangents[0]),
    lambda _, operands, g: (abs_binary_sign_grad_vjp(operands[0], g),),
)


@jax.custom_jvp
def _straight_through(x: Array, value: Array) -> Array:
    """``value``, which was computed from ``x``, with the derivative of the identity."""
    return value


@_straight_through.defjvp
def _straight_through_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    value = _straight_through(*primals)
    return value, varying_as(tangents[0], jax.typeof(value))


def _clamped(x: Array, lo: Array, hi: Array) -> Array:
    below, above = _sides(x, lo, hi)
    return jnp.where(below, lo, jnp.where(above, hi, x))


_tensor_clamp = jax.custom_jvp(_clamped)


@_tensor_clamp.defjvp
def _tensor_clamp_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    below, above = _sides(*map(lax.stop_gradient, primals))
    move, move_lo, move_hi = tangents
    return _tensor_clamp(*primals), jnp.where(below, move_lo, jnp.where(above, move_hi, move))


def _sides(x: Array, lo: Array, hi: Array) -> tuple[Array, Array]:
    """Where ``min(x, hi) < lo``, and where ``x > hi``; nothing lies beyond a NaN."""
    above = (_place(x) > _place(hi)) & ~_is_nan(x) & ~_is_nan(hi)
    limited = jnp.where(above, hi, x)
    return (_place(limited) < _place(lo)) & ~_is_nan(limited) & ~_is_nan(lo), above


def _place(x: Array) -> Array:
    """Integers in the order of the numbers, 0 for both zeros."""
    place = ordered(x)
    return place + (place < 0).astype(place.dtype)


def _is_nan(x: Array) -> Array:
    nan: Array = magnitude(x) > layout(x.dtype).exponent
    return nan


def _not_negative(x: Array) -> Array:
    return (_place(x) >= 0) & ~_is_nan(x)


def _checked(name: str, x: Any) -> Array:
    array = as_array(name, x)
    checks.check_float(name, array.dtype.name)
    return array


def _like(x: Array, name: str, bound: Any) -> Array:
    """A bound in the dtype and shape of ``x``."""
    checks.check_unmasked(name, bound)
    wide = checks.scale_dtype(x.dtype.name)
    if not isinstance(bound, jax.Array):
        number = bound + 0.0 if isinstance(bound, int | float) else bound  # a number 0 has no sign
        bound = jnp.asarray(np.asarray(number).astype(wide).astype(x.dtype))
    given = bound if bound.dtype == x.dtype else narrow(bound.astype(wide), x.dtype)
    return lying_as(jnp.broadcast_to(given, x.shape), x)
