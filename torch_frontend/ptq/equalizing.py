"""Cross-layer equalization of a whole model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.choice import check_count
from ...core.layerwise import LayerReport, ModelReport
from .equalization import equalization_factors
from .graph import POSITIVE, POSITIVE_FUNCTIONS, POSITIVE_METHODS, Kinds, Pair, checked_pairs, find_pairs
from .smoothing import Changes, fold, put_into

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout2d)
FUNCTIONS = (*POSITIVE_FUNCTIONS, F.max_pool2d, F.avg_pool2d)
KINDS = Kinds(LAYERS, LAYERS, (*POSITIVE, *POOLS), FUNCTIONS, POSITIVE_METHODS)
ENOUGH = 1e-3  # how near to 1 factors are when nothing is left to do


def equalize_(model: nn.Module, pairs: Sequence[Pair] | None = None, sweeps: int = 20) -> ModelReport:
    """Makes ranges of channels equal between linear or convolution layers with ReLU between them, in place.

    The model computes what it did, up to roundings of weights. Batch normalization is folded before, or in the way.

    Args:
        pairs: such as ``[("conv1", ["conv2"])]``; None: those that torch.fx finds.
        sweeps: how often all pairs are gone through at most; less where no factor moves by a thousandth.
    Returns:
        For each pair, before and after, the largest over the smallest range of a channel, in that of the two layers
        where they lie further apart. Skipped: layers without a pair, and why.
    Raises:
        ValueError: no pairs, or wrong ones; weights that are not finite. TypeError: an argument of the wrong kind. The
            model is then as it was.
    """
    check_count("sweeps", sweeps, 1)
    found, skipped = (list(pairs), dict[str, str]()) if pairs is not None else find_pairs(model, KINDS)
    for pair in found if pairs is None else ():
        grouped = [name for name in pair[1] if getattr(model.get_submodule(name), "groups", 1) != 1]
        if grouped:
            found = [other for other in found if other is not pair]
            skipped |= {name: "it has groups" if name in grouped else f"'{grouped[0]}' has groups" for name in pair[1]}
    found = checked_pairs(model, found, KINDS)
    if not found:
        why = "; ".join(f"'{name}': {reason}" for name, reason in skipped.items()) or "the model has no such layers"
        raise ValueError(f"no layer can be equalized: {why}")
    changes: Changes = {}

    def current(name: str) -> Tensor:
        weight = changes.get((name, "weight"), model.get_submodule(name).weight)
        assert isinstance(weight, Tensor)
        return weight.detach().float()

    def ranges(pair: Pair) -> tuple[Tensor, Tensor]:
        rows = current(pair[0]).abs().flatten(1).amax(1)
        columns = [current(name).abs().transpose(0, 1).flatten(1).amax(1) for name in pair[1]]
        return rows, torch.stack(columns).amax(0)

    before = [_spread(*ranges(pair)) for pair in found]
    for _ in range(sweeps):
        moved = 0.0
        for pair in found:
            factors = equalization_factors(*ranges(pair))
            fold(model, changes, *pair, factors)
            moved = max(moved, float((factors - 1).abs().max()))
        if moved < ENOUGH:
            break
    after = [_spread(*ranges(pair)) for pair in found]
    put_into(model, changes, None)
    names = [f"{producer} -> {', '.join(readers)}" for producer, readers in found]
    reports = zip(names, before, after, strict=True)
    return ModelReport(tuple(LayerReport(*one, "equalized") for one in reports), skipped)


def _spread(*ranges: Tensor) -> float:
    """The largest over the smallest range that is not 0, where they lie further apart."""
    used = [one[one > 0] for one in ranges]
    return max(float(one.max() / one.min()) if one.numel() else 1.0 for one in used)
