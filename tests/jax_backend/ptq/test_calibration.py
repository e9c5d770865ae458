"""Calibration by walking a jaxpr: the sites, scales and codes that torch's flow has, under jit, grad and vmap."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from samebits.core import catalog
from samebits.jax_backend import choose_qparams, fake_quantize, linear
from samebits.jax_backend.ptq import Calibration, quantization_map, quantize, requantize
from samebits.jax_backend.ptq.calibration import Quantized
from samebits.torch_frontend import ptq

BATCHES = [np.random.default_rng(k).normal(size=(3, 4, 8)).astype(np.float32) for k in range(3)]


class Block(nn.Module):
    """Layers, a product of activations, functions with and without a known range."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 8, bias=False), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.tanh(self.b(torch.sigmoid(self.a(x))))
        w = F.softmax(z @ z.transpose(-2, -1), -1) @ z
        return torch.log(F.elu(self.c(w)) + 2)


@pytest.fixture(autouse=True)
def _ranks_promoted() -> Iterator[None]:
    """Biases are added as users add them."""
    with jax.numpy_rank_promotion("allow"):
        yield


def function_of(block: nn.Module) -> Callable[[jax.Array], jax.Array]:
    """The same in JAX."""
    w = {name: jnp.asarray(tensor.numpy()) for name, tensor in block.state_dict().items()}

    def run(x: jax.Array) -> jax.Array:
        z = jnp.tanh(jax.nn.sigmoid(x @ w["a.weight"].T + w["a.bias"]) @ w["b.weight"].T)
        y = jax.nn.softmax(z @ z.swapaxes(-2, -1), axis=-1) @ z
        return jnp.log(jax.nn.elu(y @ w["c.weight"].T + w["c.bias"]) + 2)

    return run


def calibrated(function: Callable[[jax.Array], jax.Array], **options: Any) -> tuple[Quantized, Calibration]:
    quantized = quantize(function, activations="int8_per_tensor")
    with Calibration(**options) as calibration:
        for x in BATCHES:
            quantized(jnp.asarray(x))
    return quantized, calibration


def test_sites_and_scales_are_those_of_torch() -> None:
    torch.manual_seed(0)
    block = Block()
    function = function_of(block)
    ptq.quantize(block, activations="int8_per_tensor")
    with torch.no_grad(), ptq.Calibration() as of_torch:
        for x in BATCHES:
            block(torch.from_numpy(x))
    with torch.no_grad():
        y = block(torch.from_numpy(BATCHES[0])).numpy()
    quantized, of_jax = calibrated(function)
    names = {
        "linear_0.input": "a.input",
        "linear_0": "a",
        "linear_1": "b",
        "linear_2": "c",
        "linear_2.input": "c.input",
    }
    ours = {names.get(site.name, site.name): site for site in of_jax.report}
    # The sum within the logarithm is arithmetic in a jaxpr, and no function
    theirs = {site.name: site for site in of_torch.report if site.name != "add_0"}
    assert ours.keys() == theirs.keys()
    kept = {name for name, site in theirs.items() if site.kept}
    assert kept == {name for name, site in ours.items() if site.kept}
    for name in kept:
        # sigmoid, tanh and softmax have other last bits in the two, and so has what is observed behind them
        np.testing.assert_allclose(ours[name].scale, theirs[name].scale, rtol=1e-6)
        assert ours[name].rule == theirs[name].rule
    for name in ("a.input", "sigmoid_0", "tanh_0", "softmax_0"):  # before any of these, or known
        assert ours[name].scale == theirs[name].scale
    assert np.abs(np.asarray(quantized(jnp.asarray(BATCHES[0]))) - y).max() <= 1e-5


def test_contractions_are_of_codes() -> None:
    rng = np.random.default_rng(5)
    w, b = (jnp.asarray(rng.normal(size=size).astype(np.float32)) for size in ((8, 16), (16,)))
    quantized, _ = calibrated(lambda x: jax.nn.sigmoid(x) @ w + b)
    x = jnp.asarray(BATCHES[0])
    held = quantized.sites["sigmoid_0"]
    s = jax.nn.sigmoid(x)
    q_w = quantized.weights
    expected = linear(held.quantizer, s, held.qparams(s, True), q_w, w.T, choose_qparams(q_w, w.T)) + b
    np.testing.assert_array_equal(quantized(x), expected)
    np.testing.assert_array_equal(jax.jit(quantized)(x), expected)


@pytest.mark.parametrize("order", [0, 1])
def test_the_weight_may_stand_on_either_side(order: int) -> None:
    w = jnp.asarray(np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32))
    one, _ = calibrated(lambda x: x @ w)
    other, _ = calibrated(lambda x: jnp.einsum("io,...i->o..." if order else "io,...i->...o", w, x))
    y = other(jnp.asarray(BATCHES[0]))
    np.testing.assert_array_equal(jnp.moveaxis(y, 0, -1) if order else y, one(jnp.asarray(BATCHES[0])))


