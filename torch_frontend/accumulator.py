"""Integers that fit an accumulator: weights whose sums cannot overflow (A2Q), and codes cut to fewer bits.

Formulas and sources stand in `samebits.core.accumulator`, of which these have the bits.
"""

import torch
from torch import Tensor

from ..core import checks
from ..core.choice import choice
from ..core.contraction import check_truncation
from ..core.directions import Rounding
from ..core.formats import IntegerFormat
from .arrays import dtype_name
from .clamp import clamp
from .rounding import round_to_integer
from .sums import ordered_sum

MARGIN = 1 + 2.0**-19


def accumulator_scale(w: Tensor, scale: Tensor, bound: float) -> Tensor:
    """The scale by which the codes of each channel have at most ``bound`` as the sum of their magnitudes.

    Not differentiable.

    Raises:
        TypeError: ``w`` is not float32. ValueError: a bound that is not positive.
    """
    checks.check_weight(dtype_name(w.dtype), bound)
    sizes = w.detach().abs().reshape(len(w), -1)
    norm = ordered_sum(torch.where(sizes < 2.0**-100, 0.0, sizes))
    least = norm / torch.tensor(bound, dtype=torch.float32, device=w.device) * MARGIN
    return torch.maximum(scale, least.reshape(scale.shape))


def truncate(
    codes: Tensor, source: IntegerFormat, target: IntegerFormat, rounding: Rounding | str = Rounding.TOWARD_NEGATIVE
) -> Tensor:
    """Codes of one integer format as codes of a narrower one: ``clamp(round(code / t))``, ``t = 2**(bits dropped)``.

    They stand for the same values with the scale ``s * t`` and the zero point ``z / t``. Every step is exact.

    Raises:
        TypeError: codes of another dtype. ValueError: formats of different signs, or a wider target.
    """
    direction = choice("rounding", rounding, Rounding)
    step = check_truncation(dtype_name(codes.dtype), source, target, direction)
    rounded = round_to_integer(codes.to(torch.float32) * (1 / step), direction)
    return clamp(rounded, target.lo, target.hi).to(getattr(torch, target.storage))
