"""Forward mode: `jax.jvp`, `jax.jacfwd`, `jax.hessian`. Element for element what the reverse pass has before its sums.

Expected values are those of core: the gradient of x, and the terms that the gradients of scale and zero point are sums
of, which are the gradients of a quantizer with one scale per element.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import QParams, Quantizer, catalog
from samebits.core import straight_through as core_rules
from samebits.core.bit_width import range_slopes
from samebits.core.blocks import expand_blocks
from samebits.core.granularity import PerGroup
from samebits.core.learned_sigma import sigma_gradient
from samebits.core.rounding import round_to_integer
from samebits.core.ste import learned_scale_factor
from samebits.jax_backend import nn, straight_through
from samebits.jax_backend.learned_sigma import scale_at_sigma
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_jax

Array = NDArray[Any]
SHAPE = (32, 128)
INT8, CHANNEL, AFFINE = (catalog[f"{n}"] for n in ("int8_per_tensor", "int8_per_channel", "uint8_affine_per_channel"))
OTHERS = {
    "pass through": CHANNEL.replace(gradient="pass_through"),
    "clipped quotient": CHANNEL.replace(gradient="clipped_quotient"),
    "learned clip": catalog["uint8_per_tensor"].replace(gradient="learned_clip"),
    "learned scale": AFFINE.replace(gradient="learned_scale"),
    "stochastic": CHANNEL.replace(rounding="stochastic"),
    "learned rounding": CHANNEL.replace(rounding="learned"),
    "float zeros": catalog["uint4_affine_float_zero_per_group64"],
    "directed": CHANNEL.replace(rounding="toward_positive"),
}
QUANTIZERS = {**catalog, **OTHERS}
MODES = ("disable_jit", "by itself", "jit")


def data(q: Quantizer, dtype: Any = np.float32) -> tuple[Array, QParams, Array]:
    """Numbers with special ones and some beyond the range, half the scale that they would have, and tangents."""
    rng = np.random.default_rng(0)
    x, move = rng.standard_normal((2, *SHAPE)).astype(dtype)
    chosen = core.choose_qparams(q, x)
    qparams = QParams(chosen.scale * np.float32(0.5), chosen.zero_point)
    special = special_values(np.dtype(dtype))
    x.reshape(-1)[: len(special)] = special
    if q.rounding == "learned":
        qparams = qparams._replace(rounding=rng.standard_normal(SHAPE).astype(np.float32))
    return x, qparams, move


def each_mode(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The function op by op, by itself, and jitted."""

    def eager(*operands: Any) -> Any:
        with jax.disable_jit():
            return function(*operands)

    return {"disable_jit": eager, "by itself": function, "jit": jax.jit(function)}


def moved(function: Callable[..., Any], operands: list[Any], moves: list[Any], mode: str) -> list[Any]:
    """The tangent along each operand alone, in a mode; jitted all in one program, with an addition behind each.

    The addition is one to be contracted with what comes before.
    """

    def along(i: int, operand: Any, move: Any, function: Callable[..., Any]) -> Any:
        return jax.jvp(lambda o: function(*operands[:i], o, *operands[i + 1 :]), (operand,), (move,))[1]

    if mode != "jit":
        return [along(i, *pair, each_mode(function)[mode]) for i, pair in enumerate(zip(operands, moves, strict=True))]

    @jax.jit
    def program(given: Any, moves: Any, b: Any) -> Any:
        return [along(i, *pair, function) + b for i, pair in enumerate(zip(given, moves, strict=True))]

    return program(operands, moves, jnp.zeros(SHAPE, np.float32) - 0.0)


def terms_of_sums(x: Any) -> Array:
    """Zeros have no sign, and what a subnormal number made may count as zero (see `kernels.by_scale`), as in sums."""
    x = np.asarray(x)
    return np.where(np.abs(x).astype(np.float32) < 2.0**-60, np.zeros_like(x), x)


# By itself, a tangent is the program that it is inside another one; so a few of each kind.
BY_ITSELF = (
    *OTHERS,
    *("int8_per_tensor", "uint8_affine_per_channel", "int8_affine_per_token", "uint4_affine_per_group32"),
    *("binary_per_tensor", "ternary_per_channel", "float8_e4m3fn_per_tensor", "mxfp4_e2m1", "nvfp4", "nf4_per_group64"),
)
CASES = [(n, mode) for n in QUANTIZERS for mode in MODES if mode != "by itself" or n in BY_ITSELF]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_x_and_parameters(name: str, mode: str) -> None:
    q = QUANTIZERS[name]
    x, qparams, move = data(q)
    scale = np.asarray(qparams.scale)
    operands, moves = [x, scale], [move, np.ones_like(scale)]
    if qparams.zero_point is not None:
        operands.append(np.asarray(qparams.zero_point, np.float32))
        moves.append(np.ones_like(scale))

    def fake(x: Any, s: Any, z: Any = None) -> Any:
        return jax_backend.fake_quantize(q, x, qparams._replace(scale=s, zero_point=z))

    with np.errstate(all="ignore"):
        want, terms = core.fake_quantize_vjp(q, x, qparams, move), of_elements(q, x, qparams)
        got = moved(fake, operands, moves, mode)
        expected = want.x + np.float32(0) if mode == "jit" else want.x
    assert_same_bits(expected, got[0], call=f"{name}, {mode}: x", inputs=x)
    for part, of_sum, tangent in zip(("scale", "zero point"), (terms.scale, terms.zero_point), got[1:], strict=False):
        call = f"{name}, {mode}: {part}"
        assert_same_bits(terms_of_sums(of_sum), terms_of_sums(tangent), call=call, inputs=x)


