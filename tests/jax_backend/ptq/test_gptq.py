"""GPTQ in JAX: the codes of core, and flax models layer by layer, beside torch's."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from samebits.core import PerGroup, catalog
from samebits.core.gptq import gptq as core_gptq
from samebits.jax_backend.ptq import gptq, gptq_
from samebits.jax_backend.ptq.gptq import hessian_update, inverse_factor, output_error
from samebits.jax_backend.ptq.modules import QuantizedLinear, kernel_of
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.ptq import gptq_ as torch_gptq_
from samebits.torch_frontend.ptq.gptq import inverse_factor as torch_inverse_factor

from ...core.test_gptq import QUANTIZERS, REFUSED
from ...layerwise_inputs import layer, statistics
from ...torch_frontend.ptq.test_gptq import LAYERS
from ...torch_frontend.ptq.test_gptq import Block as TorchBlock

Array = jax.Array
BITS4 = "int4_per_channel"


class Block(nnx.Module):
    """The block of torch's tests, with weights of one shape, so that few programs are compiled."""

    def __init__(self, width: int = 16) -> None:
        rngs = nnx.Rngs(0)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.q, self.k, self.v, self.out = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.up, self.down = nnx.Linear(width, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)
        self.unused = nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        h = self.norm(x)
        x = x + self.out(jax.nn.softmax(self.q(h) @ self.k(h).mT, -1) @ self.v(h))
        return x + self.down(jax.nn.relu(self.up(x)))


@pytest.fixture
def batches() -> list[Array]:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.eye(16) + 0.3 * torch.randn(16, 16, generator=generator)
    return [jnp.asarray((torch.randn(4, 10, 16, generator=generator) @ mixing).numpy()) for _ in range(3)]


@pytest.fixture
def in_torch() -> TorchBlock:
    torch.manual_seed(0)
    return TorchBlock(hidden=16)


@pytest.fixture
def model(in_torch: TorchBlock) -> Block:
    block = Block()
    for name in (*LAYERS, "unused"):
        linear, source = getattr(block, name), getattr(in_torch, name)
        linear.kernel[...] = jnp.asarray(source.weight.detach().numpy().T)
        linear.bias[...] = jnp.asarray(source.bias.detach().numpy())
    return block


def later(name: str, settings: dict[str, Any]) -> Any:
    return pytest.param(name, settings, marks=pytest.mark.thorough)


