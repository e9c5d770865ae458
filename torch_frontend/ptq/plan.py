"""Which layers of a model are quantized, and by which `QConfig`: decided before anything is changed."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from ...core.choice import fits
from ...core.observing import QConfig
from ..nn.batch_norm import FoldedBatchNorm
from .storing import check_floats

QConfigs = QConfig | Mapping[str, QConfig | None] | None
UNSET: Any = object()


class Site(NamedTuple):
    """A layer that is quantized."""

    name: str
    layer: nn.Module
    qconfig: QConfig


def sites(model: nn.Module, qconfig: QConfigs, kinds: tuple[type[nn.Module], ...], seen: str) -> list[Site]:
    """The layers of exactly these kinds that have a `QConfig`: not what is inside of them.

    A layer's own attribute ``qconfig`` counts first, then the last pattern that fits its name or that of a module
    around it, then the attribute of the nearest module around it, then the one for all. None leaves it as it is.

    Args:
        qconfig: one for all, or patterns as `samebits.torch_frontend.nn.quantize_model` takes them; None for what
            modules have as an attribute.
        seen: what is said where there is none.
    Raises:
        TypeError: no `QConfig`. ValueError: a pattern that fits no layer, a layer of two names with two of them, one
            that is quantized already, or no layer that is quantized. Warns of layers with a matrix that have a
            `QConfig` and are of no such kind.
    """
    given = dict(qconfig) if isinstance(qconfig, Mapping) else {}
    overall = None if isinstance(qconfig, Mapping) else qconfig
    found, others, names = [], [], []
    for name, layer, around in _layers(model, kinds, "", UNSET):
        names.append(name)
        chosen = _chosen(name, layer, around, given, overall)
        if chosen is None:
            continue
        if type(layer) in kinds:
            found.append(Site(name, layer, chosen))
        elif any(p.ndim > 1 for p in layer.parameters(recurse=False)):
            others.append(f"'{name}' ({type(layer).__name__})")
    for pattern in given:
        if not any(fits(pattern, name) for name in names):
            raise ValueError(f"the pattern '{pattern}' fits no layer; layers are {', '.join(names) or 'none'}")
    for site in found:
        for other in found:
            if other.layer is site.layer and other.qconfig != site.qconfig:
                raise ValueError(f"'{site.name}' and '{other.name}' are one layer, with two qconfigs")
    check_floats({site.name: site.layer for site in found})
    if not found:
        raise ValueError(f"`model` has no layer to quantize: {seen}; layers are {', '.join(names) or 'none'}")
    if others:
        warnings.warn(f"left as they are, since nothing quantizes their kind: {', '.join(others)}", stacklevel=4)
    return found


def _layers(
    module: nn.Module, kinds: tuple[type[nn.Module], ...], name: str, around: Any
) -> Iterator[tuple[str, nn.Module, Any]]:
    """Layers, with their names and the ``qconfig`` of what is around them."""
    inside = [(child, part) for child, part in module._modules.items() if part is not None]
    if type(module) in kinds or not inside:
        yield name, module, around
        return
    own = vars(module).get("qconfig", around)
    if not isinstance(module, FoldedBatchNorm) and any(True for _ in module.parameters(recurse=False)):
        yield name, module, around  # as one that may be reported
    for child, part in inside:
        if not (isinstance(module, FoldedBatchNorm) and child == "bn"):
            yield from _layers(part, kinds, f"{name}.{child}" if name else child, own)


def _chosen(name: str, layer: nn.Module, around: Any, given: Mapping[str, Any], overall: Any) -> QConfig | None:
    chosen = vars(layer).get("qconfig", UNSET)
    if chosen is UNSET:
        fitting = [value for pattern, value in given.items() if fits(pattern, name)]
        chosen = fitting[-1] if fitting else around if around is not UNSET else overall
    if chosen is not None and not isinstance(chosen, QConfig):
        raise TypeError(f"'{name}': its qconfig must be a QConfig of samebits or None, got {chosen!r}")
    return chosen
