"""What every flow does alike: models of other dtypes, models that are quantized already, weights in shared memory."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samebits.core import configs as of
from samebits.core.observing import default_histogram_qconfig, default_per_channel_qconfig, default_qconfig
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.ptq import (
    QuantWeight,
    adaround_,
    autoquant,
    convert,
    correct_biases_,
    equalize_,
    gptq_,
    load_quantized,
    prepare,
    prepare_qat,
    quantize,
    quantize_,
    quantize_dynamic,
    quantize_prepared,
    save_quantized,
    smooth_,
)


def mlp(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    layers = nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)
    return nn.Sequential(*layers).to(dtype).eval()


def batches(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(16, 32, dtype=dtype) for _ in range(2)]


@pytest.mark.parametrize("qconfig", [default_qconfig, default_per_channel_qconfig, default_histogram_qconfig])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_static_models_of_other_dtypes(qconfig: Any, dtype: torch.dtype) -> None:
    x = batches(dtype)[0]
    prepared = prepare(mlp(dtype), qconfig)
    prepared(x)
    converted = convert(prepared)
    quantize_prepared(prepared)
    with torch.no_grad():
        y = converted(x)
        assert y.dtype == dtype
        assert_same_bits(prepared(x), y)
        assert_same_bits(copy.deepcopy(converted)(x), y)
        assert (y - mlp(dtype)(x)).abs().max() < 0.1


def test_other_flows_in_float64(tmp_path: Any) -> None:
    """Scales of weights are float64 numbers there, of which every one is a float32 number."""
    data = batches(torch.float64)
    trained = prepare_qat(mlp(torch.float64).train(), default_qconfig)
    trained(data[0]).sum().backward()
    with torch.no_grad():
        assert_same_bits(convert(trained.eval())(data[1]), trained(data[1]))
        want = mlp(torch.float64)(data[0])
        assert (quantize_dynamic(mlp(torch.float64))(data[0]) - want).abs().max() < 0.1
        for function in (smooth_, lambda model, _: equalize_(model)):
            function(model := mlp(torch.float64), data)
            assert (model(data[0]) - want).abs().max() < 1e-12
        for config in ("int4_per_group32", of.int4_weight_only(16, "integer"), of.int4_weight_only(16)):
            model, single = mlp(torch.float64), mlp()
            gptq_(model[1], config, data)
            gptq_(single[1], config, [x.float() for x in data])
            assert model[1].weight.scale.dtype == torch.float64
            assert_same_bits(model[1].weight.codes, single[1].weight.codes)
            assert_same_bits(model[1].weight.scale.float(), single[1].weight.scale)
            adaround_(model[3], "int4_per_group32", [torch.randn(8, 64, dtype=torch.float64)], steps=2)
            correct_biases_(model, mlp(torch.float64), data)
            save_quantized(model, tmp_path / "model.safetensors")
            load_quantized(again := mlp(torch.float64), tmp_path / "model.safetensors")
            assert_same_bits(again(data[0]), model(data[0]))


FLOWS: dict[str, Callable[[Any], Any]] = {
    "prepare": lambda model: prepare(model, default_qconfig, inplace=True),
    "quantize_dynamic": lambda model: quantize_dynamic(model, inplace=True),
    "quantize": quantize,
    "gptq_": lambda model: gptq_(model, "int4_per_group32", batches()),
    "adaround_": lambda model: adaround_(model, "int4_per_group32", batches()),
    "smooth_": lambda model: smooth_(model, batches()),
    "equalize_": equalize_,
    "quantize_": lambda model: quantize_(model, of.int8_weight_only()),
    "autoquant": lambda model: autoquant(model, batches()[0]),
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_weight_of_codes_is_not_quantized_again(name: str) -> None:
    """Its values would be taken for the weights of the float model, and nothing would say so."""
    model = mlp()
    quantize_(model, of.int8_weight_only())
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match="quantized already"):
        FLOWS[name](model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[key] is value for key, value in before.items())


def test_layers_that_are_quantized_can_be_left_out() -> None:
    model = mlp()
    quantize_(model, of.ModuleConfigs({"1": of.int8_weight_only()}))
    first = model[1].weight
    gptq_(model, "int4_per_group32", batches(), filter_fn=lambda _, name: name == "3")
    assert model[1].weight is first
    assert isinstance(model[3].weight, QuantWeight)


@pytest.mark.parametrize("config", [of.int4_weight_only(16), of.int8_weight_only()])
def test_shared_memory(config: Any) -> None:
    model = mlp()
    quantize_(model, config)
    want = model(batches()[0])
    assert not model[1].weight.is_shared()
    model.share_memory()
    assert model[1].weight.is_shared()
    assert isinstance(model[1].weight, QuantWeight)
    assert_same_bits(model(batches()[0]), want)


def test_a_model_without_data_gets_memory_for_codes() -> None:
    """The usual way to load a large model: on "meta", then `to_empty`, then ``load_state_dict``."""
    model = mlp()
    quantize_(model, of.int4_weight_only(16))
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    assert isinstance(empty[1].weight, QuantWeight)
    empty.load_state_dict(model.state_dict())
    assert isinstance(empty[1].weight, QuantWeight)
    assert_same_bits(empty(batches()[0]), model(batches()[0]))
    assert type(torch.empty_like(model[1].weight)) is Tensor


def test_a_lazy_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer '0' \(LazyLinear\) has no weight yet"):
        quantize_(nn.Sequential(nn.LazyLinear(4)), of.int8_weight_only())
