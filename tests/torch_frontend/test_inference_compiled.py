"""Compiled and exported models in `quant_inference_mode`: what others warn of does not hold here.

Brevitas' page on ``torch.compile`` names as known: other outputs compiled than eager, compilation anew for each layer
and for scales that follow each tensor, percentiles that do not compile, a reset after an earlier compilation.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils
import torch._inductor
from torch import Tensor, nn
from torch.export import Dim, export

from samebits.core import ScaleRule, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as qnn
from samebits.torch_frontend.nn import quant_inference_mode

from .test_inference import CONVOLUTIONS, LINEAR, RUNNING, settled, spoiled

CHOSEN = ("dynamic", "per token", "static")


class SideBySide(nn.Module):
    """Linear layers over the same tensor, and convolutions over images of its rows."""

    def __init__(self, rows: dict[str, nn.Module], images: dict[str, nn.Module]) -> None:
        super().__init__()
        self.rows, self.images = nn.ModuleDict(rows), nn.ModuleDict(images)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        image = x[:, :, None, None] * torch.tensor([[1.0, -0.5, 2.0], [0.25, 3.0, -1.0]], dtype=x.dtype)
        return {k: m(x) for k, m in self.rows.items()} | {f"image, {k}": m(image) for k, m in self.images.items()}


def side_by_side(*names: str) -> nn.Module:
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    rows = {k: settled(LINEAR[k], x) for k in names}
    return SideBySide(rows, {"conv": settled(CONVOLUTIONS["strides and margins"], x[:, :, None, None].expand(-1, -1, 2, 3))})


def programs() -> int:
    """How many programs there are so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def assert_same_outputs(want: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    for name, y in want.items():
        assert_same_bits(y, got[name], call=name)


def test_one_program_has_the_bits_of_the_model_for_every_step() -> None:
    """Also where the scale follows each tensor, and for NaN where it does not."""
    module = side_by_side(*CHOSEN)
    steps = [torch.randn(rows, 32) * factor for rows, factor in ((7, 1), (4, 3), (9, 1e-30), (7, 1e30))]
    with torch.no_grad():
        wanted, before = [module(x) for x in steps], programs()
        with quant_inference_mode(module):
            compiled = torch.compile(module, fullgraph=True, dynamic=True)
            for x, want in zip(steps, wanted, strict=True):
                assert_same_outputs(want, compiled(x))
            assert programs() == before + 1
            x = spoiled(steps[0])
            got = compiled(x)
            only_static = SideBySide({"static": module.rows["static"]}, dict(module.images.items()))  # type: ignore[index,operator]
            assert_same_outputs(only_static(x), got)
            assert got["dynamic"].isnan().all() and got["per token"].isnan().any() and programs() == before + 1


def test_a_program_from_outside_the_mode_needs_no_reset() -> None:
    torch.manual_seed(0)
    module, x = qnn.QuantLinear(16, 4, input_quant="int8_per_tensor").eval(), torch.randn(5, 16)
    compiled, before = torch.compile(module, fullgraph=True), programs()
    with torch.no_grad():
        want = module(x)
        for _ in range(2):
            assert_same_bits(want, compiled(x))
            with quant_inference_mode(module):
                assert_same_bits(want, compiled(x))
        assert programs() == before + 2
        with quant_inference_mode(module):
            module.weight.mul_(2)
            eager = module(x)  # which packs the weight anew, and compiled code takes that
            assert_same_bits(eager, compiled(x))
        assert_same_bits(eager, module(x))
    assert programs() == before + 2


def test_quantizers_are_compiled_once_for_all_layers_and_steps() -> None:
    """Percentiles, whose rank depends on the width of the layer."""
    torch.manual_seed(0)
    widths, percentile = (32, 64, 96, 128), catalog["int8_per_token"].replace(scale=ScaleRule(statistic="percentile"))
    pairs = [(qnn.QuantReLU(percentile), qnn.QuantLinear(a, b)) for a, b in zip(widths, widths[1:], strict=False)]
    module = nn.Sequential(*(layer for pair in pairs for layer in pair)).eval()
    steps = [torch.randn(rows, 32) for rows in (3, 5, 8)]
    with torch.no_grad():
        wanted, before = [module(x) for x in steps], programs()
        with quant_inference_mode(module, compile=True):
            for x, want in zip(steps, wanted, strict=True):
                assert_same_bits(want, module(x))
            assert programs() == before + 2  # its scales, its values
        assert pairs[0][0].act_quant.programs is None  # type: ignore[union-attr]


def test_compile_quant_trains_with_the_same_bits() -> None:
    """Outside the mode, state and gradients included."""
    torch.manual_seed(0)
    plain = qnn.QuantIdentity(RUNNING.replace(gradient="learned_scale"))
    compiled = qnn.QuantIdentity(RUNNING.replace(gradient="learned_scale"))
    compiled.act_quant.compile_quant()  # type: ignore[union-attr]
    for _ in range(2):
        x = torch.randn(4, 8)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        ys = [m(leaf) for m, leaf in zip((plain, compiled), leaves, strict=True)]
        assert_same_bits(*ys)
        assert_same_bits(*(torch.autograd.grad(y.sum(), leaf)[0] for y, leaf in zip(ys, leaves, strict=True)))
    assert_same_bits(plain.act_quant.scale, compiled.act_quant.scale)  # type: ignore[union-attr]


def in_a_package(program: Any, path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(path / "model.pt2"))
    return torch._inductor.aoti_load_package(package)


def test_exported_programs_and_packages_have_the_bits_of_the_model(tmp_path: Path) -> None:
    module = side_by_side("dynamic")
    x = torch.randn(7, 32)
    rows = ({0: Dim("rows", min=2, max=100)},)
    with torch.no_grad():
        steps = (x, torch.randn(4, 32) * 3)
        wanted = [module(given) for given in steps]
        with quant_inference_mode(module):
            exported = [export(module, (x,), dynamic_shapes=rows, strict=strict) for strict in (False, True)]
        assert not [n for n in exported[0].graph.nodes if "samebits" in str(n.target)]
        packaged = in_a_package(exported[0], tmp_path)
        for given, want in zip(steps, wanted, strict=True):
            for run in (exported[0].module(), exported[1].module(), packaged):
                assert_same_outputs(want, run(given))
