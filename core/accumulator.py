"""Integers that fit an accumulator: weights whose sums cannot overflow (A2Q), and codes cut to fewer bits.

Decoupled quantizers, as A2Q's, are two sets of parameters: codes by ``quantize(q, w, QParams(pre_scale))``, values by
``dequantize(q, codes, QParams(scale))``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .choice import choice
from .clamp import clamp
from .contraction import check_truncation
from .directions import Rounding
from .formats import IntegerFormat
from .rounding import round_to_integer
from .sums import ordered_sum

Array = NDArray[Any]
MARGIN = 1 + 2.0**-19  # more than all roundings of a norm of up to 2**28 elements


def accumulator_scale(w: Array, scale: Array, bound: float) -> Array:
    """The scale by which the codes of each channel have at most ``bound`` as the sum of their magnitudes.

    ``max(scale, fl(fl(norm / bound) * (1 + 2**-19)))``, where the norm is `sums.ordered_sum` of ``|w|`` over a channel,
    in float32. Rounded toward zero, ``sum |code| <= bound`` then holds always, whatever the roundings on the way; with
    `contraction.largest_norm` no sum of products with inputs of so many bits leaves the accumulator. With codes and
    values scaled apart (A2Q) this is the pre-scale. Numbers below 2**-100 in magnitude count as zero.

    Args:
        w: weight, channels along axis 0, float32, finite.
        scale: what the scale would be otherwise, float32, shape ``(channels, 1, ...)``, at least 2**-80.
        bound: positive.
    Raises:
        TypeError: ``w`` is not float32. ValueError: a bound that is not positive.
    Source: Colbert et al., arXiv 2308.13504 (A2Q); for A2Q+ (arXiv 2401.10432) give ``w`` less its mean. Brevitas has
    no margin.
    """
    w = np.asarray(w)
    checks.check_weight(w.dtype.name, bound)
    sizes = np.abs(w).reshape(len(w), -1)
    norm = ordered_sum(np.where(sizes < 2.0**-100, np.float32(0), sizes))
    least = norm / np.float32(bound) * np.float32(MARGIN)
    return np.maximum(scale, least.reshape(np.shape(scale)))


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
    codes, direction = np.asarray(codes), choice("rounding", rounding, Rounding)
    step = check_truncation(codes.dtype.name, source, target, direction)
    rounded = round_to_integer(codes.astype(np.float32) / np.float32(step), direction)
    return clamp(rounded, target.lo, target.hi).astype(target.storage)
