"""The named straight-through rules of the field: what each computes, and the gradient it claims. By definition.

A rule is a function and its surrogate derivative: ``*_ste`` have that of the identity (`pass_through_vjp`), the others
have a function of their own, called ``*_vjp``. Shapes: any; results have the shape and dtype of ``x``. Dtypes: float32,
bfloat16, float16, float64; 16-bit ones are computed in float32, which is exact here. Everything is elementwise and has
the same bits in all rooms. Oracle: ``brevitas.function.ops`` and ``ops_ste``; what differs is said at the function.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checks
from .arguments import as_array
from .choice import choice
from .directions import Rounding
from .rounding import round_to_integer

Array = NDArray[Any]


def pass_through_vjp(g: Array) -> Array:
    """``g``: the gradient of every ``*_ste`` towards ``x``. Source: Bengio et al., arXiv 1308.3432."""
    return as_array("g", g).copy()


@np.errstate(invalid="ignore")  # NaN is meant
def round_ste(x: Array, rounding: Rounding | str = Rounding.TIES_TO_EVEN, noise: Array | None = None) -> Array:
    """``x`` rounded to an integer in a direction of `Rounding`, gradient 1. NaN and infinities stay.

    A zero has the sign of ``x``. (Brevitas' ``round_to_zero`` makes +0 of -0, ours keeps it, as it keeps that of -0.5.)

    Args:
        noise: what the direction needs besides ``x``, see `round_to_integer`; same shape.
    Raises:
        TypeError: ``x`` is no floating-point array.
        ValueError: ``rounding`` is no direction, or ``noise`` is missing.
    Source: Brevitas ``round_ste``, ``floor_ste``, ``ceil_ste``, ``round_to_zero_ste``, ``dpu_round_ste``.
    """
    x = _checked("x", x)
    wide = x.astype(checks.scale_dtype(x.dtype.name))
    noise = None if noise is None else as_array("noise", noise)
    return round_to_integer(wide, choice("rounding", rounding, Rounding), noise).astype(x.dtype)


def tensor_clamp(x: Array, lo: ArrayLike, hi: ArrayLike) -> Array:
    """``x`` limited to ``[lo, hi]``: hi where ``x > hi``, and of that lo where it is below lo; so lo wins if lo > hi.

    NaN in ``x`` stays, NaN in a bound limits nothing; where ``x`` equals a bound it stays, with its sign of zero.

    Args:
        lo, hi: arrays or numbers that broadcast to the shape of ``x``. They are rounded to its dtype (numbers to
            float32 before that, unless ``x`` is float64; a number -0.0 counts as +0.0).
    Raises:
        TypeError: ``x`` is no floating-point array.
    Source: Brevitas ``tensor_clamp`` (`torch.clamp` lets hi win).
    """
    x = _checked("x", x)
    lo, hi = _bounds(x, lo, hi)
    below_hi = np.where(x > hi, hi, x)
    return np.where(below_hi < lo, lo, below_hi)


def tensor_clamp_vjp(x: Array, lo: ArrayLike, hi: ArrayLike, g: Array) -> tuple[Array, Array, Array]:
    """``g`` to the one of ``x``, ``lo`` and ``hi`` that `tensor_clamp` took, +0.0 to the others.

    So ``x`` gets it inside and at the bounds, and where it is NaN. All three in the shape of ``x``: whoever broadcasts
    a bound sums its terms.

    Raises:
        TypeError, ValueError: as `tensor_clamp`; ``g`` of another shape or dtype than ``x``.
    """
    x, g = _checked("x", x), as_array("g", g)
    checks.check_cotangent(x.shape, x.dtype.name, g.shape, g.dtype.name)
    lo, hi = _bounds(x, lo, hi)
    above = x > hi
    below = np.where(above, hi, x) < lo
    nothing = np.zeros_like(g)
    return (
        np.where(below | above, nothing, g),
        np.where(below, g, nothing),
        np.where(above & ~below, g, nothing),
    )


def tensor_clamp_ste(x: Array, lo: ArrayLike, hi: ArrayLike) -> Array:
    """As `tensor_clamp`, gradient 1 everywhere, none to the bounds. Source: Brevitas ``tensor_clamp_ste``."""
    return tensor_clamp(x, lo, hi)


def scalar_clamp_ste(x: Array, lo: float, hi: float) -> Array:
    """``x`` limited to ``[lo, hi]``, gradient 1 everywhere. NaN and zeros at a bound as in `tensor_clamp`.

    Raises:
        TypeError: ``x`` is no floating-point array.
        ValueError: not ``lo <= hi``.
    Source: Brevitas ``scalar_clamp_ste``.
    """
    checks.check_interval(lo, hi)
    return tensor_clamp(x, lo, hi)


def scalar_clamp_min_ste(x: Array, lo: float) -> Array:
    """``lo`` where ``x < lo``, else ``x``; gradient 1 everywhere. NaN stays. Source: Brevitas ``scalar_clamp_min_ste``.

    Raises:
        TypeError: ``x`` is no floating-point array. ValueError: ``lo`` is NaN.
    """
    checks.check_interval(lo, float("inf"))
    return tensor_clamp(x, lo, float("inf"))


def binary_sign_ste(x: Array) -> Array:
    """1 where ``x >= 0`` (both zeros), else -1 (NaN too); gradient 1. Source: Brevitas ``binary_sign_ste``."""
    x = _checked("x", x)
    return np.where(x >= 0, 1, -1).astype(x.dtype)


def ternary_sign_ste(x: Array) -> Array:
    """1 where ``x > 0``, -1 where ``x < 0``, else +0 (both zeros and NaN); gradient 1.

    Source: Brevitas ``ternary_sign_ste``.
    """
    x = _checked("x", x)
    return (np.where(x > 0, 1, 0) - np.where(x < 0, 1, 0)).astype(x.dtype)


def abs_binary_sign_grad(x: Array) -> Array:
    """``|x|``, with the gradient of `abs_binary_sign_grad_vjp`, which is 1 at both zeros (that of `abs` is 0).

    Source: Brevitas ``abs_binary_sign_grad``.
    """
    return np.abs(_checked("x", x))


def abs_binary_sign_grad_vjp(x: Array, g: Array) -> Array:
    """``g`` where ``x >= 0`` (both zeros), else ``-g`` (NaN too).

    Raises:
        TypeError, ValueError: ``x`` is no floating-point array, ``g`` of another shape or dtype.
    """
    x, g = _checked("x", x), as_array("g", g)
    checks.check_cotangent(x.shape, x.dtype.name, g.shape, g.dtype.name)
    return np.where(x >= 0, g, -g)


def signed_clamp_min_ste(x: Array, lo: float) -> Array:
    """``x`` moved away from 0 to a magnitude of at least ``lo``: ``sign(x) * max(|x|, lo)``, both zeros to ``+lo``.

    Gradient 1 everywhere, NaN stays. Source: Brevitas ``ScalarSignedClampMinSte``, the floor of its scales.

    Args:
        lo: rounded to the dtype of ``x``.
    Raises:
        TypeError: ``x`` is no floating-point array. ValueError: not ``lo > 0``.
    """
    checks.check_positive("lo", lo)
    x = _checked("x", x)
    bound = _as(x.dtype, "lo", lo)
    return np.where(np.abs(x) < bound, np.where(x >= 0, bound, -bound), x)


def _checked(name: str, x: Any) -> Array:
    checks.check_subnormals()
    array = as_array(name, x)
    checks.check_float(name, array.dtype.name)
    return array


def _as(dtype: np.dtype[Any], name: str, bound: Any) -> Array:
    """A bound rounded to the dtype of ``x``, by way of the dtype that is computed in."""
    given = as_array(name, bound + 0.0 if isinstance(bound, int | float) else bound)  # a number 0 has no sign
    return given.astype(checks.scale_dtype(dtype.name)).astype(dtype)


def _bounds(x: Array, lo: ArrayLike, hi: ArrayLike) -> tuple[Array, Array]:
    return np.broadcast_to(_as(x.dtype, "lo", lo), x.shape), np.broadcast_to(_as(x.dtype, "hi", hi), x.shape)
