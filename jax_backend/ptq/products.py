"""Products of float arrays with stored codes: the left side is quantized at every call, and codes are contracted.

The bits are those of `samebits.core.linear` over both operands; see `samebits.jax_backend.matmul`. Derivatives are
those of the contraction of the dequantized values.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ...core.contraction import contracts_codes, largest_code
from ...core.descriptions import QParams, Quantizer
from .. import kernels
from ..grid import decode
from ..layers import Geometry, Layer, centred_codes, contract, contracted_codes, scaled_sums
from ..platforms import by_platform, has_kernels, type_of_codes
from ..quantizer import choose_qparams, dequantize, fake_quantize

Array = jax.Array
ROWS = Geometry(1)  # weights (out, in)


def dynamic_linear(
    q_x: Quantizer, x: Array, q_w: Quantizer, codes: Array, w_qparams: QParams, dtype: DTypeLike, bias: Array | None
) -> Array:
    """``x @ w.T + bias`` with ``x`` quantized by ``q_x`` and the weight of these codes.

    Args:
        x: ``(..., in)``; ``codes``: ``(out, in)`` in the storage of ``q_w``; ``dtype``: that of the weight, which ``x``
            must have too; ``bias``: ``(out,)``.
    Returns:
        ``(..., out)``, dtype of ``x``.
    Raises:
        TypeError, ValueError: as `choose_qparams` of ``x``; another dtype or shape.
    """
    check_left(x, codes.shape, dtype)
    x_qparams = choose_qparams(q_x, x)
    if not contracts_codes(q_x, q_w, per_token=True):
        return _values(q_x, x, x_qparams, q_w, codes, w_qparams, bias)
    y: Array = _over_stored((q_x, q_w), x, *x_qparams[:2], codes, *w_qparams[:2], bias)
    return y


def float_linear(x: Array, w: Array, bias: Array | None) -> Array:
    """``x @ w.T + bias`` of values, in float32 (float64 for float64), rounded once to the dtype of ``x``.

    Raises:
        TypeError, ValueError: another dtype or shape of ``x``, ``(..., in)``, than that of ``w``, ``(out, in)``.
    """
    check_left(x, w.shape, w.dtype)
    return contract(ROWS, x, w, bias)


def check_left(x: Array, shape: tuple[int, ...], dtype: DTypeLike) -> None:
    """TypeError, ValueError unless ``x`` can be multiplied with a weight of this dtype and shape ``(out, in)``."""
    if x.dtype != dtype:
        raise TypeError(f"`x` must have the dtype of the weight, {jnp.dtype(dtype).name}, got {x.dtype.name}")
    if len(shape) != 2 or x.ndim == 0 or x.shape[-1] != shape[1]:
        raise ValueError(f"`x` must fit a weight of shape {tuple(shape)}, got shape {x.shape}")


@partial(jax.jit, static_argnums=0)
def _over_stored(
    quantizers: tuple[Quantizer, Quantizer],
    x: Array,
    x_scale: Array,
    x_zero: Array | None,
    codes: Array,
    w_scale: Array,
    w_zero: Array | None,
    bias: Array | None,
) -> Array:
    """The contraction of codes, with the derivatives of that of values, which nothing else computes."""
    q_x, q_w = quantizers
    like = _values(q_x, x, QParams(x_scale, x_zero), q_w, codes, QParams(w_scale, w_zero), bias)
    fixed, fixed_bias = lax.stop_gradient(x), None if bias is None else lax.stop_gradient(bias)
    layer = Layer(q_x, q_w, ROWS)

    def by_lax(x: Array, x_scale: Array, x_zero: Array | None, codes: Array, w_zero: Array | None) -> Array:
        a = centred_codes(q_x, x, x_scale, x_zero, None, small=True)
        b = kernels.centred(q_w, decode(q_w, codes, w_scale.dtype), w_scale, w_zero)
        b = b.astype(type_of_codes()) if largest_code(q_w) <= 256 and b.dtype == np.float32 else b
        return contracted_codes(layer, a, x_scale, b, w_scale, fixed_bias, x.dtype)

    def by_pallas(platform: str, x: Array, x_scale: Array, x_zero: Array | None, codes: Array, w_zero: Any) -> Array:
        from .. import pallas

        acc = pallas.sums(platform, q_x, q_w, x, x_scale, x_zero, codes, w_zero)
        return scaled_sums(layer, acc, x_scale, w_scale, fixed_bias, x.dtype)

    operands = (fixed, x_scale, x_zero, codes, w_zero)
    if has_kernels() and _fits_kernel(q_x, fixed, q_w, codes):
        y = by_platform(by_pallas, by_lax, *operands)
    else:
        y = by_lax(*operands)
    result: Array = with_derivative_of(y, like)
    return result


def _fits_kernel(q_x: Quantizer, x: Array, q_w: Quantizer, codes: Array) -> bool:
    from .. import pallas  # only where there may be one

    return pallas.fits_products(q_x, x, q_w, codes)


def _values(
    q_x: Quantizer, x: Array, x_qparams: QParams, q_w: Quantizer, codes: Array, w_qparams: QParams, bias: Array | None
) -> Array:
    """The product of values, in any order."""
    w_hat = dequantize(q_w, codes, w_qparams).astype(x.dtype)
    return contract(ROWS, fake_quantize(q_x, x, x_qparams), w_hat, bias)


@jax.custom_jvp
def with_derivative_of(y: Array, like: Array) -> Array:
    """The first array, with the derivatives of the second."""
    del like
    return y


@with_derivative_of.defjvp
def _derivative(arrays: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return arrays[0], tangents[1]
