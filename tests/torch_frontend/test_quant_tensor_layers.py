"""Layers that give and take tensors with codes: the bits of the layers that do not, widths, and whole networks."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samebits.core import catalog
from samebits.core.accumulator import truncate
from samebits.core.formats import IntegerFormat
from samebits.core.granularity import PerAxis, PerGroup
from samebits.core.quant import Int8ActPerTensorFloat, Int16Bias, RoundTo8bit, TruncTo8bit
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import QuantTensor, fake_quantize, quantized_tensor
from samebits.torch_frontend import quant as with_components
from samebits.torch_frontend.nn import (
    QuantAdaptiveAvgPool2d,
    QuantAvgPool2d,
    QuantCat,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantEltwiseAdd,
    QuantEmbedding,
    QuantIdentity,
    QuantLinear,
    QuantLSTM,
    QuantMaxPool1d,
    QuantMaxPool2d,
    QuantReLU,
    QuantScaleBias,
    QuantTanh,
    QuantUpsample,
    QuantUpsamplingBilinear2d,
    QuantUpsamplingNearest2d,
    TensorQuantizer,
)
from samebits.torch_frontend.quant_rescaled import truncated

INT8 = catalog["int8_per_tensor"]
FIXED = INT8.replace(source="constant", scale_value=0.05)
RUNNING = INT8.replace(source="running_statistic")


def numbers(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def coded(q: Any, x: Tensor, *qparams: Any) -> Any:
    """A tensor with codes."""
    return quantized_tensor(q, x, *qparams)


def valued(y: Tensor) -> Tensor:
    return y.dequantize() if isinstance(y, QuantTensor) else y


LAYERS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "linear": (lambda **k: QuantLinear(24, 7, **k), (5, 24)),
    "linear, no bias": (lambda **k: QuantLinear(24, 7, bias=False, **k), (2, 3, 24)),
    "linear, one vector": (lambda **k: QuantLinear(24, 7, **k), (24,)),
    "linear, empty": (lambda **k: QuantLinear(24, 7, **k), (0, 24)),
    "conv": (lambda **k: QuantConv2d(3, 5, 3, 2, 1, **k), (2, 3, 8, 8)),
    "conv, same": (lambda **k: QuantConv2d(4, 6, (3, 2), padding="same", dilation=2, groups=2, **k), (2, 4, 7, 6)),
    "conv, reflect": (lambda **k: QuantConv2d(3, 5, 3, padding=(1, 2), padding_mode="reflect", **k), (3, 7, 6)),
    "conv, circular": (lambda **k: QuantConv1d(3, 5, 3, padding=2, padding_mode="circular", **k), (2, 3, 7)),
    "conv, replicate": (lambda **k: QuantConv3d(2, 3, 2, padding=1, padding_mode="replicate", **k), (2, 2, 4, 3, 5)),
    "transposed": (lambda **k: QuantConvTranspose2d(4, 6, 3, 2, 1, 1, **k), (2, 4, 5, 6)),
    "transposed, groups": (lambda **k: QuantConvTranspose1d(4, 6, 3, groups=2, **k), (2, 4, 9)),
    "scale and bias": (lambda **k: QuantScaleBias(4, **k), (2, 4, 5, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_results_with_codes_have_the_bits_of_those_without(name: str) -> None:
    """Also where the input has the codes and the layer quantizes none."""
    make, shape = LAYERS[name]
    for input_quant in ("int8_per_tensor", "uint8_affine_per_tensor", "binary_per_tensor", "int8_affine_per_token"):
        if input_quant.endswith("token") and (not name.startswith("linear") or len(shape) == 1):
            continue
        layer, x = make(input_quant=input_quant), numbers(*shape)
        want = layer(x)
        giving = copy.deepcopy(layer)
        giving.return_quant_tensor = True
        taking = copy.deepcopy(layer)
        taking.input_quant = None
        given = coded(catalog[input_quant], x)
        for y in (giving(x), taking(given)):
            assert_same_bits(want, valued(y), call=f"{name}, {input_quant}")
        assert type(taking(given)) is Tensor
        y = giving(x)
        assert isinstance(y, QuantTensor)
        assert y.is_valid
        gradients = [
            torch.autograd.grad(f(x).square().sum(), m.weight)[0] for f, m in ((layer, layer), (giving, giving))
        ]
        torch.testing.assert_close(*gradients)


def test_widths_of_accumulators() -> None:
    """``ceil(log2((2**b_x - 1) (2**b_w - 1) terms))``, more where that has no room."""
    x = coded(INT8, numbers(2, 8))
    for bits, width in ((8, 19), (4, 15), (2, 13)):
        y = QuantLinear(8, 3, weight_bits=bits, return_quant_tensor=True)(x)
        assert (y.bit_width, y.signed, y.scale.shape) == (width, True, (1, 3))
    y = QuantConv2d(4, 5, 3, return_quant_tensor=True, bias=False)(coded(INT8, numbers(1, 4, 5, 5)))
    assert (y.bit_width, y.scale.shape, y.offset) == (22, (1, 5, 1, 1), None)


def test_biases() -> None:
    """A float bias stays behind the product; one in units of the scale is added to the codes, one bit more."""
    x, w = coded(FIXED, numbers(4, 8)), coded(FIXED, numbers(3, 8))
    bias = numbers(3)
    plain: Any = F.linear(x, w)
    biased: Any = F.linear(x, w, bias)
    assert isinstance(biased, QuantTensor)
    assert_same_bits(plain.codes, biased.codes)
    assert_same_bits(plain.value + bias, biased.value)
    scale = float(plain.scale)
    q = FIXED.replace(bits=16, scale_value=scale)
    of_scale = coded(q, bias)
    added: Any = F.linear(x, w, of_scale)
    assert torch.equal(added.codes, plain.codes + of_scale.codes)
    assert (added.bit_width, added.offset) == (20, None)
    conv: Any = F.conv2d(x[:, :, None, None], w[:, :, None, None], of_scale)
    assert torch.equal(conv.codes[:, :, 0, 0], added.codes)


def test_quantized_biases() -> None:
    """Codes of a bias are added to the sums; the values of that are rounded once, and twice where none are returned."""
    q = INT8.replace(bits=16)
    for layer, shape in (
        (QuantLinear(8, 3, input_quant=FIXED, bias_quant=q), (4, 8)),
        (QuantLinear(8, 3, input_quant=FIXED, bias_quant=Int16Bias), (4, 8)),
        (QuantConv2d(4, 5, 3, input_quant=FIXED, bias_quant=q), (2, 4, 5, 5)),
        (QuantConvTranspose2d(4, 5, 3, input_quant=FIXED, bias_quant=q), (2, 4, 5, 5)),
    ):
        x, giving = numbers(*shape), copy.deepcopy(layer)
        giving.return_quant_tensor = True
        y: Any = giving(x)
        assert (y.offset, y.is_valid) == (None, True)
        exact = y.codes.double() * y.scale.double()
        assert_same_bits(exact.float(), y.dequantize())
        torch.testing.assert_close(layer(x), y.dequantize(), rtol=2.0**-22, atol=1e-6)
        of_codes, layer.input_quant = coded(FIXED, x), None
        assert_same_bits(giving(x).codes, y.codes)
        torch.testing.assert_close(layer(of_codes), y.dequantize(), rtol=2.0**-22, atol=1e-6)
        gradients = torch.autograd.grad(y.sum(), (giving.weight, giving.bias))
        assert all(g.abs().sum() > 0 for g in gradients)


def test_tables_and_activations() -> None:
    indices = torch.tensor([[0, 4], [2, 2]])
    for q in ("int8_per_tensor", "int8_per_channel"):
        table = QuantEmbedding(5, 6, weight_quant=q)
        want = table(indices)
        table.return_quant_tensor = True
        rows: Any = table(indices)
        assert_same_bits(want, rows.dequantize())
        assert (rows.is_valid, rows.bit_width) == (True, 8)
    y: Any = QuantTanh(return_quant_tensor=True)(coded(INT8, numbers(5)))
    assert (y.is_valid, y.bit_width) == (True, 8)
    with pytest.raises(TypeError, match="QuantLSTM has no keyword `return_quant_tensor`"):
        QuantLSTM(2, 3, return_quant_tensor=True)


def test_quantizers_of_layers_and_tensors_with_codes() -> None:
    """An input that a layer quantizes is quantized again, as its values; an output has the codes of its quantizer."""
    x = coded(INT8, numbers(5, 24))
    layer = QuantLinear(24, 7, input_quant=INT8.replace(bits=4))
    assert_same_bits(layer(x.dequantize()), layer(x))
    layer = QuantLinear(24, 7, output_quant=FIXED, return_quant_tensor=True)
    y = layer(x)
    assert (y.bit_width, float(y.scale)) == (8, pytest.approx(0.05))
    layer.return_quant_tensor = False
    assert_same_bits(y.dequantize(), layer(x))
    for activation in (QuantIdentity(None), QuantReLU(None)):
        assert type(activation(x)) is Tensor
        activation.return_quant_tensor = True
        assert isinstance(activation(x), QuantTensor)
    learned = QuantIdentity(catalog["int8_learned_per_tensor"].replace(learned_bits=4.0), return_quant_tensor=True)
    y = learned(numbers(100))
    assert y.is_valid
    assert int(y.codes.max()) <= 7
    with pytest.raises(TypeError, match="QuantLinear, `return_quant_tensor` must be a bool, got 1"):
        QuantLinear(2, 2, return_quant_tensor=1)


def test_no_codes_during_a_delay() -> None:
    layer = QuantIdentity(RUNNING.replace(delay=2), return_quant_tensor=True)
    kinds = [type(layer(numbers(9))) for _ in range(4)]
    assert kinds == [Tensor, Tensor, QuantTensor, QuantTensor]
    assert isinstance(layer.eval()(numbers(9)), QuantTensor)


@pytest.mark.parametrize(
    "q",
    [INT8, RUNNING, FIXED, INT8.replace(granularity=PerAxis(1)), catalog["int8_affine_per_token"]],
    ids=["statistic", "running", "constant", "axis", "token"],
)
def test_sums_have_one_scale(q: Any) -> None:
    a, b = numbers(4, 6), numbers(4, 6, seed=5) * 4
    layer = QuantEltwiseAdd(q, None, return_quant_tensor=True)
    y = layer(a, b)
    assert isinstance(y, QuantTensor)
    assert (y.bit_width, y.is_valid) == (9, True)
    axis = 1 if q.granularity == catalog["int8_affine_per_token"].granularity else 0
    both = torch.cat([a, b], axis)
    qparams = TensorQuantizer(q).qparams(both)
    halves = coded(q, both, qparams).int().long().split(a.shape[axis], axis)
    assert torch.equal(y.int().long(), halves[0] + halves[1])
    layer.return_quant_tensor = False
    assert_same_bits(y.dequantize(), layer.eval()(a, b))


def test_sums_of_other_shapes() -> None:
    layer = QuantEltwiseAdd(FIXED, None, return_quant_tensor=True)
    assert layer(numbers(4, 6), numbers(6)).shape == (4, 6)
    assert layer(torch.tensor(1.0), torch.tensor(0.5)).int().tolist() == 30
    assert layer(numbers(0, 3), numbers(0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match="must be per tensor, axis or token"):
        QuantEltwiseAdd(INT8.replace(granularity=PerGroup(2)))(numbers(4, 6), numbers(4, 6))
    t = coded(FIXED, numbers(4, 6))
    assert torch.equal(QuantEltwiseAdd(None, None, return_quant_tensor=True)(t, t).codes, 2 * t.codes)
    assert type(QuantEltwiseAdd(None, None)(numbers(3), numbers(3))) is Tensor


def test_concatenation_has_one_scale() -> None:
    a, b = numbers(2, 3, 4), numbers(2, 5, 4, seed=5) * 9
    y = QuantCat(INT8, None, return_quant_tensor=True)([a, coded(FIXED, b)])
    assert_same_bits(fake_quantize(INT8, torch.cat([a, fake_quantize(FIXED, b)], 1)), y.dequantize())
    t = coded(FIXED, a)
    assert QuantCat(None, None, return_quant_tensor=True)((t, t), dim=2).shape == (2, 3, 8)


def test_averages_are_truncated_sums() -> None:
    """As `core.accumulator.truncate` of sums, for signed, unsigned and affine codes; gradients of averages."""
    for q in (INT8, catalog["uint8_per_tensor"], INT8.replace(bits=4), catalog["uint8_affine_per_tensor"]):
        x = numbers(2, 3, 8, 8).requires_grad_()
        t = coded(q, x)
        centred = t.int().long() - t.zero_point.long()
        for layer, window in ((QuantAvgPool2d(2), 2), (QuantAdaptiveAvgPool2d(2), 4), (QuantAdaptiveAvgPool2d(1), 8)):
            y = layer(t)
            total = F.avg_pool2d(centred.double(), window, divisor_override=1).long()
            bits = ((2 ** (q.format.bits + q.affine) - 1) * window**2 - 1).bit_length()
            dropped = max(bits - 8, 0)
            signed = y.signed
            source, target = IntegerFormat(bits, signed), IntegerFormat(min(bits, 8), signed)
            codes = total.numpy().astype(source.storage)
            want = truncate(codes, source, target, "ties_to_even") if dropped else codes
            assert np.array_equal(want, y.codes.detach().numpy())
            assert_same_bits(t.scale / window**2 * 2.0**dropped, y.scale)
            assert (y.bit_width, y.is_valid) == (min(bits, 8), True)
            (d,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
            (want_d,) = torch.autograd.grad(F.avg_pool2d(fake_quantize(q, x), window).sum(), x)
            torch.testing.assert_close(d, want_d)
    down = QuantAvgPool2d(2, trunc_bits=6, trunc_rounding="toward_negative")(t)
    assert (down.bit_width, down.is_valid) == (6, True)
    t = coded(INT8, numbers(3, 4))
    for declared, direction in (
        (RoundTo8bit, "ties_to_even"),
        (TruncTo8bit.let(bit_width=5), "toward_negative"),
        (with_components.TruncTo8bit, "toward_negative"),
        (with_components.RoundTo8bit.let(bit_width=6), "ties_to_even"),
    ):
        bits = declared.bit_width
        want = QuantAvgPool2d(4, trunc_bits=bits, trunc_rounding=direction)(coded(INT8, x))
        assert_same_bits(want.codes, QuantAvgPool2d(4, trunc_quant=declared)(coded(INT8, x)).codes)
        assert want.bit_width == bits
    with pytest.raises(TypeError, match="`trunc_quant` must inherit from TruncTo8bit or RoundTo8bit"):
        QuantAdaptiveAvgPool2d(1, trunc_quant=Int8ActPerTensorFloat)
    with pytest.raises(
        TypeError, match=r"`trunc_quant` must have as `tensor_quant` a TruncIntQuant .* got TruncIntQuant"
    ):
        QuantAvgPool2d(4, trunc_quant=with_components.RoundTo8bit.let(narrow_range=True))
    for bits in (8, 9):
        same: Any = truncated(t, bits)
        assert_same_bits(t.codes, same.codes)
        assert same.format == t.format
    assert truncated(numbers(3), 4).shape == (3,)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("`ceil_mode` must be False", lambda: QuantAvgPool2d(2, ceil_mode=True)),
        ("one number divides the sums", lambda: QuantAvgPool2d(2, padding=1, count_include_pad=False)),
        ("no windows of one size", lambda: QuantAdaptiveAvgPool2d(3)(coded(INT8, numbers(1, 2, 8, 8)))),
        ("`bits` must be at least 1", lambda: truncated(coded(INT8, numbers(3)), 0)),
        ("`rounding` must look at nothing", lambda: truncated(coded(INT8, numbers(3)), 4, "stochastic")),
    ],
)
def test_refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_maxima_and_upsampling() -> None:
    x = numbers(2, 3, 8, 8)
    for q in (INT8, catalog["uint8_affine_per_tensor"], catalog["float8_e4m3fn_per_tensor"]):
        t, x_hat = coded(q, x), fake_quantize(q, x)
        for layer, plain in (
            (QuantMaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)),
            (QuantUpsample(scale_factor=2), nn.Upsample(scale_factor=2)),
            (QuantUpsamplingNearest2d(size=(11, 5)), nn.UpsamplingNearest2d(size=(11, 5))),
        ):
            y = layer(t)
            assert (y.format, y.is_valid) == (t.format, True)
            assert_same_bits(plain(x_hat), y.dequantize())
            assert_same_bits(plain(x), layer(x))
        assert_same_bits(F.max_pool1d(x_hat[0], 2), QuantMaxPool1d(2)(t[0]).dequantize())
        y, indices = QuantMaxPool2d(2, return_indices=True)(t)
        assert_same_bits(F.max_pool2d(x_hat, 2, return_indices=True)[1], indices)
    for layer, plain in (
        (QuantUpsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2, mode="bilinear")),
        (QuantUpsamplingBilinear2d(scale_factor=2), nn.UpsamplingBilinear2d(scale_factor=2)),
        (QuantUpsample(scale_factor=2, mode="bicubic"), nn.Upsample(scale_factor=2, mode="bicubic")),
    ):
        for q in (INT8, catalog["uint8_affine_per_tensor"]):
            t = coded(q, x.requires_grad_())
            y = layer(t)
            codes = plain(t.codes.double() - t.zero_point.double()).round() + t.zero_point
            assert torch.equal(codes.clamp(q.format.lo, q.format.hi).float(), y.codes)
            (d,) = torch.autograd.grad(y.sum(), x)
            torch.testing.assert_close(d, torch.autograd.grad(plain(fake_quantize(q, x)).sum(), x)[0])


class Network(nn.Module):
    """Every kind of layer, codes handed from each to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.first = QuantReLU("uint8_per_tensor", return_quant_tensor=True)
        self.conv = QuantConv2d(3, 8, 3, padding=1, return_quant_tensor=True)
        self.middle = QuantIdentity(RUNNING, return_quant_tensor=True)
        self.add = QuantEltwiseAdd(output_quant=FIXED, return_quant_tensor=True)
        self.cat = QuantCat(FIXED, None, return_quant_tensor=True)
        self.pool = nn.Sequential(QuantMaxPool2d(2), QuantAvgPool2d(2), QuantUpsample(scale_factor=2))
        self.last = nn.Sequential(QuantUpsample(scale_factor=2, mode="bilinear"), QuantAdaptiveAvgPool2d(2))
        self.linear = QuantLinear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        t = self.middle(self.conv(self.first(x)))
        t = self.cat([self.add(t, t.relu()), t.neg().neg()])
        y: Tensor = self.linear(self.last(self.pool(t)).flatten(1))
        return y


def test_networks_compiled_and_exported() -> None:
    """Training steps: the bits of eager mode, and its state. Evaluation: compiled, exported, from a state dict."""
    torch._dynamo.reset()
    network, x = Network(), numbers(2, 3, 8, 8)
    network(x)
    twin = copy.deepcopy(network)
    program = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step in range(2):
        batch = numbers(2, 3, 8, 8, seed=step)
        y, z = network(batch), program(batch)
        assert_same_bits(y, z)
        for model, output in ((network, y), (twin, z)):
            model.zero_grad()
            output.square().sum().backward()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    for name, buffer in network.state_dict().items():
        assert_same_bits(buffer, twin.state_dict()[name])
    want = network.eval()(x)
    with torch.no_grad():
        assert_same_bits(want, torch.compile(network, fullgraph=True)(x))
    exported = torch.export.export(network, (x,))
    assert_same_bits(want, exported.module()(x))
    fresh = Network().eval()
    fresh.load_state_dict(network.state_dict())
    assert_same_bits(want, fresh(x))
