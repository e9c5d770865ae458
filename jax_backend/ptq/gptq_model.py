"""GPTQ of a whole model."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from ...core.descriptions import QParams, Quantizer
from ...core.layerwise import ModelReport, check_gptq
from .gptq import gptq
from .layerwise import quantize_layers
from .recording import Filter


def gptq_(
    model: nnx.Module,
    q: Quantizer | str,
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
        q: a quantizer of matrices (out, in), or its name in the catalog.
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
