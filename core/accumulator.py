"""Integers that fit an accumulator: weights whose sums cannot overflow (A2Q), and codes cut to fewer bits.

Decoupled quantizers, as A2Q's, are two sets of parameters: codes by ``quantize(q, w, QParams(pre_scale))``, values by
``dequantize(q, codes, QParams(scale))``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .arguments import as_array
from .catalog import catalog
from .choice import choice
from .clamp import clamp
from .contraction import check_truncation, norm_of_accumulator
from .descriptions import QParams, Quantizer
from .directions import Rounding
from .formats import IntegerFormat
from .quantizer import quantize
from .ranges import average_range
from .rounding import round_to_integer
from .sums import ordered_sum

Array = NDArray[Any]
_L2 = catalog["int8_per_channel"].replace(statistic="l2")
MARGIN = 1 + 2.0**-19  # more than all roundings of a norm of up to 2**28 elements


def accumulator_scale(w: Array, scale: Array, bound: float, centred: bool = False) -> Array:
    """The scale by which the codes of each channel have at most ``bound`` as the sum of their magnitudes.

    ``max(scale, fl(fl(norm / bound) * (1 + 2**-19)))``, where the norm is `sums.ordered_sum` of ``|w|`` over a channel,
    in float32. Rounded toward zero, ``sum |code| <= bound`` then holds always, whatever the roundings on the way; with
    `contraction.largest_norm` no sum of products with inputs of so many bits leaves the accumulator. With codes and
    values scaled apart (A2Q) this is the pre-scale. Numbers below 2**-100 in magnitude count as zero.

    Args:
        w: weight, channels along axis 0, float32, finite.
        scale: what the scale would be otherwise, float32, shape ``(channels, 1, ...)``, at least 2**-80.
        bound: positive.
        centred: whether positive and negative codes shall each have at most ``bound / 2`` as their sum: the norm is
            twice the larger of both sums.
    Raises:
        TypeError: ``w`` is not float32. ValueError: a bound that is not positive.
    Source: Colbert et al., arXiv 2308.13504 (A2Q); for A2Q+ (arXiv 2401.10432) give ``w`` less its mean. Brevitas has
    no margin.
    """
    w, scale = as_array("w", w), as_array("scale", scale)
    checks.check_weight(w.dtype.name, bound)
    rows = w.reshape(len(w), -1)
    rows = np.where(np.abs(rows) < 2.0**-100, np.float32(0), rows)
    if centred:
        norm = 2 * np.maximum(*(ordered_sum(np.where(side > 0, side, np.float32(0))) for side in (rows, -rows)))
    else:
        norm = ordered_sum(np.abs(rows))
    least = norm / np.float32(bound) * np.float32(MARGIN)
    return np.maximum(scale, least.reshape(np.shape(scale)))


def centred_channels(w: Array) -> Array:
    """``fl(w - mean)`` of each channel, the mean being ``fl(sums.ordered_sum(w) / n)``, in float32.

    Numbers below 2**-100 in magnitude count as zero, and so does such a mean.

    Args:
        w: weight, channels along axis 0, float32, finite.
    Raises:
        TypeError: ``w`` is not float32.
    Source: Colbert et al., arXiv 2401.10432 (A2Q+). Brevitas adds ``-mean / s`` to the quotient instead, which rounds
    once more.
    """
    w = as_array("w", w)
    checks.check_weight(w.dtype.name, 1)
    rows = w.reshape(len(w), -1)
    rows = np.where(np.abs(rows) < 2.0**-100, np.float32(0), rows)
    mean = ordered_sum(rows) / np.float32(max(rows.shape[1], 1))
    mean = np.where(np.abs(mean) < 2.0**-100, np.float32(0), mean)
    return np.asarray((rows - mean[:, None]).reshape(w.shape))


def accumulator_codes(
    q: Quantizer,
    w: Array,
    scale: Array,
    accumulator_bits: int,
    input_bits: int,
    input_signed: bool = False,
    centred: bool = False,
) -> tuple[Array, Array]:
    """Codes whose sums of products with any inputs of so many bits fit the accumulator, and their pre-scale.

    A2Q; with ``centred`` A2Q+: of the weight less the mean of each channel, whose codes may have about twice the norm.
    Their values are ``dequantize(q, codes, QParams(scale))``.

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


def weight_norm_scale(w: Array, scale: Array, g: Array) -> Array:
    """The pre-scale ``fl(fl(scale * norm) / g)`` of weight normalization, at least the smallest normal number.

    The norm is that of `Statistic.L2` over a channel. Codes by this scale have about ``g / scale`` as their norm, and
    values ``code * scale`` about g, whatever that of the weight is.

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
    norm = average_range(_L2, w)[1]
    return np.maximum(scale * norm / g, np.finfo(np.float32).smallest_normal)


def truncate(
    codes: Array, source: IntegerFormat, target: IntegerFormat, rounding: Rounding | str = Rounding.TOWARD_NEGATIVE
) -> Array:
    """Codes of one integer format as codes of a narrower one: ``clamp(round(code / t))``, ``t = 2**(bits dropped)``.

    They stand for the same values with the scale ``s * t`` and the zero point ``z / t``. Every step is exact.

    Args:
        codes: in the source's storage dtype.
        rounding: a direction that looks at nothing but the number.
    Returns:
        Codes in the target's storage dtype.
    Raises:
        TypeError: codes of another dtype. ValueError: formats of different signs, or a wider target.
    Source: Brevitas ``TruncIntQuant``.
    """
    codes, direction = as_array("codes", codes), choice("rounding", rounding, Rounding)
    step = check_truncation(codes.dtype.name, source, target, direction)
    rounded = round_to_integer(codes.astype(np.float32) / np.float32(step), direction)
    return clamp(rounded, target.lo, target.hi).astype(target.storage)
