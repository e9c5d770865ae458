"""Linear and convolution layers of jax_backend as functions, beside core: values, bounds, gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import QParams, Quantizer, catalog
from samebits.core.contraction import contracts_codes
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy

from ..exact import DTYPES

Array = NDArray[Any]
INPUTS = ("int8_per_tensor", "uint8_per_tensor", "uint8_affine_per_tensor", "int8_affine_per_token", "int16_per_tensor")
WEIGHTS = ("int8_per_channel", "int4_per_channel", "uint8_affine_per_channel", "int16_per_tensor", "int2_per_channel")
PAIRS = list(zip(INPUTS, WEIGHTS, strict=True))
AFFINE = ("uint8_affine_per_tensor", "uint8_affine_per_channel")


def random(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


def operands(names: tuple[str, str], shapes: tuple[Any, Any], dtype: str, special: bool) -> tuple[Any, ...]:
    """Quantizers, arrays, parameters and a bias; with ``special`` NaN, infinities and -0.0 in both arrays."""
    rng, (q_x, q_w) = np.random.default_rng(0), (catalog[name] for name in names)
    x, w = (rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes)
    x_qparams, w_qparams = core.choose_qparams(q_x, x), core.choose_qparams(q_w, w)
    if special:
        for array in (x, w):
            flat = array.reshape(-1)
            flat[rng.permutation(flat.size)[:4]] = [np.nan, np.inf, -np.inf, -0.0]
        x.reshape(-1)[-shapes[0][-1] :] = 0.5  # some outputs stay numbers
    bias = rng.standard_normal(len(w)).astype(np.float32)
    bias[:1] = -0.0
    return q_x, x, x_qparams, q_w, w, w_qparams, bias


def assert_same_layer(name: str, operands: tuple[Any, ...], *geometry: Any, eager: bool = False) -> None:
    """A layer against core: with its bias jitted, without it by itself, and op by op when asked for."""
    (q_x, x, _), (q_w, w, _), bias = operands[:3], operands[3:6], operands[6]
    function = getattr(jax_backend, name)
    with np.errstate(all="ignore"):
        want = [getattr(core, name)(*operands[:6], b, *geometry) for b in (None, bias)]
    given = [QParams(*(None if p is None else to_jax(np.array(p)) for p in qparams[:2])) for qparams in operands[2:6:3]]

    @jax.jit
    def both(x: Any, w: Any, x_qparams: Any, w_qparams: Any, b: Any) -> tuple[Any, Any]:
        parts = q_x, x, x_qparams, q_w, w, w_qparams
        return function(*parts, None, *geometry), function(*parts, b, *geometry)

    for mode in ("jit", "eager") if eager else ("jit",):
        with jax.disable_jit(mode == "eager"):
            got = both(to_jax(x), to_jax(w), *given, bias)
        assert_same_bits(tuple(want), got, call=f"{name}, {mode}, {q_x}, {q_w}")


# --- functions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_linear(names: tuple[str, str]) -> None:
    assert_same_layer("linear", operands(names, ((7, 64), (5, 64)), "float32", True), eager=True)
    assert_same_layer("linear", operands(names, ((2, 3, 1500), (4, 1500)), "bfloat16", False))


@pytest.mark.parametrize("names", [pair for pair in PAIRS if "token" not in pair[0]], ids="-".join)
def test_conv(names: tuple[str, str]) -> None:
    assert_same_layer("conv", operands(names, ((1, 130, 5, 4), (4, 130, 3, 1)), "float32", False), (2, 1), (0, 2))
    assert_same_layer("conv", operands(names, ((2, 3, 8, 9), (5, 3, 3, 3)), "float16", True), (1, 1), (1, 1))


def test_layers_without_inputs_outputs_or_rows() -> None:
    for lead, k, out in (((), 33, 4), ((0,), 8, 3), ((3,), 0, 3), ((4,), 1, 3)):
        case = operands(("int8_per_tensor", "int8_per_channel"), ((*lead, k), (out, k)), "float32", False)
        assert_same_layer("linear", case)


def test_long_contractions_are_exact() -> None:
    """Largest codes everywhere: 2**24 is passed, so parts have to add up to the integer."""
    for name, k in (("int8_per_tensor", 3000), ("uint8_affine_per_tensor", 3000), ("int16_per_tensor", 700)):
        q, q_w = catalog[name], catalog["int8_per_channel"]
        x = np.where(np.arange(4 * k).reshape(4, k) % 7 < 6, 1e9, -1e9).astype(np.float32)
        qparams = QParams(np.array(0.1, np.float32), np.array(q.format.lo, np.int32) if q.affine else None)
        for kind, shape in (("linear", (4, k)), ("conv", (4, k, 1, 1))):
            w_qparams = QParams(np.full((4, *(1 for _ in shape[1:])), 0.1, np.float32))
            array = x.reshape(shape)
            assert_same_layer(kind, (q, array, qparams, q_w, array, w_qparams, np.zeros(4, np.float32)))


def test_sums_with_a_bias_are_kept_where_they_are_subnormal() -> None:
    """XLA's addition would make them 0: 3 - 2.5 times the smallest normal number, and 0 with a subnormal bias."""
    q_x, q_w = catalog["int8_per_tensor"], catalog["int8_per_channel"]
    for size, bias in ((2.0**-70, -2.5 * 2.0**-126), (2.0**-5, 2.0**-130)):
        x, w = np.array([[size, 2 * size], [0, 0]], np.float32), np.full((3, 2), size, np.float32)
        given = [QParams(np.full(shape, size, np.float32)) for shape in ((), (3, 1))]
        case = q_x, x, given[0], q_w, w, given[1], np.full(3, bias, np.float32)
        assert 0 < np.abs(core.linear(*case)).min() < 2.0**-126
        assert_same_layer("linear", case)


