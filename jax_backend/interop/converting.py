"""Models of torch as flax models, and back, by the table of `pairs`."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import numpy as np
import torch
from flax import nnx
from torch import nn

from ...torch_frontend.nn import PrototypeQuantizer as TorchPrototype
from ...torch_frontend.nn import TensorQuantizer as TorchQuantizer
from ..bias_quantizer import BiasQuantizer
from ..prototype_quantizer import PrototypeQuantizer
from ..tensor_quantizer import TensorQuantizer
from .layouts import Path, Place, chains, described, parts_of, places
from .modules import Embed, Sequential
from .pairs import Pair, of_flax, of_torch
from .state import COUNTER, load_state_dict, state_dict
from .tensors import numpy_to_tensor, tensor_to_numpy
from .translation import ANY, Arguments, Axes, Refused, require

Builders = Mapping[Any, Callable[[Any], Any]]
OWN = "has a forward of its own: write its counterpart, and give `modules={%s: builder}` or use `load_state_dict`"


def to_flax(
    model: nn.Module,
    *,
    modules: Mapping[type[nn.Module], Callable[[Any], Any]] | None = None,
    rngs: nnx.Rngs | None = None,
) -> Any:
    """A torch model of the layers in `pairs` as a flax nnx model, with its weights and in its mode.

    Containers become ``nnx.Sequential``, ``nnx.List`` and ``nnx.Dict``; a ``Sequential`` whose parts have names becomes
    `modules.Sequential`, so that names in a ``state_dict`` stay. Images come with channels last. Layers and quantizers
    that are shared stay shared. Functions such as ``jax.nn.relu`` stand for activations and pooling.

    Args:
        model: of layers in `pairs` and containers; float32, bfloat16, float16, or float64 under ``jax_enable_x64``.
        modules: for other classes: what makes an nnx module of one, with any weights. Weights are set by their names in
            the ``state_dict`` of the model, as `load_state_dict` does.
        rngs: what dropout draws from; None for ``nnx.Rngs(0)``. It draws other elements than torch.
    Returns:
        An nnx module, or a function for a single layer that is one.
    Raises:
        TypeError: no torch module; or layers that have no counterpart, all of them, with path, class and reason.
        ValueError, TypeError: weights that do not fit what ``modules`` made, as `load_state_dict`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {model!r}")
    making = _ToFlax(modules or {}, nnx.Rngs(0) if rngs is None else rngs)
    found = making.assemble(model, _tied_in_torch(model))
    for theirs, ours in reversed(making.made):
        if isinstance(ours, nnx.Module):
            (ours.train if theirs.training else ours.eval)()  # type: ignore[no-untyped-call]
    if isinstance(found, nnx.Module):
        tensors, held = model.state_dict(keep_vars=True), state_dict(found)
        taken = {id(tensors[name]) for name in held if name in tensors}
        known = {n: tensor_to_numpy(t) for n, t in tensors.items() if n in held or not _is_spare(n, t, taken)}
        load_state_dict(found, known)
    return found


def to_torch(model: Any, *, modules: Mapping[Any, Callable[[Any], nn.Module]] | None = None) -> nn.Module:
    """A flax nnx model of the layers and functions in `pairs` as a torch model, with its weights and in its mode.

    The inverse of `to_flax`. Images come with channels first. Of ``nnx.BatchNorm``, which keeps the variance of n
    where torch keeps that of n - 1, the statistics are taken as they are.

    Args:
        model: an ``nnx.Module`` of layers in `pairs` and containers, or one of their functions.
        modules: for other classes of modules, and other functions: what makes a torch module of one, with any weights.
    Raises:
        TypeError: layers that have no counterpart, all of them, with path, class and reason.
        ValueError: weights that do not fit what ``modules`` made.
    """
    making = _ToTorch(modules or {})
    with torch.random.fork_rng(devices=[]):  # weights to begin with are not wanted
        found: nn.Module = making.assemble(model, _tied_in_flax(model))
    if isinstance(model, nnx.Module):
        _load(found, state_dict(model))
    modes = [(theirs, _mode(ours)) for ours, theirs in reversed(making.made)]
    known = [training for _, training in modes if training is not None]
    found.train(any(known) if known else True)
    for theirs, training in modes:
        if training is not None:
            theirs.train(training)
    return found


