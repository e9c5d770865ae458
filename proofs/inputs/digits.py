"""The digit classifier: real images, real trained weights, and one quantized network in all five execution modes.

    pixels / 16 -> conv1 -> ReLU -> conv2 (stride 2) -> ReLU -> flatten -> linear -> logits

Weights are quantized per output channel and the input of each layer per tensor, with scales kept in the checkpoint, so
every layer contracts integer codes and the logits are the same bits in every mode at every batch size. The longest
contraction has 512 terms of at most 255 * 128, and 512 * 255 * 128 < 2**24, so float32 carries it exactly too.

A checkpoint is a safetensors file. For each layer of `LAYERS` it holds ``<layer>.weight`` and ``<layer>.bias`` in torch
layout, ``<layer>.input_quant.scale`` and, where the scale of the weight is learned, ``<layer>.weight_quant.scale``. Its
metadata ``samebits`` names the quantizers, ``{"weight_quant": ..., "input_quant": ...}`` as JSON, catalog names. The
file in the package, `DATA`, also holds the images with their labels and the activations of some of them;
``examples/train_digits.py`` writes it.

Source of the images: scikit-learn's ``load_digits``, which is the test set of Alpaydin and Kaynak, "Optical Recognition
of Handwritten Digits", UCI Machine Learning Repository, 1998 (CC BY 4.0).
"""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core import QParams, catalog, choose_qparams, conv, linear
from ...core.granularity import qparams_shape
from ...core.requirements import explaining
from ..modes.devices import ACCELERATED, way_of
from ..modes.execution import MODES, implementation
from .checkpoint import stored_tensors

with explaining(__name__):
    from safetensors import safe_open
    from safetensors.numpy import save_file

Array = NDArray[Any]

DATA = Path(__file__).parent / "data" / "digits.safetensors"
LAYERS: Mapping[str, tuple[int, ...]] = MappingProxyType(  # shapes of the weights
    {"conv1": (16, 1, 3, 3), "conv2": (32, 16, 3, 3), "linear": (10, 512)}
)
PARTS = (".weight", ".bias", ".weight_quant.scale", ".input_quant.scale")
QUANTIZERS = ("weight_quant", "input_quant")


@dataclass(frozen=True)
class Checkpoint:
    """A quantized classifier as it is stored.

    Args:
        tensors: the tensors that the module names, float32.
        weight_quant: catalog name of the quantizer of all weights.
        input_quant: catalog name of the quantizer of the input of every layer.
    Raises:
        ValueError: an unknown quantizer, a missing tensor, or one of another shape or dtype; the message names it.
    """

    tensors: Mapping[str, Array]
    weight_quant: str = "int8_per_channel"
    input_quant: str = "uint8_per_tensor"

    def __post_init__(self) -> None:
        for name in QUANTIZERS:
            if getattr(self, name) not in catalog:
                raise ValueError(f"`{name}` must be in samebits.core.catalog, got {getattr(self, name)!r}")
        for layer, weight in LAYERS.items():
            shapes = {
                "weight": weight,
                "bias": weight[:1],
                "weight_quant.scale": qparams_shape(catalog[self.weight_quant].granularity, weight),
                "input_quant.scale": qparams_shape(catalog[self.input_quant].granularity, (1, *weight[1:])),
            }
            for part, shape in shapes.items():
                self._check(f"{layer}.{part}", shape, optional=part == "weight_quant.scale")

    def _check(self, name: str, shape: tuple[int, ...], *, optional: bool) -> None:
        tensor = self.tensors.get(name)
        if tensor is None and not optional:
            raise ValueError(f"a checkpoint of the digit classifier must hold {name}")
        if tensor is not None and (tensor.dtype != np.float32 or tensor.shape != shape):
            raise ValueError(f"{name} must be float32 of shape {shape}, got {tensor.dtype} of shape {tensor.shape}")


