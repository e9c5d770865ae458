"""The digit classifier: its data, its logits in all modes, its training in both frameworks, its checkpoints."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits

from samebits.core import catalog
from samebits.proofs.inputs import digits, digits_jax, digits_torch
from samebits.proofs.inputs.checkpoint import CheckpointError
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.execution import MODES

Array = NDArray[Any]

EXAMPLES = Path(__file__).parents[3] / "examples"
ROOMS: Mapping[str, ModuleType] = {"torch": digits_torch, "jax": digits_jax}
EAGER_JAX = 40  # images at batch 1, where an image takes tens of milliseconds; `samebits check` takes all


@cache
def specified() -> Array:
    """Logits of all digits from the specification."""
    return digits.logits("numpy", 256)


@cache
def example(name: str) -> ModuleType:
    """A program of `examples` as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str | Path) -> str:
    """Runs a program of `examples` as its users do; what it prints."""
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def float_logits(room: ModuleType) -> Array:
    """Logits of all digits from the float weights."""
    network = room.classifier(None, None)
    room.load_tensors(network, digits.load_checkpoint().tensors)
    return np.asarray(
        room.inference(network, "jax jit" if room is digits_jax else "torch eager")(digits.images()[0])
    )  # the faster way


def by_integers(checkpoint: digits.Checkpoint, x: Array) -> Array:
    """The network in int64, kernel element by kernel element; weights signed, inputs unsigned, both symmetric."""
    bits = catalog[checkpoint.weight_quant].format.bits
    for layer, shape in digits.LAYERS.items():
        w, bias, s_x = (checkpoint.tensors[f"{layer}.{part}"] for part in ("weight", "bias", "input_quant.scale"))
        w, x = (w, x) if w.ndim == 4 else (w[:, :, None, None], x.reshape(len(x), -1, 1, 1))
        s_w = np.abs(w).max((1, 2, 3)) / np.float32(2 ** (bits - 1) - 1)
        s_w = checkpoint.tensors.get(f"{layer}.weight_quant.scale", s_w).reshape(-1, 1, 1)
        b = np.clip(np.rint(w / s_w[..., None]), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int64)
        step, margin = (2 if layer == "conv2" else 1), len(shape) // 2 - 1
        a = np.pad(np.clip(np.rint(x / s_x), 0, 255).astype(np.int64), ((0, 0), (0, 0), (margin,) * 2, (margin,) * 2))
        rows, columns = ((n - k) // step + 1 for n, k in zip(a.shape[2:], w.shape[2:], strict=True))
        total = np.zeros((len(x), len(w), rows, columns), np.int64)
        for i, j in np.ndindex(*w.shape[2:]):
            here = a[:, :, i : i + step * rows : step, j : j + step * columns : step]
            total += np.einsum("nihw,oi->nohw", here, b[:, :, i, j])
        y = total.astype(np.float32) * (s_x * s_w) + bias[:, None, None]
        x = np.maximum(y, 0)
    return y[:, :, 0, 0]


def test_images_are_those_of_scikit_learn() -> None:
    x, labels = digits.images()
    given = load_digits()
    assert_same_bits((given.images[:, None] / 16).astype(np.float32), x)
    assert_same_bits(given.target.astype(np.int64), labels)
    assert digits.held_out().sum() == 599


def test_activations_are_those_of_the_float_network() -> None:
    stored = load_file(digits.DATA)
    chosen = np.flatnonzero(digits.held_out())[:64]
    assert_same_bits(digits.images()[0][chosen], stored["activations.input"])
    network = digits_torch.classifier(None, None)
    digits_torch.load_tensors(network, digits.load_checkpoint().tensors)
    x = torch.from_numpy(stored["activations.input"])
    with torch.no_grad():
        for name, part in network.named_children():
            x = part(x)
            if name in digits.LAYERS:
                np.testing.assert_allclose(x.numpy(), stored[f"activations.{name}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_quantized_accuracy(room: ModuleType) -> None:
    labels = digits.images()[1]
    reference = digits.accuracy(float_logits(room), labels)
    assert reference > 98
    assert digits.accuracy(specified(), labels) > reference - 0.5


def test_specification_against_integers() -> None:
    assert_same_bits(by_integers(digits.load_checkpoint(), digits.images()[0]), specified())


@pytest.mark.thorough
@pytest.mark.parametrize("mode", MODES[1:])
def test_logits_are_the_same_bits(mode: str) -> None:
    assert_same_bits(specified(), digits.logits(mode, 256), call=f"logits of {mode}, batch 256")


@pytest.mark.thorough
@pytest.mark.parametrize("mode", MODES)
def test_logits_one_image_at_a_time(mode: str) -> None:
    count = EAGER_JAX if mode == "jax eager" else None
    assert_same_bits(specified()[:count], digits.logits(mode, 1, count=count), call=f"logits of {mode}, batch 1")


def test_order_of_training_data_is_fixed() -> None:
    x, y = digits.images()
    first, second = (list(digits.batches(x, y, 2, seed)) for seed in (3, 3))
    assert len(first) == 2 * (1797 // 64)
    for (images, labels), other in zip(first, second, strict=True):
        assert_same_bits((images, labels), other)
        assert (images.shape, images.dtype) == ((64, 1, 8, 8), np.float32)
    assert not np.array_equal(next(digits.batches(x, y, 1, 4))[0], first[0][0])


def test_moved_images_move_by_one_pixel_at_most() -> None:
    x, y = digits.images()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moved = set(np.ndindex(3, 3))
    seen = set()
    for image, label in (
        (i[0], n) for batch in islice(digits.batches(x, y, 1, 0), 4) for i, n in zip(*batch, strict=True)
    ):
        windows = {(i, j): padded[y == label, 0, i : i + 8, j : j + 8] for i, j in moved}
        found = [at for at, window in windows.items() if (window == image).all((1, 2)).any()]
        assert found
        seen.update(found)
    assert seen == moved


@pytest.mark.parametrize(
    ("first", "other", "scale"),
    [("torch", "jax", "statistic"), ("torch", "jax", "learned"), ("jax", "torch", "learned")],
)
def test_training_and_the_checkpoint_of_it(first: str, other: str, scale: str, tmp_path: Path) -> None:
    """A short training in one framework, from float weights; the other loads the file and gives the same logits."""
    bits = 4 if scale == "learned" else 8
    trained = example("qat_digits").train(first, bits, scale, from_scratch=False, seed=0, epochs=1)
    start = digits.load_checkpoint().tensors
    for name, tensor in trained.tensors.items():
        assert np.isfinite(tensor).all(), name
        assert name not in start or not np.array_equal(tensor, start[name]) or name == "conv1.input_quant.scale", name
    assert ("conv1.weight_quant.scale" in trained.tensors) == (scale == "learned")

    digits.save_checkpoint(tmp_path / "trained.safetensors", trained)
    loaded = digits.load_checkpoint(tmp_path / "trained.safetensors")
    assert (loaded.weight_quant, loaded.input_quant) == (f"int{bits}_per_channel", "uint8_per_tensor")
    assert set(loaded.tensors) == set(trained.tensors)
    for name, tensor in trained.tensors.items():
        assert_same_bits(tensor, loaded.tensors[name], call=name)
    expected = by_integers(trained, digits.images()[0])
    assert digits.accuracy(expected, digits.images()[1]) > 97
    for framework in ("numpy", first, other):
        mode = {"numpy": "numpy", "torch": "torch eager", "jax": "jax jit"}[framework]
        assert_same_bits(expected, digits.logits(mode, 256, loaded), call=mode)


@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_tensors_survive_the_network(room: ModuleType) -> None:
    """Names, layouts and values, in and out of a network of either framework."""
    draw = np.random.default_rng(0)
    quant = [catalog[name].replace(source="learned") for name in ("int8_per_channel", "uint8_per_tensor")]
    network = room.classifier(*quant)
    tensors = {name: draw.random(tensor.shape, np.float32) for name, tensor in room.tensors_of(network).items()}
    assert len(tensors) == 12
    room.load_tensors(network, tensors)
    for name, tensor in room.tensors_of(network).items():
        assert_same_bits(tensors[name], tensor, call=name)


@pytest.mark.parametrize("framework", ROOMS)
def test_training_from_scratch_learns(framework: str) -> None:
    qat = example("qat_digits")
    stage = getattr(qat, f"{framework}_stage")
    q_w, q_x = catalog["int4_per_channel"], catalog["uint8_per_tensor"].replace(source="running_statistic")
    tensors = stage(qat.random_weights(0), qat.Quantizers(q_w, q_x), 3, 1e-2, 0)
    result = digits.logits("numpy", 256, digits.Checkpoint(tensors, "int4_per_channel"))
    assert digits.accuracy(result, digits.images()[1]) > 80


@pytest.mark.thorough
def test_one_program_loads_what_the_other_wrote(tmp_path: Path) -> None:
    path = tmp_path / "digits_qat.safetensors"
    printed = run("qat_digits", "--framework", "torch", "--epochs", "1", "--output", path)
    printed += run("qat_digits", "--framework", "jax", "--checkpoint", path)
    digests = re.findall("^([0-9a-f]{64})  logits, (.*)$", printed, re.MULTILINE)
    assert [mode for _, mode in digests] == list(MODES[1:])
    assert len({digest for digest, _ in digests}) == 1


def test_float_training_writes_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "digits.safetensors"
    printed = run("train_digits", "--epochs", "2", "--output", path)
    assert float(re.findall(r"held-out digits: (\d+\.\d\d) %", printed)[0]) > 80
    assert {n: (t.dtype, t.shape) for n, t in load_file(path).items()} == {
        n: (t.dtype, t.shape) for n, t in load_file(digits.DATA).items()
    }
    digits.load_checkpoint(path)


def test_bad_checkpoints(tmp_path: Path) -> None:
    good = dict(digits.load_checkpoint().tensors)
    path = tmp_path / "bad.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        digits.load_checkpoint(path)
    path.write_bytes(digits.DATA.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        digits.load_checkpoint(path)
    save_file({name: tensor for name, tensor in good.items() if name != "conv2.bias"}, path)
    with pytest.raises(ValueError, match=r"must hold conv2\.bias"):
        digits.load_checkpoint(path)
    save_file(good | {"linear.weight": good["linear.weight"].T.copy()}, path)
    with pytest.raises(ValueError, match=r"linear\.weight must be float32 of shape \(10, 512\), got float32 of shape"):
        digits.load_checkpoint(path)
    save_file(good | {"linear.bias": good["linear.bias"].astype(np.float16)}, path)
    with pytest.raises(ValueError, match=r"linear\.bias must be float32"):
        digits.load_checkpoint(path)
    save_file(good, path, {"samebits": '{"weight_quant": "int9_per_channel"}'})
    with pytest.raises(ValueError, match=r"`weight_quant` must be in .*, got 'int9_per_channel'"):
        digits.load_checkpoint(path)
    with pytest.raises(ValueError, match="`mode` must be one of 'numpy'"):
        digits.logits("tensorflow", 256)
