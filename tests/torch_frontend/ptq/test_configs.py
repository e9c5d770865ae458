"""quantize_ over torch models: codes of core, modules that stay, products, copies, programs, and what is refused."""

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samebits import core
from samebits.core import configs as of
from samebits.core.configs import ModuleConfigs
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import contraction_bound, loading
from samebits.torch_frontend.ptq import QuantWeight, model_size, quantize_
from samebits.torch_frontend.ptq.quant_weight import codes_of, quant_weight, weight_of_codes

from ...ptq_cases import CONFIGS, EXACT, rows, weight

INT8, DYNAMIC = of.int8_weight_only(), of.int8_dynamic_activation_int8_weight()


def layer(config: of.Config | None = None, seed: int = 0, inputs: int = 64) -> Any:
    made = nn.Linear(inputs, 24)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(weight(24, inputs, seed)))
        made.bias.copy_(torch.linspace(-1, 1, 24))
    if config is not None:
        quantize_(made, config)
    return made.eval()


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 64), nn.Hardtanh(), nn.Linear(64, 8)).eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_and_outputs_are_those_of_core(name: str) -> None:
    config, x, w = CONFIGS[name], rows(), weight()
    held, y = layer(config).weight, layer(config)(torch.from_numpy(x)).detach()
    assert isinstance(held, QuantWeight)
    qparams = core.choose_qparams(config.weight, w)
    assert_same_bits(core.quantize(config.weight, w, qparams), codes_of(held))
    assert_same_bits(qparams.scale, held.scale)
    if config.weight.affine:
        assert np.array_equal(qparams.zero_point, np.asarray(held.zero_point))
    w_hat = core.fake_quantize(config.weight, w, qparams)
    assert_same_bits(w_hat, held.dequantize())
    bias = torch.linspace(-1, 1, 24).numpy()
    x_hat = x
    if config.act_quant is not None:
        x_qparams = core.choose_qparams(config.act_quant, x)
        x_hat = core.fake_quantize(config.act_quant, x, x_qparams)
        if name in EXACT:
            assert_same_bits(core.linear(config.act_quant, x, x_qparams, config.weight, w, qparams, bias), y)
    exact = x_hat.astype(np.float64) @ w_hat.astype(np.float64).T + bias
    bound = contraction_bound(*map(torch.from_numpy, (x_hat, w_hat, bias))).numpy()
    assert (np.abs(y.numpy() - exact) <= bound + 2.0**-23 * np.abs(exact)).all()


def test_modules_stay_and_only_weights_change() -> None:
    float_model = model()
    quantized = copy.deepcopy(float_model)
    modules = list(quantized.modules())
    quantize_(quantized, INT8)
    assert list(quantized.modules()) == modules
    for name, p in quantized.named_parameters():
        assert isinstance(p, nn.Parameter)
        assert isinstance(p, QuantWeight) == name.endswith("weight")
        assert p.requires_grad != isinstance(p, QuantWeight)
        assert (p.shape, p.dtype) == (float_model.get_parameter(name).shape, torch.float32)
    want = sum(p.numel() for p in float_model.parameters()) + 3 * (48 + 64 + 8) + 4 * (48 + 64 + 8)
    assert model_size(quantized) == want
    assert model_size(float_model) == 4 * sum(p.numel() for p in float_model.parameters())


def test_filters_and_names() -> None:
    some = model()
    quantize_(some, ModuleConfigs({"0": None, "re:2": DYNAMIC, "_default": INT8}))
    kinds = [type(some[i].weight) is QuantWeight for i in (0, 2, 4)]
    assert kinds == [False, True, True]
    assert (some[2].weight.act_quant, some[4].weight.act_quant) == (DYNAMIC.activation, None)
    quantize_(some, INT8, lambda module, name: name == "0")
    assert type(some[0].weight) is QuantWeight
    alone = layer()
    quantize_(alone, INT8, lambda module, name: name == "")
    assert type(alone.weight) is QuantWeight
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    quantize_(tied, INT8)
    assert tied[0].weight is tied[1].weight
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 3, 16)
    before = attention(x)
    quantize_(attention, DYNAMIC)
    assert type(attention.self_attn.out_proj.weight) is nn.Parameter, "as in torchao"
    quantize_(attention, DYNAMIC, lambda module, name: name.endswith("out_proj"))
    assert 0 < (attention(x) - before).abs().max() < 0.05


