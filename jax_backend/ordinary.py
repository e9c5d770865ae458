"""The operations of `operations` where no operand and no result is subnormal, on arrays: with XLA's own arithmetic.

Subnormals of float32 and float64 may be taken for zero here, so a caller must know that none matters; those of float16
count, since they are normal numbers of float32. Selects keep compilers from contracting a product with what follows.
Names and arguments are those of `operations`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..core.arithmetic import Arithmetic, Division
from . import operations
from .arrays import divide as divided
from .ieee_any import exact_product, exact_sum, rounded_sum, to_odd
from .operations import flush, round_to_dtype

Array = jax.Array


def multiply(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a * b``, rounded once."""
    a, b = _operands(arithmetic, a, b)
    return _rounded(_product(_wide(a), _wide(b)), a.dtype, arithmetic)


def add(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a + b``, rounded once. Neither is a bare product."""
    a, b = _operands(arithmetic, a, b)
    return _rounded(_wide(a) + _wide(b), a.dtype, arithmetic)


def divide(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a / b`` as the arithmetic divides by a scale: rounded once, or ``a * (1 / b)`` with both steps rounded."""
    if arithmetic.division is Division.RECIPROCAL:
        return multiply(a, operations.reciprocal(b, arithmetic), arithmetic)
    return true_divide(a, b, arithmetic)


def true_divide(a: Array, b: Array, arithmetic: Arithmetic) -> Array:
    """``a / b``, rounded once."""
    a, b = _operands(arithmetic, a, b)
    return _rounded(divided(_wide(a), _wide(b), subnormals=False), a.dtype, arithmetic)


def multiply_add(a: Array, b: Array, c: Array, arithmetic: Arithmetic) -> Array:
    """``a * b + c``: rounded once when the arithmetic fuses, else twice."""
    if not arithmetic.fused_multiply_add:
        return add(multiply(a, b, arithmetic), c, arithmetic)
    a, b, c = _operands(arithmetic, a, b, c)
    x, y, z = _wide(a), _wide(b), _wide(c)
    if a.dtype.itemsize == 2:  # float32 holds the product
        high = _product(x, y)
        total = to_odd(*exact_sum(high, z))
    else:
        high, low = exact_product(x, y, x, y)
        total = rounded_sum(high, low, z)
    plain = high + z  # of infinities, and where it has the sign of a zero
    total = jnp.where(jnp.isfinite(plain) & (total != 0), total, plain)
    return _rounded(total, a.dtype, arithmetic)


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


def _product(a: Array, b: Array) -> Array:
    """``a * b``, not to be contracted with what follows, also where one of both is a constant."""
    return jnp.where(jnp.isnan(a), a, jnp.where(jnp.isnan(b), b, a * b))
