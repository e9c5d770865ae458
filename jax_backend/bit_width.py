"""Bit widths that are numbers of a program: the range of codes that they leave, and its slope. By exponent bits."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ..core.descriptions import Quantizer
from ..core.formats import IntegerFormat
from .arrays import from_pattern, layout

Array = jax.Array


def code_range(q: Quantizer, bit_width: Array) -> tuple[Array, Array]:
    """Smallest and largest code of the format at another width, rounded to nearest even; int32, 0-d."""
    format = _format(q)
    power = _power(format, bit_width, np.float32).astype(np.int32)
    lo = int(format.narrow) - power if format.signed else jnp.zeros_like(power)
    return lo, power - (1 if format.signed else 1 + format.narrow)


def range_slopes(q: Quantizer, bit_width: Array) -> tuple[Array, Array]:
    """Derivatives of both by the width b, with straight-through rounding of b; float32 or as the width, 0-d.

    ``-2**(b - 1) * ln 2`` and ``2**(b - 1) * ln 2`` where signed, 0 and ``2**b * ln 2`` where not: exact multiples of
    ``ln 2`` rounded to float32.

    Source: autograd of Brevitas ``min_int`` and ``max_int``.
    """
    dtype = bit_width.dtype if bit_width.dtype == np.float64 else np.dtype(np.float32)
    slope = _power(_format(q), bit_width, dtype) * dtype.type(np.float32(math.log(2)))
    return -slope if _format(q).signed else jnp.zeros_like(slope), slope


def whole_width(bit_width: Array) -> Array:
    """The width rounded to nearest even, int32."""
    whole = jnp.round(bit_width) if jnp.issubdtype(bit_width.dtype, jnp.floating) else bit_width
    return whole.astype(np.int32)


def _power(format: IntegerFormat, bit_width: Array, dtype: type | np.dtype) -> Array:
    """``2**(b - 1)`` where signed, else ``2**b``."""
    form = layout(np.dtype(dtype))
    exponent = whole_width(bit_width).astype(form.integer) - int(format.signed)
    return from_pattern((exponent + form.integer(1 - form.min_exponent)) << form.mantissa, dtype)


def _format(q: Quantizer) -> IntegerFormat:
    if not isinstance(q.format, IntegerFormat):
        raise TypeError(f"`qparams.bit_width` needs an IntegerFormat, got {q.format}")
    return q.format
