"""Prototypes as modules that live long: copies, checkpoints, compiled steps of training, numbers of 16 bits."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as orbax
import pytest
import torch
from flax import nnx

from samebits.core import formula as p
from samebits.core.prototypes import updated, vjp
from samebits.proofs import assert_same_bits, prototype
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.proofs.prototypes.agreement import differing

X = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
G = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)


@prototype
def running(x: Any, *, s: Any = p.learned(0.5), peak: Any = p.state(0.0), draw: Any = p.seed(3)) -> Any:
    v = x / s
    y = p.round(v, "stochastic", noise=p.random_bits(draw, x)) * s
    return p.straight_through(y, v * s), {"peak": p.maximum(peak * 0.5, p.absmax(x))}


@prototype
def mixed(x: Any, *, s: Any = p.learned(0.3), peak: Any = p.state(0.0)) -> Any:
    """Parameters of float32, whatever x is."""
    v = x / p.cast(s, x.dtype)
    y = p.straight_through(p.round(v), v) * p.cast(s, x.dtype)
    return y, {"peak": p.maximum(peak, p.cast(p.absmax(x), "float32"))}


def expected(steps: int) -> tuple[list[Any], Any, int]:
    """What training in NumPy gives: outputs, the state and the seed after them."""
    peak: Any = np.float32(0)
    outputs: list[Any] = []
    for step in range(steps):
        y, states = updated(running, X, s=0.5, peak=peak, draw=np.asarray(3 + step))
        outputs, peak = [*outputs, y], states["peak"]
    return outputs, peak, 3 + steps


def test_copies_are_the_prototype_itself() -> None:
    assert pickle.loads(pickle.dumps(running)) is running
    assert copy.deepcopy(running) is copy.copy(running) is running
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pickle.dumps(prototype(lambda x: x))
    module = running.torch_module(s=0.25)
    module(to_torch(X))
    kept = io.BytesIO()
    torch.save(module, kept)
    kept.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(kept, weights_only=False),
    ):
        assert other.prototype is running
        assert other.s is not module.s
        assert_same_bits(copy.deepcopy(module)(to_torch(X)).detach(), other(to_torch(X)).detach())
        assert int(module.draw) == 4


def test_checkpoints_go_on_with_the_same_bits(tmp_path: Path) -> None:
    outputs, peak, seed = expected(2)
    for resumed in ("torch", "jax"):
        first: Any = running.torch_module() if resumed == "torch" else running.flax_module()
        x: Any = to_torch(X) if resumed == "torch" else to_jax(X)
        first(x)
        second: Any = running.torch_module(s=7.0) if resumed == "torch" else running.flax_module(s=7.0)
        if resumed == "torch":
            kept = io.BytesIO()
            torch.save(first.state_dict(), kept)
            kept.seek(0)
            second.load_state_dict(torch.load(kept))
        else:
            with orbax.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(first)))
                checkpointer.wait_until_finished()
                state = nnx.state(second)
                nnx.replace_by_pure_dict(state, checkpointer.restore(tmp_path / "state", nnx.to_pure_dict(state)))
            nnx.update(second, state)
        assert_same_bits(outputs[1], second(x))
        assert_same_bits(peak, second.peak if resumed == "torch" else second.peak[...])
        assert int(second.draw if resumed == "torch" else second.draw[...]) == seed


@pytest.mark.thorough
def test_compiled_steps_of_training_have_states_and_seeds() -> None:
    """Of torch with one program for all steps; of flax within ``nnx.jit``, which hands the states out."""
    outputs, peak, seed = expected(3)
    module: Any = running.torch_module()
    compiled = torch.compile(module, fullgraph=True)
    network: Any = running.flax_module()

    @nnx.jit
    def step(network: Any, x: Any, g: Any) -> tuple[Any, Any]:
        def loss(network: Any, x: Any) -> tuple[Any, Any]:
            y = network(x)
            return (y * g).sum(), y

        gradients, y = nnx.grad(loss, has_aux=True)(network, x)
        return y, gradients["s"][...]

    for y in outputs:
        of_torch = compiled(to_torch(X))
        of_torch.backward(to_torch(G))
        of_flax, gradient = step(network, to_jax(X), to_jax(G))
        assert_same_bits((y, y), (of_torch.detach(), of_flax))
        assert_same_bits(module.s.grad, gradient)
        module.s.grad = None
    assert_same_bits((peak, peak), (module.peak, network.peak[...]))
    assert int(module.draw) == int(network.draw[...]) == seed


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_numbers_of_16_bits_with_parameters_of_float32(dtype: Any) -> None:
    """Parameters are cast where the formula says; their gradients are of float32."""
    x, g = X.astype(dtype), G.astype(dtype)
    given = {"s": np.float32(0.3), "peak": np.float32(0.125)}
    assert differing(mixed, x, g, ("torch eager", "jax jit"), **given) == {"torch eager": 0, "jax jit": 0}
    module: Any = mixed.torch_module()
    network: Any = mixed.flax_module()
    y = module(to_torch(x))
    y.backward(to_torch(g))
    assert (y.dtype, module.s.grad.dtype) == (to_torch(x).dtype, torch.float32)
    assert_same_bits(y.detach(), network(to_jax(x)))
    assert_same_bits(module.peak, network.peak[...])


def test_parameters_of_another_dtype_are_refused_with_the_line() -> None:
    line = running.function.__code__.co_firstlineno + 2
    message = (
        rf"test_prototype_modules.py:{line}, in `x / s`: `b` must have the dtype of `a`, bfloat16, got float32: cast"
    )
    with pytest.raises(TypeError, match=message):
        running.torch_module()(to_torch(X).bfloat16())
    with pytest.raises(TypeError, match=message):
        running.flax_module()(jnp.asarray(X, jnp.bfloat16))
    assert running.torch_module().bfloat16()(to_torch(X).bfloat16()).dtype == torch.bfloat16


def test_autocast_leaves_a_prototype_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(mixed.numpy(X), mixed.torch(to_torch(X)))


def test_an_array_without_axes() -> None:
    x, g = np.float32(0.7), np.float32(2)
    of_torch = torch.tensor(0.7, requires_grad=True)
    statistics = prototype(lambda x: x / p.absmax(x) + p.sum(x, keepdims=True) * p.mean(x))
    y = statistics.torch(of_torch)
    y.backward(torch.tensor(2.0))
    assert_same_bits(statistics.numpy(x), y.detach())
    assert_same_bits(vjp(statistics, np.asarray(x), np.asarray(g))["x"], of_torch.grad)


def test_the_result_is_no_alias() -> None:
    for same in (
        prototype(lambda x: x),
        prototype(lambda x: p.stop_gradient(x)),
        prototype(lambda x: x.reshape(6, 4).reshape(4, 6)),
    ):
        for array in (X.copy(), to_torch(X).clone()):
            y = same.numpy(array) if isinstance(array, np.ndarray) else same.torch(array)
            y += 1
            assert_same_bits(X, array)
