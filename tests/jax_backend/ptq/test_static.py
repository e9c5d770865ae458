"""The flow of static quantization over nnx models: the bits of the prepared model, and of the same flow in torch.

That calibration in order gives both frameworks the same scales is what the example `static_digits.py` looks at.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from samebits.core.observing import (
    QConfig,
    default_histogram_qconfig,
    default_per_channel_qconfig,
    default_qat_qconfig,
    default_qconfig,
)
from samebits.jax_backend import interop
from samebits.jax_backend.nn.given import CodedWeight
from samebits.jax_backend.ptq.static import (
    DeQuantStub,
    QuantStub,
    convert,
    prepare,
    prepare_qat,
    quantize_prepared,
)
from samebits.proofs.inputs import digits
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy
from samebits.torch_frontend.ptq import static as in_torch

X = digits.images()[0]
QCONFIGS = {"per channel": default_per_channel_qconfig, "histogram": default_histogram_qconfig}


class Digits(nnx.Module):
    """The digit classifier, of flax's own layers."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv1 = nnx.Conv(1, 16, (3, 3), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, padding=1, rngs=rngs)
        self.linear = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.quant(x.transpose(0, 2, 3, 1))
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        return self.dequant(self.linear(x.transpose(0, 3, 1, 2).reshape(len(x), -1)))


class TorchDigits(torch.nn.Module):
    """The same in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = in_torch.QuantStub(), in_torch.DeQuantStub()
        self.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.linear = torch.nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(self.quant(x)).relu()).relu()
        return self.dequant(self.linear(x.flatten(1)))


def mlp() -> nnx.Module:
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(64, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 10, use_bias=False, rngs=rngs))


def torch_mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10, bias=False))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[int], Any]]] = {
    "digits": (Digits, TorchDigits, lambda k: X[20 * k : 20 * k + 20]),
    "mlp": (mlp, torch_mlp, lambda k: X[20 * k : 20 * k + 20].reshape(20, 64)),
}


def pair(name: str, qconfig: QConfig) -> tuple[Any, Any]:
    """Both models with the same weights, prepared."""
    make, make_torch, _ = MODELS[name]
    jax_model, torch_model = make(), make_torch().eval()
    trained = digits.load_checkpoint().tensors
    weights = {k: trained.get(k, to_numpy(v)) for k, v in torch_model.state_dict().items()}
    torch_model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in weights.items()})
    interop.load_state_dict(jax_model, weights)
    return prepare(jax_model, qconfig), in_torch.prepare(torch_model, qconfig)


@pytest.mark.parametrize(("name", "qconfig"), [("digits", "per channel"), ("mlp", "histogram")])
def test_both_frameworks_have_the_same_bits(name: str, qconfig: str) -> None:
    batch = MODELS[name][2]
    prepared, torch_prepared = pair(name, QCONFIGS[qconfig])
    with torch.no_grad():
        for k in range(2):
            prepared(to_jax(batch(k)))
            torch_prepared(torch.from_numpy(batch(k)))
    converted = convert(prepared)
    quantize_prepared(prepared)
    x = batch(2)
    wanted = prepared(to_jax(x))
    assert_same_bits(wanted, converted(to_jax(x)), call="converted")
    assert_same_bits(wanted, nnx.jit(converted)(to_jax(x)), call="compiled")
    assert sum(isinstance(m, CodedWeight) for _, m in nnx.iter_modules(converted)) == (3 if name == "digits" else 2)
    torch_converted: Any = in_torch.convert(torch_prepared)
    own = interop.state_dict(converted)
    theirs = {k: to_numpy(v) for k, v in torch_converted.state_dict().items()}
    assert own.keys() == theirs.keys()
    for key in own:
        if "weight" in key or key.startswith(("quant", "conv1", "0")):  # what floats of layers before do not go into
            assert_same_bits(own[key], theirs[key], call=key)
        else:
            np.testing.assert_allclose(own[key], theirs[key], rtol=1e-5)
    interop.load_state_dict(converted, theirs)
    with torch.no_grad():
        assert_same_bits(torch_converted(torch.from_numpy(x)), converted(to_jax(x)), call="torch and jax")


@pytest.mark.thorough
def test_training() -> None:
    model: Any = prepare_qat(mlp(), default_qat_qconfig)
    model.train()
    optimizer = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param)
    x, y = X[:256].reshape(256, 64), digits.images()[1][:256]

    @nnx.jit
    def step(model: Any, optimizer: Any) -> jax.Array:
        def loss(model: Any) -> jax.Array:
            targets = jax.nn.one_hot(jnp.asarray(y, jnp.int32), 10)
            return jnp.mean(optax.softmax_cross_entropy(model(jnp.asarray(x)), targets))

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    model(jnp.asarray(x))  # observers learn their shapes
    losses = [float(step(model, optimizer)) for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]
    assert not model.layers[0].input_quant.use_running_average
    model.eval()
    wanted = model(jnp.asarray(x))
    assert_same_bits(wanted, convert(model)(jnp.asarray(x)))
    assert_same_bits(wanted, model(jnp.asarray(x)), call="evaluation observes nothing")


def test_none_leaves_a_layer_as_it_is() -> None:
    left: Any = prepare(Digits(), {"*": default_qconfig, "conv2": None})
    assert type(left.conv2) is nnx.Conv
    assert type(left.linear).__name__ == "QuantLinear"
    model = nnx.Sequential(nnx.Embed(5, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
    with pytest.warns(UserWarning, match=r"nothing quantizes their kind: '0' \(Embed\)$"):
        prepare(model, default_qconfig)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "has no layer to quantize", lambda: prepare(nnx.Sequential(nnx.relu), default_qconfig)),
        (ValueError, "must not be prepared yet", lambda: prepare(prepare(mlp(), default_qconfig), default_qconfig)),
        (ValueError, "'conv3' fits no layer; layers are", lambda: prepare(mlp(), {"conv3": default_qconfig})),
        (
            TypeError,
            "'0': its qconfig must be a QConfig of samebits or None",
            lambda: prepare(mlp(), "int8_per_tensor"),
        ),
        (ValueError, "must be prepared", lambda: convert(mlp())),
        (
            RuntimeError,
            "calibration never run: 0.input_quant, 2.input_quant",
            lambda: convert(prepare(mlp(), default_qconfig)),
        ),
        (
            RuntimeError,
            "calibration never run: 0.input_quant",
            lambda: quantize_prepared(prepare(mlp(), default_qconfig)),
        ),
        (ValueError, "`x` must be finite", lambda: prepare(mlp(), default_qconfig)(jnp.full((2, 64), jnp.nan))),
    ],
)
def test_refusals(error: type[Exception], match: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=match):
        call()
