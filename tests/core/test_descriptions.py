"""The nouns of core: formats, quantizers and their parts, the catalog, the dialects, what a contraction may do."""

import dataclasses
import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from samebits.core import (
    Arithmetic,
    BinaryFormat,
    CodebookFormat,
    Denominator,
    FloatFormat,
    Gradient,
    IntegerFormat,
    NanRule,
    PerAxis,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    Quantizer,
    Restriction,
    Rounding,
    ScaleRule,
    ScaleSource,
    Specials,
    ZeroPoint,
    catalog,
    dialects,
    quantize,
)
from samebits.core.contraction import accumulator_bound, contracts_codes, largest_code
from samebits.core.formats import NF4, Format
from samebits.core.scales import SHARED_EXPONENT

ENTRIES = [
    "int8_per_tensor",
    "int8_per_channel",
    "int8_narrow_per_channel",
    "int8_affine_per_token",
    "uint8_affine_per_tensor",
    "uint8_affine_per_channel",
    "int8_power_of_two_per_tensor",
    "int4_per_channel",
    "int4_per_group32",
    "int4_per_group128",
    "uint4_affine_per_group32",
    "int2_per_channel",
    "int8_per_block",
    "int16_per_tensor",
]


@pytest.mark.parametrize("bits", range(1, 17))
def test_ranges_of_integer_formats(bits: int) -> None:
    # brevitas.function.ops.min_int and max_int, the same four cases
    assert (IntegerFormat(bits).lo, IntegerFormat(bits).hi) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (IntegerFormat(bits, False).lo, IntegerFormat(bits, False).hi) == (0, 2**bits - 1)
    if bits > 1:
        assert (IntegerFormat(bits, True, True).lo, IntegerFormat(bits, True, True).hi) == (
            1 - 2 ** (bits - 1),
            2 ** (bits - 1) - 1,
        )
        assert (IntegerFormat(bits, False, True).lo, IntegerFormat(bits, False, True).hi) == (0, 2**bits - 2)


