"""Contractions of two quantized operands in the layouts that XLA computes fastest; `matmul` states what they compute.

A linear layer takes ``x`` as ``(..., in)`` and the weight as ``(in, out)`` or ``(out, in)``, a convolution images and
kernel with channels last. Quantizers and their parameters are those of the arrays in these layouts.
"""

from collections.abc import Callable
from functools import partial, reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from ..core import checks
from ..core.contraction import accumulator_bound, largest_code
from ..core.descriptions import QParams, Quantizer
from ..core.directions import Rounding
from ..core.granularity import PerAxis, PerTensor, Shape
from . import kernels, platforms
from .arguments import check_operands
from .arrays import add, bit_pattern, from_pattern, is_subnormal_or_zero, layout, narrow, scaled_subnormal, widen
from .derivatives import Tangents, differentiable
from .exact import BYTE, EXACT, integer_contraction
from .gradients import gradients
from .ieee_any import multiply_any
from .platforms import type_of_codes
from .sharding import joined, laid_out_by, spec_of
from .tangents import Moves, tangent

Array = jax.Array
Pair = tuple[int, int]
Axes = tuple[int, ...]


class Geometry(NamedTuple):
    """Which axes are contracted, and how.

    Attributes:
        inputs: axis of the weight that runs over the inputs: 0 or 1 in a linear layer, that before the last in a
            convolution, the last in a transposed one.
        stride: of a convolution; None in a linear layer.
        padding: of a convolution, (before, after) for each axis: zeros around the input, in a transposed one with its
            strides spread out; negative for what is left out.
        dilation: of the kernel; empty for 1 everywhere.
        groups: into how many parts channels are cut.
        transposed: whether strides spread the input out, and kernels are turned around.
    """

    inputs: int
    stride: tuple[int, ...] | None = None
    padding: tuple[Pair, ...] = ((0, 0), (0, 0))
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    def summed(self, axes: int) -> Axes:
        """The axes of the weight that are contracted."""
        return (self.inputs,) if self.stride is None else (*range(axes - 2), self.inputs)


class Layer(NamedTuple):
    """What a layer is apart from its arrays. The quantizers are those of ``x`` and the weight in the layout at hand."""

    q_x: Quantizer
    q_w: Quantizer
    geometry: Geometry


class Operands(NamedTuple):
    """The arrays of a layer."""

    x: Array
    x_scale: Array
    x_zero_point: Array | None
    w: Array
    w_scale: Array
    w_zero_point: Array | None
    bias: Array | None
    x_noise: Array | None  # what stochastic rounding compares with; None for other directions
    w_noise: Array | None


def laid_out(q: Quantizer, axes: Axes) -> Quantizer | None:
    """The quantizer of ``a`` that does to it what ``q`` does to ``a.transpose(axes)``; None where there is none.

    But for stochastic rounding, which depends on the order of elements; see `over_codes`.
    """
    match q.granularity:
        case PerTensor():
            return q
        case PerAxis(axis):
            return q.replace(granularity=PerAxis(axes[axis]))
        case _:
            return None


def laid_out_qparams(qparams: QParams, axes: Axes) -> QParams:
    """Parameters for the quantizer that `laid_out` gives, from those of the other; also back, with inverted axes."""
    scale, zero = (p if p is None or p.ndim == 0 else p.transpose(np.argsort(axes)) for p in qparams[:2])
    v = None if qparams.rounding is None else qparams.rounding.transpose(np.argsort(axes))
    return qparams._replace(scale=scale, zero_point=zero, rounding=v)


def over_codes(
    layer: Layer,
    x: Array,
    x_qparams: QParams,
    w: Array,
    w_qparams: QParams,
    bias: Array | None,
    x_axes: Axes | None = None,
    w_axes: Axes | None = None,
) -> Array:
    """The layer over integer codes, where `core.contraction.contracts_codes` allows it.

    Args:
        x_axes, w_axes: stochastic rounding counts the elements of ``x.transpose(x_axes)`` and ``w.transpose(w_axes)``.
    Raises:
        TypeError, ValueError: as `fake_quantize`.
    """
    checks.check_no_bit_width("x_qparams", x_qparams.bit_width)
    checks.check_no_bit_width("w_qparams", w_qparams.bit_width)
    x, x_scale, x_zero, x_seed = check_operands(layer.q_x, x, x_qparams)
    w, w_scale, w_zero, w_seed = check_operands(layer.q_w, w, w_qparams)
    noise = _noise(layer.q_x, x_seed, x.shape, x_axes), _noise(layer.q_w, w_seed, w.shape, w_axes)
    y: Array = _over_codes(layer, *Operands(x, x_scale, x_zero, w, w_scale, w_zero, bias, *noise))
    return y


