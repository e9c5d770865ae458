"""Integers that fit an accumulator: weights whose sums cannot overflow (A2Q), and codes cut to fewer bits.

Formulas and sources stand in `samebits.core.accumulator`, of which these have the bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks
from ..core.catalog import catalog
from ..core.choice import choice
from ..core.contraction import check_truncation, norm_of_accumulator
from ..core.descriptions import QParams, Quantizer
from ..core.directions import Rounding
from ..core.formats import IntegerFormat
from .arrays import as_array, divide, layout, product
from .clamp import clamp
from .ieee import divide_exactly, multiply_exactly
from .quantizer import quantize
from .ranges import average_range
from .rounding import round_to_integer
from .sums import ordered_sum

_L2 = catalog["int8_per_channel"].replace(statistic="l2")
MARGIN = 1 + 2.0**-19


def accumulator_scale(w: jax.Array, scale: jax.Array, bound: float, centred: bool = False) -> jax.Array:
    """The scale by which the codes of each channel have at most ``bound`` as the sum of their magnitudes.

    Not differentiable.

    Raises:
        TypeError: ``w`` is not float32. ValueError: a bound that is not positive.
    """
    w, scale = as_array("w", w), as_array("scale", scale)
    checks.check_weight(w.dtype.name, bound)
    rows = _counted(lax.stop_gradient(w).reshape(len(w), -1))
    if centred:
        upper, lower = (ordered_sum(jnp.where((rows > 0) == positive, jnp.abs(rows), 0)) for positive in (True, False))
        norm = 2 * jnp.maximum(upper, lower)
    else:
        norm = ordered_sum(jnp.abs(rows))
    least = product(divide(norm, jnp.float32(bound), subnormals=False), jnp.float32(MARGIN))
    return jnp.maximum(scale, least.reshape(scale.shape))


def centred_channels(w: jax.Array) -> jax.Array:
    """``fl(w - mean)`` of each channel, the mean being ``fl(sums.ordered_sum(w) / n)``, in float32.

    Numbers below 2**-100 in magnitude count as zero, and so does such a mean. Not differentiable.

    Args:
        w: weight, channels along axis 0, float32, finite.
    Raises:
        TypeError: ``w`` is not float32.
    Source: Colbert et al., arXiv 2401.10432 (A2Q+). Brevitas adds ``-mean / s`` to the quotient instead, which rounds
    once more.
    """
    w = as_array("w", w)
    checks.check_weight(w.dtype.name, 1)
    rows = _counted(lax.stop_gradient(w).reshape(len(w), -1))
    total = ordered_sum(rows)
    mean = _counted(divide(total, jnp.full_like(total, max(rows.shape[1], 1)), subnormals=False))
    return (rows - mean[:, None]).reshape(w.shape)


def accumulator_codes(
    q: Quantizer,
    w: jax.Array,
    scale: jax.Array,
    accumulator_bits: int,
    input_bits: int,
    input_signed: bool = False,
    centred: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Codes whose sums of products with any inputs of so many bits fit the accumulator, and their pre-scale.

    A2Q; with ``centred`` A2Q+: of the weight less the mean of each channel, whose codes may have about twice the norm.
    Their values are ``dequantize(q, codes, QParams(scale))``. Not differentiable.

    Args:
        q: symmetric, signed integers, rounded toward zero, per axis 0.
        w, scale: as `accumulator_scale`.
    Raises:
        TypeError: ``w`` is not float32. ValueError: another kind of quantizer, or ``centred`` for signed inputs.
    """
    bound = norm_of_accumulator(q, accumulator_bits, input_bits, input_signed=input_signed, centred=centred)
    weight = centred_channels(w) if centred else w
    pre_scale = accumulator_scale(weight, scale, bound, centred)
    return quantize(q, weight, QParams(pre_scale)), pre_scale


def weight_norm_scale(w: jax.Array, scale: jax.Array, g: jax.Array) -> jax.Array:
    """The pre-scale ``fl(fl(scale * norm) / g)`` of weight normalization, at least the smallest normal number.

    The norm is that of `Statistic.L2` over a channel. Codes by this scale have about ``g / scale`` as their norm, and
    values ``code * scale`` about g, whatever that of the weight is. Not differentiable.

    Args:
        w: weight, channels along axis 0, float32, finite.
        scale, g: positive normal numbers, float32, shape ``(channels, 1, ...)``.
    Raises:
        TypeError: ``w`` is not float32.
    Source: Salimans and Kingma, arXiv 1602.07868; Brevitas ``Int8WeightNormL2PerChannelFixedPoint``, which keeps scale
    and g as logarithms.
    """
    w, scale, g = as_array("w", w), as_array("scale", scale), as_array("g", g)
    checks.check_weight(w.dtype.name, 1)
    norm = average_range(_L2, lax.stop_gradient(w))[1]
    return jnp.maximum(divide_exactly(multiply_exactly(norm, scale), g), layout(w.dtype).smallest)


def truncate(
    codes: jax.Array, source: IntegerFormat, target: IntegerFormat, rounding: Rounding | str = Rounding.TOWARD_NEGATIVE
) -> jax.Array:
    """Codes of one integer format as codes of a narrower one: ``clamp(round(code / t))``, ``t = 2**(bits dropped)``.

    They stand for the same values with the scale ``s * t`` and the zero point ``z / t``. Every step is exact.

    Raises:
        TypeError: codes of another dtype. ValueError: formats of different signs, or a wider target.
    """
    direction = choice("rounding", rounding, Rounding)
    codes = as_array("codes", codes)
    step = check_truncation(codes.dtype.name, source, target, direction)
    rounded = round_to_integer(codes.astype(np.float32) * np.float32(1 / step), direction)
    return clamp(rounded, target.lo, target.hi).astype(target.storage)


def _counted(w: jax.Array) -> jax.Array:
    """Without what is too small to count."""
    return jnp.where(jnp.abs(w) < 2.0**-100, 0, w)
