"""What the layers have in common: the quantizers that they hold, and contractions over codes or over values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ...core.contraction import contracts_codes
from ...core.descriptions import Quantizer
from ...core.granularity import PerAxis, PerTensor, qparams_shape
from ...core.inject import Declaration
from ...core.keywords import by_role, check_changeable, quantizer_of_bias, with_fields
from ..bias_quantizer import BiasQuantizer
from ..layers import Axes, Geometry, Layer, contract, laid_out, laid_out_qparams, over_codes
from ..tensor_quantizer import TensorQuantizer, either, quantizer_of
from .given import CodedWeight
from .proxies import named, proxy

Array = jax.Array
Quant = str | Quantizer | TensorQuantizer | Declaration | None  # what the arguments `*_quant` take
Surround = Callable[[Array], Array]
# What layers of parameters hand on to that of flax, as it means them
OF_FLAX = ("use_bias", "dtype", "param_dtype", "kernel_init", "bias_init", "kernel_metadata", "bias_metadata")


def split(keywords: Mapping[str, Any], of_flax: Sequence[str] = OF_FLAX) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that a layer hands on to that of flax, and the others, which are for `hold`."""
    ours = {name: value for name, value in keywords.items() if name not in of_flax}
    return {name: value for name, value in keywords.items() if name in of_flax}, ours


def hold(layer: nnx.Module, keywords: Mapping[str, Any], **quant: Any) -> None:
    """Sets ``layer.<role>_quant`` to what a layer keeps for each of its quantizers: once, after its parameters.

    Args:
        layer: what holds them; its property ``weight`` is the weight as its quantizer sees it.
        keywords: further keywords of the layer: ``<role>_<field>`` for a field of that quantizer, or of its format,
            scale rule, arithmetic or learned rounding; of ``act`` also without the prefix.
        quant: the argument ``<role>_quant`` of each role.
    Raises:
        TypeError: a keyword of another prefix or field, or one for a quantizer that is None or an instance, which
            others may share. The message names the class of the layer, the keyword and what is allowed.
        TypeError, KeyError, ValueError: what `held` raises.
    """
    overrides = by_role(type(layer).__name__, keywords, quant)
    for role, value in quant.items():
        setattr(layer, f"{role}_quant", held(role, value, layer, overrides[role]))


def held(role: str, value: Any, layer: Any, overrides: Mapping[str, Any]) -> Any:
    """What ``layer`` keeps for the argument ``<role>_quant``: the only place where one becomes the other.

    Args:
        role: weight, bias, or an activation: input, output, act, ...
        value: a catalog name, a `Quantizer`, an `Injector`, or None; a `TensorQuantizer` is shared.
        overrides: fields to replace: of the quantizer, its format, scale rule, arithmetic or learned rounding, or of
            the declaration.
    Raises:
        TypeError: a value of another type, or overrides that are no fields or have nothing to change.
        KeyError: a name that is not in the catalog. ValueError: as `TensorQuantizer` and `Quantizer`, and a weight that
            its granularity does not divide.
    """
    argument, kind = f"{role}_quant", type(layer).__name__
    if isinstance(value, Declaration):
        return proxy(role, value, layer, overrides)
    if value is None or isinstance(value, TensorQuantizer):
        check_changeable(kind, role, value, overrides)
        return value
    if not isinstance(value, str | Quantizer):
        raise TypeError(
            f"{kind}, `{argument}`: must be a catalog name or a Quantizer, a declaration (an Injector), a "
            f"TensorQuantizer, or None; got {value!r}"
        )
    with named(f"{kind}, `{argument}`"):
        q = with_fields(quantizer_of(argument, value), role, overrides)
        if role == "bias":
            return BiasQuantizer(quantizer_of_bias(q))
        if role != "weight":
            return TensorQuantizer(q)
        shape = tuple(layer.weight.shape)
        if q.granularity == PerAxis(0):  # per channel, wherever this weight has its channels
            q = q.replace(granularity=PerAxis(channel_axis(layer)))
        qparams_shape(q.granularity, shape)
        return TensorQuantizer(q, shape)


def channel_axis(layer: Any) -> int:
    """The axis of a weight that runs over the outputs."""
    return 1 if getattr(layer, "transposed", False) else 0


def or_same(quantizer: Any, x: Array, use_running_average: bool | None) -> Array:
    """``x`` quantized, or as it is where nothing is to quantize it."""
    y: Array = x if quantizer is None else quantizer(x, use_running_average)
    return y


