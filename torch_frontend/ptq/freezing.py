"""The end of the flow of `calibration`: float weights become codes, and models are made again from what was saved.

Source of the names: optimum-quanto's ``freeze``, ``quantization_map`` and ``requantize``.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.described import quantizer_of_text, text_of
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import qparams_shape
from ...core.scales import ScaleSource
from ..loading import unchanged_on_error
from ..nn.given import CodedWeight
from ..nn.model import quantizable, quantize_model
from ..prototype_quantizer import PrototypeQuantizer
from ..tensor_quantizer import TensorQuantizer
from .calibration import NAME, prepare_sites, sites_of
from .static import coded_weight

Map = dict[str, dict[str, str]]


def freeze(model: nn.Module) -> None:
    """Makes the weights of layers codes, in place; outputs keep their bits. Weights can no longer be trained.

    Layers of several weights, attention and recurrent ones, stay as they are.

    Args:
        model: made by `quantize`, or with other layers of `nn` whose weights have a scale of their own.
    Raises:
        ValueError: no such layer, or one whose scale is learned or averaged, or one with a prototype; the model is then
            as it was.
    """
    _refuse_prototypes(model)
    layers = {name: layer for name, layer in model.named_modules() if _is_quantized(layer)}
    if not layers:
        raise ValueError("`model` must have layers whose weights are quantized and not codes yet; quantize makes them")
    for name, layer in layers.items():
        q = layer.weight_quant.quantizer
        if q.scale.source not in (ScaleSource.STATISTIC, ScaleSource.CONSTANT) or not q.deterministic:
            raise ValueError(f"layer '{name}': its weight must have a scale that follows from it alone, got {q.scale}")
    with torch.no_grad():
        for layer in layers.values():
            held: Any = layer.weight_quant
            layer.weight_quant = coded_weight(layer, "weight", held.quantizer, held.qparams(layer.weight))


def quantization_map(model: nn.Module) -> Map:
    """What was done to a model, as text that JSON holds: with its ``state_dict`` it makes the model again.

    Returns:
        By kind, then by name: ``weights`` and ``codes`` (weights that are frozen), quantizers of weights;
        ``dtypes`` of these before; ``activations``, the quantizer under the name ``""``; ``sites``, quantizers of
        activations; ``removed``, sites that were taken away, with the reason.
    Raises:
        ValueError: a model without layers of `quantize`, or with a prototype for a weight.
    """
    _refuse_prototypes(model)
    weights = {name: text_of(m.weight_quant.quantizer) for name, m in model.named_modules() if _is_quantized(m)}
    coded = {name: m.weight_quant for name, m in model.named_modules() if _is_coded(m)}
    if not weights and not coded:
        raise ValueError("`model` must have layers whose weights are quantized; quantize makes them")
    found: Map = {
        "weights": weights,
        "codes": {name: text_of(held.quantizer) for name, held in coded.items()},
        "dtypes": {name: str(held.dtype).removeprefix("torch.") for name, held in coded.items()},
    }
    if hasattr(model, NAME):
        sites = sites_of(model)
        found["activations"] = {"": text_of(sites.quantizer)}
        found["sites"] = {key: text_of(_quantizer_of(one)) for key, one in sites.quantizers.items()}
        found["removed"] = dict(sites.removed)
    return found


def requantize(model: nn.Module, state_dict: Mapping[str, Tensor], quantization_map: Map) -> nn.Module:
    """Makes a float model what a quantized one was, without calibration.

    Args:
        model: the float model; its parameters may hold anything. Put into evaluation mode.
        state_dict, quantization_map: of the quantized model.
    Returns:
        The model, with the same outputs as the other, bit for bit.
    Raises:
        ValueError, KeyError: a map that is none, or of another model. RuntimeError: a ``state_dict`` that does not fit,
            as ``load_state_dict`` has it. The model is then as it was.
    """
    with unchanged_on_error(model):
        made = _made_again(model, quantization_map)
        made.load_state_dict(state_dict)
    return made


def _made_again(model: nn.Module, given: Map) -> nn.Module:
    """The model with the layers and sites of a map, before anything is loaded."""
    missing = [kind for kind in ("weights", "codes", "dtypes") if kind not in given]
    if missing:
        raise ValueError(f"`quantization_map` must be what quantization_map gave, got no {', '.join(missing)}")
    quantizers = {name: quantizer_of_text(text) for name, text in (given["weights"] | given["codes"]).items()}
    names = dict(model.named_modules())
    for name in quantizers:
        if name not in names:
            raise ValueError(f"`quantization_map` has a layer '{name}', which the model does not have")
    rules: dict[str, Any] = {
        name: {"weight_quant": quantizers[name]} if name in quantizers else None for name, _ in quantizable(model)
    }
    model = quantize_model(model, rules)
    for name in given["codes"]:
        layer: Any = model.get_submodule(name)
        _expect_codes(layer, quantizers[name], getattr(torch, given["dtypes"][name]))
    if "activations" in given:
        sites = prepare_sites(model, list(quantizers), quantizer_of_text(given["activations"][""]))
        for key, text in given["sites"].items():
            sites.quantizers[key] = TensorQuantizer(quantizer_of_text(text))
        sites.removed, sites.calibrated = dict(given["removed"]), True
    return model.eval()


def _expect_codes(layer: Any, q: Quantizer, dtype: torch.dtype) -> None:
    """Makes a layer hold codes and parameters of these shapes, not set yet."""
    shape, device = tuple(layer.weight.shape), layer.weight.device
    codes = torch.zeros(shape, dtype=getattr(torch, q.format.storage), device=device)
    unset = torch.full(qparams_shape(q.granularity, shape), torch.nan, device=device)
    layer.register_parameter("weight", nn.Parameter(codes, requires_grad=False))
    layer.weight_quant = CodedWeight(q, QParams(unset, unset.clone() if q.affine else None), dtype)


def _refuse_prototypes(model: nn.Module) -> None:
    for name, module in model.named_modules():
        held = getattr(module, "weight_quant", None)
        if isinstance(held, PrototypeQuantizer):
            raise ValueError(
                f"layer '{name}': a prototype, {held.prototype.name}, has no codes that could be kept: "
                "give the layer a Quantizer, or take models without it"
            )


def _is_quantized(module: Any) -> bool:
    return isinstance(getattr(module, "weight_quant", None), TensorQuantizer) and hasattr(module, "weight")


def _is_coded(module: Any) -> bool:
    return isinstance(getattr(module, "weight_quant", None), CodedWeight)


def _quantizer_of(held: Any) -> Quantizer:
    q: Quantizer = held.quantizer
    return q
