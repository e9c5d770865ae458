"""Scales that may be negative (`Statistic.SIGNED_ABSMAX`): codes, values and gradients in every mode, layers, Brevitas.

Expected values: exact fractions, the same quantizer with a positive scale on data of the other sign, the laws,
Brevitas.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from brevitas.core.function_wrapper import Identity, RoundSte, TensorClamp
from brevitas.core.function_wrapper.ops_ste import ScalarSignedClampMinSte
from brevitas.core.quant import IntQuant
from brevitas.core.stats.stats_op import SignedAbsMax
from flax import nnx
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import FloatFormat, IntegerFormat, PerGroup, QParams, Quantizer, ScaleRule, catalog
from samebits.core.contraction import contracts_codes
from samebits.jax_backend import interop
from samebits.jax_backend import nn as flax_nn
from samebits.jax_backend import scaling as jax_scaling
from samebits.jax_backend.tensor_quantizer import TensorQuantizer as JaxTensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edges
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.proofs.modes.execution import Case, implementation, run_together
from samebits.torch_frontend import nn as torch_nn
from samebits.torch_frontend import scaling as torch_scaling
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

from .. import exact, law_cases

Array = NDArray[Any]
CHANNEL = catalog["int8_per_channel"].replace(statistic="signed_absmax", denominator="lo")
TENSOR = CHANNEL.replace(granularity=catalog["int8_per_tensor"].granularity)
GROUPS = CHANNEL.replace(bits=4, granularity=PerGroup(8), rounding="toward_positive", gradient="learned_scale")
STOCHASTIC = CHANNEL.replace(bits=3, rounding="stochastic", gradient="clipped_quotient")
QUANTIZERS = {"channel": CHANNEL, "groups": GROUPS, "stochastic": STOCHASTIC}
DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)


def arrays(dtype: Any) -> Iterator[tuple[Array, QParams, Array]]:
    """Knife edges of scales of both signs, subnormals and specials among them; their scales; gradients."""
    random = np.random.default_rng(7)
    x = np.zeros((8, 64), dtype)
    scale = np.array([0.1, -0.1, 2.0**-126, -(2.0**-126), -3e-5, 1e30, -1.0, -0.7], np.float32).reshape(-1, 1)
    for row, s in zip(x, scale.ravel(), strict=True):
        edges = knife_edges(CHANNEL, abs(s), None, dtype)
        row[:] = random.choice(edges, 64)
    yield x, QParams(scale), np.asarray(random.standard_normal(x.shape), np.float64).astype(dtype)


def fitting(q: Quantizer, qparams: QParams) -> QParams:
    """Scales of channels for the blocks of a quantizer."""
    scale = np.repeat(qparams.scale, 8, 1) if q is GROUPS else qparams.scale
    if q is GROUPS:
        scale[:, ::3] *= -1
    return QParams(scale)


def test_codes_are_those_of_the_exact_quotient() -> None:
    """Every direction, by fractions; values are products of which zero is +0."""
    scale = np.float32(-0.3)
    for rounding in exact.DIRECTIONS:
        q = TENSOR.replace(rounding=rounding)
        x = exact.edges(q, 0.3, 0.0, np.dtype(np.float32))
        x = x[~np.isnan(x)]
        wanted = exact.elementwise(exact.code, q, x, float(scale)).astype(np.int8)
        assert_same_bits(wanted, core.quantize(q, x, QParams(scale)))
        assert_same_bits(wanted * scale + np.float32(0), core.fake_quantize(q, x, QParams(scale)))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_negative_scale_is_a_positive_one_for_data_of_the_other_sign(name: str) -> None:
    """In core, which divides by it, against core with the signs changed beforehand."""
    q = QUANTIZERS[name]
    plain = q.replace(statistic="extremes")
    for dtype in DTYPES:
        for x, qparams, g in arrays(dtype):
            given = fitting(q, qparams)
            negative = np.repeat(given.scale < 0, 64 // given.scale.shape[1], 1)
            mirrored, positive = np.where(negative, -x, x), QParams(np.abs(given.scale))
            number = np.where(np.isnan(mirrored.astype(float)), np.zeros_like(x), mirrored)
            wanted = core.quantize(plain, number, positive)
            assert_same_bits(wanted, core.quantize(q, np.where(negative, -number, number), given))
            value = core.fake_quantize(plain, mirrored, positive)
            value = np.where(negative, -value, value)
            assert_same_bits(np.where(value == 0, np.zeros_like(value), value), core.fake_quantize(q, x, given))
            expected, got = (core.fake_quantize_vjp(*a, g) for a in ((plain, mirrored, positive), (q, x, given)))
            assert_same_bits(expected.x, got.x)
            assert_same_bits(expected.scale, got.scale)


@pytest.mark.parametrize(
    ("name", "mode"), [*((n, m) for n in QUANTIZERS for m in ("torch eager", "jax jit")), ("groups", "jax eager")]
)
def test_the_five_functions_have_the_bits_of_the_specification(name: str, mode: str) -> None:
    q, run = QUANTIZERS[name], implementation(mode)
    for dtype in DTYPES if mode == "torch eager" or (name, mode) == ("channel", "jax jit") else DTYPES[:1]:
        for x, qparams, g in arrays(dtype):
            LAWS["equals_specification"](run, q, x, fitting(q, qparams), g)
            if mode != "jax eager":
                LAWS["scale_gradient_is_the_sum"](run, q, x, fitting(q, qparams), g)
            if mode == "torch eager":  # where a mask alone is made in another way
                leaf = to_torch(x).requires_grad_()
                given = QParams(to_torch(fitting(q, qparams).scale))
                torch_frontend.fake_quantize(q, leaf, given).backward(to_torch(g))
                assert_same_bits(core.fake_quantize_vjp(q, x, fitting(q, qparams), g).x, leaf.grad)


def test_torch_compiled_has_the_bits_of_the_specification() -> None:
    """Two quantizers in one program: the five functions in float32; in bfloat16 a value that more is added to."""
    (x, qparams, g), *_ = arrays(np.float32)
    pairs = [(q, fitting(q, qparams)) for q in (CHANNEL, GROUPS)]
    found = run_together("torch compiled", [Case(q, np.nan_to_num(x), g, p) for q, p in pairs])
    for (q, p), got in zip(pairs, found, strict=True):
        assert_same_bits(core.fake_quantize(q, np.nan_to_num(x), p), got.fake)
        assert_same_bits(core.quantize(q, np.nan_to_num(x), p), got.codes)
        assert_same_bits(core.fake_quantize_vjp(q, np.nan_to_num(x), p, g).x, got.gradients.x)

    @torch.compile(fullgraph=True)
    def program(x: torch.Tensor, scale: torch.Tensor) -> Any:
        return torch_frontend.fake_quantize(CHANNEL, x, QParams(scale)) + 1

    (x, qparams, _), *_ = arrays(ml_dtypes.bfloat16)
    want = (core.fake_quantize(CHANNEL, x, qparams).astype(np.float32) + 1).astype(ml_dtypes.bfloat16)
    assert_same_bits(want, program(to_torch(x), to_torch(qparams.scale)))


def test_jax_gradients_have_the_bits_of_the_specification_in_a_program() -> None:
    @jax.jit
    def program(x: Any, scale: Any, g: Any) -> Any:
        def loss(x: Any, scale: Any) -> Any:
            y = jax_backend.fake_quantize(CHANNEL, x, QParams(scale))
            return (y * g).sum(), y + 1

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, scale)

    for x, qparams, g in arrays(np.float32):
        x = np.where(np.abs(x) < 1e30, x, np.float32(1))
        (_, further), (dx, _) = program(to_jax(x), to_jax(qparams.scale), to_jax(g))
        assert_same_bits(core.fake_quantize(CHANNEL, x, qparams) + np.float32(1), further)
        assert_same_bits(core.fake_quantize_vjp(CHANNEL, x, qparams, g).x, dx)


@pytest.mark.parametrize("law", [law for law in LAWS if applies(law, CHANNEL)])
def test_laws(law: str) -> None:
    for dtype in ("float32", "float16"):
        for x, qparams, g in law_cases.cases_of(CHANNEL, dtype):
            assert (qparams.scale < 0).any()
            LAWS[law](implementation("numpy"), CHANNEL, x, qparams, g)


def test_the_first_of_equal_magnitudes_decides() -> None:
    """Row-major order within the block; zeros and empty blocks get the floor, and it is positive."""
    q = TENSOR.replace(floor=2.0**-100)
    for x, sign in (
        ([[1, -2], [2, 0]], 1),
        ([[1, 2], [-2, 0]], -1),
        ([[-1, 1], [0.5, 1]], 1),
        ([[2.0**-140, -(2.0**-140)], [0, 0]], -1),
        ([[-(2.0**-140), 2.0**-140], [0, 0]], 1),
        ([[0, 2.0**-140], [0, 2.0**-149]], -1),
        ([[0, -0.0], [0, 0]], 1),
        ([[], []], 1),
    ):
        array = np.array(x, np.float32)
        largest = np.abs(array).max(initial=0)
        wanted = np.float32(sign) * np.maximum(largest / np.float32(128), np.float32(2.0**-100))
        assert_same_bits(wanted, core.choose_qparams(q, array).scale)
        assert_same_bits(wanted, torch_frontend.choose_qparams(q, to_torch(array)).scale)
        assert_same_bits(wanted, jax_backend.choose_qparams(q, to_jax(array)).scale)


def brevitas_values(x: Array, granularity: Any) -> tuple[Array, Array]:
    """Scale and values of Brevitas: signed absmax over 128, its clamp to the floor, its integer quantizer."""
    statistic = SignedAbsMax(None if granularity == "tensor" else 1, keepdim=granularity != "tensor")
    floor = ScalarSignedClampMinSte(1e-10)
    scale = floor(statistic(to_torch(x)) / 128)
    quantizer = IntQuant(False, True, Identity(), RoundSte(), TensorClamp())
    value = quantizer(scale, torch.tensor(0.0), torch.tensor(8.0), to_torch(x))
    return to_numpy(scale), to_numpy(value)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_oracle_brevitas_has_the_same_scales_and_values(granularity: str) -> None:
    """Bit for bit, but for the sign of zero, which is negative there; ties of both orders, all-zero data."""
    random = np.random.default_rng(1)
    q = (TENSOR if granularity == "tensor" else CHANNEL).replace(floor=1e-10)
    signs = set()
    for n in range(200):
        x = (random.standard_normal((3, 1 + n)) * 10.0 ** random.integers(-9, 9)).astype(np.float32)
        if n % 4 == 0:
            x = np.round(x / np.abs(x).max() * 2) * np.float32(0.7)  # many elements are as large as the largest
        if n % 10 == 5:
            x[0] = 0
        scale, value = brevitas_values(x, granularity)
        chosen = core.choose_qparams(q, x)
        assert_same_bits(scale.reshape(chosen.scale.shape), chosen.scale)
        assert_same_bits(value + np.float32(0), core.fake_quantize(q, x))
        signs |= set(np.sign(chosen.scale).ravel().tolist())
    assert signs == {-1, 1}


def test_scales_are_clamped_away_from_zero_on_their_own_side() -> None:
    """As Brevitas `ScalarSignedClampMinSte`, in the three rooms; 0 and -0 on the positive side."""
    q = TENSOR.replace(floor=0.25)
    scale = np.array([0.5, -0.5, 0.1, -0.1, 0, -0.0, -1e-40, np.nan, np.inf, -np.inf], np.float32)
    wanted = to_numpy(ScalarSignedClampMinSte(0.25)(to_torch(scale[:7])))
    wanted = np.concatenate([wanted, np.full(3, np.nan, np.float32)])
    for room, to in ((core.scaling, np.asarray), (torch_scaling, to_torch), (jax_scaling, to_jax)):
        assert_same_bits(wanted, room.restrict_scale(q, to(scale)))
    assert_same_bits(wanted, jax.jit(jax_scaling.restrict_scale, static_argnums=0)(q, to_jax(scale)))


def test_a_scale_may_be_learned_from_a_negative_start() -> None:
    q = TENSOR.replace(source="learned", gradient="learned_scale")
    x = np.array([0.5, -0.25, 3.0, -1.3], np.float32)
    first, second = TensorQuantizer(q), JaxTensorQuantizer(q)
    y = first(to_torch(x))
    y.sum().backward()
    assert_same_bits(core.fake_quantize(q, x), y.detach())
    (_, mine), slopes = nnx.value_and_grad(lambda m: ((y := m(to_jax(x))).sum(), y), has_aux=True)(second)
    assert_same_bits(y.detach(), mine)
    assert first.scale is not None
    assert first.scale.grad is not None
    assert first.scale.item() == -3 / 128
    wanted = core.fake_quantize_vjp(q, x, QParams(np.float32(-3 / 128)), np.ones_like(x)).scale
    np.testing.assert_allclose(first.scale.grad.numpy(), wanted, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(slopes["scale"][...]), wanted, rtol=1e-6)


def test_layers_contract_floats_within_the_bound() -> None:
    """Not codes: the scale of a sum, the product of two scales, is positive there."""
    q_x = catalog["int8_per_tensor"]
    layer = torch_nn.QuantLinear(8, 3, weight_quant=CHANNEL, input_quant=q_x)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)))
    ours = flax_nn.QuantLinear(8, 3, weight_quant=CHANNEL, input_quant=q_x, rngs=nnx.Rngs(0))
    interop.load_state_dict(ours, {k: v.detach().numpy() for k, v in layer.state_dict().items()})
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    w, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    w_qparams = core.choose_qparams(CHANNEL, w)
    assert (w_qparams.scale < 0).any()
    assert (w_qparams.scale > 0).any()
    assert not contracts_codes(q_x, CHANNEL, per_token=True)
    x_hat, w_hat = core.fake_quantize(q_x, x), core.fake_quantize(CHANNEL, w)
    exact_y = x_hat.astype(float) @ w_hat.astype(float).T + bias
    bound = core.matmul.contraction_bound(x_hat, w_hat, bias)
    for y in (
        core.linear(q_x, x, core.choose_qparams(q_x, x), CHANNEL, w, w_qparams, bias),
        layer(to_torch(x)).detach().numpy(),
        np.asarray(ours(to_jax(x))),
    ):
        assert np.all(np.abs(y - exact_y) <= bound)
    layer(to_torch(x)).sum().backward()
    g = np.broadcast_to(x_hat.sum(0), w.shape).astype(np.float32)
    passes = core.fake_quantize_vjp(CHANNEL, w, w_qparams, np.ones_like(w)).x
    assert layer.weight.grad is not None
    np.testing.assert_allclose(layer.weight.grad.numpy(), g * passes, rtol=1e-5)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("`restriction` must be 'float' for", lambda: CHANNEL.replace(restriction="power_of_two")),
        ("`restriction` must be 'float' for", lambda: ScaleRule(statistic="signed_absmax", restriction="integer")),
        ("`source` must not be 'running_statistic' for", lambda: CHANNEL.replace(source="running_statistic")),
        ("`source` must not be 'statistic_then_learned'", lambda: CHANNEL.replace(source="statistic_then_learned")),
        ("'signed_absmax' is for signed integers", lambda: CHANNEL.replace(format=IntegerFormat(8, signed=False))),
        ("'signed_absmax' is for signed integers", lambda: CHANNEL.replace(format=FloatFormat(4, 3), denominator="hi")),
        ("`statistic` of an affine scale must be", lambda: CHANNEL.replace(zero_point="min_max")),
        ("`statistic` must be 'extremes' for the denominator", lambda: CHANNEL.replace(denominator="larger")),
        ("where a rounding or a bit width is learned", lambda: CHANNEL.replace(rounding="learned")),
        ("where a rounding or a bit width", lambda: CHANNEL.replace(source="learned", learned_bits=4)),
    ],
)
def test_combinations_without_a_meaning_are_refused(message: str, make: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_that_are_no_scales_are_refused() -> None:
    x = np.ones((2,), np.float32)
    for room, to in ((core, np.asarray), (torch_frontend, to_torch), (jax_backend, to_jax)):
        for value in (0.0, -(2.0**-127), np.nan, -np.inf):
            with pytest.raises(ValueError, match="must hold normal finite numbers, got"):
                room.fake_quantize(TENSOR, to(x), QParams(to(np.float32(value))))
        with pytest.raises(ValueError, match="must hold positive normal finite numbers, got -1"):
            room.fake_quantize(catalog["int8_per_tensor"], to(x), QParams(to(np.float32(-1))))
        given = QParams(to(np.float32(-1)), bit_width=to(np.float32(4)))
        with pytest.raises(ValueError, match="must be None where scales may be negative"):
            room.fake_quantize(TENSOR, to(x), given)


def test_other_quantizers_see_no_signs() -> None:
    """The programs of a quantizer without negative scales are those of before: no sign is looked at."""
    q = catalog["int8_per_channel"]
    text = str(jax.make_jaxpr(lambda x: jax_backend.fake_quantize(q, x))(jnp.ones((2, 4))))
    ours = str(jax.make_jaxpr(lambda x: jax_backend.fake_quantize(CHANNEL, x))(jnp.ones((2, 4))))
    assert "argmax" not in text
    assert "argmax" in ours
