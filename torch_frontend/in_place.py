"""`grid` in place, over one chunk, without masks: in eager code a select costs as much as ten operations.

Selects by an unpredictable mask branch on every element; so a comparison here gives 0.0 or 1.0, and arithmetic does the
rest. Same bits as `grid`.
"""

import torch
from torch import Tensor

from ..core.descriptions import Quantizer
from ..core.directions import Rounding
from ..core.formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat, Specials, TernaryFormat
from . import grid
from .grid import decode, encode
from .minifloat import overflow, round_to_float
from .rounding import round_to_integer

NATIVE = {
    Rounding.TIES_TO_EVEN: torch.round,
    Rounding.TOWARD_ZERO: torch.trunc,
    Rounding.TOWARD_POSITIVE: torch.ceil,
    Rounding.TOWARD_NEGATIVE: torch.floor,
}


def to_grid(q: Quantizer, u: Tensor, z: Tensor | None) -> None:
    """``u`` becomes ``limit_to_grid(round_to_grid(u) + z)``; a zero may have either sign, NaN stays NaN.

    Args:
        u: quotients, float32 or float64, not empty, overwritten.
        z: zero point, which broadcasts; None when symmetric.
    """
    round_to_grid(q, u, u)
    if z is not None:
        u.add_(z)
    limit_to_grid(q, u)


def round_to_grid(q: Quantizer, u: Tensor, out: Tensor) -> None:
    """`grid.round_to_grid` of ``u`` into ``out``, which may be ``u``."""
    if isinstance(q.format, IntegerFormat):
        _round(u, q.rounding, out)
        return
    if out is not u:
        out.copy_(u)
    if isinstance(q.format, FloatFormat):
        _round_to_float(out, q.format, q.rounding)


def limit_to_grid(q: Quantizer, u: Tensor) -> None:
    """`grid.limit_to_grid` in place; a zero may have either sign."""
    match q.format:
        case IntegerFormat():
            u.clamp_(q.format.lo, q.format.hi)
        case FloatFormat():
            _limit_float(u, q.format)
        case _:
            _choose(q, u)


def to_codes(q: Quantizer, u: Tensor) -> Tensor:
    """Codes for what `to_grid` leaves, for quotients in case of a codebook; in a dtype that holds them.

    ``u`` is overwritten. NaN must not be in it unless the format has it.
    """
    if isinstance(q.format, CodebookFormat):
        return _count_below(q.format.midpoints, u)
    if not isinstance(q.format, FloatFormat):
        return u
    if not q.format.negative_zero:
        u.add_(0.0)  # where -0.0 is missing, its code is NaN
    if u.dtype != torch.float32 or (q.format.has_nan and u.amax().isnan().item()):
        return encode(q, u)
    return _encode_float(u, q.format)


def from_codes(q: Quantizer, codes: Tensor, out: Tensor) -> None:
    """Numbers of the format into ``out``, float32 or float64: looked up, once a table costs less than the numbers."""
    if isinstance(q.format, FloatFormat):
        size = 256 if q.format.bits <= 8 else 1 << q.format.bits
    else:
        size = len(q.format.values) if isinstance(q.format, CodebookFormat) else 0
    if 0 < size < codes.numel():
        table = decode(q, torch.arange(size, device=codes.device), out.dtype)
        index = codes.to(torch.int32)
        if size > 256:
            index &= size - 1  # the bits above a code mean nothing
        torch.index_select(table, 0, index.reshape(-1), out=out.view(-1))
    elif size:
        out.copy_(decode(q, codes, out.dtype))
    else:
        out.copy_(codes)


def _round(u: Tensor, rounding: Rounding, out: Tensor) -> None:
    if rounding in NATIVE:
        NATIVE[rounding](u, out=out)
    else:
        out.copy_(round_to_integer(u, rounding))


def _round_to_float(u: Tensor, format: FloatFormat, rounding: Rounding) -> None:
    if format.min_exponent > format.mantissa_bits:  # quanta above 1: see `round_to_float`
        u.copy_(round_to_float(u, format, rounding))
    else:
        integer, exponent, largest = (
            (torch.int64, 0x7FF << 52, 2.0**1023) if u.dtype == torch.float64 else (torch.int32, 0xFF << 23, 2.0**127)
        )
        quantum = torch.bitwise_and(u.view(integer), exponent).view(u.dtype)
        quantum.clamp_(2.0**format.min_exponent, largest).mul_(2.0**-format.mantissa_bits)
        u.div_(quantum)
        _round(u, rounding, u)
        u.mul_(quantum)


def _limit_float(u: Tensor, format: FloatFormat) -> None:
    if format.saturate:
        u.clamp_(format.lo, format.hi)
        return
    low, high = u.aminmax()
    if not (format.lo <= low.item() and high.item() <= format.hi):  # NaN among them, too
        u.copy_(overflow(u, format))


def _encode_float(u: Tensor, format: FloatFormat) -> Tensor:
    """`minifloat.encode_float` in two buffers, of which ``u`` is one. Of patterns whose last bits are zero."""
    shift, smallest = 23 - format.mantissa_bits, 2.0**format.min_exponent
    pattern = (127 + format.min_exponent) << 23  # of the smallest normal number
    size = u.abs()
    subnormal = size.clamp(max=smallest).add_(smallest).view(torch.int32)
    code = size.clamp_(min=smallest).view(torch.int32)
    code.add_(subnormal).sub_(pattern).sub_(pattern).bitwise_right_shift_(shift)  # sums may wrap around on the way
    if format.specials is Specials.IEEE:
        code.clamp_(max=((1 << format.exponent_bits) - 1) << format.mantissa_bits)  # of infinity
    sign = u.view(torch.int32).bitwise_right_shift_(32 - format.bits).bitwise_and_(1 << (format.bits - 1))
    return code.bitwise_or_(sign)


def _choose(q: Quantizer, u: Tensor) -> None:
    """Binary, ternary and codebook numbers. The comparisons lose NaN, so a chunk that holds one takes the slow way."""
    if u.amax().isnan().item():
        u.copy_(grid.limit_to_grid(q, u))
        return
    match q.format:
        case BinaryFormat():
            u.ge_(0.0)  # 1 or 0
            torch.add(u.new_tensor(-1.0), u, alpha=2, out=u)
        case TernaryFormat():
            threshold = u.new_tensor(q.format.threshold).item()
            torch.hardshrink(u, threshold, out=u).sign_()  # +0.0 within the threshold
        case CodebookFormat():
            index = _count_below(q.format.midpoints, u).to(torch.int64)
            u.copy_(u.new_tensor(q.format.values).index_select(0, index.reshape(-1)).view(u.shape))
        case _:
            raise AssertionError(q.format)


def _count_below(bounds: tuple[float, ...], u: Tensor) -> Tensor:
    """How many of the bounds lie below each ``u``, in its dtype. Searching would take longer up to about 256 bounds."""
    count, below = torch.zeros_like(u), torch.empty_like(u)
    for bound in bounds:
        count.add_(torch.gt(u, bound, out=below))
    return count
