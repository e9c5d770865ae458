"""Scales of activations from data, of layers and of functions: quantize, run some batches under `Calibration`, use.

`quantize` makes a model whose weights are quantized at once and whose activations wait for their scales. What is
quantized is a *site*: the output of a layer, the input of a layer that nothing before it quantized, and the result of
a function of torch (``sigmoid``, ``softmax``, ``log``, ``a @ b``, ...), called anywhere in the model, told apart by its
name and its turn in the forward pass. Sites give a `QuantTensor`, so layers and products contract codes, exactly.

A function that cannot leave a range, `core.calibration`, gets its scale from that range, without data. All others
are observed: the running average of the scales of the batches, ``momentum * old + (1 - momentum) * new``, the first one
copied. Streamlining then takes away sites whose codes nothing computes with.

Source of the flow: optimum-quanto's ``quantize`` and ``Calibration``, which look at modules only.
"""

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ...core.calibration import Site, site, table
from ...core.choice import check_number, fits
from ...core.descriptions import Quantizer
from ...core.granularity import PerTensor
from ...core.scales import ScaleSource
from ..nn.model import quantizable, quantize_model
from ..quant_tensor import QuantTensor
from ..tensor_quantizer import quantizer_of
from .sites import Follower, Functions, Sites, check_patterns, key_of
from .storing import check_floats

CONTRACTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NAME = "activation_sites"  # of the module that holds the quantizers, in the model


