"""GPTQ, AdaRound and bias correction of whole models."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from ...core.configs import Config
from ...core.descriptions import QParams, Quantizer
from ...core.layerwise import LayerReport, ModelReport, check_adaround, check_gptq
from .adaround import adaround
from .bias_correction import corrected_bias, mean_update
from .gptq import gptq
from .layerwise import named, quantize_layers
from .recording import Filter, check_batches, chosen_layers, named_modules, record, rows_of
from .storing import dense


def gptq_(
    model: nnx.Module,
    q: Config | Quantizer | str,
    batches: Iterable[Any],
    filter_fn: Filter | None = None,
    blocksize: int = 128,
    percdamp: float = 0.01,
    act_order: bool = False,
    group_scales: str | None = None,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> ModelReport:
    """Quantizes the kernels of ``nnx.Linear`` layers by GPTQ, in place, layer by layer in the order in which they run.

    Each layer is quantized by the inputs that it sees behind those that are quantized already. Layers that see the same
    input are a stage, and each stage takes one pass through the batches, which goes no further than the stage; of all
    inputs only a matrix (in, in) is held. Where GPTQ is not better than rounding to nearest on the recorded inputs, the
    layer gets the weights that are rounded to nearest.

    Args:
        q: a quantizer of matrices (out, in), or its name in the catalog; or a config (`samebits.core.configs`).
        batches: an iterable that can be run through again. Each is the argument of the model, or a list or tuple of
            arguments, or a dict of keywords. The model runs as it is: not under ``jit``, in the mode that was set.
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

    def method(q: Quantizer, w: jax.Array, hessian: jax.Array) -> tuple[jax.Array, QParams]:
        codes, qparams, _, _ = gptq(q, w, hessian, blocksize, percdamp, act_order, group_scales)
        return codes, qparams

    return quantize_layers(model, q, batches, filter_fn, "gptq", check, method, progress)


def adaround_(
    model: nnx.Module,
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

    def method(q: Quantizer, w: jax.Array, hessian: jax.Array) -> tuple[jax.Array, QParams]:
        codes, qparams, _ = adaround(q, w, hessian, steps, rate, penalty)
        return codes, qparams

    return quantize_layers(model, q, batches, filter_fn, "adaround", check, method, progress)


def correct_biases_(
    model: nnx.Module, float_model: nnx.Module, batches: Iterable[Any], filter_fn: Filter | None = None
) -> ModelReport:
    """Takes off the biases of linear layers what quantized weights move the mean of their outputs by, in place.

    Args:
        model: with quantized weights; layers without a bias are skipped.
        float_model: the same model before that, whose layers' inputs are recorded, in one pass.
        batches: as `gptq_`.
        filter_fn: ``filter_fn(layer, name)`` says of which layers of ``model``; None: of all linear ones.
    Returns:
        For each layer the squared length of what the mean of its outputs was and is off by.
    Raises:
        ValueError: a filter that chooses nothing, a layer that the float model does not have in that shape, no batches,
            inputs that are not finite. TypeError: an argument of the wrong kind. The model is then as it was.
    """
    layers = chosen_layers(model, filter_fn, nnx.Linear)
    check_batches(batches)
    originals = named_modules(float_model)
    of_layers: dict[str, nnx.Linear] = {}
    for name, layer in layers.items():
        original = originals.get(name)
        if not isinstance(original, nnx.Linear) or dense(original).shape != dense(layer).shape:
            raise ValueError(f"`float_model` must have a layer '{name}' with a weight of {dense(layer).shape}")
        of_layers[name] = original
    means: dict[str, tuple[Any, int]] = {}

    def take(name: str, x: jax.Array) -> None:
        means[name] = mean_update(*means.get(name, (np.zeros(x.shape[-1]), 0)), rows_of(x))

    record(float_model, of_layers, batches, take)
    biases, reports = {}, []
    skipped = {name: "no batch reaches it" for name in layers if name not in means}
    for name, (mean, rows) in means.items():
        parameter = layers[name].bias
        if parameter is None:
            skipped[name] = "has no bias"
            continue
        w, w_hat, bias = dense(of_layers[name]), dense(layers[name]), parameter[...]
        biases[name] = named(name, corrected_bias, bias, w, w_hat, mean)
        wide = [np.asarray(one, np.float64) for one in (w, w_hat, bias, biases[name])]
        moved = (wide[1] - wide[0]) @ np.asarray(mean)
        before, after = (float((off**2).sum()) for off in (moved, moved + wide[3] - wide[2]))
        reports.append(LayerReport(name, before, after, "bias", rows))
    for name, bias in biases.items():
        parameter = layers[name].bias
        assert parameter is not None
        parameter[...] = bias
    return ModelReport(tuple(reports), skipped)
