"""Comparisons, and selection by them. Subnormal numbers are no zeros, zeros are equal, NaN is unlike everything.

Semantics and errors: `samebits.core.primitives`. By integers in the order of the numbers, since XLA on CPU takes a
subnormal for a zero.
"""

import jax
import jax.numpy as jnp

from ..arrays import layout, magnitude, ordered
from .arithmetic import is_not_a_number
from .operands import Operand, primitive

Array = jax.Array


@primitive(2)
def equal(a: Operand, b: Operand) -> Array:
    """``a == b``."""
    return (_place(a) == _place(b)) & _comparable(a, b)


@primitive(2)
def not_equal(a: Operand, b: Operand) -> Array:
    """``a != b``: true where one is NaN."""
    return (_place(a) != _place(b)) | ~_comparable(a, b)


@primitive(2)
def less(a: Operand, b: Operand) -> Array:
    """``a < b``."""
    return (_place(a) < _place(b)) & _comparable(a, b)


@primitive(2)
def less_equal(a: Operand, b: Operand) -> Array:
    """``a <= b``."""
    return (_place(a) <= _place(b)) & _comparable(a, b)


@primitive(2)
def greater(a: Operand, b: Operand) -> Array:
    """``a > b``."""
    return (_place(a) > _place(b)) & _comparable(a, b)


@primitive(2)
def greater_equal(a: Operand, b: Operand) -> Array:
    """``a >= b``."""
    return (_place(a) >= _place(b)) & _comparable(a, b)


@primitive(1)
def is_nan(x: Operand) -> Array:
    """Whether ``x`` is NaN."""
    return is_not_a_number(x)


@primitive(1)
def is_finite(x: Operand) -> Array:
    """Whether ``x`` is neither NaN nor infinite."""
    return jnp.less(magnitude(x), layout(x.dtype).exponent)


@primitive(2, conditions=1)
def where(condition: Array, a: Operand, b: Operand) -> Array:
    """``a`` where the condition is true, else ``b``: every bit of it.

    Args:
        condition: bool, as comparisons give; broadcasts with ``a`` and ``b``. TypeError for other dtypes.
    """
    return jnp.where(condition, a, b)


def _place(x: Array) -> Array:
    """Integers in the order of the numbers, 0 for both zeros."""
    place = ordered(x)
    return place + (place < 0).astype(place.dtype)


def _comparable(a: Array, b: Array) -> Array:
    return ~(is_not_a_number(a) | is_not_a_number(b))