@pytest.mark.parametrize(
    ("config", "takes", "words"),
    [
        (INT8, lambda module, name: False, "no layer to quantize"),
        (ModuleConfigs({"2": INT8, "re:5.*": INT8}), None, "'re:5.*' of `configs` fits no layer; layers are 0, 2, 4"),
        (of.int4_weight_only(64), None, "layer '2': `in_features` must be a multiple of the group size 64, got 48"),
        (
            INT8,
            lambda module, name: name in ("0", "1"),
            "layer '1' \\(ReLU\\) must have a floating-point `weight`, got none",
        ),
        (ModuleConfigs({"_default": DYNAMIC}), lambda module, name: name in ("0", "4"), "layer '4': .*finite"),
    ],
)
def test_a_model_is_untouched_when_a_call_fails(config: Any, takes: Any, words: str) -> None:
    broken = model()
    if "finite" in words:
        with torch.no_grad():
            broken[4].weight[3, 3] = torch.nan
    before = dict(broken.named_parameters())
    with pytest.raises(ValueError, match=words):
        quantize_(broken, config, takes)
    assert all(p is before[name] for name, p in broken.named_parameters())
    with pytest.raises(TypeError, match="`config` must be"):
        quantize_(broken, "int8")


def test_a_layer_is_quantized_once() -> None:
    once = layer(INT8)
    with pytest.raises(ValueError, match="no layer to quantize"):
        quantize_(once, INT8)
    with pytest.raises(ValueError, match="layer '' is quantized already"):
        quantize_(once, INT8, lambda module, name: True)


@pytest.mark.parametrize("name", ["int8dq", "int4wo integer", "nvfp4 dynamic"])
def test_copies_and_state_dicts(name: str) -> None:
    config, x = CONFIGS[name], torch.from_numpy(rows())
    first = layer(config)
    y = first(x)
    twin = copy.deepcopy(first)
    file = io.BytesIO()
    torch.save(first, file)
    file.seek(0)
    for other in (twin, torch.load(file, weights_only=False)):
        assert isinstance(other.weight, nn.Parameter)
        assert isinstance(other.weight, QuantWeight)
        assert_same_bits(y, other(x))
        assert other.weight.codes.data_ptr() != first.weight.codes.data_ptr()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = layer(config, seed=5)
    held = second.weight
    second.load_state_dict(state, strict=True)
    assert second.weight is held
    assert_same_bits(y, second(x))
    third = layer(config, seed=5)
    want = third(x)
    with pytest.raises(RuntimeError, match="takes one that is made alike"):
        loading.load_state_dict(layer(INT8), state)
    with pytest.raises(RuntimeError, match="load floats into the float model, then quantize it"):
        loading.load_state_dict(third, layer().state_dict())
    assert_same_bits(want, third(x))


def test_operators() -> None:
    held, x = layer(DYNAMIC).weight, torch.from_numpy(rows())
    bias, values = torch.linspace(-1, 1, 24), held.dequantize()
    y = F.linear(x, held, bias)
    for other in (torch.addmm(bias, x, held.t()), torch.matmul(x, held.T) + bias, x @ held.permute(1, 0) + bias):
        assert_same_bits(y, other)
    assert_same_bits(held.t().t()[2:5].dequantize(), values[2:5])
    assert isinstance(held[2:5], QuantWeight)
    for result, want in (
        (held[3], values[3]),
        (held + 1, values + 1),
        (held.t().dequantize(), values.t()),
        (held.to(torch.bfloat16).dequantize(), values.bfloat16()),
        (held.double().dequantize(), values.double()),
        (held.sum(), values.sum()),
        (F.linear(x, held.t()[:, :24].t().dequantize()), F.linear(x, values[:24])),
        (F.embedding(torch.tensor([[3, 0], [5, 5]]), held), values[torch.tensor([[3, 0], [5, 5]])]),
        (torch.zeros(24, 64).copy_(held), values),
    ):
        assert_same_bits(want, result)
    with pytest.raises(TypeError, match="`max_norm` must be None"):
        F.embedding(torch.tensor([1]), held, max_norm=1.0)
    with pytest.raises(TypeError, match="would change a QuantWeight in place"):
        held.mul_(2)
    assert "int8 per axis 0, plain, activations int8 per token" in repr(held)


