"""Torch models in GGUF files, read back by the reader of `proofs`; the blocks themselves are in `tests/core`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from samebits.core.catalog import catalog
from samebits.core.configs import WeightOnly, int8_weight_only, mx
from samebits.core.gguf import block_codes, block_values
from samebits.core.granularity import PerGroup
from samebits.proofs.conformance.gguf_file import read_gguf
from samebits.torch_frontend.ptq import gguf_models as of_torch
from samebits.torch_frontend.ptq import quantize_, save_gguf


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_floats_become_blocks(tmp_path: Path) -> None:
    floats = model()
    layouts = save_gguf(floats, tmp_path / "a.gguf", "Q4_0", {"general.name": "x"}, keep=["1.*"])
    blocks = [name for name, layout in layouts.items() if layout == "Q4_0"]
    assert blocks == ["0.weight"]
    assert layouts["3.weight"] == layouts["1.weight"] == "float32"
    assert "2.num_batches_tracked" not in layouts
    found: Any = read_gguf(tmp_path / "a.gguf")
    codes, scale = block_codes("Q4_0", floats[0].weight.detach().numpy())
    assert (found["0.weight"].codes == codes).all()
    assert (found["0.weight"].scale == scale).all()
    assert found["1.weight"] == "F32"


@pytest.mark.parametrize("config", [mx("mxfp4_e2m1"), "int8", "int4"], ids=["mxfp4", "int8", "int4"])
def test_codes_that_a_layout_holds_are_kept(config: Any, tmp_path: Path) -> None:
    quantized = nn.Sequential(nn.Linear(64, 32))
    if isinstance(config, str):  # scales that are powers of two are float16 numbers
        q = catalog[f"{config}_per_tensor" if config == "int8" else "int4_per_group32"]
        config = WeightOnly(q.replace(granularity=PerGroup(32), restriction="power_of_two"))
    quantize_(quantized, config)
    held = of_torch._held(quantized[0].weight)
    assert torch.equal(
        torch.from_numpy(block_values(held.layout, held.codes, held.scale)), quantized[0].weight.dequantize()
    )
    assert save_gguf(quantized, tmp_path / "a.gguf")["0.weight"] == held.layout


def test_half_precision_and_refusals(tmp_path: Path) -> None:
    half = nn.Sequential(nn.Linear(5, 3)).bfloat16()
    assert save_gguf(half, tmp_path / "a.gguf") == {"0.weight": "bfloat16", "0.bias": "bfloat16"}
    assert read_gguf(tmp_path / "a.gguf") == {"0.weight": "BF16", "0.bias": "BF16"}
    quantized = nn.Sequential(nn.Linear(64, 32))
    quantize_(quantized, int8_weight_only())
    bad = nn.Sequential(nn.Linear(64, 32))
    torch.nn.init.constant_(bad[0].weight, torch.nan)
    exact = nn.Sequential(nn.Linear(64, 32))
    quantize_(exact, int8_weight_only(32))
    for given, keywords, says in (
        (quantized, {}, "`0.weight`: GGUF holds codes of int8, int4 and mxfp4 in groups of 32"),
        (exact, {}, "`0.weight`: `scale` of Q8_0 must be float16 numbers"),
        (bad, {}, "`0.weight`: `x` must be finite"),
        (model(), {"layout": "Q6_K"}, "`layout` must be one of Q8_0, Q4_0, MXFP4, got 'Q6_K'"),
        (model(), {"keep": ["no*"]}, r"`keep`: 'no\*' fits no tensor; tensors are 0.weight, "),
    ):
        with pytest.raises(ValueError, match=says):
            save_gguf(given, tmp_path / "b.gguf", **keywords)
    assert not (tmp_path / "b.gguf").exists()