CASES = [
    ("per channel", {"act_order": True}),
    ("per channel", {}),
    ("affine per group", {"blocksize": 24}),
    later("per tensor", {}),
    later("per group", {"group_scales": "updated"}),
    later("affine per group", {"group_scales": "original"}),
    later("affine per group", {"act_order": True, "percdamp": 0.1}),
    later("per block", {"blocksize": 8}),
    later("mxfp4", {}),
    later("nvfp4", {}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_codes_are_those_of_core(name: str, settings: dict[str, Any]) -> None:
    """Promised where no value lies within the last bits of the factors of a boundary: here, none does."""
    q = QUANTIZERS[name]
    w, x = layer(32, 48, seed=2)
    hessian = statistics(x)
    expected = core_gptq(q, w, hessian, **settings)
    codes, qparams, w_hat, losses = gptq(q, jnp.asarray(w), hessian, **settings)
    assert_same_bits(expected[0], codes)
    assert_same_bits(expected[1].scale, qparams.scale)
    if q.affine:
        assert_same_bits(expected[1].zero_point, qparams.zero_point)
    assert_same_bits(expected[2], w_hat)
    assert losses.dtype == np.float64
    np.testing.assert_allclose(np.asarray(losses), expected[3], rtol=1e-9, atol=1e-12)


def test_codes_of_recorded_inputs_are_those_of_core() -> None:
    w, x = layer(32, 48, seed=3)
    hessian, n = np.zeros((48, 48)), 0
    for piece in np.array_split(x, 3):
        hessian, n = hessian_update(hessian, n, jnp.asarray(piece))
    assert (n, hessian.dtype) == (len(x), np.float64)
    np.testing.assert_allclose(np.asarray(hessian), statistics(x), rtol=1e-13, atol=1e-13)
    expected = core_gptq(QUANTIZERS["per channel"], w, statistics(x))
    found = gptq(QUANTIZERS["per channel"], jnp.asarray(w), hessian)
    assert_same_bits(expected[0], found[0])
    error = np.sum((x.astype(np.float64) @ (w.astype(np.float64) - expected[2]).T) ** 2) / len(x)
    assert output_error(w, found[2], hessian) == pytest.approx(error, rel=1e-12)
    np.testing.assert_allclose(np.asarray(inverse_factor(hessian)), torch_factor(statistics(x)), rtol=1e-9, atol=1e-12)


def torch_factor(hessian: np.ndarray) -> np.ndarray:
    """Torch's, which is found by another way."""
    return torch_inverse_factor(torch.tensor(hessian)).numpy()


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED)
def test_bad_input_is_refused_as_in_core(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    w, x = layer(8, 16)
    with pytest.raises(error, match=re.escape(words)):
        gptq(**{"q": QUANTIZERS["per channel"], "w": w, "hessian": statistics(x), **changes})


# --- models -----------------------------------------------------------------------------------------------------------


def test_models_have_the_codes_of_torch(model: Block, in_torch: TorchBlock, batches: list[Array]) -> None:
    report = gptq_(model, BITS4, batches)
    expected = torch_gptq_(in_torch, BITS4, [torch.tensor(np.asarray(x)) for x in batches])
    for name, one, other in zip(LAYERS, report.layers, expected.layers, strict=True):
        ours, theirs = kernel_of(getattr(model, name)).T, getattr(in_torch, name).weight
        assert_same_bits(theirs.codes.numpy(), ours.codes)
        assert_same_bits(theirs.scale.numpy(), ours.scale)
        assert_same_bits(theirs.dequantize().numpy(), ours.dequantize())
        assert (one.name, one.method, one.rows) == (other.name, "gptq", other.rows)
        assert one.after == pytest.approx(other.after, rel=1e-5)  # of inputs that differ in their last bits
        assert one.before == pytest.approx(other.before, rel=1e-5)
        assert one.after < 0.95 * one.before
        assert type(getattr(model, name)) is QuantizedLinear
    assert report.skipped == expected.skipped == {"unused": "no batch reaches it"}


def with_nan(batches: list[Array]) -> list[Array]:
    return [batches[0], batches[1].at[0, 0, 0].set(jnp.nan)]


class Breaks:
    """Batches of which the second run through fails."""

    def __init__(self, batches: list[Array]) -> None:
        self.batches, self.runs = batches, 0

    def __iter__(self) -> Iterator[Array]:
        self.runs += 1
        yield from self.batches
        if self.runs > 3:
            raise RuntimeError("the disk is full")


@pytest.mark.parametrize(
    ("change", "settings", "error", "words"),
    [
        (lambda b: [], {}, ValueError, "`batches` is empty: calibration never run"),
        (lambda b: iter(b), {}, TypeError, "`batches` must be a list or another iterable"),
        (lambda b: b[0], {}, TypeError, "`batches` must be"),
        (with_nan, {}, ValueError, "'q': its recorded inputs have NaN or an infinity"),
        (Breaks, {}, RuntimeError, "the disk is full"),
        (lambda b: b, {"filter_fn": lambda m, n: n == "none"}, ValueError, "chooses no layer; layers of kind Linear"),
        (lambda b: b, {"filter_fn": lambda m, n: n == "unused"}, ValueError, "calibration never run: no batch reaches"),
        (lambda b: b, {"q": catalog[BITS4].replace(granularity=PerGroup(32))}, ValueError, "the length of axis -1"),
        (lambda b: b, {"q": 4}, TypeError, "`q` must be a Quantizer"),
        (lambda b: [b[0][:1, :3]], {"percdamp": 0.0}, ValueError, "'q': `hessian` is not positive definite"),
    ],
)
def test_a_call_that_fails_leaves_the_model(
    change: Callable[[list[Array]], Any],
    settings: dict[str, Any],
    error: type[Exception],
    words: str,
    model: Block,
    batches: list[Array],
) -> None:
    before = {name: np.asarray(getattr(model, name).kernel[...]) for name in LAYERS}
    with pytest.raises(error, match=re.escape(words)):
        gptq_(model, **{"q": BITS4, "batches": change(batches), **settings})
    for name in LAYERS:
        assert type(getattr(model, name)) is nnx.Linear
        assert_same_bits(before[name], getattr(model, name).kernel[...])


def test_a_model_under_jit_is_refused(model: Block, batches: list[Array]) -> None:
    class Compiled(nnx.Module):
        def __init__(self) -> None:
            self.inner = model

        def __call__(self, x: Array) -> Array:
            return nnx.jit(lambda inner, x: inner(x))(self.inner, x)

    with pytest.raises(ValueError, match=r"'inner\.\w+': is called under jit"):
        gptq_(Compiled(), BITS4, batches)
    assert type(model.q) is nnx.Linear
