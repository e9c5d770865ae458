"""jax_backend beside core, bit for bit: operation by operation and in one jitted program, value by value."""

import math
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import (
    Gradient,
    IntegerFormat,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    Quantizer,
    Rounding,
    catalog,
)
from samebits.core.blocks import expand_blocks, split_blocks
from samebits.core.descriptions import ON_QUOTIENT
from samebits.core.granularity import qparams_shape
from samebits.jax_backend.rounding import round_to_integer
from samebits.jax_backend.ste import ROW, block_sum
from samebits.proofs.inputs import strategies
from samebits.proofs.inputs.bits import from_ordinal, neighbours, ordinal
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edge_array, special_values
from samebits.proofs.modes.arrays import to_jax, to_numpy

from ..exact import DIRECTIONS, DTYPES, fake_quantized
from ..law_cases import INTEGERS

Array = NDArray[Any]
NARROW = ("float32", "bfloat16", "float16")
WIDTH = 1344  # two numbers on each side of 258 boundaries, themselves, and special values
DIRECTED = (Rounding.TOWARD_ZERO, Rounding.TOWARD_POSITIVE, Rounding.TOWARD_NEGATIVE)
each_dtype = pytest.mark.parametrize("dtype", NARROW)
ENTRIES = [
    name
    for name, q in catalog.items()
    if isinstance(q.format, IntegerFormat) and q.scale.restriction in ("float", "power_of_two")
]
each_rounding = pytest.mark.parametrize("rounding", [r for r in Rounding if r is not Rounding.LEARNED])


def entries_and_dtypes(*dtypes: str) -> pytest.MarkDecorator:
    """Every entry on float32, and the plainest of every granularity on the other dtypes, which are widened first."""
    pairs = [(name, dtype) for dtype in dtypes for name in ENTRIES if name in INTEGERS or dtype == "float32"]
    return pytest.mark.parametrize(("name", "dtype"), pairs)


SYMMETRIC = catalog["int8_per_tensor"]
AFFINE = catalog["uint8_affine_per_channel"]
BOTH = ("eager", "jit")
COMPILED = (
    ("float32", "int8_per_tensor"),
    ("float32", "int8_power_of_two_per_tensor"),
    ("float32", "uint8_affine_per_channel"),
    ("float32", "int8_per_block"),
    ("float32", "uint4_affine_per_group32"),
    ("float32", "int16_per_tensor"),
    ("bfloat16", "int8_per_tensor"),
    ("bfloat16", "uint4_affine_per_group32"),
    ("float16", "uint8_affine_per_channel"),
)


def modes_for(name: str, dtype: str) -> tuple[str, ...]:
    """Eager always; compiled where the entry is unlike others. (The laws run every entry in every mode.)"""
    return BOTH if (dtype, name) in COMPILED else ("eager",)


def in_jax(qparams: QParams) -> QParams:
    """Parameters as JAX arrays."""
    return QParams(*(None if p is None else to_jax(np.array(p)) for p in qparams[:2]))


def cotangent(x: Array) -> Array:
    """An incoming gradient with both zeros, subnormals, infinities and NaN in it."""
    g = np.random.default_rng(1).standard_normal(x.size).astype(x.dtype)
    g[::9] = np.resize(special_values(x.dtype), g[::9].size)
    return g.reshape(x.shape)


def everything(q: Quantizer, x: Any, number: Any, codes: Any, g: Any, given: QParams) -> dict[str, Any]:
    """Codes, values, fake quantization and its gradient by both ways to ask for it; ``number`` is ``x`` less NaN."""
    room = jax_backend
    y, pull = jax.vjp(lambda v: room.fake_quantize(q, v, given), x)
    return {
        "quantize": room.quantize(q, number, given),
        "dequantize": room.dequantize(q, codes, given, x.dtype),
        "fake_quantize": y,
        "gradient of x": pull(g)[0],
        "fake_quantize_vjp(...).x": room.fake_quantize_vjp(q, x, given, g).x,
    }


jitted = partial(jax.jit, static_argnums=0)(everything)


