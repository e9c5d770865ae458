"""Kernels in Pallas have the bits of those in lax and of core; programs for CUDA and TPU take them, others do not."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from samebits import core
from samebits import jax_backend as jb
from samebits.core import QParams, Quantizer, catalog
from samebits.jax_backend import devices, pallas, platforms
from samebits.jax_backend.arrays import bit_pattern, from_pattern
from samebits.jax_backend.pallas import integers
from samebits.jax_backend.ptq.products import dynamic_linear
from samebits.jax_backend.quantizer import _fake_quantized
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edges

FLOATS = (np.float32, ml_dtypes.bfloat16, np.float16)
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-38, 3e38, -3e38]
ENTRIES = (
    "int8_per_tensor",
    "uint8_affine_per_tensor",
    "int8_per_channel",
    "int8_affine_per_token",
    "int4_per_group32",
    "uint4_affine_per_group128",
    "int8_power_of_two_per_tensor",
)
MARKS = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}


def numbers(dtype: Any, *shape: int, seed: int = 0) -> np.ndarray:
    """Of many sizes."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-8, 4, shape))).astype(dtype)


# --- fake quantization ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ENTRIES)
def test_fake_quantization_has_the_bits_of_lax_and_core(name: str, dtype: Any) -> None:
    q = catalog[name]
    x = numbers(dtype, 3, 5, 256)
    qparams = core.choose_qparams(q, x)
    with np.errstate(over="ignore"):
        x[0, 0, : len(SPECIAL)] = np.asarray(SPECIAL).astype(dtype)
    found = pallas.fake_quantize(q, jnp.asarray(x), in_jax(qparams), interpret=True)
    assert_same_bits(np.asarray(found), core.fake_quantize(q, x, qparams))
    assert_same_bits(np.asarray(found), np.asarray(jb.fake_quantize(q, jnp.asarray(x), in_jax(qparams))))


def in_jax(qparams: QParams) -> QParams:
    return QParams(*(None if p is None else jnp.asarray(p) for p in qparams[:2]))


@pytest.mark.parametrize("rounding", integers.ROUNDINGS)
@pytest.mark.parametrize("scale", [2.0**-126, 1.5e-38, 1 / 3, 0.99999994, 7.3e30])
def test_knife_edges(rounding: str, scale: float) -> None:
    for name, zero in (("int8_per_tensor", None), ("uint8_affine_per_tensor", np.int32(200))):
        q, s = catalog[name].replace(rounding=rounding), np.float32(scale)
        x = knife_edges(q, s, zero, "float32")
        found = pallas.fake_quantize(q, jnp.asarray(x), in_jax(QParams(s, zero)), interpret=True)
        assert_same_bits(np.asarray(found), core.fake_quantize(q, x, QParams(s, zero)))


def test_quotients_that_a_division_guesses_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    q, rng = catalog["int8_per_tensor"], np.random.default_rng(3)
    halves = (rng.integers(-120, 120, 20_000) + np.float32(0.5)).astype(np.float32)
    s = np.float32(rng.uniform(0.01, 1))
    x = halves * s  # near the halves, on either side
    wanted = core.fake_quantize(q, x, QParams(s))

    def spoiled(a: Any, b: Any) -> Any:
        """Off by up to 4 units in the last place, this way and that."""
        pattern = bit_pattern(a / b)
        return jnp.where(a == 0, a, from_pattern(pattern + (pattern * 7919 >> 5) % 9 - 4, np.float32))

    monkeypatch.setattr(devices, "about", spoiled)
    scales = jnp.full(x.shape, s)
    codes = integers.clamped_codes(q, jnp.asarray(x), scales, jnp.int32(0))
    assert_same_bits(np.asarray(codes).astype(np.float32) * s + 0, wanted)

    def uncorrected(significand: Any, divisor: Any, dtype: Any) -> Any:
        less = (significand < divisor).astype(np.int32)
        guess = spoiled(significand.astype(dtype) * (1 + less).astype(dtype), divisor.astype(dtype))
        return (guess * 2.0**23).astype(np.int32), less, None

    monkeypatch.setattr(integers, "quotient_of", uncorrected)
    assert (integers.clamped_codes(q, jnp.asarray(x), scales, jnp.int32(0)) != codes).any()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 0), (1, 1, 1, 3)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    q, x = catalog["int8_per_tensor"], numbers(np.float32, *shape)
    given = QParams(jnp.float32(0.01))
    if x.size == 0:
        with pytest.raises(ValueError, match="must be what the kernel computes"):
            pallas.fake_quantize(q, jnp.asarray(x), given, interpret=True)
        return
    found = pallas.fake_quantize(q, jnp.asarray(x), given, interpret=True)
    assert_same_bits(np.asarray(found), core.fake_quantize(q, x, QParams(np.float32(0.01))))


@pytest.mark.parametrize(
    "q",
    [
        catalog["float8_e4m3fn_per_tensor"],
        catalog["int8_per_tensor"].replace(rounding="toward_positive"),
        catalog["int8_per_tensor"].replace(rounding="stochastic"),
        catalog["int8_per_tensor"].replace(**core.dialects["torchao"]),
    ],
)
def test_what_the_kernel_does_not_compute_is_refused(q: Quantizer) -> None:
    assert not pallas.fits(q, jnp.ones(3))
    with pytest.raises(ValueError, match="must be what the kernel computes"):
        pallas.fake_quantize(q, jnp.ones(3), QParams(jnp.float32(1)), interpret=True)


