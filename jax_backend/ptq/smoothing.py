"""SmoothQuant of a whole model: factors found from recorded inputs, folded into the layers before and behind."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ...core.configs import quantizer
from ...core.descriptions import Quantizer
from ...core.layerwise import LayerReport, ModelReport, check_alpha
from ..quantizer import fake_quantize
from .folding import multiply_columns
from .pairs import NORMS, Changes, Pair, checked_pairs, find_pairs, fold, put_into
from .recording import check_batches, named_modules, record, rows_of
from .smoothquant import smoothing_factors
from .storing import dense

Array = jax.Array
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Choice = tuple[float | None, Array]  # alpha, and the factors; None: as it is


def smooth_(
    model: nnx.Module,
    batches: Iterable[Any],
    alpha: float | str = 0.5,
    pairs: Sequence[Pair] | None = None,
    act_quant: Quantizer | str = "int8_per_token",
    weight_quant: Quantizer | str = "int8_per_channel",
    alphas: Sequence[float] = ALPHAS,
) -> ModelReport:
    """Moves outliers of the inputs of linear layers into their weights, in place. The model computes what it did.

    ``x / f`` is folded into what gives x: the weight and bias of a LayerNorm, RMSNorm or linear layer. Layers that read
    the same output get the same factors. Two passes through the batches.

    Args:
        batches: as `gptq_`.
        alpha: in [0, 1], or ``"search"``: of ``alphas`` the one with the least output error for each pair; if leaving
            it as it is is better, it stays.
        pairs: such as ``[("norm1", ["q", "k", "v"])]``, also with ReLU between. None: layers that get the very array
            that another gave; a pair whose output is read elsewhere too is then skipped, found by running a batch.
        act_quant, weight_quant: how layers will be quantized, for output errors.
        alphas: where to search.
    Returns:
        For each pair its output error on the recorded inputs, so quantized, before and after. Skipped: readers of pairs
        that are none.
    Raises:
        ValueError: no pairs, wrong ones, or such that change what the model computes, no batches, inputs that are not
            finite, an ``alpha`` out of range. TypeError, KeyError: an argument of the wrong kind. The model is then as
            it was.
    """
    q_x, q_w = quantizer("act_quant", act_quant), quantizer("weight_quant", weight_quant)
    candidates = list(alphas) if alpha == "search" else [alpha]
    for one in candidates:
        check_alpha(one)  # type: ignore[arg-type]
    check_batches(batches)
    found = find_pairs(model, batches) if pairs is None else list(pairs)
    found = checked_pairs(model, found, (*NORMS, nnx.Linear), (nnx.Linear,))
    if not found:
        raise ValueError(
            "no layer can be smoothed: none gets the array that a norm or a linear layer gave; give `pairs`"
        )
    modules = named_modules(model)
    layers: dict[str, Any] = {name: modules[name] for _, readers in found for name in readers}
    ranges, rows = _ranges(model, layers, found, batches)
    choices = {pair: _choices(ranges[pair[0]], pair, layers, candidates) for pair in found if pair[0] in ranges}
    errors = _errors(model, layers, choices, batches, q_x, q_w)
    skipped = {reader: "no batch reaches it" for pair in found if pair not in choices for reader in pair[1]}
    changes: Changes = {}
    reports = []
    for pair, options in choices.items():
        of_pair = [error / rows[pair[0]] for error in errors[pair[0]]]
        best = min(range(len(options)), key=of_pair.__getitem__) if alpha == "search" else 1
        if pairs is None and not _may_fold(model, pair, options[best][1], next(iter(batches))):
            skipped |= dict.fromkeys(pair[1], f"what '{pair[0]}' gives is also read by others")
            continue
        fold(modules, changes, *pair, options[best][1])
        reports.append(_report(pair, of_pair, best, options[best][0], rows[pair[0]]))
    put_into(model, changes, next(iter(batches)))
    return ModelReport(tuple(reports), skipped)


def _report(pair: Pair, errors: Sequence[float], best: int, alpha: float | None, rows: int) -> LayerReport:
    """What became of a pair."""
    label = "as it was" if alpha is None else f"alpha {alpha}"
    return LayerReport(f"{pair[0]} -> {', '.join(pair[1])}", errors[0], errors[best], label, rows)


def _may_fold(model: nnx.Module, pair: Pair, factors: Array, batch: Any) -> bool:
    """Whether the model computes the same with factors that are all different in one pair. It stays as it was."""
    modules, changes, back = named_modules(model), Changes(), Changes()
    tried = jnp.asarray(2.0 ** (np.arange(factors.size) % 3 + 1), np.float32)
    fold(modules, changes, *pair, tried)
    fold(modules, back, *pair, jnp.ones_like(tried))
    try:
        put_into(model, changes, batch)
    except ValueError:
        return False
    put_into(model, back, None)
    return True


def _ranges(
    model: nnx.Module, layers: Mapping[str, Any], pairs: Sequence[Pair], batches: Iterable[Any]
) -> tuple[dict[str, Array], dict[str, int]]:
    """Largest magnitudes of the inputs of each pair's readers by column, and how many rows they are of."""
    producers = {reader: producer for producer, readers in pairs for reader in readers}
    firsts = {readers[0] for _, readers in pairs}
    ranges: dict[str, Array] = {}
    rows: dict[str, int] = {}

    def take(name: str, x: Array) -> None:
        matrix, producer = rows_of(x).astype(np.float32), producers[name]
        if len(matrix):
            high = jnp.abs(matrix).max(0)
            ranges[producer] = jnp.maximum(ranges[producer], high) if producer in ranges else high
        if name in firsts:
            rows[producer] = rows.get(producer, 0) + len(matrix)

    record(model, layers, batches, take)
    for producer, high in ranges.items():
        if not bool(jnp.isfinite(high).all()):
            raise ValueError(f"what '{producer}' gives has NaN or an infinity in the recorded batches")
    if not ranges:
        raise ValueError(f"calibration never run: no batch reaches {', '.join(map(repr, layers))}")
    return ranges, rows


