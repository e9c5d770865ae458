"""Tests of the strategies: they yield what they claim, all of it, and nothing that the specification refuses."""

from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samebits import core
from samebits.core import (
    BinaryFormat,
    CodebookFormat,
    Denominator,
    FloatFormat,
    Gradient,
    Granularity,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    Quantizer,
    Restriction,
    Rounding,
    Statistic,
    TernaryFormat,
    ZeroPoint,
    catalog,
)
from samebits.core.formats import Specials
from samebits.core.granularity import qparams_shape
from samebits.proofs.inputs import strategies
from samebits.proofs.inputs.bits import ordinal, raw_bits, stored_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.inputs.strategies import DTYPES, FINITE, KINDS, near

pytestmark = pytest.mark.filterwarnings("error")

GRANULARITIES: list[Granularity] = [
    PerTensor(),
    PerAxis(0),
    PerAxis(2),
    PerAxis(-2),
    PerToken(),
    PerGroup(3, -1),
    PerGroup(2, 1),
    PerBlock((2, 3)),
    PerBlock((4,)),
]
SHAPE = (64,)


def drawn(kind: str, dtype: str, *, scale: float = 0.1, q: str = "int8_per_tensor") -> NDArray[Any]:
    """256 elements of one kind, of a quantizer with this scale."""
    generator = np.random.default_rng(7)
    numbers = near(generator, catalog[q], np.zeros(256))
    return KINDS[kind](generator, np.full(256, np.float64(np.float32(scale))), numbers, DTYPES[dtype])


def examples(strategy: st.SearchStrategy[Any], count: int = 300) -> list[Any]:
    """What a test of this many examples would be given."""
    seen: list[Any] = []

    @settings(max_examples=count, phases=[Phase.generate])
    @given(strategy)
    def collect(value: Any) -> None:
        seen.append(value)

    collect()
    return seen


def reachable(strategy: st.SearchStrategy[Any], *claims: Callable[[Any], bool], count: int = 300) -> None:
    """Each claim holds for some of the examples."""
    seen = examples(strategy, count)
    missed = [number for number, claim in enumerate(claims) if not any(map(claim, seen))]
    assert not missed, f"no example of claims {missed} among {len(seen)}"


@cache
def variants() -> list[Quantizer]:
    return examples(strategies.variants(), 700)


@pytest.mark.parametrize("member", [*Rounding, *Gradient, *ZeroPoint, *Restriction, *Denominator, *Statistic], ids=str)
def test_variants_reach_every_choice(member: Any) -> None:
    chosen = [
        (q.rounding, q.gradient, q.zero_point, q.scale.restriction, q.scale.denominator, q.scale.statistic)
        for q in variants()
    ]
    assert any(member in choices for choices in chosen)


@pytest.mark.parametrize("kind", [PerTensor, PerAxis, PerToken, PerGroup, PerBlock])
def test_variants_reach_every_granularity(kind: Any) -> None:
    assert any(isinstance(q.granularity, kind) for q in variants())


def test_float_formats_reach_every_kind() -> None:
    seen: list[FloatFormat] = examples(strategies.float_formats())
    assert {f.specials for f in seen} == set(Specials)
    assert {f.saturate for f in seen} == {False, True}
    assert {f.exponent_bits for f in seen} >= {1, 2, 4, 8}
    assert {f.mantissa_bits for f in seen} >= {0, 1, 3, 10}
    assert any(f.bias == 0 for f in seen)
    assert any(f.max_exponent < f.min_exponent for f in seen)  # all numbers subnormal
    assert all(f.hi >= 1 for f in seen)


def test_variants_reach_every_format() -> None:
    claims: dict[str, Callable[[Quantizer], bool]] = {
        "signed": lambda q: getattr(q.format, "signed", False),
        "unsigned": lambda q: not getattr(q.format, "signed", True),
        "narrow": lambda q: getattr(q.format, "narrow", False),
        "binary": lambda q: isinstance(q.format, BinaryFormat),
        "threshold": lambda q: isinstance(q.format, TernaryFormat) and q.format.threshold != 0.5,
        "codebook": lambda q: isinstance(q.format, CodebookFormat),
        "no zero": lambda q: isinstance(q.format, CodebookFormat) and 0.0 not in q.format.values,
        "infinity": lambda q: isinstance(q.format, FloatFormat) and not q.format.saturate,
        "bits 2": lambda q: q.format.bits == 2,
        "bits 16": lambda q: q.format.bits == 16,
        "floor": lambda q: q.scale.floor is not None,
    }
    missed = [name for name, claim in claims.items() if not any(map(claim, variants()))]
    assert not missed


def test_quantizers_reach_the_catalog_and_more() -> None:
    seen = examples(strategies.quantizers(), 800)
    assert set(catalog.values()) < set(seen)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@settings(max_examples=30)
@given(st.data())
def test_shapes_are_accepted(granularity: Granularity, data: st.DataObject) -> None:
    shape = data.draw(strategies.shapes(granularity))
    granularity.block_size(shape)
    assert np.prod(shape) <= 10_000


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_shapes_reach_empty_ones(granularity: Granularity) -> None:
    reachable(strategies.shapes(granularity), lambda shape: 0 in shape, lambda shape: bool(np.prod(shape) > 1))


def test_shapes_reach_no_axes() -> None:
    reachable(strategies.shapes(PerTensor()), lambda shape: shape == ())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(st.data())