def expected(q: Quantizer, x: Array, qparams: QParams, g: Array) -> tuple[Array, Array, dict[str, Array]]:
    """``x`` less NaN, its codes, and what `everything` must say of them."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        number = np.where(np.isnan(x), np.zeros_like(x), x)
    codes, dx = core.quantize(q, number, qparams), core.fake_quantize_vjp(q, x, qparams, g).x
    values, fake = core.dequantize(q, codes, qparams, x.dtype), core.fake_quantize(q, x, qparams)
    names = ("quantize", "dequantize", "fake_quantize", "gradient of x", "fake_quantize_vjp(...).x")
    return number, codes, dict(zip(names, (codes, values, fake, dx, dx), strict=True))


def assert_same_functions(q: Quantizer, x: Array, qparams: QParams, modes: tuple[str, ...] = BOTH) -> None:
    """`everything` against core, operation by operation and jitted."""
    g = cotangent(x)
    number, codes, want = expected(q, x, qparams, g)
    arrays = *map(to_jax, (x, number, codes, g)), in_jax(qparams)
    for mode in modes:
        with jax.disable_jit(mode == "eager"):
            got = jitted(q, *arrays)
        for name, value in want.items():
            assert_same_bits(value, got[name], call=f"{name}, {mode}, {q}", inputs=codes if name[0] == "d" else x)


def assert_same_parameters(q: Quantizer, x: Array, modes: tuple[str, ...] = BOTH) -> None:
    """The scale and zero point chosen."""
    want = tuple(core.choose_qparams(q, x)[:2])
    for mode in modes:
        with jax.disable_jit(mode == "eager"):
            assert_same_bits(want, chosen(q, to_jax(x)), call=f"choose_qparams, {mode}, {q}")


@partial(jax.jit, static_argnums=0)
def chosen(q: Quantizer, x: Any) -> tuple[Any, ...]:
    return tuple(jax_backend.choose_qparams(q, x)[:2])


def edges(q: Quantizer, dtype: str, zeros: tuple[int, ...] = (7, -(2**15), 2**15, 0)) -> list[tuple[Array, QParams]]:
    """Knife edges at four scales and zero points (limited to the codes), filled up to a few shapes by repetition.

    Of few shapes, since JAX compiles every operation for each shape it meets.
    """
    wide = dtype == "float64"
    scale = np.array([1e-300, 1e300, 0.1, 2.0**-1022] if wide else [0.1, 1 / 3, 2.0**-126, 3e30])
    zero = np.clip(zeros, q.format.lo, q.format.hi).astype(np.int32) if q.affine else None
    given = QParams(scale.astype(np.float64 if wide else np.float32), zero)
    single = q.granularity == PerTensor()
    blocks = [(QParams(*(p if p is None else p[[i]] for p in given[:2]))) for i in range(4)] if single else [given]
    every = [knife_edge_array(q, qparams, DTYPES[dtype]) for qparams in blocks]
    size = WIDTH if q.format.bits <= 8 else 5 * 2**16 + 64
    return [(_filled(x, size), p) if single else _filled_blocks(q, x, p) for x, p in every]


def _filled(x: Array, width: int) -> Array:
    """Rows repeated up to a width that holds the edges of every 8-bit format."""
    assert x.shape[-1] <= width
    return np.take(x, np.arange(width) % x.shape[-1], axis=-1)


def _filled_blocks(q: Quantizer, x: Array, qparams: QParams) -> tuple[Array, QParams]:
    """Longer blocks, or where their size is given more of them: 16, or 512 rows of blocks 32 x 32."""
    if isinstance(q.granularity, PerAxis | PerToken):
        return _filled(x, WIDTH), qparams
    count, scale = 16, np.asarray(qparams.scale)
    assert len(scale) <= count
    rows = len(x) // len(scale) * count
    parts = (p if p is None else np.resize(p, (count, *p.shape[1:])) for p in qparams[:2])
    return np.resize(x, (rows, *x.shape[1:])), QParams(*parts)


# --- values, element by element --------------------------------------------------------------------------------------


@pytest.mark.thorough
@entries_and_dtypes("float32", "bfloat16")
def test_knife_edges_of_the_catalog(name: str, dtype: str) -> None:
    for x, qparams in edges(catalog[name], dtype):
        assert_same_functions(catalog[name], x, qparams, modes_for(name, dtype))


@each_rounding
@pytest.mark.parametrize("name", ["int8_narrow_per_channel", "uint4_affine_per_group32"])
def test_knife_edges_of_every_rounding(name: str, rounding: Rounding) -> None:
    q = catalog[name].replace(rounding=rounding)
    for dtype in NARROW:
        for x, qparams in edges(q, dtype):
            assert_same_functions(q, x, qparams, BOTH if dtype == NARROW[1] else ("eager",))
            assert_same_functions(q.replace(gradient="pass_through"), x, qparams, ("eager",))


@each_rounding
def test_every_zero_point_moves_the_ends_of_the_mask(rounding: Rounding) -> None:
    q = Quantizer(format=IntegerFormat(3), granularity=PerAxis(0), zero_point="min_max", rounding=rounding)
    for zeros in ((-4, -3, -2, -1), (0, 1, 2, 3)):
        for x, qparams in edges(q, "float32", zeros):
            assert_same_functions(q, x, qparams, ("eager",))


@pytest.mark.parametrize("rounding", DIRECTED)
def test_tiny_quotients_round_in_their_direction(rounding: Rounding) -> None:
    """Quotients around half the smallest subnormal, subnormal quotients, and subnormal x, of both signs."""
    q = Quantizer(format=IntegerFormat(8), granularity=PerAxis(0), rounding=rounding)
    scale = np.array([1, 1.5, 2.0**-60, 3.0e30, 2.0**127, 2.0**10 / 3, 2.0**-126, 2.0**24 - 1], np.float32)[:, None]
    powers = np.array([-150, -149, -148, -140, -126, -125, -24, -1, 0])
    with np.errstate(under="ignore", over="ignore"):
        places = [neighbours((s * 2.0**powers).astype(np.float32), 2) for s in scale[:, 0].astype(np.float64)]
        places = [np.concatenate([p, -p, from_ordinal(np.array([1, 2, 3, -1, -5, 2**22]), np.float32)]) for p in places]
    x = np.stack([np.resize(p, 128) for p in places])
    assert max(map(len, places)) <= 128
    assert_same_functions(q, x, QParams(scale))
    by_fractions = [
        [fake_quantized(q, float(v), float(s[0]), 0.0, "float32") for v in r] for r, s in zip(x, scale, strict=True)
    ]
    assert_same_bits(np.array(by_fractions, np.float32), jax_backend.fake_quantize(q, x, QParams(scale)), inputs=x)
    moved = core.quantize(q, x, QParams(scale))[(x != 0) & (np.abs(x) < scale * np.float32(2.0**-100))]
    assert (
        set(np.unique(moved)) == {"toward_zero": {0}, "toward_positive": {0, 1}, "toward_negative": {-1, 0}}[rounding]
    )


@each_dtype
@pytest.mark.parametrize("rounding", DIRECTIONS)
def test_round_to_integer_keeps_the_sign_of_zero(rounding: Rounding, dtype: str) -> None:
    halves = np.arange(-9, 10) / 2
    around = [np.nextafter(halves, np.inf), halves, np.nextafter(halves, -np.inf), [1e7 + 0.5, 2.0**23 + 1, -(2.0**30)]]
    with np.errstate(all="ignore"):
        x = np.concatenate([np.concatenate(around).astype(DTYPES[dtype]), special_values(DTYPES[dtype])])
        want = core.rounding.round_to_integer(x, rounding)
    assert_same_bits(want, round_to_integer(to_jax(x), rounding), inputs=x)
    if dtype == "float32":
        assert_same_bits(want, jax.jit(round_to_integer, static_argnums=1)(to_jax(x), rounding), inputs=x)


@entries_and_dtypes("float32", "float16")
def test_parameters_of_awkward_data(name: str, dtype: str) -> None:
    q, rng, kind = catalog[name], np.random.default_rng(0), DTYPES[dtype]
    largest = float(np.finfo(np.float16).max if dtype == "float16" else np.finfo(np.float32).max / 2)
    rows = [rng.standard_normal(128) * 2.0**k for k in (-140, -126, -20, 0, 10)]
    rows += [np.zeros(128), -np.zeros(128), np.full(128, 5.0), np.full(128, -5.0), np.linspace(-largest, largest, 128)]
    rows += [np.where(np.arange(128) == 77, v, np.float32(0)) for v in (2.0**-149, -(2.0**-130), -(2.0**-126), 127.0)]
    of_rows = isinstance(q.granularity, PerToken | PerGroup) or q.granularity == PerAxis(0)  # which have scales apart
    for x in [np.resize(rows, (32, 128))] + ([] if of_rows else [np.tile(row, (32, 1)) for row in rows]):
        assert_same_parameters(q, x.astype(kind), modes_for(name, dtype))


QUANTIZERS = st.builds(
    Quantizer,
    format=st.builds(IntegerFormat, st.integers(2, 16), st.booleans(), st.booleans()),
    granularity=st.sampled_from([PerTensor(), PerAxis(0), PerGroup(32)]),
    zero_point=st.sampled_from(["none", "min_max"]),
    rounding=st.sampled_from(Rounding),
    gradient=st.sampled_from([rule for rule in Gradient if rule not in ON_QUOTIENT]),
)


@settings(max_examples=10)
@given(QUANTIZERS, st.data())
def test_any_quantizer_any_array(q: Quantizer, data: st.DataObject) -> None:
    """Of one shape, since every operation is compiled for each shape it meets."""
    x, parameters, _ = data.draw(strategies.cases(q, shape=(32, 128)))
    assert_same_functions(q, x, parameters, ("eager",))


def test_float64_where_jax_has_it() -> None:
    with jax.enable_x64(True):
        for x, qparams in edges(AFFINE, "float64"):
            assert_same_functions(AFFINE, x, qparams)
        for size in (1e-310, 1e300):
            assert_same_parameters(AFFINE, np.random.default_rng(0).standard_normal((32, 128)) * size, ("jit",))
    with pytest.raises(TypeError, match="`x` must not be float64 unless jax_enable_x64 is set"):
        jax_backend.fake_quantize(SYMMETRIC, np.zeros(3))


# --- layouts, sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerAxis(1), PerAxis(-1), PerToken(), PerGroup(4, 0), PerBlock((2, 3))], ids=str
)
def test_granularities_in_four_dimensions(granularity: Any) -> None:
    q = Quantizer(format=IntegerFormat(8, signed=False), granularity=granularity, zero_point="min_max")
    x = np.random.default_rng(0).standard_normal((8, 5, 6, 9)).astype(np.float32)
    assert_same_parameters(q, x, ("jit",))
    assert_same_functions(q, x, core.choose_qparams(q, x), ("jit",))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("int8_per_tensor", ()),
        ("uint8_affine_per_tensor", ()),
        ("int8_per_tensor", (0,)),
        ("uint8_affine_per_channel", (0, 3)),
        ("int8_affine_per_token", (3, 0)),
    ],
)
def test_scalars_and_empty_arrays(name: str, shape: tuple[int, ...]) -> None:
    for dtype, mode in (("float32", "jit"), ("bfloat16", "eager")):
        x = np.full(shape, 0.3, DTYPES[dtype])
        assert_same_parameters(catalog[name], x, (mode,))
        assert_same_functions(catalog[name], x, core.choose_qparams(catalog[name], x), (mode,))


# --- gradients of the parameters -------------------------------------------------------------------------------------


def terms_of(q: Quantizer, x: Array, qparams: QParams, g: Array) -> tuple[Array, Array | None]:
    """What is summed for the gradients of scale and zero point: core's gradients with a scale for every element."""
    shares = (expand_blocks(np.asarray(p), q.granularity, x.shape) for p in qparams[:2] if p is not None)
    gradient = Gradient.CLIPPED if q.gradient is Gradient.LEARNED_SCALE else q.gradient
    single = q.replace(granularity=PerGroup(1), gradient=gradient)
    d = core.fake_quantize_vjp(single, x, QParams(*shares), g)
    return d.scale, d.zero_point


