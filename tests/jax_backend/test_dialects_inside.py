"""Dialects in JAX beside installed libraries, and in what surrounds them: gradients, batches, layers, statistics."""

from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import QParams, catalog, dialects
from samebits.core.learned_sigma import scale_at_sigma
from samebits.jax_backend import learned_sigma
from samebits.jax_backend.nn import QuantLinear
from samebits.jax_backend.tensor_quantizer import TensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edges

from ..oracles.test_qwix_and_aqt import qwix
from ..oracles.test_torch_and_onnxruntime import inputs
from .test_dialects import COLUMNS, NARROW, ORDINARY, SIGNED, UNSIGNED, case, dialect, symmetric

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow and NaN are what is tested
Array = NDArray[Any]


def test_compiled_fake_quantize_of_torch() -> None:
    """`jax.jit` of the dialect beside the installed torch: 0 differences at the knife edges of 100 scales."""
    q, rng = dialect("torch_fake_quantize", True), np.random.default_rng(3)
    scales = np.exp(rng.uniform(-9, 5, (100, 1))).astype(np.float32)
    zeros = rng.integers(q.format.lo, q.format.hi + 1, scales.shape).astype(np.int32)
    rows = [knife_edges(q, s, z, np.float32) for s, z in zip(scales[:, 0], zeros[:, 0], strict=True)]
    x = np.stack([np.resize(row, COLUMNS) for row in rows])
    found = jax.jit(lambda x, s, z: jax_backend.fake_quantize(q, x, QParams(s, z)))(x, scales, zeros)
    theirs = [
        torch.fake_quantize_per_tensor_affine(torch.from_numpy(row), float(s), int(z), q.format.lo, q.format.hi).numpy()
        for row, s, z in zip(x, scales[:, 0], zeros[:, 0], strict=True)
    ]
    assert_same_bits(np.stack(theirs), found, inputs={"x": x, "scale": scales, "zero_point": zeros})


LONG = pytest.mark.thorough


@pytest.mark.parametrize("zero", [7, pytest.param(None, marks=LONG)])
@pytest.mark.parametrize("dtype", [NARROW[0], *(pytest.param(dtype, marks=LONG) for dtype in NARROW[1:])], ids=str)
def test_qwix(dtype: np.dtype[Any], zero: int | None) -> None:
    """The dialect, compiled and op by op, beside the installed Qwix, op by op, as the dialect is described."""
    qarray = import_module("qwix._src.core.qarray")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        q = qwix(8, dtype, core.PerTensor(), zero is not None)
        for value in (0.1, 1 / 3, 1.7):
            scale = np.array([[value]]).astype(dtype)
            x = inputs(q, float(scale[0, 0]), zero or 0, dtype, random=300)[None]
            point = None if zero is None else jnp.full((1, 1), zero, jnp.int8)
            theirs = qarray.quantize_with_scale_zero_point(jnp.asarray(x), jnp.int8, jnp.asarray(scale), point)
            given = QParams(jnp.asarray(scale[0, 0], np.float32), None if zero is None else jnp.asarray(zero, np.int32))
            codes = jax_backend.quantize(q, jnp.asarray(x), given)
            assert_same_bits(np.asarray(theirs.qvalue), codes, inputs=x)
            with jax.disable_jit():
                assert_same_bits(np.asarray(theirs.qvalue), jax_backend.quantize(q, jnp.asarray(x), given), inputs=x)
            assert_same_bits(np.asarray(qarray.dequantize(theirs)), jax_backend.dequantize(q, codes, given, dtype))


def test_gradients_are_those_of_the_dialect() -> None:
    """`jax.grad` in a program, forward mode, and the sums, within the rounding of `ste.block_sum`."""
    q = dialect("torch_fake_quantize", True)
    x, qparams = case(q, np.dtype(np.float32), ORDINARY)
    x = np.where(np.isfinite(x), np.clip(x, -1e4, 1e4), np.float32(0))
    g = np.resize(np.linspace(-2, 2, 37), x.shape).astype(np.float32)
    zero = jnp.asarray(qparams.zero_point, np.float32)

    def loss(x: Any, scale: Any, zero: Any) -> Any:
        return jnp.sum(jax_backend.fake_quantize(q, x, QParams(scale, zero)) * jnp.asarray(g))

    dx, d_scale, d_zero = jax.jit(jax.grad(loss, (0, 1, 2)))(jnp.asarray(x), jnp.asarray(qparams.scale), zero)
    d = core.fake_quantize_vjp(q, x, QParams(qparams.scale, np.asarray(zero)), g)
    assert_same_bits(d.x, dx, inputs=x)
    for expected, found in ((d.scale, d_scale), (d.zero_point, d_zero)):
        # 1400 terms in rows of 64, and then the rows; a term is at most 255 |g|, the distance of two codes
        bound = 64 * 2 * 2.0**-24 * 255 * np.abs(g).sum(1, keepdims=True)
        assert np.all(np.abs(expected - np.asarray(found)) <= bound)
        assert np.any(expected != 0)
    ones = (jnp.ones_like(jnp.asarray(x)), jnp.zeros(qparams.scale.shape), jnp.zeros(zero.shape))
    operands = jnp.asarray(x), jnp.asarray(qparams.scale), zero
    _, moved = jax.jvp(lambda *o: jax_backend.fake_quantize(q, o[0], QParams(*o[1:])), operands, ones)
    assert_same_bits((d.x != 0) | (g == 0), (np.asarray(moved) != 0) | (g == 0))