class _Making(ABC):
    """A conversion: what was made so far, and what was refused."""

    to = ""

    def __init__(self, builders: Builders) -> None:
        self.builders = builders
        self.made: list[tuple[Any, Any]] = []  # layer, quantizer and its counterpart
        self.kept: dict[tuple[int, Axes], Any] = {}

    def assemble(self, model: Any, tied: Mapping[Path, str]) -> Any:
        """The counterpart of a model; TypeError for what has none."""
        parts: dict[Path, Any] = {}
        refused: list[str] = []
        for place in (place for chain in chains(model) for place in places(chain, self.allowed)):
            try:
                require(place.path not in tied, tied.get(place.path, ""))
                parts[place.path] = self.layer(place)
            except Refused as error:
                name = ".".join(place.path) or "the model"
                refused.append(f"`{name}` ({_name(place.layer)}): {error}")
        if refused:
            raise TypeError(f"no {self.to} counterpart of {len(refused)} of the layers: {'; '.join(refused)}")
        return self.joined(model, (), parts)

    def layer(self, place: Place) -> Any:
        """The counterpart of a layer, the same for a layer that is met again."""
        _, layer, axes = place
        if not axes:
            wanted = self.allowed(layer) or ANY
            raise Refused(f"is for {described(wanted)}, the layers before it are not")
        key = id(layer), axes
        if key not in self.kept:
            self.kept[key] = self.build(layer, axes)
            self.made.append((layer, self.kept[key]))
        return self.kept[key]

    @abstractmethod
    def build(self, layer: Any, axes: Axes) -> Any:
        """The counterpart of a layer, made."""

    @abstractmethod
    def allowed(self, layer: Any) -> Axes | None:
        """How many axes images may have where a layer stands; None for what has no counterpart."""

    @abstractmethod
    def joined(self, module: Any, path: Path, parts: Mapping[Path, Any]) -> Any:
        """The counterpart of a module, whose parts are made."""

    def quantizers(self, layer: Any, theirs: type[Any], weight: tuple[int, ...] | None) -> Arguments:
        """Arguments ``*_quant`` of a layer's counterpart."""
        asked = [name for name in _parameters(type(layer)) if name.endswith("_quant")]
        found = {}
        for name in asked:
            held = getattr(layer, name, None)
            taken = name in _parameters(theirs)
            require(held is None or taken, f"{name}; {_name(theirs)} has none")
            if taken:
                found[name] = (
                    None if held is None else self.quantizer(name, held, weight if name == "weight_quant" else None)
                )
        return found

    def quantizer(self, name: str, held: Any, shape: tuple[int, ...] | None) -> Any:
        """The counterpart of a quantizer, the same for one that is shared."""
        if type(held) is (TorchPrototype if self.to == "flax" else PrototypeQuantizer):
            return self.prototype(held)
        in_flax = BiasQuantizer if name == "bias_quant" else TensorQuantizer
        ours, theirs = (TorchQuantizer, in_flax) if self.to == "flax" else (in_flax, TorchQuantizer)
        require(type(held) is ours, f"`{name}` is a {_name(held)}; {_name(theirs)} has no such partner")
        if in_flax is BiasQuantizer:  # which has no state, and is made by the layer
            return held.quantizer
        key = id(held), ANY
        if key not in self.kept:
            self.kept[key] = cast(Any, theirs)(held.quantizer, shape, seed=0)  # which the state replaces
            self.made.append((held, self.kept[key]))
        return self.kept[key]

    def prototype(self, held: Any) -> Any:
        """The counterpart of a prototype with its parameters, the same for one that is shared."""
        key = id(held), ANY
        if key not in self.kept:
            given, kinds = dict(held.options), {n: one.kind for n, one in held.prototype.parameters.items()}
            for name, kind in kinds.items():
                value = getattr(held, name)
                array = tensor_to_numpy(value.detach()) if self.to == "flax" else np.array(value[...])
                given[name] = int(array) if kind == "seed" else array if self.to == "flax" else numpy_to_tensor(array)
            self.kept[key] = (PrototypeQuantizer if self.to == "flax" else TorchPrototype)(held.prototype, **given)
            self.made.append((held, self.kept[key]))
        return self.kept[key]