def test_scales_that_vary_along_the_contraction_keep_the_bound() -> None:
    names = ("int8_per_tensor", "int4_per_group32")
    assert not contracts_codes(*(catalog[name] for name in names), per_token=True)
    q_x, x, x_qparams, q_w, w, w_qparams, bias = operands(names, ((9, 256), (6, 256)), "float32", False)
    x_hat, w_hat = core.fake_quantize(q_x, x, x_qparams), core.fake_quantize(q_w, w, w_qparams)
    sum64 = x_hat.astype(np.float64) @ w_hat.astype(np.float64).T + bias
    got = jax_backend.linear(q_x, x, x_qparams, q_w, w, w_qparams, bias)
    bound = jax_backend.contraction_bound(to_jax(x_hat), to_jax(w_hat), to_jax(bias))
    np.testing.assert_allclose(bound, core.contraction_bound(x_hat, w_hat, bias), rtol=1e-3)
    assert np.all(np.abs(to_numpy(got) - sum64) <= to_numpy(bound))


def test_inside_a_larger_program_and_for_every_batch_size() -> None:
    """One row at a time, 256 at once, vmap, and the bias added outside: the same bits of the same layer."""
    case = operands(("uint8_affine_per_tensor", "int8_per_channel"), ((256, 96), (10, 96)), "float32", False)
    q_x, x, x_qparams, q_w, w, w_qparams, bias = case
    want = core.linear(*case)

    @jax.jit
    def layer(x: Any) -> Any:
        return jax_backend.linear(q_x, x, x_qparams, q_w, w, w_qparams, bias)

    assert_same_bits(want, layer(x))
    assert_same_bits(want[:20], np.concatenate([layer(row) for row in x[:20, None]]))
    assert_same_bits(want, jax.jit(jax.vmap(layer))(x))
    plain = jax.jit(lambda x: jax_backend.linear(q_x, x, x_qparams, q_w, w, w_qparams) + bias[None])
    assert_same_bits(core.linear(*case[:6]) + bias, plain(x))


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Array, Array, QParams], Any]]] = {
    "axes of w": (ValueError, r"`w` must have 2 axes, got shape \(8,\)", lambda x, w, p: (x, p, w[0])),
    "features": (
        ValueError,
        r"`x` must fit `w` of shape \(4, 8\), got shape \(3, 7\)",
        lambda x, w, p: (x[:, 1:], p, w),
    ),
    "dtypes": (
        TypeError,
        "`w` must have the dtype of `x`, float32, got float16",
        lambda x, w, p: (x, p, w.astype(np.float16)),
    ),
    "bias": (
        ValueError,
        r"`bias` must have shape \(4,\), got \(3,\)",
        lambda x, w, p: (x, p, w, np.zeros(3, np.float32)),
    ),
    "scale": (ValueError, "positive normal finite", lambda x, w, p: (x, QParams(p.scale * 0), w)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_linear_refuses(case: str) -> None:
    error, message, arguments = REFUSED[case]
    x, given, w, *bias = arguments(np.ones((3, 8), np.float32), np.ones((4, 8), np.float32), QParams(np.float32(0.1)))
    w_qparams = QParams(np.full((4, 1), 0.1, np.float32))
    with pytest.raises(error, match=message):
        jax_backend.linear(catalog["int8_per_tensor"], x, given, catalog["int8_per_channel"], w, w_qparams, *bias)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("names", [("int8_per_tensor", "int8_per_channel"), AFFINE], ids="-".join)
def test_gradients_are_those_of_dequantized_operands(kind: str, names: tuple[str, str]) -> None:
    """Of x, w, scales, zero points and bias, against fake quantization before a float contraction."""
    q_x, q_w = (catalog[name].replace(gradient="learned_scale") for name in names)
    shapes = ((2, 3, 64), (10, 64)) if kind == "linear" else ((2, 5, 8, 32), (6, 5, 3, 3))
    x, w, bias = random(*shapes[0]), random(*shapes[1], seed=1), random(shapes[1][0])
    geometry: Any = () if kind == "linear" else ((2, 1), (1, 0))
    leaves = [(a, *_learnable(core.choose_qparams(q, a))) for q, a in ((q_x, x), (q_w, w))]

    def ours(leaves: Any, bias: Any) -> Any:
        (x, *p), (w, *r) = leaves
        return getattr(jax_backend, kind)(q_x, x, QParams(*p), q_w, w, QParams(*r), bias, *geometry)

    def textbook(leaves: Any, bias: Any) -> Any:
        hats = [jax_backend.fake_quantize(q, a, QParams(*p)) for q, (a, *p) in zip((q_x, q_w), leaves, strict=True)]
        if kind == "linear":
            return hats[0] @ hats[1].T + jnp.expand_dims(bias, tuple(range(hats[0].ndim - 1)))
        pads = [(n, n) for n in geometry[1]]
        return jax.lax.conv_general_dilated(*hats, geometry[0], pads) + bias[None, :, None, None]

    both = [jax.jit(lambda g, f=f: jax.vjp(f, leaves, bias)[1](g)) for f in (ours, textbook)]
    g = random(*jax.eval_shape(ours, leaves, bias).shape, seed=2)
    for got, want in zip(*(jax.tree.leaves(pull(g)) for pull in both), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * float(np.abs(want).max()))


@pytest.mark.parametrize(("dtype", "x64"), [(d, x64) for d in DTYPES for x64 in (False, True) if x64 or d != "float64"])
def test_gradients_in_every_dtype_and_of_no_rows(dtype: str, x64: bool) -> None:
    """Beside core, by scales of a power of two, which make the sums exact; some elements are clamped."""
    q_x, q_w = catalog["int8_per_tensor"], catalog["int8_per_channel"]
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    x_qparams, w_qparams = QParams(np.full((), 2.0**-7, wide)), QParams(np.full((7, 1), 2.0**-7, wide))

    def ours(x: Any, w: Any) -> Any:
        return jax_backend.linear(q_x, x, x_qparams, q_w, w, w_qparams)

    def expected(x: Array, w: Array, g: Array) -> tuple[Array, ...]:
        """Each contraction is exact in float64, and rounded once."""
        rows = [(q_x, x, x_qparams), (q_w, w, w_qparams)]
        x_hat, w_hat = (np.atleast_2d(core.fake_quantize(*row)).astype(np.float64) for row in rows)
        wide_g = np.atleast_2d(g).astype(np.float64)
        sums = (wide_g @ w_hat).reshape(x.shape), wide_g.T @ x_hat
        return tuple(core.fake_quantize_vjp(*row, d.astype(x.dtype)).x for row, d in zip(rows, sums, strict=True))

    with jax.enable_x64(x64):
        for shape in ((3, 64), (0, 64), (3, 0), (64,)) if dtype == "float32" and not x64 else ((3, 64),):
            x, w = random(*shape, dtype=dtype), random(7, shape[-1], seed=1, dtype=dtype)
            g = np.ones((*shape[:-1], 7), DTYPES[dtype])
            g[..., :3] = 3
            got = jax.vjp(ours, to_jax(x), to_jax(w))[1](to_jax(g))
            assert_same_bits(expected(x, w, g), got, call=f"gradients of x and w, {dtype}, {shape}")


def _learnable(qparams: QParams) -> tuple[Any, Any]:
    """Parameters in floating point, the scale small enough that some elements are clamped."""
    zero = None if qparams.zero_point is None else qparams.zero_point.astype(np.float32)
    return np.asarray(qparams.scale * np.float32(0.8)), zero


def test_pairs_of_the_tests_contract_codes() -> None:
    every: list[tuple[Quantizer, Quantizer]] = [(catalog[a], catalog[b]) for a, b in PAIRS]
    assert all(contracts_codes(q_x, q_w, per_token=True) for q_x, q_w in every)


# --- memory ----------------------------------------------------------------------------------------------------------


def memory_of_gradients(layer: Callable[[Any, Any], Any], batch: int, width: int, layers: int) -> int:
    """Bytes of temporary memory of the gradients of a network, towards its weights."""

    def loss(weights: list[Any], x: Any) -> Any:
        for w in weights:
            x = jax.nn.relu(layer(x, w))
        return (x**2).sum()

    weights, x = [to_jax(random(width, width, seed=i)) for i in range(layers)], to_jax(random(batch, width))
    analysis: Any = jax.jit(jax.grad(loss)).lower(weights, x).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def test_gradients_keep_no_codes() -> None:
    q_x, q_w = catalog["int8_per_tensor"], catalog["int8_per_channel"]
    scales = QParams(to_jax(np.array(0.05, np.float32))), QParams(to_jax(np.full((128, 1), 0.05, np.float32)))

    def quantized(x: Any, w: Any) -> Any:
        return jax_backend.linear(q_x, x, scales[0], q_w, w, scales[1])

    for batch in (32, 512):  # mostly weights, mostly activations
        floating = memory_of_gradients(lambda x, w: x @ w.T, batch, 128, 12)
        assert memory_of_gradients(quantized, batch, 128, 12) < 1.2 * floating


def test_a_batch_of_cotangents_shares_the_codes() -> None:
    q_x, q_w = catalog["int8_per_tensor"], catalog["int8_per_channel"]
    x, w, g = to_jax(random(3, 5)), to_jax(random(7, 5)), to_jax(random(11, 3, 7))
    parts = q_x, jax_backend.choose_qparams(q_x, x), q_w, w, jax_backend.choose_qparams(q_w, w)
    _, pull = jax.vjp(lambda x: jax_backend.linear(parts[0], x, *parts[1:]), x)
    program = str(jax.make_jaxpr(jax.vmap(pull))(g))
    assert "f32[7,5] = div" in program
    assert "f32[11,7,5] = div" not in program
    each = np.stack([to_numpy(pull(one)[0]) for one in g])
    np.testing.assert_allclose(to_numpy(jax.vmap(pull)(g)[0]), each, rtol=1e-5, atol=1e-6)  # sums of floats
