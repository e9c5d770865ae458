"""Elementary operations as an `Arithmetic` has them: in which dtype they round, and what happens to subnormals.

Correct for every operand, op by op and under `jax.jit`: what rounds is put together from integers, so that nothing is
flushed, contracted with what follows, replaced by a reciprocal, or kept wider than it should be. Made for one number
per block, and for arrays where `ordinary` does not do. 16-bit numbers are computed with in float32 and rounded again,
which rounds ``+ - * /`` correctly because 24 >= 2 * 11 + 2 (Figueroa, 1995); fused ones are rounded to odd in between.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks
from ..core.arithmetic import Arithmetic, ComputeDtype, Division
from .arrays import (
    bit_pattern,
    from_pattern,
    is_subnormal_or_zero,
    layout,
    magnitude,
    widen_exactly,
)
from .devices import as_float16
from .ieee_any import add_any, divide_any, multiply_add_any, multiply_any

Array = jax.Array
FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def working_dtype(arithmetic: Arithmetic, dtype: Any) -> Any:
    """Dtype in which every operation rounds, for input of this dtype."""
    if arithmetic.compute_dtype is ComputeDtype.INPUT:
        return np.dtype(dtype)
    wide = arithmetic.compute_dtype is ComputeDtype.FLOAT64 or np.dtype(dtype) == FLOAT64
    return FLOAT64 if wide else FLOAT32


def round_to_dtype(x: Array, dtype: Any) -> Array:
    """``x`` rounded once, to nearest even, to ``dtype``; from a narrower one exact. Subnormals count, on both sides.

    What rounds does so as an integer: a compiler that leaves out conversions may do so here. Float64 needs
    `with_float64` where ``jax_enable_x64`` is not set.
    """
    dtype = np.dtype(dtype)
    if x.dtype == dtype:
        return x
    if x.dtype == FLOAT64:
        narrow = from_pattern(_float32_pattern(x, odd=dtype != FLOAT32), FLOAT32)
        return narrow if dtype == FLOAT32 else round_to_dtype(narrow, dtype)
    if dtype == jnp.bfloat16:
        wide = _wide(x)
        nearest = (bit_pattern(wide) + 0x7FFF + ((bit_pattern(wide) >> 16) & 1)) >> 16
        kept = from_pattern(nearest.astype(jnp.int16), jnp.bfloat16)
        return jnp.where(jnp.isnan(wide), jnp.asarray(jnp.nan, jnp.bfloat16), kept)
    if dtype == jnp.float16:
        return lax.convert_element_type(as_float16(_wide(x)), dtype)
    return widen_exactly(_wide(x), dtype)


def smallest_normal(dtype: Any) -> Any:
    """Smallest positive normal number of a dtype, 0-d and of that dtype."""
    return layout(dtype).smallest


def flush(x: Array, arithmetic: Arithmetic) -> Array:
    """Subnormals to zero of the same sign when the arithmetic flushes, else ``x``."""
    if not arithmetic.flush_subnormals:
        return x
    signed = from_pattern(bit_pattern(x) & layout(x.dtype).sign, x.dtype)
    return jnp.where(is_subnormal_or_zero(x), signed, x)


def multiply(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a * b``, rounded once."""
    a, b = _operands(arithmetic, a, b)
    return flush(round_to_dtype(multiply_any(_wide(a), _wide(b)), a.dtype), arithmetic)


def add(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a + b``, rounded once."""
    a, b = _operands(arithmetic, a, b)
    return flush(round_to_dtype(add_any(_wide(a), _wide(b)), a.dtype), arithmetic)


def divide(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a / b`` as the arithmetic divides by a scale: rounded once, or ``a * (1 / b)`` with both steps rounded."""
    if arithmetic.division is Division.RECIPROCAL:
        return multiply(a, reciprocal(b, arithmetic), arithmetic)
    return true_divide(a, b, arithmetic)


def true_divide(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a / b``, rounded once."""
    a, b = _operands(arithmetic, a, b)
    return flush(round_to_dtype(divide_any(_wide(a), _wide(b)), a.dtype), arithmetic)


def reciprocal(b: Array, arithmetic: Arithmetic) -> Array:
    """``1 / b``, rounded once."""
    return true_divide(jnp.ones_like(b), b, arithmetic)


def multiply_add(a: Array, b: Array, c: Array, arithmetic: Arithmetic) -> Array:
    """``a * b + c``: rounded once when the arithmetic fuses, else twice."""
    if not arithmetic.fused_multiply_add:
        return add(multiply(a, b, arithmetic), c, arithmetic)
    a, b, c = _operands(arithmetic, a, b, c)
    narrow = a.dtype.itemsize == 2
    total = multiply_add_any(_wide(a), _wide(b), _wide(c), odd=narrow)
    return flush(round_to_dtype(total, a.dtype), arithmetic)


def _operands(arithmetic: Arithmetic, *operands: Array) -> tuple[Array, ...]:
    """Flushed, and of one shape."""
    shape = jnp.broadcast_shapes(*(v.shape for v in operands))
    return tuple(jnp.broadcast_to(flush(v, arithmetic), shape) for v in operands)


def _wide(x: Array) -> Array:
    """16-bit numbers as those of float32."""
    if x.dtype == jnp.bfloat16:  # by its bits, since a conversion may read a subnormal as zero
        return from_pattern(bit_pattern(x).astype(jnp.int32) << 16, FLOAT32)
    return lax.convert_element_type(x, checks.scale_dtype(x.dtype.name))


def _float32_pattern(x: Array, *, odd: bool) -> Array:
    """float64 rounded to float32, to nearest even or to odd; the bits."""
    wide, form = layout(FLOAT64), layout(FLOAT32)
    size, shorter = magnitude(x), wide.mantissa - form.mantissa
    field = (size >> wide.mantissa) - (form.min_exponent - wide.min_exponent)  # of float32
    significand = (size & ((1 << wide.mantissa) - 1)) | (1 << wide.mantissa)
    drop = jnp.clip(1 - field, 0, form.mantissa + 2) + shorter
    kept, rest = significand >> drop, significand & ((jnp.ones_like(significand) << drop) - 1)
    if odd:
        kept = kept | (rest != 0).astype(kept.dtype)
    else:
        half = jnp.ones_like(significand) << (drop - 1)
        kept = kept + ((rest > half) | ((rest == half) & (kept & 1 == 1))).astype(kept.dtype)
    # a carry out of the significand makes the next exponent
    pattern = jnp.where(field > 0, kept + ((field - 1) << form.mantissa), kept)
    largest = int(form.exponent) - 1 if odd else int(form.exponent)
    pattern = jnp.where(pattern >= int(form.exponent), largest, pattern)
    infinite, nan = size == wide.exponent, size > wide.exponent
    pattern = jnp.where(infinite, int(form.exponent), jnp.where(size == 0, 0, pattern)).astype(jnp.int32)
    pattern = jnp.where(bit_pattern(x) < 0, pattern | form.sign, pattern)
    return jnp.where(nan, np.asarray(np.nan, FLOAT32).view(np.int32), pattern)
