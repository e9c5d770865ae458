"""Linear and convolution layers over quantized operands: contract integer codes exactly, apply the scales once.

With ``a = code(x) - z_x`` and ``b = code(w) - z_w`` (integers) and ``acc = sum a * b`` over the contraction, exact:

    scale = max(fl(s_x * s_w), smallest normal number)
    y     = fl(fl(fl(acc) * scale) + bias)

in float32 (float64 for float64 ``x``), rounded once to the dtype of ``x``. Where a scale varies along the contraction
(`core.contraction.contracts_codes`) floats are contracted, with the bound of `contraction_bound`.

How ``acc`` stays exact is in `exact`. Gradients are those of the contraction of the dequantized values, handed on as
`fake_quantize_vjp` does. NaN in ``x`` or ``w`` makes NaN of every output whose sum it enters.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.contraction import accumulator_bound, contracts_codes, largest_code
from ..core.descriptions import QParams, Quantizer
from . import kernels
from .arguments import check_operands
from .arrays import add, as_array, bit_pattern, is_subnormal_or_zero, layout, narrow, widen
from .exact import integer_contraction
from .quantizer import fake_quantize

Array = jax.Array
Pair = tuple[int, int]


class _Layer(NamedTuple):
    """What a layer is apart from its arrays. ``stride`` is None for a linear one."""

    q_x: Quantizer
    q_w: Quantizer
    stride: Pair | None = None
    padding: Pair = (0, 0)


class _Operands(NamedTuple):
    """The arrays of a layer."""

    x: Array
    x_scale: Array
    x_zero_point: Array | None
    w: Array
    w_scale: Array
    w_zero_point: Array | None
    bias: Array | None


def linear(
    q_x: Quantizer,
    x: Array,
    x_qparams: QParams,
    q_w: Quantizer,
    w: Array,
    w_qparams: QParams,
    bias: Array | None = None,
) -> Array:
    """``x @ w.T + bias`` over quantized ``x`` and ``w``; see the module.

    Args:
        x: ``(..., in)``; ``w``: ``(out, in)``, same dtype; ``bias``: ``(out,)`` in the dtype of the scales.
    Returns:
        ``(..., out)``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `fake_quantize`; and ValueError when the shapes do not fit each other.
    """
    return _apply(_Layer(q_x, q_w), x, x_qparams, w, w_qparams, bias)


def conv2d(
    q_x: Quantizer,
    x: Array,
    x_qparams: QParams,
    q_w: Quantizer,
    w: Array,
    w_qparams: QParams,
    bias: Array | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
) -> Array:
    """Two-dimensional cross-correlation over quantized ``x`` and ``w``; see the module.

    Args:
        x: ``(batch, in, height, width)``; ``w``: ``(out, in, kernel height, kernel width)``, same dtype;
            ``bias``: ``(out,)`` in the dtype of the scales.
        stride, padding: (vertical, horizontal); padding adds the real number 0 on both sides.
    Returns:
        ``(batch, out, height', width')``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `linear`.
    """
    return _apply(_Layer(q_x, q_w, (stride[0], stride[1]), (padding[0], padding[1])), x, x_qparams, w, w_qparams, bias)


def contraction_bound(x_hat: Array, w_hat: Array, bias: Array | None = None) -> Array:
    """Largest error of a float32 ``x_hat @ w_hat.T + bias`` evaluated in any order, with or without fused operations.

    ``gamma_n * (|x_hat| @ |w_hat| + |bias|)`` with ``gamma_n = n u / (1 - n u)``, u = 2**-24 and n = in + 2: the terms,
    the bias and the rounding of the result. Enlarged by ``1 + 2 gamma_n``, which covers that it is computed in float32
    itself.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.

    Args:
        x_hat: ``(..., in)``, ``w_hat``: ``(out, in)``, ``bias``: ``(out,)``.
    Returns:
        float32 (float64 where ``jax_enable_x64`` is set), ``(..., out)``.
    """
    n, u = x_hat.shape[-1] + 2, 2.0**-24
    gamma = n * u / (1 - n * u)
    wide = jax.dtypes.canonicalize_dtype(np.float64)
    size = _dot(jnp.abs(x_hat).astype(wide), jnp.abs(w_hat).astype(wide))
    size = size if bias is None else size + jnp.abs(bias).astype(wide)
    return size * (gamma * (1 + 2 * gamma))


def _apply(layer: _Layer, x: Any, x_qparams: QParams, w: Any, w_qparams: QParams, bias: Any) -> Array:
    x, w = as_array("x", x), as_array("w", w)
    bias = None if bias is None else as_array("bias", bias)
    _check_shapes(layer, x, w, bias)
    operands = _Operands(*check_operands(layer.q_x, x, x_qparams), *check_operands(layer.q_w, w, w_qparams), bias)
    codes = contracts_codes(layer.q_x, layer.q_w, per_token=layer.stride is None)
    y: Array = (_over_codes if codes else _over_values)(layer, operands)
    return y


def _check_shapes(layer: _Layer, x: Array, w: Array, bias: Array | None) -> None:
    w_ndim, axis = (2, -1) if layer.stride is None else (4, 1)
    if w.ndim != w_ndim:
        raise ValueError(f"`w` must have {w_ndim} axes, got shape {w.shape}")
    if (w_ndim == 4 and x.ndim != 4) or x.ndim == 0 or x.shape[axis] != w.shape[1]:
        raise ValueError(f"`x` must fit `w` of shape {w.shape}, got shape {x.shape}")
    if x.dtype != w.dtype:
        raise TypeError(f"`w` must have the dtype of `x`, {x.dtype.name}, got {w.dtype.name}")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"`bias` must have shape {w.shape[:1]}, got {bias.shape}")


@partial(jax.custom_vjp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def _over_codes(layer: _Layer, operands: _Operands) -> Array:
    """The formula of the module."""
    x, x_scale, x_zero, w, w_scale, w_zero, bias = operands
    weight = _centred_codes(layer, layer.q_w, w, w_scale, w_zero)
    acc = integer_contraction(
        partial(_contract_integers, layer),
        x.ndim - 1 if layer.stride is None else 1,
        _centred_codes(layer, layer.q_x, x, x_scale, x_zero),
        weight,
        largest_code(layer.q_x),
        largest_code(layer.q_w),
        accumulator_bound(layer.q_x, layer.q_w, prod(w.shape[1:])),
    )
    if layer.stride is not None:  # XLA leaves out products with the padding, but 0 * NaN is NaN
        acc = jnp.where(_per_output(layer, jnp.isnan(weight).any((1, 2, 3))), jnp.nan, acc)
    scale = jnp.maximum(x_scale * _per_output(layer, w_scale), layout(x_scale.dtype).smallest)
    return narrow(_scaled(acc, scale, None if bias is None else _per_output(layer, bias.astype(scale.dtype))), x.dtype)


@partial(jax.jit, static_argnums=0)
def _over_values(layer: _Layer, operands: _Operands) -> Array:
    """The layer over dequantized values, in floating point."""
    x, x_scale, x_zero, w, w_scale, w_zero, bias = operands
    x_hat = widen(fake_quantize(layer.q_x, x, QParams(x_scale, x_zero)))
    w_hat = widen(fake_quantize(layer.q_w, w, QParams(w_scale, w_zero)))
    y = _contract(layer, x_hat, w_hat)
    return narrow(y if bias is None else y + _per_output(layer, bias.astype(y.dtype)), x.dtype)


def _forward(layer: _Layer, operands: _Operands) -> tuple[Array, _Operands]:
    return _over_codes(layer, operands), operands


@partial(jax.jit, static_argnums=0)
def _pull_back(layer: _Layer, operands: _Operands, g: Array) -> tuple[_Operands]:
    gradients: tuple[_Operands] = jax.vjp(partial(_over_values, layer), operands)[1](g)
    return gradients


_over_codes.defvjp(_forward, _pull_back)


def _contract(layer: _Layer, a: Array, b: Array) -> Array:
    """``a`` with ``b`` as the layer does, in float32 (float64 for float64)."""
    return _dot(a, b) if layer.stride is None else _convolve(layer.stride, layer.padding, a, b)


def _contract_integers(layer: _Layer, a: Array, b: Array) -> Array:
    """`_contract` for integers of at most 256: exact in bfloat16, which matrix products multiply fastest."""
    if layer.stride is None and a.dtype != np.float64:
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    return _contract(layer, a, b)


def _dot(a: Array, b: Array) -> Array:
    axes = (((a.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(a, b, axes, precision=lax.Precision.HIGHEST, preferred_element_type=_wide(a))


def _convolve(stride: Pair, padding: Pair, a: Array, b: Array) -> Array:
    y = lax.conv_general_dilated(
        a.transpose(0, 2, 3, 1),
        b.transpose(2, 3, 1, 0),
        stride,
        [(n, n) for n in padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=_wide(a),
    )
    return y.transpose(0, 3, 1, 2)


def _wide(a: Array) -> Any:
    return np.float64 if a.dtype == np.float64 else np.float32


def _centred_codes(layer: _Layer, q: Quantizer, x: Array, scale: Array, zero_point: Array | None) -> Array:
    """``code - z``, NaN for NaN, in the dtype of the scale, or already in bfloat16 where that is exact and wanted."""
    small = largest_code(q) <= 256 and layer.stride is None and scale.dtype == np.float32
    dtype = jnp.bfloat16 if small else scale.dtype

    def compute(subnormals: bool) -> Array:
        codes = kernels.codes(q, x, scale, zero_point, subnormals=subnormals)
        return kernels.centred(q, codes, scale, zero_point).astype(dtype)

    return kernels.by_scale(q, scale, compute)


def _per_output(layer: _Layer, values: Array) -> Array:
    """One value per output channel, or one in all, as it broadcasts against the outputs."""
    if values.ndim == 0:
        return values
    return values.reshape(-1) if layer.stride is None else values.reshape(-1, 1, 1)


def _scaled(acc: Array, scale: Array, bias: Array | None) -> Array:
    """``acc * scale + bias``, each operation rounded, with +0.0 for a sum that is zero.

    The select between them keeps compilers from contracting them; see `arrays.product`. Where every scale is at least
    2**-63 and no bias subnormal, no operand or result of the addition is subnormal, and XLA may add.
    """
    acc = jnp.where(acc == 0, 0, acc)
    if bias is None:
        return jnp.where(jnp.isnan(acc), acc, acc * scale)
    ordinary = jnp.all(scale >= 2.0 ** (layout(scale.dtype).min_exponent // 2))
    ordinary &= ~jnp.any(is_subnormal_or_zero(bias) & (bit_pattern(bias) << 1 != 0))

    def add_up(addition: Callable[[Array, Array], Array]) -> Array:
        return addition(jnp.where(jnp.isnan(acc), acc, acc * scale), bias)

    y: Array = lax.cond(ordinary, lambda: add_up(jnp.add), lambda: add_up(add))
    return y
