"""SmoothQuant, equalization, AdaRound and bias correction of flax models, beside torch's."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from samebits.jax_backend.ptq import adaround_, correct_biases_, equalize_, smooth_
from samebits.jax_backend.ptq.modules import kernel_of
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import ptq as torch_ptq

from ...torch_frontend.ptq.test_gptq import LAYERS
from ...torch_frontend.ptq.test_gptq import Block as TorchBlock
from .test_gptq import BITS4, Block, batches, in_torch, model

__all__ = ["batches", "in_torch", "model"]
Array = jax.Array
PAIRS = [("norm", ["q", "k", "v"]), ("up", ["down"])]


@pytest.fixture
def uneven(model: Block, in_torch: TorchBlock) -> Block:
    """Both blocks with columns that stick out."""
    with torch.no_grad():
        in_torch.norm.weight[3], in_torch.norm.weight[7] = 40.0, -30.0
        in_torch.up.weight[5] *= 20
    model.norm.scale[...] = jnp.asarray(in_torch.norm.weight.detach().numpy())
    model.up.kernel[...] = jnp.asarray(in_torch.up.weight.detach().numpy().T)
    return model


def of_torch(batches: list[Array]) -> list[torch.Tensor]:
    return [torch.tensor(np.asarray(x)) for x in batches]


def moved(model: Block, x: Array, before: Array) -> float:
    """How far outputs moved, as a share of the largest."""
    return float(jnp.abs(model(x) - before).max() / jnp.abs(before).max())


def test_outliers_move_into_weights_as_in_torch(uneven: Block, in_torch: TorchBlock, batches: list[Array]) -> None:
    y = uneven(batches[0])
    report = smooth_(uneven, batches, pairs=PAIRS)
    expected = torch_ptq.smooth_(in_torch, of_torch(batches))
    for one, other in zip(report.layers, expected.layers, strict=True):
        assert (one.name, one.method, one.rows) == (other.name, other.method, other.rows)
        assert one.before == pytest.approx(other.before, rel=1e-2)  # of inputs that differ in their last bits
        assert one.after == pytest.approx(other.after, rel=1e-2)
    assert report.layers[0].after < 0.2 * report.layers[0].before
    for name in (*LAYERS, "norm"):
        ours = getattr(uneven, name)
        got = ours.scale[...] if name == "norm" else ours.kernel[...].T
        np.testing.assert_allclose(np.asarray(got), getattr(in_torch, name).weight.detach(), rtol=1e-5)
    assert moved(uneven, batches[0], y) <= 64 * 2.0**-24


def test_pairs_are_found_where_nothing_else_reads(uneven: Block, batches: list[Array]) -> None:
    y = uneven(batches[0])
    report = smooth_(uneven, batches[:1], "search", alphas=(0.4, 0.5))
    assert [one.name for one in report.layers] == ["norm -> q, k, v"]
    assert report.layers[0].method in ("alpha 0.4", "alpha 0.5")
    assert moved(uneven, batches[0], y) <= 64 * 2.0**-24


class Normalised(nnx.Module):
    """What the norm gives is added later."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.norm, self.inner = nnx.LayerNorm(16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h = self.norm(x)
        return h + self.inner(h)


def test_what_others_read_is_left(batches: list[Array]) -> None:
    model = Normalised()
    kernel = np.asarray(model.inner.kernel[...])
    assert smooth_(model, batches[:1]).skipped == {"inner": "what 'norm' gives is also read by others"}
    assert_same_bits(kernel, model.inner.kernel[...])
    assert_same_bits(np.ones(16, np.float32), model.norm.scale[...])


@pytest.mark.parametrize(
    ("change", "settings", "error", "words"),
    [
        (lambda b: [], {"pairs": PAIRS}, ValueError, "`batches` is empty: calibration never run"),
        (lambda b: [b[0] * jnp.nan], {"pairs": PAIRS}, ValueError, "what 'norm' gives has NaN or an infinity"),
        (lambda b: b, {"alpha": 2.0}, ValueError, "`alpha` must be in [0, 1], got 2.0"),
        (lambda b: b, {"pairs": [("norm", "q")]}, TypeError, "`pairs` must be of the form"),
        (lambda b: b, {"pairs": [("norm", ["none"])]}, ValueError, "'none' must be a layer with a weight, of kind"),
        (lambda b: b, {"pairs": [("unused", ["q"])]}, ValueError, "the same channels, got [4, 16]"),
        (lambda b: b[:1], {"pairs": [("norm", ["q", "k"])]}, ValueError, "`pairs` must not change what the model"),
        (lambda b: b, {"pairs": []}, ValueError, "no layer can be smoothed"),
    ],
)
def test_a_call_that_fails_leaves_the_model(
    change: Callable[[list[Array]], Any],
    settings: dict[str, Any],
    error: type[Exception],
    words: str,
    uneven: Block,
    batches: list[Array],
) -> None:
    before = {name: np.asarray(getattr(uneven, name).kernel[...]) for name in LAYERS}
    with pytest.raises(error, match=re.escape(words)):
        smooth_(uneven, change(batches), **settings)
    for name in LAYERS:
        assert_same_bits(before[name], getattr(uneven, name).kernel[...])


class Convolutions(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.one, self.two = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.Conv(8, 5, (3, 3), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.two(jax.nn.relu(self.one(x)))


@pytest.mark.thorough
def test_ranges_become_equal() -> None:
    model, x = Convolutions(nnx.Rngs(1)), jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    model.one.kernel[...] = model.one.kernel[...] * jnp.exp2(jnp.arange(-4.0, 4.0)).reshape(1, 1, 1, 8)
    y = model(x)
    (report,) = equalize_(model, [("one", ["two"])]).layers
    rows = jnp.abs(model.one.kernel[...]).max((0, 1, 2))
    np.testing.assert_allclose(rows, jnp.abs(model.two.kernel[...]).max((0, 1, 3)), rtol=1e-5)
    assert report.after == pytest.approx(float(rows.max() / rows.min()))
    assert report.after < 0.2 * report.before
    assert float(jnp.abs(model(x) - y).max() / jnp.abs(y).max()) <= 64 * 2.0**-24
    with pytest.raises(ValueError, match="`pairs` is empty"):
        equalize_(model, [])


def test_learned_rounding_and_biases_are_those_of_torch(
    model: Block, in_torch: TorchBlock, batches: list[Array]
) -> None:
    def chosen(layer: Any, name: str) -> bool:
        return name in ("out", "down")

    plain = nnx.clone(model)
    original = TorchBlock(hidden=16)
    original.load_state_dict(in_torch.state_dict())
    report = adaround_(model, BITS4, batches, chosen, steps=50)
    expected = torch_ptq.adaround_(in_torch, BITS4, of_torch(batches), chosen, steps=50)
    assert [(one.name, one.method) for one in report.layers] == [(one.name, one.method) for one in expected.layers]
    corrected = correct_biases_(model, plain, batches, chosen)
    torch_ptq.correct_biases_(in_torch, original, of_torch(batches), chosen)
    assert all(one.after < 1e-6 * one.before for one in corrected.layers)
    for name in ("out", "down"):
        assert_same_bits(getattr(in_torch, name).weight.codes.numpy(), kernel_of(getattr(model, name)).T.codes)
        got, want = getattr(model, name).bias[...], getattr(in_torch, name).bias.detach().numpy()
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert report.layers[0].after < report.layers[0].before
    with pytest.raises(ValueError, match="`float_model` must have a layer 'down'"):
        correct_biases_(model, nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), batches, chosen)
