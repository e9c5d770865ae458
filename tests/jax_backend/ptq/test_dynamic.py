"""Dynamic quantization of flax models; the bits of torch are in tests/torch_frontend/ptq/test_dynamic.py."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from samebits.core import QParams, choose_qparams
from samebits.core import matmul as core_matmul
from samebits.core.observing import default_dynamic_qconfig, default_qconfig
from samebits.jax_backend.ptq.dynamic import quantize_dynamic
from samebits.proofs.inputs.compare import assert_same_bits

X = np.random.default_rng(0).standard_normal((9, 12)).astype(np.float32)


def mlp() -> Any:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(12, 20, rngs=rngs), nnx.relu, nnx.Linear(20, 5, rngs=rngs))


def test_a_layer_is_what_core_says() -> None:
    model = mlp()
    q_x, q_w = default_dynamic_qconfig.activation.quantizer, default_dynamic_qconfig.weight.quantizer
    w, b = np.asarray(model.layers[0].kernel[...]).T, np.asarray(model.layers[0].bias[...])
    parameters: list[QParams] = [choose_qparams(q_x, X), choose_qparams(q_w, w)]
    wanted = core_matmul.linear(q_x, X, parameters[0], q_w, w, parameters[1], b)
    made: Any = quantize_dynamic(model)
    layer = made.layers[0]
    assert_same_bits(wanted, layer(jnp.asarray(X)))
    assert layer.kernel[...].dtype == np.int8


def test_which_layers() -> None:
    one: Any = quantize_dynamic(mlp(), {"2"})
    assert [type(one.layers[k]).__name__ for k in (0, 2)] == ["Linear", "QuantLinear"]
    other: Any = quantize_dynamic(mlp(), {nnx.Linear: default_dynamic_qconfig, "2": None}, np.float16)
    assert [other.layers[k].kernel[...].dtype for k in (0, 2)] == [np.float16, np.float32]
    model = mlp()
    halves = model.layers[0].kernel[...].astype(np.float16).astype(np.float32)
    assert_same_bits(other.layers[0](jnp.asarray(X)), jnp.asarray(X) @ halves + model.layers[0].bias[...][None])
    assert quantize_dynamic(model, inplace=True) is model


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "`dtype` must be int8 or float16, got uint8", (None, np.uint8)),
        (ValueError, "nothing quantizes Conv; kinds are Linear", ({nnx.Conv},)),
        (TypeError, "must hold kinds of layers and names, got 3", ({3},)),
        (ValueError, r"no layer to quantize by \['9'\]; linear layers are 0, 2", ({"9"},)),
        (ValueError, "must be a 'placeholder', got 'min_max'", ({nnx.Linear: default_qconfig},)),
    ],
)
def test_refusals(error: type[Exception], match: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=match):
        quantize_dynamic(mlp(), *arguments)
