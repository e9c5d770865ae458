"""SmoothQuant of a whole model: factors found from recorded inputs, folded into the layers before and behind."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ...core.configs import quantizer
from ...core.descriptions import Quantizer
from ...core.layerwise import LayerReport, ModelReport, check_alpha
from ..quantizer import fake_quantize
from .folding import divide_rows, multiply_columns
from .graph import POSITIVE, POSITIVE_FUNCTIONS, POSITIVE_METHODS, Kinds, Pair, checked_pairs, find_pairs
from .recording import check_batches, evaluating, record, rows_of, run
from .smoothquant import smoothing_factors
from .storing import dense

KINDS = Kinds((nn.LayerNorm, nn.RMSNorm, nn.Linear), (nn.Linear,), POSITIVE, POSITIVE_FUNCTIONS, POSITIVE_METHODS)
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Changes = dict[tuple[str, str], Tensor]


class _Choice(NamedTuple):
    """The factors of a pair for one alpha; None: as it is."""

    alpha: float | None
    factors: Tensor


def smooth_(
    model: nn.Module,
    batches: Iterable[Any],
    alpha: float | str = 0.5,
    pairs: Sequence[Pair] | None = None,
    act_quant: Quantizer | str = "int8_per_token",
    weight_quant: Quantizer | str = "int8_per_channel",
    alphas: Sequence[float] = ALPHAS,
) -> ModelReport:
    """Moves outliers of the inputs of linear layers into their weights, in place. The model computes what it did.

    ``x / f`` is folded into what gives x: the weight and bias of a LayerNorm, RMSNorm or linear layer, through ReLU and
    dropout. Layers that read the same output get the same factors. Two passes through the batches.

    Args:
        batches: as `gptq_`.
        alpha: in [0, 1], or ``"search"``: of ``alphas`` the one with the least output error for each pair; if leaving
            it as it is is better, it stays.
        pairs: such as ``[("norm1", ["q", "k", "v"])]``; None: those that torch.fx finds.
        act_quant, weight_quant: how layers will be quantized, for output errors.
        alphas: where to search.
    Returns:
        For each pair its output error on the recorded inputs, so quantized, before and after. Skipped: linear layers
        without a pair, and why.
    Raises:
        ValueError: no pairs, wrong ones, or such that change what the model computes, no batches, inputs that are not
            finite, an ``alpha`` out of range. TypeError, KeyError: an argument of the wrong kind. The model is then as
            it was.
    """
    q_x, q_w = quantizer("act_quant", act_quant), quantizer("weight_quant", weight_quant)
    candidates = list(alphas) if alpha == "search" else [alpha]
    for one in candidates:
        check_alpha(one)  # type: ignore[arg-type]
    found, skipped = (list(pairs), dict[str, str]()) if pairs is not None else find_pairs(model, KINDS)
    found = checked_pairs(model, found, KINDS)
    if not found:
        why = "; ".join(f"'{name}': {reason}" for name, reason in skipped.items()) or "the model has no linear layers"
        raise ValueError(f"no layer can be smoothed: {why}")
    check_batches(batches)
    layers = {name: model.get_submodule(name) for _, readers in found for name in readers}
    with evaluating(model):
        ranges, rows = _ranges(model, layers, found, batches)
        choices = {pair: _choices(ranges[pair[0]], pair, layers, candidates) for pair in found if pair[0] in ranges}
        errors = _errors(model, layers, choices, batches, q_x, q_w)
        reports, chosen = [], dict[Pair, Tensor]()
        for pair, options in choices.items():
            of_pair = [error / rows[pair[0]] for error in errors[pair[0]]]
            best = min(range(len(options)), key=of_pair.__getitem__) if alpha == "search" else 1
            chosen[pair] = options[best].factors
            label = "as it was" if options[best].alpha is None else f"alpha {options[best].alpha}"
            name = f"{pair[0]} -> {', '.join(pair[1])}"
            reports.append(LayerReport(name, of_pair[0], of_pair[best], label, rows[pair[0]]))
        put_into(model, _changes(model, chosen), next(iter(batches)))
    unseen = {reader: "no batch reaches it" for pair in found if pair not in choices for reader in pair[1]}
    return ModelReport(tuple(reports), {**skipped, **unseen})


def _ranges(
    model: nn.Module, layers: Mapping[str, nn.Module], pairs: Sequence[Pair], batches: Iterable[Any]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Largest magnitudes of the inputs of each pair's readers by column, and how many rows they are of."""
    producers = {reader: producer for producer, readers in pairs for reader in readers}
    firsts = {readers[0] for _, readers in pairs}
    ranges: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def take(name: str, x: Tensor) -> None:
        matrix, producer = rows_of(x).float(), producers[name]
        if len(matrix):
            high = matrix.abs().amax(0)
            ranges[producer] = torch.maximum(ranges[producer], high) if producer in ranges else high
        if name in firsts:
            rows[producer] = rows.get(producer, 0) + len(matrix)

    record(model, layers, batches, take)
    for producer, high in ranges.items():
        if not high.isfinite().all():
            raise ValueError(f"what '{producer}' gives has NaN or an infinity in the recorded batches")
    if not ranges:
        raise ValueError(f"calibration never run: no batch reaches {', '.join(map(repr, layers))}")
    return ranges, rows