def test_views_in_inference_mode() -> None:
    """Of a weight that was made outside it, as of one that was made inside."""
    w, x = torch.randn(8, 64), torch.randn(2, 64)
    q = of.int8_weight_only().weight
    outside = quant_weight(q, w)
    with torch.inference_mode():
        for held in (outside, nn.Parameter(outside, requires_grad=False), quant_weight(q, w)):
            assert isinstance(held[:5], QuantWeight)
            assert isinstance(held.detach(), QuantWeight)
            assert_same_bits(outside.dequantize()[:5], held[:5].dequantize())
            assert_same_bits(outside.dequantize()[2], held[2])
            assert_same_bits(outside.dequantize(), held.view(8, 64).dequantize())
            assert_same_bits(x @ outside.dequantize().t(), x @ held.t())


def test_other_shapes_and_dtypes() -> None:
    held = layer(DYNAMIC)
    x = torch.from_numpy(rows())
    y = held(x)
    assert_same_bits(y[3], held(x[3]))
    assert_same_bits(y.reshape(1, 7, 24), held(x.reshape(1, 7, 64)))
    assert held(x[:0]).shape == (0, 24)
    half = copy.deepcopy(held).bfloat16()
    q_x, q_w = DYNAMIC.activation, DYNAMIC.weight
    a, bias = x.bfloat16(), held.bias.detach().bfloat16().float()
    qparams = core.choose_qparams(q_x, a.float().numpy()), core.QParams(held.weight.scale.numpy())
    values = held.weight.dequantize().numpy()
    wide = core.linear(q_x, a.float().numpy(), qparams[0], q_w, values, qparams[1], bias.numpy())
    assert_same_bits(torch.from_numpy(wide).bfloat16(), half(a))
    long = layer(DYNAMIC, inputs=2**15)  # too long for int32
    single = layer(DYNAMIC, inputs=1)
    for one, z in ((long, torch.from_numpy(rows(3, 2**15))), (single, torch.from_numpy(rows(3, 1)))):
        w = weight(24, z.shape[1])
        given = core.choose_qparams(q_x, z.numpy()), core.choose_qparams(q_w, w)
        assert_same_bits(core.linear(q_x, z.numpy(), given[0], q_w, w, given[1], one.bias.detach().numpy()), one(z))
    w, z, b = weight() * 2.0**-70, rows() * 2.0**-60, np.full(24, 2.0**-120, np.float32)  # products of scales: 2**-130
    given = core.choose_qparams(q_x, z), core.choose_qparams(q_w, w)
    small = quant_weight(q_w, torch.from_numpy(w), act_quant=q_x)
    y = F.linear(torch.from_numpy(z), small, torch.from_numpy(b))
    assert_same_bits(core.linear(q_x, z, given[0], q_w, w, given[1], b), y)
    for wrong, error, words in (
        (x.double(), TypeError, "`x` must have the dtype of the weight, float32, got float64"),
        (x[:, :60], ValueError, r"`x` must fit a weight of shape \(24, 64\), got shape \(7, 60\)"),
        (x * torch.nan, ValueError, "finite"),
    ):
        with pytest.raises(error, match=words):
            held(wrong)


@pytest.mark.parametrize("name", ["int8dq", "8da4w", "int8wo"])
def test_gradients_are_those_of_the_values(name: str) -> None:
    config, held = CONFIGS[name], layer(CONFIGS[name])
    x = torch.from_numpy(rows()).requires_grad_()
    g = torch.linspace(-1, 1, 7 * 24).reshape(7, 24)
    held(x).backward(g)
    want = g @ held.weight.dequantize()
    inside = torch.ones_like(x)
    if config.act_quant is not None:
        from samebits.torch_frontend import choose_qparams, fake_quantize

        z = x.detach().requires_grad_()
        fake_quantize(config.act_quant, z, choose_qparams(config.act_quant, z)).backward(torch.ones_like(x))
        assert z.grad is not None
        inside = z.grad
    assert x.grad is not None
    assert torch.allclose(x.grad, want * inside, rtol=1e-5, atol=1e-5), "sums in another order"
    assert held.bias.grad is not None
    assert torch.allclose(held.bias.grad, g.sum(0), atol=1e-5)
    assert held.weight.grad is None