@laid_out_by(lambda geometry, x_hat, w_hat, bias: _spec(geometry, x_hat, w_hat))
def contract(geometry: Geometry, x_hat: Array, w_hat: Array, bias: Array | None) -> Array:
    """The layer over values, in float32 (float64 for float64), rounded once to the dtype of ``x_hat``."""
    y = _contract(geometry, widen(x_hat), widen(w_hat))
    return narrow(y if bias is None else y + _of_channels(bias.astype(y.dtype), y), x_hat.dtype)


def _spec(geometry: Geometry, x: Array, w: Array) -> PartitionSpec:
    """How the output lies: rows as those of ``x``, channels as those of the weight."""
    lies, w_lies = spec_of(x), spec_of(w)
    if geometry.stride is None:
        return joined(lies[:-1], w_lies[1 - geometry.inputs])
    channels = None if geometry.groups > 1 else w_lies[(2 * x.ndim - 3) - geometry.inputs]
    return joined((lies[0], *(None for _ in geometry.stride)), channels)


def _specs(layer: Layer, operands: Any, g: Array) -> tuple[Any, ...]:
    """How gradients lie: as the operands."""
    return (*(None if a is None else spec_of(a) for a in operands[:7]), None, None)


@partial(jax.jit, static_argnums=0)
@laid_out_by(lambda layer, *operands: _spec(layer.geometry, operands[0], operands[3]))
def _contracted(layer: Layer, *operands: Array | None) -> Array:
    """The output. Of operands, not of their codes, which would double the memory of a step."""
    x, x_scale, x_zero, w, w_scale, w_zero, bias, x_noise, w_noise = Operands(*operands)  # type: ignore[arg-type]
    linear = layer.geometry.stride is None
    a = centred_codes(layer.q_x, x, x_scale, x_zero, x_noise, small=linear)
    b = centred_codes(layer.q_w, w, w_scale, w_zero, w_noise, small=linear)
    return contracted_codes(layer, a, x_scale, b, w_scale, bias, x.dtype)


def contracted_codes(
    layer: Layer, a: Array, x_scale: Array, b: Array, w_scale: Array, bias: Array | None, dtype: DTypeLike
) -> Array:
    """The output of a layer whose operands are `centred_codes`, rounded once to ``dtype``."""
    acc = _sums(layer, a, b)
    if layer.geometry.stride is not None:  # XLA leaves out products with the padding, but 0 * NaN is NaN
        acc = jnp.where(_spoiled(layer.geometry, b), jnp.nan, acc)
    return scaled_sums(layer, acc, x_scale, w_scale, bias, dtype)


def scaled_sums(
    layer: Layer, acc: Array, x_scale: Array, w_scale: Array, bias: Array | None, dtype: DTypeLike
) -> Array:
    """The output of a layer whose contraction of codes is ``acc``, correctly rounded."""
    geometry = layer.geometry
    scales = jnp.tile(w_scale.reshape(-1), geometry.groups if geometry.transposed else 1)
    per_output = w_scale if w_scale.ndim == 0 else _of_channels(scales, x_scale)
    return scaled_by_both(layer.q_x, layer.q_w, acc, x_scale, per_output, bias, dtype)


def scaled_by_both(
    q_x: Quantizer, q_w: Quantizer, acc: Array, x_scale: Array, w_scale: Array, bias: Array | None, dtype: DTypeLike
) -> Array:
    """Sums of codes times the product of both scales, plus the bias, rounded once to ``dtype``; of scales that fit."""
    if 0 in (q_x.scale.floor, q_w.scale.floor):  # then scales may be subnormal
        both = multiply_any(*jnp.broadcast_arrays(x_scale, w_scale))
    else:
        both = x_scale * w_scale
    scale = jnp.maximum(both, layout(x_scale.dtype).smallest)
    y = _scaled(acc, scale, None if bias is None else bias.astype(scale.dtype))
    return narrow(y, dtype)


def _sums(layer: Layer, a: Array, b: Array) -> Array:
    """The contraction of codes, correctly rounded; group by group where those of a group do not fit one exact sum."""
    geometry, summed = layer.geometry, layer.geometry.summed(b.ndim)
    terms = prod(b.shape[axis] for axis in summed)
    terms = terms // geometry.groups if geometry.transposed else terms
    largest = largest_code(layer.q_x), largest_code(layer.q_w)
    bound = accumulator_bound(layer.q_x, layer.q_w, terms)
    if geometry.groups > 1:
        if a.dtype == np.float64 or (bound <= EXACT and max(largest) <= BYTE):
            return _contract_integers(geometry, a, b)
        alone = layer._replace(geometry=geometry._replace(groups=1))
        parts = zip(*(jnp.split(part, geometry.groups, axis=-1) for part in (a, b)), strict=True)
        return jnp.concatenate([_sums(alone, *both) for both in parts], axis=-1)
    return integer_contraction(partial(_contract_integers, geometry), a, b, summed, geometry.inputs, largest, bound)


