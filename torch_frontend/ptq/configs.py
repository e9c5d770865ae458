"""Quantizing the weights of a torch model in place, by `samebits.core.configs`."""

from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ...core import checks
from ...core.configs import Config, ModuleConfigs, check_weight, checked, chosen, quantized_already
from ..arrays import dtype_name
from . import weight_operators as weight_operators
from .quant_weight import QuantWeight, quant_weight

Filter = Callable[[nn.Module, str], bool]


def is_linear(module: nn.Module, name: str) -> bool:
    """The filter that `quantize_` has by default: an ``nn.Linear`` whose weight is a float tensor.

    Not one that torch says must not be quantized so (the last one of ``nn.MultiheadAttention``), as in torchao.
    """
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, nn.Parameter) and not isinstance(weight, QuantWeight)
    linear = isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    return linear and plain and not hasattr(module, "weight_quant")


def quantize_(model: nn.Module, config: Config | ModuleConfigs, filter_fn: Filter | None = None) -> None:
    """Makes the weights of layers `QuantWeight`; everything else of the model stays. In place.

    The model is as it was if anything raises. A weight that several layers share stays shared where they get the same
    config.

    Args:
        config: of all of these layers, or by their names.
        filter_fn: which modules, by themselves and their names in the model; None for `is_linear`. What lies inside a
            module that it takes is not asked about.
    Raises:
        TypeError: what is no config. ValueError: no layer that the filter takes, a name or pattern in ``config`` that
            no such layer has, or a layer that cannot be quantized so: without a float weight, with one quantized
            already, with a number of inputs that its group size does not divide, or with NaN or infinities. The layer
            is named.
    """
    layers = dict(taken(model, is_linear if filter_fn is None else filter_fn))
    configs = chosen(config, layers)
    for name, own in configs.items():
        check_weight(name, own.weight, tuple(_weight(name, layers[name]).shape))
    made: dict[tuple[int, Config], nn.Parameter] = {}
    for name, own in configs.items():
        w = _weight(name, layers[name])
        if (id(w), own) not in made:
            made[id(w), own] = checked(name, lambda own=own, w=w: _quantized(own, w))  # type: ignore[misc]
    for name, own in configs.items():
        layer = layers[name]
        layer._parameters["weight"] = made[id(_weight(name, layer)), own]


def _quantized(config: Config, w: Tensor) -> nn.Parameter:
    """The parameter that takes the place of a weight. TypeError, ValueError: as `quant_weight`."""
    weight = quant_weight(config.weight, w, None, config.act_quant, config.layout)
    return nn.Parameter(weight, requires_grad=False)


def model_size(model: nn.Module) -> int:
    """Bytes of the parameters of a model, each once: of a `QuantWeight` those of its codes, scales and zero points."""
    parts = {id(part): part for p in model.parameters() for part in _parts(p)}
    return sum(part.numel() * part.element_size() for part in parts.values())


def _parts(p: Tensor) -> list[Tensor]:
    if not isinstance(p, QuantWeight):
        return [p]
    return [part for part in (p.codes, p.scale, p.zero_point) if part is not None]


def taken(module: nn.Module, takes: Filter, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that a filter takes, each once, with their names."""
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        if takes(module, name):
            yield name, module
            return
        for child_name, child in module.named_children():
            yield from walk(child, f"{name}.{child_name}" if name else child_name)

    yield from walk(module, name)


def _weight(name: str, layer: nn.Module) -> Tensor:
    w = layer._parameters.get("weight")
    if isinstance(w, QuantWeight):
        raise quantized_already(name, w)
    if isinstance(w, nn.parameter.UninitializedParameter):
        raise ValueError(f"layer '{name}' ({type(layer).__name__}) has no weight yet: call the model once before")
    if w is None or dtype_name(w.dtype) not in checks.FLOATS or not w.ndim:
        got = "none" if w is None else f"{dtype_name(w.dtype)} {tuple(w.shape)}"
        raise ValueError(f"layer '{name}' ({type(layer).__name__}) must have a floating-point `weight`, got {got}")
    return w
