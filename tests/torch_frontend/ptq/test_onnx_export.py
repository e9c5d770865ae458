"""Exported models in onnxruntime: the bits of the model at every level of optimization, where they are promised."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samebits.core.configs import (
    DynamicActivation,
    int4_weight_only,
    int8_dynamic_activation_int4_weight,
    int8_weight_only,
)
from samebits.core.granularity import PerTensor
from samebits.proofs.inputs.compare import same_bits
from samebits.torch_frontend import contraction_bound
from samebits.torch_frontend import nn as qnn
from samebits.torch_frontend.ptq import Calibration, convert, default_qconfig, export_onnx, prepare, quantize, quantize_

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")
AFFINE = "uint8_affine_per_tensor"


def ran(exported: Any, *inputs: Tensor) -> dict[str, Tensor]:
    """Outputs by level of optimization."""
    found = {}
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}")
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(exported.model.SerializeToString(), options)
        feed = {one.name: x.numpy() for one, x in zip(session.get_inputs(), inputs, strict=True)}
        found[level] = torch.from_numpy(session.run(None, feed)[0])
    return found


def kinds(exported: Any) -> list[str]:
    return [node.op_type for node in exported.model.graph.node]


def assert_same(model: nn.Module, exported: Any, *inputs: Tensor) -> None:
    assert exported.inexact == ()
    with torch.no_grad():
        want = model(*inputs)
    for level, got in ran(exported, *inputs).items():
        assert same_bits(got.numpy(), want.numpy()), (level, (got != want).sum(), got.shape, want.shape)


def numbers(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def constant(name: str, scale: float, zero: int = 0) -> Any:
    from samebits.core.catalog import catalog

    rule = {"source": "constant", "scale_value": scale} | ({"zero_point_value": zero} if "affine" in name else {})
    return catalog[name].replace(**rule)


class Residual(nn.Module):
    """Quantizers that meet without a contraction in between, sums, products, reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = qnn.QuantConv2d(3, 8, 3, padding=1, input_quant=constant("int8_per_tensor", 0.021))
        self.act = qnn.QuantReLU(constant("uint8_per_tensor", 0.013))
        self.again = qnn.QuantIdentity(constant(AFFINE, 0.0171, 131))
        self.second = qnn.QuantConv2d(
            8, 8, 3, padding=(1, 2), stride=2, dilation=2, groups=2, input_quant=constant(AFFINE, 0.0171, 3)
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.hard = qnn.QuantHardTanh(constant("int4_narrow_per_channel", 0.1).replace(granularity=PerTensor()), -0.5)
        self.last = qnn.QuantLinear(
            48, 5, input_quant=constant("int8_per_tensor", 0.03), output_quant=constant("int8_per_tensor", 0.5),
            bias_quant="int8_per_channel", bias_bits=16,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.act(self.first(x)))
        y = F.relu(y + y * 0.75 - 0.01)
        y = self.hard(self.pool(self.second(y)))
        return self.last(y.view(y.size(0), -1))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_layers_over_codes_have_the_bits_of_the_model_at_every_level() -> None:
    model = Residual().eval()
    exported = export_onnx(model, numbers(2, 3, 9, 10))
    x = numbers(16, 3, 9, 10, seed=1, size=2)
    x[0, 0, 0] = torch.tensor([torch.inf, -torch.inf, -0.0, 1e-42, -1e-42, 3e38, -3e38, 0.0105, 0.0315, -0.0105])
    assert_same(model, exported, x)
    found = kinds(exported)
    assert found.count("ConvInteger") == 2
    assert found.count("MatMulInteger") == 1
    # `again` and the products after it are dequantized values, so the pairs behind them are written out
    assert found.count("QuantizeLinear") == 4
    assert found.count("Div") == 3


@pytest.mark.parametrize("act", ["int8_per_tensor", "int8_per_token", "int8_affine_per_token"])
@pytest.mark.parametrize("weight", ["int8_per_channel", "uint8_affine_per_channel", "int4_narrow_per_channel"])
def test_scales_of_the_tensor_at_hand(act: str, weight: str) -> None:
    model = nn.Sequential(nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 7, bias=False)).eval()
    quantize_(model, DynamicActivation(act, weight))
    x = numbers(3, 5, 96, seed=2) * torch.logspace(-20, 10, 15).reshape(3, 5, 1)
    x[0, 0] = 0
    x[0, 1] = x[0, 1].abs()
    assert_same(model, export_onnx(model, x[:2]), x)


