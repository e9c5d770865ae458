"""What the layers have in common: the quantizers that they hold, and contractions over codes or over values."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ...core.contraction import contracts_codes
from ...core.descriptions import Quantizer
from ...core.prototype import Prototype
from ..layers import Axes, Geometry, Layer, Options, contract, laid_out, laid_out_qparams, over_codes
from ..prototype_quantizer import PrototypeQuantizer
from ..tensor_quantizer import TensorQuantizer, either, quantizer_of
from .given import CodedWeight

Array = jax.Array
Held = TensorQuantizer | PrototypeQuantizer | None
Quant = str | Quantizer | Prototype | Held
Quantizers = tuple[Any, Any, Any]  # of input, weight, output: a `TensorQuantizer`, what has its methods, or None


def held(name: str, value: Quant, weight_shape: tuple[int, ...] | None = None) -> Any:
    """What a layer keeps for an argument, beside the weight if it quantizes that."""
    if isinstance(value, Prototype):
        return PrototypeQuantizer(value)
    if value is None or isinstance(value, TensorQuantizer | PrototypeQuantizer):
        return value
    return TensorQuantizer(quantizer_of(name, value), weight_shape)


def or_same(quantizer: Held, x: Array, use_running_average: bool | None) -> Array:
    """``x`` quantized, or as it is where nothing is to quantize it."""
    return x if quantizer is None else quantizer(x, use_running_average)


def apply(
    layer: nnx.Linear | nnx.Conv,
    quantizers: Quantizers,
    x: Array,
    frozen: bool | None,
    geometry: Geometry,
    x_axes: Axes | None,
    w_axes: Axes,
) -> Array:
    """The output of a layer; ``axes`` are the transpositions to the layouts that quantizers are meant for."""
    q_x, q_w, q_y = quantizers
    stored = layer.kernel[...]
    kernel = q_w.values(stored, w_axes) if isinstance(q_w, CodedWeight) else stored
    x, kernel = layer.promote_dtype((x, kernel), dtype=layer.dtype)
    if x.ndim == 0 or x.shape[-1] != layer.in_features:
        raise ValueError(f"`x` must have {layer.in_features} features on its last axis, got shape {x.shape}")
    bias = None if layer.bias is None else layer.bias[...]
    if q_x and q_w and _contracts(q_x.quantizer, q_w.quantizer, x_axes is None):
        waits = q_x.waits(), q_w.waits()
        x_qparams, w_qparams = q_x.qparams(x, frozen, x_axes), q_w.qparams(kernel, frozen, w_axes)
        parts = Layer(q_x.quantizer, laid_out(q_w.quantizer, w_axes) or q_w.quantizer, geometry)

        def codes() -> Array:
            return over_codes(parts, x, x_qparams, kernel, laid_out_qparams(w_qparams, w_axes), bias, x_axes, w_axes)

        def values() -> Array:
            operands = q_x.quantized(x, x_qparams, waits[0], x_axes), q_w.quantized(kernel, w_qparams, waits[1], w_axes)
            return contract(geometry, *operands, bias)

        waiting = [w for w in waits if w is not None]
        y = either(jnp.any(jnp.stack(waiting)), values, codes) if waiting else codes()
    else:
        x = x if q_x is None else q_x(x, frozen, x_axes)
        y = contract(geometry, x, kernel if q_w is None else q_w(kernel, frozen, w_axes), bias)
    return y if q_y is None else q_y(y, frozen, x_axes)


def _contracts(q_x: Quantizer | None, q_w: Quantizer | None, linear: bool) -> bool:
    """Whether codes are contracted; None is a quantizer that is off."""
    return q_x is not None and q_w is not None and contracts_codes(q_x, q_w, per_token=linear)


def check_options(options: Options) -> None:
    """TypeError for arguments that a quantized layer does not take."""
    unknown = sorted(set(options) - Options.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown arguments {', '.join(unknown)} of a quantized layer")
