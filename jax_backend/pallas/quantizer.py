"""Fake quantization in one pass over memory."""

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas
from jax.experimental.pallas import triton

from ...core.descriptions import QParams, Quantizer
from ...core.formats import IntegerFormat
from ...core.granularity import PerTensor, Shape, qparams_shape
from ..arguments import check_operands
from ..arrays import short_product
from ..small_numbers import is_other
from .integers import ROUNDINGS, clamped_codes

Array = jax.Array
ROWS, COLUMNS = 8, 1024  # of a tile, at most


def fits(q: Quantizer, x: Array, bit_width: Array | None = None) -> bool:
    """Whether the kernel computes this quantizer.

    Integers in the default arithmetic, rounded in a direction that cannot tell the least quotient from zero, with
    positive scales and integer zero points; ``x`` of float32, bfloat16 or float16, with elements.
    """
    usual = isinstance(q.format, IntegerFormat) and not is_other(q) and not q.arithmetic.has_float_zeros
    usual &= not q.scale.signed and q.rounding in ROUNDINGS and bit_width is None
    return usual and x.dtype != np.float64 and x.size > 0


def fake_quantize(q: Quantizer, x: Array, qparams: QParams, *, interpret: bool = False) -> Array:
    """`samebits.jax_backend.fake_quantize` by the kernel; without derivatives.

    Args:
        interpret: run it as ordinary operations, on any device.
    Raises:
        TypeError, ValueError: as `samebits.jax_backend.fake_quantize`; ValueError unless it `fits`.
    """
    x, scale, zero_point, _ = check_operands(q, x, qparams)
    if not fits(q, x, None if qparams.bit_width is None else jnp.asarray(qparams.bit_width)):
        raise ValueError(f"`q` and `x` must be what the kernel computes, got {q.format}, {q.rounding}, {x.dtype.name}")
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    value: Array = fake_quantized(platform, q, x, scale, zero_point, interpret=interpret)
    return value


@partial(jax.jit, static_argnames=("platform", "q", "interpret"))
def fake_quantized(
    platform: str, q: Quantizer, x: Array, scale: Array, zero_point: Array | None, *, interpret: bool = False
) -> Array:
    """`fake_quantize` without checks."""
    rows, scales, zeros = _laid_out(q, x, scale, zero_point)
    height, width = rows.shape
    tile = min(ROWS, _power_of_two(height)), min(COLUMNS, max(128, _power_of_two(width)))
    padded = _up_to_multiples(rows, tile)
    parameters = [
        p if p.size == 1 else jnp.pad(p, ((0, padded.shape[0] - height), (0, 0)), constant_values=1)
        for p in (scales, zeros)
    ]
    steps = tuple(n // t for n, t in zip(padded.shape, tile, strict=True))
    of_rows = [_of_rows(tile[0], p.size == 1) for p in parameters]
    whole = pallas.BlockSpec(tile, lambda i, j: (i, j))
    values = pallas.pallas_call(
        partial(_kernel, q),
        grid=steps,
        in_specs=[whole, *of_rows],
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct(padded.shape, x.dtype),  # type: ignore[no-untyped-call]
        **options(platform, interpret),
    )(padded, *parameters)
    return _laid_back(q, values[:height, :width], x.shape)


def _of_rows(height: int, one: bool) -> pallas.BlockSpec:
    """What a tile sees of parameters: that of each of its rows, or the one of all."""
    return pallas.BlockSpec((1, 1), lambda i, j: (0, 0)) if one else pallas.BlockSpec((height, 1), lambda i, j: (i, 0))


def options(platform: str, interpret: bool) -> dict[str, Any]:
    """Arguments of ``pallas_call`` for a platform."""
    if interpret:
        return {"interpret": True}
    return {"compiler_params": triton.CompilerParams()} if platform == "cuda" else {}


def _kernel(q: Quantizer, x_ref: Any, scale_ref: Any, zero_ref: Any, out_ref: Any) -> None:
    """One tile: codes as integers, and their values by one product that nothing is fused with."""
    x = x_ref[...].astype(np.float32)
    scale = jnp.broadcast_to(scale_ref[...], x.shape)
    zero_point = jnp.broadcast_to(zero_ref[...], x.shape)
    code = (clamped_codes(q, x, scale, zero_point) - zero_point).astype(np.float32)
    out_ref[...] = jnp.where(x != x, x, short_product(code, scale)).astype(out_ref.dtype)


def _laid_out(q: Quantizer, x: Array, scale: Array, zero_point: Array | None) -> tuple[Array, Array, Array]:
    """``x`` as a matrix each of whose rows has one scale, or that has one in all, with scales and zero points.

    Rows of one scale in all are as long as tiles allow.
    """
    zeros = jnp.zeros(scale.shape, np.int32) if zero_point is None else zero_point.astype(np.int32)
    if scale.size == 1:
        width = min(COLUMNS, max(128, _power_of_two(x.size)))
        flat = jnp.pad(x.reshape(-1), (0, -x.size % width))
        return flat.reshape(-1, width), scale.reshape(1, 1), zeros.reshape(1, 1)
    order = _order(x.ndim)
    pairs = x.reshape(_pairs(q, x.shape)).transpose(order)
    return pairs.reshape(scale.size, -1), scale.reshape(-1, 1), zeros.reshape(-1, 1)


def _laid_back(q: Quantizer, rows: Array, shape: Shape) -> Array:
    """The inverse of `_laid_out`."""
    if prod(qparams_shape(q.granularity, shape)) == 1:
        return rows.reshape(-1)[: prod(shape)].reshape(shape)
    pairs, order = _pairs(q, shape), _order(len(shape))
    return rows.reshape([pairs[axis] for axis in order]).transpose(np.argsort(order)).reshape(shape)


def _pairs(q: Quantizer, shape: Shape) -> list[int]:
    """For each axis the number of blocks and their length."""
    if isinstance(q.granularity, PerTensor):
        return [n for length in shape for n in (1, length)]
    both = zip(qparams_shape(q.granularity, shape), q.granularity.block_size(shape), strict=True)
    return [n for pair in both for n in pair]


def _order(axes: int) -> list[int]:
    """Numbers of blocks first, then what is inside them."""
    return [*range(0, 2 * axes, 2), *range(1, 2 * axes, 2)]


def _up_to_multiples(rows: Array, tile: tuple[int, int]) -> Array:
    return jnp.pad(rows, [(0, -n % t) for n, t in zip(rows.shape, tile, strict=True)])


def _power_of_two(n: int) -> int:
    """The least that is not below ``n``."""
    return 1 << max(0, n - 1).bit_length()
