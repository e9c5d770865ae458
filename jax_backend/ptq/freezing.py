"""The end of the flow of `calibration`: what was found, as text, and functions made again from it.

Source of the names: optimum-quanto's ``quantization_map`` and ``requantize``.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ...core.described import quantizer_of_text, text_of
from ...core.scales import ScaleSource
from ..tensor_quantizer import TensorQuantizer
from .calibration import Quantized

Map = dict[str, dict[str, str]]


def quantization_map(quantized: Quantized) -> Map:
    """What was done to a function, as text that JSON holds: with the function it makes the quantized one again.

    Returns:
        By kind, then by name: ``weights`` and ``activations``, the quantizers under the name ``""``; ``sites``,
        quantizers of activations with their scales as constants, exactly; ``removed``, sites that were taken away.
    Raises:
        ValueError: it is not calibrated.
    """
    if not quantized.calibrated:
        raise ValueError("`quantized` must be calibrated; see Calibration")
    return {
        "weights": {"": text_of(quantized.weights)},
        "activations": {"": text_of(quantized.activations)},
        "sites": {name: _as_constant(held) for name, held in quantized.sites.items()},
        "removed": dict(quantized.removed),
    }


def requantize(function: Callable[..., Any], quantization_map: Map) -> Quantized:
    """Makes of a float function what a quantized one was, without calibration.

    Args:
        function: with the weights inside; ``quantization_map``: of the quantized function.
    Raises:
        ValueError: a map that is none.
    """
    missing = [kind for kind in ("weights", "activations", "sites", "removed") if kind not in quantization_map]
    if missing:
        raise ValueError(f"`quantization_map` must be what quantization_map gave, got no {', '.join(missing)}")
    weights, activations = (quantizer_of_text(quantization_map[kind][""]) for kind in ("weights", "activations"))
    made = Quantized(function, weights, activations)
    sites = quantization_map["sites"]
    made.sites = {name: TensorQuantizer(quantizer_of_text(text)) for name, text in sites.items()}
    made.removed, made.calibrated = dict(quantization_map["removed"]), True
    return made


def _as_constant(held: TensorQuantizer) -> str:
    qparams = held.qparams(jnp.zeros(1), True)
    zero = 0 if qparams.zero_point is None else qparams.zero_point.item()
    q = held.quantizer.replace(
        source=ScaleSource.CONSTANT, scale_value=qparams.scale.item(), zero_point_value=zero, momentum=0.9
    )
    return text_of(q)