class Both(nn.Module):
    """A part whose outputs have the same bits everywhere, and all of a model."""

    def __init__(self, parts: nn.Sequential) -> None:
        super().__init__()
        self.exact, self.last = parts[:-1], parts[-1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.exact(x)
        return y, self.last(y)


def test_compiled_and_exported_programs_have_the_same_bits() -> None:
    """One program for all: contracted codes, packed codes, groups; and a layer whose bias is trained."""
    mixed = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8))
    configs = {"0": DYNAMIC, "2": of.int4_weight_only(16, "integer")}
    quantize_(mixed, ModuleConfigs(configs))
    both, x = Both(mixed), torch.from_numpy(rows())
    with torch.no_grad():
        first, y = both(x)
        compiled = torch.compile(both, fullgraph=True)(x)
    assert_same_bits(first, compiled[0])
    bound = contraction_bound(first, mixed[2].weight.dequantize(), mixed[2].bias)
    assert ((compiled[1] - y).abs() <= 2 * bound).all()
    program = torch.export.export(mixed, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for each in (program, torch.export.load(file)):
        with torch.no_grad():
            assert_same_bits(y, each.module()(x))
            assert each.module()(x[:3]).shape == (3, 8)
    trained = torch.compile(mixed[0], fullgraph=True)(x)
    assert_same_bits(mixed[0](x), trained)
    trained.sum().backward()
    assert torch.equal(mixed[0].bias.grad, torch.full((48,), 7.0))


def test_weights_of_codes() -> None:
    q = of.int4_weight_only(16, "integer").weight
    w = torch.from_numpy(weight())
    made = quant_weight(q, w, layout="packed")
    again = weight_of_codes(q, codes_of(made), made.qparams, torch.float32, layout="packed")
    assert_same_bits(made.codes, again.codes)
    assert_same_bits(made.dequantize(), again.dequantize())
    codes, qparams = codes_of(made), made.qparams
    for call, error, words in (
        (lambda: weight_of_codes(q, codes + 16, qparams, torch.float32), ValueError, r"must lie in \[0, 15\]"),
        (lambda: weight_of_codes(q, codes.int(), qparams, torch.float32), TypeError, "dtype int8, got int32"),
        (lambda: weight_of_codes(q, codes, qparams, torch.int8), TypeError, "`dtype` must have dtype float32"),
        (lambda: weight_of_codes(q, codes[:5], qparams, torch.float32), ValueError, "`qparams.scale` must have shape"),
        (lambda: weight_of_codes(q, codes, qparams, torch.float32, layout="tiled"), ValueError, "`layout`"),
        (lambda: weight_of_codes(q, codes, qparams, torch.float32, "int8_per_token"), TypeError, "`act_quant`"),
        (lambda: quant_weight("int8_per_channel", w), TypeError, "`q` must be a Quantizer"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_convolutions_take_values() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    quantize_(conv, INT8, lambda module, name: True)
    values: Tensor = conv.weight.dequantize()
    assert_same_bits(F.conv2d(x, values, conv.bias), conv(x))


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("config", [of.int8_weight_only(), of.intx_weight_only(4), of.WeightOnly("int8_per_tensor")])
def test_few_rows_of_bfloat16_lie_within_the_bound_of_values(rows: int, config: of.WeightOnly) -> None:
    torch.manual_seed(rows)
    layer = nn.Linear(96, 40).bfloat16()
    quantize_(layer, config)
    x, bias = torch.randn(2, rows, 96).bfloat16()[0], layer.bias.detach().double()
    held: Any = layer.weight
    w = core.dequantize(config.weight, codes_of(held).numpy(), core.QParams(held.scale.numpy()))
    wide = torch.from_numpy(w).double()
    exact, size = x.double() @ wide.T + bias, x.double().abs() @ wide.abs().T + bias.abs()
    torch.compiler.reset()
    with torch.no_grad():
        for y in (layer(x), torch.compile(layer, fullgraph=True)(x)):
            assert y.dtype == torch.bfloat16
            assert ((y.double() - exact).abs() <= 2.0**-8 * size).all()
    assert layer(x).requires_grad  # the bias is a parameter: by values


def test_few_rows_with_special_values() -> None:
    layer = nn.Linear(32, 3, bias=False).bfloat16()
    quantize_(layer, of.int8_weight_only())
    x = torch.zeros(3, 32).bfloat16()
    x[0, 5], x[1, 2], x[2, :2] = torch.nan, -0.0, torch.tensor([1e-40, 3e38])
    with torch.no_grad():
        y = layer(x)
        assert y[0].isnan().all()
        assert (y[1] == 0).all()
        assert layer(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("inputs", [1, 16, 24, 33, 48])
def test_inputs_that_the_kernel_does_not_take_go_by_values(inputs: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, 5).bfloat16()
    quantize_(layer, of.int8_weight_only())
    x = torch.randn(2, inputs).bfloat16()
    with torch.no_grad():
        assert_same_bits(layer(x), F.linear(x, layer.weight.dequantize(), layer.bias))