def load_checkpoint(path: Path = DATA) -> Checkpoint:
    """The classifier stored in a file.

    Raises:
        CheckpointError: no such file, or it cannot be read as a safetensors file.
        ValueError: as `Checkpoint`.
    """
    wanted = {tensor.name for tensor in stored_tensors(path) if tensor.name.endswith(PARTS)}
    with safe_open(path, framework="numpy") as file:
        quantizers = json.loads((file.metadata() or {}).get("samebits", "{}"))
        tensors = {name: file.get_tensor(name) for name in sorted(wanted)}
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


def logits(mode: str, batch_size: int, checkpoint: Checkpoint | None = None, count: int | None = None) -> Array:
    """Logits of all digits from the quantized classifier, run in one mode.

    Args:
        mode: one of `execution.MODES` or `devices.ACCELERATED`.
        batch_size: images at a time; the last batch may be smaller.
        checkpoint: None for the one that comes with the package.
        count: None for all digits, else how many of them, from the first.
    Returns:
        float32 ``(count, 10)``: the same bits for every mode and batch size.
    """
    run = network(mode, checkpoint)
    x = images()[0][:count]
    return np.concatenate([run(x[start : start + batch_size]) for start in range(0, len(x), batch_size)])


def network(mode: str, checkpoint: Checkpoint | None = None) -> Callable[[Array], Array]:
    """The classifier in one mode: images, float32 ``(batch, 1, 8, 8)``, to logits, float32 ``(batch, 10)``.

    Raises:
        ValueError: another mode.
    """
    known = (*MODES, *ACCELERATED)
    if mode not in known:
        raise ValueError(f"`mode` must be one of {', '.join(map(repr, known))}; got {mode!r}")
    checkpoint = load_checkpoint() if checkpoint is None else checkpoint
    if mode == "numpy":
        return _numpy_network(checkpoint)
    run: Callable[[Array], Array] = _room(mode).inference(module(mode, checkpoint), mode)
    return run


def module(mode: str, checkpoint: Checkpoint | None = None) -> Any:
    """The classifier as a module of the framework of a mode, with the tensors of a checkpoint."""
    checkpoint = load_checkpoint() if checkpoint is None else checkpoint
    tensors = dict(checkpoint.tensors)
    if way_of(mode).how == "eager":  # once here, instead of with every batch
        choose = implementation(mode).choose_qparams
        scales = {layer: f"{layer}.weight_quant.scale" for layer in LAYERS}
        q_w = catalog[checkpoint.weight_quant]
        tensors = {name: choose(q_w, tensors[f"{layer}.weight"]).scale for layer, name in scales.items()} | tensors
    learned = "conv1.weight_quant.scale" in tensors
    q_w = catalog[checkpoint.weight_quant].replace(source="learned" if learned else "statistic")
    q_x = catalog[checkpoint.input_quant].replace(source="learned")
    loaded = _room(mode).classifier(q_w, q_x)
    _room(mode).load_tensors(loaded, tensors)
    return loaded


def _room(mode: str) -> Any:
    return importlib.import_module(f".digits_{mode.split()[0]}", __package__)  # imports its framework


def _numpy_network(checkpoint: Checkpoint) -> Callable[[Array], Array]:
    """The specification of the network."""
    q_x, q_w = catalog[checkpoint.input_quant], catalog[checkpoint.weight_quant]
    tensors = checkpoint.tensors

    def apply(contract: Callable[..., Array], layer: str, x: Array, **geometry: tuple[int, int]) -> Array:
        w, learned = tensors[f"{layer}.weight"], tensors.get(f"{layer}.weight_quant.scale")
        w_qparams = choose_qparams(q_w, w) if learned is None else QParams(learned)
        x_qparams = QParams(tensors[f"{layer}.input_quant.scale"])
        return contract(q_x, x, x_qparams, q_w, w, w_qparams, tensors[f"{layer}.bias"], **geometry)

    def network(x: Array) -> Array:
        x = np.maximum(apply(conv, "conv1", x, padding=(1, 1)), 0)
        x = np.maximum(apply(conv, "conv2", x, stride=(2, 2), padding=(1, 1)), 0)
        return apply(linear, "linear", x.reshape(len(x), -1))

    return network
