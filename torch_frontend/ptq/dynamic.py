"""Dynamic quantization, as torch's ``quantize_dynamic``: integer weights, inputs quantized at each call."""

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.observing import Observer, ObserverKind, QConfig, default_dynamic_qconfig
from ..nn.layer import adopted
from ..nn.model import KINDS
from ..tensor_quantizer import TensorQuantizer
from .observer_modules import ObserverModule
from .plan import Site, sites
from .static import coded_weight

USUAL = (nn.Linear, nn.LSTM, nn.RNN)
Spec = Iterable[type[nn.Module] | str] | Mapping[type[nn.Module] | str, QConfig | None] | None


class HalfLinear(nn.Linear):
    """A linear layer whose weight is float16, and computed with in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``, dtype of ``x``."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def quantize_dynamic(
    model: nn.Module, qconfig_spec: Spec = None, dtype: torch.dtype = torch.qint8, *, inplace: bool = False
) -> nn.Module:
    """A float model whose linear and recurrent layers have integer weights and quantize their inputs at each call.

    Weights are int8 of one scale, symmetric. Inputs are 7-bit integers with a scale and a zero point for each call, by
    the rule of ``torch.quantize_per_tensor_dynamic``. Codes are contracted, as `samebits.core.matmul.linear` states;
    torch's own kernel rounds results differently in last digits. Of a recurrent layer the inputs are a sequence and,
    at each step, the state.

    Args:
        qconfig_spec: kinds of layers, or names of layers, that are quantized; or these with a `QConfig` of their own,
            whose activation is a placeholder, and None for a layer that stays. None for `USUAL`.
        dtype: ``torch.qint8``, or ``torch.float16``: weights of linear layers alone are rounded, those beyond its
            range to its largest numbers.
        inplace: whether the model is changed itself.
    Returns:
        The model.
    Raises:
        TypeError: a spec of other things. ValueError: another dtype, a kind that nothing quantizes, an activation that
            is no placeholder, or no layer to quantize. The model is then as it was.
    """
    if dtype not in (torch.qint8, torch.float16):
        raise ValueError(f"`dtype` must be torch.qint8 or torch.float16, got {dtype}")
    usual = (nn.Linear,) if dtype == torch.float16 else USUAL
    given = _spec(usual if qconfig_spec is None else qconfig_spec, usual)
    kinds = tuple({kind for kind in given if isinstance(kind, type)} | (set(usual) if _has_names(given) else set()))
    names = {name: qconfig for name, qconfig in given.items() if isinstance(name, str)}
    model = model if inplace else copy.deepcopy(model)
    swaps: dict[int, nn.Module] = {}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # layers of other kinds were not asked for
        patterns = {"*": default_dynamic_qconfig, **names} if len(names) < len(given) else names
        for site in sites(model, patterns, kinds, f"there are none of {', '.join(kind.__name__ for kind in kinds)}"):
            of_kind = given.get(type(site.layer), site.qconfig)
            chosen = names.get(site.name, of_kind)
            if chosen is not None:
                swaps[id(site.layer)] = _half(site.layer) if dtype == torch.float16 else _dynamic(site, chosen)
    for module in list(model.modules()):
        for child, old in module._modules.items():
            if old is not None and id(old) in swaps:
                module._modules[child] = swaps[id(old)]
    return swaps.get(id(model), model)


def _spec(spec: Any, usual: tuple[type[nn.Module], ...]) -> dict[type[nn.Module] | str, QConfig | None]:
    pairs = spec.items() if isinstance(spec, Mapping) else ((one, default_dynamic_qconfig) for one in spec)
    found = dict(pairs)
    for key, qconfig in found.items():
        if not isinstance(key, str | type):
            raise TypeError(f"`qconfig_spec` must hold kinds of layers and names, got {key!r}")
        if isinstance(key, type) and key not in usual:
            names = ", ".join(kind.__name__ for kind in usual)
            raise ValueError(f"`qconfig_spec`: nothing quantizes {key.__name__}; kinds are {names}")
        activation: Any = None if qconfig is None else qconfig.activation
        if activation is not None and activation.kind is not ObserverKind.PLACEHOLDER:
            raise ValueError(f"`activation` of a dynamic qconfig must be a 'placeholder', got '{activation.kind}'")
    return found


def _has_names(spec: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) for key in spec)


def _dynamic(site: Site, qconfig: QConfig) -> nn.Module:
    kind = KINDS[type(site.layer)]
    new: Any = adopted(kind.layer, site.layer)
    kind.hold(new, {}, **dict.fromkeys(kind.roles))
    activation: Any = qconfig.activation
    for role in ("input", "hidden"):
        if role in kind.roles and activation is not None:
            setattr(new, f"{role}_quant", TensorQuantizer(activation.quantizer))
    weights = [name for name, p in new.named_parameters(recurse=False) if p.ndim > 1]
    of_w: Any = qconfig.weight
    if of_w is not None:
        held = {name: _coded(new, name, of_w) for name in weights}
        new.weight_quant = held["weight"] if weights == ["weight"] else nn.ModuleDict(held)
    return new.train(site.layer.training)  # type: ignore[no-any-return]


def _coded(layer: Any, name: str, observer: Observer) -> nn.Module:
    qparams = ObserverModule(observer, fresh=True).qparams(getattr(layer, name))
    return coded_weight(layer, name, observer.quantizer, qparams)


def _half(layer: Any) -> nn.Module:
    new = adopted(HalfLinear, layer)
    most = torch.finfo(torch.float16).max
    new.weight = nn.Parameter(layer.weight.clamp(-most, most).to(torch.float16), requires_grad=False)
    return new
