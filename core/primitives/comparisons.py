"""Comparisons, and selection by them. Subnormal numbers are no zeros, zeros are equal, NaN is unlike everything.

Operands and errors as in `arithmetic`; comparisons give truth values (bool), which have no derivative.
"""

import numpy as np

from .operands import Array, Operand, primitive


@primitive(2)
def equal(a: Operand, b: Operand) -> Array:
    """``a == b``."""
    return np.equal(a, b)


@primitive(2)
def not_equal(a: Operand, b: Operand) -> Array:
    """``a != b``: true where one is NaN."""
    return np.not_equal(a, b)


@primitive(2)
def less(a: Operand, b: Operand) -> Array:
    """``a < b``."""
    return np.less(a, b)


@primitive(2)
def less_equal(a: Operand, b: Operand) -> Array:
    """``a <= b``."""
    return np.less_equal(a, b)


@primitive(2)
def greater(a: Operand, b: Operand) -> Array:
    """``a > b``."""
    return np.greater(a, b)


@primitive(2)
def greater_equal(a: Operand, b: Operand) -> Array:
    """``a >= b``."""
    return np.greater_equal(a, b)


@primitive(1)
def is_nan(x: Operand) -> Array:
    """Whether ``x`` is NaN."""
    return np.isnan(x)


@primitive(1)
def is_finite(x: Operand) -> Array:
    """Whether ``x`` is neither NaN nor infinite."""
    return np.isfinite(x)


@primitive(2, conditions=1)
def where(condition: Array, a: Operand, b: Operand) -> Array:
    """``a`` where the condition is true, else ``b``: every bit of it.

    Args:
        condition: bool, as comparisons give; broadcasts with ``a`` and ``b``. TypeError for other dtypes.
    """
    return np.where(condition, a, b)
