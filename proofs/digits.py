"""The digit classifier: real images, real trained weights, and one quantized network in all five execution modes.

    pixels / 16 -> conv1 -> ReLU -> conv2 (stride 2) -> ReLU -> flatten -> linear -> logits

Weights are quantized per output channel and the input of each layer per tensor, with scales kept in the checkpoint, so
every layer contracts integer codes and the logits are the same bits in every mode at every batch size. The longest
contraction has 512 terms of at most 255 * 128, and 512 * 255 * 128 < 2**24, so float32 carries it exactly too.

A checkpoint is a safetensors file. For each layer of `LAYERS` it holds ``<layer>.weight`` and ``<layer>.bias`` in torch
layout, ``<layer>.input_quant.scale`` and, where the scale of the weight is learned, ``<layer>.weight_quant.scale``. Its
metadata ``samebits`` names the quantizers, ``{"weight_quant": ..., "input_quant": ...}`` as JSON with catalog names. The
file in the package, `DATA`, also holds the images with their labels and the activations of some of them;
``examples/train_digits.py`` writes it.

Source of the images: scikit-learn's ``load_digits``, which is the test set of Alpaydin and Kaynak, "Optical Recognition
of Handwritten Digits", UCI Machine Learning Repository, 1998 (CC BY 4.0).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..core import catalog

Array = NDArray[Any]

DATA = Path(__file__).parent / "data" / "digits.safetensors"
LAYERS = ("conv1", "conv2", "linear")
NEEDED, LEARNED = ("weight", "bias", "input_quant.scale"), "weight_quant.scale"
QUANTIZERS = ("weight_quant", "input_quant")


@dataclass(frozen=True)
class Checkpoint:
    """A quantized classifier as it is stored.

    Args:
        tensors: the tensors that the module names, float32.
        weight_quant: catalog name of the quantizer of all weights.
        input_quant: catalog name of the quantizer of the input of every layer.
    Raises:
        ValueError: a missing tensor or an unknown quantizer; the message names it.
    """

    tensors: Mapping[str, Array]
    weight_quant: str = "int8_per_channel"
    input_quant: str = "uint8_per_tensor"

    def __post_init__(self) -> None:
        missing = [f"{layer}.{name}" for layer in LAYERS for name in NEEDED if f"{layer}.{name}" not in self.tensors]
        if missing:
            raise ValueError(f"a checkpoint of the digit classifier must hold {', '.join(missing)}")
        for name in (self.weight_quant, self.input_quant):
            if name not in catalog:
                raise ValueError(f"the quantizers of a checkpoint must be in samebits.core.catalog, got {name!r}")


def load_checkpoint(path: str | Path | None = None) -> Checkpoint:
    """The classifier stored in a file; None for the one that comes with the package.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no safetensors file, or as `Checkpoint`.
    """
    path = DATA if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            quantizers = json.loads((file.metadata() or {}).get("samebits", "{}"))
            wanted = {f"{layer}.{part}" for layer in LAYERS for part in (*NEEDED, LEARNED)}
            tensors = {name: file.get_tensor(name) for name in sorted(wanted.intersection(file.keys()))}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no safetensors file of this project: {error}") from None
    return Checkpoint(tensors, **{name: quantizers[name] for name in QUANTIZERS if name in quantizers})


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Writes a classifier to a file that `load_checkpoint` reads; the same one gives the same bytes."""
    tensors = {name: np.array(array, order="C") for name, array in checkpoint.tensors.items()}
    quantizers = {name: getattr(checkpoint, name) for name in QUANTIZERS}
    save_file(tensors, path, {"samebits": json.dumps(quantizers)})  # one key: their order in the file is not defined


def images() -> tuple[Array, Array]:
    """All 1,797 digits, float32 ``(1797, 1, 8, 8)`` in [0, 1], and their labels, int64 ``(1797,)``."""
    with safe_open(DATA, framework="numpy") as file:
        pixels, labels = file.get_tensor("images"), file.get_tensor("labels")
    return pixels[:, None].astype(np.float32) / np.float32(16), labels.astype(np.int64)


def held_out() -> Array:
    """Which of the digits training does not see: every third, 599 of them. A mask, bool ``(1797,)``."""
    return np.asarray(np.arange(1797) % 3 == 2)


def accuracy(logits: Array, labels: Array) -> float:
    """Share of the held-out digits whose largest logit is that of their label, in percent.

    Args:
        logits: of all digits, ``(1797, 10)``; ``labels``: of all digits, ``(1797,)``.
    """
    return float(100 * np.mean((logits.argmax(1) == labels)[held_out()]))


def batches(x: Array, y: Array, epochs: int, seed: int, size: int = 64) -> Iterator[tuple[Array, Array]]:
    """Training data: shuffled batches of images and labels, half of the images moved by up to one pixel each way.

    Drawn with NumPy from ``seed``, so training sees the same batches in every framework. What does not fill a batch at
    the end of an epoch is left out.

    Args:
        x: images, ``(n, 1, 8, 8)``; ``y``: labels, ``(n,)``.
    """
    draw = np.random.default_rng(seed)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    pixel = np.arange(8)
    for _ in range(epochs):
        order = draw.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            chosen = order[start : start + size]
            shift = np.where(draw.random((size, 1)) < 0.5, draw.integers(0, 3, (size, 2)), 1)
            rows, columns = (pixel + shift[:, axis, None] for axis in (0, 1))
            yield padded[chosen[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None], y[chosen]
