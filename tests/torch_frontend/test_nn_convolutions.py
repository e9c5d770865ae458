"""Convolution layers of torch_frontend: as torch's where nothing is quantized, as the verbs where all is."""

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.nn import functional as F

from samebits import torch_frontend
from samebits.core import PerAxis, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as quantized
from samebits.torch_frontend.nn import QuantConv1d, QuantConv2d, QuantConvTranspose1d, QuantConvTranspose2d

LENGTHS = {1: (9,), 2: (7, 8), 3: (5, 6, 5)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1, "groups": 2},
    {"dilation": 2, "padding": "same", "bias": False},
    {"padding": "valid", "stride": 2},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": 2, "padding_mode": "circular", "dilation": 2},
    {"padding": 1, "padding_mode": "replicate", "groups": 4},
]
TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
    {"dilation": 2, "bias": False},
]
LAYERS = [(f"Conv{n}d", n, options) for n in LENGTHS for options in OPTIONS]
LAYERS += [(f"ConvTranspose{n}d", n, options) for n in LENGTHS for options in TRANSPOSED]


def pair(kind: str, options: dict[str, Any], **quant: Any) -> tuple[Any, Any]:
    """torch's layer and ours with the same parameters."""
    torch.manual_seed(0)
    plain = getattr(nn, kind)(4, 8, 3, **options)
    ours = getattr(quantized, f"Quant{kind}")(4, 8, 3, **options, **quant)
    ours.load_state_dict(plain.state_dict(), strict=False)
    return plain, ours


@pytest.mark.parametrize(("kind", "n", "options"), LAYERS)
def test_without_quantizers_layers_are_torchs(kind: str, n: int, options: dict[str, Any]) -> None:
    plain, ours = pair(kind, options, weight_quant=None)
    assert list(plain.state_dict()) == list(ours.state_dict())
    for x in (torch.randn(2, 4, *LENGTHS[n]), torch.randn(4, *LENGTHS[n])):
        assert_same_bits(plain(x), ours(x))
    assert ours.extra_repr() == plain.extra_repr()


@pytest.mark.parametrize(("kind", "n", "options"), LAYERS)
def test_layers_contract_the_codes_of_what_torch_contracts(kind: str, n: int, options: dict[str, Any]) -> None:
    """In float64, where torch's convolution of dequantized values errs far less than a step: the same but for that."""
    q = catalog["uint8_affine_per_tensor"].replace(source="constant", scale_value=1 / 64, zero_point_value=130)
    plain, ours = pair(kind, options, weight_quant="int8_per_channel", input_quant=q, dtype=torch.float64)
    x = torch.randn(2, 4, *LENGTHS[n], dtype=torch.float64)
    plain = plain.double()
    plain.load_state_dict(plain.state_dict() | {"weight": ours.weight_quant(ours.weight).detach()})
    torch.testing.assert_close(ours(x), plain(torch_frontend.fake_quantize(q, x)), rtol=1e-12, atol=1e-12)
    single, x = ours.float(), x.float()
    assert_same_bits(single(x[:1]), single(x)[:1])
    assert_same_bits(single(x[0]), single(x)[0])
    assert single(x[:0]).shape == (0, *single(x).shape[1:])


def test_channels_of_transposed_weights_lie_along_axis_1() -> None:
    layer: Any = QuantConvTranspose2d(4, 6, 3, weight_quant="int8_per_channel", weight_source="learned", groups=2)
    assert layer.weight_quant.quantizer.granularity == PerAxis(1)
    assert layer.state_dict()["weight_quant.scale"].shape == (1, 3, 1, 1)
    assert QuantConv2d(4, 6, 3, groups=2, weight_source="learned").state_dict()["weight_quant.scale"].shape[0] == 6


@pytest.mark.parametrize("wanted", [(12,), (13,), (2, 3, 12)])
def test_output_size_chooses_between_outputs(wanted: tuple[int, ...]) -> None:
    plain, x = nn.ConvTranspose1d(2, 3, 4, stride=2), torch.randn(2, 2, 5)
    ours = QuantConvTranspose1d(2, 3, 4, stride=2, input_quant="int8_per_tensor")
    assert ours(x, wanted).shape == plain(x, list(wanted)).shape
    with pytest.raises(ValueError, match="requested an output size"):
        ours(x, (15,))


def test_padding_is_zero_also_where_no_code_is() -> None:
    """Binary codes have no zero: margins add nothing to a sum, whatever the quantizer makes of the number 0."""
    q, x = catalog["binary_per_tensor"], torch.randn(1, 2, 5)
    layer = QuantConv1d(2, 3, 3, padding=1, bias=False, input_quant=q)
    assert layer.weight_quant is not None
    x_hat, w_hat = torch_frontend.fake_quantize(q, x), layer.weight_quant(layer.weight)
    torch.testing.assert_close(layer(x), F.conv1d(x_hat, w_hat, padding=1))


def test_scales_come_from_the_input_without_its_margins() -> None:
    """A percentile would see elements twice that a margin repeats."""
    q, x = catalog["int8_per_tensor"].replace(statistic="percentile", percentile=50.0), torch.arange(9.0)[None, None]
    layer = QuantConv1d(1, 1, 3, padding=2, padding_mode="replicate", input_quant=q)
    seen = []
    assert layer.input_quant is not None
    layer.input_quant.qparams = lambda x: seen.append(x.shape) or torch_frontend.choose_qparams(q, x)  # type: ignore
    layer(x)
    assert seen == [x.shape]


def test_scales_along_the_input_are_contracted_as_values() -> None:
    q, x = catalog["int8_per_tensor"].replace(granularity=PerAxis(1)), torch.randn(2, 4, 9)
    for options in ({"padding": 1}, {"padding": 1, "padding_mode": "reflect"}):
        plain, ours = pair("Conv1d", options, weight_quant="int8_per_channel", input_quant=q)
        plain.load_state_dict(plain.state_dict() | {"weight": ours.weight_quant(ours.weight).detach()})
        torch.testing.assert_close(ours(x), plain(torch_frontend.fake_quantize(q, x)))


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        ("Conv1d", {"groups": 3}, ValueError, "in_channels must be divisible by groups"),
        ("Conv2d", {"stride": 0}, ValueError, "`stride` must be at least 1, got 0"),
        ("Conv2d", {"padding": (1, 1, 1)}, ValueError, "`padding` must be an int, or"),
        ("Conv2d", {"padding": "same", "stride": 2}, ValueError, "not supported for strided"),
        ("Conv2d", {"padding_mode": "mirror"}, ValueError, "padding_mode must be one of"),
        ("ConvTranspose2d", {"output_padding": 1}, ValueError, "`output_padding` must be less than"),
        ("ConvTranspose2d", {"padding_mode": "reflect"}, ValueError, "Only .zeros. padding mode is supported"),
        ("Conv3d", {"weight_bit": 4}, TypeError, "QuantConv3d, `weight_quant`: no field `bit`"),
    ],
)
def test_layers_refuse(kind: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(quantized, f"Quant{kind}")(4, 8, 3, **options)