def test_binary_weights_and_three_dimensions() -> None:
    model = nn.Sequential(
        qnn.QuantConv1d(4, 6, 3, weight_quant="binary_per_channel", input_quant=constant(AFFINE, 0.02, 100)),
        nn.Flatten(),
        qnn.QuantLinear(6 * 7, 3, weight_quant="ternary_per_channel", input_quant=constant("int8_per_tensor", 0.05)),
    ).eval()
    assert_same(model, export_onnx(model, numbers(2, 4, 9)), numbers(5, 4, 9, seed=3))
    deep = nn.Sequential(qnn.QuantConv3d(2, 3, 2, stride=2, input_quant=constant("int8_per_tensor", 0.02))).eval()
    assert_same(deep, export_onnx(deep, numbers(2, 2, 4, 5, 6)), numbers(3, 2, 4, 5, 6, seed=4))


def test_a_calibrated_and_converted_model() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10), nn.Hardtanh()
    ).eval()
    prepared = prepare(model, default_qconfig)
    prepared(numbers(20, 1, 8, 8))
    with pytest.raises(ValueError, match=r"`model` must be converted: '.*' observes; call convert"):
        export_onnx(prepared, numbers(2, 1, 8, 8))
    converted = convert(prepared)
    assert_same(converted, export_onnx(converted, numbers(2, 1, 8, 8)), numbers(20, 1, 8, 8, seed=5))


def test_pairs_around_floats() -> None:
    """Without optimization every quantized value of the form ``qdq`` is ours, and sums are within their bound."""
    model = nn.Sequential(
        qnn.QuantLinear(64, 32, input_quant=constant("int8_per_tensor", 0.02)),
        nn.ReLU(),
        qnn.QuantLinear(32, 8, weight_quant="int4_per_channel", input_quant=constant("uint8_per_tensor", 0.02)),
    ).eval()
    exported = export_onnx(model, numbers(2, 64), form="qdq")
    assert [what for _, what in exported.inexact] == ["a sum of products of floats"] * 2
    assert kinds(exported).count("QuantizeLinear") == 2
    assert kinds(exported).count("DequantizeLinear") == 4
    first = nn.Sequential(model[0]).eval()
    x = numbers(32, 64, seed=6)
    with torch.no_grad():
        want = first(x)
        bound = contraction_bound(
            model[0].input_quant(x), model[0].weight_quant(model[0].weight), model[0].bias
        )  # fmt: skip
    for level, got in ran(export_onnx(first, x, form="qdq"), x).items():
        assert ((got.double() - want.double()).abs() <= 2 * bound).all(), level
        assert not same_bits(got.numpy(), want.numpy())  # so the form "integer" is not for nothing


@pytest.mark.parametrize(
    "config",
    [int8_weight_only(), int8_weight_only(16), int4_weight_only(32, "integer"), int4_weight_only(16, "none")],
    ids=["int8", "int8 by group", "uint4 by group", "int4 by group"],
)
@pytest.mark.parametrize("shape", [(2, 64), (2, 3, 64)])
def test_weights_alone(config: Any, shape: tuple[int, ...]) -> None:
    """Default optimizations would quantize the inputs as well (errors of 4e-3): here they find no pattern."""
    model = nn.Sequential(nn.Linear(64, 24)).eval()
    quantize_(model, config)
    exported = export_onnx(model, numbers(*shape))
    assert [name for name, _ in exported.inexact] == ["_0"]
    x = numbers(*shape, seed=7)
    bound = contraction_bound(x, model[0].weight.dequantize(), model[0].bias)
    with torch.no_grad():
        want = model(x)
    for level, got in ran(exported, x).items():
        assert ((got.double() - want.double()).abs() <= 2 * bound).all(), level


def test_weights_by_group_whose_inputs_are_quantized() -> None:
    model = nn.Sequential(nn.Linear(64, 24)).eval()
    quantize_(model, int8_dynamic_activation_int4_weight(32))
    x = numbers(6, 64)
    with torch.no_grad():
        want = model(x)
    for got in ran(export_onnx(model, x), x).values():
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)  # a step of the codes would be 1e-2


def test_values_of_stored_weights_are_exact() -> None:
    """The product with the identity is the weight, exactly: uint4 with zero points, int4 and int8."""
    for config in (int4_weight_only(16, "integer"), int4_weight_only(16, "none"), int8_weight_only()):
        model = nn.Sequential(nn.Linear(32, 5, bias=False)).eval()
        quantize_(model, config)
        exported = export_onnx(model, torch.eye(32))
        for level, got in ran(exported, torch.eye(32)).items():
            assert torch.equal(got.T, model[0].weight.dequantize()), (config, level)


