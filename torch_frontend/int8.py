"""Contractions of codes as int8 into int32, by the native product. Exact, where `fits_int8` says so.

Codes are shifted into int8: ``c = code - h``, with h = 128 for unsigned ones. With ``o = h - z`` a sum of products of
centred codes is ``sum (c_x + o_x)(c_w + o_w)``, multiplied out.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..core.descriptions import QParams, Quantizer
from .arrays import WHOLE, is_concrete, pieces
from .eager import quotients_into
from .in_place import to_grid
from .routes import codes as numbers_of
from .routes import wide


def int8_product(
    q_x: Quantizer, x: Tensor, x_qparams: QParams, q_w: Quantizer, w: Tensor, w_qparams: QParams
) -> Tensor | None:
    """``sum (code(x) - z_x) * (code(w) - z_w)`` as int32 ``(rows, out)`` of 2-d operands; None where it does not fit.

    It fits in eager mode, without NaN, where `fits_int8` says so.
    """
    if not (fits_int8(q_x, q_w, w) and x.numel()):
        return None
    a, b = shifted(q_x, x, x_qparams), shifted(q_w, w, w_qparams)
    if a is None or b is None:
        return None
    return int8_sum(a, shift(q_x, x_qparams), b, shift(q_w, w_qparams))


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


def shifted(q: Quantizer, x: Tensor, qparams: QParams, *, watched: bool = True) -> Tensor | None:
    """Codes as int8, for formats of at most 8 bits. None if NaN is seen among them, which else becomes any code.

    Args:
        watched: whether to look for NaN.
    """
    scale, zero = qparams.scale, wide(qparams.zero_point, qparams.scale)
    if not is_concrete(x, scale, zero):
        return narrow(q, numbers_of(q, x, scale, zero))
    if x.numel() <= WHOLE:
        work = x / scale if x.dtype == scale.dtype else x.to(scale.dtype).div_(scale)
        return work.to(torch.int8) if _to_shifted(q, work, zero, watched) else None
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scratch = torch.empty(WHOLE, dtype=scale.dtype, device=x.device)
    for xs, ys, s, z in pieces(x, codes, scale, zero):
        work = scratch[: xs.numel()].view(xs.shape)
        quotients_into(work, xs, s)
        if not _to_shifted(q, work, z, watched):
            return None
        ys.copy_(work)
    return codes


def _to_shifted(q: Quantizer, u: Tensor, z: Tensor | None, watched: bool) -> bool:
    """Quotients become codes less `_half`; False if NaN is seen."""
    to_grid(q, u, z)
    if _half(q):
        u.sub_(_half(q))
    return not watched or not math.isnan(u.amax().item())


def narrow(q: Quantizer, numbers: Tensor) -> Tensor:
    """Codes, in floating point, as int8; NaN becomes any."""
    return (numbers - _half(q) if _half(q) else numbers).to(torch.int8)


def shift(q: Quantizer, qparams: QParams) -> Tensor | None:
    """What is added to codes as int8 to get centred ones: int32, 0-d or a column; None for 0."""
    if qparams.zero_point is not None:
        return _half(q) - qparams.zero_point.to(torch.int32)
    return torch.full((), _half(q), dtype=torch.int32, device=qparams.scale.device) if _half(q) else None


def _half(q: Quantizer) -> int:
    """What is subtracted from codes so that they fit int8."""
    return 128 if q.format.storage == "uint8" else 0