def assert_within_stated_bound(q: Quantizer, terms: Array, got: Any) -> None:
    """Off the exact sum, times the factor of the gradient rule, by no more than `block_sum` states."""
    blocks = split_blocks(terms, q.granularity).astype(np.float64)
    blocks = blocks.reshape(-1, blocks.shape[-1])
    n = blocks.shape[-1]
    factor = np.float64(np.float32(core.ste.learned_scale_factor(q, n)))
    exact = np.array([math.fsum(row) for row in blocks.tolist()])
    rows = ROW * max(1, math.ceil(math.log(max(n, 2), ROW))) * 2.0**-24
    bound = rows * np.array([math.fsum(row) for row in np.abs(blocks).tolist()]) + n * 2.0**-126
    error = np.abs(to_numpy(got).reshape(-1).astype(np.float64) - exact * factor)
    assert to_numpy(got).dtype == np.float32
    assert to_numpy(got).shape == qparams_shape(q.granularity, terms.shape)
    assert np.all(error <= bound * factor + 2.0**-24 * np.abs(exact) * factor * (1 + 2.0**-20))


@pytest.mark.parametrize("gradient_rule", [rule for rule in Gradient if rule not in ON_QUOTIENT])
@pytest.mark.parametrize(
    "name", ["int8_per_tensor", "uint8_affine_per_channel", "uint4_affine_per_group32", "int8_per_block"]
)
def test_gradients_of_parameters_are_within_the_stated_bound(name: str, gradient_rule: Gradient) -> None:
    q, rng = catalog[name].replace(gradient=gradient_rule), np.random.default_rng(0)

    @jax.jit
    def pulled(x: Any, scale: Any, zero: Any, g: Any) -> Any:
        return jax.vjp(lambda s, z: jax_backend.fake_quantize(q, x, QParams(s, z)), scale, zero)[1](g)

    for dtype in ("bfloat16",) if gradient_rule is Gradient.PASS_THROUGH else ("float32",):
        x, g = rng.standard_normal((2, 64, 160)).astype(DTYPES[dtype])
        scale, zero = core.choose_qparams(q, x)[:2]
        qparams = QParams(np.asarray(scale * np.float32(0.7)), zero)  # so that some are clamped
        d_scale, d_zero = pulled(x, qparams.scale, None if zero is None else zero.astype(np.float32), g)
        whole = jax_backend.fake_quantize_vjp(q, x, qparams, g)
        for terms, gradients in zip(terms_of(q, x, qparams, g), ((d_scale, whole[1]), (d_zero, whole[2])), strict=True):
            for got in gradients:
                assert (terms is None) == (got is None)
                if terms is not None:
                    assert_within_stated_bound(q, terms, got)


