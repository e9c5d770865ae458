"""Static quantization and quantization-aware training in the steps of ``torch.ao.quantization``.

    prepared = prepare(model.eval(), default_qconfig)     observers are put in
    prepared(batch)                                       for some batches: the calibration
    converted = convert(prepared)                         integer weights, constant scales

What is observed and quantized is what layers contract: the input and the weight of each; and what passes a `QuantStub`.
Between layers there are floats. A prepared model that quantizes (`quantize_prepared`) contracts codes already, and
gives the bits of the converted one.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerAxis
from ...core.observing import Observer, ObserverKind, QConfig
from ..nn import attention, conv, conv_transpose, linear
from ..nn.batch_norm import FoldedBatchNorm
from ..nn.given import CodedWeight, GivenQuantizer
from ..nn.layer import adopted, channel_axis, unlearned
from ..nn.model import KINDS, use_layers
from ..quantizer import quantize
from ..tensor_quantizer import TensorQuantizer
from .observer_modules import ObserverModule, disable_observer, enable_fake_quant
from .observers import observed_qparams
from .plan import QConfigs, Site, sites


class QuantStub(nn.Module):
    """Where floats become quantized: the identity until a model is prepared.

    Args:
        qconfig: whose activation is observed here; without one that of the model.
    """

    act_quant: nn.Module | None

    def __init__(self, qconfig: QConfig | None = None) -> None:
        super().__init__()
        self.act_quant = None
        if qconfig is not None:
            self.qconfig = qconfig

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        y: Tensor = x if self.act_quant is None else self.act_quant(x)
        return y


class DeQuantStub(nn.Module):
    """Where quantized becomes floats: the identity, since there are floats between layers."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        return x


CONTRACTING = tuple(
    kind
    for kind, of in KINDS.items()
    if of.layer.__module__ in (linear.__name__, conv.__name__, conv_transpose.__name__)
)
ATTENTION = nn.MultiheadAttention
SITES = (*CONTRACTING, ATTENTION, QuantStub)
PRODUCTS = ("query", "key", "value", "attention")
SEEN = "of linear layers, convolutions, nn.MultiheadAttention and QuantStub none has a qconfig"


def prepare(model: nn.Module, qconfig: QConfigs = None, *, inplace: bool = False) -> nn.Module:
    """Puts observers into a float model in evaluation: run it on some batches then, and `convert` it.

    Args:
        qconfig: of all layers, or by patterns of names (``{"*": default_qconfig, "head": None}``), in which None leaves
            a layer as it is; without one the attribute ``qconfig`` of modules counts, as `plan.sites` says.
        inplace: whether the model is changed itself.
    Returns:
        The prepared model, whose outputs are those of ``model``.
    Raises:
        ValueError: a model in training, one that is prepared, no layer to quantize, and as `plan.sites`. The model is
            then as it was.
    """
    if model.training:
        raise ValueError("`model` must be in evaluation to be calibrated: call model.eval(), or prepare_qat to train")
    return _prepared(model, qconfig, inplace, trains=False)


def prepare_qat(model: nn.Module, qconfig: QConfigs = None, *, inplace: bool = False) -> nn.Module:
    """Puts observers that quantize into a model in training: train it then, and `convert` it in evaluation.

    Every tensor of training is observed, then quantized with what is known by then, with straight-through gradients. In
    evaluation nothing is observed any more. Arguments, result and errors as `prepare`, for a model in training.
    """
    if not model.training:
        raise ValueError("`model` must be in training: call model.train(), or prepare to calibrate it")
    return _prepared(model, qconfig, inplace, trains=True)


def quantize_prepared(model: nn.Module) -> nn.Module:
    """A calibrated model, from now on with quantization and without observing: the bits of the converted one.

    In place; returns the model. Raises:
        RuntimeError: layers that the calibration has never run, by name. ValueError: a model that is not prepared.
    """
    _check_fed(model)
    model.apply(disable_observer)
    return model.apply(enable_fake_quant)


