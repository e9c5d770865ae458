"""Files and models: the bytes that `quantize_` and `save_quantized` give, and numbers of each layer by definition."""

import copy
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from samebits import core
from samebits.jax_backend import ptq as in_jax
from samebits.proofs.inputs.checkpoint import CheckpointError
from samebits.proofs.quantizing.methods import METHODS, config_of
from samebits.proofs.quantizing.plan import plan
from samebits.proofs.quantizing.quantize import quantize_file, quantize_model, shapes_of_file
from samebits.proofs.quantizing.recommend import recommend
from samebits.torch_frontend import ptq as in_torch


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 96)).eval()


@pytest.fixture
def path(model: nn.Module, tmp_path: Path) -> Path:
    save_file({name: w.numpy() for name, w in model.state_dict().items()}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("method", METHODS)
def test_a_file_is_the_saved_model_byte_for_byte(method: str, model: nn.Module, path: Path) -> None:
    """In torch, and for one method in JAX, whose arithmetic is another."""
    output, saved = path.with_name("output"), path.with_name("saved")
    group = 32 if method == "int4_weight_only" else None
    quantize_file(path, plan(shapes_of_file(path), method, group_size=group), output)
    of_jax = in_jax.read_quantized(output)
    in_torch.quantize_(model, config_of(method, group))
    in_torch.save_quantized(model, saved)
    assert output.read_bytes() == saved.read_bytes()
    if method == "int4_weight_only":
        arrays = load_file(path)
        made = {
            name: in_jax.quant_array(config_of(method, group).weight, arrays[name], None, None, "packed")
            for name in ("0.weight", "2.weight")
        }
        in_jax.write_quantized({**arrays, **made}, saved)
        assert output.read_bytes() == saved.read_bytes()
        assert isinstance(of_jax["0.weight"], in_jax.QArray)


def test_numbers_are_those_of_the_specification(path: Path) -> None:
    planned = plan(shapes_of_file(path), "int4_weight_only", ["0.*"], 32)
    found = {one.planned.name: one for one in quantize_file(path, planned, None, histograms=True)}
    assert not path.with_suffix(".quantized.safetensors").exists()
    w = load_file(path)["0.weight"]
    q = config_of("int4_weight_only", 32).weight
    w_hat = core.fake_quantize(q, w)
    off = w_hat.astype(np.float64) - w
    one = found["0.weight"]
    assert one.error == np.abs(off).max() / np.abs(w).max()
    assert one.sqnr == pytest.approx(10 * np.log10(np.square(w.astype(np.float64)).sum() / np.square(off).sum()))
    assert (one.before, one.after) == (4 * 64 * 32, 64 * 32 // 2 + 2 * 4 * 64)  # codes; scales and zero points
    assert one.histogram is not None
    assert one.histogram.before.sum() == one.histogram.after.sum() == w.size
    edges = np.linspace(min(w.min(), w_hat.min()), max(w.max(), w_hat.max()), 65, dtype=np.float64)
    for values, counts in ((w, one.histogram.before), (w_hat, one.histogram.after)):
        assert np.abs(np.histogram(values.astype(np.float64), edges)[0] - counts).sum() <= 2  # edges are rounded
    left = found["2.weight"]
    assert (left.before, left.after, left.error, left.sqnr) == (4 * 32 * 96, 4 * 32 * 96, None, None)


def test_a_model_is_quantized_as_its_file(model: nn.Module, path: Path) -> None:
    twin = copy.deepcopy(model)
    of_file = quantize_file(path, plan(shapes_of_file(path), "int8_weight_only", group_size=32), None)
    of_model = quantize_model(model, "int8_weight_only", group_size=32)
    assert [one.as_data() for one in of_model] == [one.as_data() for one in of_file if one.planned.config]
    assert isinstance(model[0].weight, in_torch.QuantWeight)
    with pytest.raises(ValueError, match="nothing to quantize"):
        quantize_model(twin, layers=recommend(twin, "size").layers)  # both are small


def test_a_large_layer_gets_what_was_advised() -> None:
    layer = nn.Linear(96, 64)
    model = nn.Sequential(layer)
    (found,) = quantize_model(model, layers=recommend(model, "size").layers)
    assert (found.planned.method, found.group_size) == ("int4_weight_only", 32)
    assert isinstance(layer.weight, in_torch.QuantWeight)
    assert layer.weight.quantizer == config_of("int4_weight_only", 32).weight


def test_16_bit_weights_and_other_dtypes(tmp_path: Path) -> None:
    file, output = tmp_path / "model", tmp_path / "output"
    rng = np.random.default_rng(0)
    tensors = {
        "a.weight": rng.standard_normal((64, 64)).astype(ml_dtypes.bfloat16),
        "b.weight": rng.standard_normal((64, 64)).astype(np.float16),
        "steps": np.arange(4),
    }
    save_file(tensors, file)
    assert list(shapes_of_file(file)) == ["a.weight", "b.weight"]
    quantize_file(file, plan(shapes_of_file(file), "int8_weight_only"), output)
    read = in_torch.read_quantized(output)
    assert [read[name].dtype for name in tensors] == [torch.bfloat16, torch.float16, torch.int64]
    assert isinstance(read["a.weight"], in_torch.QuantWeight)
    with pytest.raises(CheckpointError, match="holds quantized weights already"):
        shapes_of_file(output)
    save_file({"steps": np.arange(4)}, file)
    with pytest.raises(CheckpointError, match="no floating-point tensor"):
        shapes_of_file(file)


def test_weights_that_are_not_finite_are_named_and_nothing_is_written(path: Path, model: nn.Module) -> None:
    tensors = load_file(path)
    tensors["2.weight"][3, 4] = np.nan
    save_file(tensors, path)
    output = path.with_name("output")
    with pytest.raises(ValueError, match=re.escape("2.weight: must be finite to be quantized")):
        quantize_file(path, plan(shapes_of_file(path), "int8_weight_only"), output)
    assert not output.exists()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="layer '2'"):
        quantize_model(model, "int8_weight_only")
    assert not isinstance(model[0].weight, in_torch.QuantWeight)


def test_zeros(tmp_path: Path) -> None:
    file = tmp_path / "model"
    save_file({"a.weight": np.zeros((8, 32), np.float32)}, file)
    (found,) = quantize_file(file, plan(shapes_of_file(file), "int8_weight_only"), None, histograms=True)
    assert (found.error, found.sqnr) == (0.0, None)