# --- contractions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("input_name", "weight_name"),
    [
        ("int8_per_tensor", "int8_per_channel"),
        ("int8_affine_per_token", "int8_per_channel"),
        ("uint8_affine_per_tensor", "uint8_affine_per_tensor"),
        ("uint8_per_tensor", "int4_per_channel"),
    ],
)
def test_sums_of_codes(input_name: str, weight_name: str) -> None:
    q_x, q_w = catalog[input_name], catalog[weight_name]
    x, w = numbers(np.float32, 5, 9, 200), numbers(np.float32, 130, 200, seed=1)
    of_x, of_w = core.choose_qparams(q_x, x), core.choose_qparams(q_w, w)
    codes = core.quantize(q_w, w, of_w)
    a = centred(q_x, core.quantize(q_x, x, of_x), of_x)
    wanted = (a @ centred(q_w, codes, of_w).T).astype(np.float32)
    x[2, 3, 7], wanted[2, 3] = np.nan, np.nan
    found = pallas.sums("cpu", q_x, q_w, *map_in_jax(x, *of_x[:2], codes, of_w.zero_point), interpret=True)
    assert_same_bits(np.asarray(found), wanted)


def map_in_jax(*arrays: Any) -> list[Any]:
    return [None if a is None else jnp.asarray(a) for a in arrays]


def centred(q: Quantizer, codes: Any, qparams: QParams) -> Any:
    zero = 0 if qparams.zero_point is None else np.asarray(qparams.zero_point).astype(np.int64)
    return codes.astype(np.int64) - zero


def test_what_has_no_exact_sums_is_left_to_lax() -> None:
    x, codes = jnp.ones((2, 4)), jnp.ones((3, 4), np.int8)
    int8, rows = catalog["int8_per_tensor"], catalog["int8_per_channel"]
    assert pallas.fits_products(int8, x, rows, codes)
    assert not pallas.fits_products(int8, x, catalog["int4_per_group32"], codes)
    assert not pallas.fits_products(int8.replace(bits=12), x, rows, codes)
    assert not pallas.fits_products(int8, x, rows, jax.ShapeDtypeStruct((1, 2**18), np.int8))


# --- platforms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["fpu avx2", "fpu avx512_bf16 avx512_vnni"])
def test_codes_are_multiplied_in_the_type_that_is_fastest(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And give the same bits in each."""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"flags\t\t: {flags}\n")
    platforms.type_of_codes.cache_clear()
    jax.clear_caches()
    try:
        q_x, q_w = catalog["uint8_affine_per_tensor"], catalog["int8_per_channel"]
        x, w = np.random.default_rng(0).standard_normal((2, 6, 3000)).astype(np.float32)
        own = core.choose_qparams(q_x, x), core.choose_qparams(q_w, w)
        linear = jax.jit(lambda x, w: jb.linear(q_x, x, own[0], q_w, w, own[1]))
        assert ("bf16" in linear.lower(x, w).as_text()) == ("bf16" in flags)
        assert_same_bits(core.linear(q_x, x, own[0], q_w, w, own[1]), linear(x, w))
    finally:
        monkeypatch.undo()
        platforms.type_of_codes.cache_clear()


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As on a machine with one: what is compiled for it, and for the CPU beside it."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    yield
    jax.clear_caches()


def lowered(function: Any, platform: str, *arrays: Any) -> str:
    text: str = jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    return text


@pytest.mark.parametrize("platform", platforms.PLATFORMS)
@pytest.mark.usefixtures("accelerator")
def test_programs_for_accelerators_hold_the_kernels(platform: str) -> None:
    q, rows = catalog["uint8_affine_per_tensor"], catalog["int8_per_channel"]
    of_x = (jnp.float32(0.1), jnp.int32(3))
    fake = partial(_fake_quantized, q)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.ones((64, 256), dtype)
        assert MARKS[platform] in lowered(lambda x: fake(x, *of_x, None, None), platform, x)
        right = rows, jnp.ones((128, 256), np.int8), QParams(jnp.ones((128, 1))), dtype, None
        assert MARKS[platform] in lowered(lambda x: dynamic_linear(catalog["int8_per_token"], x, *right), platform, x)  # noqa: B023


@pytest.mark.usefixtures("accelerator")
def test_beside_an_accelerator_the_cpu_keeps_its_kernels_and_gradients() -> None:
    q, x = catalog["int8_per_tensor"], numbers(np.float32, 4, 8)
    qparams = QParams(np.float32(0.02))

    def total(x: jax.Array) -> jax.Array:
        return (jb.fake_quantize(q, x, in_jax(qparams)) * x).sum()

    assert MARKS["cuda"] not in lowered(total, "cpu", jnp.asarray(x))
    value = core.fake_quantize(q, x, qparams)
    passed = core.fake_quantize_vjp(q, x, qparams, x).x
    assert_same_bits(np.asarray(jax.grad(total)(jnp.asarray(x))), value + passed)


@pytest.mark.usefixtures("accelerator")
def test_they_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMEBITS_PALLAS", "0")
    fake = partial(_fake_quantized, catalog["int8_per_tensor"])
    text = lowered(lambda x: fake(x, jnp.float32(0.1), None, None, None), "cuda", jnp.ones((64, 256)))
    assert MARKS["cuda"] not in text
