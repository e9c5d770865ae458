"""jax_backend beside core for binary, ternary, floating-point and codebook formats, bit for bit.

What depends on the format alone is tried on one quantizer for every format, and on arrays of few shapes: JAX compiles
every program, and without `jax.jit` every operation, for each shape that it meets.
"""

import contextlib
from functools import partial
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import (
    CodebookFormat,
    FloatFormat,
    IntegerFormat,
    PerTensor,
    QParams,
    Quantizer,
    Rounding,
    Specials,
    TernaryFormat,
    catalog,
)
from samebits.core import grid as core_grid
from samebits.core import minifloat as core_minifloat
from samebits.core.granularity import qparams_shape
from samebits.core.quantizer import codes_and_zero_points as core_codes_and_zero_points
from samebits.jax_backend import grid, minifloat
from samebits.jax_backend.ieee import divide_exactly, multiply_exactly, narrow_exactly
from samebits.jax_backend.quantizer import codes_and_zero_points
from samebits.jax_backend.ste import clip_mask
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_jax, to_numpy
from samebits.proofs.modes.programs import jax_types

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow and NaN are what is tested
Array = NDArray[Any]
ENTRIES = {name: q for name, q in catalog.items() if not isinstance(q.format, IntegerFormat)}
SMALLEST = float(np.float32(1e-45))
CUSTOM = {
    "bfloat16": FloatFormat(8, 7),
    "float16": FloatFormat(5, 10),
    "e8m0": FloatFormat(8, 0),
    "float16 with the exponents of float32's least": FloatFormat(5, 10, bias=127),
    "subnormals only": FloatFormat(1, 2, bias=127),
    "e5m2 to infinity": FloatFormat(5, 2, saturate=False),
    "e4m3fn to NaN": FloatFormat(4, 3, specials=Specials.NAN_ONLY, saturate=False),
    "e4m3fnuz to NaN": FloatFormat(4, 3, specials=Specials.NEGATIVE_ZERO, saturate=False),
    "e2m1 does not saturate": FloatFormat(2, 1, specials=Specials.NONE, saturate=False),
    "ternary 0": TernaryFormat(0.0),
    "ternary 1e-40": TernaryFormat(1e-40),
    "positive": CodebookFormat((0.5, 1.0, 4.0)),
    "sign": CodebookFormat((-1.0, 1.0)),
    "from zero": CodebookFormat((0.0, 1.0)),
    "subnormal": CodebookFormat((-1.0, -2 * SMALLEST, -SMALLEST, 0.0, SMALLEST, float(np.float32(1e-41)), 1.0)),
    "256 numbers": CodebookFormat(tuple(float(n) / 8 for n in range(-127, 129))),
}
QUANTIZERS = ENTRIES | {name: Quantizer(format=format) for name, format in CUSTOM.items()}
MORE = (Rounding.STOCHASTIC, Rounding.LEARNED)  # those that look at more than the number
ROUNDINGS = [r for r in Rounding if r not in (Rounding.TIES_TO_EVEN, *MORE)]
FEW = [Rounding.TIES_TO_AWAY, Rounding.TOWARD_NEGATIVE]
DIRECTED = {
    f"{name} {rounding}": QUANTIZERS[name].replace(rounding=rounding)
    for names, roundings in (
        (("float8_e5m2_per_tensor", "subnormals only"), ROUNDINGS),
        (("float8_e4m3fnuz_per_tensor", "bfloat16"), FEW),
    )
    for name in names
    for rounding in roundings
}
IN_CATALOG = {q.format: name for name, q in ENTRIES.items()}.values()  # one for each, the last, for blocks of all kinds
FORMATS = [*IN_CATALOG, *(name for name, form in CUSTOM.items() if form not in {q.format for q in ENTRIES.values()})]
SCALES = (2.0**-126, 1e-30, 0.1, 1 - 2.0**-24, 1.0, 1e30)
SHAPE = (1024, 64)  # fits every granularity, and 65,536 numbers
LENGTH = 5280  # holds the edges of every format


def all_patterns(dtype: Any) -> Array:
    return np.arange(2**16, dtype=np.uint16).view(dtype).reshape(SHAPE)


