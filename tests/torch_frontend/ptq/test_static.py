"""The flow of static quantization: a prepared model that quantizes and the converted one, bit for bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import MovingAverageMinMaxObserver

from samebits.core import QParams
from samebits.core import matmul as core_matmul
from samebits.core import quantize as core_quantize
from samebits.core.observing import (
    Observer,
    QConfig,
    default_histogram_qconfig,
    default_per_channel_qconfig,
    default_qat_qconfig,
    default_qconfig,
)
from samebits.proofs.inputs import digits, digits_torch
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.nn.given import CodedWeight, GivenQuantizer
from samebits.torch_frontend.ptq import observers
from samebits.torch_frontend.ptq.fuse import fuse_modules, fuse_modules_qat
from samebits.torch_frontend.ptq.observer_modules import ObserverModule
from samebits.torch_frontend.ptq.static import DeQuantStub, QuantStub, convert, prepare, prepare_qat, quantize_prepared


def digit_cnn() -> Any:
    """The digit classifier, of torch's own layers, with trained weights."""
    layers = {"conv1": nn.Conv2d(1, 16, 3, padding=1), "conv2": nn.Conv2d(16, 32, 3, stride=2, padding=1)}
    parts: dict[str, nn.Module] = {"quant": QuantStub(), "conv1": layers["conv1"], "relu1": nn.ReLU()}
    parts |= {"conv2": layers["conv2"], "relu2": nn.ReLU(), "flatten": nn.Flatten(), "linear": nn.Linear(512, 10)}
    model = nn.Sequential()
    for name, part in (parts | {"dequant": DeQuantStub()}).items():
        model.add_module(name, part)
    digits_torch.load_tensors(model, digits.load_checkpoint().tensors)
    return model.eval()


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 20, bias=False), nn.ReLU(), nn.Linear(20, 3)
    ).eval()


def transformer() -> nn.Module:
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.Sequential(block, nn.Linear(16, 5)).eval()


