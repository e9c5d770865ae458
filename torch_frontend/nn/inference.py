"""A mode for models whose training is over: weights are quantized once, and what the state determines is kept."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..packed import PackedWeight, gains
from ..tensor_quantizer import TensorQuantizer
from .kept import Kept, standing_in
from .proxy import HELD


@contextmanager
def quant_inference_mode(model: nn.Module, compile: bool = False) -> Iterator[None]:
    """Within it, layers of ``model`` that are in evaluation quantize their weights once. The same bits as without it.

    Scales and zero points that do not depend on the tensor at hand are kept, too. Gradients are off
    (``torch.no_grad``); modules in training, and code within ``torch.enable_grad``, compute as without the mode.
    Leaving it, also by an exception, restores everything. Nothing of it is in a ``state_dict``, a copy or a pickle.

    Weights are not to change meanwhile. Eager code sees where a weight or a state was written to, or replaced, and
    computes anew; so do all after ``model.load_state_dict``. Compiled code takes what is kept, and programs of
    ``torch.export`` hold it for good: when the mode ends, a warning names weights that have changed unseen.

    Args:
        model: with layers of samebits anywhere in it.
        compile: compile the quantizers, each as its `compile_quant` does; until the mode ends.
    Raises:
        RuntimeError: ``model``, or a part of it, is in the mode.
    """
    quantizers = _asked(model)
    if any(getattr(m, "kept", None) is not None for m in quantizers):
        raise RuntimeError("`model`, or a part of it, is in quant_inference_mode already")
    compilable = [m for m in model.modules() if isinstance(m, TensorQuantizer)]
    before = [m.programs for m in compilable]
    hook = model.register_load_state_dict_post_hook(_pack)  # type: ignore[no-untyped-call]
    try:
        for one in compilable if compile else ():
            one.compile_quant()
        for m in quantizers:
            m.__dict__["kept"] = Kept(m)
        with torch.no_grad():
            _pack(model)
            yield
        _warn(model)
    finally:
        hook.remove()
        for m in quantizers:
            m.__dict__.pop("kept", None)
        for one, programs in zip(compilable, before, strict=True):
            one.programs = programs


def _asked(model: nn.Module) -> list[Any]:
    """The quantizers that layers ask, and not those inside of them."""
    outside = (m for m in model.modules() if not isinstance(m, HELD))
    asked = dict.fromkeys([model, *(child for m in outside for child in m.children())])
    return [m for m in asked if isinstance(m, HELD) and m.quantizer is not None]


def _pack(model: nn.Module, _: object = None) -> None:
    """Keeps what can be known before a tensor comes, for code that is compiled before it runs.

    Of layers with several weights nothing yet: these are kept at their first forward pass in eager code.
    """
    for layer in model.modules():
        for name, quantizer in layer.named_children():
            kept: Any = standing_in(quantizer)
            if not isinstance(kept, Kept):
                continue
            try:
                if name != "weight_quant" and not kept.changes:
                    kept.qparams(torch.zeros(1))
                elif name == "weight_quant" and isinstance(getattr(layer, "weight", None), nn.Parameter):
                    _pack_weight(layer, kept)
            except (RuntimeError, ValueError):
                continue  # no state yet, or a shape or NaN that has no scale: the layer says so when it runs


def _pack_weight(layer: Any, kept: Kept) -> None:
    """Quantizes a weight in the form that its layer is going to ask for."""
    kept.qparams(layer.weight)
    q_x = getattr(layer, "input_quant", None)
    packed = kept.packed(None if q_x is None else q_x.quantizer, layer.weight)
    if isinstance(packed, PackedWeight) and packed.codes is not None and packed.ndim > 2:
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        if transposed or not gains(tuple(layer.weight.shape), layer.groups, layer.dilation):
            packed.centred()


def _warn(model: nn.Module) -> None:
    """Says what was written to and not looked at since."""
    names = [
        name
        for name, m in model.named_modules()
        if isinstance(kept := getattr(m, "kept", None), Kept) and kept.is_old()
    ]
    if names:
        warnings.warn(
            "in quant_inference_mode something was written to that these quantizers had kept results of, and no eager "
            f"call came after it: {', '.join(names)}. Programs compiled in the mode computed with what it was before",
            stacklevel=4,
        )
