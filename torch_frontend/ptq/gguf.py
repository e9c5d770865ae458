"""GGUF: the codes and scales of blocks of 32 numbers; see `samebits.core.gguf`."""

import torch
from torch import Tensor

from ...core.directions import Rounding
from ...core.gguf_files import BLOCK, NUMBERS, check_blocks, check_layout
from ..arguments import check_tensor
from ..arrays import is_concrete
from ..rounding import round_to_integer


def block_codes(layout: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of numbers, as GGUF's tools choose them.

    Args, Returns:
        As `samebits.core.gguf.block_codes`.
    Raises:
        TypeError: no float tensor. ValueError: another layout or length; in eager mode NaN, infinities, scales that
            float16 does not hold.
    """
    check_tensor("x", x)
    check_blocks(layout, tuple(x.shape))
    with torch.no_grad():
        rows = x.detach().to(torch.float32).reshape(-1, BLOCK)
        if is_concrete(x) and not bool(rows.isfinite().all()):
            raise ValueError("`x` must be finite, got NaN or infinities")
        codes, d = {"Q8_0": _q8_0, "Q4_0": _q4_0, "MXFP4": _mxfp4}[layout](rows)
        scale = d if layout == "MXFP4" else d.to(torch.float16).to(torch.float32)
        if is_concrete(x) and not bool(scale.isfinite().all()):
            raise ValueError(f"`x` must have scales that float16 holds, got {float(d.abs().max())}")
    dtype = torch.int8 if layout == "Q8_0" else torch.uint8
    return codes.to(dtype).reshape(x.shape), scale.reshape(*x.shape[:-1], x.shape[-1] // BLOCK)


def block_values(layout: str, codes: Tensor, scale: Tensor) -> Tensor:
    """The numbers that codes and scales of `block_codes` stand for, float32. ValueError for another layout."""
    check_layout(layout)
    blocks = codes.reshape(*codes.shape[:-1], -1, BLOCK)
    if layout == "MXFP4":
        sizes = torch.tensor(NUMBERS, dtype=torch.float32, device=codes.device) / 2
        numbers = torch.where(blocks > 7, -1.0, 1.0) * sizes[(blocks & 7).long()]
    else:
        numbers = blocks.to(torch.float32) - (8 if layout == "Q4_0" else 0)
    return (numbers * scale.unsqueeze(-1)).flatten(-2)


def _peak(rows: Tensor) -> Tensor:
    """The first number of largest magnitude of each row; of the places of the largest, the smallest."""
    sizes = rows.abs()
    places = torch.arange(BLOCK, device=rows.device).expand(rows.shape)
    first = torch.where(sizes == sizes.amax(1, keepdim=True), places, BLOCK).amin(1, keepdim=True)
    return rows.gather(1, first)


def _times_reciprocal(rows: Tensor, d: Tensor) -> Tensor:
    inverse = d.reciprocal()
    return rows * torch.where(inverse.isfinite(), inverse, 0.0)


def _q8_0(rows: Tensor) -> tuple[Tensor, Tensor]:
    d = rows.abs().amax(1, keepdim=True) / torch.full((), 127.0, device=rows.device)
    return round_to_integer(_times_reciprocal(rows, d), Rounding.TIES_TO_AWAY), d


def _q4_0(rows: Tensor) -> tuple[Tensor, Tensor]:
    d = _peak(rows) / torch.full((), -8.0, device=rows.device)
    return (_times_reciprocal(rows, d) + 8.5).floor().clamp(max=15), d


def _mxfp4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of the candidates in falling order the last that is no worse is the first of the best."""
    size = rows.abs().amax(1, keepdim=True)
    logarithm = torch.log2(torch.where(size > 0, size, 1.0).double()).to(torch.float32)
    place = torch.where(size > 0, logarithm.floor() - 2, -127.0)
    exponent = place.clamp(min=-127).double()
    half = torch.exp2(exponent - 1).to(torch.float32)  # exact: torch's float64 powers of two are
    codes, smallest = torch.zeros_like(rows), torch.full_like(rows, torch.inf)
    for code in range(15, -1, -1):
        error = (half * (NUMBERS[code & 7] * (-1 if code > 7 else 1)) - rows).abs()
        better = error <= smallest
        codes, smallest = torch.where(better, code, codes), torch.where(better, error, smallest)
    return torch.where(place < -127, 0, codes), torch.exp2(exponent).to(torch.float32)
