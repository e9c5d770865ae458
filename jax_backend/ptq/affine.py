"""The affine primitives by block size, as torchao names them; `samebits.core.affine` says by which quantizers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ...core import checks
from ...core.affine import check_domain, for_choosing, for_codes, reduced_shape
from ...core.descriptions import QParams
from ...core.granularity import qparams_shape
from .. import quantizer
from ..arrays import as_array

Array = jax.Array


def choose_qparams_affine(
    input: Array,
    mapping_type: str,
    block_size: Sequence[int],
    target_dtype: DTypeLike,
    quant_min: int | None = None,
    quant_max: int | None = None,
    eps: float | None = None,
    scale_dtype: DTypeLike | None = None,
    zero_point_dtype: DTypeLike | None = None,
    keepdim: bool = False,
    *,
    zero_point_domain: str = "int",
    preserve_zero: bool = True,
    dialect: str | None = None,
) -> tuple[Array, Array | None]:
    """Scale and zero point of each block.

    Args:
        mapping_type: ``"symmetric"``, ``"symmetric_no_clipping_err"`` or ``"asymmetric"``, or torchao's enum.
        block_size: of each axis, that of the elements that share a scale.
        target_dtype: ``jnp.int8``, ``"uint4"`` and so on; see `samebits.core.affine.for_choosing` for the others.
        scale_dtype: None for that of ``input``. ``zero_point_dtype``: None for int32, of numbers that of ``input``.
        keepdim: whether parameters keep the axes that lie whole inside a block, with length 1.
    Returns:
        The zero point is None in the domain ``"none"``.
    Raises:
        TypeError, ValueError, KeyError: as `for_choosing` there, and as `choose_qparams`.
    """
    input = as_array("input", input)
    shape, block = tuple(input.shape), tuple(block_size)
    target = jnp.dtype(target_dtype).name
    q, offset, zero = for_choosing(
        shape, mapping_type, block, target, quant_min, quant_max, eps, zero_point_domain, preserve_zero, dialect
    )
    chosen = quantizer.choose_qparams(q, input)
    out = tuple(n // b for n, b in zip(shape, block, strict=True)) if keepdim else reduced_shape(shape, block)
    scale = chosen.scale.astype(scale_dtype or input.dtype).reshape(out)
    if chosen.zero_point is None:
        filled = None if zero is None else jnp.full(out, zero, np.int32)
        return scale, filled if filled is None or zero_point_dtype is None else filled.astype(zero_point_dtype)
    point = chosen.zero_point
    point = point if _is_float(point) else point + offset
    usual = input.dtype if _is_float(point) else np.int32
    return scale, point.astype(zero_point_dtype or usual).reshape(out)


def quantize_affine(
    input: Array,
    block_size: Sequence[int],
    scale: Array,
    zero_point: Array | None,
    output_dtype: DTypeLike,
    quant_min: int | None = None,
    quant_max: int | None = None,
    *,
    zero_point_domain: str = "int",
    dialect: str | None = None,
) -> Array:
    """Codes of blocks, int8 or uint8 by the sign of ``output_dtype``.

    Args:
        scale, zero_point: one for each block, in any shape. The others: as `choose_qparams_affine`.
    Raises:
        TypeError, ValueError, KeyError: as there and as `quantize`.
    """
    input = as_array("input", input)
    shape, target = tuple(input.shape), jnp.dtype(output_dtype).name
    check_domain(zero_point_domain, zero_point)
    q, offset, _ = for_codes(shape, tuple(block_size), target, quant_min, quant_max, zero_point_domain, dialect)
    params = qparams_shape(q.granularity, shape)
    codes = quantizer.quantize(
        q, input, _qparams(scale, zero_point, params, offset, checks.scale_dtype(input.dtype.name))
    )
    return (codes.astype(np.int32) + offset).astype(_storage(target))


def dequantize_affine(
    input: Array,
    block_size: Sequence[int],
    scale: Array,
    zero_point: Array | None,
    input_dtype: DTypeLike,
    quant_min: int | None = None,
    quant_max: int | None = None,
    output_dtype: DTypeLike = np.float32,
    *,
    zero_point_domain: str = "int",
    dialect: str | None = None,
) -> Array:
    """Values of codes in ``output_dtype``.

    Args:
        input: codes, int8 or uint8; ``input_dtype``: what they are codes of. The others: as `quantize_affine`.
    Raises:
        TypeError, ValueError, KeyError: as there and as `dequantize`.
    """
    input = as_array("input", input)
    shape, target = tuple(input.shape), jnp.dtype(input_dtype).name
    if input.dtype != _storage(target):
        raise TypeError(f"`input` must have dtype {_storage(target)}, got {input.dtype.name}")
    check_domain(zero_point_domain, zero_point)
    q, offset, _ = for_codes(shape, tuple(block_size), target, quant_min, quant_max, zero_point_domain, dialect)
    params = qparams_shape(q.granularity, shape)
    codes = (input.astype(np.int32) - offset).astype(q.format.storage)
    qparams = _qparams(scale, zero_point, params, offset, checks.scale_dtype(jnp.dtype(output_dtype).name))
    return quantizer.dequantize(q, codes, qparams, output_dtype)


def _storage(target: str) -> str:
    return "uint8" if target.startswith("u") else "int8"


def _is_float(zero_point: Array) -> bool:
    return bool(jnp.issubdtype(zero_point.dtype, jnp.floating))


def _qparams(scale: Array, zero_point: Array | None, shape: tuple[int, ...], offset: int, wide: DTypeLike) -> QParams:
    """Parameters as the quantizer takes them."""
    scale = as_array("scale", scale).astype(wide).reshape(shape)
    if zero_point is None:
        return QParams(scale)
    zero = as_array("zero_point", zero_point)
    return QParams(scale, zero.astype(wide if _is_float(zero) else np.int32).reshape(shape) - offset)