@partial(jax.jit, static_argnums=0)
@laid_out_by(lambda layer, operands, _: _spec(layer.geometry, operands[0], operands[3]))
def _tangent(layer: Layer, operands: Any, tangents: Tangents) -> Array:
    """Tangent of the contraction of the dequantized values."""
    x, x_scale, x_zero, w, w_scale, w_zero, bias, x_noise, w_noise = operands
    of_x, of_w = Moves(*tangents[:3]), Moves(*tangents[3:6])
    x_hat = _dequantized(layer.q_x, x, x_scale, x_zero, x_noise)
    w_hat = _dequantized(layer.q_w, w, w_scale, w_zero, w_noise)
    addends = []
    if any(move is not None for move in of_x):
        x_moves = tangent(layer.q_x, x, x_scale, x_zero, of_x, lambda: x_noise)
        addends.append(contract(layer.geometry, x_moves, w_hat, None))
    if any(move is not None for move in of_w):
        w_moves = tangent(layer.q_w, w, w_scale, w_zero, of_w, lambda: w_noise)
        addends.append(contract(layer.geometry, x_hat, w_moves, None))
    if bias is not None and tangents[6] is not None:
        y = jax.eval_shape(partial(contract, layer.geometry), x_hat, w_hat, bias)
        addends.append(jnp.broadcast_to(_of_channels(tangents[6].astype(y.dtype), y), y.shape))
    return reduce(jnp.add, addends)


@partial(jax.jit, static_argnums=0)
@laid_out_by(_specs)
def _gradient(layer: Layer, operands: Any, g: Array) -> tuple[Any, ...]:
    """Gradients of the contraction of the dequantized values, handed on to the quantizers."""
    x, x_scale, x_zero, w, w_scale, w_zero, bias, x_noise, w_noise = operands
    zero = _late_zero(lax.stop_gradient(g))
    x, w = _late(x, zero), _late(w, zero)
    x_hat = _dequantized(layer.q_x, x, x_scale, x_zero, x_noise)
    w_hat = _dequantized(layer.q_w, w, w_scale, w_zero, w_noise)
    dx_hat, dw_hat, d_bias = jax.vjp(partial(contract, layer.geometry), x_hat, w_hat, bias)[1](g)
    dx, d_x_scale, d_x_zero = gradients(layer.q_x, x, x_scale, x_zero, dx_hat, lambda: x_noise)
    dw, d_w_scale, d_w_zero = gradients(layer.q_w, w, w_scale, w_zero, dw_hat, lambda: w_noise)
    return dx, d_x_scale, d_x_zero, dw, d_w_scale, d_w_zero, d_bias, None, None


_over_codes = differentiable(_contracted, _tangent, _gradient)


@jax.custom_batching.custom_vmap
def _late_zero(g: Array) -> Array:
    """0, which cannot be had before ``g``: made by shifts, through which XLA does not see (LLVM does, later)."""
    first = g[(slice(1),) * g.ndim].sum().astype(np.float32)
    shift = np.int32(31)  # typed, for where jax_enable_x64 makes integers 64 bits long
    zero: Array = lax.shift_right_logical(lax.shift_right_logical(bit_pattern(first), shift), shift)
    return zero


@_late_zero.def_vmap
def _late_zero_of_one(size: int, batched: list[bool], g: Array) -> tuple[Array, bool]:
    """Of the first of a batch, so that what waits for it is computed once for all."""
    return _late_zero(g[0]), False


def _late(x: Array, zero: Array) -> Array:
    """``x``, as something that waits for `_late_zero`, so that codes of it are computed anew rather than kept.

    (Of equal expressions XLA keeps the first. A barrier does not stop it: it has been removed by then.)
    """
    bits = bit_pattern(x)
    return from_pattern(bits ^ zero.astype(bits.dtype), x.dtype)


def _dequantized(q: Quantizer, x: Array, scale: Array, zero_point: Array | None, noise: Array | None) -> Array:
    """`fake_quantize`, without checks and with the noise given."""

    def compute(subnormals: bool) -> Array:
        codes = kernels.codes(q, x, scale, zero_point, noise, subnormals=subnormals)
        return kernels.values(q, codes, scale, zero_point, x.dtype, subnormals=subnormals)

    return kernels.by_scale(q, scale, compute, x, zero_point)