@pytest.mark.parametrize(
    ("granularity", "shape"), [(PerTensor(), (3, 21846)), (PerAxis(1), (700, 5, 3)), (PerBlock((2, 97)), (4, 194))]
)
def test_sums_that_cancel_stay_within_the_bound(granularity: Any, shape: tuple[int, ...]) -> None:
    """Terms of every magnitude that nearly cancel: sums in any order but a bounded one miss the bound."""
    q, rng = SYMMETRIC.replace(granularity=granularity), np.random.default_rng(0)
    terms = (rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 20, shape)).astype(np.float32)
    terms = np.concatenate([terms, -np.nextafter(terms, np.float32(np.inf))]).astype(np.float32)
    assert_within_stated_bound(q, terms, jax.jit(block_sum, static_argnums=1)(terms, granularity))
    assert_within_stated_bound(q, terms, block_sum(to_jax(terms), granularity))
    whole = np.round(terms).astype(np.float32) % 64  # integers: no sum rounds
    assert_same_bits(core.ste.block_sum(whole, granularity), block_sum(to_jax(whole), granularity))


def test_the_chosen_scale_is_constant_and_integer_zero_points_have_no_gradient() -> None:
    x = to_jax(np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32))
    given = jax_backend.choose_qparams(SYMMETRIC, x)
    assert_same_bits(jax_backend.fake_quantize(SYMMETRIC, x, given), jax_backend.fake_quantize(SYMMETRIC, x))
    ones = jax.grad(lambda v: jax_backend.fake_quantize(SYMMETRIC, v).sum())(x)
    assert_same_bits(np.ones(x.shape, np.float32), ones)
    nothing = jax.grad(lambda v: jax_backend.choose_qparams(AFFINE, v).scale.sum())(x)
    assert_same_bits(np.zeros(x.shape, np.float32), nothing)
    given = jax_backend.choose_qparams(AFFINE, x)
    gradient = jax.grad(lambda p: jax_backend.fake_quantize(AFFINE, x, p).sum(), allow_int=True)(given)
    assert gradient.scale.shape == (8, 1)
    assert gradient.zero_point.dtype == jax.dtypes.float0


def test_ordinals_are_what_the_tests_take_them_for() -> None:
    assert ordinal(np.float32(2.0**-149)) == 1
    assert from_ordinal(np.array(-1), np.float32) == np.float32(-(2.0**-149))
