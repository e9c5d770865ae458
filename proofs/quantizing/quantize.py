"""Weights of a checkpoint or a torch model made codes, by a plan, and what that did to each of them.

Files are of the layout that `load_quantized` of torch and of JAX reads (`samebits.core.quantized_files`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.configs import Config, ModuleConfigs
from ...core.requirements import explaining
from ..inputs.checkpoint import CheckpointError, stored_tensors
from .methods import group_of
from .plan import Planned, Shapes, plan

with explaining(__name__):
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file
    from torch import Tensor, nn

from ...torch_frontend.ptq import QuantWeight, quant_weight, quantize_, write_quantized
from ...torch_frontend.ptq.configs import is_linear

BINS = 64  # of histograms
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Histogram:
    """Counts of the values of a weight before and after, between the same edges."""

    edges: NDArray[np.float64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """What became of a tensor.

    Args:
        planned: what was to become of it.
        before, after: bytes; after, those of codes, scales and zero points.
        error: the largest error of a weight, by the largest weight; None if it stayed as it is.
        sqnr: decibels, of the squares of weights and of their errors; None if it stayed, or if nothing is off.
        histogram: if it was asked for.
    """

    planned: Planned
    before: int
    after: int
    error: float | None = None
    sqnr: float | None = None
    histogram: Histogram | None = None

    @property
    def group_size(self) -> int | None:
        """How many inputs share a scale; None if all do, or there is none."""
        return None if self.planned.config is None else group_of(self.planned.config)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        one = self.planned
        said = {"name": one.name, "shape": list(one.shape), "kind": one.kind, "method": one.method, "why": one.why}
        numbers = {"group_size": self.group_size, "before": self.before, "after": self.after}
        return {**said, **numbers, "error": self.error, "sqnr": self.sqnr}


def shapes_of_file(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file that are floats a method can take, by name; its header is read.

    Raises:
        CheckpointError: as `stored_tensors`, none of them, or a file of quantized weights.
    """
    stored = stored_tensors(path)
    with safe_open(path, "pt") as file:
        if "samebits" in (file.metadata() or {}):
            raise CheckpointError(f"{path}: holds quantized weights already; give the float model")
    taken = ("F32", "F64", "BF16", "F16")
    shapes = {one.name: one.shape for one in stored if one.dtype in taken and one.elements}
    if not shapes:
        raise CheckpointError(f"{path}: no floating-point tensor")
    return dict(sorted(shapes.items()))


def quantize_file(
    path: Path, layers: Sequence[Planned], output: Path | None, histograms: bool = False
) -> tuple[Layer, ...]:
    """Quantizes the tensors of a safetensors file, and writes those and all others to another.

    Args:
        layers: as `plan` gives them for `shapes_of_file`.
        output: the new file; None: nothing is written.
        histograms: whether they are counted.
    Returns:
        What became of each tensor in ``layers``.
    Raises:
        ValueError: a weight with NaN or an infinity, by name; nothing is written
            then. OSError: ``output`` cannot be written.
    """
    tensors: dict[str, Tensor] = load_file(path)
    results = []
    for one in layers:
        w = tensors[one.name]
        if one.config is not None:
            tensors[one.name] = _codes(one.name, one.config, w)
        results.append(_layer(one, w, tensors[one.name], histograms))
    if output is not None:
        write_quantized(tensors, output)
    return tuple(results)


def quantize_model(
    model: nn.Module,
    method: str | None = None,
    patterns: Sequence[str] = (),
    group_size: int | None = None,
    description: Mapping[str, Mapping[str, Any]] | None = None,
    uneven: str = "skip",
    histograms: bool = False,
    layers: Sequence[Planned] | None = None,
) -> tuple[Layer, ...]:
    """Quantizes the linear layers of a torch model in place, as `quantize_` does, and says what that did to each.

    Args:
        method, patterns, group_size, description, uneven: as `plan`; names are those of weights, ``fc1.weight``.
        histograms: whether they are counted.
        layers: a plan that was made already, such as `recommend`'s, in the place of these.
    Returns:
        What became of each weight that is the ``weight`` of a linear layer.
    Raises:
        As `plan` and `samebits.torch_frontend.ptq.quantize_`. The model is then as it was.
    """
    owners: dict[str, Any] = {
        f"{name}.weight".lstrip("."): part for name, part in model.named_modules() if is_linear(part, name)
    }
    old = {name: module.weight.detach() for name, module in owners.items()}
    shapes: Shapes = {name: tuple(w.shape) for name, w in old.items()}
    taken = patterns or ("*",)  # all of them are linear, whatever their names
    found = plan(shapes, method, taken, group_size, description, uneven) if layers is None else tuple(layers)
    found = tuple(one for one in found if one.name in owners)
    configs = {one.name.rpartition(".")[0]: one.config for one in found if one.config is not None}
    if not configs:
        raise ValueError("nothing to quantize: the plan has no config for a linear layer of the model")
    quantize_(model, ModuleConfigs(configs))
    return tuple(_layer(one, old[one.name], owners[one.name].weight, histograms) for one in found)


def _codes(name: str, config: Config, w: Tensor) -> QuantWeight:
    if not w.isfinite().all():
        raise ValueError(f"{name}: must be finite to be quantized, got NaN or an infinity")
    try:
        return quant_weight(config.weight, w, None, config.act_quant, config.layout)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error.args[0]}") from error


def _layer(one: Planned, w: Tensor, new: Tensor, histograms: bool) -> Layer:
    """What became of a tensor, in float64."""
    before = w.numel() * w.element_size()
    if not isinstance(new, QuantWeight):
        return Layer(one, before, before)
    parts = (new.codes, new.scale, new.zero_point)
    after = sum(part.numel() * part.element_size() for part in parts if part is not None)
    old, found = (part.double().numpy() for part in (w, new.dequantize()))
    off, high = np.abs(found - old), float(np.abs(old).max(initial=0))
    signal, noise = float(np.square(old).sum()), float(np.square(off).sum())
    error = float(off.max(initial=0)) / high if high else 0.0
    sqnr = 10 * log10(signal / noise) if signal and noise else None
    return Layer(one, before, after, error, sqnr, _histogram(old, found) if histograms else None)


def _histogram(old: NDArray[Any], new: NDArray[Any]) -> Histogram:
    low, high = min(old.min(), new.min()), max(old.max(), new.max())
    before, edges = np.histogram(old, BINS, (low, high))
    return Histogram(edges, before, np.histogram(new, edges)[0])
