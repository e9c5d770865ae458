"""What every flow does alike: models of other dtypes, kernels that are shared, models that are quantized already."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from samebits.core import configs as of
from samebits.core.observing import default_per_channel_qconfig, default_qconfig
from samebits.jax_backend import interop
from samebits.jax_backend.ptq import (
    autoquant,
    convert,
    gptq_,
    model_size,
    prepare,
    quantize_,
    quantize_prepared,
    smooth_,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy
from samebits.torch_frontend.ptq import convert as torch_convert
from samebits.torch_frontend.ptq import prepare as torch_prepare


def mlp(dtype: Any = np.float32) -> Any:
    rngs = nnx.Rngs(3)
    options: Any = {"rngs": rngs, "param_dtype": dtype}
    return nnx.Sequential(
        nnx.LayerNorm(32, **options), nnx.Linear(32, 64, **options), nnx.relu, nnx.Linear(64, 8, **options)
    )


def batches(dtype: Any = np.float32) -> list[jax.Array]:
    draws = np.random.default_rng(4)
    return [jnp.asarray(draws.standard_normal((16, 32)), dtype) for _ in range(2)]


@pytest.mark.parametrize(
    ("dtype", "qconfig"), [(jnp.bfloat16, default_per_channel_qconfig), (jnp.float16, default_qconfig)]
)
def test_static_models_of_16_bits(qconfig: Any, dtype: Any) -> None:
    """The outputs of torch; and what comes out has the dtype that the float model gives."""
    x = batches(dtype)[0]
    model, in_torch = nnx.Linear(32, 64, param_dtype=dtype, rngs=nnx.Rngs(0)), torch.nn.Linear(32, 64)
    tensors = {key: torch.tensor(np.asarray(value, np.float32)) for key, value in interop.state_dict(model).items()}
    in_torch.load_state_dict(tensors)
    in_torch.to(getattr(torch, jnp.dtype(dtype).name)).eval()
    prepared, torch_prepared = prepare(model, qconfig), torch_prepare(in_torch, qconfig)
    given = torch.tensor(np.asarray(x, np.float32)).to(in_torch.weight.dtype)
    prepared(x)
    torch_prepared(given)
    converted: Any = convert(prepared)
    quantize_prepared(prepared)
    y = converted(x)
    assert y.dtype == dtype
    assert_same_bits(to_numpy(prepared(x)), to_numpy(y))
    with torch.no_grad():
        assert_same_bits(to_numpy(torch_convert(torch_prepared)(given)), to_numpy(y))


def test_flows_in_float64() -> None:
    """Scales of weights are float64 numbers there, of which every one is a float32 number."""
    with jax.enable_x64(True):
        data = batches(np.float64)
        layers = [nnx.Linear(32, 8, param_dtype=np.float64, rngs=nnx.Rngs(0)) for _ in range(2)]
        want = layers[0](data[0])
        prepared: Any = prepare(layers[0], default_qconfig)
        prepared(data[0])
        converted: Any = convert(prepared)
        quantize_prepared(prepared)
        assert_same_bits(to_numpy(prepared(data[1])), to_numpy(converted(data[1])))
        gptq_(layers[1], "int4_per_group32", data)
        for model, bound in ((converted, 0.2), (layers[1], 1)):
            y = model(data[0])
            assert y.dtype == np.float64
            assert jnp.abs(y - want).max() < bound


FLOWS: dict[str, Callable[[Any], Any]] = {
    "prepare": lambda model: prepare(model, default_qconfig, inplace=True),
    "gptq_": lambda model: gptq_(model, "int4_per_group32", batches()),
    "smooth_": lambda model: smooth_(model, batches()),
    "smooth_, given pairs": lambda model: smooth_(model, batches(), pairs=[("layers.0", ["layers.1"])]),
    "quantize_": lambda model: quantize_(model, of.int8_weight_only()),
    "autoquant": lambda model: autoquant(model, batches()[0]),
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_kernel_of_codes_is_not_quantized_again(name: str) -> None:
    model = mlp()
    quantize_(model, of.int8_weight_only())
    before = [model.layers[i].kernel for i in (1, 3)]
    with pytest.raises(ValueError, match="quantized already"):
        FLOWS[name](model)
    assert all(model.layers[i].kernel is kernel for i, kernel in zip((1, 3), before, strict=True))


def test_shared_kernels_stay_shared() -> None:
    first, last = (nnx.Linear(32, 32, rngs=nnx.Rngs(0)) for _ in range(2))
    last.kernel = first.kernel
    model: Any = nnx.Sequential(first, nnx.relu, last)
    alone = nnx.Sequential(nnx.Linear(32, 32, rngs=nnx.Rngs(0)))
    quantize_(model, of.int8_weight_only())
    quantize_(alone, of.int8_weight_only())
    assert model.layers[0].kernel is model.layers[2].kernel
    assert model_size(model) == model_size(alone) + 4 * 32  # of the second bias

    last.kernel = nnx.Param(jnp.ones((32, 32)))
    other, third = (nnx.Linear(32, 32, rngs=nnx.Rngs(0)) for _ in range(2))
    third.kernel = other.kernel
    model = nnx.Sequential(other, third)
    quantize_(model, of.ModuleConfigs({"0": of.int8_weight_only(), "1": of.int4_weight_only(16)}))
    assert model.layers[0].kernel.get_value().quantizer != model.layers[1].kernel.get_value().quantizer


def test_what_has_no_matrix_or_no_batch_is_said() -> None:
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked(key: jax.Array) -> nnx.Linear:
        return nnx.Linear(8, 8, rngs=nnx.Rngs(key))

    layers = nnx.Sequential(stacked(jax.random.split(jax.random.key(0), 3)))
    with pytest.raises(ValueError, match=r"layer '0' must have a kernel of two axes, got shape \(3, 8, 8\)"):
        quantize_(layers, of.int8_weight_only())
    with pytest.raises(ValueError, match="`batches` is empty: calibration never run"):
        smooth_(mlp(), [])