def test_convolutions_of_a_module() -> None:
    conv = nnx.Conv(3, 16, (3, 3), padding=1, strides=2, rngs=nnx.Rngs(0))
    images = [jnp.asarray(np.random.default_rng(k).normal(size=(2, 8, 8, 3)).astype(np.float32)) for k in range(2)]
    quantized = quantize(lambda x: conv(x), activations="uint8_affine_per_tensor")
    with Calibration() as calibration:
        for x in images:
            quantized(x)
    assert [site.name for site in calibration.report if site.kept] == ["conv_0.input"]
    held = quantized.sites["conv_0.input"]
    x_hat = fake_quantize(held.quantizer, images[0], held.qparams(images[0], True))
    kernel = conv.kernel[...]
    w_hat = fake_quantize(catalog["int8_per_channel"], kernel.transpose(3, 2, 0, 1)).transpose(2, 3, 1, 0)
    y = jax.lax.conv_general_dilated(x_hat, w_hat, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert np.abs(quantized(images[0]) - (y + conv.bias[...])).max() <= 1e-4 * np.abs(y).max()


def test_under_transformations() -> None:
    torch.manual_seed(0)
    quantized, _ = calibrated(function_of(Block()))
    x = jnp.asarray(BATCHES[0])
    y = quantized(x)
    np.testing.assert_allclose(jax.jit(quantized)(x), y, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(quantized)(x), y, atol=1e-5)
    slope = jax.grad(lambda x: quantized(x).sum())(x)
    assert slope.shape == x.shape
    assert jnp.any(slope != 0)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (jax.nn.hard_sigmoid, "hardsigmoid_0"),
        (jax.nn.soft_sign, "softsign_0"),
        (jax.nn.relu6, "relu6_0"),
        (jax.nn.hard_tanh, "hardtanh_0"),
        (jax.nn.leaky_relu, "leaky_relu_0"),
        (jax.nn.silu, "silu_0"),
    ],
)
def test_functions_of_jax_have_their_sites(function: Callable[[jax.Array], jax.Array], name: str) -> None:
    _, calibration = calibrated(lambda x: function(x) @ jnp.eye(8))
    assert [site.name for site in calibration.report if site.kept] == [name]


def test_functions_of_users_are_looked_into() -> None:
    @jax.jit
    def normalize(x: jax.Array) -> jax.Array:
        return 100 * jnp.tanh(x)

    quantized, calibration = calibrated(lambda x: normalize(x) @ jnp.eye(8))
    assert {site.name for site in calibration.report} == {"tanh_0", "linear_0.input", "linear_0"}
    assert jnp.abs(quantized(jnp.asarray(BATCHES[0]))).max() > 50


def test_what_is_called_without_scales_says_so() -> None:
    quantized = quantize(lambda x: x @ jnp.eye(8))
    with pytest.raises(RuntimeError, match="calibration never run"):
        quantized(jnp.asarray(BATCHES[0]))
    with pytest.raises(ValueError, match="calibration never run"), Calibration():
        pass
    with pytest.raises(RuntimeError, match=r"not within jax\.jit"), Calibration():
        jax.jit(quantized)(jnp.asarray(BATCHES[0]))
    with pytest.raises(ValueError, match="`activations` must have one scale"):
        quantize(lambda x: x, activations="int8_per_channel")
    with pytest.raises(ValueError, match="`momentum` must lie in"):
        Calibration(momentum=1.0)


def test_an_exception_puts_everything_back() -> None:
    quantized, _ = calibrated(lambda x: jnp.log(x @ jnp.eye(8) + 10))
    x = jnp.asarray(BATCHES[0])
    y = quantized(x)
    with pytest.raises(ZeroDivisionError), Calibration():
        _fail_after(quantized(1000 * x))
    np.testing.assert_array_equal(quantized(x), y)


def _fail_after(_: object) -> None:
    raise ZeroDivisionError


def test_without_streamlining_every_site_stays() -> None:
    _, calibration = calibrated(lambda x: jnp.log(x @ jnp.eye(8) + 10), streamline=False)
    assert [site.name for site in calibration.report if site.kept] == ["linear_0.input", "linear_0", "log_0"]


@pytest.mark.parametrize("activations", ["uint8_affine_per_tensor"])
def test_functions_are_made_again(activations: str) -> None:
    torch.manual_seed(0)
    function = function_of(Block())
    quantized = quantize(function, activations=activations)
    with pytest.raises(ValueError, match="must be calibrated"):
        quantization_map(quantized)
    with Calibration():
        quantized(jnp.asarray(BATCHES[0]))
    described = json.loads(json.dumps(quantization_map(quantized)))
    again = requantize(function, described)
    np.testing.assert_array_equal(again(jnp.asarray(BATCHES[1])), quantized(jnp.asarray(BATCHES[1])))
    assert quantization_map(again) == described
    del described["sites"]
    with pytest.raises(ValueError, match="got no sites"):
        requantize(function, described)