def all_codes(q: Quantizer) -> Array:
    match q.format:
        case FloatFormat():
            return np.arange(2**q.format.bits).astype(q.format.storage)
        case CodebookFormat():
            return np.arange(len(q.format.values)).astype(q.format.storage)
        case TernaryFormat():
            return np.array([-1, 0, 1], np.int8)
        case _:
            return np.array([-1, 1], np.int8)


def scale_for(q: Quantizer, shape: tuple[int, ...], scale: float, dtype: Any = np.float32) -> Array:
    """The scale, and in other blocks its neighbours upwards."""
    blocks = qparams_shape(q.granularity, shape)
    first = np.array(scale, dtype)
    return (
        np.asarray(first * (1 + np.arange(np.prod(blocks, dtype=int)) % 3 * np.finfo(dtype).eps))
        .reshape(blocks)
        .astype(dtype)
    )


def cotangent(x: Array) -> Array:
    g = np.random.default_rng(1).standard_normal(x.size).astype(x.dtype)
    g[::9] = np.resize(special_values(x.dtype), g[::9].size)
    return g.reshape(x.shape)


def everything(q: Quantizer, x: Any, number: Any, codes: Any, g: Any, scale: Any) -> dict[str, Any]:
    """What the functions say; ``number`` is ``x`` where NaN has a code, else less its NaN."""
    room, given = jax_backend, QParams(scale)
    y, pull = jax.vjp(lambda v: room.fake_quantize(q, v, given), x)
    return {
        "codes": room.quantize(q, number, given),
        "values": room.dequantize(q, codes, given, x.dtype),
        "fake": y,
        "gradient": pull(g)[0],
        "gradient asked for": room.fake_quantize_vjp(q, x, given, g).x,
        "numbers": codes_and_zero_points(q, x, given)[0],
    }


jitted = partial(jax.jit, static_argnums=0)(everything)


def expected(q: Quantizer, x: Array, g: Array, given: QParams) -> tuple[Array, Array, dict[str, Array]]:
    number = x if q.format.has_nan else np.where(np.isnan(x), np.zeros_like(x), x)
    codes = core.quantize(q, number, given)
    dx = core.fake_quantize_vjp(q, x, given, g).x
    return (
        number,
        codes,
        {
            "codes": codes,
            "values": core.dequantize(q, codes, given, x.dtype),
            "fake": core.fake_quantize(q, x, given),
            "gradient": dx,
            "gradient asked for": dx,
            "numbers": core_codes_and_zero_points(q, x, given)[0],
        },
    )


def check(q: Quantizer, x: Array, scale: Array, *, jit: bool) -> None:
    g = cotangent(x)
    number, codes, want = expected(q, x, g, QParams(scale))
    run = jitted if jit else everything
    with contextlib.nullcontext() if jit else jax.disable_jit():
        got = run(q, *map(to_jax, (x, number, codes, g, scale)))
    for name, array in want.items():
        assert_same_bits(array, to_numpy(got[name]), inputs=x)


