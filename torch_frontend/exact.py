"""Contractions of integers by native products that cannot round.

Three ways, all exact: int8 operands into int32 (`int8`); float32 operands over parts of the contraction so
short that every partial sum stays within 2**24, the parts added in float64; float64 throughout (sums below 2**51).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..core.contraction import accumulator_bound, largest_code
from ..core.descriptions import Quantizer
from . import devices
from .arrays import is_concrete, pieces

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
    largest_sum: int | None = None,
) -> Tensor:
    """``contract(a, b)``, exact: float32 or float64, zero of either sign.

    Args:
        a, b: centred codes (or NaN) of ``q_x`` and ``q_w``, contracted along ``axis`` of ``a`` and ``along`` of ``b``;
            of windows, where ``axis`` is 1, along the axes of ``b`` from 2 on as well.
        groups: into how many parts that axis is cut, each contracted for itself.
        largest_sum: of the magnitudes of ``b`` that make one output, where it is known.
    """
    channels, terms = a.shape[axis] // groups, 1
    for n in b.shape[2:] if axis == 1 else ():
        terms *= n
    part = 2**24 // max(1, accumulator_bound(q_x, q_w, terms))
    # Convolutions of float32 may be computed by transforms that round, elsewhere than on the CPU; of float64 none is.
    direct = a.is_cpu or a.is_meta or axis != 1 or b.ndim == 2
    # Up to 256 in magnitude, also where the user lets float32 products run in TensorFloat-32 or bfloat16.
    small = direct and max(largest_code(q_x), largest_code(q_w)) <= 256 and a.dtype == torch.float32
    known = largest_sum is not None and largest_sum * largest_code(q_x) <= 2**24
    if small and (channels <= part or known):
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
    y = devices.product(((total.double() + large) - large).to(scale.dtype), scale)
    return y if bias is None else y + bias