def of_elements(q: Quantizer, x: Array, qparams: QParams) -> Any:
    """The terms that the gradients of scale and zero point are sums of, of an incoming gradient of 1."""
    scale, zero = (p if p is None else expand_blocks(np.asarray(p), q.granularity, x.shape) for p in qparams[:2])
    alone = q.replace(granularity=PerGroup(1))
    factor = np.float32(learned_scale_factor(q, int(np.prod(q.granularity.block_size(x.shape)))))
    if q.gradient == "learned_scale":  # whose factor depends on the size of the block
        alone = alone.replace(gradient="clipped")
    terms = core.fake_quantize_vjp(alone, x, qparams._replace(scale=scale, zero_point=zero), np.ones_like(x))
    d_zero = None if terms.zero_point is None else terms.zero_point * factor
    return terms._replace(scale=terms.scale * factor, zero_point=d_zero)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["int8_per_channel", "uint4_affine_per_group32", "mxfp4_e2m1", "nf4_per_group64"])
def test_16_bits(name: str, dtype: str) -> None:
    """Terms in float32, rounded to the dtype of x at the end."""
    q = catalog[name]
    x, qparams, move = data(q, jnp.dtype(dtype))
    scale = np.asarray(qparams.scale)
    with np.errstate(all="ignore"):
        want = core.fake_quantize_vjp(q, x, qparams, move).x
        terms = of_elements(q, x, qparams).scale.astype(x.dtype)
    for mode, function in each_mode(lambda x, s: jax_backend.fake_quantize(q, x, qparams._replace(scale=s))).items():
        got = jax.jvp(lambda x, f=function: f(x, scale), (to_jax(x),), (to_jax(move),))[1]
        assert_same_bits(want, got, call=f"{name}, {mode}: x", inputs=x)
        got = jax.jvp(lambda s, f=function: f(to_jax(x), s), (scale,), (np.ones_like(scale),))[1]
        assert_same_bits(terms_of_sums(terms), terms_of_sums(got), call=f"{name}, {mode}: scale", inputs=x)


def test_all_at_once() -> None:
    """The sum of what each adds, every addition rounded: nothing is contracted."""
    x, qparams, move = data(AFFINE)
    zero, ones = np.asarray(qparams.zero_point, np.float32), np.ones_like(qparams.scale)

    def fake(x: Any, s: Any, z: Any) -> Any:
        return jax_backend.fake_quantize(AFFINE, x, QParams(s, z))

    operands, moves = (x, np.asarray(qparams.scale), zero), (move, np.float32(0.3) * ones, np.float32(0.7) * ones)
    parts = [
        np.asarray(jax.jvp(lambda o, i=i: fake(*operands[:i], o, *operands[i + 1 :]), (operands[i],), (moves[i],))[1])
        for i in range(3)
    ]
    with np.errstate(all="ignore"):
        want = (parts[0] + parts[1]) + parts[2]
    for mode, function in each_mode(fake).items():
        assert_same_bits(want, jax.jvp(function, operands, moves)[1], call=mode, inputs=x)


@pytest.mark.parametrize("name", ["int8_per_channel", "uint8_affine_per_channel", "mxfp4_e2m1"])
def test_an_addition_behind_it(name: str) -> None:
    """The last product of a tangent is rounded before anything is added; also where x or the tangent is a constant."""
    q = catalog[name]
    x, qparams, _ = data(q)
    x = np.where(np.isfinite(x), x, 1).astype(np.float32)
    b = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    scale = np.asarray(qparams.scale)
    move = np.full_like(scale, 0.7)
    with np.errstate(all="ignore"):
        want = np.float32(0.7) * of_elements(q, x, qparams).scale + b

    def along(x: Any, s: Any, d: Any, b: Any) -> Any:
        return jax.jvp(lambda s: jax_backend.fake_quantize(q, x, qparams._replace(scale=s)), (s,), (d,))[1] + b

    assert_same_bits(want, jax.jit(along)(x, scale, move, b), call="arguments", inputs=x)
    assert_same_bits(want, jax.jit(lambda s, d, b: along(x, s, d, b))(scale, move, b), call="x", inputs=x)
    assert_same_bits(want, jax.jit(lambda x, s, b: along(x, s, move, b))(x, scale, b), call="tangent", inputs=x)
    assert_same_bits(want, jax.jit(lambda d, b: along(x, scale, d, b))(move, b), call="x and scale", inputs=x)


