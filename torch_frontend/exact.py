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
from .routes import wide

SHORTEST_PART = 64  # channels; below it many small float32 products cost more than one in float64


def contraction(
    q_x: Quantizer,
    a: Tensor,
    q_w: Quantizer,
    b: Tensor,
    contract: Callable[[Tensor, Tensor], Tensor],
    groups: int = 1,
    along: int = 1,
    axis: int = 1,
) -> Tensor:
    """``contract(a, b)``, exact: float32 or float64, zero of either sign.

    Args:
        a, b: centred codes (or NaN) of ``q_x`` and ``q_w``, contracted along ``axis`` of ``a`` and ``along`` of ``b``;
            of windows, where ``axis`` is 1, along the axes of ``b`` from 2 on as well.
        groups: into how many parts that axis is cut, each contracted for itself.
    """
    channels, terms = a.shape[axis] // groups, 1
    for n in b.shape[2:] if axis == 1 else ():
        terms *= n
    part = 2**24 // max(1, accumulator_bound(q_x, q_w, terms))
    # Up to 256 in magnitude, also where the user lets float32 products run in TensorFloat-32 or bfloat16.
    small = max(largest_code(q_x), largest_code(q_w)) <= 256 and a.dtype == torch.float32
    if small and channels <= part:
        return contract(a, b)
    if not small or part < SHORTEST_PART or groups > 1:
        return contract(a.double(), b.double())
    total = contract(a.narrow(axis, 0, part), b.narrow(along, 0, part)).double()
    for start in range(part, channels, part):
        length = min(part, channels - start)
        total = total + contract(a.narrow(axis, start, length), b.narrow(along, start, length))
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
    # Sums stay below 2**31. With a single term torch 2.13 reads its operands in a wrong order.
    fits = all(q.format.storage in ("int8", "uint8") for q in (q_x, q_w)) and 1 < x.shape[1] < 2**15
    if not (fits and x.numel() and w.numel() and saturates_nowhere()):
        return None
    if (x.amax() + w.amax()).isnan():
        return None
    (a, a_shift), (b, b_shift) = _shifted(q_x, x, x_qparams), _shifted(q_w, w, w_qparams)
    total = torch._int_mm(a, b.t())
    if a_shift is not None:
        total += a_shift * b.sum(1, dtype=torch.int32)
    if b_shift is not None:
        total += a.sum(1, keepdim=True, dtype=torch.int32) * b_shift.reshape(-1)
    if a_shift is not None and b_shift is not None:
        total += x.shape[1] * a_shift * b_shift.reshape(-1)
    return total


@lru_cache(maxsize=1)
def saturates_nowhere() -> bool:
    """Whether the int8 product of this machine is exact at its extremes: some processors saturate pairs to 16 bits."""
    extreme = torch.tensor([[-128, 127], [127, -128], [-128, -128], [127, 127]], dtype=torch.int8).repeat(16, 64)
    want = extreme.long() @ extreme.long().t()
    return torch.equal(torch._int_mm(extreme, extreme.t()).long(), want)


def _shifted(q: Quantizer, x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor | None]:
    """Codes as int8, ``code - h`` with h = 128 for unsigned ones, and ``h - z``: 0-d or a column, None if 0."""
    scale, zero = qparams.scale, wide(qparams.zero_point, qparams.scale)
    codes = eager.codes(q, x, scale, zero, getattr(torch, q.format.storage))
    half = 0
    if codes.dtype == torch.uint8:
        half = 128
        codes = codes.view(torch.int8).bitwise_xor_(-128)
    if zero is None:
        return codes, torch.tensor(half, dtype=torch.int32) if half else None
    return codes, half - zero.to(torch.int32)
