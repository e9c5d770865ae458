"""Weights of a model, quantized layer by layer, each by what it sees behind those that are quantized already."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from ...core.configs import Config, config_of
from ...core.descriptions import QParams, Quantizer
from ...core.layerwise import LayerReport, ModelReport
from ..quantizer import choose_qparams, dequantize, fake_quantize, quantize
from .gptq import hessian_update, output_error
from .recording import (
    Filter,
    check_batches,
    chosen_layers,
    record_stage,
    rows_of,
    stages,
    weights_of_codes,
)
from .storing import check_floats, dense, scaled_for, store

Array = jax.Array
Found = tuple[Array, QParams]
Method = Callable[[Quantizer, Array, Array], Found]


def quantize_layers(
    model: nnx.Module,
    q: Config | Quantizer | str,
    batches: Iterable[Any],
    filter_fn: Filter | None,
    name: str,
    check: Callable[[Quantizer, tuple[int, ...]], object],
    method: Method,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> ModelReport:
    """Weights of linear layers by a method that takes a quantizer, a weight and the statistics of its inputs.

    A layer keeps the weights that are rounded to nearest unless the method's are better (`output_error`). There is one
    pass through the batches for each stage of layers that see the same input, as far as that stage; of the inputs only
    one matrix of statistics is held.

    Args:
        name: of the method, for the report.
        check: raises for a quantizer and the shape of a weight that the method does not take.
        progress: what a list of stages is run through, such as ``tqdm.tqdm``.
    Raises:
        TypeError, ValueError, KeyError: as `gptq_`. The model is then as it was.
    """
    config = config_of(q)
    q = config.weight
    layers = chosen_layers(model, filter_fn, nnx.Linear)
    check_floats(layers)
    check_batches(batches)
    for layer_name, layer in layers.items():
        named(layer_name, check, q, tuple(dense(layer).shape))
    codes: dict[str, Found] = {}
    reports: list[LayerReport] = []
    order = stages(model, layers, batches)
    if not order:
        raise ValueError(f"calibration never run: no batch reaches {', '.join(map(repr, layers))}")
    for stage in progress(order) if progress else order:
        weights = {done: partial(_kernel, q, *codes[done], dense(layers[done]).dtype) for done in codes}
        with weights_of_codes(layers, weights):
            hessian, rows = _statistics(model, layers, stage, batches)
        for layer_name in stage:
            w = dense(layers[layer_name])
            codes[layer_name], report = named(layer_name, _better, q, w, hessian, rows, layer_name, name, method)
            reports.append(report)
    for layer_name, found in codes.items():
        store(layers[layer_name], config, *found)
    return ModelReport(tuple(reports), {one: "no batch reaches it" for one in layers if one not in codes})


def _statistics(
    model: nnx.Module, layers: dict[str, nnx.Linear], stage: dict[str, int], batches: Iterable[Any]
) -> tuple[Array, int]:
    """The matrix of a stage's inputs and how many rows it is of. ValueError if it is not finite."""
    first = next(iter(stage))
    columns = dense(layers[first]).shape[1]
    held: list[Any] = [np.zeros((columns, columns)), 0]

    def take(_: str, x: Array) -> None:
        held[:] = hessian_update(held[0], held[1], rows_of(x))

    record_stage(model, layers, stage, batches, take)
    hessian, rows = held
    if not rows:
        raise ValueError(f"'{first}': calibration never run: its inputs have no rows")
    if not np.isfinite(hessian).all():
        raise ValueError(f"'{first}': its recorded inputs have NaN or an infinity, or overflow float64 when squared")
    return hessian, rows


def _better(
    q: Quantizer, w: Array, hessian: Array, rows: int, name: str, of_method: str, method: Method
) -> tuple[Found, LayerReport]:
    """What the method finds if it is better than rounding to nearest, else that."""
    single = w.astype(np.float32)
    nearest = choose_qparams(q, single)
    error = output_error(single, fake_quantize(q, single, nearest), hessian)
    codes, qparams = method(q, single, hessian)
    found = output_error(single, dequantize(q, codes, qparams), hessian)
    if found < error:
        return (codes, qparams), LayerReport(name, error, found, of_method, rows)
    return (quantize(q, single, nearest), nearest), LayerReport(name, error, error, "nearest", rows)


def _kernel(q: Quantizer, codes: Array, qparams: QParams, dtype: Any) -> Array:
    """The kernel (in, out) that these codes stand for."""
    return dequantize(q, codes, scaled_for(dtype, qparams), dtype).T


def named(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """The function's result; TypeError and ValueError that it raises with the name of the layer."""
    try:
        return function(*args)
    except (TypeError, ValueError) as error:
        raise type(error)(f"'{name}': {error.args[0]}") from error