def _choices(x_absmax: Array, pair: Pair, layers: Mapping[str, Any], alphas: Sequence[Any]) -> list[Choice]:
    """A pair as it is, and the factors that its readers share for every alpha."""
    high = jnp.stack([jnp.abs(dense(layers[name]).astype(np.float32)).max(0) for name in pair[1]]).max(0)
    plain: Choice = (None, jnp.ones_like(x_absmax))
    return [plain, *((alpha, smoothing_factors(x_absmax, high, alpha)) for alpha in alphas)]


def _errors(
    model: nnx.Module,
    layers: Mapping[str, Any],
    choices: Mapping[Pair, Sequence[Choice]],
    batches: Iterable[Any],
    q_x: Quantizer,
    q_w: Quantizer,
) -> dict[str, list[float]]:
    """Squared errors of the outputs of quantized readers for every choice of each pair, summed."""
    of_readers = {name: pair for pair in choices for name in pair[1]}
    errors = {pair[0]: [0.0] * len(options) for pair, options in choices.items()}

    def take(name: str, x: Array) -> None:
        pair, w, rows = of_readers[name], dense(layers[name]).astype(np.float32), rows_of(x).astype(np.float32)
        exact = jnp.matmul(rows, w.T, precision=lax.Precision.HIGHEST)
        for i, (_, factors) in enumerate(choices[pair]):
            w_hat = fake_quantize(q_w, multiply_columns(w, factors))
            x_hat = fake_quantize(q_x, rows / factors[None])
            off = np.asarray(jnp.matmul(x_hat, w_hat.T, precision=lax.Precision.HIGHEST) - exact, np.float64)
            errors[pair[0]][i] += float((off**2).sum())

    record(model, {name: layers[name] for name in of_readers}, batches, take)
    return errors
