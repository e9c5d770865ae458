"""Trained float networks, and the integers that are made of them, by the specification alone.

`DATA` holds float weights and, for each place between layers, the largest magnitude of its numbers over the training
digits; ``examples/train_networks.py`` writes it. Here weights become int8 codes, per output channel but for the last
layer; activations have int8 codes of scale ``peak / 127`` with zero point 0, and uint8 codes of ``peak / 255`` behind a
ReLU; biases are int32 in units of the sums that they are added to. Every rule is one of `samebits.core`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import QParams, catalog, choose_qparams, quantize
from ...core.formats import IntegerFormat
from ...core.integer_tables import (
    exponential_table,
    fixed_point,
    fixed_points,
    lookup_table,
    norm_epsilon,
    norm_weights,
)
from ...core.requirements import explaining

with explaining(__name__):
    from safetensors.numpy import load_file

Array = NDArray[Any]

DATA = Path(__file__).parents[1] / "inputs" / "data" / "networks.safetensors"
HEADS = 4
SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = MappingProxyType(  # of weights; norms have one axis
    {
        "mlp": {"fc1": (64, 64), "fc2": (32, 64), "fc3": (10, 32)},
        "transformer": {
            "embed": (32, 16),
            "query": (32, 32),
            "key": (32, 32),
            "value": (32, 32),
            "out": (32, 32),
            "norm1": (32,),
            "up": (64, 32),
            "down": (32, 64),
            "norm2": (32,),
            "head": (10, 32),
        },
    }
)
INT8 = IntegerFormat(8)
PIXEL = np.float32(1 / 16)  # the scale of pixels, whose codes are 0 to 16
EPSILON = 1e-5  # of layer norms


@dataclass(frozen=True)
class Parameters:
    """An integer network as it is stored: arrays to be converted for a room, and plain numbers.

    Attributes:
        arrays: int8 weights, int32 biases, multipliers, shifts, tables.
        numbers: what is no array: multipliers with their shift of residual additions, bits of exponentials, epsilons.
        logit_scale: what a logit of 1 stands for.
    """

    arrays: Mapping[str, Array]
    numbers: Mapping[str, Any]
    logit_scale: float


def parameters(network: str, path: Path = DATA) -> Parameters:
    """The integers of ``"mlp"`` or ``"transformer"``.

    Raises:
        ValueError: another name. FileNotFoundError: no such file.
    """
    if network not in SHAPES:
        raise ValueError(f"`network` must be one of {', '.join(map(repr, SHAPES))}; got {network!r}")
    stored = load_file(path)
    own = {name.removeprefix(f"{network}."): x for name, x in stored.items() if name.startswith(f"{network}.")}
    return _mlp(own) if network == "mlp" else _transformer(own)


def _mlp(stored: Mapping[str, Array]) -> Parameters:
    arrays: dict[str, Array] = {}
    scale = PIXEL
    for layer in ("fc1", "fc2"):
        after = _scale(stored, layer, 255)
        arrays |= _layer(stored, layer, scale, after)
        scale = after
    last, logit_scale = _last(stored, "fc3", scale)
    return Parameters(arrays | last, {}, logit_scale)


def _transformer(stored: Mapping[str, Array]) -> Parameters:
    scales = {
        name.removesuffix(".peak"): _scale(stored, name.removesuffix(".peak"), 127) for name in stored if "peak" in name
    }
    arrays = _layer(stored, "embed", PIXEL, scales["embed"])
    reads = {"query": "embed", "key": "embed", "value": "embed", "out": "mixed", "up": "norm1", "down": "gelu"}
    for layer, place in reads.items():
        arrays |= _layer(stored, layer, scales[place], scales[layer])
    width = stored["embed.weight"].shape[0]
    root = np.sqrt(np.float32(width // HEADS))
    products = {"scores": (scales["query"] / root, scales["key"]), "mixed": (np.float32(1 / 255), scales["value"])}
    for place, (x_scale, w_scale) in products.items():
        arrays[f"{place}.multiplier"], arrays[f"{place}.shift"] = fixed_point(x_scale, w_scale, scales[place])
    arrays["exponentials"], bits = exponential_table(scales["scores"], 8)
    arrays["gelu"] = lookup_table("gelu", INT8, scales["up"], INT8, scales["gelu"])
    numbers: dict[str, Any] = {"bits": bits}
    for place, first, second in (("residual1", "embed", "out"), ("residual2", "norm1", "down")):
        numbers[place] = fixed_points(scales[first], scales[second], scales[place])
    for norm, place in (("norm1", "residual1"), ("norm2", "residual2")):
        pair = norm_weights(stored[f"{norm}.weight"], stored[f"{norm}.bias"], scales[norm])
        arrays[f"{norm}.weight"], arrays[f"{norm}.bias"] = pair
        numbers[norm] = norm_epsilon(EPSILON, scales[place], width)
    last, logit_scale = _last(stored, "head", scales["norm2"])
    return Parameters(arrays | last, numbers, logit_scale)


def _scale(stored: Mapping[str, Array], place: str, largest: int) -> np.float32:
    return np.float32(stored[f"{place}.peak"] / np.float32(largest))


def _layer(stored: Mapping[str, Array], layer: str, x_scale: np.float32, y_scale: np.float32) -> dict[str, Array]:
    """A linear layer whose result is requantized, with a scale for each output channel."""
    codes, w_scale = _weight(stored[f"{layer}.weight"], "int8_per_channel")
    multiplier, shift = fixed_point(x_scale, w_scale, y_scale)
    return {
        f"{layer}.weight": codes,
        f"{layer}.bias": _bias(stored[f"{layer}.bias"], x_scale, w_scale),
        f"{layer}.multiplier": multiplier,
        f"{layer}.shift": shift,
    }


def _last(stored: Mapping[str, Array], layer: str, x_scale: np.float32) -> tuple[dict[str, Array], float]:
    """The layer of the logits, whose sums stay as they are, in one scale; and that scale."""
    codes, w_scale = _weight(stored[f"{layer}.weight"], "int8_per_tensor")
    bias = _bias(stored[f"{layer}.bias"], x_scale, w_scale)
    return {f"{layer}.weight": codes, f"{layer}.bias": bias}, float(x_scale) * float(w_scale)


def _weight(w: Array, name: str) -> tuple[Array, Array]:
    qparams: QParams = choose_qparams(catalog[name], w)
    return quantize(catalog[name], w, qparams), np.asarray(qparams.scale).reshape(
        -1 if name.endswith("channel") else ()
    )


def _bias(bias: Array, x_scale: np.float32, w_scale: Array) -> Array:
    return np.rint(bias.astype(np.float64) / (np.float64(x_scale) * w_scale.astype(np.float64))).astype(np.int32)
