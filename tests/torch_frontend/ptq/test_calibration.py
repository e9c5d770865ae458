"""Calibration: scales of layers and functions, known or observed; what is taken away; what a failing call leaves."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samebits.core import catalog
from samebits.core.calibration import Site
from samebits.torch_frontend import QuantTensor, choose_qparams
from samebits.torch_frontend.nn import QuantLinear
from samebits.torch_frontend.ptq import Calibration, quantize
from samebits.torch_frontend.ptq.calibration import sites_of

BATCHES = [torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]


class Network(nn.Module):
    """A layer, a function with a known range, a layer, a function without one."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(self.b(self.function(self.a(x))).square() + 1)


class Attention(nn.Module):
    """Products of activations, a softmax, a view between, a residual sum and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x) for layer in (self.q, self.k, self.v))
        return self.norm(F.softmax(q @ k.transpose(-2, -1), -1) @ v.reshape(v.shape) + x)


def calibrated(model: nn.Module, **options: Any) -> Calibration:
    torch.manual_seed(0)
    quantize(model, activations="int8_per_tensor")
    with torch.no_grad(), Calibration(**options) as calibration:
        for x in BATCHES:
            model(x)
    return calibration


def by_name(calibration: Calibration) -> dict[str, Site]:
    return {site.name: site for site in calibration.report}


@pytest.mark.parametrize(
    ("function", "name", "ends"),
    [
        (torch.sigmoid, "sigmoid_0", (0.0, 1.0)),
        (torch.tanh, "tanh_0", (-1.0, 1.0)),
        (Tensor.tanh, "tanh_0", (-1.0, 1.0)),
        (F.relu6, "relu6_0", (0.0, 6.0)),
        (lambda x: F.softmax(x, -1), "softmax_0", (0.0, 1.0)),
        (lambda x: x.softmax(-1), "softmax_0", (0.0, 1.0)),
        (nn.Sigmoid(), "sigmoid_0", (0.0, 1.0)),
    ],
)
@pytest.mark.parametrize("activations", ["int8_per_tensor", "uint8_affine_per_tensor"])
def test_known_ranges_need_no_data(
    function: Callable[[Tensor], Tensor], name: str, ends: tuple[float, float], activations: str
) -> None:
    model = quantize(Network(function), activations=activations)
    with torch.no_grad(), Calibration() as calibration:
        model(1000 * BATCHES[0])
    site = by_name(calibration)[name]
    expected = choose_qparams(catalog[activations], torch.tensor(ends))
    assert site.scale == expected.scale.item()
    assert site.zero_point == (None if expected.zero_point is None else expected.zero_point.item())
    assert site.kept
    assert site.rule == "known"


def test_what_has_no_bound_is_observed_and_said_so() -> None:
    model = quantize(Network(F.elu), activations="int8_per_tensor")
    with torch.no_grad(), Calibration(momentum=0.75) as calibration:
        seen = []
        layer: Any = model.a
        layer.register_forward_hook(lambda _, __, y: seen.append(y.dequantize()))
        for x in BATCHES:
            model(x)
    site = by_name(calibration)["elu_0"]
    assert site.reason == "observed: elu has no bound"
    scale = None
    for y in seen:
        new = choose_qparams(catalog["int8_per_tensor"], F.elu(y)).scale
        scale = new if scale is None else 0.75 * scale + 0.25 * new
    assert scale is not None
    assert site.scale == scale.item()


def test_streamlining_takes_away_codes_that_nobody_computes_with() -> None:
    found = by_name(calibrated(Attention()))
    kept = {name for name, site in found.items() if site.kept}
    assert kept == {"q", "k", "v", "q.input", "k.input", "v.input", "softmax_0"}
    assert found["matmul_0"].reason.endswith("only values are taken, by softmax")
    assert found["add_0"].reason.endswith("only values are taken, by layer_norm")
    assert found["layer_norm_0"].reason.endswith("nothing takes its codes")
    assert found["layer_norm_0"].where == "norm"


def test_without_streamlining_every_site_stays() -> None:
    assert all(site.kept for site in calibrated(Attention(), streamline=False).report)


def test_streamlining_changes_no_bit_of_what_is_contracted() -> None:
    """Taking away a site gives the values before it; the rest of the model is as if it had never been."""
    torch.manual_seed(3)
    model = Network()
    calibrated(model)
    x = BATCHES[0]
    sites = sites_of(model).quantizers
    with torch.no_grad():
        q_x, q_y = sites["a/input"], sites["sigmoid_0"]
        a, b = (copy.deepcopy(layer) for layer in (model.a, model.b))
        for layer in (a, b):
            layer._forward_hooks.clear()
            layer._forward_pre_hooks.clear()
        a.input_quant, b.input_quant = q_x, q_y
        expected = torch.log(b(torch.sigmoid(a(x))).square() + 1)
        assert torch.equal(model(x), expected)


def test_products_of_activations_are_of_codes() -> None:
    model = Attention()
    calibrated(model)
    seen: list[Tensor] = []
    model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    sites = sites_of(model).quantizers
    with torch.no_grad():
        model(BATCHES[0])
        q, k, v = (
            sites[name](QuantLinear.forward(getattr(model, name), sites[f"{name}/input"](BATCHES[0])))
            for name in ("q", "k", "v")
        )
    exact = (q.double() / sites["q"].scale.double()).round() @ (k.double() / sites["k"].scale.double()).round().mT
    scores = exact.float() * (sites["q"].scale * sites["k"].scale)
    weights = sites["softmax_0"](F.softmax(scores, -1))
    s = sites["softmax_0"].qparams(weights).scale
    exact = (weights.double() / s.double()).round() @ (v.double() / sites["v"].scale.double()).round()
    assert torch.equal(seen[0], exact.float() * (s * sites["v"].scale) + BATCHES[0])


def test_compiled_exported_copied_and_pickled() -> None:
    model = Attention()
    calibrated(model)
    with torch.no_grad():
        y = model(BATCHES[0])
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(BATCHES[0]), y)
        compiled = torch.compile(model, fullgraph=True)(BATCHES[0])
        program = torch.export.export(model, (BATCHES[0],)).module()(BATCHES[0])
    step = 2 * max(site.scale for site in calibrated(Attention()).report)  # functions differ in bits, codes by one
    assert (compiled - y).abs().max() <= step
    assert (program - y).abs().max() <= step


def test_weights_alone_need_no_calibration() -> None:
    model = quantize(Network())
    assert isinstance(model.a, QuantLinear)
    model(BATCHES[0])


def test_layers_are_chosen_by_name() -> None:
    model = quantize(Network(), exclude=["a"])
    assert type(model.a) is nn.Linear
    assert isinstance(model.b, QuantLinear)


def test_a_model_that_was_not_calibrated_says_so() -> None:
    model = quantize(Network(), activations="int8_per_tensor")
    with pytest.raises(RuntimeError, match="calibration never run"):
        model(BATCHES[0])
    with pytest.raises(ValueError, match="calibration never run"), Calibration():
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": ["c"]}, "`include`: 'c' fits no layer; layers are 'a', 'b'"),
        ({"exclude": ["*"]}, "must have a layer to quantize"),
        ({"activations": "int8_per_channel"}, "`activations` must have one scale"),
        ({"activations": "int8"}, "unknown quantizer"),
        ({"weights": "int4_per_group128"}, "group"),
    ],
)
def test_what_cannot_be_quantized_leaves_the_model(arguments: dict[str, Any], message: str) -> None:
    model = Network()
    before = dict(model.named_modules())
    with pytest.raises((ValueError, KeyError), match=message):
        quantize(model, **arguments)
    assert dict(model.named_modules()) == before


def test_twice_is_refused() -> None:
    model = quantize(Network(), activations="int8_per_tensor")
    with pytest.raises(ValueError, match="quantized before"):
        quantize(model)


def test_an_exception_puts_everything_back() -> None:
    model = Network()
    calibrated(model)
    before, y = copy.deepcopy(model.state_dict()), model(BATCHES[0])
    with pytest.raises(ZeroDivisionError), Calibration():
        _fail_after(model(100 * BATCHES[0]))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(BATCHES[0]), y)
    with pytest.raises(RuntimeError, match="running already"), Calibration(), Calibration():
        pass


def _fail_after(_: object) -> None:
    raise ZeroDivisionError


class TwoOfAKind(nn.Module):
    """A relu of codes that are taken away, and behind it one whose numbers a layer contracts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(F.relu(self.a(x)))
        return self.b(input=F.relu(torch.maximum(y, y) * 7 - 1))


