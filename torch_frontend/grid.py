"""From a quotient to a number of the format: rounding as if there were no ends, then the rule at the ends.

What lies between is what the clipping mask looks at. All numbers here are in units of the scale. Binary and ternary
numbers come from comparisons, those of a codebook from counting the midpoints below. Numbers of a format are read as
text, which is a constant to a compiler.
"""

import torch
from torch import Tensor

from ..core.descriptions import Grid, Quantizer
from ..core.formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat, TernaryFormat
from .clamp import clamp
from .minifloat import decode_float, encode_float, overflow, round_to_float
from .rounding import round_to_integer

FEW = 32  # so many bounds are compared with one by one


def round_to_grid(q: Quantizer | Grid, u: Tensor, noise: Tensor | None = None) -> Tensor:
    """``u`` rounded in the direction of ``q``, as if the format had no smallest and largest number.

    For binary, ternary and codebook formats, whose steps do not go on beyond their ends, ``u`` itself.

    Args:
        noise: of stochastic rounding, see `round_to_integer`.
    """
    match q.format:
        case IntegerFormat():
            return round_to_integer(u, q.rounding, noise)
        case FloatFormat():
            return round_to_float(u, q.format, q.rounding, noise)
        case _:
            return u


def limit_to_grid(q: Quantizer | Grid, rounded: Tensor) -> Tensor:
    """The number of the format for a result of `round_to_grid`. NaN stays NaN."""
    match q.format:
        case IntegerFormat():
            return clamp(rounded, q.format.lo, q.format.hi)
        case FloatFormat():
            return overflow(rounded, q.format)
        case BinaryFormat():
            number = torch.where(rounded >= 0, 1.0, -1.0).to(rounded.dtype)
        case TernaryFormat():
            threshold = torch.full_like(rounded, float(q.format.decimal))
            number = torch.where(rounded.abs() > threshold, rounded.sign(), 0.0)
        case CodebookFormat():
            number = _looked_up(q.format.midpoint_decimals, q.format.decimals, rounded)
    return torch.where(rounded != rounded, torch.nan, number)


def encode(q: Quantizer, numbers: Tensor) -> Tensor:
    """Codes of numbers of the format, in its `storage` dtype."""
    match q.format:
        case FloatFormat():
            return encode_float(numbers, q.format)
        case CodebookFormat():
            return _count_below(q.format.decimals, numbers).to(getattr(torch, q.format.storage))
        case _:
            return numbers.to(getattr(torch, q.format.storage))


def decode(q: Quantizer, codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers of the format in ``dtype`` (each is one of float32; bfloat16 only where every one is)."""
    match q.format:
        case FloatFormat():
            return decode_float(codes, q.format).to(dtype)
        case CodebookFormat():
            return _listed(q.format.decimals, codes).to(dtype)[codes.to(torch.int32)]
        case _:
            return codes.to(dtype)


def _listed(decimals: tuple[str, ...], like: Tensor) -> Tensor:
    """The numbers as float32 (float64 for a float64 tensor), on the device of ``like``."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.tensor([float(number) for number in decimals], dtype=dtype, device=like.device)


def _looked_up(bounds: tuple[str, ...], numbers: tuple[str, ...], u: Tensor) -> Tensor:
    """The one of ``numbers`` whose place is how many of the ascending ``bounds``, one fewer, lie below each ``u``.

    A few are compared with one by one, since that is what a compiler makes vector instructions of.
    """
    if len(bounds) > FEW:
        return _listed(numbers, u)[_count_below(bounds, u)]
    number = torch.full_like(u, float(numbers[0]))
    for bound, following in zip(bounds, numbers[1:], strict=True):
        number = torch.where(u > float(bound), float(following), number)
    return number


def _count_below(bounds: tuple[str, ...], u: Tensor) -> Tensor:
    """How many of the ascending ``bounds`` lie below each ``u``."""
    return torch.bucketize(u, _listed(bounds, u))
