"""Layers inside `nnx.remat` and `jax.checkpoint`, which compute the forward pass once more in the backward pass.

Every tensor of training is one step of the state, and the second pass uses the scale of the first: outputs, gradients
and state have the bits of a model without it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from samebits.core import Quantizer, catalog
from samebits.jax_backend.nn import QuantLinear
from samebits.jax_backend.tensor_quantizer import TensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits

INT8 = catalog["int8_per_tensor"]
RUNNING = INT8.replace(source="running_statistic", momentum=0.5)
QUANTIZERS = {
    "running": RUNNING,
    "mean": RUNNING.replace(momentum=None),
    "window": RUNNING.replace(window=2),
    "then learned": INT8.replace(source="statistic_then_learned", steps=2),
    "delay": RUNNING.replace(delay=1),
    "stochastic": INT8.replace(rounding="stochastic"),
}


def with_flax(layer: QuantLinear, x: Any) -> Any:
    return nnx.remat(lambda module, x: module(x))(layer, x)


def with_jax(layer: QuantLinear, x: Any) -> Any:
    """State goes in and comes out, as `jax.checkpoint` wants it of a pure function."""
    graph, state = nnx.split(layer)

    @jax.checkpoint
    def pure(state: Any, x: Any) -> Any:
        module = nnx.merge(graph, state)
        return module(x), nnx.state(module)

    y, after = pure(state, x)
    nnx.update(layer, after)
    return y


def trained(q: Quantizer, around: Callable[[Any, Any], Any], *, jit: bool) -> list[Any]:
    """Outputs and gradients of three steps, and the state at the end."""
    layer = QuantLinear(16, 4, input_quant=TensorQuantizer(q, seed=3), rngs=nnx.Rngs(0))

    def step(layer: Any, x: Any) -> Any:
        def loss(layer: Any) -> Any:
            y = around(layer, x)
            return jnp.sum(y * y), y

        return nnx.value_and_grad(loss, has_aux=True)(layer)

    xs = np.random.default_rng(0).standard_normal((3, 8, 16)).astype(np.float32)
    program = nnx.jit(step) if jit else step
    found = [program(layer, x * size) for x, size in zip(xs, np.array([1, 3, 0.5], np.float32), strict=True)]
    return [np.asarray(leaf) for leaf in jax.tree.leaves((found, nnx.state(layer)))]


EAGERLY = ("delay", "stochastic")  # each with two kinds of state; what the others compute is compiled, here too
THOROUGH = [pytest.param(name, False, marks=pytest.mark.thorough) for name in EAGERLY]
CASES = [*((name, True) for name in QUANTIZERS), *THOROUGH]


@pytest.mark.parametrize(("name", "jit"), CASES)
def test_same_bits_as_without(name: str, jit: bool) -> None:
    want = trained(QUANTIZERS[name], lambda layer, x: layer(x), jit=jit)
    for around in (with_flax, with_jax):
        got = trained(QUANTIZERS[name], around, jit=jit)
        for i, pair in enumerate(zip(want, got, strict=True)):
            assert_same_bits(*pair, call=f"{name}, {around.__name__}, {i}")


def test_a_layer_that_is_closed_over_is_refused() -> None:
    """flax says that its state would be changed out of sight."""
    layer = QuantLinear(16, 4, input_quant=TensorQuantizer(RUNNING), rngs=nnx.Rngs(0))
    x = jnp.ones((2, 16), np.float32)
    with pytest.raises(Exception, match="different trace level"):
        jax.grad(lambda x: jax.checkpoint(lambda x: layer(x))(x).sum())(x)