def calibrate_in_order(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Calibrates a prepared model, each observer when those before it quantize already; then `quantize_prepared`.

    So later layers are calibrated on what they will see. And scales are the same bits in both frameworks as far as
    what is between layers is: floats before it depend on the order of sums. It takes a run over all batches for each
    observer.

    Args:
        batches: what the model takes, a tuple for several arguments; all are kept.
    Returns:
        The model.
    Raises:
        ValueError: a model that is not prepared, no batch, or as `observe`. RuntimeError: as `quantize_prepared`.
    """
    kept = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    observers = [part for part in model.modules() if isinstance(part, ObserverModule)]
    if not kept or not observers:
        raise ValueError("`batches` must hold one at least" if observers else "`model` must be prepared")
    for observer in observers:
        observer.observes, observer.quantizes, observer.place = True, False, 0
    with torch.no_grad():
        model(*kept[0])
        for observer in observers:  # weights quantize from the start
            observer.observes, observer.quantizes = False, not observer.place
        for observer in sorted((one for one in observers if one.place), key=lambda one: one.place):
            observer.forget()
            observer.observes = True
            for batch in kept:
                model(*batch)
            observer.observes, observer.quantizes = False, True
    return quantize_prepared(model)


def convert(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """A prepared model as one with integer weights and constant scales, which contracts codes.

    Weights become their codes, under the same names in a ``state_dict``, with ``weight_quant.scale`` beside.

    Args:
        inplace: whether the model is changed itself.
    Returns:
        The converted model: the bits of the prepared one while that quantizes (`quantize_prepared`, or in evaluation
        after training).
    Raises:
        RuntimeError: layers that the calibration has never run, by name. ValueError: a model that is not prepared, or
            a weight with NaN or an infinity. The model is then as it was.
    """
    _check_fed(model)
    model = model if inplace else copy.deepcopy(model)
    swaps: dict[int, nn.Module] = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if id(module) in swaps:
                continue
            try:
                if isinstance(module, FoldedBatchNorm) and _is_prepared(module.layer):
                    swaps[id(module)] = _converted(module.folded())
                elif _is_prepared(module):
                    swaps.setdefault(id(module), _converted(module))
            except ValueError as error:
                raise ValueError(f"'{name}': {error.args[0]}") from error
    return _swapped(model, swaps)


def _prepared(model: nn.Module, qconfig: QConfigs, inplace: bool, *, trains: bool) -> nn.Module:
    if any(isinstance(part, ObserverModule) for part in model.modules()):
        raise ValueError("`model` must not be prepared yet: there are observers in it")
    model = model if inplace else copy.deepcopy(model)
    swaps: dict[int, nn.Module] = {}
    for site in sites(model, qconfig, SITES, SEEN):
        try:
            swaps[id(site.layer)] = _observed(site, trains)
        except (TypeError, ValueError) as error:
            raise type(error)(f"'{site.name}': {error.args[0]}") from error
    model = _swapped(model, swaps)
    for part in model.modules():
        if isinstance(part, nn.TransformerEncoder | nn.TransformerEncoderLayer):
            use_layers(part)
    return model


def _swapped(model: nn.Module, swaps: dict[int, nn.Module]) -> nn.Module:
    """The model with some modules replaced by others, inside of these too."""
    for module in [*model.modules(), *(part for new in swaps.values() for part in new.modules())]:
        for child, old in module._modules.items():
            if old is not None and id(old) in swaps:
                module._modules[child] = swaps[id(old)]
    return swaps.get(id(model), model)


def _observed(site: Site, trains: bool) -> nn.Module:
    """The layer with observers, and the same parameters."""
    layer, qconfig = site.layer, site.qconfig

    def activation() -> ObserverModule | None:
        of: Any = qconfig.activation
        return None if of is None else ObserverModule(of, trains=trains)

    if isinstance(layer, QuantStub):
        stub = adopted(QuantStub, layer)
        stub.act_quant = activation()
        return stub
    kind = KINDS[type(layer)]
    new: Any = adopted(kind.layer, layer)
    if isinstance(layer, ATTENTION):
        nothing = dict.fromkeys(("weight", "bias", "input", "context", "output", "softmax", *PRODUCTS))
        attention.hold_attention(new, {}, **nothing)
        names = [name for name, _ in new.named_parameters(recurse=False) if name.endswith("proj_weight")]
        each = {name: _of_weight(qconfig.weight, 0, trains) for name in names}
        new.weight_quant = None if qconfig.weight is None else nn.ModuleDict(each)  # type: ignore[arg-type]
        new.out_proj.input_quant = activation()
        new.out_proj.weight_quant = _of_weight(qconfig.weight, 0, trains)
        for role in ("input", *PRODUCTS):
            setattr(new, f"{role}_quant", activation())
    else:
        kind.hold(new, {}, weight=None, bias=None, input=None, output=None)
        if kind.check is not None:
            kind.check(new)
        new.input_quant = activation()
        new.weight_quant = _of_weight(qconfig.weight, channel_axis(new), trains)
    made: nn.Module = new.train(layer.training)
    return made


def _of_weight(observer: Any, axis: int, trains: bool) -> ObserverModule | None:
    """What observes a weight, per channel of the outputs, whose axis this is."""
    if observer is None:
        return None
    per_channel = isinstance(observer.quantizer.granularity, PerAxis)
    own: Observer = observer.replace(granularity=PerAxis(axis)) if per_channel else observer
    return ObserverModule(own, trains=trains, fresh=not trains)


def _is_prepared(module: nn.Module) -> bool:
    """Whether a module holds observers itself, one for each tensor or several weights."""
    return not isinstance(module, nn.ModuleDict) and any(
        isinstance(part, ObserverModule)
        for child in module.children()
        for part in (child, *(child.children() if isinstance(child, nn.ModuleDict) else ()))
    )


def _check_fed(model: nn.Module) -> None:
    """ValueError where nothing was prepared, RuntimeError where a calibration has not been, both by name."""
    found = {name: part for name, part in model.named_modules() if isinstance(part, ObserverModule)}
    if not found:
        raise ValueError("`model` must be prepared: there are no observers in it; call prepare or prepare_qat")
    unfed = [name for name, part in found.items() if not part.is_fed()]
    if unfed:
        raise RuntimeError(
            f"calibration never run: {', '.join(unfed)} saw no tensor; run the prepared model on some batches before"
        )


def _converted(layer: Any) -> nn.Module:
    """A prepared layer with constant quantizers, and codes in the place of weights."""
    new: Any = adopted(type(layer), layer)
    for child, held in layer._modules.items():
        if isinstance(held, ObserverModule):
            weight = "weight" if child == "weight_quant" else None
            new._modules[child] = _constant(new, held, weight)
        elif isinstance(held, nn.ModuleDict):
            each = {name: _constant(new, one, name) for name, one in held.items()}
            new._modules[child] = nn.ModuleDict(each)
    made: nn.Module = new
    return made


def _constant(layer: Any, held: Any, weight: str | None) -> nn.Module:
    """A constant quantizer for an observer; of a weight, whose codes the layer gets."""
    if weight is None:
        if held.observer.kind is ObserverKind.PLACEHOLDER:
            return TensorQuantizer(held.observer.quantizer)
        return GivenQuantizer(held.observer.quantizer, observed_qparams(held.observer, held.state))
    floats = getattr(layer, weight)
    with unlearned(held):
        qparams = held.qparams(floats)
    return coded_weight(layer, weight, held.observer.quantizer, qparams)


def coded_weight(layer: nn.Module, name: str, q: Quantizer, qparams: QParams) -> CodedWeight:
    """Makes codes of a weight of a layer, under its name, and returns what the layer holds for them."""
    floats = getattr(layer, name)
    codes = quantize(q, floats, qparams)
    layer.register_parameter(name, nn.Parameter(codes, requires_grad=False))
    return CodedWeight(q, qparams, floats.dtype)
