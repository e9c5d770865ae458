"""What layers hold for their arguments: single fields replaced by keywords, and what is refused."""

from typing import Any

import pytest
import torch

from samebits.core import PerAxis, PerTensor, catalog
from samebits.core.directions import Rounding
from samebits.torch_frontend.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU, TensorQuantizer


def described(module: Any) -> Any:
    return module.quantizer


def test_keywords_replace_single_fields_of_each_quantizer() -> None:
    layer = QuantLinear(
        3,
        2,
        weight_bits=4,
        weight_rounding="toward_zero",
        weight_granularity=PerTensor(),
        input_quant="uint8_per_tensor",
        input_source="running_statistic",
        output_quant=catalog["int8_per_tensor"],
        output_narrow=True,
    )
    want = catalog["int8_per_channel"].replace(bits=4, rounding=Rounding.TOWARD_ZERO, granularity=PerTensor())
    assert described(layer.weight_quant) == want
    assert described(layer.input_quant) == catalog["uint8_per_tensor"].replace(source="running_statistic")
    assert described(layer.output_quant) == catalog["int8_per_tensor"].replace(narrow=True)
    assert list(layer.state_dict()) == ["weight", "bias", "input_quant.scale"]
    conv = QuantConv2d(1, 4, 3, weight_source="learned", weight_gradient="learned_scale")
    assert described(conv.weight_quant).granularity == PerAxis(0)
    assert conv.state_dict()["weight_quant.scale"].shape == (4, 1, 1, 1)
    for layer_of_one in (QuantIdentity, QuantReLU):
        for keywords in ({"bits": 5}, {"act_bits": 5}):
            assert described(layer_of_one("int8_per_tensor", **keywords).act_quant).format.bits == 5
    with torch.device("meta"):
        assert QuantLinear(3, 2, weight_source="learned").state_dict()["weight_quant.scale"].device.type == "meta"


@pytest.mark.parametrize(
    ("layer", "keywords", "error", "message"),
    [
        (
            QuantLinear,
            {"wieght_bits": 4},
            TypeError,
            "QuantLinear has no keyword `wieght_bits`; .* `weight_`, `bias_`",
        ),
        (QuantLinear, {"act_bits": 4}, TypeError, "QuantLinear has no keyword `act_bits`"),
        (QuantLinear, {"weight_": 4}, TypeError, "QuantLinear has no keyword `weight_`"),
        (QuantLinear, {"weight_bit": 4}, TypeError, "`weight_quant`: no field `bit`, .* `weight_bit`; .* bits, "),
        (QuantLinear, {"weight_quant": None, "weight_bits": 4}, TypeError, "QuantLinear .* `weight_bits`: .* is None"),
        (QuantLinear, {"input_bits": 4}, TypeError, "QuantLinear cannot use `input_bits`: `input_quant` is None"),
        (QuantLinear, {"weight_bits": 40}, ValueError, "QuantLinear, `weight_quant`: `bits` must be in 1..16, got 40"),
        (QuantLinear, {"weight_rounding": "up"}, ValueError, "QuantLinear, `weight_quant`: .*'up'"),
        (
            QuantLinear,
            {"weight_bit_width": 4},
            TypeError,
            "no field `bit_width`, .* here it is `weight_bits`; fields are",
        ),
        (QuantReLU, {"bit_width": 4}, TypeError, "no field `bit_width`, .* here it is `act_bits`; fields are"),
        (QuantReLU, {"bit": 4}, TypeError, "QuantReLU, `act_quant`: no field `bit`"),
        (QuantReLU, {"input_bits": 4}, TypeError, "QuantReLU cannot use `input_bits`: `input_quant` is None"),
    ],
)
def test_other_keywords_are_refused(layer: Any, keywords: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer(*(() if layer is QuantReLU else (3, 2)), **keywords)


def test_an_instance_is_shared_and_not_changed() -> None:
    shared = TensorQuantizer("int8_per_tensor")
    assert QuantLinear(3, 2, input_quant=shared).input_quant is shared
    with pytest.raises(TypeError, match="`input_quant` is an instance, which others may share"):
        QuantLinear(3, 2, input_quant=shared, input_bits=4)