def test_scales_are_positive_normal_numbers(dtype: Any, data: st.DataObject) -> None:
    scale = np.asarray(data.draw(strategies.scales(dtype)), dtype)
    assert np.finfo(dtype).smallest_normal <= scale <= np.finfo(dtype).max
    power = np.asarray(data.draw(strategies.scales(dtype, restriction=Restriction.POWER_OF_TWO)), dtype)
    assert np.frexp(power)[0] == 0.5
    assert np.finfo(dtype).smallest_normal <= power <= np.finfo(dtype).max


def test_scales_reach_the_ends_and_both_sides_of_powers_of_two() -> None:
    limits = np.finfo(np.float32)
    below, above = 1 - 2.0**-24, 0.5 + 2.0**-24
    reachable(
        strategies.scales(),
        lambda s: s == limits.smallest_normal,
        lambda s: s == limits.max,
        lambda s: bool(np.frexp(s)[0] == below),
        lambda s: bool(np.frexp(s)[0] == above),
        lambda s: bool(np.frexp(s)[0] == 0.5),
        lambda s: 1e-3 < s < 1 and bool(np.frexp(s)[0] not in (0.5, below, above)),
        lambda s: 1e20 < s < 1e30,
    )


@settings(max_examples=150)
@given(st.data())
def test_cases_are_what_the_specification_takes(data: st.DataObject) -> None:
    q = data.draw(strategies.quantizers())
    x, qparams, g = data.draw(strategies.cases(q))
    assert qparams.scale.shape == qparams_shape(q.granularity, x.shape)
    assert (x.shape, x.dtype) == (g.shape, g.dtype)
    assert np.isfinite(g).all()
    core.fake_quantize(q, x, qparams)
    core.fake_quantize_vjp(q, x, qparams, g)


@pytest.mark.parametrize("name", ["uint8_affine_per_tensor", "int8_affine_per_token"])
def test_qparams_reach_every_zero_point_that_matters(name: str) -> None:
    q = catalog[name]
    seen = {int(z) for drawn in examples(strategies.qparams(q, (2, 3), np.float32)) for z in np.ravel(drawn.zero_point)}
    assert {q.format.lo, 0, q.format.hi} <= seen
    assert len(seen) > 20


def test_qparams_reach_several_scales() -> None:
    several = strategies.qparams(catalog["int8_per_channel"], (4, 3), np.float32)
    reachable(several, lambda drawn: len(np.unique(drawn.scale)) == 4)


def test_arrays_mix_kinds() -> None:
    q = catalog["int8_per_tensor"]
    mixed = strategies.arrays(q, QParams(np.float32(0.1)), SHAPE, np.float32)
    reachable(
        mixed,
        lambda x: bool(np.isnan(x).any() and (np.abs(x) < 0.01).any()),
        lambda x: bool(np.isinf(x).any()),
        lambda x: bool((x == 0).all()),
        lambda x: bool((x > 0).all()),
    )
    one = strategies.arrays(q, QParams(np.float32(0.1)), SHAPE, np.float16, kinds=("huge",))
    for x in examples(one, 5):
        assert x.dtype == np.float16
        assert (np.abs(x) >= 2.0**15).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", FINITE)
def test_finite_kinds_are_finite(kind: str, dtype: str) -> None:
    assert np.isfinite(drawn(kind, dtype, scale=3e38)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_kinds_are_what_their_names_say(dtype: str) -> None:
    kind = DTYPES[dtype]
    normal = 2 ** stored_bits(kind)
    infinity = int(ordinal(np.asarray(np.inf, kind)))

    def places(name: str) -> NDArray[Any]:
        return np.abs(ordinal(drawn(name, dtype)))

    assert (places("subnormal") <= normal).all()
    assert (places("subnormal") < normal).any()
    assert (infinity - normal <= places("huge")).all()
    assert (places("huge") < infinity).all()
    remainder = places("powers of two") % normal
    assert (np.minimum(remainder, normal - remainder) <= 2).all()
    assert (remainder == 0).any()
    assert (remainder != 0).any()
    assert (drawn("positive", dtype) >= 0).all()
    assert (np.abs(drawn("tiny", dtype).astype(np.float64)) < 1e-5).all()
    assert (drawn("zero", dtype) == 0).all()
    assert len(np.unique(raw_bits(drawn("equal", dtype)))) == 1
    assert set(raw_bits(drawn("special", dtype)).tolist()) <= set(raw_bits(special_values(kind)).tolist())
    assert len(set(raw_bits(drawn("special", dtype)).tolist())) > 15
    assert (drawn("normal", dtype) != 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ties_and_grid_points_are_near(dtype: str) -> None:
    step = np.float64(np.float32(0.1))
    for name, offset in (("ties", 0.5), ("grid", 0.0)):
        x = drawn(name, dtype)
        nearest = (np.rint(x.astype(np.float64) / step - offset) + offset) * step
        apart = np.abs(ordinal(x) - ordinal(nearest.astype(dtype)))
        assert apart[nearest != 0].max() <= 3
        assert (apart == 0).any()
        assert (apart == 2).any()


def test_bits_are_any_bits() -> None:
    x = drawn("bits", "float16")
    with np.errstate(invalid="ignore"):
        assert np.isnan(x).any()
    assert len(np.unique(raw_bits(x) >> 10)) > 50  # signs and exponents, of 64


@given(strategies.dtypes())
def test_dtypes_are_those_that_every_mode_takes(dtype: np.dtype[Any]) -> None:
    assert dtype in (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@given(strategies.dtypes("float64"))
def test_dtypes_by_name(dtype: np.dtype[Any]) -> None:
    assert dtype == np.float64
