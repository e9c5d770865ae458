"""The layout of compressed-tensors, beside files that compressed-tensors 0.20.0 wrote.

`tests/data/compressed_tensors` holds what its compressors made of the weights of `layers`. To make it again, in an
environment with it:

    python -c "from tests.torch_frontend.ptq import test_compressed_tensors as t; t.record()"
"""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samebits.core.catalog import catalog
from samebits.core.configs import ModuleConfigs, WeightOnly, float8_weight_only, int4_weight_only, int8_weight_only, mx
from samebits.core.descriptions import QParams, Quantizer, ZeroPoint
from samebits.core.formats import FLOAT8_E4M3FN, IntegerFormat
from samebits.core.granularity import PerAxis, PerGroup
from samebits.torch_frontend.ptq import (
    QuantWeight,
    load_compressed_tensors,
    quantize_,
    read_compressed_tensors,
    save_compressed_tensors,
    weight_of_codes,
)
from samebits.torch_frontend.ptq.compressed_tensors import pack_words, unpack_words

FOLDER = Path(__file__).parents[2] / "data" / "compressed_tensors"


def layers() -> dict[str, QuantWeight]:
    """Weights of every width, strategy and format, whose values are exact: scales are powers of two."""
    draw = torch.Generator().manual_seed(0)

    def made(q: Quantizer, low: int, high: int, inputs: int, act: str | None = None) -> QuantWeight:
        groups = inputs // q.granularity.size if isinstance(q.granularity, PerGroup) else 1
        codes = torch.randint(low, high + 1, (10, inputs), generator=draw).to(getattr(torch, q.format.storage))
        scale = 2.0 ** torch.randint(-6, 2, (10, groups), generator=draw)
        zero = torch.randint(low, high + 1, (10, groups), generator=draw).float() if q.affine else None
        return weight_of_codes(q, codes, QParams(scale, zero), torch.float32, act and catalog[act])

    found = {}
    for bits in range(1, 9):
        ends, q = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1), Quantizer(format=IntegerFormat(bits), **CHANNEL[bits])
        found[f"int{bits}"] = made(q, *ends, 37)
    for bits in (3, 4, 8):
        q = Quantizer(format=IntegerFormat(bits), granularity=PerGroup(16), zero_point=ZeroPoint.MIN_MAX)
        found[f"affine{bits}"] = made(q, -(1 << (bits - 1)), (1 << (bits - 1)) - 1, 48)
    found["channel_affine"] = made(catalog["int8_affine_per_token"].replace(granularity=PerAxis(0)), -128, 127, 9)
    found["dynamic"] = made(catalog["int8_per_channel"], -128, 127, 33, "int8_per_token")
    float8 = Quantizer(format=FLOAT8_E4M3FN, granularity=PerAxis(0))
    found["float8"] = made(float8, 0, 126, 10)
    found["float8_dynamic"] = made(float8, 0, 126, 10, "float8_e4m3fn_per_token")
    return found


CHANNEL: dict[int, Any] = {bits: {"granularity": PerAxis(0)} for bits in range(2, 9)} | {
    1: {"granularity": PerAxis(0), "zero_point": ZeroPoint.MIN_MAX}
}


def record() -> None:
    """Writes `FOLDER` by compressed-tensors: our config, as it reads it, and what it makes of the values."""
    save_compressed_tensors(model(), FOLDER)
    described = json.loads((FOLDER / "config.json").read_text())
    read = import_module("compressed_tensors.quantization").QuantizationConfig(**described["quantization_config"])
    registry = import_module("compressed_tensors.compressors").BaseCompressor
    own, tensors = layers(), dict[str, Tensor]()
    for group in read.config_groups.values():
        compressor = registry.get_value_from_registry(group.format or read.format)
        for name in group.targets:
            w = own[name]
            shape = (1,) if not w.scale.ndim else (len(w), -1)
            given = {"weight": w.dequantize(), "weight_scale": w.scale.reshape(shape)}
            if w.zero_point is not None:
                given["weight_zero_point"] = w.zero_point.reshape(shape)
            made = compressor.compress(given, group)
            assert torch.equal(compressor.decompress(made, group)["weight"], w.dequantize()), name
            tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in made.items()}
    save_file(tensors, FOLDER / "model.safetensors", {"format": "pt"})
    described["quantization_config"] = read.model_dump()
    (FOLDER / "config.json").write_text(json.dumps(described, indent=1) + "\n")


def model(weights: dict[str, QuantWeight] | None = None) -> nn.Module:
    """A model of linear layers without biases that have these weights."""
    parts = nn.ModuleDict()
    for name, w in (weights or layers()).items():
        parts[name] = nn.Linear(w.shape[1], w.shape[0], bias=False)
        parts[name].weight = nn.Parameter(w, requires_grad=False)
    return parts


