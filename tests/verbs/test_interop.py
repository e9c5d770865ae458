"""Weights between torch and flax: every kind of layer does the same with them; a load that fails changes nothing."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from numpy.typing import NDArray
from torch import nn

from samebits.core import catalog
from samebits.jax_backend import interop
from samebits.jax_backend import nn as flax_nn
from samebits.jax_backend.tensor_quantizer import TensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import nn as torch_nn

Array = NDArray[Any]
THEN_LEARNED = catalog["uint8_affine_per_tensor"].replace(source="statistic_then_learned", steps=3)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_numpy(module: nn.Module) -> dict[str, Array]:
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def shuffled(module: nn.Module) -> nn.Module:
    """With numbers of its own in every tensor; variances are positive."""
    generator = np.random.default_rng(1)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.from_numpy(generator.uniform(0.5, 2, value.shape).astype(np.float32)))
    return module.eval()


def channels_last(x: Array) -> Array:
    return np.moveaxis(x, 1, -1)


def conv(dimensions: int, **options: Any) -> nnx.Conv:
    return nnx.Conv(2, 5, (3, 2, 4)[:dimensions], padding="VALID", rngs=nnx.Rngs(0), **options)


# --- every kind of layer ----------------------------------------------------------------------------------------------

LAYERS: dict[str, tuple[nn.Module, nnx.Module, Array]] = {
    "linear": (nn.Linear(4, 4), nnx.Linear(4, 4, rngs=nnx.Rngs(0)), random(3, 4)),
    "without bias": (nn.Linear(4, 3, bias=False), nnx.Linear(4, 3, use_bias=False, rngs=nnx.Rngs(0)), random(3, 4)),
    "convolution of one axis": (nn.Conv1d(2, 5, 3), conv(1), random(2, 2, 7)),
    "convolution of two axes": (nn.Conv2d(2, 5, (3, 2)), conv(2), random(2, 2, 7, 6)),
    "convolution of three axes": (nn.Conv3d(2, 5, (3, 2, 4)), conv(3), random(2, 2, 5, 4, 6)),
    "square": (
        nn.Conv2d(3, 3, 3),
        nnx.Conv(3, 3, (3, 3), padding="VALID", rngs=nnx.Rngs(0)),
        random(2, 3, 5, 5),
    ),
    "batch normalization": (
        nn.BatchNorm1d(4),
        nnx.BatchNorm(4, use_running_average=True, epsilon=1e-5, rngs=nnx.Rngs(0)),
        random(3, 4),
    ),
    "layer normalization": (nn.LayerNorm(4), nnx.LayerNorm(4, epsilon=1e-5, rngs=nnx.Rngs(0)), random(3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_does_in_flax_what_it_does_in_torch(name: str) -> None:
    theirs, ours, x = LAYERS[name]
    state = {k: v for k, v in in_numpy(shuffled(theirs)).items() if k != "num_batches_tracked"}
    interop.load_state_dict(ours, state)
    back = interop.state_dict(ours)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert_same_bits(value, back[key], call=key)
    want = theirs(torch.from_numpy(x)).detach().numpy()
    got = np.asarray(ours(jnp.asarray(channels_last(x) if x.ndim > 2 else x)))
    np.testing.assert_allclose(channels_last(want) if x.ndim > 2 else want, got, rtol=1e-5, atol=1e-5)


def test_embeddings_and_statistics_have_their_names() -> None:
    embedding = nnx.Embed(6, 3, rngs=nnx.Rngs(0))
    interop.load_state_dict(embedding, {"weight": random(6, 3)})
    assert_same_bits(random(6, 3)[[4, 1]], embedding(jnp.array([4, 1])))
    norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    state = {name: random(2, seed=i) for i, name in enumerate(("weight", "bias", "running_mean", "running_var"))}
    interop.load_state_dict(norm, state)
    held = {"weight": norm.scale, "bias": norm.bias, "running_mean": norm.mean, "running_var": norm.var}
    for name, variable in held.items():
        assert_same_bits(state[name], variable[...], call=name)


# --- quantized networks -----------------------------------------------------------------------------------------------


def networks() -> tuple[nn.Module, nnx.Module]:
    rngs = nnx.Rngs(0)
    theirs = nn.Sequential(
        torch_nn.QuantConv2d(2, 3, (3, 2), input_quant=THEN_LEARNED),
        nn.Sequential(nn.Flatten(), torch_nn.QuantLinear(12, 2, input_quant="uint8_per_tensor")),
    )
    ours = nnx.Sequential(
        flax_nn.QuantConv(2, 3, (3, 2), padding="VALID", input_quant=THEN_LEARNED, rngs=rngs),
        nnx.Sequential(
            lambda x: jnp.moveaxis(x, -1, 1).reshape(len(x), -1),
            flax_nn.QuantLinear(12, 2, input_quant="uint8_per_tensor", rngs=rngs),
        ),
    )
    return theirs, ours


def test_parts_of_parts_are_numbered_and_a_state_goes_there_and_back() -> None:
    theirs, ours = networks()
    x = random(1, 2, 4, 3, seed=3)
    theirs(torch.from_numpy(x))  # the state is set, and one tensor counted
    state = in_numpy(theirs)
    assert {"0.weight", "0.input_quant.scale", "0.input_quant.seen", "1.1.weight"} <= set(state)
    interop.load_state_dict(ours, state)
    for name, value in interop.state_dict(ours).items():
        assert_same_bits(value, state[name], call=name)
    back = {name: torch.tensor(value) for name, value in interop.state_dict(ours).items()}
    fresh, _ = networks()
    fresh.load_state_dict(back)
    assert_same_bits(theirs(torch.from_numpy(x)).detach(), fresh(torch.from_numpy(x)).detach())


# --- loads that fail --------------------------------------------------------------------------------------------------

BROKEN: dict[str, Any] = {
    "missing": lambda state, name: {k: v for k, v in state.items() if k != name},
    "renamed": lambda state, name: {(f"{k}s" if k == name else k): v for k, v in state.items()},
    "shape": lambda state, name: state | {name: np.zeros((*state[name].shape, 1), state[name].dtype)},
    "dtype": lambda state, name: state | {name: state[name].astype(np.float16)},
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_load_that_fails_changes_nothing(how: str) -> None:
    """Whichever tensor it is, the first to be looked at or the last; the state is all of the kinds there are."""
    theirs, ours = networks()
    theirs(torch.from_numpy(random(1, 2, 4, 3)))
    first = in_numpy(theirs)
    interop.load_state_dict(ours, first)
    other: Mapping[str, Array] = {name: value + 1 for name, value in first.items()}
    for name in first:
        with pytest.raises((ValueError, TypeError), match=name.replace(".", r"\.")):
            interop.load_state_dict(ours, BROKEN[how](other, name))
        for key, value in interop.state_dict(ours).items():
            assert_same_bits(first[key], value, call=f"{key}, {name} is wrong")
    interop.load_state_dict(ours, other)
    for key, value in interop.state_dict(ours).items():
        assert_same_bits(other[key], value, call=key)


def test_a_state_without_a_shape_takes_one_and_keeps_it() -> None:
    q = catalog["int8_per_channel"].replace(source="learned")
    quantizer = TensorQuantizer(q)
    assert interop.state_dict(quantizer)["scale"].shape == (0,)
    with pytest.raises(TypeError, match="`scale` must have dtype float32, got float64"):
        interop.load_state_dict(quantizer, {"scale": np.ones((4, 1))})
    assert interop.state_dict(quantizer)["scale"].shape == (0,)
    interop.load_state_dict(quantizer, {"scale": random(4, 1)})
    with pytest.raises(ValueError, match=r"`scale` must have shape \(4, 1\), got \(5, 1\)"):
        interop.load_state_dict(quantizer, {"scale": random(5, 1)})
    assert_same_bits(random(4, 1), interop.state_dict(quantizer)["scale"])


@pytest.mark.parametrize("count", [-1, 2**32])
def test_counts_that_do_not_fit_are_refused(count: int) -> None:
    quantizer = TensorQuantizer(THEN_LEARNED)
    state = interop.state_dict(quantizer)
    with pytest.raises(ValueError, match=rf"`seen` must lie in \[0, 2\*\*32\), got {count}"):
        interop.load_state_dict(quantizer, state | {"seen": np.array(count)})
    for fits in (2**32 - 1, 0):
        interop.load_state_dict(quantizer, state | {"seen": np.array(fits)})
        assert int(interop.state_dict(quantizer)["seen"]) == fits


def test_a_batch_norm_of_flax_takes_what_torch_keeps_but_the_counter() -> None:
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    ours = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), norm)
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    state["1.running_mean"] = np.arange(4, dtype=np.float32)
    interop.load_state_dict(ours, state)
    assert_same_bits(state["1.running_mean"], norm.mean[...])
    with pytest.raises(ValueError, match=r"unexpected 0\.num_batches_tracked"):
        interop.load_state_dict(ours, {**state, "0.num_batches_tracked": np.int64(0)})
