"""Contractions of integers by native products that cannot round.

Three ways, all exact: int8 operands into int32; float32 operands over parts of the contraction so short that every
partial sum stays within 2**24, the parts added in float64; float64 throughout (sums below 2**51).
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..core.contraction import accumulator_bound, largest_code
from ..core.descriptions import QParams, Quantizer
from . import eager
from .arrays import is_concrete, pieces
from .routes import codes as numbers
from .routes import wide

SHORTEST_PART = 64  # channels; below it many small float32 products cost more than one in float64


def contraction(
    q_x: Quantizer,
    a: Tensor,
    q_w: Quantizer,
    b: Tensor,
    contract: Callable[[Tensor, Tensor], Tensor],
    largest_sum: int | None = None,
) -> Tensor:
    """``contract(a, b)``, exact: float32 or float64, zero of either sign.

    Args:
        a, b: centred codes (or NaN) of ``q_x`` and ``q_w``, contracted along axis 1 of both and later axes of ``b``.
        largest_sum: of the magnitudes of ``b`` that make one output, where it is known.
    """
    channels, terms = a.shape[1], 1
    for n in b.shape[2:]:
        terms *= n
    part = 2**24 // max(1, accumulator_bound(q_x, q_w, terms))
    # Up to 256 in magnitude, also where the user lets float32 products run in TensorFloat-32 or bfloat16.
    small = max(largest_code(q_x), largest_code(q_w)) <= 256 and a.dtype == torch.float32
    known = largest_sum is not None and largest_sum * largest_code(q_x) <= 2**24
    if small and (channels <= part or known):
        return contract(a, b)
    if not small or part < SHORTEST_PART:
        return contract(a.double(), b.double())
    total = contract(a[:, :part], b[:, :part]).double()
    for start in range(part, channels, part):
        total = total + contract(a[:, start : start + part], b[:, start : start + part])
    return total


def scaled(total: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``fl(fl(fl(total) * scale) + bias)`` in the dtype of ``scale``, with +0 for a total of -0."""
    if is_concrete(total, scale, bias):
        y = torch.empty_like(total, dtype=scale.dtype)
        for part, out, s, b in pieces(total, y, scale, bias):
            out.copy_(part).add_(0.0).mul_(s)
            if b is not None:
                out.add_(b)
        return y
    large = 1.5 * 2.0**52  # as `elementwise.one_zero`, in float64 since the sums are large
    y = ((total.double() + large) - large).to(scale.dtype) * scale
    return y if bias is None else y + bias


def int8_product(
    q_x: Quantizer, x: Tensor, x_qparams: QParams, q_w: Quantizer, w: Tensor, w_qparams: QParams
) -> Tensor | None:
    """``sum (code(x) - z_x) * (code(w) - z_w)`` as int32 ``(rows, out)`` of 2-d operands; None where it does not fit.

    It fits formats of at most 8 bits without NaN, in eager mode, on a machine whose product does not saturate. With
    codes shifted into int8, ``c = code - h``, and ``o = h - z``:  sum (c_x + o_x)(c_w + o_w), multiplied out.
    """
    if not (fits_int8(q_x, q_w, w) and x.numel()) or (x.amax() + w.amax()).isnan():
        return None
    a, a_shift = shifted(q_x, x, x_qparams)
    return int8_sum(a, a_shift, *shifted(q_w, w, w_qparams))


def fits_int8(q_x: Quantizer, q_w: Quantizer, w: Tensor) -> bool:
    """Whether `int8_sum` over codes of these is exact on this machine, but for NaN. ``w``: ``(out, n)``."""
    # Sums stay below 2**31. With a single term torch 2.13 reads its operands in a wrong order.
    short = w.ndim == 2 and 1 < w.shape[1] < 2**15 and w.shape[0] > 0
    return short and all(q.format.storage in ("int8", "uint8") for q in (q_x, q_w)) and saturates_nowhere()


def int8_sum(
    a: Tensor, a_shift: Tensor | None, b: Tensor, b_shift: Tensor | None, b_sums: Tensor | None = None
) -> Tensor:
    """``sum (a + a_shift) * (b + b_shift)`` over the last axes of int8 ``(rows, n)`` and ``(out, n)``, as int32.

    Args:
        a_shift, b_shift: int32, 0-d or a column; None for 0. ``b_sums``: those of ``b`` over ``n``, if they are known.
    """
    total = torch._int_mm(a, b.t())
    if a_shift is not None:
        total += a_shift * (b.sum(1, dtype=torch.int32) if b_sums is None else b_sums)
    if b_shift is not None:
        total += a.sum(1, keepdim=True, dtype=torch.int32) * b_shift.reshape(-1)
    if a_shift is not None and b_shift is not None:
        total += a.shape[1] * a_shift * b_shift.reshape(-1)
    return total


@lru_cache(maxsize=1)
def saturates_nowhere() -> bool:
    """Whether the int8 product of this machine is exact at its extremes: some processors saturate pairs to 16 bits."""
    extreme = torch.tensor([[-128, 127], [127, -128], [-128, -128], [127, 127]], dtype=torch.int8).repeat(16, 64)
    want = extreme.long() @ extreme.long().t()
    return torch.equal(torch._int_mm(extreme, extreme.t()).long(), want)


def shifted(q: Quantizer, x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor | None]:
    """Codes as int8, ``code - h`` with h = 128 for unsigned ones, and ``h - z``: 0-d or a column, None if 0.

    NaN is refused in eager mode; else it becomes any code.
    """
    scale, zero = qparams.scale, wide(qparams.zero_point, qparams.scale)
    if is_concrete(x, scale, zero):
        codes = eager.codes(q, x, scale, zero, getattr(torch, q.format.storage))
        codes = codes.view(torch.int8).bitwise_xor_(-128) if _half(q) else codes
    else:
        codes = narrow(q, numbers(q, x, scale, zero))
    return codes, shift(q, scale, zero)


def narrow(q: Quantizer, numbers: Tensor) -> Tensor:
    """Codes, in floating point, as int8; NaN becomes any."""
    return (numbers - _half(q) if _half(q) else numbers).to(torch.int8)


def shift(q: Quantizer, scale: Tensor, zero: Tensor | None) -> Tensor | None:
    """What is added to codes as int8 to get centred ones: int32, 0-d or a column; None for 0."""
    if zero is not None:
        return _half(q) - zero.to(torch.int32)
    return torch.full((), _half(q), dtype=torch.int32, device=scale.device) if _half(q) else None


def _half(q: Quantizer) -> int:
    """What is subtracted from codes so that they fit int8."""
    return 128 if q.format.storage == "uint8" else 0
