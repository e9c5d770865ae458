"""Models with prototypes in the other framework: options, parameters, states and seeds, and the same bits."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from samebits.core import formula as p
from samebits.jax_backend import interop
from samebits.jax_backend import ptq as jax_ptq
from samebits.proofs import assert_same_bits, prototype
from samebits.torch_frontend import nn as torch_nn
from samebits.torch_frontend import ptq

X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)


@prototype
def running(
    x: Any, *, s: Any = p.learned(p.absmax), peak: Any = p.state(1.0), n: Any = p.seed(5), bits: int = 4
) -> Any:
    """Something of every kind."""
    y = p.round(x * 2.0**bits / s, "stochastic", noise=p.random_bits(n, x)) * s / 2.0**bits
    return p.minimum(y, peak), {"peak": p.maximum(peak, p.absmax(x))}


def made() -> Any:
    torch.manual_seed(0)
    layers = [running.torch_module(s=0.3, bits=3), torch_nn.QuantLinear(8, 4, weight_quant=running)]
    model = nn.Sequential(*layers)
    model(torch.from_numpy(X))  # the states move on
    return model


@pytest.mark.parametrize("training", [True, False])
def test_there_and_back(training: bool) -> None:
    model = made().train(training)
    held = model[0].prototype, model[0].options, int(model[0].n), model.state_dict()
    flax = interop.to_flax(model)
    assert int(flax.layers[0].n[...]) == 6
    assert flax.layers[0].use_running_average is not training
    again: Any = interop.to_torch(flax)
    assert again.training is training
    assert (again[0].prototype, again[0].options, int(again[0].n)) == held[:3]
    assert list(again.state_dict()) == list(held[3])
    for name, value in held[3].items():
        assert_same_bits(value, again.state_dict()[name])
    for module, call in ((model[0], flax.layers[0]), (model[1].weight_quant, flax.layers[1].weight_quant)):
        assert_same_bits(module(torch.from_numpy(X)).detach(), call(jnp.asarray(X)))
        assert_same_bits(module.peak, call.peak[...])


def test_freezing_says_that_there_are_no_codes() -> None:
    message = "layer '1': a prototype, running, has no codes that could be kept"
    with pytest.raises(ValueError, match=message):
        ptq.freeze(made())
    with pytest.raises(ValueError, match=message):
        ptq.quantization_map(made())
    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), interop.to_flax(made()).layers[1])
    with pytest.raises(ValueError, match=message):
        jax_ptq.freeze(model)