class _ToFlax(_Making):
    to = "flax"

    def __init__(self, builders: Builders, rngs: nnx.Rngs) -> None:
        super().__init__(builders)
        self.rngs = rngs

    def allowed(self, layer: nn.Module) -> Axes | None:
        pair = None if type(layer) in self.builders else of_torch(layer)
        return None if pair is None else pair.axes

    def build(self, layer: nn.Module, axes: Axes) -> Any:
        kind = type(layer)
        require(not (layer._forward_hooks or layer._forward_pre_hooks), "has hooks, which would be lost")
        if kind in self.builders:
            return self.builders[kind](layer)
        pair = of_torch(layer)
        if pair is None:
            raise Refused(_why_not(layer))
        if isinstance(layer, TorchQuantizer | TorchPrototype):
            return self.quantizer("the layer", layer, None)
        require(not getattr(layer, "return_quant_tensor", False), "return_quant_tensor=True; flax gives arrays")
        arguments, flax = pair.translation.to_flax(layer, axes), pair.flax
        if not inspect.isclass(flax):
            return partial(flax, **arguments) if arguments else flax
        weight = getattr(layer, "weight", None)
        arguments |= self.quantizers(layer, flax, None if weight is None else tuple(weight.shape))
        first = next(layer.parameters(recurse=False), None)
        if first is not None:
            dtype = tensor_to_numpy(first.detach()[:0]).dtype
            require(
                jax.dtypes.canonicalize_dtype(dtype) == dtype, f"{dtype} parameters; JAX needs jax_enable_x64 for them"
            )
            arguments["param_dtype"] = dtype
        if _takes(flax, "rngs"):
            arguments["rngs"] = self.rngs
        return (Embed if "padding_idx" in arguments else flax)(**arguments)

    def joined(self, module: nn.Module, path: Path, parts: Mapping[Path, Any]) -> Any:
        held = parts_of(module)
        if held is None:
            return parts[path]
        inside = {name: self.joined(part, (*path, name), parts) for name, part in held.held.items()}
        if held.kind == "dict":
            return nnx.Dict(inside)
        if held.kind == "list":
            return nnx.List(inside.values())
        numbered = list(inside) == [str(i) for i in range(len(inside))]
        return nnx.Sequential(*inside.values()) if numbered else Sequential(*inside.values(), names=tuple(inside))


class _ToTorch(_Making):
    to = "torch"

    def allowed(self, layer: Any) -> Axes | None:
        if self._builder(layer) is not None:
            return None
        pairs = list(of_flax(layer))
        return frozenset[int]().union(*(pair.axes for pair in pairs)) if pairs else None

    def build(self, layer: Any, axes: Axes) -> nn.Module:
        builder = self._builder(layer)
        if builder is not None:
            return builder(layer)
        pair = next((pair for pair in of_flax(layer) if pair.axes & axes), None)
        if pair is None:
            raise Refused(OWN % _name(layer) if isinstance(layer, nnx.Module) else "no function of the table")
        if isinstance(layer, TensorQuantizer | PrototypeQuantizer):
            return cast(nn.Module, self.quantizer("the layer", layer, None))
        if not isinstance(layer, nnx.Module):
            return self._function(layer, pair, axes & pair.axes)
        arguments = pair.translation.to_torch(layer, axes & pair.axes)
        weight = next(
            (v[...] for n in ("kernel", "embedding", "scale") if (v := getattr(layer, n, None)) is not None), None
        )
        if isinstance(layer, nnx.MultiHeadAttention):
            weight = layer.query.kernel[...]
        torch_class = pair.torch_class
        arguments |= self.quantizers(layer, torch_class, _shape_in_torch(layer))
        if weight is not None and _takes(torch_class, "dtype"):
            arguments["dtype"] = numpy_to_tensor(np.empty(0, weight.dtype)).dtype
        return torch_class(**arguments)

    def _builder(self, layer: Any) -> Callable[[Any], nn.Module] | None:
        key = type(layer) if isinstance(layer, nnx.Module) else layer
        return self.builders.get(key)

    @staticmethod
    def _function(layer: Any, pair: Pair, axes: Axes) -> nn.Module:
        keywords = getattr(layer, "keywords", {})
        require(not getattr(layer, "args", ()), f"positional arguments {getattr(layer, 'args', ())}")
        made = pair.torch_class(**pair.translation.to_torch(keywords, axes))
        unknown = sorted(keywords.keys() - pair.translation.to_flax(made, axes).keys())
        require(not unknown, f"{', '.join(unknown)}; {_name(pair.torch_class)} has no such argument")
        return made

    def joined(self, module: Any, path: Path, parts: Mapping[Path, Any]) -> nn.Module:
        held = parts_of(module)
        if held is None:
            return cast(nn.Module, parts[path])
        inside = {name: self.joined(part, (*path, name), parts) for name, part in held.held.items()}
        if held.kind == "dict":
            return nn.ModuleDict(inside)
        if held.kind == "list":
            return nn.ModuleList(inside.values())
        sequence = nn.Sequential()
        for name, part in inside.items():
            sequence.add_module(name, part)
        return sequence