def test_functions_keep_their_turn_when_a_site_before_them_is_gone() -> None:
    model = TwoOfAKind()
    found = by_name(calibrated(model))
    assert not found["a"].kept
    assert found["relu_1"].kept
    seen: list[Any] = []
    model.b.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(BATCHES[0])
    assert isinstance(seen[0], QuantTensor)
    assert seen[0].scale.item() == found["relu_1"].scale


def test_limits_that_are_arguments_are_observed() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Hardtanh(-3, 3), nn.Linear(8, 4))
    quantize(model, activations="int8_per_tensor")
    with torch.no_grad(), Calibration() as calibration:
        model(100 * BATCHES[0])
    assert by_name(calibration)["hardtanh_0"].scale == pytest.approx(3 / 127, rel=1e-2)


def test_a_call_that_failed_changes_nothing_for_the_next() -> None:
    model = Network()
    calibrated(model)
    with torch.no_grad():
        y = model(BATCHES[0])
        for bad in (BATCHES[0][..., :3], BATCHES[0].to(torch.float8_e4m3fn), torch.full((1, 8), torch.inf).long()):
            with pytest.raises((RuntimeError, TypeError, ValueError)):
                model(bad)
            assert torch.equal(model(BATCHES[0]), y)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_outside_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="`momentum` must lie in"):
        Calibration(momentum=momentum)


def test_layers_get_codes_from_before() -> None:
    model = Network()
    calibrated(model)
    seen: list[object] = []
    model.b.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(BATCHES[0])
    assert isinstance(seen[0], QuantTensor)
