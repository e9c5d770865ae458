"""Models taken from torch to flax while they train: batch norms learn as in torch, modes are those of the layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from samebits.jax_backend import interop

from .test_interop_models import channels_last, random, shuffled


@pytest.mark.parametrize(("shape", "momentum"), [((5, 3), None), ((1, 3, 2, 2), 0.1)])
def test_batch_norm_learns_as_in_torch(shape: tuple[int, ...], momentum: float | None) -> None:
    """The variance of n - 1 in what is kept, that of n in what is used; the same gradients."""
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    layer = shuffled(kind(3, momentum=momentum)).train()
    flax = interop.to_flax(layer)
    for seed in range(3):
        x = random(*shape, seed=seed)
        y, back = layer(torch.from_numpy(x)).detach(), jnp.asarray(channels_last(x))
        np.testing.assert_allclose(channels_last(y.numpy()), flax(back), rtol=2e-5, atol=2e-6)
    for name, tensor in layer.state_dict().items():
        np.testing.assert_allclose(interop.state_dict(flax)[name], tensor, rtol=2e-6, err_msg=name)
    assert interop.state_dict(flax)["num_batches_tracked"] == 3
    leaf = torch.from_numpy(x).requires_grad_()
    layer(leaf).pow(3).sum().backward()
    assert leaf.grad is not None
    gradient = jax.grad(lambda x: (nnx.clone(flax)(x) ** 3).sum())(back)
    np.testing.assert_allclose(channels_last(leaf.grad.numpy()), gradient, rtol=2e-3, atol=2e-4)


def test_batch_norm_refuses_what_torch_refuses() -> None:
    flax = interop.to_flax(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match=r"more than one value for each feature in training, got shape \(1, 3\)"):
        flax(jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match=r"`x` must have 2 axes, got shape \(2, 3, 3\)"):
        flax(jnp.zeros((2, 3, 3)))  # torch takes the middle axis for the features
    with pytest.raises(ValueError, match="`mask` must be None"):
        flax.layers[1](jnp.zeros((2, 3)), mask=jnp.ones((2, 3), bool))


def test_modes_are_those_of_the_layers() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.ReLU())
    model[1].eval()
    flax = interop.to_flax(model, rngs=nnx.Rngs(1))
    assert (flax.layers[0].deterministic, flax.layers[1].use_running_average) == (False, True)
    back: Any = interop.to_torch(flax)
    assert [m.training for m in back] == [True, False, True]
    dropped = np.asarray(flax.layers[0](jnp.ones(1000)))
    assert set(dropped.tolist()) == {0.0, 2.0}
    assert not np.array_equal(dropped, interop.to_flax(model, rngs=nnx.Rngs(2)).layers[0](jnp.ones(1000)))
