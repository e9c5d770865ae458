"""Contractions of codes as int8 into int32, by the native product. Exact, where `fits_int8` says so.

Codes are shifted into int8: ``c = code - h``, with h = 128 for unsigned ones. With ``o = h - z`` a sum of products of
centred codes is ``sum (c_x + o_x)(c_w + o_w)``, multiplied out.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.descriptions import QParams, Quantizer
from ..core.windows import Window
from .arrays import WHOLE, is_concrete, pieces
from .eager import layout, quotients_into
from .in_place import to_grid
from .integer_arithmetic import _check_matmul, integer_matmul
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
    """Whether `int8_sum` over codes of these is exact on this machine, but for NaN. ``w``: ``(out, ...)``.

    Codes of other arithmetics than the usual are found elsewhere. So are those on a GPU, whose product takes only some
    shapes.
    """
    return w.is_cpu and fits_shape(q_x, q_w, w) and saturates_nowhere()


def fits_shape(q_x: Quantizer, q_w: Quantizer, w: Tensor) -> bool:
    """`fits_int8` on a machine whose int8 product saturates nowhere."""
    # Sums stay below 2**31. With a single term torch 2.13 reads its operands in a wrong order.
    short = w.shape[0] > 0 and 1 < math.prod(w.shape[1:]) < 2**15
    return short and all(q.usual and q.format.storage in ("int8", "uint8") for q in (q_x, q_w))


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


def integer_matmul_int8(a: Tensor, b: Tensor, bias: Tensor | None = None, a_zero: int = 0) -> Tensor:
    """`integer_arithmetic.integer_matmul` by ``torch._int_mm``, one matrix after the other. The same arguments.

    Where that product is not exact on this machine, is not on its CPU, or has one term or 2**15 and more, it is
    `integer_matmul`.
    """
    _check_matmul(a, b, bias, a_zero)
    n = a.shape[-1]
    if not (a.is_cpu and 1 < n < 2**15 and a.numel() and b.numel() and saturates_nowhere()):
        return integer_matmul(a, b, bias, a_zero)
    (left, a_shift), (right, b_shift) = _as_int8(a, a_zero), _as_int8(b, 0)
    if b.ndim == 2:
        total = int8_sum(left.reshape(-1, n), a_shift, right, b_shift)
    else:
        pairs = zip(left.reshape(-1, *a.shape[-2:]), right.reshape(-1, *b.shape[-2:]), strict=True)
        total = torch.stack([int8_sum(one, a_shift, other, b_shift) for one, other in pairs])
    total = total.reshape(*a.shape[:-1], b.shape[-2])
    return total if bias is None else total + bias


def _as_int8(codes: Tensor, zero: int) -> tuple[Tensor, Tensor | None]:
    """Codes as int8, and what is added to these to get ``code - zero``: int32, 0-d; None for 0."""
    half = 128 if codes.dtype == torch.uint8 else 0
    shifted = (codes.to(torch.int16) - half).to(torch.int8) if half else codes
    return shifted, torch.full((), half - zero, dtype=torch.int32) if half != zero else None


@lru_cache(maxsize=1)
def saturates_nowhere() -> bool:
    """Whether the int8 product of this machine is exact at its extremes: some processors saturate pairs to 16 bits."""
    extreme = torch.tensor([[-128, 127], [127, -128], [-128, -128], [127, 127]], dtype=torch.int8).repeat(16, 64)
    want = extreme.long() @ extreme.long().t()
    return torch.equal(torch._int_mm(extreme, extreme.t()).long(), want)


def shifted(
    q: Quantizer, x: Tensor, qparams: QParams, *, watched: bool = True, concrete: bool | None = None
) -> Tensor | None:
    """Codes as int8, for formats of at most 8 bits. None if NaN is seen among them, which else becomes any code.

    Args:
        watched: whether to look for NaN. ``concrete``: `is_concrete`, if that is known.
    """
    scale, zero = qparams.scale, wide(qparams.zero_point, qparams.scale)
    if not (is_concrete(x, scale, zero) if concrete is None else concrete):
        return narrow(q, numbers_of(q, x, scale, zero))
    if x.numel() <= WHOLE:
        work = x / scale if x.dtype == scale.dtype else x.to(scale.dtype).div_(scale)
        return work.to(torch.int8) if _to_shifted(q, work, zero, watched) else None
    x, view, spread = layout(q, x)
    codes = torch.empty_like(x, dtype=torch.int8)
    scratch = torch.empty(WHOLE, dtype=scale.dtype, device=x.device)
    for xs, ys, s, z in pieces(view(x), view(codes), spread(scale), spread(zero)):
        work = scratch[: xs.numel()].view(xs.shape)
        quotients_into(work, xs, s)
        if not _to_shifted(q, work, z, watched):
            return None
        ys.copy_(work)
    return codes


def _to_shifted(q: Quantizer, u: Tensor, z: Tensor | None, watched: bool) -> bool:
    """Quotients become codes less `_half`; False if NaN is seen."""
    to_grid(q, u, z)
    if half_of(q):
        u.sub_(half_of(q))
    return not watched or not math.isnan(u.amax().item())


def columns(codes: Tensor, window: Window, kernel: tuple[int, ...], shift: Tensor | int) -> Tensor:
    """What a convolution contracts for each of its outputs, in rows: elements of the kernel, channels innermost.

    Args:
        codes: int8 ``(batch, channels, *lengths)``.
        window: neither in groups nor dilated nor transposed.
        shift: what is added to codes to get centred ones, which are 0 in the margins.
    """
    x = codes.movedim(1, -1)
    if window.meets_nothing:
        sides = [n for pair in reversed(window.margins) for n in pair]
        if isinstance(shift, Tensor):
            zero = (-shift).to(torch.int8)
            x = F.pad(x - zero, [0, 0, *sides]) + zero  # sums may wrap around on the way
        else:
            x = F.pad(x, [0, 0, *sides], value=-shift)
    for axis, (length, step) in enumerate(zip(kernel, window.stride, strict=True), 1):
        x = x.unfold(axis, length, step)
    x = x.movedim(1 + len(kernel), -1)
    return x.reshape(-1, x.shape[-1] * math.prod(kernel))


def narrow(q: Quantizer, numbers: Tensor) -> Tensor:
    """Codes, in floating point, as int8; NaN becomes any."""
    return (numbers - half_of(q) if half_of(q) else numbers).to(torch.int8)


def shift(q: Quantizer, qparams: QParams) -> Tensor | None:
    """What is added to codes as int8 to get centred ones: int32, 0-d or a column; None for 0."""
    if qparams.zero_point is not None:
        centre: Tensor = half_of(q) - qparams.zero_point.to(torch.int32)
        return centre
    return torch.full((), half_of(q), dtype=torch.int32, device=qparams.scale.device) if half_of(q) else None


def half_of(q: Quantizer) -> int:
    """What is subtracted from codes so that they fit int8."""
    return 128 if q.format.storage == "uint8" else 0