def test_width_and_learned_rounding() -> None:
    q = catalog["int8_learned_per_tensor"]
    x, qparams, _ = data(q)
    terms, scale, width = np.ones_like(x), np.asarray(qparams.scale), np.float32(5)
    slope = np.float32(range_slopes(q, width)[1])
    with np.errstate(all="ignore"):
        codes = round_to_integer(x / scale, q.rounding)
        terms = np.where(codes > 15, scale, np.where(codes < -16, -scale, 0)).astype(np.float32) * slope
    fake = jax.jit(lambda w: jax_backend.fake_quantize(q, x, QParams(scale, bit_width=w)))
    got = jax.jvp(fake, (width,), (np.float32(1),))[1]
    assert_same_bits(terms_of_sums(terms), terms_of_sums(got), call="bit width", inputs=x)

    q = OTHERS["learned rounding"]
    x, qparams, move = data(q)
    want = core.fake_quantize_vjp(q, x, qparams, move).rounding
    for mode, f in each_mode(lambda v: jax_backend.fake_quantize(q, x, qparams._replace(rounding=v))).items():
        got = jax.jvp(f, (qparams.rounding,), (move,))[1]
        assert_same_bits(terms_of_sums(want), terms_of_sums(got), call=f"learned rounding, {mode}", inputs=x)


@pytest.mark.parametrize("mode", MODES)
def test_straight_through_functions(mode: str) -> None:
    x, _, g = data(INT8)
    lo, hi = np.full(SHAPE, -0.5, np.float32), np.full(SHAPE, 0.5, np.float32)
    one = np.float32(1)
    rules: dict[str, Callable[[Any], Any]] = {
        "round_ste": straight_through.round_ste,
        "tensor_clamp_ste": lambda x: straight_through.tensor_clamp_ste(x, lo, hi),
        "binary_sign_ste": straight_through.binary_sign_ste,
        "ternary_sign_ste": straight_through.ternary_sign_ste,
        "signed_clamp_min_ste": lambda x: straight_through.signed_clamp_min_ste(x, one),
    }
    for name, rule in rules.items():
        assert_same_bits(g, jax.jvp(each_mode(rule)[mode], (x,), (g,))[1], call=name, inputs=x)
    rule = each_mode(straight_through.abs_binary_sign_grad)[mode]
    want = core_rules.abs_binary_sign_grad_vjp(x, g)
    assert_same_bits(want, jax.jvp(rule, (x,), (g,))[1], call="abs_binary_sign_grad", inputs=x)
    clamp = each_mode(straight_through.tensor_clamp)[mode]
    with np.errstate(all="ignore"):
        wants = core_rules.tensor_clamp_vjp(x, lo, hi, g)
    for i, want in enumerate(wants):
        moves = [g if i == k else np.zeros_like(g) for k in range(3)]
        got = jax.jvp(clamp, (x, lo, hi), tuple(moves))[1]
        assert_same_bits(want, got, call=f"tensor_clamp, {i}", inputs=x)


def test_second_derivatives() -> None:
    """The coefficients of the derivative count as constants: the loss alone bends."""
    x, qparams, _ = data(CHANNEL)
    x = np.where(np.isfinite(x) & (np.abs(x) < 100), x, 1).astype(np.float32)[:2, :16]
    scale = np.asarray(qparams.scale)[:2]
    mask = core.fake_quantize_vjp(CHANNEL, x, QParams(scale), np.ones_like(x)).x

    def loss(x: Any, s: Any) -> Any:
        return jnp.sum(jax_backend.fake_quantize(CHANNEL, x, QParams(s)) ** 2)

    want = np.zeros((*x.shape, *x.shape), np.float32)
    np.einsum("abab->ab", want)[...] = 2 * mask
    for again in (jax.jacfwd, jax.jacrev):
        for first in (jax.jacfwd, jax.jacrev):
            for function in (loss, jax.jit(loss)) if (again, first) == (jax.jacfwd, jax.jacrev) else (loss,):
                assert_same_bits(want, again(first(function))(x, scale), call=f"{again.__name__} of {first.__name__}")
    slope = of_elements(CHANNEL, x, QParams(scale)).scale.astype(np.float64)
    curvature = np.asarray(jax.hessian(loss, 1)(x, scale)).reshape(2, 2)
    assert np.allclose(np.diag(curvature), 2 * np.sum(slope**2, 1), rtol=1e-5)
    assert curvature[0, 1] == curvature[1, 0] == 0
    plain = 2 * mask * slope
    mixed = np.asarray(jax.jacfwd(jax.grad(loss, 1))(x, scale))[:, 0]
    assert np.allclose(mixed[[0, 1], [0, 1]], plain, rtol=1e-5)