def _load(model: nn.Module, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Sets the tensors of a torch model. Counts of batches that flax does not keep stay 0."""
    given = {name: numpy_to_tensor(tensor.copy()) for name, tensor in tensors.items()}
    held = model.state_dict(keep_vars=True)
    taken = {id(held[name]) for name in given if name in held}
    missing = [name for name, tensor in held.items() if name not in given and not _is_spare(name, tensor, taken)]
    unexpected = sorted(given.keys() - held.keys())
    if missing or unexpected:
        raise ValueError(
            f"the torch model must hold what the flax model holds, got missing {missing}, unexpected {unexpected}"
        )
    model.load_state_dict(given, strict=False)


def _is_spare(name: str, tensor: torch.Tensor, taken: set[int]) -> bool:
    """Whether it need not be set: set under another name, or a count of batches."""
    return id(tensor) in taken or name.rpartition(".")[2] == COUNTER


def _mode(layer: Any) -> bool | None:
    """Whether a flax layer is in training mode; None where it has none."""
    frozen = getattr(layer, "use_running_average", getattr(layer, "deterministic", None))
    return None if frozen is None else not frozen


def _shape_in_torch(layer: Any) -> tuple[int, ...] | None:
    """The shape of a weight that is quantized."""
    if not hasattr(layer, "weight_quant"):
        return None
    return state_dict(layer)["weight"].shape


def _tied_in_torch(model: nn.Module) -> dict[Path, str]:
    """Layers with a parameter that another layer has too, by path."""
    owners: dict[int, tuple[str, nn.Module]] = {}
    tied = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            first, owner = owners.setdefault(id(parameter), (path, module))
            if owner is not module:
                tied[tuple(path.split("."))] = f"shares `{name}` with `{first}`; flax layers cannot"
    return tied


def _tied_in_flax(model: Any) -> dict[Path, str]:
    """The same of a flax model."""
    from .state import torch_path

    owners: dict[int, str] = {}
    tied = {}
    for path, part in nnx.iter_modules(model) if isinstance(model, nnx.Module) else ():
        where = tuple(torch_path(model, path))
        for name, variable in vars(part).items():
            if isinstance(variable, nnx.Variable) and owners.setdefault(id(variable), ".".join(where)) != ".".join(
                where
            ):
                tied[where] = f"shares `{name}` with `{owners[id(variable)]}`"
    return tied


def _why_not(layer: nn.Module) -> str:
    """Why a layer of torch has no row."""
    if type(layer).__module__.startswith("torch."):
        return "no layer of the table"
    return OWN % type(layer).__name__


def _name(layer: Any) -> str:
    """The class of a layer, or the name of a function."""
    if isinstance(layer, nn.Module | nnx.Module):
        return type(layer).__name__
    return getattr(getattr(layer, "func", layer), "__name__", None) or repr(layer)


def _parameters(kind: type[Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.__init__).parameters


def _takes(kind: type[Any], name: str) -> bool:
    """Whether a class takes a keyword, or the one that it hands its keywords to."""
    return any(name in _parameters(one) for one in kind.__mro__ if "__init__" in vars(one))