def apply(
    layer: Any,
    x: Array,
    frozen: bool | None,
    geometry: Geometry,
    x_axes: Axes | None,
    w_axes: Axes,
    *,
    kernel: Array | None = None,
    surround: Surround | None = None,
) -> Array:
    """The output of a layer; ``axes`` are the transpositions to the layouts that quantizers are meant for.

    Args:
        layer: with ``kernel``, ``bias``, ``in_features``, ``dtype``, ``promote_dtype``, and the quantizers of input,
            weight, bias and output: each a `TensorQuantizer`, what has its methods, or None.
        kernel: in its place, laid out as ``geometry`` says.
        surround: puts elements of the input around it, after its scale is known.
    """
    q_x, q_w, q_y, q_b = layer.input_quant, layer.weight_quant, layer.output_quant, layer.bias_quant
    stored = layer.kernel[...] if kernel is None else kernel
    kernel = q_w.values(stored, w_axes) if isinstance(q_w, CodedWeight) else stored
    x, kernel = layer.promote_dtype((x, kernel), dtype=layer.dtype)
    if x.ndim == 0 or x.shape[-1] != layer.in_features:
        raise ValueError(f"`x` must have {layer.in_features} features on its last axis, got shape {x.shape}")
    bias = None if layer.bias is None else layer.bias[...].reshape(-1)
    if q_b is not None and bias is not None and not isinstance(q_b, BiasQuantizer):
        bias, q_b = q_b(bias, frozen), None
    around = surround or _same
    if q_b is not None and bias is not None:
        check_prescaled(layer, channel_axis(layer))
    elif not _contracts(q_x, q_w, x_axes is None, channel_axis(layer)):
        x = around(x if q_x is None else q_x(x, frozen, x_axes))
        y = contract(geometry, x, kernel if q_w is None else q_w(kernel, frozen, w_axes), bias)
        return y if q_y is None else q_y(y, frozen, x_axes)
    waits = q_x.waits(), q_w.waits()
    x_qparams, w_qparams = q_x.qparams(x, frozen, x_axes), q_w.qparams(kernel, frozen, w_axes)
    waiting = [w for w in waits if w is not None]
    waits_for_any = jnp.any(jnp.stack(waiting)) if waiting else None
    if q_b is not None and bias is not None:
        bias = q_b(bias.astype(x_qparams.scale.dtype), x_qparams, w_qparams, waits_for_any)

    def codes() -> Array:
        parts = Layer(q_x.quantizer, laid_out(q_w.quantizer, w_axes) or q_w.quantizer, geometry)
        qparams = laid_out_qparams(w_qparams, w_axes)
        return over_codes(parts, around(x), x_qparams, kernel, qparams, bias, x_axes, w_axes)

    def values() -> Array:
        operands = q_x.quantized(x, x_qparams, waits[0], x_axes), q_w.quantized(kernel, w_qparams, waits[1], w_axes)
        return contract(geometry, around(operands[0]), operands[1], bias)

    if not _contracts(q_x, q_w, x_axes is None, channel_axis(layer)):
        y = values()
    else:
        y = codes() if waits_for_any is None else either(waits_for_any, values, codes)
    return y if q_y is None else q_y(y, frozen, x_axes)


def _same(x: Array) -> Array:
    return x


def check_prescaled(layer: Any, axis: int) -> None:
    """ValueError unless input and weight have the scales for a bias: one, and one or one for each channel."""
    name = f"{type(layer).__name__}, `bias_quant`"
    held_ones = (
        ("input", layer.input_quant, (PerTensor(),)),
        ("weight", layer.weight_quant, (PerTensor(), PerAxis(axis))),
    )
    for role, one, allowed in held_ones:
        if one is None or one.quantizer is None:
            raise ValueError(f"{name}: has no scale, since `{role}_quant` is None")
        if one.quantizer.granularity not in allowed:
            raise ValueError(f"{name}: `{role}_quant` must be {allowed[-1]}, got {one.quantizer.granularity}")


def _contracts(q_x: Any, q_w: Any, linear: bool, axis: int) -> bool:
    """Whether codes are contracted; a quantizer of None is one that is off."""
    if q_x is None or q_w is None or q_x.quantizer is None or q_w.quantizer is None:
        return False
    return contracts_codes(q_x.quantizer, q_w.quantizer, per_token=linear, axis=axis)
