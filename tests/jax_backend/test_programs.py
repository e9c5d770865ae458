"""jax_backend inside the programs of others: jit with more around it, vmap, grad, several devices; what is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import PerGroup, QParams, catalog
from samebits.proofs.inputs.compare import assert_same_bits, same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_jax, to_numpy

from ..exact import DTYPES

Array = NDArray[Any]
each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
each_name = pytest.mark.parametrize("name", ["int8_per_tensor", "uint8_affine_per_channel"])

SYMMETRIC = catalog["int8_per_tensor"]
AFFINE = catalog["uint8_affine_per_channel"]
LEARNED = SYMMETRIC.replace(rounding="ties_to_away", gradient="learned_scale")


def operands(dtype: str, rows: int = 64, seed: int = 0) -> tuple[Array, Array, Array]:
    """Half of x are ties, a few are special values; the rest of it and the other two are normal numbers."""
    rng, kind = np.random.default_rng(seed), DTYPES[dtype]
    x, v, w = rng.standard_normal((3, rows, 96))
    x = np.where(rng.random((rows, 96)) < 0.5, (rng.integers(-150, 150, x.shape) + 0.5) * 0.03, x).astype(kind)
    x[:1, :26] = special_values(kind)
    return x, v.astype(kind), w.astype(kind)


def parameters(name: str, rows: int = 64) -> QParams:
    """Of scale 0.03, as JAX arrays."""
    if not catalog[name].affine:
        return QParams(jnp.float32(0.03))
    return QParams(jnp.full((rows, 1), 0.03, jnp.float32), jnp.arange(rows, dtype=jnp.int32)[:, None] + 100)


def numbers(x: Array) -> Array:
    """Zeros for NaN."""
    return np.where(np.isnan(x), np.zeros_like(x), x)


# --- inside larger programs ------------------------------------------------------------------------------------------


def larger_program(q: Any, x: Any, v: Any, w: Any, given: QParams) -> dict[str, Any]:
    """What compilers like to fuse across our border: products and sums before and after."""
    room = jax_backend
    y, codes = room.fake_quantize(q, x, given), room.quantize(q, v * w, given)
    return {
        "then added to": y + w,
        "subtracted from": w - y,
        "then twice": room.fake_quantize(q, y + w, given) + v,
        "then narrowed and added to": y.astype(jnp.bfloat16) + w.astype(jnp.bfloat16),
        "then negated": -y,
        "of a product": room.fake_quantize(q, v * w, given),
        "of a sum": room.fake_quantize(q, v + w, given),
        "codes of a product": codes,
        "codes dequantized, added to": room.dequantize(q, codes, given, x.dtype) + w,
        "gradient at a product": room.fake_quantize_vjp(q, v * w, given, w).x,
    }


def by_core(q: Any, x: Array, v: Array, w: Array, given: QParams) -> dict[str, Array]:
    """`larger_program` in NumPy, whose every operation rounds."""
    y, codes = core.fake_quantize(q, x, given), core.quantize(q, v * w, given)
    half = DTYPES["bfloat16"]
    return {
        "then added to": y + w,
        "subtracted from": w - y,
        "then twice": core.fake_quantize(q, y + w, given) + v,
        "then narrowed and added to": y.astype(half) + w.astype(half),
        "then negated": -y,
        "of a product": core.fake_quantize(q, v * w, given),
        "of a sum": core.fake_quantize(q, v + w, given),
        "codes of a product": codes,
        "codes dequantized, added to": core.dequantize(q, codes, given, x.dtype) + w,
        "gradient at a product": core.fake_quantize_vjp(q, v * w, given, w).x,
    }


@each_dtype
@each_name
def test_inside_a_larger_program(name: str, dtype: str) -> None:
    """Compiled as a whole, and operation by operation."""
    q, (x, v, w), given = catalog[name], operands(dtype), parameters(name)
    with np.errstate(all="ignore"):
        want = by_core(q, x, v, w, QParams(*(p if p is None else np.asarray(p) for p in given[:2])))
    arrays = *map(to_jax, (x, v, w)), given
    with jax.disable_jit():
        eager = larger_program(q, *arrays)
    jitted = jax.jit(larger_program, static_argnums=0)(q, *arrays)
    for mode, got in (("eager", eager), ("jit", jitted)):
        for what, value in want.items():
            assert_same_bits(value, got[what], call=f"{name} {what}, {mode}", inputs=x)


@each_dtype
@each_name
def test_multiplied_and_added_to(name: str, dtype: str) -> None:
    """``fake_quantize(q, x) * w + b``: XLA may fuse that product and sum, never ours.

    So powers of two for w, whose products are exact, and arbitrary ones, of which the fused result is right as well.
    """
    q, (x, v, w), given = catalog[name], operands(dtype), parameters(name)
    y = core.fake_quantize(q, x, QParams(*(p if p is None else np.asarray(p) for p in given[:2])))
    program = jax.jit(lambda x, w, b: jax_backend.fake_quantize(q, x, given) * w + b)
    powers = (2.0 ** np.random.default_rng(0).integers(-4, 5, x.shape)).astype(x.dtype)
    assert_same_bits(y * powers + v, program(x, powers, v), inputs=x)
    got = to_numpy(program(x, w, v))
    wide = np.float64 if dtype == "float32" else np.float32
    fused = (y.astype(wide) * w.astype(wide) + v.astype(wide)).astype(x.dtype)
    chained = y * w + v
    same = (got == chained) | (got == fused) | (np.isnan(got) & np.isnan(chained))
    assert same.all()
    assert dtype != "bfloat16" or same_bits(chained, got)


def test_parameters_that_are_constants_of_the_program() -> None:
    """XLA folds constants, and turns a division by one into a product where it may."""
    x = operands("float32")[0]
    for scale in (0.03, 1 / 3, 2.0**-126):
        p = QParams(np.array(scale, np.float32))
        program = jax.jit(lambda v, p=p: jax_backend.fake_quantize(SYMMETRIC, v, p))
        assert_same_bits(core.fake_quantize(SYMMETRIC, x, p), program(x), inputs=x)
        constant = jax.jit(lambda p=p: jax_backend.fake_quantize(SYMMETRIC, jnp.asarray(x), p))
        assert_same_bits(core.fake_quantize(SYMMETRIC, x, p), constant(), inputs=x)


@each_dtype
def test_gradients_inside_a_training_step(dtype: str) -> None:
    """The gradient of x is that of core at the cotangent that reaches it, elementwise, and the scale learns."""
    (x, _, w), given = operands(dtype), QParams(jnp.float32(0.03))
    x = numbers(x)

    @jax.jit
    def step(x: Any, scale: Any, w: Any) -> Any:
        loss = lambda x, s: (jax_backend.fake_quantize(LEARNED, x, QParams(s)) * w).sum(dtype=jnp.float32)  # noqa: E731
        return jax.grad(loss, (0, 1))(x, scale)

    dx, d_scale = step(x, given.scale, w)
    want = core.fake_quantize_vjp(LEARNED, x, QParams(np.float32(0.03)), w)
    assert_same_bits(want.x, dx, inputs=x)
    np.testing.assert_allclose(np.asarray(d_scale), np.asarray(want.scale), rtol=1e-4)
    remat = jax.jit(jax.grad(jax.checkpoint(lambda x: (jax_backend.fake_quantize(SYMMETRIC, x, given) * w).sum())))
    assert_same_bits(core.fake_quantize_vjp(SYMMETRIC, x, QParams(np.float32(0.03)), w).x, remat(x), inputs=x)


def test_values_change_without_recompiling() -> None:
    traces = []

    def function(q: Any, x: Any, qparams: Any) -> Any:
        traces.append(q)
        chosen = jax_backend.choose_qparams(q, x)
        return jax_backend.fake_quantize(q, x, qparams), jax_backend.quantize(q, x, chosen)

    program = jax.jit(function, static_argnums=0)
    for seed in range(3):
        x = operands("float32", seed=seed)[1]
        for scale in (0.03, 2.0**-126, 3e30):
            p = QParams(np.full((), scale, np.float32))
            fake, codes = program(SYMMETRIC, x * np.float32(scale), p)
            assert_same_bits(core.fake_quantize(SYMMETRIC, x * np.float32(scale), p), fake)
            assert codes.dtype == np.int8
    assert len(traces) == 1
    program(SYMMETRIC.replace(), x, p)  # an equal description is the same static argument
    assert len(traces) == 1
    program(SYMMETRIC.replace(rounding="toward_zero"), x, p)
    assert len(traces) == 2


def test_functions_called_by_themselves_compile_once() -> None:
    """The functions compile themselves: a second call with other values compiles nothing."""
    q, p = SYMMETRIC.replace(bits=7), QParams(jnp.float32(0.1))
    sizes = []
    for seed in range(3):
        x = to_jax(operands("float32", seed=seed)[1])
        jax_backend.fake_quantize(q, x, p)
        jax_backend.quantize(q, x, p)
        sizes.append(jax_backend.quantizer._quantize._cache_size())  # type: ignore[attr-defined]
    assert sizes[0] == sizes[1] == sizes[2]


def test_compiled_code_gives_nan_where_eager_code_raises() -> None:
    @jax.jit
    def program(x: Any) -> tuple[Any, ...]:
        q, token = catalog["uint8_affine_per_tensor"], catalog["int8_affine_per_token"]
        given = QParams(jnp.float32(0.1), jnp.int32(7))
        chosen = jax_backend.choose_qparams(token, x)
        return jax_backend.quantize(q, x, given), chosen.scale, jax_backend.fake_quantize(token, x)

    x = np.array([[1.0, np.nan, -1.0], [1.0, 2.0, 3.0], [np.inf, 0.0, 1.0]], np.float32)
    codes, scale, y = program(x)
    assert codes.tolist() == [[17, 7, 0], [17, 27, 37], [255, 7, 17]]
    assert np.isnan(scale).flatten().tolist() == [True, False, True]
    assert_same_bits(core.fake_quantize(catalog["int8_affine_per_token"], x[1:2]), y[1:2])
    assert np.isnan(np.asarray(y)[[0, 2]]).all()
    with pytest.raises(ValueError, match="`x` must not hold NaN for quantize"):
        jax_backend.quantize(SYMMETRIC, x, QParams(jnp.float32(0.1)))


# --- vmap -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "q", [SYMMETRIC, AFFINE, catalog["uint4_affine_per_group32"]], ids=lambda q: str(q.granularity)
)
def test_vmap_is_a_loop(q: Any) -> None:
    xs = np.random.default_rng(0).standard_normal((5, 8, 32)).astype(np.float32)

    def functions(x: Any) -> Any:
        chosen = jax_backend.choose_qparams(q, x)
        return *chosen[:2], jax_backend.quantize(q, x, chosen), jax_backend.fake_quantize(q, x)

    each = [functions(x) for x in xs]
    for axis in (0, 1):
        batched = jax.jit(jax.vmap(functions, axis))(np.moveaxis(xs, 0, axis))
        for want, got in zip(zip(*each, strict=True), batched, strict=True):
            assert (got is None) == (want[0] is None)
            if got is not None:
                assert_same_bits(np.stack(want), got)


def test_vmap_over_scales_and_over_gradients() -> None:
    """Among the scales one so small that subnormal x count: a batch of branches must take each its own."""
    x = operands("float32")[0]
    scales = np.array([0.03, 2.0**-126, 1 / 3, 2.0**-100, 3e30], np.float32)
    xs = np.stack([numbers(x) * min(s, np.float32(1)) for s in scales]).astype(np.float32)
    xs[:, 0, :20] = np.linspace(-1e-38, 1e-38, 20)

    def scaled(x: Any, s: Any) -> Any:
        y, pull = jax.vjp(lambda x: jax_backend.fake_quantize(SYMMETRIC, x, QParams(s)), x)
        return y, pull(jnp.ones_like(x))[0]

    for mapped, axes in ((xs, (0, 0)), (xs[1], (None, 0)), (xs[1], (None, 0))):
        got = jax.vmap(scaled, axes)(mapped, scales)
        for i, s in enumerate(scales):
            row, p = mapped[i] if axes[0] == 0 else mapped, QParams(s)
            assert_same_bits(core.fake_quantize(SYMMETRIC, row, p), got[0][i], inputs=row)
            assert_same_bits(core.fake_quantize_vjp(SYMMETRIC, row, p, np.ones_like(row)).x, got[1][i], inputs=row)


# --- several devices --------------------------------------------------------------------------------------------------

SHARDED = ("int8_per_tensor", "uint8_affine_per_channel", "int8_affine_per_token", "uint4_affine_per_group32")


def test_two_devices_have_the_bits_of_one() -> None:
    """In a process of its own, since JAX counts its devices once."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    run = subprocess.run(
        [sys.executable, "-m", "tests.jax_backend.test_programs"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [f"{name}/{spec}" for name in SHARDED for spec in ("rows", "columns")]


def _compare_devices() -> None:
    """Arrays split by rows and by columns over two devices, against core; prints what was compared."""
    devices = jax.devices()
    assert len(devices) == 2, devices
    mesh = Mesh(np.array(devices), ("half",))
    x, _, g = operands("float32")
    x = numbers(np.where(np.isinf(x), 0, x)).astype(np.float32)
    for name in SHARDED:
        q = catalog[name]
        qparams = core.choose_qparams(q, x)
        d = core.fake_quantize_vjp(q, x, qparams, g)
        terms = core.fake_quantize_vjp(q.replace(granularity=PerGroup(1)), x, _shared(q, qparams, x), g).scale

        @jax.jit
        def program(x: Any, g: Any, q: Any = q) -> Any:
            chosen = jax_backend.choose_qparams(q, x)
            y, pull = jax.vjp(lambda x, s: jax_backend.fake_quantize(q, x, QParams(s, chosen.zero_point)), x, chosen[0])
            return chosen[:2], jax_backend.quantize(q, x, chosen), y, pull(g)

        for spec, axes in (("rows", PartitionSpec("half")), ("columns", PartitionSpec(None, "half"))):
            parts = [jax.device_put(a, NamedSharding(mesh, axes)) for a in (x, g)]
            chosen, codes, y, (dx, d_scale) = program(*parts)
            assert all(len(a.sharding.device_set) == 2 for a in (*parts, y, codes, dx))
            assert not y.sharding.is_fully_replicated
            assert_same_bits(tuple(qparams[:2]), tuple(chosen), call=f"{name}, {spec}: parameters")
            assert_same_bits(core.quantize(q, x, qparams), codes, call=f"{name}, {spec}: codes", inputs=x)
            assert_same_bits(core.fake_quantize(q, x, qparams), y, call=f"{name}, {spec}: values", inputs=x)
            assert_same_bits(d.x, dx, call=f"{name}, {spec}: gradient", inputs=x)
            slack = 64 * 3 * 2.0**-24 * core.ste.block_sum(np.abs(terms), q.granularity) + 1e-30
            assert np.all(np.abs(np.asarray(d_scale) - d.scale) <= slack)
            print(f"{name}/{spec}")


def _shared(q: Any, qparams: QParams, x: Array) -> QParams:
    """Parameters for every element."""
    parts = (p if p is None else core.blocks.expand_blocks(np.asarray(p), q.granularity, x.shape) for p in qparams[:2])
    return QParams(*parts)


# --- what is refused --------------------------------------------------------------------------------------------------

GOOD = QParams(np.float32(0.1))
ROWS = np.ones((2, 3), np.float32)
HALF = np.full((2, 1), 0.5, np.float32)
REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "no quantizer": (TypeError, "`q` must be a Quantizer", lambda f: f.fake_quantize("int8_per_tensor", ROWS)),
    "integers": (TypeError, "`x` must have dtype float32, .*got bool", lambda f: f.fake_quantize(SYMMETRIC, ROWS > 0)),
    "shape": (
        ValueError,
        r"`qparams.scale` must have shape \(\) \(per tensor, x of shape \(2, 3\)\), got \(2, 1\)",
        lambda f: f.quantize(SYMMETRIC, ROWS, QParams(HALF)),
    ),
    "zero": (
        ValueError,
        "positive normal finite numbers, got 0.0",
        lambda f: f.fake_quantize(SYMMETRIC, ROWS, QParams(np.float32(0))),
    ),
    "subnormal": (
        ValueError,
        r"positive normal finite numbers, got 1e-40 at index \(1, 0\)",
        lambda f: f.quantize(AFFINE, ROWS, QParams(np.array([[1], [1e-40]], np.float32), HALF * 0)),
    ),
    "range": (
        ValueError,
        r"`qparams.zero_point` must hold integers in \[0, 255\], got 256",
        lambda f: f.quantize(AFFINE, ROWS, QParams(HALF, np.full((2, 1), 256, np.int32))),
    ),
    "NaN": (ValueError, "`x` must not hold NaN for quantize", lambda f: f.quantize(SYMMETRIC, ROWS * np.nan, GOOD)),
    "NaN chosen": (ValueError, "`x` must be finite", lambda f: f.fake_quantize(SYMMETRIC, ROWS * np.nan)),
    "infinity": (ValueError, "`x` must be finite", lambda f: f.choose_qparams(AFFINE, ROWS * np.inf)),
    "codes": (
        TypeError,
        "`codes` of int8 must have dtype int8, got float32",
        lambda f: f.dequantize(SYMMETRIC, ROWS, GOOD),
    ),
    "cotangent": (
        ValueError,
        r"`g` must have the shape of x, \(2, 3\), got \(1, 3\)",
        lambda f: f.fake_quantize_vjp(SYMMETRIC, ROWS, GOOD, ROWS[:1]),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    error, message, call = REFUSED[case]
    with pytest.raises(error, match=message):
        call(jax_backend)


if __name__ == "__main__":
    _compare_devices()
