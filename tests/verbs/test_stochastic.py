"""Stochastic rounding: the same bits in all rooms and modes, its expectation, and the state of layers.

`verbs/test_threefry.py` holds the random numbers and the rule; here the oracle is `samebits.core`.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, Quantizer, catalog
from samebits.jax_backend import interop
from samebits.jax_backend.nn import QuantConv, QuantLinear
from samebits.jax_backend.tensor_quantizer import TensorQuantizer as JaxTensorQuantizer
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.torch_frontend import nn as torch_nn
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

from ..exact import DTYPES
from ..planted import plant

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant

Array = NDArray[Any]
SEEDS = (0, 1, 2**31, 2**32 - 1)


def drawing(name: str, **changes: Any) -> Quantizer:
    return catalog[name].replace(rounding="stochastic", **changes)


INT8 = drawing("int8_per_tensor")
CASES: dict[str, tuple[Quantizer, str]] = {
    "int8": (INT8, "float32"),
    "affine uint4 per group": (drawing("uint4_affine_per_group32"), "float32"),
    "float8_e4m3fn": (drawing("float8_e4m3fn_per_tensor"), "float32"),
    "float4_e2m1": (drawing("float4_e2m1_per_channel"), "float32"),
    "int8, bfloat16": (drawing("int8_per_channel"), "bfloat16"),
}


def data(name: str) -> tuple[Array, QParams, Array]:
    """Numbers of which some are clamped, special values among them; parameters; an incoming gradient."""
    q, dtype = CASES[name]
    random = np.random.default_rng(list(map(ord, name)))
    x = (random.standard_normal((8, 64)) * 3).astype(DTYPES[dtype])
    qparams = core.choose_qparams(q, x)
    few = special_values(DTYPES[dtype])
    x[:, 5] = np.resize(few[~np.isnan(few)], 8)
    x[:, 7] = np.float32(2.0) ** np.arange(-130, -122)
    return x, qparams._replace(scale=qparams.scale * np.float32(0.8)), random.standard_normal((8, 64)).astype(x.dtype)


def in_torch(qparams: QParams, seed: Any) -> QParams:
    scale, zero = (None if p is None else to_torch(np.asarray(p)) for p in qparams[:2])
    return QParams(scale, zero, seed=seed)


@pytest.mark.parametrize("name", ["int8_per_tensor", "uint4_affine_per_group32", "float8_e4m3fn_per_tensor"])
def test_the_mean_over_seeds_is_x(name: str) -> None:
    q, count = drawing(name), 1500
    x = np.linspace(-3.9, 3.9, 64, dtype=np.float32).reshape(2, 32)
    qparams = core.choose_qparams(q, x)
    low, high = (core.fake_quantize(q.replace(rounding=r), x, qparams) for r in ("toward_negative", "toward_positive"))
    drawn = np.stack([core.fake_quantize(q, x, qparams._replace(seed=seed)) for seed in range(count)]).astype(float)
    assert ((drawn == low) | (drawn == high)).all()
    part = np.where(high > low, (x.astype(float) - low) / np.where(high > low, high - low, 1), 0)
    error = (high - low) * np.sqrt(part * (1 - part) / count)
    assert (np.abs(drawn.mean(0) - x) <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("name", ["int8_per_tensor", "uint4_affine_per_group32", "int8_narrow_per_channel"])
def test_codes_never_leave_the_range(name: str) -> None:
    q = drawing(name)
    lo, hi = q.format.lo, q.format.hi
    ends = np.array([lo - 1e9, lo - 1, lo - 0.01, lo, hi, hi + 0.01, hi + 1, 3e38, np.inf, -np.inf], np.float32)
    x = np.resize(neighbours(ends, 2), (2, 64))
    chosen = core.choose_qparams(q, np.ones_like(x))
    qparams = QParams(np.ones_like(chosen.scale), None if chosen.zero_point is None else chosen.zero_point)
    for seed in range(200):
        codes = core.quantize(q, x, qparams._replace(seed=seed))
        assert lo <= codes.min() <= codes.max() <= hi
        if seed < 4:
            assert_same_bits(codes, torch_frontend.quantize(q, to_torch(x), in_torch(qparams, seed)))


def test_seeds() -> None:
    x, qparams, _ = data("int8")
    codes = [core.quantize(INT8, x, qparams._replace(seed=seed)) for seed in (None, 0, 1, 2, np.uint32(2))]
    assert_same_bits(codes[0], codes[1])
    assert_same_bits(codes[3], codes[4])
    assert all((codes[a] != codes[b]).mean() > 0.2 for a, b in ((0, 2), (2, 3), (0, 3)))


# --- the same bits ----------------------------------------------------------------------------------------------------


def wanted(name: str, seed: int) -> tuple[Any, ...]:
    q, (x, qparams, g) = CASES[name][0], data(name)
    given = qparams._replace(seed=np.uint32(seed))
    dx = core.fake_quantize_vjp(q, x, given, g).x
    return core.quantize(q, x, given), core.fake_quantize(q, x, given), dx


def check_torch(name: str, seed: Any) -> None:
    """Codes, values and the gradient of x in eager torch; of the transposed memory, too."""
    q, (x, qparams, g) = CASES[name][0], data(name)
    parameters = in_torch(qparams, seed)
    want = wanted(name, int(seed))
    for t in (to_torch(x), to_torch(x).t().contiguous().t()):
        leaf = t.detach().requires_grad_()
        torch_frontend.fake_quantize(q, leaf, parameters).backward(to_torch(g))
        got = torch_frontend.quantize(q, t, parameters), torch_frontend.fake_quantize(q, t, parameters), leaf.grad
        assert_same_bits(want, got, call=f"{name}, seed {seed}")
        assert_same_bits(want[2], torch_frontend.fake_quantize_vjp(q, t, parameters, to_torch(g)).x)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CASES)
def test_torch_eager(name: str, seed: int) -> None:
    check_torch(name, seed)
    check_torch(name, torch.tensor(seed))


COMPILED = ("int8", "affine uint4 per group", "float8_e4m3fn", "int8, bfloat16")


def _program(leaves: dict[str, Any], parameters: dict[str, Any], seed: Any, b: Any) -> Any:
    """Several cases in one program; one of them also inside a larger expression, and its codes."""
    given = {name: QParams(parameters[name][0], parameters[name][1], seed=seed) for name in COMPILED}
    found = [torch_frontend.fake_quantize(CASES[name][0], leaves[name], given[name]) for name in COMPILED]
    codes = torch_frontend.quantize(INT8, leaves["int8"].detach(), given["int8"])
    return found, codes, found[0].detach() * b + b


def test_torch_compiled() -> None:
    program = torch.compile(_program, fullgraph=True)
    every = {name: data(name) for name in COMPILED}
    parameters = {name: tuple(in_torch(qparams, None)[:2]) for name, (_, qparams, _) in every.items()}
    b = torch.full((8, 64), 0.3)
    for number, seed in enumerate(SEEDS):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            leaves = {name: to_torch(x).requires_grad_(name == "int8") for name, (x, _, _) in every.items()}
            found, codes, inside = program(leaves, parameters, torch.tensor(seed), b)
        found[0].backward(to_torch(every["int8"][2]))
        assert_same_bits(wanted("int8", seed)[2], leaves["int8"].grad)
        for name, fake in zip(COMPILED, found, strict=True):
            assert_same_bits(wanted(name, seed)[1], fake.detach(), call=f"{name}, seed {seed}")
        assert_same_bits(wanted("int8", seed)[0], codes)
        assert_same_bits(wanted("int8", seed)[1] * b.numpy() + b.numpy(), inside)


@pytest.mark.thorough
def test_torch_compiled_with_a_seed_that_is_no_tensor() -> None:
    """Of random bits that depend on no input inductor unfolds every round anew, and never ends."""
    x = data("int8")[0]
    number = torch.compile(lambda v: torch_frontend.fake_quantize(INT8, v), fullgraph=True)(to_torch(x))
    assert_same_bits(core.fake_quantize(INT8, x), number)


@partial(jax.jit, static_argnums=0)
def _jax_functions(q: Quantizer, x: Any, scale: Any, zero: Any, seed: Any, g: Any) -> Any:
    qparams = QParams(scale, zero, seed=seed)
    fake, back = jax.vjp(lambda v: jax_backend.fake_quantize(q, v, qparams), x)
    return jax_backend.quantize(q, x, qparams), fake, back(g)[0]


def check_jax(name: str, seed: int, *, jit: bool) -> None:
    q, (x, qparams, g) = CASES[name][0], data(name)
    scale, zero = (None if p is None else to_jax(np.asarray(p)) for p in qparams[:2])
    with jax.disable_jit(not jit):
        got = _jax_functions(q, to_jax(x), scale, zero, np.uint32(seed), to_jax(g))
    assert_same_bits(wanted(name, seed), got, call=f"{name}, seed {seed}, jit {jit}")


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", CASES)
def test_jax(name: str, jit: bool) -> None:
    for seed in SEEDS if jit else SEEDS[3:]:
        check_jax(name, seed, jit=jit)


def test_jax_inside_a_larger_program() -> None:
    x, qparams, _ = data("int8")
    given, b = qparams._replace(seed=np.uint32(7)), np.full(x.shape, 0.3, np.float32)
    got = jax.jit(lambda v, w: jax_backend.fake_quantize(INT8, v * 0.5, given) * w + w)(x, b)
    half = core.fake_quantize(INT8, x * np.float32(0.5), given)
    product = np.float64(half) * b  # what follows is not ours, and XLA fuses it
    assert_same_bits((product + b).astype(np.float32)[np.isfinite(half)], np.asarray(got)[np.isfinite(half)])


def test_float64() -> None:
    q, x = INT8, np.random.default_rng(0).standard_normal((8, 64))
    qparams = core.choose_qparams(q, x)._replace(seed=np.uint32(3))
    want = core.fake_quantize(q, x, qparams)
    assert_same_bits(want, torch_frontend.fake_quantize(q, to_torch(x), in_torch(qparams, 3)))
    with jax.enable_x64(True):
        assert_same_bits(want, jax_backend.fake_quantize(q, x, qparams))


def test_vmap_draws_for_each_example_as_for_an_array_of_its_own() -> None:
    x, qparams, _ = data("int8")
    t, scale = to_torch(x), to_torch(np.asarray(qparams.scale))
    for seeds in (np.arange(8), np.full(8, 5)):
        want = np.stack([core.fake_quantize(INT8, r, qparams._replace(seed=s)) for r, s in zip(x, seeds, strict=True)])
        got = torch.func.vmap(lambda v, s: torch_frontend.fake_quantize(INT8, v, QParams(scale, seed=s)))(
            t, torch.from_numpy(seeds)
        )
        assert_same_bits(want, got)
        run = jax.vmap(lambda v, s: jax_backend.fake_quantize(INT8, v, QParams(qparams.scale, seed=s)))
        assert_same_bits(want, run(x, jnp.asarray(seeds.astype(np.uint32))))


# --- layers -----------------------------------------------------------------------------------------------------------


def test_layers_of_both_frameworks_have_the_same_bits_at_every_step() -> None:
    """Linear over codes (rows per token) and convolution (channels last in JAX), forward and to the gradients."""
    random = np.random.default_rng(0)
    q_x, q_w = INT8, drawing("int8_per_channel")
    linear = torch_nn.QuantLinear(6, 5, weight_quant=q_w, input_quant=q_x, output_quant=q_x)
    conv = torch_nn.QuantConv2d(3, 4, 3, padding=1, weight_quant=q_w, input_quant=q_x, output_quant=q_x)
    mine = QuantLinear(6, 5, weight_quant=q_w, input_quant=q_x, output_quant=q_x, rngs=nnx.Rngs(0))
    ours = QuantConv(3, 4, (3, 3), padding=1, weight_quant=q_w, input_quant=q_x, output_quant=q_x, rngs=nnx.Rngs(0))
    for theirs, module in ((linear, mine), (conv, ours)):
        interop.load_state_dict(module, {name: v.numpy() for name, v in theirs.state_dict().items()})
    rows, images = (random.standard_normal(s).astype(np.float32) for s in ((4, 7, 6), (2, 3, 6, 6)))
    first = {name: int(v) for name, v in conv.state_dict().items() if name.endswith("step")}
    assert len(set(first.values())) == 3  # each draws for itself
    for step in range(3):
        if step == 2:
            for module in (linear, conv, mine, ours):
                module.eval()
        assert_same_bits(linear(to_torch(rows)).detach(), mine(rows))
        got = np.asarray(ours(images.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
        assert_same_bits(conv(to_torch(images)).detach(), got)
        now = {name: int(v) for name, v in conv.state_dict().items() if name.endswith("step")}
        assert now == {name: (v + min(step + 1, 2)) % 2**32 for name, v in first.items()}
    for theirs, module in ((linear, mine), (conv, ours)):
        saved = {name: v.numpy() for name, v in theirs.state_dict().items()}
        for name, value in interop.state_dict(module).items():
            assert_same_bits(saved[name], value)


def test_functional_layers_are_those_of_core() -> None:
    random, q_w = np.random.default_rng(0), drawing("int8_per_channel")
    for kind, shapes in (("linear", ((7, 6), (5, 6))), ("conv", ((2, 3, 6, 6), (4, 3, 3, 3)))):
        x, w = (random.standard_normal(shape).astype(np.float32) for shape in shapes)
        p_x, p_w = (core.choose_qparams(q, v) for q, v in ((INT8, x), (q_w, w)))
        p_x, p_w = p_x._replace(seed=np.uint32(4)), p_w._replace(seed=np.uint32(9))
        want = getattr(core, kind)(INT8, x, p_x, q_w, w, p_w)
        assert_same_bits(want, getattr(jax_backend, kind)(INT8, x, p_x, q_w, w, p_w))
        leaf = to_torch(x).requires_grad_()
        y = getattr(torch_frontend, kind)(INT8, leaf, in_torch(p_x, 4), q_w, to_torch(w), in_torch(p_w, 9))
        assert_same_bits(want, y.detach())
        y.sum().backward()
        assert leaf.grad is not None
        _, back = jax.vjp(lambda v, k=kind, a=p_x, b=p_w, u=w: getattr(jax_backend, k)(INT8, v, a, q_w, u, b), x)
        mine = np.asarray(back(jnp.ones(y.shape))[0])
        assert_same_bits(mine == 0, leaf.grad.numpy() == 0)
        assert np.allclose(mine, leaf.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_a_layer_draws_anew_at_every_step_of_training_only() -> None:
    x, _, _ = data("int8")
    x = np.where(np.isfinite(x), x, 0).astype(np.float32)
    for kind, given in ((TensorQuantizer, to_torch(x)), (JaxTensorQuantizer, jnp.asarray(x))):
        for seed, start in ((0, 0), (3, 3 * 0x9E3779B9 % 2**32)):
            quantizer = kind(INT8, seed=seed)
            runs = [quantizer(given) for _ in range(3)]
            quantizer.eval()
            runs += [quantizer(given) for _ in range(2)]
            for step, got in zip((0, 1, 2, 3, 3), runs, strict=True):
                want = core.fake_quantize(INT8, x, core.choose_qparams(INT8, x)._replace(seed=start + step))
                assert_same_bits(want, got)
        with pytest.raises(ValueError, match="`seed` must be at least 0, got -1"):
            kind(INT8, seed=-1)
    assert TensorQuantizer("int8_per_tensor").step is None
    assert JaxTensorQuantizer("int8_per_tensor").step is None
    numbered = [int(kind(INT8).step[...]) for kind in (TensorQuantizer, JaxTensorQuantizer) for _ in range(3)]
    assert all((b - a) % 2**32 == 0x9E3779B9 for a, b in itertools.pairwise(numbered[:3]))
    assert all((b - a) % 2**32 == 0x9E3779B9 for a, b in itertools.pairwise(numbered[3:]))
    wraps = TensorQuantizer(INT8)
    wraps.step.fill_(2**32 - 1)  # type: ignore[union-attr]
    wraps(to_torch(x))
    assert int(wraps.step) == 0


# --- refused ----------------------------------------------------------------------------------------------------------

BAD: list[tuple[Any, type[Exception], str]] = [
    (np.float32(1), TypeError, "`qparams.seed` must be an integer, got dtype float32"),
    (np.zeros(2, np.int32), ValueError, r"`qparams.seed` must be 0-d, got shape \(2,\)"),
    (np.int64(-1), ValueError, r"`qparams.seed` must be in \[0, 2\*\*32\), got -1"),
    (np.int64(2**32), ValueError, r"`qparams.seed` must be in \[0, 2\*\*32\), got 4294967296"),
]


@pytest.mark.parametrize(("seed", "error", "words"), BAD, ids=["float", "shape", "negative", "large"])
def test_wrong_seeds_are_refused_everywhere_in_the_same_words(seed: Any, error: type[Exception], words: str) -> None:
    x, scale = np.ones(3, np.float32), np.float32(0.1)
    with pytest.raises(error, match=words):
        core.fake_quantize(INT8, x, QParams(scale, seed=seed))
    with pytest.raises(error, match=words):
        torch_frontend.fake_quantize(
            INT8, to_torch(x), QParams(torch.tensor(0.1), seed=torch.from_numpy(np.array(seed)))
        )
    with pytest.raises(error, match=words):
        jax_backend.fake_quantize(INT8, x, QParams(scale, seed=seed))
    assert_same_bits(
        core.fake_quantize(catalog["int8_per_tensor"], x, QParams(scale)),
        core.fake_quantize(catalog["int8_per_tensor"], x, QParams(scale, seed=seed)),
    )


# --- a planted fault --------------------------------------------------------------------------------------------------


def _by_memory(original: Any) -> Any:
    """Noise counted in the order in which elements lie in memory."""

    def noise_like(q: Any, value: Any, x: Any, seed: Any) -> Any:
        if seed is None or x.is_contiguous():
            return original(q, value, x, seed)
        return torch_frontend.threefry.rounding_noise(seed, tuple(x.t().shape)).t().reshape(value.shape)

    return noise_like


def test_noise_in_the_order_of_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "torch_frontend.routes.noise_like", _by_memory)
    with pytest.raises(AssertionError):
        check_torch("int8", 1)
