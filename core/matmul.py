"""Linear and convolution layers over quantized operands: contract integer codes exactly, apply the scales once.

With ``a = code(x) - z_x`` and ``b = code(w) - z_w`` (integers) and ``acc = sum a * b`` over the contraction, exact:

    scale = max(fl(s_x * s_w), smallest normal number)
    y     = fl(fl(fl(acc) * scale) + bias)

in float32 (float64 for float64 ``x``), rounded once to the dtype of ``x``; without a bias the addition is left out.
``fl(acc)`` is the correctly rounded integer; 0 is +0.0. This needs scales that do not vary along the contraction
(`core.contraction.contracts_codes`). Other granularities contract floats, ``y = x_hat @ w_hat + bias`` in any order,
and only ``|y - exact| <= gamma_n * (|x_hat| @ |w_hat| + |bias|)`` is promised (`contraction_bound`).

NaN in ``x`` or ``w`` makes NaN of every output whose sum it enters.
"""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from . import checks
from .arguments import as_array, widened
from .contraction import contracts_codes
from .descriptions import QParams, Quantizer
from .operations import round_to_dtype
from .quantizer import codes_and_zero_points, fake_quantize

Array = NDArray[Any]
Pair = tuple[int, int]


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
    x, w, bias = _checked(x, w, bias, w_ndim=2)
    a, b = _operands(q_x, x, x_qparams, q_w, w, w_qparams, per_token=True)
    x_scale = _scale(x_qparams)  # () or (..., 1): already broadcasts against (..., out)
    y = _contract(a, b.T, x_scale, _channel_scale(w_qparams), contracts_codes(q_x, q_w, per_token=True))
    return _finish(y, bias, x.dtype)


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
    x, w, bias = _checked(x, w, bias, w_ndim=4)
    a, b = _operands(q_x, x, x_qparams, q_w, w, w_qparams, per_token=False)
    (up, left), (down, right) = padding, stride
    padded = np.pad(a, ((0, 0), (0, 0), (up, up), (left, left)))
    windows = sliding_window_view(padded, w.shape[2:], axis=(2, 3))[:, :, ::down, ::right]
    batch, _, height, width = windows.shape[:4]
    rows = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch, height, width, -1)
    scales = _scale(x_qparams), _channel_scale(w_qparams)
    y = _contract(rows, b.reshape(len(b), -1).T, *scales, contracts_codes(q_x, q_w, per_token=False))
    return _finish(y, bias, x.dtype).transpose(0, 3, 1, 2)


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


def _checked(x: Array, w: Array, bias: Array | None, w_ndim: int) -> tuple[Array, Array, Array | None]:
    """The arrays of a layer, if they fit each other."""
    x, w, bias = as_array("x", x), as_array("w", w), _optional(bias)
    if w.ndim != w_ndim:
        raise ValueError(f"`w` must have {w_ndim} axes, got shape {w.shape}")
    axis = -1 if w_ndim == 2 else 1
    if (w_ndim == 4 and x.ndim != 4) or x.ndim == 0 or x.shape[axis] != w.shape[1]:
        raise ValueError(f"`x` must fit `w` of shape {w.shape}, got shape {x.shape}")
    if x.dtype != w.dtype:
        raise TypeError(f"`w` must have the dtype of `x`, {x.dtype.name}, got {w.dtype.name}")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"`bias` must have shape {w.shape[:1]}, got {bias.shape}")
    return x, w, bias


def _operands(
    q_x: Quantizer, x: Array, x_qparams: QParams, q_w: Quantizer, w: Array, w_qparams: QParams, *, per_token: bool
) -> tuple[Array, Array]:
    """What is contracted, in float64: centred codes (integers, or NaN) or dequantized values."""
    checks.check_no_bit_width("x_qparams", x_qparams.bit_width)
    checks.check_no_bit_width("w_qparams", w_qparams.bit_width)
    if contracts_codes(q_x, q_w, per_token=per_token):
        pairs = codes_and_zero_points(q_x, x, x_qparams), codes_and_zero_points(q_w, w, w_qparams)
        return tuple(codes.astype(np.float64) - zero for codes, zero in pairs)  # type: ignore[return-value]
    values = fake_quantize(q_x, x, x_qparams), fake_quantize(q_w, w, w_qparams)
    return values[0].astype(np.float64), values[1].astype(np.float64)


def _contract(a: Array, b: Array, x_scale: Array, w_scale: Array, codes: bool) -> Array:
    """``a @ b`` (float64 sums of integers are exact up to 2**53), and for codes the scales."""
    total = a @ b
    if not codes:
        return np.asarray(total.astype(x_scale.dtype))
    tiny = np.finfo(x_scale.dtype).smallest_normal
    total = total.astype(x_scale.dtype) + np.zeros((), x_scale.dtype)
    return np.asarray(total * np.maximum(x_scale * w_scale, tiny))


def _scale(qparams: QParams) -> Array:
    return widened(as_array("qparams.scale", qparams.scale))


def _channel_scale(w_qparams: QParams) -> Array:
    """Scale of the weight as ``()`` or ``(out,)``, for outputs whose last axis is the channel."""
    scale = _scale(w_qparams)
    return scale if scale.ndim == 0 or scale.size != len(scale) else scale.reshape(-1)


def _finish(y: Array, bias: Array | None, dtype: np.dtype[Any]) -> Array:
    return round_to_dtype(y if bias is None else y + bias.astype(y.dtype), dtype)