def quantize(
    model: nn.Module,
    weights: str | Quantizer = "int8_per_channel",
    activations: str | Quantizer | None = None,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> nn.Module:
    """Quantizes the weights of linear and convolution layers, in place, and prepares activations for `Calibration`.

    Args:
        model: in floating point; put into evaluation mode.
        weights: a catalog name or a `Quantizer`.
        activations: the same, of one scale for each tensor; None for float activations, which need no calibration.
        include, exclude: patterns of the names of layers, as `nn.quantize_model` takes them.
    Returns:
        The model.
    Raises:
        ValueError: a pattern that fits no layer, no layer at all, activations that have more than one scale or one that
            is no statistic, or a model that was quantized before. The model is then as it was.
        TypeError, KeyError: as `nn.quantize_model`.
    """
    if hasattr(model, NAME):
        raise ValueError("`model` was quantized before, and has sites of activations already")
    places = dict(quantizable(model))
    layers = {name: layer for name, layer in places.items() if type(layer) in CONTRACTIONS}
    check_patterns({"include": include, "exclude": exclude}, list(layers))
    wanted = [
        name for name in layers if any(fits(p, name) for p in include) and not any(fits(p, name) for p in exclude)
    ]
    if not wanted:
        raise ValueError(f"`model` must have a layer to quantize, one of {', '.join(k.__name__ for k in CONTRACTIONS)}")
    check_floats({name: layers[name] for name in wanted})
    q = None if activations is None else _of_activations(quantizer_of("activations", activations))
    rules: dict[str, Any] = {name: {"weight_quant": weights} if name in wanted else None for name in places}
    model = quantize_model(model, rules).eval()
    if q is not None:
        prepare_sites(model, wanted, q)
    return model


def _of_activations(q: Quantizer) -> Quantizer:
    if q.granularity != PerTensor() or q.scale.source is not ScaleSource.STATISTIC or q.learned_bits is not None:
        raise ValueError(f"`activations` must have one scale, a statistic, got {q.granularity}, {q.scale}")
    return q


def prepare_sites(model: nn.Module, names: Sequence[str], q: Quantizer) -> Sites:
    """Hooks at these layers, and around the forward pass of the model; its copies and pickles have them too."""
    sites = Sites(q)
    for name in names:
        layer = model.get_submodule(name)
        layer.register_forward_pre_hook(partial(_enter, sites, name), with_kwargs=True)
        layer.register_forward_hook(partial(_leave, sites, name), always_call=True)
    model.add_module(NAME, sites.eval())
    model.forward = partial(_forward, model)
    return sites


def _forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    sites = sites_of(model)
    if Calibration.active is not None:
        Calibration.active.adopt(model)
    elif not sites.calibrated:
        raise RuntimeError("calibration never run: call the model on some batches within `with Calibration():` first")
    sites.depth = 0  # whatever an exception in the call before left
    with Functions(sites):
        result = type(model).forward(model, *args, **kwargs)
    return _values(result)


def _values(result: Any) -> Any:
    """Outputs of the model as float tensors, alone or in a tuple or list."""
    if isinstance(result, QuantTensor):
        return result.dequantize()
    return type(result)(map(_values, result)) if type(result) in (tuple, list) else result


def _enter(sites: Sites, name: str, layer: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    x = args[0] if args else next(iter(kwargs.values()))  # these layers take one tensor
    if not isinstance(x, QuantTensor):
        x = sites.quantized(f"{name}.input", x)
    if sites.follower is not None:
        sites.follower.used(name, (x,), {}, as_codes=isinstance(x, QuantTensor))
    sites.depth += 1
    return (x,), {}


def _leave(sites: Sites, name: str, layer: nn.Module, args: tuple[Any, ...], result: Any) -> Any:
    sites.depth -= 1
    return sites.quantized(name, result)


class Calibration:
    """Within it, models made by `quantize` find the scales of their activations. Leaving it fixes them.

    ::

        quantize(model, weights="int8_per_channel", activations="int8_per_tensor")
        with Calibration() as calibration:
            for x in batches:
                model(x)
        print(calibration)

    Args:
        momentum: weight of the scale so far against that of a batch, in [0, 1).
        streamline: whether sites whose codes nothing computes with are taken away.
    Attributes:
        report: one `Site` for each, when it is over.
    Raises:
        ValueError: a momentum outside; when leaving, no model of `quantize` was run. RuntimeError: within another one.
            Leaving by an exception puts the sites back as they were.
    """

    active: "Calibration | None" = None

    def __init__(self, momentum: float = 0.9, streamline: bool = True) -> None:
        check_number("momentum", momentum)
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must lie in [0, 1), got {momentum}")
        self.momentum, self.streamline = momentum, streamline
        self.report: list[Site] = []
        self._models: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> "Calibration":
        if Calibration.active is not None:
            raise RuntimeError("a calibration is running already")
        Calibration.active = self
        return self

    def adopt(self, model: nn.Module) -> None:
        """Looks at a model of `quantize` from now on."""
        sites = sites_of(model)
        if sites.follower is not None:
            return
        state = {name: value.clone() for name, value in sites.state_dict().items()}
        self._models.append((model, dict(sites.quantizers.items()), state))
        sites.follower = follower = Follower(self.momentum)
        follower.around.append("")
        for name, module in list(model.named_modules())[1:]:
            self._hooks.append(module.register_forward_pre_hook(partial(_into, follower, name)))
            self._hooks.append(module.register_forward_hook(partial(_out_of, follower), always_call=True))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Calibration.active = None
        for hook in self._hooks:
            hook.remove()
        models, self._models, self._hooks = self._models, [], []
        for model, quantizers, state in models:
            sites = sites_of(model)
            follower, sites.follower, sites.depth = sites.follower, None, 0
            if error is None and follower is not None:
                self._finish(sites.eval(), follower)
            else:
                sites.quantizers = nn.ModuleDict(quantizers)
                sites.load_state_dict(state)
                sites.eval()
        if error is None and not models:
            raise ValueError("calibration never run: no model of `quantize` with activations ran within `Calibration`")

    def _finish(self, sites: Sites, follower: Follower) -> None:
        """Fixes the scales of a model, takes away what is not needed, and reports."""
        for name in follower.readers:
            key = key_of(name)
            quantizer: Any = sites.quantizers[key]
            kept = name in follower.needed or not self.streamline
            qparams = quantizer.qparams(torch.zeros(1))
            zero = None if qparams.zero_point is None else qparams.zero_point.item()
            readers = sorted(follower.readers[name])
            self.report.append(site(name, follower.where[name], qparams.scale.item(), zero, kept, readers))
            if not kept:
                sites.removed[key] = self.report[-1].reason
                del sites.quantizers[key]
        sites.calibrated = True

    def __str__(self) -> str:
        """The report as a table."""
        return table(self.report)


def sites_of(model: nn.Module) -> Sites:
    """The sites of activations of a model that `quantize` made."""
    sites: Sites = getattr(model, NAME)
    return sites


def _into(follower: Follower, name: str, module: nn.Module, args: Any) -> None:
    follower.around.append(name)


def _out_of(follower: Follower, module: nn.Module, args: Any, result: Any) -> None:
    follower.around.pop()
