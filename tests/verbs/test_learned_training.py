"""Learned rounding can be trained: it rounds a layer better than to nearest, by `torch.optim` and by optax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, Quantizer, learned_rounding
from samebits.jax_backend import learned_rounding as in_jax
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import learned_rounding as in_torch

from .test_learned_rounding import array, learning, tensor

Array = NDArray[Any]
STEPS, RATE = 150, 0.05


def layer() -> tuple[Array, Array, Quantizer, QParams, Array, float]:
    """Correlated inputs, a weight, its 3-bit quantizer, where v begins, and the error of rounding to nearest."""
    random = np.random.default_rng(0)
    x = (random.standard_normal((128, 6)) @ random.standard_normal((6, 24))).astype(np.float32)
    w = random.standard_normal((8, 24)).astype(np.float32)
    q = learning("int4_per_channel", bits=3, soft=True)
    qparams = core.choose_qparams(q, w)
    v = learned_rounding.initial_rounding(q, w, qparams)
    nearest = core.fake_quantize(q.replace(rounding="ties_to_even"), w, qparams)
    return x, w, q, qparams, v, float(((x @ (nearest - w).T) ** 2).mean())


def error_of(v: Array) -> float:
    x, w, q, qparams, _, _ = layer()
    decided = core.fake_quantize(q.decided, w, qparams._replace(rounding=v))
    return float(((x @ (decided - w).T) ** 2).mean())


def test_torch_learns_to_round_better_than_to_nearest() -> None:
    x, w, q, qparams, v, before = layer()
    assert error_of(v) == before
    data, weight, learned = to_torch(x), to_torch(w), torch.nn.Parameter(to_torch(v.copy()))
    optimizer = torch.optim.Adam([learned], RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        hat = torch_frontend.fake_quantize(q, weight, QParams(tensor(qparams.scale), rounding=learned))
        share = in_torch.rounding_share(q.learned_rounding, learned)
        undecided = (1 - (2 * share - 1).abs() ** 4).sum()
        loss = ((data @ (hat - weight).T) ** 2).mean() + 0.02 * step / STEPS * undecided
        loss.backward()
        optimizer.step()
    assert error_of(to_numpy(learned)) < 0.5 * before


def test_jax_learns_to_round_better_than_to_nearest() -> None:
    x, w, q, qparams, v, before = layer()
    data, weight, scale = to_jax(x), to_jax(w), array(qparams.scale)
    optimizer = optax.adam(RATE)

    def loss(v: Any, pressure: Any) -> Any:
        hat = jax_backend.fake_quantize(q, weight, QParams(scale, rounding=v))
        share = in_jax.rounding_share(q.learned_rounding, v)
        undecided = (1 - jnp.abs(2 * share - 1) ** 4).sum()
        return ((data @ (hat - weight).T) ** 2).mean() + pressure * undecided

    @jax.jit
    def step(v: Any, state: Any, pressure: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(v, pressure), state)
        return optax.apply_updates(v, updates), state

    learned, state = to_jax(v), optimizer.init(to_jax(v))
    for i in range(STEPS):
        learned, state = step(learned, state, 0.02 * i / STEPS)
    assert error_of(to_numpy(learned)) < 0.5 * before