def test_a_file(tmp_path: Path) -> None:
    model = nn.Sequential(qnn.QuantLinear(4, 3, input_quant=constant("int8_per_tensor", 0.02))).eval()
    exported = export_onnx(model, numbers(2, 4), tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == exported.model
    assert str(exported) == "the same bits as the model"
    floats = export_onnx(nn.Sequential(nn.Linear(4, 3)).eval(), numbers(2, 4))
    assert str(floats) == "_0: a sum of products of floats, whose bits are those of onnxruntime"


class Loop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.layer(x))


class Calls(nn.Module):
    """A model that is one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def quantized(**changes: Any) -> nn.Module:
    return nn.Sequential(qnn.QuantLinear(4, 3, **{"input_quant": constant("int8_per_tensor", 0.02)} | changes)).eval()


@pytest.mark.parametrize(
    ("model", "form", "says"),
    [
        (quantized(), "qoperator", "`form` must be one of integer, qdq, got 'qoperator'"),
        (quantized().train(), "integer", r"`model` must be in evaluation: call model.eval\(\)"),
        (Loop().eval(), "integer", "`model` must be one that torch.fx can trace"),
        (Calls(torch.sin).eval(), "integer", "'sin': sin has no form in this export"),
        (Calls(F.dropout).eval(), "integer", "'dropout': `training` must be False"),
        (Calls(lambda x: x.reshape(2, 4)).eval(), "integer", "'reshape': a reshape must keep axis 0"),
        (Calls(lambda x: x.reshape(x.shape[1], -1)).eval(), "integer", "'reshape': a reshape must keep axis 0"),
        (Calls(lambda x: torch.relu(input=x)).eval(), "integer", "'relu': it must have its arguments by position"),
        (Calls(lambda x: torch.add(x, x, alpha=2)).eval(), "integer", "'add': it must have no keywords, got .'alpha'"),
        (nn.Sequential(nn.MaxPool1d(2)).eval(), "integer", "'0': its input must be a batch, of 3 axes, got 2"),
        (nn.Sequential(nn.Bilinear(4, 4, 2)).eval(), "integer", "'0': Bilinear.forward"),
        (quantized(input_quant="int8_per_tensor"), "qdq", "'0': its scale comes from the tensor at hand"),
        (quantized(input_quant=constant("int16_per_tensor", 0.1)), "integer", "at most 8 bits"),
        (quantized(input_rounding="ties_to_away"), "integer", "'0': activations must be integers .* to nearest"),
        (quantized(input_quant="float8_e4m3fn_per_tensor"), "integer", "'0': activations must be integers"),
        (quantized(weight_quant="float8_e4m3fn_per_channel"), "integer", "'0': weights must be integers"),
        (quantized(return_quant_tensor=True), "integer", "'0': `return_quant_tensor` must be False"),
        (
            quantized(input_quant="int8_learned_per_tensor"),
            "integer",
            "'0': the learned scale of this quantizer is not set",
        ),
    ],
)  # fmt: skip
def test_what_has_no_form_is_named(model: nn.Module, form: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        export_onnx(model, numbers(2, 4), tmp_path / "model.onnx", form)
    assert not (tmp_path / "model.onnx").exists()


def test_hooks_are_refused_since_their_quantizers_would_be_lost() -> None:
    with torch.no_grad(), Calibration():
        quantize(calibrated := Gate(), weights="int8_per_channel", activations="int8_per_tensor")(numbers(8, 4))
    hooked = quantized()
    hooked[0].register_forward_pre_hook(lambda layer, args: None)
    for model, name in ((calibrated.eval(), ""), (hooked, "0")):
        with pytest.raises(ValueError, match=f"`model` must have no hooks and no forward of an instance.*: '{name}'"):
            export_onnx(model, numbers(2, 4))


def test_other_dtypes_and_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"`args` must be float32 tensors, got torch\.float64"):
        export_onnx(quantized(), numbers(2, 4).double())
    half = nn.Sequential(nn.Linear(4, 3).double()).eval()
    with pytest.raises(ValueError, match="'0': mat1 and mat2"):
        export_onnx(half, numbers(2, 4))
    monkeypatch.setattr("samebits.torch_frontend.ptq.onnx_export.lacking", lambda extra, what: f"{what} {extra}")
    with pytest.raises(ImportError, match="export_onnx onnx"):
        export_onnx(quantized(), numbers(2, 4))
