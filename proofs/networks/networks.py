"""The networks: what they compute, written once over the verbs of a room, with arrays of that room.

    mlp           requantized linear layers with ReLU
    transformer   self-attention with an integer softmax, GELU as a table, integer layer norms, residual additions
    cnn           the convolutions of `inputs.digits`: codes are contracted exactly, scales applied once in float32

The first two know integers alone, from pixels to logits. Of the third, rooms have layers; its weights and formula are
those of `inputs.digits`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from ...core.formats import IntegerFormat
from .parameters import HEADS

UINT8 = IntegerFormat(8, signed=False)


class Operations(Protocol):
    """The verbs over integers that a network is written in: those of a room, or others to be compared with them."""

    integer_matmul: Callable[..., Any]
    requantize: Callable[..., Any]
    integer_add: Callable[..., Any]
    lookup: Callable[..., Any]
    integer_softmax: Callable[..., Any]
    integer_layer_norm: Callable[..., Any]
    integer_average_pool: Callable[..., Any]


Arrays = Mapping[str, Any]
Network = Callable[[Operations, Arrays, Mapping[str, Any], Any], Any]


def mlp(ops: Operations, arrays: Arrays, numbers: Mapping[str, Any], x: Any) -> Any:
    """Pixels, uint8 ``(batch, 8, 8)``, to logits, int32 ``(batch, 10)``."""
    x = x.reshape(len(x), 64)
    for layer in ("fc1", "fc2"):
        x = _linear(ops, arrays, layer, x, UINT8)
    return ops.integer_matmul(x, arrays["fc3.weight"], arrays["fc3.bias"])


def transformer(ops: Operations, arrays: Arrays, numbers: Mapping[str, Any], x: Any) -> Any:
    """Pixels with their place, uint8 ``(batch, 8, 16)`` (see `tokens`), to logits, int32 ``(batch, 10)``."""
    h = _linear(ops, arrays, "embed", x)
    attended = _linear(ops, arrays, "out", _attention(ops, arrays, numbers["bits"], h))
    h = ops.integer_add(h, attended, *numbers["residual1"])
    h = ops.integer_layer_norm(h, arrays["norm1.weight"], arrays["norm1.bias"], numbers["norm1"])
    inner = ops.lookup(_linear(ops, arrays, "up", h), arrays["gelu"])
    h = ops.integer_add(h, _linear(ops, arrays, "down", inner), *numbers["residual2"])
    h = ops.integer_layer_norm(h, arrays["norm2.weight"], arrays["norm2.bias"], numbers["norm2"])
    mean = ops.integer_average_pool(h.swapaxes(1, 2), (8,)).reshape(len(x), -1)
    return ops.integer_matmul(mean, arrays["head.weight"], arrays["head.bias"])


INTEGER_NETWORKS: Mapping[str, Network] = MappingProxyType({"mlp": mlp, "transformer": transformer})


def _linear(ops: Operations, arrays: Arrays, layer: str, x: Any, format: IntegerFormat | None = None) -> Any:
    total = ops.integer_matmul(x, arrays[f"{layer}.weight"], arrays[f"{layer}.bias"])
    to = {} if format is None else {"format": format}
    return ops.requantize(total, arrays[f"{layer}.multiplier"], arrays[f"{layer}.shift"], **to)


def _attention(ops: Operations, arrays: Arrays, bits: int, h: Any) -> Any:
    """Self-attention of `HEADS` heads, without the layer behind it."""
    batch, tokens, width = h.shape
    query, key, value = (
        _linear(ops, arrays, name, h).reshape(batch, tokens, HEADS, width // HEADS).swapaxes(1, 2)
        for name in ("query", "key", "value")
    )
    scores = ops.integer_matmul(query, key)
    scores = ops.requantize(scores, arrays["scores.multiplier"], arrays["scores.shift"])
    shares = ops.integer_softmax(scores, arrays["exponentials"], bits)
    mixed = ops.integer_matmul(shares, value.swapaxes(2, 3))
    mixed = ops.requantize(mixed, arrays["mixed.multiplier"], arrays["mixed.shift"])
    return mixed.swapaxes(1, 2).reshape(batch, tokens, width)