def _contract(geometry: Geometry, a: Array, b: Array) -> Array:
    wide = np.float64 if a.dtype == np.float64 else np.float32
    options: dict[str, Any] = {"precision": lax.Precision.HIGHEST, "preferred_element_type": wide}
    if geometry.stride is None:
        return lax.dot_general(a, b, (((a.ndim - 1,), (geometry.inputs,)), ((), ())), **options)
    n, groups = len(geometry.stride), geometry.groups
    if geometry.transposed:  # kernels (*places, out / groups, in), turned around, as (*places, in / groups, out)
        b = jnp.flip(b, range(n)).reshape(*b.shape[:n], b.shape[n], groups, -1)
        b = jnp.moveaxis(b, -1, n).swapaxes(n + 1, n + 2).reshape(*b.shape[:n], b.shape[-1], -1)
    places = tuple(range(1, n + 1))
    layouts = lax.ConvDimensionNumbers((0, n + 1, *places), (n + 1, n, *range(n)), (0, n + 1, *places))
    ones = (1,) * n
    stride, spread = (ones, geometry.stride) if geometry.transposed else (geometry.stride, ones)
    y: Array = lax.conv_general_dilated(
        a,
        b,
        stride,
        geometry.padding,
        spread,
        rhs_dilation=geometry.dilation or None,
        dimension_numbers=layouts,
        feature_group_count=groups,
        **options,
    )
    return y


def _spoiled(geometry: Geometry, b: Array) -> Array:
    """Which outputs of a convolution have NaN in their kernels."""
    nan = jnp.isnan(b)
    if not geometry.transposed:
        return nan.any(geometry.summed(b.ndim))
    groups = geometry.groups
    return nan.reshape(-1, b.shape[-2], groups, b.shape[-1] // groups).any((0, 3)).T.reshape(-1)


def _contract_integers(geometry: Geometry, a: Array, b: Array) -> Array:
    """`_contract` for integers of at most 256, in the dtype that matrix products multiply fastest.

    Convolutions of float32 may be computed by transforms that round, elsewhere than on the CPU; of float64 none is.
    """
    if geometry.stride is not None and a.dtype != np.float64 and not platforms.rounds_once():
        with jax.enable_x64(True):
            return _contract(geometry, a.astype(np.float64), b.astype(np.float64)).astype(np.float32)
    if geometry.stride is None and a.dtype != np.float64:
        a, b = a.astype(type_of_codes()), b.astype(type_of_codes())
    return _contract(geometry, a, b)


def _noise(q: Quantizer, seed: Array | None, shape: Shape, axes: Axes | None) -> Array | None:
    """What stochastic rounding of an array of this shape compares with, counted as it is after a transposition."""
    if axes is None or q.rounding is not Rounding.STOCHASTIC:
        return kernels.noise_of(q, seed, shape)
    moved = kernels.noise_of(q, seed, tuple(shape[axis] for axis in axes))
    return None if moved is None else moved.transpose(np.argsort(axes))


def centred_codes(
    q: Quantizer, x: Array, scale: Array, zero_point: Array | None, noise: Array | None, *, small: bool
) -> Array:
    """``code - z``, NaN for NaN: in the dtype of the scale, or if ``small`` in that of the fastest products."""
    exact = small and largest_code(q) <= 256 and scale.dtype == np.float32
    dtype = type_of_codes() if exact else scale.dtype

    def compute(subnormals: bool) -> Array:
        codes = kernels.codes(q, x, scale, zero_point, noise, subnormals=subnormals)
        return kernels.centred(q, codes, scale, zero_point).astype(dtype)

    return kernels.by_scale(q, scale, compute, x, zero_point)


def _of_channels(values: Array, y: Array) -> Array:
    """One value per output channel (or one in all) with as many axes as ``y``, at least; channels are the last."""
    return values.reshape((1,) * (y.ndim - values.ndim) + values.shape)


def _scaled(acc: Array, scale: Array, bias: Array | None) -> Array:
    """``acc * scale + bias``, each operation rounded, with +0.0 for a sum that is zero.

    The select between them keeps compilers from contracting them; see `arrays.product`. Where every scale is at least
    2**-63 and no bias subnormal, no operand or result of the addition is subnormal, and XLA may add.
    """

    def value() -> Array:
        sums = jnp.where(acc == 0, 0, acc)
        return jnp.where(jnp.isnan(sums), sums, sums * _of_channels(scale, acc))

    if bias is None:
        return value()
    ordinary = jnp.all(scale >= 2.0 ** (layout(scale.dtype).min_exponent // 2))
    ordinary &= ~jnp.any(is_subnormal_or_zero(bias) & (scaled_subnormal(bias) != 0))

    def plus_bias(addition: Callable[[Array, Array], Array]) -> Array:
        return addition(value(), _of_channels(bias, acc))

    y: Array = lax.cond(ordinary, lambda: plus_bias(jnp.add), lambda: plus_bias(add))
    return y