def edges(q: Quantizer, scale: float) -> Array:
    """Numbers of the format, what lies halfway between neighbours and beyond the ends, times the scale; and around."""
    numbers = np.unique(core_grid.decode(q, all_codes(q), np.dtype(np.float64)))
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size > 512:
        numbers = np.concatenate([numbers[:130], numbers[numbers.size // 2 - 130 :][:260], numbers[-130:]])
    half = numbers[:-1] + np.diff(numbers) / 2
    if isinstance(q.format, CodebookFormat):
        half = np.array(q.format.midpoints)
    if isinstance(q.format, TernaryFormat):
        half = np.array([q.format.threshold, -q.format.threshold])
    end = numbers[-1] + (numbers[-1] - numbers[-2]) / 2
    places = np.concatenate([numbers, half, [end, -end, 2 * end]]) * np.float64(np.float32(scale))
    x = neighbours(places.astype(np.float32), 2)
    return np.concatenate([x, special_values(np.float32), [np.float32(-0.0)]])


def filled(x: Array) -> Array:
    """Repeated up to `LENGTH`."""
    assert x.size <= LENGTH
    return np.resize(x, LENGTH)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", [*IN_CATALOG, "bfloat16", "float16", "e8m0"])
def test_all_16_bit_inputs(name: str, dtype: Any) -> None:
    q, x = QUANTIZERS[name], all_patterns(dtype)
    for scale in SCALES:
        check(q, x, scale_for(q, SHAPE, scale), jit=True)


@pytest.mark.parametrize("name", IN_CATALOG)
def test_all_bfloat16_inputs_operation_by_operation(name: str) -> None:
    q, x = QUANTIZERS[name], all_patterns(ml_dtypes.bfloat16)
    check(q, x, scale_for(q, SHAPE, 0.1), jit=False)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*FORMATS, *DIRECTED])
def test_float32_knife_edges(name: str) -> None:
    q = (QUANTIZERS | DIRECTED)[name].replace(granularity=PerTensor())
    for scale in SCALES:
        check(q, filled(edges(q, scale)), np.float32(scale).reshape(()), jit=True)
    if name in IN_CATALOG:
        check(q, filled(edges(q, 2.0**-126)), np.float32(2.0**-126).reshape(()), jit=False)


@pytest.mark.parametrize("name", ["binary_per_tensor", "float8_e5m2_per_tensor", "nf4_per_group64", *CUSTOM])
def test_random_float32_and_random_scales(name: str) -> None:
    q = QUANTIZERS[name].replace(granularity=core.PerAxis(0))
    rng = np.random.default_rng(3)
    scale = rng.integers(2**23, 255 * 2**23, (64, 1), np.uint32).view(np.float32)
    near = scale * rng.standard_normal((64, 512)).astype(np.float32) * np.float32(abs(q.format.hi))
    anything = rng.integers(0, 2**32, (64, 512), np.uint32).view(np.float32)
    check(q, np.concatenate([near, anything], axis=1), scale, jit=True)


@pytest.mark.parametrize("wide", [False, True])
def test_binary_where_quotients_become_zero(wide: bool) -> None:
    """Negative numbers whose quotient is half the smallest subnormal, a tie that goes to zero and so to +1, or next."""
    dtype, integer = (np.float64, np.int64) if wide else (np.float32, np.int32)
    low, top, step = np.finfo(dtype).minexp, np.finfo(dtype).maxexp, np.finfo(dtype).nmant + 1
    powers = np.exp2(np.array([low, 0, 1, 2, step - 1, step, step + 1, top - 1], dtype))
    scale = np.concatenate([neighbours(powers, 1), np.exp2(np.linspace(low + 1, top - 1, 30)).astype(dtype)])
    scale = scale[np.isfinite(scale) & (scale >= powers[0])].reshape(-1, 1)
    with np.errstate(all="ignore"):
        tie = np.where(scale < 2.0**step, scale / 2, scale.view(integer) - ((step - low) << (step - 1))).astype(integer)
    pattern = np.maximum(tie + np.arange(-3, 4), 0).astype(integer)
    x = np.concatenate([pattern.view(dtype), -pattern.view(dtype), np.resize(special_values(dtype), (len(tie), 16))], 1)
    q = catalog["binary_per_tensor"].replace(granularity=core.PerAxis(0))
    with jax_types(wide=wide):
        check(q, x, scale, jit=True)


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize_of_every_code(name: str) -> None:
    q = QUANTIZERS[name].replace(granularity=PerTensor())
    codes, dtypes = all_codes(q), [np.dtype(t) for t in (np.float32, ml_dtypes.bfloat16, np.float16)]
    run = jax.jit(lambda c, s: [jax_backend.dequantize(q, c, QParams(s), dtype) for dtype in dtypes])
    for scale in map(np.float32, SCALES):
        for dtype, got in zip(dtypes, run(to_jax(codes), scale), strict=True):
            want = core.dequantize(q, codes, QParams(scale.reshape(())), dtype)
            assert_same_bits(want, to_numpy(got), inputs=codes)


@pytest.mark.parametrize("name", [*FORMATS, *DIRECTED])
def test_grid_and_minifloat_one_by_one(name: str) -> None:
    q = (QUANTIZERS | DIRECTED)[name]
    numbers = np.concatenate([edges(q, 1.0), all_patterns(ml_dtypes.bfloat16).reshape(-1).astype(np.float32)])
    rounded = core_grid.round_to_grid(q, numbers)
    limited = core_grid.limit_to_grid(q, rounded)
    number = limited if q.format.has_nan else np.where(np.isnan(limited), limited[:1], limited)
    mask = ~((rounded < q.format.lo) | (rounded > q.format.hi))

    @jax.jit
    def room(x: Any, rounded: Any, number: Any) -> tuple[Any, ...]:
        parts = grid.round_to_grid(q, x), grid.limit_to_grid(q, rounded), clip_mask(q, rounded)
        return *parts, grid.encode(q, number)

    got = map(to_numpy, room(*map(to_jax, (numbers, rounded, number))))
    for want, x in ((rounded, numbers), (limited, rounded), (mask, rounded), (core_grid.encode(q, number), number)):
        assert_same_bits(want, next(got), inputs=x)
    if isinstance(q.format, FloatFormat) and name in FORMATS:
        codes = all_codes(q)
        decoded = to_numpy(jax.jit(lambda c: minifloat.decode_float(c, q.format))(to_jax(codes)))
        assert_same_bits(core_minifloat.decode_float(codes, q.format).astype(np.float32), decoded, inputs=codes)


def test_every_format_and_every_rounding_is_tried() -> None:
    assert {QUANTIZERS[name].format for name in FORMATS} == {q.format for q in QUANTIZERS.values()}
    assert {QUANTIZERS[name].format for name in IN_CATALOG} == {q.format for q in ENTRIES.values()}
    assert {q.rounding for q in DIRECTED.values()} == set(Rounding) - {Rounding.TIES_TO_EVEN, *MORE}


def test_division_and_multiplication_of_ieee() -> None:
    rng = np.random.default_rng(0)
    s = rng.integers(2**23, 255 * 2**23, 2**18, np.uint32).view(np.float32)
    x = rng.integers(0, 2**32, 2**18, np.uint32).view(np.float32)
    halves = (2 * rng.integers(0, 2**15, 2**16) + 1).astype(np.float64) * 2.0**-150  # ties among the subnormals
    for divided in (True, False):
        small = rng.uniform(2.0**-149, 2.0**-125, s.size)
        near = (small * s.astype(np.float64) if divided else small / s.astype(np.float64)).astype(np.float32)
        power = np.exp2(rng.integers(-20, 20, halves.size)).astype(np.float32)
        tie = (halves * power if divided else halves / power).astype(np.float32)
        a, b = np.concatenate([x, near, tie, tie]), np.concatenate([s, s, power, np.nextafter(power, np.float32(0))])
        function = divide_exactly if divided else multiply_exactly
        want = a / b if divided else a * b
        assert_same_bits(want, to_numpy(jax.jit(function)(a, b)), inputs=a)
        assert_same_bits(want[:4096], to_numpy(function(a[:4096], b[:4096])), inputs=a[:4096])
    every = np.concatenate([x, np.arange(2**17, dtype=np.uint32).view(np.float32)])
    for dtype in (ml_dtypes.bfloat16, np.float16):
        got = to_numpy(jax.jit(lambda v, dtype=dtype: narrow_exactly(v, dtype))(every))
        assert_same_bits(every.astype(dtype), got, inputs=every)


@pytest.mark.parametrize("name", [*IN_CATALOG, "float16", "e8m0", "ternary 0", "positive", "256 numbers"])
def test_chosen_parameters(name: str) -> None:
    q = QUANTIZERS[name]
    rng = np.random.default_rng(2)
    both = jax.jit(lambda x: (jax_backend.choose_qparams(q, x), jax_backend.fake_quantize(q, x)))
    for size in (1.0, 1e-38, 1e-42, 3e37, 0.0):
        x = (rng.standard_normal(SHAPE) * size).astype(np.float32)
        x[np.isinf(x)] = 0
        chosen, hat = both(x)
        assert_same_bits(core.choose_qparams(q, x).scale, to_numpy(chosen.scale))
        assert_same_bits(core.fake_quantize(q, x), to_numpy(hat), inputs=x)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", IN_CATALOG)
def test_inside_a_larger_program_and_mapped(name: str, dtype: Any) -> None:
    q = ENTRIES[name]
    x, w, b = np.random.default_rng(4).standard_normal((3, 3, *SHAPE)).astype(np.float32)
    x[:, ::3] *= np.float32(1e-6)
    x, w, b = (a.astype(dtype) for a in (x, w, b))
    scale = np.stack([scale_for(q, SHAPE, s) for s in (0.1, 0.7, 3e-30)])
    hats = [core.fake_quantize(q, *pair) for pair in zip(x, map(QParams, scale), strict=True)]

    @jax.jit
    def program(x: Any, s: Any, w: Any, b: Any) -> tuple[Any, ...]:
        def fake(x: Any, s: Any) -> Any:
            return jax_backend.fake_quantize(q, x, QParams(s))

        return fake(x[0], s[0]) + b[0], fake(x[1], s[1]) * w[1], jax.vmap(fake)(x, s)

    plus, times, mapped = map(to_numpy, program(*map(to_jax, (x, scale, w, b))))
    assert_same_bits(hats[0] + b[0], plus, inputs=x[0])
    assert_same_bits(hats[1] * w[1], times, inputs=x[1])
    assert_same_bits(np.stack(hats), mapped, inputs=x)


@pytest.mark.parametrize(
    "name", ["binary_per_tensor", "ternary_per_tensor", "float8_e5m2_per_tensor", "nf4_per_group64"]
)
def test_scalars_and_empty_arrays(name: str) -> None:
    q, given = QUANTIZERS[name].replace(granularity=PerTensor()), QParams(np.float32(0.1).reshape(()))
    for value in (np.float32(0.3), np.float32(-1e-41), np.zeros((0, 64), np.float32)):
        got = jax_backend.fake_quantize(q, to_jax(np.asarray(value)), QParams(to_jax(given.scale)))
        assert_same_bits(core.fake_quantize(q, np.asarray(value), given), to_numpy(got))


@pytest.mark.parametrize("name", FORMATS)
def test_nan_has_its_code_or_none(name: str) -> None:
    q = QUANTIZERS[name].replace(granularity=PerTensor())
    x, given = np.array([np.nan, -np.nan, 1.0], np.float32), QParams(np.float32(1).reshape(()))
    compiled = to_numpy(jax.jit(lambda v: jax_backend.quantize(q, v, given))(x))
    if q.format.has_nan:
        want = core.quantize(q, x, given)
        assert_same_bits(want, to_numpy(jax_backend.quantize(q, to_jax(x), given)))
    else:
        want = core.quantize(q, np.array([0, 0, 1], np.float32), given)
        with pytest.raises(ValueError, match="NaN"):
            jax_backend.quantize(q, to_jax(x), given)
    assert_same_bits(want, compiled)


@pytest.mark.parametrize(
    "name",
    ["binary_per_tensor", "ternary_per_tensor", "float8_e5m2_per_tensor", "bfloat16", "nf4_per_group64", "subnormal"],
)
def test_float64(name: str) -> None:
    q = QUANTIZERS[name].replace(granularity=PerTensor())
    x = filled(np.concatenate([edges(q, 0.1).astype(np.float64) * (1 + 2.0**-30), special_values(np.float64)]))
    for scale in (0.1, 2.0**-1022):
        with jax_types(wide=True):
            check(q, x, np.float64(scale).reshape(()), jit=True)
            check(q, x, np.float64(scale).reshape(()), jit=False)


@pytest.mark.parametrize("name", ["binary_per_tensor", "ternary_per_tensor", "float8_e5m2_per_tensor", "bfloat16"])
def test_gradient_of_the_scale(name: str) -> None:
    """Sums of which no term rounds, so that any order gives the same."""
    q = QUANTIZERS[name].replace(granularity=core.PerAxis(0))
    steps = np.array([-9, -3, -1.5, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 7], np.float32)
    scale = np.array([[0.5], [1.0], [2.0]], np.float32)
    x, g = steps * scale, np.tile(np.array([1, -1, 2, 1], np.float32), (3, 4))
    want = core.fake_quantize_vjp(q, x, QParams(scale), g).scale
    got = jax.jit(lambda *a: jax_backend.fake_quantize_vjp(q, a[0], QParams(a[1]), a[2]).scale)(x, scale, g)
    assert_same_bits(want, to_numpy(got))
