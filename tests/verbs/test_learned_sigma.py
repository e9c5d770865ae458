"""A sigma that is learned: scales by mean and deviation and their gradient in all rooms, and layers that train it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerGroup, QParams, Quantizer, catalog
from samebits.core import learned_sigma as core_sigma
from samebits.jax_backend import interop
from samebits.jax_backend import learned_sigma as jax_sigma
from samebits.jax_backend import nn as flax_nn
from samebits.jax_backend.tensor_quantizer import TensorQuantizer as JaxTensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import learned_sigma as torch_sigma
from samebits.torch_frontend import nn as torch_nn
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

from ..exact import DTYPES

Array = NDArray[Any]
CHANNEL = catalog["int8_per_channel"].replace(statistic="mean_sigma", learned_sigma=True, sigma=2.3)
TENSOR = catalog["int8_per_tensor"].replace(statistic="mean_sigma", learned_sigma=True, sigma=2.3)
QUANTIZERS = {
    "tensor": TENSOR,
    "channel": CHANNEL,
    "groups": TENSOR.replace(granularity=PerGroup(6), restriction="power_of_two"),
    "floored": CHANNEL.replace(floor=2.0**-8, denominator="half_range"),
    "logarithm": CHANNEL.replace(restriction="log_float", bits=4),
}
SIGMAS = (2.3, 0.0, 0.1, -1.5, 2.0**21)
SMALLEST = 2.0**-126


def data(dtype: str = "float32") -> Array:
    """Rows of many sizes: subnormal, all zero, without deviation, near the largest number, ordinary."""
    x = np.random.default_rng(0).standard_normal((7, 24)).astype(np.float32)
    x[1], x[2], x[3], x[4], x[5] = x[1] * np.float32(2.0**-132), 0, -0.75, x[4] * 2.0**-7, x[5] * np.float32(1e37)
    return x.astype(DTYPES[dtype]) if dtype != "float16" else np.clip(x, -6e4, 6e4).astype(np.float16)


def d_of(q: Quantizer, x: Array) -> Array:
    """A gradient of the scales of ``x``."""
    scale = core.choose_qparams(q, x).scale
    return np.asarray(np.random.default_rng(1).standard_normal(scale.shape), scale.dtype)


def slopes(sigma_gradient: Any, q: Quantizer, x: Any, sigma: Any, to: Any) -> Array:
    """The derivative of every scale: gradients of one scale at a time."""
    shape, dtype = d_of(q, to_numpy(x)).shape, d_of(q, to_numpy(x)).dtype
    places = np.eye(math.prod(shape), dtype=dtype).reshape(-1, *shape)
    return np.asarray([to_numpy(sigma_gradient(q, x, sigma, to(place))) for place in places]).reshape(shape)


def assert_near(want: Array, terms: Array, of_torch: Any, of_jax: Any) -> None:
    """Sums of terms within the bounds of each room; single ones have the same bits."""
    n, size, u = terms.size, float(np.abs(terms.astype(np.float64)).sum()), float(np.finfo(terms.dtype).eps) / 2
    if n == 1:
        assert_same_bits(want, to_numpy(of_torch))
        assert_same_bits(want, to_numpy(of_jax))
    rounded = 2 * u * abs(float(want))
    assert abs(float(of_torch) - float(want)) <= n * 2.0**-53 * size + rounded
    assert abs(float(of_jax) - float(want)) <= 64 * math.ceil(math.log(n + 1, 64)) * u * size + rounded + 64 * SMALLEST


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in QUANTIZERS), ("groups", "bfloat16"), ("channel", "float64")]
)
def test_scales_and_slopes_have_the_same_bits(name: str, dtype: str) -> None:
    q, x = QUANTIZERS[name], data(dtype)
    assert_same_bits(
        core.choose_qparams(q.replace(sigma=2.25), x).scale, core_sigma.scale_at_sigma(q, x, np.float32(2.25))
    )
    for sigma in map(np.float32, SIGMAS):
        with jax.enable_x64(dtype == "float64"):
            want = core_sigma.scale_at_sigma(q, x, sigma)
            assert_same_bits(want, torch_sigma.scale_at_sigma(q, to_torch(x), to_torch(sigma)))
            assert_same_bits(want, jax_sigma.scale_at_sigma(q, to_jax(x), to_jax(sigma)))
            d = d_of(q, x)
            got = (
                core_sigma.sigma_gradient(q, x, sigma, d),
                torch_sigma.sigma_gradient(q, to_torch(x), to_torch(sigma), to_torch(d)),
                jax_sigma.sigma_gradient(q, to_jax(x), to_jax(sigma), to_jax(d)),
            )
        if dtype != "float32":
            np.testing.assert_allclose(float(got[1]), float(got[0]), rtol=1e-5)
            np.testing.assert_allclose(float(got[2]), float(got[0]), rtol=1e-5)
            continue
        slope = slopes(core_sigma.sigma_gradient, q, x, sigma, np.asarray)
        assert_same_bits(slope, slopes(torch_sigma.sigma_gradient, q, to_torch(x), to_torch(sigma), to_torch))
        if sigma == np.float32(2.3):
            assert_same_bits(slope, slopes(jax_sigma.sigma_gradient, q, to_jax(x), to_jax(sigma), to_jax))
        assert_near(got[0], d * slope, *got[1:])


def test_in_core_the_range_may_round_to_another_dtype_than_the_scale() -> None:
    """As in `choose_qparams`: magnitudes of bfloat16, scales of float32."""
    q, x = CHANNEL.replace(scale_dtype="input", sigma=2.25), data("bfloat16")
    want = core.choose_qparams(q, x).scale
    assert_same_bits(want, core_sigma.scale_at_sigma(q, x, np.float32(2.25)))
    assert not np.array_equal(want, core_sigma.scale_at_sigma(CHANNEL, x, np.float32(2.25)))


@pytest.mark.parametrize("name", ["channel", "floored"])
def test_the_slope_is_the_derivative_of_the_scale(name: str) -> None:
    """In float64, by the definition of mean and deviation: 0 where the scale is the floor, std / divisor elsewhere."""
    q, x, divisor = QUANTIZERS[name], data().astype(np.float64), {"channel": 127, "floored": 127.5}[name]
    floor = q.scale.floor or 2.0**-1022
    mean, std = np.abs(x).mean(1, keepdims=True), np.abs(x).std(1, ddof=1, keepdims=True)
    for sigma in (0.1, 2.3):
        raised = (mean + sigma * std) / divisor < floor
        slope = slopes(core_sigma.sigma_gradient, q, x, np.float64(sigma), np.asarray)
        np.testing.assert_allclose(slope, np.where(raised, 0, std / divisor), rtol=1e-12, atol=0)
        assert raised.any()
        assert not raised.all()


def test_compiled_programs_have_the_same_bits_and_gradients() -> None:
    x, quantizers = data(), [QUANTIZERS[name] for name in ("tensor", "floored")]

    def of_torch(x: torch.Tensor, *sigmas: torch.Tensor) -> list[torch.Tensor]:
        return [torch_sigma.scale_at_sigma(q, x, s) for q, s in zip(quantizers, sigmas, strict=True)]

    def of_jax(x: jax.Array, sigmas: list[jax.Array]) -> list[jax.Array]:
        return [jax_sigma.scale_at_sigma(q, x, s) for q, s in zip(quantizers, sigmas, strict=True)]

    @jax.jit
    def both(x: jax.Array, sigmas: list[jax.Array], ds: list[jax.Array]) -> Any:
        scales, back = jax.vjp(of_jax, x, sigmas)
        return scales, back(ds)

    program = torch.compile(of_torch, fullgraph=True)
    ds = [d_of(q, x) for q in quantizers]
    for sigma in (np.float32(2.3), np.float32(0.7)):
        leaf, sigmas = to_torch(x).requires_grad_(), [torch.tensor(sigma, requires_grad=True) for _ in quantizers]
        scales = program(leaf, *sigmas)
        torch.autograd.backward(scales, [to_torch(d) for d in ds])
        ours, (dx, jax_grads) = both(to_jax(x), [to_jax(sigma)] * len(ds), [to_jax(d) for d in ds])
        assert leaf.grad is None
        assert not np.asarray(dx).any()
        for i, (q, d) in enumerate(zip(quantizers, ds, strict=True)):
            want = core_sigma.scale_at_sigma(q, x, sigma)
            assert_same_bits(want, scales[i].detach())
            assert_same_bits(want, ours[i])
            slope = slopes(core_sigma.sigma_gradient, q, x, sigma, np.asarray)
            got = core_sigma.sigma_gradient(q, x, sigma, d)
            assert_near(got, d * slope, sigmas[i].grad, jax_grads[i])
    with jax.disable_jit():
        got = jax_sigma.scale_at_sigma(CHANNEL, to_jax(x), to_jax(np.float32(2.3)))
    assert_same_bits(core_sigma.scale_at_sigma(CHANNEL, x, np.float32(2.3)), got)


def test_no_gradient_goes_to_the_tensor_through_the_scale() -> None:
    x, sigma = data()[[0, 6]], np.float32(1.5)
    t, s = to_torch(x).requires_grad_(), torch.tensor(sigma, requires_grad=True)
    scale = torch_sigma.scale_at_sigma(CHANNEL, t, s)
    torch_frontend.fake_quantize(CHANNEL, t, QParams(scale)).sum().backward()
    qparams = QParams(core_sigma.scale_at_sigma(CHANNEL, x, sigma))
    d = core.fake_quantize_vjp(CHANNEL, x, qparams, np.ones_like(x))
    assert_same_bits(d.x, t.grad)
    assert not d.x.all()  # some are clamped
    theirs = torch_frontend.fake_quantize_vjp(CHANNEL, to_torch(x), QParams(scale.detach()), torch.ones(x.shape))
    assert_same_bits(to_numpy(torch_sigma.sigma_gradient(CHANNEL, t, s, theirs.scale)), s.grad)
    assert not torch_sigma.scale_at_sigma(CHANNEL, t, torch.tensor(sigma)).requires_grad

    def loss(x: jax.Array, sigma: jax.Array) -> jax.Array:
        return jax_backend.fake_quantize(CHANNEL, x, QParams(jax_sigma.scale_at_sigma(CHANNEL, x, sigma))).sum()

    dx, d_sigma = jax.grad(loss, (0, 1))(to_jax(x), to_jax(sigma))
    assert_same_bits(d.x, dx)
    assert float(d_sigma) == pytest.approx(float(s.grad), rel=1e-5)
    only_scale = jax.grad(lambda x: jax_sigma.scale_at_sigma(CHANNEL, x, to_jax(sigma)).sum())(to_jax(x))
    assert not np.asarray(only_scale).any()


def test_layers_train_sigma_in_both_frameworks() -> None:
    """Steps of torch; at each the checkpoint moves to flax: the same bits come out, and nearly the same gradient."""
    options: dict[str, Any] = {"input_quant": TENSOR.replace(sigma=1.0), "weight_quant": CHANNEL.replace(sigma=1.5)}
    first, second = torch_nn.QuantLinear(8, 4, **options), flax_nn.QuantLinear(8, 4, rngs=nnx.Rngs(0), **options)
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((16, n)).astype(np.float32) for n in (8, 4))
    moved, optimizer = [], torch.optim.SGD(first.parameters(), lr=0.5)

    def loss(module: flax_nn.QuantLinear) -> tuple[jax.Array, jax.Array]:
        out = module(to_jax(x))
        return (out * to_jax(y)).sum(), out

    step = nnx.jit(nnx.value_and_grad(loss, has_aux=True))
    for _ in range(3):
        state = {k: v.detach().numpy() for k, v in first.state_dict().items()}
        assert {"input_quant.sigma", "weight_quant.sigma"} <= set(state)
        interop.load_state_dict(second, state)
        assert all(np.array_equal(v, state[k]) for k, v in interop.state_dict(second).items())
        optimizer.zero_grad()
        out = first(to_torch(x))
        (out * to_torch(y)).sum().backward()
        (_, ours), grads = step(second)
        assert_same_bits(out.detach(), ours)
        for name in ("input_quant", "weight_quant"):
            sigma = getattr(first, name).sigma
            slope = float(sigma.grad)
            assert slope != 0
            assert float(grads[name]["sigma"][...]) == pytest.approx(slope, rel=1e-4, abs=1e-4)
            moved.append(sigma.item())
        optimizer.step()
    assert len(set(moved)) == 6
    assert isinstance(first.weight_quant.sigma, torch.nn.Parameter)  # type: ignore[union-attr]
    assert isinstance(second.weight_quant.sigma, nnx.Param)


def test_quantizers_use_their_sigma() -> None:
    x = data()[[0, 3, 6]]
    mine, ours = TensorQuantizer(CHANNEL), JaxTensorQuantizer(CHANNEL)
    for sigma in (2.3, 0.4, -0.5):
        with torch.no_grad():
            mine.sigma.fill_(sigma)  # type: ignore[union-attr]
        interop.load_state_dict(ours, {k: v.numpy() for k, v in mine.state_dict().items()})
        for training in (True, False):
            mine.train(training)
            want = core.fake_quantize(CHANNEL, x, QParams(core_sigma.scale_at_sigma(CHANNEL, x, np.float32(sigma))))
            assert_same_bits(want, mine(to_torch(x)).detach())
            assert_same_bits(want, ours(to_jax(x), not training))
            assert_same_bits(want, ours(to_jax(np.ascontiguousarray(x.T)), not training, (1, 0)).T)
    assert mine.half().sigma.dtype == torch.float32  # type: ignore[union-attr]
    plain = CHANNEL.replace(learned_sigma=False)
    assert not TensorQuantizer(plain).state_dict()
    assert JaxTensorQuantizer(plain).sigma is None


@pytest.mark.parametrize("room", ["core", "torch", "jax"])
def test_specials_and_refusals(room: str) -> None:
    module, to = {
        "core": (core_sigma, np.asarray),
        "torch": (torch_sigma, to_torch),
        "jax": (jax_sigma, to_jax),
    }[room]
    x, sigma = data(), np.float32(1)
    nan = module.scale_at_sigma(CHANNEL, to(x), to(np.float32(np.nan)))
    assert np.isnan(to_numpy(nan)).all()
    affine = catalog["uint8_affine_per_channel"].replace(statistic="mean_sigma")
    rows: list[tuple[Quantizer, Array, Any, type[Exception], str]] = [
        (affine, x, sigma, ValueError, "`q.scale.statistic` must be 'mean_sigma' of a symmetric .* of an affine one"),
        (catalog["int8_per_channel"], x, sigma, ValueError, "`q.scale.statistic` must be 'mean_sigma'.* 'extremes'"),
        (CHANNEL, x, np.ones(1, np.float32), ValueError, r"`sigma` must be 0-d, got shape \(1,\)"),
        (CHANNEL, x, np.float16(1), TypeError, "`sigma` must have dtype float32 .* got float16"),
        (CHANNEL, np.full_like(x, np.inf), sigma, ValueError, "`x` must be finite to choose a scale"),
    ]
    for q, array, number, error, message in rows:
        with pytest.raises(error, match=message):
            module.scale_at_sigma(q, to(array), to(number))
    for d, error, message in (
        (np.ones(7, np.float32), ValueError, r"`d_scale` must have the shape of the scale, \(7, 1\), got \(7,\)"),
        (np.ones((7, 1), np.float16), TypeError, "`d_scale` must have the dtype of the scale, float32, got float16"),
    ):
        with pytest.raises(error, match=message):
            module.sigma_gradient(CHANNEL, to(x), to(sigma), to(d))


def test_descriptions_refuse_a_sigma_that_cannot_be_learned() -> None:
    for changes in ({"statistic": "rms"}, {"source": "learned"}):
        with pytest.raises(ValueError, match="`learned_sigma` must be False unless the statistic is 'mean_sigma' and"):
            CHANNEL.replace(**changes)
    with pytest.raises(TypeError, match="`learned_sigma` must be a bool, got 1"):
        CHANNEL.replace(learned_sigma=1)
    with pytest.raises(ValueError, match="`learned_sigma` must be False for an affine quantizer"):
        catalog["uint8_affine_per_channel"].replace(statistic="mean_sigma", learned_sigma=True)


def test_blocks_that_are_not_finite_have_no_scale_in_compiled_code() -> None:
    x = data()
    x[0, 3], x[6, 1] = np.nan, np.inf
    scale = np.asarray(jax.jit(lambda x: jax_sigma.scale_at_sigma(CHANNEL, x, jnp.float32(1)))(to_jax(x)))
    (mine,) = torch.func.vmap(lambda x: torch_sigma.scale_at_sigma(CHANNEL, x, torch.tensor(1.0)))(to_torch(x)[None])
    for got in (scale, mine.numpy()):
        assert np.array_equal(np.isnan(got).ravel(), [True, *[False] * 5, True])