def test_transformations() -> None:
    """`vmap`, `lax.scan`, `jax.checkpoint`, `jax.linearize`; parameters shared or one for each."""
    x, qparams, g = data(AFFINE)
    xs, scale = np.stack([x, g, x + g]), np.asarray(qparams.scale)

    def fake(x: Any, s: Any) -> Any:
        return jax_backend.fake_quantize(AFFINE, x, QParams(s, qparams.zero_point))

    def along(x: Any, s: Any, d: Any) -> Any:
        return jax.jvp(lambda s: fake(x, s), (s,), (d,))[1]

    one = np.ones_like(scale)
    wants = np.stack([np.asarray(along(x, scale, one)) for x in xs])
    assert_same_bits(wants, jax.vmap(along, (0, None, None))(xs, scale, one), call="vmap")
    assert_same_bits(wants, jax.vmap(along, (0, 0, None))(xs, np.stack([scale] * 3), one), call="vmap, own scales")
    mapped = jax.jvp(lambda s: jax.vmap(fake, (0, None))(xs, s), (scale,), (one,))[1]
    assert_same_bits(wants, mapped, call="around vmap")
    scanned = jax.jvp(lambda s: jax.lax.scan(lambda c, x: (c, fake(x, s)), 0, xs)[1], (scale,), (one,))[1]
    assert_same_bits(wants, scanned, call="scan")
    assert_same_bits(wants[0], jax.jvp(jax.checkpoint(lambda s: fake(x, s)), (scale,), (one,))[1], call="checkpoint")
    assert_same_bits(wants[0], jax.linearize(lambda s: fake(x, s), scale)[1](one), call="linearize")
    clean = np.clip(np.nan_to_num(x), -3, 3)
    forward, reverse = (way(lambda s: fake(clean, s).sum())(scale) for way in (jax.jacfwd, jax.jacrev))
    assert np.allclose(forward, reverse, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["codes", "values", "conv"])
def test_layers(kind: str) -> None:
    """Along any direction v, and for any g: ``g @ (J v) == (J^T g) @ v``, within what sums of float32 lose."""
    rngs = nnx.Rngs(0)
    if kind == "conv":
        layer: Any = nn.QuantConv(4, 8, (3, 3), input_quant="uint8_affine_per_tensor", rngs=rngs)
        x = np.random.default_rng(1).standard_normal((2, 6, 6, 4)).astype(np.float32)
    else:
        weights = "int4_per_channel" if kind == "codes" else "mxfp4_e2m1"
        layer = nn.QuantLinear(64, 32, weight_quant=weights, input_quant="uint8_affine_per_tensor", rngs=rngs)
        x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    graph, *state = nnx.split(layer, nnx.Param, ...)
    parameters, rest = state

    def apply(parameters: Any, x: Any) -> Any:
        return nnx.merge(graph, parameters, rest)(x)

    rng = np.random.default_rng(2)
    like = lambda a: jnp.asarray(rng.standard_normal(a.shape).astype(np.float32))  # noqa: E731
    moves = jax.tree.map(like, parameters), like(x)
    jitted = jax.jit(apply)
    for function in (apply, jitted) if kind == "codes" else (jitted,):
        y, along = jax.jvp(function, (parameters, x), moves)
        g = like(y)
        back = jax.vjp(function, parameters, x)[1](g)
        pairs = zip(jax.tree.leaves(back), jax.tree.leaves(moves), strict=True)
        reverse = sum(np.vdot(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs)
        forward = np.vdot(np.asarray(g, np.float64), np.asarray(along, np.float64))
        assert abs(forward - reverse) < 1e-5 * np.linalg.norm(g) * np.linalg.norm(along)
        assert abs(forward) > 0.01
        if kind != "values":  # those are sums of floats
            assert_same_bits((apply if kind == "codes" else jitted)(parameters, x), y)


def test_scale_of_sigma_and_logarithm() -> None:
    q = catalog["int8_per_channel"].replace(statistic="mean_sigma", sigma=2.0)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    sigma = np.float32(1.5)
    move = jax.jvp(lambda s: scale_at_sigma(q, x, s), (sigma,), (np.float32(1),))[1]
    for row in range(len(x)):
        pick = np.zeros_like(move)
        pick[row] = 1
        assert_same_bits(sigma_gradient(q, x, sigma, pick), np.asarray(move)[row, 0], call=f"row {row}")