class Branches(nn.Module):
    """Convolutions of other kinds, a sum, and one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.up = QuantStub(), nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2)
        self.down, self.shared = nn.Conv1d(6, 4, 3, padding_mode="circular", padding=1), nn.Linear(9, 9)
        self.other = self.shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(self.up(self.quant(x)))
        return self.shared(x) + self.other(x.relu())


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    "digits": (digit_cnn, lambda k: torch.from_numpy(digits.images()[0][100 * k : 100 * k + 100])),
    "mlp": (mlp, lambda k: torch.randn(50, 12) * (k + 1)),
    "transformer": (transformer, lambda k: torch.randn(4, 7, 16)),
    "branches": (lambda: Branches().eval(), lambda k: torch.randn(3, 4, 4)),
}
WEIGHT_ONLY = QConfig(None, default_per_channel_qconfig.weight)
DYNAMIC = QConfig(Observer("placeholder", "uint8_affine_per_tensor"), default_qconfig.weight)
POWERS = QConfig(Observer("moving_average", "int8_power_of_two_per_tensor"), Observer("min_max", "int4_per_channel"))
QCONFIGS = {
    "default": default_qconfig,
    "per channel": default_per_channel_qconfig,
    "histogram": default_histogram_qconfig,
    "weight only": WEIGHT_ONLY,
    "dynamic": DYNAMIC,
    "powers": POWERS,
}


def calibrated(name: str, qconfig: Any) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """The model, prepared and calibrated on two batches, and a third."""
    torch.manual_seed(0)
    make, batch = MODELS[name]
    model = make()
    prepared = prepare(model, qconfig)
    with torch.no_grad():
        for k in range(2):
            x = batch(k)
            torch.testing.assert_close(prepared(x), model(x))  # observers pass tensors; attention is computed by steps
    return model, prepared, batch(2)


@pytest.mark.parametrize("qconfig", QCONFIGS)
@pytest.mark.parametrize("name", MODELS)
def test_converted_models_have_the_bits_of_prepared_ones(name: str, qconfig: str) -> None:
    model, prepared, x = calibrated(name, QCONFIGS[qconfig])
    before = copy.deepcopy(model.state_dict())
    converted = convert(prepared)
    quantize_prepared(prepared)
    with torch.no_grad():
        wanted = prepared(x)
        assert_same_bits(wanted, converted(x), call="converted")
        assert_same_bits(wanted, converted(x), call="converted, weights packed")
        assert not torch.equal(wanted, model(x))
    if qconfig not in ("dynamic", "weight only") and name != "transformer":  # where nothing but codes is added
        assert_same_bits(wanted[:1], converted(x[:1]), call="a part of the batch")
    assert_same_bits(wanted, converted(x), call="with gradients")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    integers = [p for p in converted.parameters() if p.dtype == torch.int8]
    assert len(integers) == sum(isinstance(m, CodedWeight) for m in converted.modules()) > 0
    assert not any(isinstance(m, ObserverModule) for m in converted.modules())
    assert not any(p.ndim > 1 and p.is_floating_point() and "norm" not in n for n, p in converted.named_parameters())


def test_a_converted_layer_is_what_core_says() -> None:
    """Codes, scales and outputs of the last layer of the digit classifier, by the specification."""
    _, prepared, x = calibrated("digits", default_per_channel_qconfig)
    converted: Any = convert(prepared)
    seen = converted[:6](x)
    layer = converted.linear
    q_x, q_w = default_per_channel_qconfig.activation.quantizer, default_per_channel_qconfig.weight.quantizer
    p, r = (
        QParams(m.scale.numpy(), None if m.zero_point is None else m.zero_point.numpy())
        for m in (layer.input_quant, layer.weight_quant)
    )
    floats = digits.load_checkpoint().tensors["linear.weight"]
    assert_same_bits(core_quantize(q_w, floats, r), layer.weight)
    y = core_matmul.linear(q_x, seen.detach().numpy(), p, q_w, floats, r, layer.bias.detach().numpy())
    assert_same_bits(y, layer(seen))


def test_accuracy_of_the_digits() -> None:
    """Float 99.17 %, see docs/qat.md: a converted classifier is within half a percent."""
    _, prepared, _ = calibrated("digits", default_histogram_qconfig)
    with torch.no_grad():
        logits = convert(prepared)(torch.from_numpy(digits.images()[0]))
    assert digits.accuracy(logits.numpy(), digits.images()[1]) > 98.5


def test_checkpoints_of_converted_models() -> None:
    _, prepared, x = calibrated("digits", default_per_channel_qconfig)
    converted = convert(prepared)
    other = convert(calibrated("digits", default_per_channel_qconfig)[1])
    with torch.no_grad():
        for part in other.parameters():
            part.zero_()
        other(x)  # packs zeros
        other.load_state_dict(converted.state_dict())
        assert_same_bits(converted(x), other(x))
        assert_same_bits(converted(x), copy.deepcopy(converted)(x))
    assert converted.state_dict()["conv1.weight"].dtype == torch.int8
    half: Any = converted.half()
    assert half.conv1.weight_quant.scale.dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
def test_converted_models_compile() -> None:
    _, prepared, x = calibrated("mlp", default_per_channel_qconfig)
    converted = convert(prepared)
    with torch.no_grad():
        wanted = converted(x)
        assert_same_bits(wanted, torch.compile(converted, fullgraph=True)(x))


# --- which layers -------------------------------------------------------------------------------------------------


def held(model: nn.Module) -> dict[str, str]:
    """Kinds of what layers hold for their inputs, by name."""
    return {
        name: type(m.input_quant).__name__
        for name, m in model.named_modules()
        if getattr(m, "input_quant", None) is not None
    }


def test_none_leaves_a_layer_as_it_is() -> None:
    model = digit_cnn()
    left: Any = prepare(model, {"*": default_qconfig, "conv2": None})
    assert type(left.conv2) is nn.Conv2d
    assert set(held(left)) == {"conv1", "linear"}
    model.linear.qconfig = None
    assert set(held(prepare(model, default_qconfig))) == {"conv1", "conv2"}
    model = digit_cnn()
    model.qconfig = default_qconfig  # as torch.ao has it
    model.conv1.qconfig = WEIGHT_ONLY
    assert set(held(prepare(model))) == {"conv2", "linear"}
    only: Any = prepare(digit_cnn(), {"re:conv.": default_qconfig})
    assert set(held(only)) == {"conv1", "conv2"}
    assert only.quant.act_quant is None


def test_layers_of_other_kinds_are_reported() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LSTM(4, 4), nn.Linear(4, 2), nn.LayerNorm(2)).eval()
    with pytest.warns(UserWarning, match=r"nothing quantizes their kind: '0' \(Embedding\), '1' \(LSTM\)$"):
        prepare(model, default_qconfig)


def refusals() -> list[tuple[str, type[Exception], str, Callable[[nn.Module], Any], Callable[[], nn.Module]]]:
    training = lambda: digit_cnn().train()  # noqa: E731
    prepared = lambda: prepare(digit_cnn(), default_qconfig)  # noqa: E731
    return [
        ("train", ValueError, "must be in evaluation", lambda m: prepare(m, default_qconfig, inplace=True), training),
        ("eval", ValueError, "must be in training", lambda m: prepare_qat(m, default_qconfig, inplace=True), digit_cnn),
        ("none", ValueError, "has no layer to quantize", lambda m: prepare(m, inplace=True), digit_cnn),
        ("empty", ValueError, "has no layer to quantize", lambda m: prepare(m, default_qconfig), nn.ReLU().eval),
        (
            "twice",
            ValueError,
            "must not be prepared yet",
            lambda m: prepare(m, default_qconfig, inplace=True),
            prepared,
        ),
        (
            "pattern",
            ValueError,
            "'conv3' fits no layer; layers are quant, conv1",
            lambda m: prepare(m, {"conv3": default_qconfig}, inplace=True),
            digit_cnn,
        ),
        (
            "kind",
            TypeError,
            "'quant': its qconfig must be a QConfig",
            lambda m: prepare(m, {"*": "int8_per_tensor"}, inplace=True),
            digit_cnn,
        ),
        ("float", ValueError, "must be prepared", lambda m: convert(m, inplace=True), digit_cnn),
        (
            "unfed",
            RuntimeError,
            "calibration never run: quant.act_quant, conv1.input_quant",
            lambda m: convert(m, inplace=True),
            prepared,
        ),
        ("unfed, fake", RuntimeError, "calibration never run: quant.act_quant", quantize_prepared, prepared),
        (
            "fuse",
            ValueError,
            "'conv1' must be in evaluation",
            lambda m: fuse_modules(m, ["conv1", "relu1"], inplace=True),
            training,
        ),
        (
            "fuse qat",
            ValueError,
            "'conv1' must be in training",
            lambda m: fuse_modules_qat(m, ["conv1", "relu1"], inplace=True),
            digit_cnn,
        ),
        (
            "fuse name",
            ValueError,
            "got 'conv9'",
            lambda m: fuse_modules(m, ["conv9", "relu1"], inplace=True),
            digit_cnn,
        ),
        (
            "fuse kinds",
            ValueError,
            r"got 'relu1' \(ReLU\), 'conv2' \(Conv2d\)",
            lambda m: fuse_modules(m, [["relu1", "conv2"]], inplace=True),
            digit_cnn,
        ),
    ]


@pytest.mark.parametrize(
    ("error", "match", "call", "make"), [r[1:] for r in refusals()], ids=[r[0] for r in refusals()]
)
def test_refusals_leave_the_model(error: type[Exception], match: str, call: Any, make: Any) -> None:
    model = make()
    before = {name: (id(m), m.training) for name, m in model.named_modules()}
    with pytest.raises(error, match=match):
        call(model)
    assert {name: (id(m), m.training) for name, m in model.named_modules()} == before


def test_a_layer_that_calibration_did_not_reach_is_named() -> None:
    prepared: Any = prepare(digit_cnn(), default_qconfig)
    prepared[:3](torch.from_numpy(digits.images()[0][:5]))
    with pytest.raises(
        RuntimeError, match=r"calibration never run: conv2.input_quant, linear.input_quant saw no tensor"
    ):
        convert(prepared)


def test_nan_is_refused_where_it_is_met() -> None:
    prepared = prepare(mlp(), default_qconfig)
    with pytest.raises(ValueError, match="`x` must be finite to be observed"):
        prepared(torch.full((2, 12), torch.nan))
    prepared(torch.randn(2, 12))
    with torch.no_grad():
        prepared[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'2': `x` must be finite to be observed"):
        convert(prepared)


def test_nan_of_later_inputs_propagates() -> None:
    _, prepared, x = calibrated("mlp", default_qconfig)
    converted = convert(prepared)
    x[3, 4] = torch.nan
    with torch.no_grad():
        y = converted(x)
    assert y[3].isnan().all()
    assert not y[4].isnan().any()


def test_what_is_contracted_often_is_observed_once() -> None:
    """The input of attention is query, key and value: one step of the moving average for each call."""
    torch.manual_seed(0)
    prepared: Any = prepare(nn.MultiheadAttention(8, 2, batch_first=True).eval(), POWERS)
    state = observers.init(POWERS.activation)
    for k in (1, 3):
        x = torch.randn(2, 5, 8) * k
        prepared(x, x, x)
        state = observers.observe(POWERS.activation, state, x)
    assert_same_bits(state.low, prepared.input_quant.low)
    assert_same_bits(state.high, prepared.input_quant.high)


def normed() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 10),
        nn.BatchNorm1d(10),
    )
    with torch.no_grad():
        for _ in range(3):  # statistics
            model(torch.from_numpy(digits.images()[0][:200]))
    return model


LISTS = [["0", "1", "2"], ["4", "5"]]


def test_fused_modules() -> None:
    model = normed().eval()
    fused: Any = fuse_modules(model, LISTS)
    x = torch.from_numpy(digits.images()[0][:20])
    assert [type(m) for m in fused] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Flatten, nn.Linear, nn.Identity]
    torch.testing.assert_close(fused(x), model(x))
    for k, other in ((0, 1), (4, 5)):  # torch multiplies by the rounded reciprocal root, in float32
        theirs = torch.nn.utils.fusion.fuse_conv_bn_eval if k == 0 else torch.nn.utils.fusion.fuse_linear_bn_eval
        torch.testing.assert_close(fused[k].weight, theirs(model[k], model[other]).weight, rtol=2**-21, atol=0)
    assert isinstance(model[1], nn.BatchNorm2d)
    assert fuse_modules(model, LISTS, inplace=True) is model
    assert isinstance(model[1], nn.Identity)
    assert_same_bits(model(x), fused(x))


@pytest.mark.parametrize("qconfig", [default_qat_qconfig, default_per_channel_qconfig], ids=["default", "per channel"])
def test_training(qconfig: QConfig) -> None:
    """Losses fall, and what is converted has the bits of the trained model in evaluation."""
    model = prepare_qat(fuse_modules_qat(normed().train(), LISTS), qconfig)
    x, y = (torch.from_numpy(v[:256]) for v in digits.images())
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    model.eval()
    with torch.no_grad():
        wanted = model(x)
        converted: Any = convert(model)
        assert_same_bits(wanted, converted(x))
        assert_same_bits(wanted, model(x), call="evaluation observes nothing")
    assert type(converted[0]).__name__ == "QuantConv2d"
    assert isinstance(converted[0].input_quant, GivenQuantizer)


def test_first_step_of_training_observes_as_torch() -> None:
    """The parameters after two steps are those of torch.ao's moving averages."""
    torch.manual_seed(0)
    model: Any = prepare_qat(nn.Sequential(nn.Linear(4, 3)).train(), default_qat_qconfig)
    reference = MovingAverageMinMaxObserver(quant_min=0, quant_max=127)
    for k in (1, 3):
        x = torch.randn(8, 4) * k
        model(x)
        reference(x)
    for own, theirs in zip(model[0].input_quant.calculate_qparams(), reference.calculate_qparams(), strict=True):
        assert torch.equal(own.reshape(1).double(), theirs.double())
