"""The operations of `operations` where no operand and no result is subnormal, on arrays: with XLA's own arithmetic.

Subnormals of float32 and float64 may be taken for zero here, so a caller must know that none matters; those of float16
count, since they are normal numbers of float32. Names and arguments are those of `operations`; ``zero`` is a -0.0 that
compilers do not know (`hidden_zero`): added to a product, it leaves them nothing else to contract the product with.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arithmetic import Arithmetic, Division
from . import operations
from .arrays import bit_pattern, from_pattern, layout
from .arrays import divide as divided
from .ieee_any import exact_product, exact_sum, rounded_sum, to_odd
from .operations import flush, round_to_dtype

Array = jax.Array
QUIET = 0x2545F  # below the bits of a NaN that nobody makes


def hidden_zero(x: Array, scale: Array) -> Array:
    """-0.0 in the dtype of the scale, 0-d, which compilers can know only where both arrays are constants.

    Args:
        scale: positive, or NaN.
    """
    if not x.size or not scale.size:
        return jnp.asarray(-0.0, scale.dtype)
    form, of_x = layout(scale.dtype), layout(x.dtype)
    nan = bit_pattern(x[(0,) * x.ndim]) == of_x.integer(int(of_x.exponent) | QUIET & (1 << of_x.mantissa) - 1)
    negative = bit_pattern(scale[(0,) * scale.ndim]) == form.sign
    return from_pattern(form.sign | (nan | negative).astype(form.integer), scale.dtype)


def multiply(a: Array, b: Array, arithmetic: Arithmetic, zero: Array | None = None) -> Array:
    """``a * b``, rounded once."""
    a, b = _operands(arithmetic, a, b)
    x, y = _wide(a), _wide(b)
    product = x * y if a.dtype.itemsize == 2 else _product(x, y, zero)  # integers that round it follow
    return _rounded(product, a.dtype, arithmetic)


def add(a: Array, b: Array, arithmetic: Arithmetic, zero: Array | None = None) -> Array:
    """``a + b``, rounded once. Neither is a bare product."""
    a, b = _operands(arithmetic, a, b)
    return _rounded(_wide(a) + _wide(b), a.dtype, arithmetic)


def divide(a: Array, b: Array, arithmetic: Arithmetic, zero: Array | None = None) -> Array:
    """``a / b`` as the arithmetic divides by a scale: rounded once, or ``a * (1 / b)`` with both steps rounded."""
    if arithmetic.division is Division.RECIPROCAL:
        return multiply(a, operations.reciprocal(b, arithmetic), arithmetic, zero)
    return true_divide(a, b, arithmetic, zero)


def true_divide(a: Array, b: Array, arithmetic: Arithmetic, zero: Array | None = None) -> Array:
    """``a / b``, rounded once."""
    a, b = _operands(arithmetic, a, b)
    return _rounded(divided(_wide(a), _wide(b), subnormals=False), a.dtype, arithmetic)


def multiply_add(a: Array, b: Array, c: Array, arithmetic: Arithmetic, zero: Array | None = None) -> Array:
    """``a * b + c``: rounded once when the arithmetic fuses, else twice."""
    if not arithmetic.fused_multiply_add:
        return add(multiply(a, b, arithmetic, zero), c, arithmetic, zero)
    a, b, c = _operands(arithmetic, a, b, c)
    x, y, z = _wide(a), _wide(b), _wide(c)
    if a.dtype.itemsize == 2:  # float32 holds the product
        high = _product(x, y, zero)
        total = to_odd(*exact_sum(high, z))
    else:
        high, low = exact_product(x, y, _product(x, y, zero))
        total = rounded_sum(high, low, z)
    plain = high + z  # of infinities, and where it has the sign of a zero
    plain = jnp.where((high == 0) & (z == 0), from_pattern(bit_pattern(high) & bit_pattern(z), plain.dtype), plain)
    total = jnp.where(jnp.isfinite(plain) & (total != 0), total, plain)
    return _rounded(total, a.dtype, arithmetic)


def multiply_add_integer(a: Array, b: Array, c: Array, zero: Array | None = None) -> Array:
    """``a * b + c``, rounded once, as far as it is below 2**22 in magnitude; other results are beyond that, too.

    Float32 or float64. Sums of two numbers of which one is known to be the larger, or one an integer, need less.

    Args:
        c: an integer of at most 2**17 in magnitude.
    """
    high, low = exact_product(a, b, _product(a, b, zero))
    total = high + c
    rest = high - (total - c)
    odd = rest + low
    odd = to_odd(odd, low - (odd - rest))
    return jnp.where(jnp.abs(total) < 2.0**23, total + odd, total)


def _operands(arithmetic: Arithmetic, *operands: Array) -> tuple[Array, ...]:
    """Of one shape; those of float16 flushed: others are flushed already, or it does not matter."""
    shape = jnp.broadcast_shapes(*(v.shape for v in operands))
    half = operands[0].dtype == np.float16
    return tuple(jnp.broadcast_to(flush(v, arithmetic) if half else v, shape) for v in operands)


def _rounded(x: Array, dtype: np.dtype, arithmetic: Arithmetic) -> Array:
    rounded = round_to_dtype(x, dtype)
    return flush(rounded, arithmetic) if dtype == np.float16 else rounded


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _product(a: Array, b: Array, zero: Array | None = None) -> Array:
    """``a * b``, not to be contracted with what follows, also where one of both is a constant."""
    if zero is not None and zero.dtype == a.dtype:
        return a * b + zero
    return jnp.where(jnp.isnan(a), a, jnp.where(jnp.isnan(b), b, a * b))
