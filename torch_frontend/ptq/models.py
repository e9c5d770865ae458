"""GPTQ, AdaRound and bias correction of whole models."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...core.configs import Config
from ...core.descriptions import QParams, Quantizer
from ...core.layerwise import LayerReport, ModelReport, check_adaround, check_gptq
from .adaround import adaround
from .bias_correction import corrected_bias, mean_update
from .gptq import gptq
from .layerwise import named, quantize_layers
from .recording import Filter, check_batches, chosen_layers, evaluating, record, rows_of
from .storing import dense


def gptq_(
    model: nn.Module,
    q: Config | Quantizer | str,
    batches: Iterable[Any],
    filter_fn: Filter | None = None,
    blocksize: int = 128,
    percdamp: float = 0.01,
    act_order: bool = False,
    group_scales: str | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> ModelReport:
    """Quantizes the weights of linear layers by GPTQ, in place, layer by layer in the order in which they run.

    Each layer is quantized by the inputs that it sees behind those that are quantized already. Layers that see the same
    input are a stage, and each stage takes one pass through the batches, which goes no further than the stage; of all
    inputs only a matrix (in, in) is held. Where GPTQ is not better than rounding to nearest on the recorded inputs, the
    layer gets the weights that are rounded to nearest.

    Args:
        q: a quantizer of matrices (out, in), or its name in the catalog; or a config (`samebits.core.configs`).
        batches: an iterable that can be run through again. Each is the argument of the model, or a list or tuple of
            arguments, or a dict of keywords.
        filter_fn: ``filter_fn(layer, name)`` says whether a linear layer is quantized; None: all are.
        blocksize, percdamp, act_order, group_scales: as `gptq`.
        progress: what the list of stages is run through, such as ``tqdm.tqdm``; None: nothing is shown.
    Returns:
        For each layer the error of its outputs before and after, and which layers were skipped, and why.
    Raises:
        ValueError: a filter that chooses nothing, no batches, inputs or weights that are not finite, a group size that
            does not divide, statistics that are not positive definite; with the name of the layer. TypeError, KeyError:
            an argument of the wrong kind. The model is then as it was.
    """

    def check(q: Quantizer, shape: tuple[int, ...]) -> None:
        check_gptq(q, shape, blocksize, percdamp, act_order, group_scales)

    def method(q: Quantizer, w: Tensor, hessian: Tensor) -> tuple[Tensor, QParams]:
        codes, qparams, _, _ = gptq(q, w, hessian, blocksize, percdamp, act_order, group_scales)
        return codes, qparams

    return quantize_layers(model, q, batches, filter_fn, "gptq", check, method, progress)


def adaround_(
    model: nn.Module,
    q: Config | Quantizer | str,
    batches: Iterable[Any],
    filter_fn: Filter | None = None,
    steps: int = 500,
    rate: float = 0.03,
    penalty: float = 3.0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> ModelReport:
    """Quantizes the weights of linear layers by AdaRound, in place; layer by layer, as `gptq_` does.

    Args:
        q: a quantizer of integers for matrices (out, in), or its name in the catalog; or a config.
        batches, filter_fn, progress: as `gptq_`.
        steps, rate, penalty: as `adaround`.
    Returns:
        As `gptq_`, which raises the same.
    """

    def check(q: Quantizer, shape: tuple[int, ...]) -> None:
        check_adaround(q, shape, steps, rate, penalty)

    def method(q: Quantizer, w: Tensor, hessian: Tensor) -> tuple[Tensor, QParams]:
        codes, qparams, _ = adaround(q, w, hessian, steps, rate, penalty)
        return codes, qparams

    return quantize_layers(model, q, batches, filter_fn, "adaround", check, method, progress)


def correct_biases_(
    model: nn.Module, float_model: nn.Module, batches: Iterable[Any], filter_fn: Filter | None = None
) -> ModelReport:
    """Takes off the biases of linear layers what quantized weights move the mean of their outputs by, in place.

    Args:
        model: with quantized weights; a layer without a bias gets one.
        float_model: the same model before that, whose layers' inputs are recorded, in one pass.
        batches: as `gptq_`.
        filter_fn: ``filter_fn(layer, name)`` says of which layers of ``model``; None: of all linear ones.
    Returns:
        For each layer the squared length of what the mean of its outputs was and is off by.
    Raises:
        ValueError: a filter that chooses nothing, a layer that the float model does not have in that shape, no batches,
            inputs that are not finite. TypeError: an argument of the wrong kind. The model is then as it was.
    """
    layers = chosen_layers(model, filter_fn, nn.Linear)
    check_batches(batches)
    originals = dict(float_model.named_modules())
    for name, layer in layers.items():
        weight = getattr(originals.get(name), "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != dense(layer).shape:
            raise ValueError(f"`float_model` must have a layer '{name}' with a weight of {tuple(dense(layer).shape)}")
    of_layers = {name: originals[name] for name in layers}
    means: dict[str, tuple[Tensor, int]] = {}

    def take(name: str, x: Tensor) -> None:
        begin = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        means[name] = mean_update(*means.get(name, (begin, 0)), rows_of(x))

    with evaluating(float_model):
        record(float_model, of_layers, batches, take)
    biases, reports = {}, []
    for name, (mean, rows) in means.items():
        w, w_hat = dense(of_layers[name]), dense(layers[name])
        old = layers[name].bias
        bias = torch.zeros(len(w), dtype=w.dtype, device=w.device) if old is None else old.detach()
        biases[name] = named(name, corrected_bias, bias, w, w_hat, mean)
        moved = (w_hat.double() - w.double()) @ mean
        left = moved + biases[name].double() - bias.double()
        before, after = (float(off.square().sum()) for off in (moved, left))
        reports.append(LayerReport(name, before, after, "bias", rows))
    for name, bias in biases.items():
        layers[name].bias = nn.Parameter(bias)
    return ModelReport(tuple(reports), {name: "no batch reaches it" for name in layers if name not in means})
