"""Static quantization and quantization-aware training of flax nnx models, in the steps of ``torch.ao.quantization``.

    prepared = prepare(model, default_qconfig)     observers are put in
    prepared(batch)                                for some batches: the calibration
    converted = convert(prepared)                  integer weights, constant scales

What is observed and quantized is what ``nnx.Linear`` and two-dimensional ``nnx.Conv`` layers contract: the input and
the weight of each; and what passes a `QuantStub`. A converted model has the ``state_dict`` of its namesake in torch
(`interop`), and its bits. Calibrate op by op: a histogram needs values that are at hand.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from ...core.choice import fits
from ...core.descriptions import QParams, Quantizer
from ...core.observing import ObserverKind, QConfig
from ..interop import torch_path
from ..nn.attention import QuantProjection
from ..nn.conv import QuantConv, outputs_first
from ..nn.conv_transpose import QuantConvTranspose
from ..nn.embedding import QuantEmbed
from ..nn.given import CodedWeight, GivenQuantizer
from ..nn.linear import WEIGHT, QuantLinear
from ..quantizer import dequantize, quantize
from ..tensor_quantizer import TensorQuantizer
from ..variables import Given
from .observer_modules import ObserverModule
from .observers import observed_qparams
from .storing import check_floats

Array = jax.Array
QConfigs = QConfig | Mapping[str, QConfig | None] | None


class QuantStub(nnx.Module):
    """Where floats become quantized: the identity until a model is prepared.

    Args:
        qconfig: whose activation is observed here; without one that of the model.
    """

    def __init__(self, qconfig: QConfig | None = None) -> None:
        self.act_quant: Any = nnx.data(None)
        if qconfig is not None:
            self.qconfig = qconfig

    def __call__(self, x: Array) -> Array:
        """Any shape; same shape and dtype."""
        y: Array = x if self.act_quant is None else self.act_quant(x)
        return y


class DeQuantStub(nnx.Module):
    """Where quantized becomes floats: the identity, since there are floats between layers."""

    def __call__(self, x: Array) -> Array:
        """Any shape; same shape and dtype."""
        return x


class Site(NamedTuple):
    """A layer that is quantized."""

    name: str
    layer: nnx.Module
    qconfig: QConfig


def prepare(model: nnx.Module, qconfig: QConfigs = None, *, inplace: bool = False) -> nnx.Module:
    """Puts observers into a float model: run it on some batches then, and `convert` it.

    Args:
        qconfig: of all layers, or by patterns of names (``{"*": default_qconfig, "head": None}``): the last that fits
            counts, None leaves a layer as it is. Names are those of torch. A layer's attribute ``qconfig`` counts
            before all.
        inplace: whether the model is changed itself.
    Returns:
        The prepared model, whose outputs are those of ``model``.
    Raises:
        TypeError: no `QConfig`. ValueError: a model that is prepared, a pattern that fits no layer, a layer that is
            quantized already, or none to quantize. The model is then as it was. Warns of layers with a matrix that
            nothing quantizes.
    """
    return _prepared(model, qconfig, inplace, trains=False)


def prepare_qat(model: nnx.Module, qconfig: QConfigs = None, *, inplace: bool = False) -> nnx.Module:
    """Puts observers that quantize into a model: train it after ``model.train()``, then ``eval`` and `convert` it.

    Every array of training is observed, then quantized with what is known by then, with straight-through gradients. In
    evaluation nothing is observed any more. Arguments, result and errors as `prepare`.
    """
    return _prepared(model, qconfig, inplace, trains=True)


def quantize_prepared(model: nnx.Module) -> nnx.Module:
    """A calibrated model, from now on with quantization and without observing: the bits of the converted one.

    In place; returns the model. Raises:
        RuntimeError: layers that the calibration has never run, by name. ValueError: a model that is not prepared.
    """
    for observer in _fed(model):
        observer.observes, observer.quantizes = False, True
    return model


def calibrate_in_order(model: nnx.Module, batches: Iterable[Any]) -> nnx.Module:
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
    call: Any = model
    kept = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    observers = [part for _, part in named_modules(model) if isinstance(part, ObserverModule)]
    if not kept or not observers:
        raise ValueError("`batches` must hold one at least" if observers else "`model` must be prepared")
    for observer in observers:
        observer.observes, observer.quantizes, observer.place = True, False, 0
    call(*kept[0])
    for observer in observers:  # weights quantize from the start
        observer.observes, observer.quantizes = False, not observer.place
    for observer in sorted((one for one in observers if one.place), key=lambda one: one.place):
        observer.forget()
        observer.observes = True
        for batch in kept:
            call(*batch)
        observer.observes, observer.quantizes = False, True
    return quantize_prepared(model)


def convert(model: nnx.Module, *, inplace: bool = False) -> nnx.Module:
    """A prepared model as one with integer weights and constant scales, which contracts codes.

    Weights become their codes, in variables of the kind `Given`, under the same names.

    Args:
        inplace: whether the model is changed itself.
    Returns:
        The converted model: the bits of the prepared one while that quantizes.
    Raises:
        RuntimeError: layers that the calibration has never run, by name. ValueError: a model that is not prepared, or
            a weight with NaN or an infinity. The model is then as it was.
    """
    _fed(model)
    model = model if inplace else nnx.clone(model)
    changes: list[tuple[Any, dict[str, Any]]] = []
    for name, part in named_modules(model):
        held = {role: one for role, one in vars(part).items() if isinstance(one, ObserverModule)}
        if not held:
            continue
        try:
            changes.append((part, {k: v for role, one in held.items() for k, v in _constant(part, role, one).items()}))
        except ValueError as error:
            raise ValueError(f"'{name}': {error.args[0]}") from error
    for part, attributes in changes:
        for attribute, value in attributes.items():
            setattr(part, attribute, nnx.data(value))
    return model


def _prepared(model: nnx.Module, qconfig: QConfigs, inplace: bool, *, trains: bool) -> nnx.Module:
    if any(isinstance(part, ObserverModule) for _, part in named_modules(model)):
        raise ValueError("`model` must not be prepared yet: there are observers in it")
    model = model if inplace else nnx.clone(model)
    return swapped(model, {id(site.layer): _observed(site, trains) for site in _sites(model, qconfig)})


def swapped(model: nnx.Module, swaps: Mapping[int, Any]) -> nnx.Module:
    """The model with modules, by their ``id``, replaced by others, in place; what it becomes, if it is one itself."""
    for _, part in list(named_modules(model)):
        for attribute, value in list(vars(part).items()):
            if id(value) in swaps:
                setattr(part, attribute, nnx.data(swaps[id(value)]))
    whole: nnx.Module = swaps.get(id(model), model)
    return whole


def named_modules(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """All modules with their names in torch, those around before those inside."""
    for path, part in sorted(nnx.iter_modules(model), key=lambda found: len(found[0])):
        yield ".".join(torch_path(model, path)), part


def _sites(model: nnx.Module, qconfig: QConfigs) -> list[Site]:
    """The layers that have a `QConfig`."""
    patterns: Mapping[str, Any] = qconfig if isinstance(qconfig, Mapping) else {"*": qconfig}
    found, others, names = [], [], []
    for name, part in named_modules(model):
        inside = any(isinstance(value, nnx.Module) for value in vars(part).values())
        if inside:
            continue
        names.append(name)
        fitting = [value for pattern, value in patterns.items() if pattern == "*" or fits(pattern, name)]
        chosen = vars(part).get("qconfig", fitting[-1] if fitting else None)
        if chosen is not None and not isinstance(chosen, QConfig):
            raise TypeError(f"'{name}': its qconfig must be a QConfig of samebits or None, got {chosen!r}")
        if chosen is not None:
            check_floats({name: part})
        if chosen is not None and _is_site(part):
            found.append(Site(name, part, chosen))
        elif chosen is not None and any(isinstance(v, nnx.Param) and v[...].ndim > 1 for v in vars(part).values()):
            others.append(f"'{name}' ({type(part).__name__})")
    for pattern in patterns:
        if pattern != "*" and not any(fits(pattern, name) for name in names):
            raise ValueError(f"the pattern '{pattern}' fits no layer; layers are {', '.join(names) or 'none'}")
    if not found:
        shown = ", ".join(names) or "none"
        raise ValueError(
            "`model` has no layer to quantize: of nnx.Linear, two-dimensional nnx.Conv and QuantStub none has a "
            f"qconfig; layers are {shown}"
        )
    if others:
        warnings.warn(f"left as they are, since nothing quantizes their kind: {', '.join(others)}", stacklevel=4)
    return found


def _is_site(part: Any) -> bool:
    """Whether a layer is one of those that are quantized, exactly."""
    if type(part) is nnx.Conv:
        plain = {part.feature_group_count, *_ones(part.kernel_dilation), *_ones(part.input_dilation)} == {1}
        return plain and len(part.kernel_size) == 2 and part.mask is None
    return type(part) in (nnx.Linear, QuantStub)


def _ones(sizes: Any) -> tuple[int, ...]:
    return (1,) if sizes is None else (sizes,) if isinstance(sizes, int) else tuple(sizes)


def _observed(site: Site, trains: bool) -> Any:
    """The layer with observers, and the same variables."""
    layer: Any = site.layer
    qconfig = site.qconfig
    of_x: Any = qconfig.activation
    watching = None if of_x is None else ObserverModule(of_x, trains=trains)
    if isinstance(layer, QuantStub):
        stub = QuantStub(qconfig)
        stub.act_quant = nnx.data(watching)
        return stub
    options: Any = {"use_bias": False, "rngs": nnx.Rngs(0), "weight_quant": None}
    if isinstance(layer, nnx.Conv):
        size: Any = tuple(layer.kernel_size)
        options |= {"strides": layer.strides or 1, "padding": layer.padding}
        new: Any = QuantConv(layer.in_features, layer.out_features, size, **options)
    else:
        new = QuantLinear(layer.in_features, layer.out_features, **options)
    for name in ("use_bias", "dtype", "param_dtype", "promote_dtype"):
        setattr(new, name, getattr(layer, name))
    new.kernel, new.bias = nnx.data(layer.kernel), nnx.data(layer.bias)
    of_w: Any = qconfig.weight
    new.input_quant = nnx.data(watching)
    new.weight_quant = nnx.data(None if of_w is None else ObserverModule(of_w, trains=trains, fresh=not trains))
    return new


def _fed(model: nnx.Module) -> list[ObserverModule]:
    """All observers. ValueError where nothing was prepared, RuntimeError where a calibration has not been."""
    found = {name: part for name, part in named_modules(model) if isinstance(part, ObserverModule)}
    if not found:
        raise ValueError("`model` must be prepared: there are no observers in it; call prepare or prepare_qat")
    unfed = [name for name, part in found.items() if not part.is_fed()]
    if unfed:
        raise RuntimeError(
            f"calibration never run: {', '.join(unfed)} saw no array; run the prepared model on some batches before"
        )
    return list(found.values())


def _constant(layer: Any, role: str, held: ObserverModule) -> dict[str, Any]:
    """A constant quantizer for an observer; of a weight with its codes. Attributes of the layer."""
    q = held.observer.quantizer
    if role != "weight_quant":
        placeholder = held.observer.kind is ObserverKind.PLACEHOLDER
        made = TensorQuantizer(q) if placeholder else GivenQuantizer(q, observed_qparams(held.observer, held.state))
        return {role: made}
    axes = outputs_first(2) if isinstance(layer, nnx.Conv) else WEIGHT
    return weight_as_codes(layer, q, held.qparams(layer.kernel[...], True, axes))


LAID_BACK: dict[type[nnx.Module], Callable[[Any, Array], Array]] = {  # from the layout that quantizers see
    QuantLinear: lambda layer, codes: codes.transpose(np.argsort(WEIGHT)),
    QuantConv: lambda layer, codes: codes.transpose(np.argsort(outputs_first(len(layer.steps)))),
    QuantConvTranspose: lambda layer, codes: layer.turned(codes.transpose(np.argsort(outputs_first(len(layer.steps))))),
    QuantEmbed: lambda layer, codes: codes,
    QuantProjection: lambda layer, codes: codes.transpose(np.argsort(WEIGHT)).reshape(layer.kernel.shape),
}


def weight_as_codes(layer: Any, q: Quantizer, qparams: QParams) -> dict[str, Any]:
    """The weight of a layer as codes, and what quantizes it then: attributes, by name, that make it such a layer.

    Args:
        layer: one of `LAID_BACK`; ``qparams``: for its property ``weight``.
    Raises:
        ValueError: NaN or an infinity, or values that the dtype of the weight keeps so coarsely that other codes are
            closer to them.
    """
    weight = layer.weight
    codes = quantize(q, weight, qparams)
    if weight.dtype.itemsize < 4 and bool(
        (quantize(q, dequantize(q, codes, qparams, weight.dtype), qparams) != codes).any()
    ):
        raise ValueError(f"`kernel` has a dtype, {weight.dtype.name}, too coarse for codes of {q.format}")
    stored = LAID_BACK[type(layer)](layer, codes)
    name = "embedding" if isinstance(layer, nnx.Embed) else "kernel"
    return {name: Given(stored), "weight_quant": CodedWeight(q, qparams, weight.dtype)}