def _choices(x_absmax: Tensor, pair: Pair, layers: Mapping[str, nn.Module], alphas: Sequence[Any]) -> list[_Choice]:
    """A pair as it is, and the factors that its readers share for every alpha."""
    high = torch.stack([dense(layers[name]).float().abs().amax(0) for name in pair[1]]).amax(0)
    plain = _Choice(None, torch.ones_like(x_absmax))
    return [plain, *(_Choice(alpha, smoothing_factors(x_absmax, high, alpha)) for alpha in alphas)]


def _errors(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    choices: Mapping[Pair, Sequence[_Choice]],
    batches: Iterable[Any],
    q_x: Quantizer,
    q_w: Quantizer,
) -> dict[str, list[float]]:
    """Squared errors of the outputs of quantized readers for every choice of each pair, summed."""
    of_readers = {name: pair for pair in choices for name in pair[1]}
    errors = {pair[0]: [0.0] * len(options) for pair, options in choices.items()}

    def take(name: str, x: Tensor) -> None:
        pair, w, rows = of_readers[name], dense(layers[name]).float(), rows_of(x).float()
        exact = F.linear(rows, w)
        for i, option in enumerate(choices[pair]):
            w_hat = fake_quantize(q_w, multiply_columns(w, option.factors))
            y = F.linear(fake_quantize(q_x, rows / option.factors), w_hat)
            errors[pair[0]][i] += float((y - exact).double().square().sum())

    record(model, {name: layers[name] for name in of_readers}, batches, take)
    return errors


def _changes(model: nn.Module, chosen: Mapping[Pair, Tensor]) -> Changes:
    """The new parameters, by layer and name; one after the other where a layer is in two pairs."""
    changes: Changes = {}
    for (producer, readers), factors in chosen.items():
        fold(model, changes, producer, readers, factors)
    return changes


def fold(model: nn.Module, changes: Changes, producer: str, readers: Sequence[str], factors: Tensor) -> None:
    """Adds to ``changes`` what factors make of the parameters of a pair, or of those that are there already."""

    def current(layer: str, name: str) -> Tensor | None:
        parameter = getattr(model.get_submodule(layer), name, None)
        return changes.get((layer, name), None if parameter is None else parameter.detach())

    for name in ("weight", "bias"):
        parameter = current(producer, name)
        if parameter is not None:
            changes[producer, name] = divide_rows(parameter, factors)
    for reader in readers:
        weight = current(reader, "weight")
        assert weight is not None
        changes[reader, "weight"] = multiply_columns(weight, factors)


def put_into(model: nn.Module, changes: Changes, batch: Any) -> None:
    """Puts new parameters into a model, if it computes the same with them for a batch; None: that is not looked at.

    Raises:
        ValueError: parameters that are not finite, or outputs that move by more than roundings explain: then the pairs
            are none. The model is then as it was.
    """
    for (layer, name), value in changes.items():
        if not value.isfinite().all():
            raise ValueError(f"'{layer}': the {name} overflows")
    before = [] if batch is None else _outputs(model, batch)
    olds = {key: getattr(model.get_submodule(key[0]), key[1]) for key in changes}
    try:
        for (layer, name), value in changes.items():
            old = olds[layer, name]
            setattr(model.get_submodule(layer), name, nn.Parameter(value, requires_grad=old.requires_grad))
        for one, other in zip(before, [] if batch is None else _outputs(model, batch), strict=True):
            scale = float(one.abs().max()) if one.numel() else 0.0
            allowed = min(2.0**12 * torch.finfo(one.dtype).eps, 0.1) * scale
            if not float((one - other).abs().max() if one.numel() else 0.0) <= allowed:
                raise ValueError("`pairs` must not change what the model computes: something else reads those outputs")
    except BaseException:
        for (layer, name), old in olds.items():
            setattr(model.get_submodule(layer), name, old)
        raise


def _outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    """The floating-point tensors among what a model gives."""
    leaves = pytree.tree_leaves(run(model, batch))
    return [leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
