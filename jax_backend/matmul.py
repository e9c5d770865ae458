"""Linear and convolution layers over quantized operands: contract integer codes exactly, apply the scales once.

With ``a = code(x) - z_x`` and ``b = code(w) - z_w`` (integers) and ``acc = sum a * b`` over the contraction, exact:

    scale = max(fl(s_x * s_w), smallest normal number)
    y     = fl(fl(fl(acc) * scale) + bias)

in float32 (float64 for float64 ``x``), rounded once to the dtype of ``x``. Where a scale varies along the contraction
(`core.contraction.contracts_codes`) floats are contracted, with the bound of `contraction_bound`.

How ``acc`` stays exact is in `exact`. Gradients are those of the contraction of the dequantized values, handed on as
`fake_quantize_vjp` does. NaN in ``x`` or ``w`` makes NaN of every output whose sum it enters, and in a
kernel of every output of its channel, also where it meets margins only.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks
from ..core.contraction import check_matrices, contracts_codes, contracts_matrices
from ..core.descriptions import QParams, Quantizer
from ..core.windows import Margins, Sizes, Window, check_fits_window, transposed_window, window
from .arrays import as_array, narrow, widen
from .layers import Geometry, Layer, contract, laid_out, laid_out_qparams, over_codes
from .quantizer import fake_quantize

Array = jax.Array


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
    x, w, bias = _arrays(x, w, bias)
    if w.ndim != 2:
        raise ValueError(f"`w` must have 2 axes, got shape {w.shape}")
    if x.ndim == 0 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"`x` must fit `w` of shape {w.shape}, got shape {x.shape}")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"`bias` must have shape {w.shape[:1]}, got {bias.shape}")
    if contracts_codes(q_x, q_w, per_token=True):
        return over_codes(Layer(q_x, q_w, Geometry(1)), x, x_qparams, w, w_qparams, bias)
    checks.check_no_bit_width("x_qparams", x_qparams.bit_width)
    checks.check_no_bit_width("w_qparams", w_qparams.bit_width)
    return contract(Geometry(1), fake_quantize(q_x, x, x_qparams), fake_quantize(q_w, w, w_qparams), bias)


def batched_matmul(q_x: Quantizer, x: Array, x_qparams: QParams, q_w: Quantizer, w: Array, w_qparams: QParams) -> Array:
    """``x @ w.T`` of each matrix of a batch, over quantized ``x`` and ``w``, as attention needs it; see the module.

    Codes are contracted where each has one scale, and values otherwise.

    Args:
        x: ``(..., rows, in)``; ``w``: ``(..., out, in)``, same dtype and same axes before the last two.
    Returns:
        ``(..., rows, out)``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `linear`.
    """
    x, w, _ = _arrays(x, w, None)
    check_matrices(x.shape, w.shape)
    if not contracts_matrices(q_x, q_w) or 0 in (*x.shape, *w.shape):
        checks.check_no_bit_width("x_qparams", x_qparams.bit_width)
        checks.check_no_bit_width("w_qparams", w_qparams.bit_width)
        values = fake_quantize(q_x, x, x_qparams), fake_quantize(q_w, w, w_qparams)
        a, b = map(widen, values)
        return narrow(jnp.matmul(a, b.swapaxes(-2, -1), precision=lax.Precision.HIGHEST), x.dtype)
    *lead, rows, inputs = x.shape
    groups, outputs = prod(lead), w.shape[-2]
    columns = x.reshape(groups, rows, inputs).swapaxes(1, 2).reshape(1, groups * inputs, rows)
    kernels = w.reshape(groups * outputs, inputs, 1)
    y = conv(q_x, columns, x_qparams, q_w, kernels, w_qparams, groups=groups)
    return y.reshape(groups, outputs, rows).swapaxes(1, 2).reshape(*lead, rows, outputs)


def conv(
    q_x: Quantizer,
    x: Array,
    x_qparams: QParams,
    q_w: Quantizer,
    w: Array,
    w_qparams: QParams,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Margins = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """Cross-correlation in one, two or three dimensions over quantized ``x`` and ``w``; see the module.

    Args:
        x: ``(batch, in, *lengths)``; ``w``: ``(out, in / groups, *kernel lengths)``, same dtype; ``bias``: ``(out,)``
            in the dtype of the scales.
        stride, dilation: an int, or one for each dimension.
        padding: an int, or one or (before, after) for each dimension; it adds the real number 0.
        groups: into so many parts channels are cut, each contracted with its own kernels.
    Returns:
        ``(batch, out, *lengths')``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `linear`, and `core.windows.window`.
    """
    x, w, bias = _arrays(x, w, bias)
    shape = window(w.shape, stride, padding, dilation, groups)
    geometry = Geometry(w.ndim - 2, shape.stride, shape.margins, shape.dilation, groups)
    return _windowed(shape, geometry, q_x, x, x_qparams, q_w, w, w_qparams, bias)


def conv_transpose(
    q_x: Quantizer,
    x: Array,
    x_qparams: QParams,
    q_w: Quantizer,
    w: Array,
    w_qparams: QParams,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Array:
    """Transposed convolution in one, two or three dimensions over quantized ``x`` and ``w``; see the module.

    Every element of ``x``, times the kernel, is added to the outputs from ``stride * place - padding`` on.

    Args:
        x: ``(batch, in, *lengths)``; ``w``: ``(in, out / groups, *kernel lengths)``, same dtype; its channels are those
            of axis 1, in each group. ``bias``: ``(out,)`` in the dtype of the scales.
        stride, padding, dilation: an int, or one for each dimension; padding leaves out outputs on both sides.
        output_padding: outputs added at the end.
        groups: into so many parts channels are cut, each contracted with its own kernels.
    Returns:
        ``(batch, out, *lengths')``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `linear`, and `core.windows.transposed_window`.
    """
    x, w, bias = _arrays(x, w, bias)
    shape = transposed_window(w.shape, stride, padding, output_padding, groups, dilation)
    spans = [d * (k - 1) for d, k in zip(shape.dilation, w.shape[2:], strict=True)]
    sides = zip(spans, shape.margins, shape.extra, strict=True)
    around = tuple((span - before, span - after + more) for span, (before, after), more in sides)
    geometry = Geometry(w.ndim - 1, shape.stride, around, shape.dilation, groups, transposed=True)
    return _windowed(shape, geometry, q_x, x, x_qparams, q_w, w, w_qparams, bias)


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
    size = jnp.abs(x_hat).astype(wide) @ jnp.abs(w_hat).astype(wide).T
    size = size if bias is None else size + jnp.broadcast_to(jnp.abs(bias).astype(wide), size.shape)
    return size * (gamma * (1 + 2 * gamma))


def _arrays(x: Any, w: Any, bias: Any) -> tuple[Array, Array, Array | None]:
    """The arrays of a layer, if their dtypes fit each other."""
    x, w = as_array("x", x), as_array("w", w)
    bias = None if bias is None else as_array("bias", bias)
    if x.dtype != w.dtype:
        raise TypeError(f"`w` must have the dtype of `x`, {x.dtype.name}, got {w.dtype.name}")
    return x, w, bias


def _windowed(
    shape: Window,
    geometry: Geometry,
    q_x: Quantizer,
    x: Array,
    x_qparams: QParams,
    q_w: Quantizer,
    w: Array,
    w_qparams: QParams,
    bias: Array | None,
) -> Array:
    """A convolution of either kind, in the layouts of `layers`: channels last, those of outputs last of all."""
    check_fits_window(shape, x.shape, w.shape, None if bias is None else bias.shape)
    n = len(shape.stride)
    pixels_last, pixels_first = (0, *range(2, n + 2), 1), (0, n + 1, *range(1, n + 1))
    outputs_last, outputs_first = (*range(2, n + 2), 1, 0), (n + 1, n, *range(n))
    lying, axis = laid_out(q_w, outputs_first), 1 if shape.transposed else 0
    if lying and contracts_codes(q_x, q_w, per_token=False, axis=axis):
        images, kernel = x.transpose(pixels_last), w.transpose(outputs_last)
        w_qparams = laid_out_qparams(w_qparams, outputs_first)
        layer = Layer(q_x, lying, geometry)
        y = over_codes(layer, images, x_qparams, kernel, w_qparams, bias, pixels_first, outputs_first)
    else:
        checks.check_no_bit_width("x_qparams", x_qparams.bit_width)
        checks.check_no_bit_width("w_qparams", w_qparams.bit_width)
        images = fake_quantize(q_x, x, x_qparams).transpose(pixels_last)
        y = contract(geometry, images, fake_quantize(q_w, w, w_qparams).transpose(outputs_last), bias)
    return y.transpose(pixels_first)
