"""Which layers of a model read nothing but what another layer gives, found by tracing it with torch.fx."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from .storing import check_floats

Pair = tuple[str, Sequence[str]]  # a layer, and those that alone read what it gives


class Kinds(NamedTuple):
    """Kinds of layers: those that give, those that read, and what may lie between them."""

    producers: tuple[type[nn.Module], ...]
    consumers: tuple[type[nn.Module], ...]
    between: tuple[type[nn.Module], ...]
    functions: tuple[Callable[..., Any], ...]
    methods: tuple[str, ...]


# What a positive factor of a channel passes through
POSITIVE = (nn.ReLU, nn.LeakyReLU, nn.Dropout, nn.Identity)
POSITIVE_FUNCTIONS = (torch.relu, F.relu, F.leaky_relu, F.dropout)
POSITIVE_METHODS = ("relu", "contiguous")


def find_pairs(model: nn.Module, kinds: Kinds) -> tuple[list[Pair], dict[str, str]]:
    """Pairs of a model, and the reason why each other reader has none.

    Raises:
        ValueError: torch.fx cannot trace the model.
    """

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            known = isinstance(m, (*kinds.producers, *kinds.consumers))
            return known or super().is_leaf_module(m, module_qualified_name)

    try:
        nodes = list(Tracer().trace(model).nodes)
    except Exception as error:  # whatever the model raises when it meets a proxy
        reason = str(error).partition("\n")[0]
        raise ValueError(f"`pairs` must be given, since torch.fx cannot trace the model: {reason}") from error
    modules = dict(model.named_modules())
    calls = [node.target for node in nodes if node.op == "call_module"]
    pairs: dict[str, list[str]] = {}
    skipped: dict[str, str] = {}
    for node in nodes:
        if node.op == "call_module" and isinstance(modules[str(node.target)], kinds.consumers):
            found = _producer(node, modules, kinds, calls)
            if isinstance(found, fx.Node):
                pairs.setdefault(str(found.target), []).append(str(node.target))
            else:
                skipped[str(node.target)] = found
    for name, module in modules.items():
        if isinstance(module, kinds.consumers) and name not in calls:
            skipped[name] = "nothing calls it"
    return [(producer, tuple(readers)) for producer, readers in pairs.items()], skipped


def _producer(node: fx.Node, modules: dict[str, nn.Module], kinds: Kinds, calls: list[Any]) -> fx.Node | str:
    """The layer whose output a reader takes, or why there is none that can be folded into."""
    if calls.count(node.target) > 1:
        return "it is called more than once"
    source = node.args[0] if node.args else node.kwargs["input"]
    while isinstance(source, fx.Node) and _passes(source, modules, kinds):
        source = source.args[0]
    if not isinstance(source, fx.Node):
        return "its input is a constant"
    if source.op != "call_module" or not isinstance(modules[str(source.target)], kinds.producers):
        return f"its input comes from {_called(source, modules)}"
    if calls.count(source.target) > 1:
        return f"'{source.target}', which its input comes from, is called more than once"
    if not isinstance(getattr(modules[str(source.target)], "weight", None), Tensor):
        return f"'{source.target}', which its input comes from, has no weight"
    for reader in _readers(source, modules, kinds):
        known = reader.op == "call_module" and isinstance(modules[str(reader.target)], kinds.consumers)
        if not known or calls.count(reader.target) > 1:
            return f"what '{source.target}' gives is also read by {_called(reader, modules)}"
    return source


def _readers(node: fx.Node, modules: dict[str, nn.Module], kinds: Kinds) -> list[fx.Node]:
    """What reads a node, through what may lie between."""
    found = []
    for user in node.users:
        found += _readers(user, modules, kinds) if _passes(user, modules, kinds) else [user]
    return found


def _passes(node: fx.Node, modules: dict[str, nn.Module], kinds: Kinds) -> bool:
    """Whether a node may lie between two layers of a pair."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], kinds.between)
    if node.op == "call_method":
        return node.target in kinds.methods
    return node.op == "call_function" and node.target in kinds.functions


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """A node in words."""
    match node.op:
        case "call_module":
            return f"'{node.target}' ({type(modules[str(node.target)]).__name__})"
        case "call_function":
            name = "a sum" if node.target in (operator.add, torch.add) else getattr(node.target, "__name__", "?")
            return f"{name}"
        case "placeholder":
            return f"the argument '{node.target}'"
        case "output":
            return "whoever calls the model"
        case _:
            return f"{node.target}"


def checked_pairs(model: nn.Module, pairs: Sequence[Pair], kinds: Kinds) -> list[Pair]:
    """Pairs, if they are layers of these kinds, of the same number of channels, each reader in one of them.

    Raises:
        TypeError: pairs of another form. ValueError: a name that is no layer, another kind, other channels, a name
            twice, a layer that is quantized already.
    """
    modules, seen, checked = dict(model.named_modules()), set[str](), list[Pair]()
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and not isinstance(pair[1], str)):
            raise TypeError(f"`pairs` must be of the form [('norm', ['q', 'k', 'v'])], got {pair!r}")
        producer, readers = pair
        for name, allowed in ((producer, kinds.producers), *((reader, kinds.consumers) for reader in readers)):
            if not isinstance(modules.get(name), allowed) or getattr(modules[name], "weight", None) is None:
                names = ", ".join(kind.__name__ for kind in allowed)
                raise ValueError(f"`pairs`: '{name}' must be a layer with a weight, of kind {names}")
        check_floats({name: modules[name] for name in (producer, *readers)})
        if not readers or len({producer, *readers}) != 1 + len(readers) or seen & {*readers}:
            raise ValueError(f"`pairs`: every reader must be in one pair, once, and no pair empty, got {pair!r}")
        seen |= {*readers}
        channels = [modules[producer].weight.shape[0], *(modules[name].weight.shape[1] for name in readers)]
        if len(set(channels)) != 1:
            raise ValueError(f"`pairs`: all of {pair!r} must have the same channels, got {channels}")
        checked.append((producer, tuple(readers)))
    return checked