def test_batches_of_arrays() -> None:
    q = dialect("torch_quantize", True).replace(granularity=core.PerTensor())
    x = np.linspace(-3, 3, 600).astype(np.float32).reshape(3, 200)
    scale, zero = np.array([0.02, 0.1, 0.3], np.float32), np.array([3, 100, 255], np.int32)
    found = jax.vmap(lambda x, s, z: jax_backend.fake_quantize(q, x, QParams(s, z)))(x, scale, zero)
    each = [core.fake_quantize(q, *p) for p in zip(x, map(QParams, scale, zero), strict=True)]
    assert_same_bits(np.stack(each), found, inputs=x)


@pytest.mark.parametrize("names", [("torch_fake_quantize", "qwix"), ("quanto_affine", "brevitas")])
def test_layers(names: tuple[str, str]) -> None:
    """Contractions of codes are those of core; of values, where zero points are none, within the bound."""
    q_x = catalog["uint8_affine_per_tensor"].replace(**dialects[names[0]])
    q_w = SIGNED.replace(**symmetric(dialects[names[1]]))
    layer = QuantLinear(24, 5, input_quant=q_x, weight_quant=q_w, use_bias=False, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((7, 24)).astype(np.float32)
    w = np.asarray(layer.kernel[...]).T
    operands = (q_x, x, core.choose_qparams(q_x, x)), (q_w, w, core.choose_qparams(q_w, w))
    expected = core.linear(*operands[0], *operands[1])
    found = nnx.jit(lambda m, x: m(x))(layer, jnp.asarray(x))
    if names[0] == "torch_fake_quantize":
        assert_same_bits(expected, found)
    else:
        values = [core.fake_quantize(*operand) for operand in operands]
        assert np.all(np.abs(np.asarray(found) - expected) <= 2 * core.contraction_bound(*values))
    learning = q_x.replace(source="learned")
    held = TensorQuantizer(learning)
    held.train()
    assert_same_bits(core.fake_quantize(q_x, x), held(jnp.asarray(x)), inputs=x)


SEARCHED = {
    "mse of float16": SIGNED.replace(statistic="mse", compute_dtype="input"),
    "mse in float64": UNSIGNED.replace(statistic="mse", scale_dtype="float64"),
    "hqo": SIGNED.replace(statistic="hqo", scale_dtype="input", division="reciprocal"),
    "hqo of zero points": UNSIGNED.replace(statistic="hqo", **dialects["quanto_affine"]),
    "percentile": UNSIGNED.replace(statistic="percentile", **dialects["qwix"]),
    "mean and sigma": SIGNED.replace(statistic="mean_sigma", **symmetric(dialects["torchao"])),
    "signed": SIGNED.replace(statistic="signed_absmax", division="reciprocal", nan="zero", floor=0.0),
    "nvfp4": catalog["nvfp4"].replace(compute_dtype="float64", floor=2.0**-20),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", SEARCHED)
def test_other_statistics_and_restrictions(name: str) -> None:
    q = SEARCHED[name]
    for dtype in NARROW[::2]:
        x = np.random.default_rng(0).standard_normal((6, 32)).astype(dtype)
        expected, got = core.choose_qparams(q, x), jax_backend.choose_qparams(q, jnp.asarray(x))
        assert_same_bits(expected.scale, got.scale, call=f"choose_qparams({q}).scale")
        if q.affine:
            assert_same_bits(expected.zero_point, got.zero_point, call=f"choose_qparams({q}).zero_point")
        assert_same_bits(core.fake_quantize(q, x), jax_backend.fake_quantize(q, jnp.asarray(x)), call=str(q), inputs=x)


@pytest.mark.thorough
def test_learned_sigma_of_a_dialect() -> None:
    q = SIGNED.replace(statistic="mean_sigma", **symmetric(dialects["torchao"]))
    for dtype in NARROW:
        x, sigma = np.random.default_rng(0).standard_normal((6, 32)).astype(dtype), np.float32(2.5)
        expected = scale_at_sigma(q, x, sigma)
        assert_same_bits(expected, learned_sigma.scale_at_sigma(q, jnp.asarray(x), jnp.asarray(sigma)))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dialect", ["torch_fake_quantize", "qwix"])
def test_gradients_of_scales_hold_the_quotients_of_subnormal_numbers(dialect: str, jit: bool) -> None:
    """They are ``-x / s`` where the code is 0: no sum of them is 0, though XLA takes ``x`` for it."""
    q = catalog["int8_per_channel"].replace(**dialects[dialect])
    x, scale = np.full((2, 3), 1e-39, np.float32), np.full((2, 1), 2.0**-23, np.float32)

    def gradient(s: Any) -> Any:
        return jax_backend.fake_quantize_vjp(q, x, QParams(s), np.ones_like(x)).scale

    expected = core.fake_quantize_vjp(q, x, QParams(scale), np.ones_like(x)).scale
    assert (expected != 0).all()
    assert_same_bits(expected, (jax.jit(gradient) if jit else gradient)(scale))
