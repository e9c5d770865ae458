"""Floating-point zero points (tinygemm) in both frontends: the bits of core, in programs, in layers; and of torchao.

The catalog's entry also goes through every test of the catalog and of the laws; here are other widths, directions and
dtypes, and what is refused.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerAxis, QParams, Quantizer, catalog
from samebits.core.contraction import contracts_codes
from samebits.proofs.inputs.compare import assert_same_bits, same_bits
from samebits.proofs.inputs.knife_edges import knife_edges
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.arrays import to_torch
from samebits.proofs.modes.execution import implementation
from samebits.torch_frontend.nn import QuantLinear
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

from ..exact import DTYPES

Array = NDArray[Any]
ENTRY = catalog["uint4_affine_float_zero_per_group64"]
ROWS = ENTRY.replace(granularity=PerAxis(0))
VARIANTS = {
    "uint4": ROWS,
    "int4": ROWS.replace(signed=True),
    "uint8 narrow": ROWS.replace(bits=8, narrow=True),  # mid is no power of two
    "int8 up": ROWS.replace(bits=8, signed=True, rounding="toward_positive", gradient="learned_scale"),
    "uint2 stochastic": ROWS.replace(bits=2, rounding="stochastic", gradient="pass_through"),
}
SCALES = (2.0**-126, 2.0**-125 * 1.3, 2.0**-64 * 1.7, 2.0**-63, 0.013, 3.7, 2.0**124 * 1.1, 3e38)
WIDTH = 768


def parameters(q: Quantizer, dtype: Any, scales: tuple[float, ...] = SCALES) -> QParams:
    """Each scale with zero points on, between and beside the codes, of either sign of zero, subnormal and large."""
    wide = np.float64 if dtype == np.float64 else np.float32
    middle, pairs = (q.format.lo + q.format.hi + 1) // 2, []
    for s in scales:
        s = float(s)
        near = np.nextafter(np.float32(middle * min(s, 1e30)), np.float32(0))
        for z in (0.0, -0.0, middle * s, -middle * s, 3.3 * s, near, 1e-42, -1e-40, 1.0, 3e38):
            if abs(float(z)) < 3.4e38:
                pairs.append((np.float32(s), np.float32(z)))
    table = np.array(pairs, wide)
    return QParams(table[:, :1], table[:, 1:])


def edges(q: Quantizer, qparams: QParams, dtype: Any) -> Array:
    """A row of knife edges, special values and numbers of any size for each pair of parameters."""
    random, rows = np.random.default_rng(0), []
    for s, z in zip(qparams.scale[:, 0], qparams.zero_point[:, 0], strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            usual = (random.standard_normal(64) * s * 4 + z).astype(dtype)
        found = np.concatenate([knife_edges(q, s, z, dtype), usual])
        rows.append(random.choice(found, WIDTH) if len(found) > WIDTH else np.resize(found, WIDTH))
    return np.stack(rows)


def torch_room(name: str) -> Callable[..., Any]:
    def run(q: Quantizer, *arrays: Any, **options: Any) -> Any:
        given = [QParams(*map(to_torch, a[:2])) if isinstance(a, QParams) else to_torch(a) for a in arrays]
        return getattr(torch_frontend, name)(q, *given, **options)

    return run


def jax_room(name: str) -> Callable[..., Any]:
    return lambda q, *arrays, **options: getattr(jax_backend, name)(q, *arrays, **options)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in VARIANTS), *(("uint4", d) for d in DTYPES if d != "float32")]
)
def test_both_frontends_have_the_bits_of_core(name: str, dtype: str) -> None:
    q, kind = VARIANTS[name], DTYPES[dtype]
    qparams = parameters(q, kind)
    x = edges(q, qparams, kind)
    number, g = np.where(np.isnan(x), np.zeros_like(x), x), np.resize(np.array([1.5, -0.0, -3]), x.shape).astype(kind)
    codes = core.quantize(q, number, qparams)
    for room in (torch_room, jax_room):
        with jax.enable_x64(dtype == "float64"):
            assert_same_bits(codes, room("quantize")(q, number, qparams), inputs=number)
            got = room("fake_quantize")(q, x, qparams)
            assert_same_bits(core.fake_quantize(q, x, qparams), got, inputs=x)
            got = room("fake_quantize_vjp")(q, x, qparams, g).x
            assert_same_bits(core.fake_quantize_vjp(q, x, qparams, g).x, got, inputs=x)
            got = room("dequantize")(q, codes, qparams)
            assert_same_bits(core.dequantize(q, codes, qparams), got, inputs=codes)
            finite = np.where(np.isfinite(x), x, np.ones_like(x))
            assert_same_bits(core.choose_qparams(q, finite), room("choose_qparams")(q, finite))


def test_inside_a_larger_program_products_stay_rounded() -> None:
    """Compiled beside what compilers would fuse with it; without values at hand NaN is the code of 0.0."""
    q = VARIANTS["uint8 narrow"]
    qparams = parameters(q, np.float32, (2.0**-126, 0.013, 3.7))
    x = edges(q, qparams, np.float32)
    w, b = np.float32(1.1), np.float32(0.3)
    number = np.where(np.isnan(x), np.zeros_like(x), x)

    def torch_program(x: Any, s: Any, z: Any, w: Any, b: Any) -> Any:
        p = QParams(s, z)
        return torch_frontend.fake_quantize(q, x * 1.5, p) * w + b, torch_frontend.quantize(q, x, p)

    def jax_program(x: Any, s: Any, z: Any) -> Any:
        p = QParams(s, z)
        return jax_backend.fake_quantize(q, x * jnp.float32(1.5), p) + b, jax_backend.quantize(q, x, p)

    compiled = torch.compile(torch_program, fullgraph=True, dynamic=True)
    shorter = QParams(qparams.scale[:7], qparams.zero_point[:7])
    for rows, given in ((x, qparams), (x[:7], shorter)):
        with np.errstate(all="ignore"):
            expected = core.fake_quantize(q, rows * np.float32(1.5), given)
            unflushed = np.abs(rows) >= 2.0**-125  # x * 1.5 itself is flushed by XLA where it is subnormal
        codes = core.quantize(q, number[: len(rows)], given)
        arrays = rows, given.scale, given.zero_point
        fake, code = compiled(*map(to_torch, (*arrays, np.asarray(w), np.asarray(b))))
        with np.errstate(all="ignore"):
            assert_same_bits(expected * w + b, fake)
            expected = expected + b  # XLA would fuse a product of the caller's with it
        assert_same_bits(codes, code)
        fake, code = jax.jit(jax_program)(*arrays)
        same = unflushed & (np.abs(expected) >= 2.0**-125)
        assert_same_bits(np.where(same, expected, 0), np.where(same, np.asarray(fake), 0))
        assert_same_bits(codes, code)


def test_autodiff_gives_the_gradients_of_core() -> None:
    q = VARIANTS["uint4"]
    qparams = parameters(q, np.float32, (0.013, 3.7))
    x = np.random.default_rng(0).standard_normal((len(qparams.scale), 40)).astype(np.float32) * 9 * qparams.scale
    g = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    expected = core.fake_quantize_vjp(q, x, qparams, g)
    t, s, z = (to_torch(a).requires_grad_() for a in (x, qparams.scale, qparams.zero_point))
    torch_frontend.fake_quantize(q, t, QParams(s, z)).backward(to_torch(g))
    pull = jax.vjp(lambda x, s, z: jax_backend.fake_quantize(q, x, QParams(s, z)), x, *qparams[:2])[1]
    for dx, d_scale, d_zero in ((t.grad, s.grad, z.grad), pull(g)):
        assert_same_bits(expected.x, dx)
        for want, got in ((expected.scale, d_scale), (expected.zero_point, d_zero)):
            assert np.abs(want - np.asarray(got)).max() <= 2.0**-18 * np.abs(g).sum(1).max()
    clamped = np.asarray(expected.x) != g
    exact = np.where(clamped, g, 0).astype(np.float64).sum(1, keepdims=True)
    assert clamped.any()
    assert_same_bits(exact.astype(np.float32), expected.zero_point)


def test_what_overflows_is_the_same_everywhere() -> None:
    """``mid * s`` is infinite: so is the zero point that is chosen, and -inf has the code 0 and no value."""
    q, x = ROWS, np.array([[-3.4e38, 3.4e38]], np.float32)
    chosen = core.choose_qparams(q, x)
    assert np.isinf(chosen.zero_point).all()
    given, odd = (
        QParams(np.full((1, 1), 3e38, np.float32), np.ones((1, 1), np.float32)),
        np.array([[-np.inf, 0, np.inf]]),
    )
    odd = odd.astype(np.float32)
    assert core.quantize(q, odd, given).tolist() == [[0, 15, 15]]
    assert np.isnan(core.fake_quantize(q, odd, given)).tolist() == [[True, False, False]]
    for room in (torch_room, jax_room):
        assert_same_bits(core.fake_quantize(q, x), room("fake_quantize")(q, x))
        assert_same_bits(core.quantize(q, odd, given), room("quantize")(q, odd, given))
        assert_same_bits(core.fake_quantize(q, odd, given), room("fake_quantize")(q, odd, given))


@pytest.mark.parametrize("room", [core, torch_frontend, jax_backend])
def test_what_is_refused(room: Any) -> None:
    x, one = np.ones((2, 3), np.float32), np.ones((2, 1), np.float32)
    convert = to_torch if room is torch_frontend else np.asarray
    with pytest.raises(ValueError, match=r"`qparams.zero_point` must hold numbers, got nan"):
        room.fake_quantize(ROWS, convert(x), QParams(convert(one), convert(one * np.nan)))
    with pytest.raises(ValueError, match="must not hold NaN for quantize"):
        room.quantize(ROWS, convert(x * np.nan), QParams(convert(one), convert(one)))


# --- layers ----------------------------------------------------------------------------------------------------------


def test_layers_contract_floats_and_learn_zero_points_as_they_are() -> None:
    assert not contracts_codes(catalog["int8_per_tensor"], ROWS, per_token=True)
    assert contracts_codes(catalog["int8_per_tensor"], catalog["uint8_affine_per_channel"], per_token=True)
    layer = QuantLinear(6, 4, bias=False, weight_quant=ROWS, input_quant="int8_per_tensor")
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    x_hat = torch_frontend.fake_quantize(catalog["int8_per_tensor"], x)
    w_hat = torch_frontend.fake_quantize(ROWS, layer.weight.detach())
    torch.testing.assert_close(layer(x), x_hat @ w_hat.T)
    learned = TensorQuantizer(ROWS.replace(source="learned", gradient="learned_scale"), (2, 3))
    data = torch.tensor([[0.1, 0.5, 1.3], [-2.0, 0.4, 0.9]])
    learned(data)
    first = core.choose_qparams(ROWS, data.numpy())
    assert learned.zero_point is not None
    assert_same_bits(first.zero_point, learned.zero_point.detach())
    assert_same_bits(first.zero_point, learned.qparams(data).zero_point.detach())
    from samebits.jax_backend.tensor_quantizer import TensorQuantizer as JaxQuantizer

    other = JaxQuantizer(learned.quantizer, (2, 3))
    other(jnp.asarray(data.numpy()))
    assert_same_bits(first.zero_point, other.qparams(jnp.asarray(data.numpy())).zero_point)


# --- others ----------------------------------------------------------------------------------------------------------


def test_torchao_has_the_same_bits_in_float32() -> None:
    """Codes and values on knife edges; parameters where the range of the data holds 0, which theirs need not."""
    torchao = pytest.importorskip("torchao.quantization.quant_primitives")
    q, random = ENTRY.replace(granularity=PerAxis(0)), np.random.default_rng(0)
    qparams = parameters(q, np.float32, (2.0**-64, 0.013, 1 / 3, 1.7))
    x = edges(q, qparams, np.float32)
    x = np.where(np.isnan(x), np.zeros_like(x), x)
    block, scale, zero = (1, WIDTH), to_torch(qparams.scale), to_torch(qparams.zero_point)
    raw = torchao._quantize_affine_tinygemm(to_torch(x), block, scale, zero, torch.uint8, 0, 15)
    codes = raw.numpy().astype(q.format.storage)
    back = torchao._dequantize_affine_tinygemm(raw, block, scale, zero, torch.uint8, 0, 15, output_dtype=torch.float32)
    data = random.standard_normal((40, 64)).astype(np.float32)
    kind = torchao.MappingType.ASYMMETRIC
    chosen = torchao._choose_qparams_affine_tinygemm(to_torch(data), kind, (1, 64), torch.uint8, 0, 15)
    for room in (torch_room, jax_room):
        assert_same_bits(codes, room("quantize")(q, x, qparams), inputs=x)
        assert_same_bits(back, room("dequantize")(q, codes, qparams))
        for ours, theirs in zip(room("choose_qparams")(q, data)[:2], chosen, strict=True):
            assert_same_bits(theirs.reshape(40, 1), ours)


# --- faults ----------------------------------------------------------------------------------------------------------

Formula = Callable[[Quantizer, Array, Array, Array], tuple[Array, Array]]


def _formula(name: str) -> Formula:
    """Codes and values as core has them, with one fault."""

    def computed(q: Quantizer, x: Array, s: Array, z: Array) -> tuple[Array, Array]:
        mid = np.float32((q.format.lo + q.format.hi + 1) // 2 + (name == "mid off by one"))
        low = z - s * mid
        if name == "low is fused":
            low = (z.astype(np.float64) - s.astype(np.float64) * mid).astype(np.float32)
        rest = x - (z if name == "x - zero, mid added to the code" else low)
        code = np.round(rest / s)
        if name == "x - zero, mid added to the code":
            code += mid
        if name == "reciprocal":
            code = np.round(rest * (np.float32(1) / s))
        code = np.clip(code, q.format.lo, q.format.hi)
        value = (code - mid) * s + z
        if name == "value is fused":
            value = ((code - mid).astype(np.float64) * s + z).astype(np.float32)
        if name == "value from the low end":
            value = code * s + low
        return code, value

    return computed


FAULTS = (
    "mid off by one",
    "low is fused",
    "value is fused",
    "x - zero, mid added to the code",
    "value from the low end",
    "reciprocal",
)


@np.errstate(all="ignore")
@pytest.mark.parametrize("name", ["", *FAULTS])
def test_faults_differ_on_knife_edges(name: str) -> None:
    """And none without a fault. A law sees them, too."""
    q = ROWS.replace(bits=8, narrow=True)
    qparams = parameters(q, np.float32, (0.013, 1 / 3, 3.7))
    x, formula = edges(q, qparams, np.float32), _formula(name)
    x = np.where(np.isnan(x), np.zeros_like(x), x)

    def parts(x: Array, p: QParams) -> tuple[Array, Array]:
        return formula(q, x, np.asarray(p.scale), np.asarray(p.zero_point))

    code, value = parts(x, qparams)
    fine = same_bits(core.quantize(q, x, qparams), code.astype(q.format.storage))
    fine &= same_bits(core.fake_quantize(q, x, qparams), value)
    assert fine == (not name)
    ours = implementation("numpy")
    changed: dict[str, Any] = {
        "quantize": lambda q, x, p: parts(x, p)[0].astype(q.format.storage),
        "fake_quantize": lambda q, x, p=None: parts(x, p or ours.choose_qparams(q, x))[1],
    }
    faulty = type(ours)(**{**vars(ours), **changed})
    assert applies("equals_specification", q)
    if name:
        with pytest.raises(AssertionError):
            LAWS["equals_specification"](faulty, q, x, qparams, np.ones_like(x))
    else:
        LAWS["equals_specification"](faulty, q, x, qparams, np.ones_like(x))
