"""Layer norm and RMS norm over 8-bit codes, in integers of 64 bits: exact moments, an exact root, one division.

Over the last axis, of n features, with ``c`` the codes:

    layer norm    D_i = n * c_i - sum c             W = n * sum c**2 - (sum c)**2 + epsilon
    RMS norm      D_i = n * (c_i - x_zero)          W = n * sum (c - x_zero)**2 + epsilon

    R   = floor(sqrt(2**20 * W))                    0 becomes 1
    y_i = clamp(zero_point + round((2**10 * D_i * weight_i + R * bias_i) / (2**16 * R)))

``W / n**2`` is the variance (the mean square), and ``D / sqrt(W)`` the normalised number; R is exact, and ``round`` is
to nearest, ties to even, once, of the exact quotient. Weight and bias are numbers in steps of 2**-16 output codes
(`core.integer_tables.norm_weights`). A row of equal codes has D = 0 and gives the bias. At most 2**13 features: then
every number is below 2**63. How far it is from the exact norm: `core.norms`.

Here the root is found digit by digit, without any floating-point number, and the division is one of magnitudes. 64-bit
types are on inside the norm alone; ``jax_enable_x64`` is not needed.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import integer_checks as checks
from ..core.formats import IntegerFormat
from .arguments import ends
from .arrays import as_array
from .integer_arithmetic import INT8, _rounded_division

Array = jax.Array
DIGITS = 32  # of a root, in base 2


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
    n, c = x.shape[-1], x.astype(np.int32)
    total, squares = (jnp.sum(part, -1, keepdims=True, dtype=np.int32) for part in (c, c * c))  # below 2**31
    centred = n * c - total
    with jax.enable_x64(True):
        wide = _wide(total)
        return _affine(centred, n * _wide(squares) - wide * wide, weight, bias, epsilon, zero_point, format)


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
    n, c = x.shape[-1], x.astype(np.int32) - np.int32(checks.check_zero("x_zero", x_zero, x.dtype.name))
    squares = jnp.sum(c * c, -1, keepdims=True, dtype=np.int32)  # below 2**30
    with jax.enable_x64(True):
        return _affine(n * c, n * _wide(squares), weight, bias, epsilon, zero_point, format)


def _arrays(x: Array, weight: Array, bias: Array) -> tuple[Array, Array, Array]:
    """The arrays of a norm, if they fit each other."""
    x, weight, bias = as_array("x", x), as_array("weight", weight), as_array("bias", bias)
    checks.check_norm(x.shape, x.dtype.name, weight.shape, weight.dtype.name, bias.shape, bias.dtype.name)
    for name, array in (("weight", weight), ("bias", bias)):
        checks.check_ends(name, ends(array), (-checks.LARGEST_NORM_WEIGHT, checks.LARGEST_NORM_WEIGHT))
    return x, weight, bias


def _wide(x: Array) -> Array:
    return lax.convert_element_type(x, np.int64)


def _affine(
    centred: Array, squares: Array, weight: Array, bias: Array, epsilon: int, zero_point: int, format: IntegerFormat
) -> Array:
    """What both norms do with ``D`` and ``W``, in int64."""
    checks.check_epsilon(epsilon)
    lo, hi = checks.check_format(format, zero_point)
    root = jnp.maximum(_root((squares + epsilon) << (2 * checks.ROOT_BITS)), 1)
    numerator = (_wide(centred) << checks.ROOT_BITS) * _wide(weight) + root * _wide(bias)
    denominator = jnp.broadcast_to(root << checks.WEIGHT_BITS, numerator.shape)
    whole = _rounded_division(jnp.abs(numerator), denominator)
    y = jnp.where(numerator < 0, -whole, whole)
    return lax.convert_element_type(y.clip(lo, hi) + zero_point, format.storage)


def _root(x: Array) -> Array:
    """``floor(sqrt(x))`` of integers below 2**63: the digits that it has, from the highest."""

    def digit(step: int, root: Array) -> Array:
        tried = root | (jnp.int64(1) << (DIGITS - 1 - step))
        return jnp.where(tried <= lax.div(x, tried), tried, root)

    root: Array = lax.fori_loop(0, DIGITS, digit, jnp.zeros_like(x))
    return root
