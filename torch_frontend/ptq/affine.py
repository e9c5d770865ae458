"""The affine primitives by block size, as torchao names them; `samebits.core.affine` says by which quantizers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.affine import check_domain, for_choosing, for_codes, reduced_shape
from ...core.descriptions import QParams
from ...core.granularity import qparams_shape
from .. import quantizer
from ..arguments import check_tensor
from ..arrays import dtype_name, wide_dtype


def choose_qparams_affine(
    input: Tensor,
    mapping_type: str,
    block_size: Sequence[int],
    target_dtype: torch.dtype,
    quant_min: int | None = None,
    quant_max: int | None = None,
    eps: float | None = None,
    scale_dtype: torch.dtype | None = None,
    zero_point_dtype: torch.dtype | None = None,
    keepdim: bool = False,
    *,
    zero_point_domain: str = "int",
    preserve_zero: bool = True,
    dialect: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of each block.

    Args:
        mapping_type: ``"symmetric"``, ``"symmetric_no_clipping_err"`` or ``"asymmetric"``, or torchao's enum.
        block_size: of each axis, that of the elements that share a scale.
        target_dtype: ``torch.int8``, ``torch.uint4`` and so on; see `samebits.core.affine.for_choosing` for the others.
        scale_dtype: None for that of ``input``. ``zero_point_dtype``: None for int32, of numbers that of ``input``.
        keepdim: whether parameters keep the axes that lie whole inside a block, with length 1.
    Returns:
        The zero point is None in the domain ``"none"``.
    Raises:
        TypeError, ValueError, KeyError: as `for_choosing` there, and as `choose_qparams`.
    """
    check_tensor("input", input)
    shape, block = tuple(input.shape), tuple(block_size)
    target = dtype_name(target_dtype)
    q, offset, zero = for_choosing(
        shape, mapping_type, block, target, quant_min, quant_max, eps, zero_point_domain, preserve_zero, dialect
    )
    chosen = quantizer.choose_qparams(q, input)
    out = tuple(n // b for n, b in zip(shape, block, strict=True)) if keepdim else reduced_shape(shape, block)
    scale = chosen.scale.to(scale_dtype or input.dtype).reshape(out)
    if chosen.zero_point is None:
        filled = None if zero is None else torch.full(out, zero, dtype=torch.int32, device=input.device)
        return scale, filled if filled is None or zero_point_dtype is None else filled.to(zero_point_dtype)
    point = chosen.zero_point
    point = point if point.is_floating_point() else point + offset
    usual = input.dtype if point.is_floating_point() else torch.int32
    return scale, point.to(zero_point_dtype or usual).reshape(out)


def quantize_affine(
    input: Tensor,
    block_size: Sequence[int],
    scale: Tensor,
    zero_point: Tensor | None,
    output_dtype: torch.dtype,
    quant_min: int | None = None,
    quant_max: int | None = None,
    *,
    zero_point_domain: str = "int",
    dialect: str | None = None,
) -> Tensor:
    """Codes of blocks, int8 or uint8 by the sign of ``output_dtype``.

    Args:
        scale, zero_point: one for each block, in any shape. The others: as `choose_qparams_affine`.
    Raises:
        TypeError, ValueError, KeyError: as there and as `quantize`.
    """
    check_tensor("input", input)
    shape, target = tuple(input.shape), dtype_name(output_dtype)
    check_domain(zero_point_domain, zero_point)
    q, offset, _ = for_codes(shape, tuple(block_size), target, quant_min, quant_max, zero_point_domain, dialect)
    params = qparams_shape(q.granularity, shape)
    codes = quantizer.quantize(q, input, _qparams(scale, zero_point, params, offset, wide_dtype(input.dtype)))
    return (codes.to(torch.int32) + offset).to(_storage(target))


def dequantize_affine(
    input: Tensor,
    block_size: Sequence[int],
    scale: Tensor,
    zero_point: Tensor | None,
    input_dtype: torch.dtype,
    quant_min: int | None = None,
    quant_max: int | None = None,
    output_dtype: torch.dtype = torch.float32,
    *,
    zero_point_domain: str = "int",
    dialect: str | None = None,
) -> Tensor:
    """Values of codes in ``output_dtype``.

    Args:
        input: codes, int8 or uint8; ``input_dtype``: what they are codes of. The others: as `quantize_affine`.
    Raises:
        TypeError, ValueError, KeyError: as there and as `dequantize`.
    """
    check_tensor("input", input)
    shape, target = tuple(input.shape), dtype_name(input_dtype)
    if input.dtype != _storage(target):
        raise TypeError(f"`input` must have dtype {dtype_name(_storage(target))}, got {dtype_name(input.dtype)}")
    check_domain(zero_point_domain, zero_point)
    q, offset, _ = for_codes(shape, tuple(block_size), target, quant_min, quant_max, zero_point_domain, dialect)
    params = qparams_shape(q.granularity, shape)
    codes = (input.to(torch.int32) - offset).to(getattr(torch, q.format.storage))
    qparams = _qparams(scale, zero_point, params, offset, wide_dtype(output_dtype))
    return quantizer.dequantize(q, codes, qparams, output_dtype)


def _storage(target: str) -> torch.dtype:
    return torch.uint8 if target.startswith("u") else torch.int8


def _qparams(
    scale: Tensor, zero_point: Tensor | None, shape: tuple[int, ...], offset: int, wide: torch.dtype
) -> QParams:
    """Parameters as the quantizer takes them."""
    check_tensor("scale", scale)
    scale = scale.to(wide).reshape(shape)
    if zero_point is None:
        return QParams(scale)
    check_tensor("zero_point", zero_point)
    if zero_point.is_floating_point():
        return QParams(scale, zero_point.to(wide).reshape(shape) - offset)
    return QParams(scale, zero_point.to(torch.int32).reshape(shape) - offset)
