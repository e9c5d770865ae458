"""The ends of flows: weights of quantized layers become codes; what `calibration` found, as text, and functions of it.

Source of the names: optimum-quanto's ``freeze``, ``quantization_map`` and ``requantize``.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from ...core.described import quantizer_of_text, text_of
from ...core.scales import ScaleSource
from ..nn.layer import check_single
from ..prototype_quantizer import PrototypeQuantizer
from ..tensor_quantizer import TensorQuantizer
from .calibration import Quantized
from .static import LAID_BACK, named_modules, weight_as_codes

Map = dict[str, dict[str, str]]


def freeze(model: nnx.Module) -> nnx.Module:
    """Makes the weights of layers codes, in place; outputs in evaluation keep their bits. Nothing trains them any more.

    Layers of several weights stay as they are, and so do those whose weights are not quantized. Learned and averaged
    scales are constants then.

    Args:
        model: with layers of `samebits.jax_backend.nn`, made by `samebits.jax_backend.nn.quantize_model`, say.
    Returns:
        The model.
    Raises:
        TypeError: no nnx model. ValueError: no such layer; one that rounds stochastically or learns to, or whose width
            is learned; one with a prototype; one that ``nnx.vmap`` has stacked; NaN or infinities, or a dtype too
            coarse for the codes. RuntimeError: a scale that no training has set. The layer is named, and the model is
            then as it was.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"`model` must be an nnx.Module, got {type(model).__name__}")
    _refuse_prototypes(model)
    layers = [
        (name, layer)
        for name, layer in named_modules(model)
        if type(layer) in LAID_BACK and isinstance(layer.weight_quant, TensorQuantizer)
    ]
    if not layers:
        raise ValueError("`model` must have layers whose weights are quantized and not codes yet; see quantize_model")
    changes = []
    for name, layer in layers:
        q = layer.weight_quant.quantizer
        if not q.deterministic or q.learned_bits is not None:
            raise ValueError(
                f"layer '{name}': its weight must have codes that follow from it alone, got '{q.rounding}'"
            )
        try:
            check_single(layer)
            changes.append((layer, weight_as_codes(layer, q, layer.weight_quant.qparams(layer.weight, True))))
        except (ValueError, RuntimeError) as error:
            raise type(error)(f"layer '{name}': {error.args[0]}") from error
    for layer, attributes in changes:
        for attribute, value in attributes.items():
            setattr(layer, attribute, nnx.data(value))
    return model


def _refuse_prototypes(model: nnx.Module) -> None:
    for name, layer in named_modules(model):
        held = getattr(layer, "weight_quant", None)
        if isinstance(held, PrototypeQuantizer):
            raise ValueError(
                f"layer '{name}': a prototype, {held.prototype.name}, has no codes that could be kept: "
                "give the layer a Quantizer, or take models without it"
            )


def quantization_map(quantized: Quantized) -> Map:
    """What was done to a function, as text that JSON holds: with the function it makes the quantized one again.

    Returns:
        By kind, then by name: ``weights`` and ``activations``, the quantizers under the name ``""``; ``sites``,
        quantizers of activations with their scales as constants, exactly; ``removed``, sites that were taken away.
    Raises:
        ValueError: it is not calibrated.
    """
    if not quantized.calibrated:
        raise ValueError("`quantized` must be calibrated; see Calibration")
    return {
        "weights": {"": text_of(quantized.weights)},
        "activations": {"": text_of(quantized.activations)},
        "sites": {name: _as_constant(held) for name, held in quantized.sites.items()},
        "removed": dict(quantized.removed),
    }


def requantize(function: Callable[..., Any], quantization_map: Map) -> Quantized:
    """Makes of a float function what a quantized one was, without calibration.

    Args:
        function: with the weights inside; ``quantization_map``: of the quantized function.
    Raises:
        ValueError: a map that is none.
    """
    missing = [kind for kind in ("weights", "activations", "sites", "removed") if kind not in quantization_map]
    if missing:
        raise ValueError(f"`quantization_map` must be what quantization_map gave, got no {', '.join(missing)}")
    weights, activations = (quantizer_of_text(quantization_map[kind][""]) for kind in ("weights", "activations"))
    made = Quantized(function, weights, activations)
    sites = quantization_map["sites"]
    made.sites = {name: TensorQuantizer(quantizer_of_text(text)) for name, text in sites.items()}
    made.removed, made.calibrated = dict(quantization_map["removed"]), True
    return made


def _as_constant(held: TensorQuantizer) -> str:
    qparams = held.qparams(jnp.zeros(1), True)
    zero = 0 if qparams.zero_point is None else qparams.zero_point.item()
    q = held.quantizer.replace(
        source=ScaleSource.CONSTANT, scale_value=qparams.scale.item(), zero_point_value=zero, momentum=0.9
    )
    return text_of(q)
