"""Linear and convolution layers over quantized operands: contract integer codes exactly, apply the scales once.

With ``a = code(x) - z_x`` and ``b = code(w) - z_w`` (integers) and ``acc = sum a * b`` over the contraction, exact:

    scale = max(fl(s_x * s_w), smallest normal number)
    y     = fl(fl(fl(acc) * scale) + bias)

in float32 (float64 for float64 ``x``), rounded once to the dtype of ``x``; without a bias the addition is left out.
``fl(acc)`` is the correctly rounded integer; 0 is +0.0. This needs scales that do not vary along the contraction
(`core.contraction.contracts_codes`). Other granularities contract floats, ``y = x_hat @ w_hat + bias`` in any order,
and only ``|y - exact| <= gamma_n * (|x_hat| @ |w_hat| + |bias|)`` is promised (`contraction_bound`).

NaN in ``x`` or ``w`` makes NaN of every output whose sum it enters, and in a kernel of every output of its channel,
also where it meets margins only.
"""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .arguments import as_array, widened
from .contraction import check_matrices, contracts_codes, contracts_matrices
from .descriptions import QParams, Quantizer
from .operations import round_to_dtype
from .quantizer import codes_and_zero_points, fake_quantize
from .windows import Margins, Sizes, Window, check_fits_window, transposed_window, window

Array = NDArray[Any]


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
    _check_fits(x.shape, w.shape, bias)
    codes = contracts_codes(q_x, q_w, per_token=True)
    a, b = _operands(q_x, x, x_qparams, q_w, w, w_qparams, codes)
    w_scale = _scale(w_qparams)
    w_scale = w_scale.reshape(-1) if w_scale.ndim and w_scale.size == len(w_scale) else w_scale
    y = _scaled(a @ b.T, _scale(x_qparams), w_scale, codes)  # scales of x, () or (..., 1), already broadcast
    return _finish(y, bias, x.dtype)


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
    codes = contracts_matrices(q_x, q_w)
    a, b = _operands(q_x, x, x_qparams, q_w, w, w_qparams, codes)
    y = _scaled(a @ b.swapaxes(-2, -1), _scale(x_qparams), _scale(w_qparams), codes)
    return round_to_dtype(y, x.dtype)


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
    return _windowed(shape, _correlated, q_x, x, x_qparams, q_w, w, w_qparams, bias)


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
    return _windowed(shape, _scattered, q_x, x, x_qparams, q_w, w, w_qparams, bias)


def contraction_bound(x_hat: Array, w_hat: Array, bias: Array | None = None) -> Array:
    """Largest error of a float32 ``x_hat @ w_hat.T + bias`` evaluated in any order, with or without fused operations.

    ``gamma_n * (|x_hat| @ |w_hat| + |bias|)`` with ``gamma_n = n u / (1 - n u)``, u = 2**-24 and n = in + 2: the terms,
    the bias and the rounding of the result.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.

    Args:
        x_hat: ``(..., in)``, ``w_hat``: ``(out, in)``, ``bias``: ``(out,)``.
    Returns:
        float64, ``(..., out)``.
    """
    x_hat, w_hat, bias = as_array("x_hat", x_hat), as_array("w_hat", w_hat), _optional(bias)
    n, u = x_hat.shape[-1] + 2, 2.0**-24
    size = np.abs(x_hat.astype(np.float64)) @ np.abs(w_hat.astype(np.float64)).T
    size += 0 if bias is None else np.abs(bias.astype(np.float64))
    return np.asarray(n * u / (1 - n * u) * size)


def _optional(bias: Array | None) -> Array | None:
    return None if bias is None else as_array("bias", bias)


def _check_fits(x: tuple[int, ...], w: tuple[int, ...], bias: Array | None) -> None:
    if len(w) != 2:
        raise ValueError(f"`w` must have 2 axes, got shape {w}")
    if not x or x[-1] != w[1]:
        raise ValueError(f"`x` must fit `w` of shape {w}, got shape {x}")
    if bias is not None and bias.shape != w[:1]:
        raise ValueError(f"`bias` must have shape {w[:1]}, got {bias.shape}")


def _arrays(x: Array, w: Array, bias: Array | None) -> tuple[Array, Array, Array | None]:
    """The arrays of a layer, if their dtypes fit each other."""
    x, w, bias = as_array("x", x), as_array("w", w), _optional(bias)
    if x.dtype != w.dtype:
        raise TypeError(f"`w` must have the dtype of `x`, {x.dtype.name}, got {w.dtype.name}")
    return x, w, bias


