"""Layer norm and RMS norm over 8-bit codes, in integers of 64 bits: exact moments, an exact root, one division.

Over the last axis, of n features, with ``c`` the codes:

    layer norm    D_i = n * c_i - sum c             W = n * sum c**2 - (sum c)**2 + epsilon
    RMS norm      D_i = n * (c_i - x_zero)          W = n * sum (c - x_zero)**2 + epsilon

    R   = floor(sqrt(2**20 * W))                    0 becomes 1
    y_i = clamp(zero_point + round((2**10 * D_i * weight_i + R * bias_i) / (2**16 * R)))

``W / n**2`` is the variance (the mean square), and ``D / sqrt(W)`` the normalised number; R is exact, and ``round`` is
to nearest, ties to even, once, of the exact quotient. Weight and bias are numbers in steps of 2**-16 output codes
(`core.integer_tables.norm_weights`). A row of equal codes has D = 0 and gives the bias.

R is at most 1 below the root, so the normalised number is too large by less than one part in ``R``, and ``R`` is at
least ``2**10 * sqrt(n - 1)`` for a layer norm of codes that are not all equal. Before the clamp, ``y`` is no further
than ``1/2 + |D_i / sqrt(W)| * (|weight_i| / R) * 2**-16`` from the affine of the exact norm.

At most 2**13 features: then every number is below 2**63.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import integer_checks as checks
from .arguments import as_array, ends
from .formats import IntegerFormat
from .integer_arithmetic import INT8, _rounded_quotient

Array = NDArray[Any]


def integer_layer_norm(
    x: Array, weight: Array, bias: Array, epsilon: int = 0, zero_point: int = 0, format: IntegerFormat = INT8
) -> Array:
    """Layer norm over the last axis; see the module. Scale and zero point of ``x`` do not matter.

    Args:
        x: codes ``(..., n)``, int8 or uint8, 1 to 2**13 features.
        weight, bias: int32 ``(n,)``, at most 2**28 in magnitude.
        epsilon: 0 to 2**40, what is added to W.
        zero_point, format: of the result, at most 8 bits.
    Returns:
        Codes of the shape of ``x``, in the storage dtype of ``format``.
    Raises:
        TypeError: other dtypes. ValueError: other shapes, more features, or numbers outside these ranges.
    """
    x, weight, bias = _arrays(x, weight, bias)
    c = x.astype(np.int64)
    total = c.sum(-1, keepdims=True)
    squares = x.shape[-1] * (c * c).sum(-1, keepdims=True) - total * total
    return _affine(x.shape[-1] * c - total, squares, weight, bias, epsilon, zero_point, format)


def integer_rms_norm(
    x: Array,
    weight: Array,
    bias: Array,
    epsilon: int = 0,
    x_zero: int = 0,
    zero_point: int = 0,
    format: IntegerFormat = INT8,
) -> Array:
    """RMS norm over the last axis; see the module. Arguments and errors as `integer_layer_norm`.

    Args:
        x_zero: zero point of ``x``.
    """
    x, weight, bias = _arrays(x, weight, bias)
    c = x.astype(np.int64) - checks.check_zero("x_zero", x_zero, x.dtype.name)
    squares = x.shape[-1] * (c * c).sum(-1, keepdims=True)
    return _affine(x.shape[-1] * c, squares, weight, bias, epsilon, zero_point, format)


def _arrays(x: Array, weight: Array, bias: Array) -> tuple[Array, Array, Array]:
    """The arrays of a norm, if they fit each other."""
    x, weight, bias = as_array("x", x), as_array("weight", weight), as_array("bias", bias)
    checks.check_norm(x.shape, x.dtype.name, weight.shape, weight.dtype.name, bias.shape, bias.dtype.name)
    for name, array in (("weight", weight), ("bias", bias)):
        checks.check_ends(name, ends(array), (-checks.LARGEST_NORM_WEIGHT, checks.LARGEST_NORM_WEIGHT))
    return x, weight, bias


def _affine(
    centred: Array, squares: Array, weight: Array, bias: Array, epsilon: int, zero_point: int, format: IntegerFormat
) -> Array:
    """What both norms do with ``D`` and ``W``."""
    checks.check_epsilon(epsilon)
    lo, hi = checks.check_format(format, zero_point)
    root = np.maximum(_root((squares + epsilon) << (2 * checks.ROOT_BITS)), 1)
    y = _rounded_quotient((centred << checks.ROOT_BITS) * weight + root * bias, root << checks.WEIGHT_BITS)
    return (y.clip(lo, hi) + zero_point).astype(format.storage)


def _root(x: Array) -> Array:
    """``floor(sqrt(x))``, of each integer."""
    return np.asarray(np.frompyfunc(lambda n: math.isqrt(int(n)), 1, 1)(x), np.int64)