def test_the_same_tensors_as_compressed_tensors(tmp_path: Path) -> None:
    save_compressed_tensors(model(), tmp_path)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(FOLDER / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert _bytes(ours[name]) == _bytes(tensor), name


def _bytes(x: Tensor) -> bytes:
    return (x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x).numpy().tobytes()


def test_its_config_is_the_same_as_it_writes_it(tmp_path: Path) -> None:
    """But for the keys that it adds with its defaults."""
    save_compressed_tensors(model(), tmp_path)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, FOLDER))
    ours, theirs = ours["quantization_config"], theirs["quantization_config"]
    assert ours["config_groups"].keys() == theirs["config_groups"].keys()
    for name, group in ours.pop("config_groups").items():
        found = theirs["config_groups"][name]
        for role in ("weights", "input_activations"):
            own, other = group.pop(role) or {}, found.pop(role) or {}
            assert {key: other.get(key) for key in own} == own
        assert {key: found[key] for key in group} == group
    assert {key: theirs[key] for key in ours} == ours


def test_its_files_are_read() -> None:
    found, want = read_compressed_tensors(FOLDER), layers()
    assert found.keys() == {f"{name}.weight" for name in want}
    for name, w in want.items():
        read = found[f"{name}.weight"]
        assert isinstance(read, QuantWeight), name
        assert (read.quantizer.format, read.act_quant) == (w.quantizer.format, w.act_quant), name
        for mine, theirs in ((w.codes, read.codes), (w.scale, read.scale)):
            assert torch.equal(mine, theirs), name
        assert torch.equal(read.dequantize(), w.dequantize()), name


def test_a_model_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def built() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 32), nn.Linear(32, 3), nn.LayerNorm(3))

    first, second = built(), built()
    configs = {"0": int4_weight_only(32, "integer"), "2": int8_weight_only(), "_default": None}
    quantize_(first, ModuleConfigs(configs))
    (tmp_path / "config.json").write_text('{"model_type": "mine"}')
    save_compressed_tensors(first, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "mine"
    assert written["quantization_config"]["ignore"] == ["3"]
    load_compressed_tensors(second, tmp_path)
    x = torch.randn(4, 64)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
    save_compressed_tensors(second, tmp_path / "again")
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("bits", range(1, 9))
def test_words_are_the_codes_one_after_the_other(bits: int) -> None:
    """As one long integer from the lowest bit up, here by Python's integers."""
    codes = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (3, 37), generator=torch.Generator().manual_seed(bits))
    words = pack_words(codes.to(torch.int8), bits)
    for row, packed in zip(codes.tolist(), words.tolist(), strict=True):
        whole = sum((code + (1 << (bits - 1))) << (bits * i) for i, code in enumerate(row))
        assert [word % 2**32 for word in packed] == [(whole >> (32 * i)) % 2**32 for i in range(len(packed))]
    assert torch.equal(unpack_words(words, bits, 37), codes.to(torch.int8))
    with pytest.raises(ValueError, match="must be int32 words of 70 codes"):
        unpack_words(words, bits, 70)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (mx("mxfp4_e2m1"), "`0.weight`: must be integers of at most 8 bits or float8_e4m3fn"),
        (int4_weight_only(32, "float"), "`0.weight`: must be integers .* with zero points that are codes"),
        (WeightOnly("int8_per_block"), "`0.weight`: must have scales per tensor, per axis 0, or by group"),
    ],
)
def test_what_there_are_no_words_for(config: Any, says: str, tmp_path: Path) -> None:
    floats = nn.Sequential(nn.Linear(64, 32))
    quantize_(floats, config)
    with pytest.raises(ValueError, match=says):
        save_compressed_tensors(floats, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`model` must have weights that are codes"):
        save_compressed_tensors(nn.Linear(3, 4), tmp_path)
    half = nn.Sequential(nn.Linear(64, 32).bfloat16())
    quantize_(half, float8_weight_only())
    with pytest.raises(ValueError, match=r"`0.weight`: must stand for float32"):
        save_compressed_tensors(half, tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(ValueError, match="must hold a config of compressed-tensors, got 'gptq'"):
        read_compressed_tensors(tmp_path)
    shutil.copytree(FOLDER, tmp_path / "other")
    text = (tmp_path / "other" / "config.json").read_text()
    (tmp_path / "other" / "config.json").write_text(text.replace("int-quantized", "marlin-24"))
    with pytest.raises(ValueError, match=r"layer 'dynamic': its format must be one of .*, got 'marlin-24'"):
        read_compressed_tensors(tmp_path / "other")
    tensors = load_file(FOLDER / "model.safetensors")
    del tensors["affine4.weight_packed"]
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "config.json").write_text(text)
    with pytest.raises(ValueError, match="layer 'affine4': weight_packed"):
        read_compressed_tensors(tmp_path / "other")
