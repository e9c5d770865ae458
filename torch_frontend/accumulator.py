"""Integers that fit an accumulator: weights whose sums cannot overflow (A2Q), and codes cut to fewer bits.

Formulas and sources stand in `samebits.core.accumulator`, of which these have the bits.
"""

import torch
from torch import Tensor

from ..core import checks
from ..core.catalog import catalog
from ..core.choice import choice
from ..core.contraction import check_truncation, norm_of_accumulator
from ..core.descriptions import QParams, Quantizer
from ..core.directions import Rounding
from ..core.formats import IntegerFormat
from . import devices
from .arguments import check_tensor
from .arrays import dtype_name
from .clamp import clamp
from .quantizer import quantize
from .ranges import average_range
from .rounding import round_to_integer
from .sums import ordered_sum

_L2 = catalog["int8_per_channel"].replace(statistic="l2")
MARGIN = 1 + 2.0**-19


def accumulator_scale(w: Tensor, scale: Tensor, bound: float, centred: bool = False) -> Tensor:
    """The scale by which the codes of each channel have at most ``bound`` as the sum of their magnitudes.

    Not differentiable.

    Raises:
        TypeError: ``w`` is not float32. ValueError: a bound that is not positive.
    """
    check_tensor("w", w)
    check_tensor("scale", scale)
    checks.check_weight(dtype_name(w.dtype), bound)
    rows = _counted(w.detach().reshape(len(w), -1))
    if centred:
        norm = 2 * torch.maximum(ordered_sum(rows.clamp(min=0)), ordered_sum((-rows).clamp(min=0)))
    else:
        norm = ordered_sum(rows.abs())
    least = devices.quotient(norm, torch.tensor(bound, dtype=torch.float32, device=w.device)) * MARGIN
    return torch.maximum(scale, least.reshape(scale.shape))


def centred_channels(w: Tensor) -> Tensor:
    """``fl(w - mean)`` of each channel, the mean being ``fl(sums.ordered_sum(w) / n)``, in float32.

    Numbers below 2**-100 in magnitude count as zero, and so does such a mean. Not differentiable.

    Args:
        w: weight, channels along axis 0, float32, finite.
    Raises:
        TypeError: ``w`` is not float32.
    Source: Colbert et al., arXiv 2401.10432 (A2Q+). Brevitas adds ``-mean / s`` to the quotient instead, which rounds
    once more.
    """
    check_tensor("w", w)
    checks.check_weight(dtype_name(w.dtype), 1)
    rows = _counted(w.detach().reshape(len(w), -1))
    total = ordered_sum(rows)
    mean = _counted(devices.quotient(total, torch.full_like(total, max(rows.shape[1], 1))))
    return (rows - mean[:, None]).reshape(w.shape)


def accumulator_codes(
    q: Quantizer,
    w: Tensor,
    scale: Tensor,
    accumulator_bits: int,
    input_bits: int,
    input_signed: bool = False,
    centred: bool = False,
) -> tuple[Tensor, Tensor]:
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


def weight_norm_scale(w: Tensor, scale: Tensor, g: Tensor) -> Tensor:
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
    for name, tensor in (("w", w), ("scale", scale), ("g", g)):
        check_tensor(name, tensor)
    checks.check_weight(dtype_name(w.dtype), 1)
    norm = average_range(_L2, w.detach())[1]
    return devices.quotient(scale * norm, g).clamp(min=torch.finfo(torch.float32).smallest_normal)


def truncate(
    codes: Tensor, source: IntegerFormat, target: IntegerFormat, rounding: Rounding | str = Rounding.TOWARD_NEGATIVE
) -> Tensor:
    """Codes of one integer format as codes of a narrower one: ``clamp(round(code / t))``, ``t = 2**(bits dropped)``.

    They stand for the same values with the scale ``s * t`` and the zero point ``z / t``. Every step is exact.

    Raises:
        TypeError: codes of another dtype. ValueError: formats of different signs, or a wider target.
    """
    direction = choice("rounding", rounding, Rounding)
    check_tensor("codes", codes)
    step = check_truncation(dtype_name(codes.dtype), source, target, direction)
    rounded = round_to_integer(codes.to(torch.float32) * (1 / step), direction)
    return clamp(rounded, target.lo, target.hi).to(getattr(torch, target.storage))


def _counted(w: Tensor) -> Tensor:
    """Without what is too small to count."""
    return torch.where(w.abs() < 2.0**-100, 0.0, w)
