"""What the five functions and the layers share: codes and values of one array, without checks and without `jax.jit`.

Scales and zero points come as one per block; ``zero_point`` is None when symmetric.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.descriptions import Quantizer, Rounding
from ..core.granularity import Shape
from .arrays import divide, layout, narrow, product, tiny_quotient, widen
from .blocks import expand_blocks
from .clamp import clamp
from .rounding import round_to_integer

Array = jax.Array
Result = TypeVar("Result")
DIRECTED = (Rounding.TOWARD_POSITIVE, Rounding.TOWARD_NEGATIVE)


def by_scale(q: Quantizer, scale: Array, compute: Callable[[bool], Result]) -> Result:
    """``compute(subnormals)``: whether subnormal ``x`` must be decoded, decided by the scales when the program runs.

    With scales of at least 2**-63 their quotients are below 2**-63, which every direction that rounds to nearest or
    toward zero makes 0. The others move a tiny quotient to 1 or -1: they always decode.
    """
    if q.rounding in DIRECTED:
        return compute(True)
    least = 2.0 ** (layout(scale.dtype).min_exponent // 2)
    chosen: Result = lax.cond(jnp.all(scale >= least), lambda: compute(False), lambda: compute(True))
    return chosen


def zero_points(q: Quantizer, zero_point: Array | None, scale: Array, shape: Shape) -> Array:
    """The zero point of every element, 0 when symmetric, in the dtype of the scale."""
    if zero_point is None:
        return jnp.zeros(shape, scale.dtype)
    return expand_blocks(zero_point.astype(scale.dtype), q.granularity, shape)


def unclamped_codes(
    q: Quantizer, x: Array, scale: Array, zero_point: Array | None, *, subnormals: bool
) -> tuple[Array, Array]:
    """``x / s``, and the codes as the clamp sees them; `by_scale` says whether ``subnormals`` count."""
    value, divisor = widen(x), expand_blocks(scale, q.granularity, x.shape)
    quotient = divide(value, divisor, subnormals=subnormals)
    if q.rounding in DIRECTED:
        quotient = tiny_quotient(value, divisor, quotient)
    rounded = round_to_integer(quotient, q.rounding)
    return quotient, rounded if zero_point is None else rounded + zero_points(q, zero_point, scale, x.shape)


def codes(q: Quantizer, x: Array, scale: Array, zero_point: Array | None, *, subnormals: bool) -> Array:
    """Codes in the dtype of the scale, NaN for NaN; zero may have either sign."""
    unclamped = unclamped_codes(q, x, scale, zero_point, subnormals=subnormals)[1]
    return clamp(unclamped, q.format.lo, q.format.hi)


def centred(q: Quantizer, codes: Array, scale: Array, zero_point: Array | None) -> Array:
    """``code - z``, exact."""
    return codes if zero_point is None else codes - zero_points(q, zero_point, scale, codes.shape)


def values(q: Quantizer, codes: Array, scale: Array, zero_point: Array | None, dtype: Any) -> Array:
    """``(code - z) * s``, rounded once to ``dtype``."""
    expanded = expand_blocks(scale, q.granularity, codes.shape)
    return narrow(product(centred(q, codes, scale, zero_point), expanded), dtype)


def zero_point_cotangent(zero_point: Array | None, gradient: Array | None) -> Any:
    """The gradient of a zero point as JAX wants it: of dtype float0 where the zero point is an integer."""
    if zero_point is None or jnp.issubdtype(zero_point.dtype, jnp.floating):
        return gradient
    return np.zeros(zero_point.shape, jax.dtypes.float0)
