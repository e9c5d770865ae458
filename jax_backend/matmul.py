"""Linear and convolution layers over quantized operands: contract integer codes exactly, apply the scales once.

With ``a = code(x) - z_x`` and ``b = code(w) - z_w`` (integers) and ``acc = sum a * b`` over the contraction, exact:

    scale = max(fl(s_x * s_w), smallest normal number)
    y     = fl(fl(fl(acc) * scale) + bias)

in float32 (float64 for float64 ``x``), rounded once to the dtype of ``x``. Where a scale varies along the contraction
(`core.contraction.contracts_codes`) floats are contracted, with the bound of `contraction_bound`.

How ``acc`` stays exact is in `exact`. Gradients are those of the contraction of the dequantized values, handed on as
`fake_quantize_vjp` does. NaN in ``x`` or ``w`` makes NaN of every output whose sum it enters.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.contraction import contracts_codes
from ..core.descriptions import QParams, Quantizer
from .arrays import as_array
from .layers import Geometry, Layer, contract, laid_out, laid_out_qparams, over_codes
from .quantizer import fake_quantize

Array = jax.Array
Pair = tuple[int, int]
PIXELS_LAST = (0, 2, 3, 1)  # (batch, channels, height, width) to (batch, height, width, channels), and
PIXELS_FIRST = (0, 3, 1, 2)  # back
OUTPUTS_LAST = (2, 3, 1, 0)  # (out, in, height, width) to (height, width, in, out), and
OUTPUTS_FIRST = (3, 2, 0, 1)  # back


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
    x, w, bias = _check_shapes(2, x, w, bias)
    if contracts_codes(q_x, q_w, per_token=True):
        return over_codes(Layer(q_x, q_w, Geometry(1)), x, x_qparams, w, w_qparams, bias)
    checks.check_no_bit_width("x_qparams", x_qparams.bit_width)
    checks.check_no_bit_width("w_qparams", w_qparams.bit_width)
    return contract(Geometry(1), fake_quantize(q_x, x, x_qparams), fake_quantize(q_w, w, w_qparams), bias)


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
    x, w, bias = _check_shapes(4, x, w, bias)
    (up, left), (down, right) = padding, stride
    geometry = Geometry(2, (down, right), ((up, up), (left, left)))
    lying = laid_out(q_w, OUTPUTS_FIRST)
    if lying and contracts_codes(q_x, q_w, per_token=False):
        images, kernel = x.transpose(PIXELS_LAST), w.transpose(OUTPUTS_LAST)
        w_qparams = laid_out_qparams(w_qparams, OUTPUTS_FIRST)
        y = over_codes(
            Layer(q_x, lying, geometry), images, x_qparams, kernel, w_qparams, bias, PIXELS_FIRST, OUTPUTS_FIRST
        )
    else:
        checks.check_no_bit_width("x_qparams", x_qparams.bit_width)
        checks.check_no_bit_width("w_qparams", w_qparams.bit_width)
        images = fake_quantize(q_x, x, x_qparams).transpose(PIXELS_LAST)
        y = contract(geometry, images, fake_quantize(q_w, w, w_qparams).transpose(OUTPUTS_LAST), bias)
    return y.transpose(PIXELS_FIRST)


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


def _check_shapes(w_ndim: int, x: Any, w: Any, bias: Any) -> tuple[Array, Array, Array | None]:
    """The arrays of a layer, if they fit each other."""
    x, w, axis = as_array("x", x), as_array("w", w), -1 if w_ndim == 2 else 1
    bias = None if bias is None else as_array("bias", bias)
    if w.ndim != w_ndim:
        raise ValueError(f"`w` must have {w_ndim} axes, got shape {w.shape}")
    if (w_ndim == 4 and x.ndim != 4) or x.ndim == 0 or x.shape[axis] != w.shape[1]:
        raise ValueError(f"`x` must fit `w` of shape {w.shape}, got shape {x.shape}")
    if x.dtype != w.dtype:
        raise TypeError(f"`w` must have the dtype of `x`, {x.dtype.name}, got {w.dtype.name}")
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(f"`bias` must have shape {w.shape[:1]}, got {bias.shape}")
    return x, w, bias