def test_storage_is_the_first_dtype_that_holds_the_range() -> None:
    for bits, signed, narrow in itertools.product(range(2, 17), (True, False), (True, False)):
        fmt = IntegerFormat(bits, signed, narrow)
        fits = [
            n for n in ("int8", "uint8", "int16", "int32") if np.iinfo(n).min <= fmt.lo and fmt.hi <= np.iinfo(n).max
        ]
        assert fmt.storage == fits[0]
    for name in ("int4", "uint4", "int2", "uint2"):  # ranges of an outsider
        info = ml_dtypes.iinfo(name)
        fmt = IntegerFormat(int(name[-1]), signed=name[0] == "i")
        assert (fmt.lo, fmt.hi) == (info.min, info.max)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: IntegerFormat(8.0), TypeError, "`bits` must be an int, got 8.0"),
        (lambda: IntegerFormat(True), TypeError, "`bits` must be an int, got True"),
        (lambda: IntegerFormat(8, "yes"), TypeError, "`signed` must be a bool, got 'yes'"),
        (lambda: IntegerFormat(8, True, 1), TypeError, "`narrow` must be a bool, got 1"),
        (lambda: IntegerFormat(0), ValueError, "`bits` must be in 1..16, got 0"),
        (lambda: IntegerFormat(17), ValueError, "`bits` must be in 1..16, got 17"),
        (lambda: IntegerFormat(1, True, True), ValueError, "`bits` must be at least 2 for a narrow range"),
        (lambda: Arithmetic(fused_multiply_add=1), TypeError, "`fused_multiply_add` must be a bool, got 1"),
        (lambda: Arithmetic(nan="skip"), ValueError, "`nan` must be one of 'propagate', 'lowest', 'highest', 'zero'"),
        (lambda: Arithmetic(division=None), ValueError, "`division` must be one of 'divide', 'reciprocal'; got None"),
        (lambda: ScaleRule(momentum=1), ValueError, "`momentum` must be in [0, 1), got 1"),
        (lambda: ScaleRule(momentum=-0.1), ValueError, "`momentum` must be in [0, 1), got -0.1"),
        (lambda: ScaleRule(floor=-1.0), ValueError, "`floor` must be None, 0.0 or in [2**-126, 2**127], got -1.0"),
        (lambda: ScaleRule(floor=float("nan")), ValueError, "`floor` must be None, 0.0 or in [2**-126, 2**127], got"),
        (lambda: ScaleRule(range_floor=-1.0), ValueError, "`range_floor` must be a finite number of at least 0, got"),
        (lambda: ScaleRule(replace_below="tiny"), ValueError, "`replace_below` must be one of 'epsilon', 'sqrt_sm"),
        (
            lambda: ScaleRule(restriction="pot"),
            ValueError,
            "`restriction` must be one of 'float', 'log_float', 'power_of_two', 'power_of_two_floor', "
            "'power_of_two_ceil', 'power_of_two_even', 'quantized', 'integer', 'integer_nearest'; got 'pot'",
        ),
        (
            lambda: Quantizer(format="int8"),
            TypeError,
            "`format` must be of type IntegerFormat or FloatFormat or BinaryFormat or TernaryFormat or CodebookFormat, "
            "got 'int8'",
        ),
        (
            lambda: Quantizer(format=IntegerFormat(8), granularity=0),
            TypeError,
            "`granularity` must be of type PerTensor or PerAxis",
        ),
        (
            lambda: Quantizer(format=IntegerFormat(8), rounding="up"),
            ValueError,
            "`rounding` must be one of 'ties_to_even'",
        ),
        (
            lambda: Quantizer(format=IntegerFormat(1)),
            ValueError,
            "`format` of a symmetric quantizer must have a positive code, got int1",
        ),
        (
            lambda: catalog["int8_per_tensor"].replace(bits=8, signed=False, denominator="lo"),
            ValueError,
            "`denominator` 'lo' needs a format with negative codes, got uint8",
        ),
        (
            lambda: catalog["int8_per_tensor"].replace(bit=4),
            TypeError,
            "no field bit in a quantizer; fields are arithmetic, batch_in_training, bits,",
        ),
        (
            lambda: catalog["int8_per_tenser"],
            KeyError,
            "unknown quantizer 'int8_per_tenser'; did you mean int8_per_tensor",
        ),
        (lambda: catalog[8], KeyError, "unknown quantizer 8; did you mean"),
        (lambda: dialects["torch"], KeyError, "unknown dialect 'torch'; did you mean torch"),
    ],
)
def test_descriptions_that_make_no_sense(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as refusal:
        make()
    assert refusal.value.args[0].startswith(words)


def test_names_of_members_are_taken_for_members() -> None:
    q = Quantizer(format=IntegerFormat(8), rounding="dpu", gradient="pass_through", zero_point="min_max")
    assert (q.rounding, q.gradient, q.zero_point) == (Rounding.DPU, Gradient.PASS_THROUGH, ZeroPoint.MIN_MAX)
    assert q.affine
    assert ScaleRule(source="learned").source is ScaleSource.LEARNED
    assert ScaleRule(denominator="half_range").denominator is Denominator.HALF_RANGE


def test_replace_reaches_every_part() -> None:
    q = catalog["int8_per_tensor"].replace(
        bits=4, rounding="toward_zero", division="reciprocal", source="learned", granularity=PerGroup(32), momentum=0.5
    )
    assert q == Quantizer(
        format=IntegerFormat(4),
        granularity=PerGroup(32),
        scale=ScaleRule(source="learned", momentum=0.5),
        rounding="toward_zero",
        arithmetic=Arithmetic(division="reciprocal"),
    )
    assert q.replace(format=IntegerFormat(2), signed=False).format == IntegerFormat(2, False)
    assert q.replace(zero_point="none") == q
    assert q.replace() == q


def test_every_field_name_belongs_to_one_part() -> None:
    q = catalog["int8_per_tensor"]
    names = [f.name for part in (q, q.format, q.scale, q.arithmetic) for f in dataclasses.fields(part)]
    assert len(names) == len(set(names))


def test_quantizers_are_values() -> None:
    q = catalog["int8_per_tensor"]
    assert q == Quantizer(format=IntegerFormat(8))
    assert hash(q) == hash(Quantizer(format=IntegerFormat(8)))
    assert len({catalog[name] for name in catalog}) == len(catalog)
    with pytest.raises(dataclasses.FrozenInstanceError):
        q.rounding = Rounding.DPU  # type: ignore[misc]  # what must not be possible


def beginning(format: Format) -> str:
    """How the name of a quantizer of this format begins."""
    match format:
        case IntegerFormat():
            return f"{'' if format.signed else 'u'}int{format.bits}_"
        case FloatFormat():
            return f"float{format.bits}_e{format.exponent_bits}m{format.mantissa_bits}"
        case CodebookFormat():
            assert format == NF4
            return "nf4_"
        case _:
            return "binary_" if isinstance(format, BinaryFormat) else "ternary_"


def test_what_is_known_of_a_quantizer_from_the_start() -> None:
    """It follows the fields, and follows them through `replace`."""
    for q in catalog.values():
        nearest = isinstance(q.format, IntegerFormat) and q.rounding == "ties_to_even" and q.zero_point == "none"
        assert q.nearest_integers == nearest
        assert q.deterministic == (q.rounding not in ("stochastic", "learned"))
    int8 = catalog["int8_per_tensor"]
    assert int8.nearest_integers
    for other in ("stochastic", "learned", "dpu"):
        assert not int8.replace(rounding=other).nearest_integers
        assert int8.replace(rounding=other).deterministic == (other == "dpu")


def test_catalog_holds_what_it_must_and_says_what_it_holds() -> None:
    assert set(ENTRIES) <= set(catalog)
    for name, q in catalog.items():
        assert q.arithmetic == Arithmetic(zero_point_domain="float" if "_float_zero" in name else "integer")
        if name.startswith(("mx", "nv")):
            blocks = 16 if q.scale.restriction is Restriction.QUANTIZED else 32
            assert q.granularity == PerGroup(blocks)
            assert (q.scale.restriction in (*SHARED_EXPONENT, Restriction.POWER_OF_TWO)) == name.startswith("mx")
            continue
        assert name.startswith(beginning(q.format))
        assert ("_affine" in name) == q.affine
        assert ("_narrow" in name) == (isinstance(q.format, IntegerFormat) and q.format.narrow)
        assert ("_power_of_two" in name) == (q.scale.restriction is Restriction.POWER_OF_TWO)
        assert ("_learned" in name) == (q.gradient is Gradient.LEARNED_SCALE)
        assert ("_dpu" in name) == (q.rounding is Rounding.DPU)
        assert ("_toward_zero" in name) == (q.rounding is Rounding.TOWARD_ZERO)
        assert ("_overflow" in name) == (isinstance(q.format, FloatFormat) and not q.format.saturate)
        if isinstance(q.format, FloatFormat) and q.format.specials is not Specials.IEEE and q.format.has_nan:
            assert ("fnuz_" in name) == (q.format.specials is Specials.NEGATIVE_ZERO)
            assert ("fn_" in name) == (q.format.specials is Specials.NAN_ONLY)
        ending = {PerTensor(): "per_tensor", PerAxis(0): "per_channel", PerToken(): "per_token"}.get(q.granularity)
        assert name.endswith(
            ending or (f"group{q.granularity.size}" if isinstance(q.granularity, PerGroup) else "per_block")
        )


@pytest.mark.parametrize("name", dialects)
@pytest.mark.parametrize("entry", ["int8_per_tensor", "uint8_affine_per_tensor"])
def test_dialects_apply_to_quantizers_and_are_not_ours(name: str, entry: str) -> None:
    q = catalog[entry].replace(**dialects[name])
    assert q != catalog[entry]
    assert isinstance(q.arithmetic.nan, NanRule)
    quantize(q, np.ones(3, np.float32), QParams(np.float32(0.5), np.int32(3) if q.affine else None))


def test_formats_name_themselves() -> None:
    assert [str(IntegerFormat(*a)) for a in ((8,), (4, False), (8, True, True))] == ["int8", "uint4", "int8 narrow"]


def test_contraction_over_codes_needs_scales_that_do_not_vary_along_it() -> None:
    tensor, channel, token, group = (
        catalog[n] for n in ("int8_per_tensor", "int8_per_channel", "int8_per_token", "int4_per_group32")
    )
    assert contracts_codes(tensor, channel, per_token=False)
    assert contracts_codes(token, tensor, per_token=True)
    assert not contracts_codes(token, tensor, per_token=False)
    assert not contracts_codes(tensor, group, per_token=True)
    assert not contracts_codes(group, tensor, per_token=True)
    assert not contracts_codes(tensor, channel.replace(granularity=PerAxis(1)), per_token=True)


def test_accumulator_bound_is_the_largest_sum() -> None:
    for x, w in itertools.product(("int8_per_tensor", "int8_affine_per_token", "int4_per_channel"), repeat=2):
        q_x, q_w = catalog[x], catalog[w]
        centred = [
            range(q.format.lo - q.format.hi, q.format.hi - q.format.lo + 1)
            if q.affine
            else range(q.format.lo, q.format.hi + 1)
            for q in (q_x, q_w)
        ]
        assert [largest_code(q) for q in (q_x, q_w)] == [max(map(abs, c)) for c in centred]
        assert accumulator_bound(q_x, q_w, 7) == 7 * max(abs(a) for a in centred[0]) * max(abs(b) for b in centred[1])


def test_quantizers_refuse_zero_points_that_are_none() -> None:
    affine = catalog["uint8_affine_per_tensor"]
    for value in (256, -1, 2.5, float("nan")):
        with pytest.raises(ValueError, match=r"`zero_point_value` must be an integer in \[0, 255\], got"):
            affine.replace(source="constant", scale_value=0.1, zero_point_value=value)
    with pytest.raises(ValueError, match="`zero_point_value` must be 0 where the quantizer is symmetric, got 1"):
        catalog["int8_per_tensor"].replace(source="constant", scale_value=0.1, zero_point_value=1)
    with pytest.raises(ValueError, match="`delay` must be at least 0, got -1"):
        affine.replace(delay=-1)
    with pytest.raises(TypeError, match="`delay` must be an int, got True"):
        affine.replace(delay=True)
