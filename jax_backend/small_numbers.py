"""Which arithmetic a program may use where XLA takes subnormals for zeros: decided by descriptions and by operands."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.arithmetic import ClampOrder, ZeroPointDomain, ZeroPointOrder
from ..core.descriptions import ON_QUOTIENT, Quantizer
from ..core.directions import Rounding
from ..core.formats import CodebookFormat, FloatFormat, IntegerFormat, TernaryFormat
from .arrays import bit_pattern, layout, magnitude, with_float64
from .blocks import expand_blocks
from .operations import FLOAT64, round_to_dtype, working_dtype

Array = jax.Array
Result = TypeVar("Result")
DIRECTED = (Rounding.TOWARD_POSITIVE, Rounding.TOWARD_NEGATIVE, Rounding.STOCHASTIC, Rounding.LEARNED)
SMALL = 2.0**-60


def is_other(q: Quantizer) -> bool:
    """Whether codes and values are computed here: an arithmetic that is not the default, or scales without a floor."""
    usual = q.arithmetic.is_default or (q.affine and q.arithmetic.has_float_zeros)
    return not usual or q.scale.floor == 0


def by_range(
    q: Quantizer,
    scale: Array,
    zero_point: Array | None,
    compute: Callable[[bool], Result],
    x: Array | None,
    dtype: Any,
    *,
    quotients: bool = False,
) -> Result:
    """``compute(subnormals)``: whether subnormals must be heeded, decided by the operands when the program runs.

    With scales and their reciprocals of at least 2**-63 a subnormal ``x``, or a subnormal quotient, is less than 2**-63
    steps, and zero points of at least 2**-80 leave no subnormal difference that is more. Where that decides something,
    ``x`` must have no number so small but zero.

    Args:
        x: None where codes are given.
        dtype: of ``x``, or of the values.
        quotients: whether the result holds quotients as they are, as the gradient of a scale does.
    """
    work = working_dtype(q.arithmetic, dtype)
    with with_float64(work):
        if not flushes(work, dtype):
            return compute(False)
        form = layout(scale.dtype)
        whole = q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
        tells = quotients or _tells_small_numbers(q)
        if _has_small_numbers(q) or (tells and (x is None or not whole)):
            return compute(True)
        half = 2.0 ** (form.min_exponent // 2)
        plain = jnp.all((scale >= half) & (scale <= (1 if x is not None and adds_to_signed_zeros(q) else 1 / half)))
        if zero_point is not None and jnp.issubdtype(zero_point.dtype, jnp.floating):
            plain &= jnp.all(bit_pattern(zero_point) != layout(zero_point.dtype).sign)
        if zero_point is not None and not whole:
            size, least = jnp.abs(zero_point), 2.0 ** (form.min_exponent + 2 * form.mantissa)
            plain &= jnp.all((bit_pattern(size) == 0) | ((size >= least) & (size <= 2.0 ** (-form.min_exponent - 26))))
        if tells and x is not None:
            plain &= jnp.all(_far_from_subnormals(q, x, scale))
        chosen: Result = lax.cond(plain, lambda: compute(False), lambda: compute(True))
        return chosen


def _far_from_subnormals(q: Quantizer, x: Array, scale: Array) -> Array:
    """Whether each ``x`` is zero, or its quotient by the scale, and it too, is at least 2**-62 (float64: 2**-510)."""
    least = jnp.maximum(scale, 1) * 2.0 ** (layout(scale.dtype).min_exponent // 2 + 1)
    bound = expand_blocks(bit_pattern(least), q.granularity, x.shape)
    unsigned = np.dtype(f"uint{8 * scale.dtype.itemsize}")  # where 0 - 1 is the largest integer
    size = magnitude(x if x.dtype == scale.dtype else round_to_dtype(x, scale.dtype))
    return (size - 1).astype(unsigned) >= (bound - 1).astype(unsigned)


def _tells_small_numbers(q: Quantizer) -> bool:
    """Whether the least number is told from zero, or its sign counts."""
    at_zero = q.gradient in ON_QUOTIENT and q.format.lo == 0
    if q.arithmetic.clamp_order is ClampOrder.BEFORE_ROUNDING:  # a limit of 0, for what is not rounded yet
        at_zero |= q.affine or 0 in (q.format.lo, q.format.hi)
    at_zero |= adds_to_signed_zeros(q) and q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER
    return bool(q.rounding in DIRECTED or at_zero or not isinstance(q.format, IntegerFormat))


def adds_to_signed_zeros(q: Quantizer) -> bool:
    """Whether a zero point is added to quotients of which the sign of a zero counts.

    Those are 0 for no ``x`` but 0 where scales are at most 1.
    """
    return keeps_signs(q) and q.arithmetic.zero_point_order is ZeroPointOrder.BEFORE_ROUNDING


def _has_small_numbers(q: Quantizer) -> bool:
    """Whether the format has numbers, or decides, below `SMALL`."""
    match q.format:
        case FloatFormat():
            least = 2.0 ** (q.format.min_exponent - q.format.mantissa_bits - 1)
        case CodebookFormat():
            sizes = map(abs, (*q.format.midpoints, *q.format.values))
            least = min((size for size in sizes if size), default=1.0)
        case TernaryFormat():
            least = q.format.threshold or 1.0
        case _:
            return q.relaxed
    return least < SMALL


def keeps_signs(q: Quantizer) -> bool:
    """Whether a zero may be negative."""
    return q.arithmetic.keep_negative_zero or q.format.negative_zero


def flushes(work: Any, dtype: Any) -> bool:
    """Whether numbers of a working dtype may be subnormal in the one that XLA computes them in."""
    return bool(work != jnp.float16 and (work != FLOAT64 or np.dtype(dtype) == FLOAT64))
