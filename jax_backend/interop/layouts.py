"""Models as chains of layers, and which of them see images: what their layouts depend on, channels first or last."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from flax import nnx
from torch import nn

from .modules import Flatten, Sequential
from .translation import ANY, ROWS, Axes

Kind = Literal["sequence", "list", "dict"]
Path = tuple[str, ...]


class Parts(NamedTuple):
    """A container, and what it holds by name."""

    kind: Kind
    held: Mapping[str, Any]


class Place(NamedTuple):
    """A layer, its path, and how many axes images may have there; none where that contradicts the layers before."""

    path: Path
    layer: Any
    axes: Axes


def parts_of(module: Any) -> Parts | None:
    """What a container of torch or flax holds; None for a layer."""
    kind = type(module)
    if kind in (nn.Sequential, nn.ModuleDict):
        return Parts("sequence" if kind is nn.Sequential else "dict", dict(module._modules))
    if kind is nn.ModuleList:
        return Parts("list", dict(module._modules))
    if kind in (nnx.Sequential, Sequential):
        names = module.names if kind is Sequential else map(str, range(len(module.layers)))
        return Parts("sequence", dict(zip(names, module.layers, strict=True)))
    if kind is nnx.List:
        return Parts("list", {str(i): part for i, part in enumerate(module)})
    if kind is nnx.Dict:
        return Parts("dict", {name: module[name] for name in module})
    return None


def chains(module: Any, path: Path = ()) -> Iterator[list[tuple[Path, Any]]]:
    """The layers of a model with their paths, those that see each other's results together and in order."""
    parts = parts_of(module)
    if parts is None:
        yield [(path, module)]
        return
    inside = [list(chains(part, (*path, name))) for name, part in parts.held.items()]
    if parts.kind == "sequence" and all(len(each) == 1 for each in inside):
        yield [place for ((*places,),) in inside for place in places]
    else:
        for each in inside:
            yield from each


def places(chain: list[tuple[Path, Any]], allowed: Callable[[Any], Axes | None]) -> Iterator[Place]:
    """The places of a chain.

    Args:
        chain: of `chains`.
        allowed: how many axes images may have for a layer; None for one of which nothing is known.
    """
    start, seen = ANY, ANY
    segment: list[tuple[Path, Any, bool]] = []  # with whether the layer fits those before
    for path, layer in chain:
        wanted = allowed(layer)
        both = seen & (ANY if wanted is None else wanted)
        segment.append((path, layer, bool(both)))
        seen = both or seen
        if wanted is None or isinstance(layer, nn.Flatten | Flatten):
            yield from _segment(segment, seen)
            start = ANY if wanted is None else _flattened(layer, seen)
            segment, seen = [], start
    yield from _segment(segment, seen)


def _segment(segment: list[tuple[Path, Any, bool]], axes: Axes) -> Iterator[Place]:
    for path, layer, fits in segment:
        yield Place(path, layer, axes if fits else frozenset())


def _flattened(layer: nn.Flatten | Flatten, axes: Axes) -> Axes:
    """Number of axes of what it gives."""
    return ROWS if 0 in axes or layer.start_dim == 1 else frozenset({1})


def described(axes: Axes) -> str:
    """Words for it."""
    if axes == ROWS:
        return "the last axis of torch"
    return f"images of {' or '.join(map(str, sorted(axes - ROWS)))} axes"