def _windowed(
    shape: Window,
    contract: Callable[[Window, Array, Array], Array],
    q_x: Quantizer,
    x: Array,
    x_qparams: QParams,
    q_w: Quantizer,
    w: Array,
    w_qparams: QParams,
    bias: Array | None,
) -> Array:
    """A convolution of either kind."""
    check_fits_window(shape, x.shape, w.shape, None if bias is None else bias.shape)
    axis = 1 if shape.transposed else 0
    codes = contracts_codes(q_x, q_w, per_token=False, axis=axis)
    a, b = _operands(q_x, x, x_qparams, q_w, w, w_qparams, codes)
    w_scale = _scale(w_qparams)
    if w_scale.ndim and w_scale.size == w_scale.shape[axis]:  # else it is not per channel, and no codes are contracted
        w_scale = np.tile(w_scale.reshape(-1), shape.groups if shape.transposed else 1)
    y = _scaled(np.moveaxis(contract(shape, a, b), 1, -1), _scale(x_qparams), w_scale, codes)
    return np.moveaxis(_finish(y, bias, x.dtype), -1, 1)


def _correlated(shape: Window, a: Array, b: Array) -> Array:
    """Sums of products, one element of the kernel after the other."""
    lengths, groups = shape.lengths(a.shape, b.shape), shape.groups
    a = np.pad(a, ((0, 0), (0, 0), *shape.margins))
    kernels = b.reshape(groups, -1, *b.shape[1:])  # (groups, out / groups, in / groups, *places)
    total = np.zeros((len(a), groups, kernels.shape[1], prod(lengths)))
    for place in np.ndindex(*b.shape[2:]):
        seen = _every(shape, place, lengths)
        total += kernels[(..., *place)] @ a[(slice(None), slice(None), *seen)].reshape(
            len(a), groups, b.shape[1], prod(lengths)
        )
    return total.reshape(len(a), len(b), *lengths)


def _scattered(shape: Window, a: Array, b: Array) -> Array:
    """Products, each added where it goes, one element of the kernel after the other."""
    groups, outputs = shape.groups, b.shape[1] * shape.groups
    whole = replace(shape, margins=((0, 0),) * len(shape.margins)).lengths(a.shape, b.shape)
    kernels = b.reshape(groups, -1, *b.shape[1:]).swapaxes(1, 2)  # (groups, out / groups, in / groups, *places)
    rows, total = a.reshape(len(a), groups, len(b) // groups, prod(a.shape[2:])), np.zeros((len(a), outputs, *whole))
    for place in np.ndindex(*b.shape[2:]):
        total[(slice(None), slice(None), *_every(shape, place, a.shape[2:]))] += (
            kernels[(..., *place)] @ rows
        ).reshape(len(a), outputs, *a.shape[2:])
    kept = tuple(slice(before, n - after) for (before, after), n in zip(shape.margins, whole, strict=True))
    total = total[(slice(None), slice(None), *kept)]
    spoiled = np.isnan(kernels).any(axis=tuple(range(2, kernels.ndim))).reshape(-1)  # also where they meet nothing
    return np.where(spoiled.reshape(-1, *(1 for _ in kept)), np.nan, total)


def _every(shape: Window, place: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[slice, ...]:
    """Where an element of the kernel meets ``lengths`` places, as it moves."""
    steps = zip(place, shape.dilation, shape.stride, lengths, strict=True)
    return tuple(slice(d * k, d * k + (n - 1) * step + 1, step) for k, d, step, n in steps)


def _operands(
    q_x: Quantizer, x: Array, x_qparams: QParams, q_w: Quantizer, w: Array, w_qparams: QParams, codes: bool
) -> tuple[Array, Array]:
    """What is contracted, in float64: centred codes (integers, or NaN) or dequantized values."""
    checks.check_no_bit_width("x_qparams", x_qparams.bit_width)
    checks.check_no_bit_width("w_qparams", w_qparams.bit_width)
    if codes:
        pairs = codes_and_zero_points(q_x, x, x_qparams), codes_and_zero_points(q_w, w, w_qparams)
        return tuple(c.astype(np.float64) - zero for c, zero in pairs)  # type: ignore[return-value]
    values = fake_quantize(q_x, x, x_qparams), fake_quantize(q_w, w, w_qparams)
    return values[0].astype(np.float64), values[1].astype(np.float64)


def _scaled(total: Array, x_scale: Array, w_scale: Array, codes: bool) -> Array:
    """Sums (in float64, of integers exact up to 2**53) in the dtype of the scale, and of codes times the scales."""
    if not codes:
        return total.astype(x_scale.dtype)
    tiny = np.finfo(x_scale.dtype).smallest_normal
    total = total.astype(x_scale.dtype) + np.zeros((), x_scale.dtype)
    return np.asarray(total * np.maximum(x_scale * w_scale, tiny))


def _scale(qparams: QParams) -> Array:
    return widened(as_array("qparams.scale", qparams.scale))


def _finish(y: Array, bias: Array | None, dtype: np.dtype[Any]) -> Array:
    return round_to_dtype(y if bias is None else y + bias.astype(y.dtype), dtype)
