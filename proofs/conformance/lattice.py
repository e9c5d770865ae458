"""The candidates: every way to compute a quantizer that the fields of a description can say, as lists of changes.

A candidate is a `Quantizer`; `samebits.core` says what it computes. Where a field cannot act (a fused multiply-add
where nothing is added to a product) only its default is a candidate; the field is then found to be undetermined.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from ...core.arithmetic import (
    ClampOrder,
    ComputeDtype,
    Division,
    NanRule,
    RangeRule,
    Threshold,
    ZeroPointDomain,
    ZeroPointOrder,
    ZeroPointRule,
)
from ...core.descriptions import Gradient, Quantizer
from ...core.dialects import dialects
from ...core.directions import DETERMINISTIC, Rounding
from ...core.formats import FLOAT8_E4M3FN, FloatFormat, IntegerFormat
from ...core.granularity import PerGroup
from ...core.scales import Denominator, Restriction, Statistic

Changes = dict[str, Any]

# Fields that inputs of ordinary size decide; and those that NaN, zeros and subnormal numbers do
COMMON = (
    "rounding",
    "compute_dtype",
    "division",
    "zero_point_order",
    "zero_point_domain",
    "fused_multiply_add",
    "saturate",
    "clamp_order",
)
SPECIAL = ("nan", "flush_subnormals", "keep_negative_zero")
SLOPES = ("gradient", "clamp_order")

# What scales do where the range is small; one of these at a time
SMALL: Mapping[str, Changes] = {
    "smallest normal number": {},
    "no floor": {"floor": 0.0},
    "at least 2**-23": {"floor": 2.0**-23},
    "at least 6.1e-5": {"floor": float.fromhex("0x1.ffb48p-15")},
    "range at least 1e-10": {"range_floor": 1e-10},
    "range at least 1e-9": {"range_floor": 1e-9},
    "empty range counts as 1": {"empty_range": 1.0},
    "at least epsilon of the dtype": {"replace_below": Threshold.EPSILON},
    "1 below the root of the smallest normal number": {
        "replace_below": Threshold.SQRT_SMALLEST_NORMAL,
        "replacement": 1.0,
    },
    "2**-23 for 0": {
        key: dialects["compressed_tensors"][key]
        for key in ("floor", "replace_below", "replacement", "zero_point_scale")
    },
    "1 for 0": {"floor": 0.0, "replace_below": 2.0**-149, "replacement": 1.0},
    "0.1 below 2**-128, at least 6.1e-5": {
        key: dialects["torch_dynamic"][key] for key in ("floor", "replace_below", "replacement", "zero_point_scale")
    },
}
DENOMINATORS = tuple(Denominator)
RESTRICTIONS = (
    Restriction.FLOAT,
    Restriction.POWER_OF_TWO,
    Restriction.POWER_OF_TWO_FLOOR,
    Restriction.POWER_OF_TWO_CEIL,
    Restriction.POWER_OF_TWO_EVEN,
    Restriction.INTEGER,
)
# Scales of blocks that are numbers of float8, with one scale of the whole array beside them or without
LEVELS: tuple[Changes, ...] = tuple(
    {"restriction": Restriction.QUANTIZED, "scale_format": FLOAT8_E4M3FN, "two_level": whole} for whole in (True, False)
)


def plain(q: Quantizer) -> Quantizer:
    """A claim without what is to be found: format, granularity and zero point alone, and the domain of that."""
    domain = q.arithmetic.zero_point_domain
    return Quantizer(format=q.format, granularity=q.granularity, zero_point=q.zero_point).replace(
        zero_point_domain=domain
    )


def values_of(q: Quantizer, dtype: str) -> dict[str, tuple[Any, ...]]:
    """What each field may be for a claim of this kind; one value alone where the claim leaves no choice."""
    affine = q.affine
    real = q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER
    nearest = not isinstance(q.format, IntegerFormat | FloatFormat)
    fields: dict[str, tuple[Any, ...]] = {
        "rounding": (Rounding.TIES_TO_EVEN,) if nearest else DETERMINISTIC,
        "compute_dtype": tuple(ComputeDtype),
        "division": tuple(Division),
        "zero_point_order": tuple(ZeroPointOrder),  # a zero point of 0 that is added first leaves no -0
        "zero_point_domain": (ZeroPointDomain.FLOAT, ZeroPointDomain.SHIFT) if real else (ZeroPointDomain.INTEGER,),
        "fused_multiply_add": (False, True) if affine else (False,),
        "nan": tuple(NanRule),
        "flush_subnormals": (False, True),
        "keep_negative_zero": (False, True),
        # to integers it is the same, but for the gradient, and for signs of zero, see `special`
        "clamp_order": (ClampOrder.AFTER_ROUNDING,),
        # that of LEARNED_SCALE differs towards the scale alone, which is not asked for
        "gradient": tuple(g for g in Gradient if g is not Gradient.LEARNED_SCALE and _allowed(q, {"gradient": g})),
    }
    if isinstance(q.format, FloatFormat):
        fields["saturate"] = (True, False)
        fields["clamp_order"] = tuple(ClampOrder)
    if dtype == "float64":  # which is every compute dtype at once
        fields["compute_dtype"] = (ComputeDtype.WIDENED,)
    return fields


def field_of(q: Quantizer, name: str) -> Any:
    """The value of a field of a quantizer, or of one of its parts."""
    return next(getattr(part, name) for part in (q, q.arithmetic, q.format, q.scale) if hasattr(part, name))


def common(q: Quantizer, dtype: str) -> list[Quantizer]:
    """Candidates that differ in `COMMON` fields, those that cannot act left out; the defaults come first."""
    fields = values_of(q, dtype)
    names = [name for name in COMMON if name in fields]
    if isinstance(q.format, FloatFormat) and q.format.has_nan:  # which overflow may become
        names.append("nan")
    found = [dict(zip(names, row, strict=True)) for row in product(*(fields[name] for name in names))]
    return [q.replace(**changes) for changes in found if _acts(q, changes, dtype)]


def special(q: Quantizer, dtype: str) -> list[Quantizer]:
    """A candidate with every combination of the `SPECIAL` fields, and of those that only -0 shows.

    A limit of 0, to which numbers are clamped before they are rounded, takes the sign of a zero; so where the range may
    end there, whoever keeps signs may clamp first.
    """
    fields = values_of(q, dtype)
    added = q.affine and q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
    names = SPECIAL if added else (*SPECIAL, "zero_point_order")
    found = [q.replace(**dict(zip(names, row, strict=True))) for row in product(*(fields[n] for n in names))]
    if isinstance(q.format, IntegerFormat) and (q.affine or 0 in (q.format.lo, q.format.hi)):
        first = [c.replace(clamp_order=ClampOrder.BEFORE_ROUNDING) for c in found]
        found += [c for c in first if c.arithmetic.keep_negative_zero]
    return found


def slopes(q: Quantizer, dtype: str) -> list[Quantizer]:
    """A candidate with every combination of the `SLOPES` fields."""
    fields = values_of(q, dtype)
    found = [dict(zip(SLOPES, row, strict=True)) for row in product(fields["gradient"], ClampOrder)]
    return [q.replace(**changes) for changes in found]


def points(q: Quantizer, dtype: str) -> Iterator[Quantizer]:
    """The whole lattice of a claim: every value of every field but the gradient's, whether it can act or not."""
    fields = values_of(q, dtype)
    fields["clamp_order"] = tuple(ClampOrder)
    names = [name for name in (*COMMON, *SPECIAL) if name in fields]
    for row in product(*(fields[name] for name in names)):
        yield q.replace(**dict(zip(names, row, strict=True)))


def scale_rules(q: Quantizer) -> list[Quantizer]:
    """Candidates that differ in what ordinary ranges show: denominator or range, dtype, division, restriction."""
    parts: list[tuple[str, tuple[Any, ...]]] = [
        ("scale_dtype", (None, ComputeDtype.INPUT, ComputeDtype.WIDENED, ComputeDtype.FLOAT64)),
        ("scale_division", tuple(Division)),
    ]
    if q.affine:
        parts += [("range", tuple(RangeRule))]
        if q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER:
            parts += [("zero_point_rule", tuple(ZeroPointRule))]
            parts += [("zero_point_rounding", (Rounding.TIES_TO_EVEN, Rounding.TIES_TO_AWAY, Rounding.TOWARD_ZERO))]
    else:
        parts += [("denominator", DENOMINATORS), ("restriction", RESTRICTIONS)]
        parts += [("statistic", (Statistic.EXTREMES, Statistic.SIGNED_ABSMAX))]
    names = [name for name, _ in parts]
    found = [dict(zip(names, row, strict=True)) for row in product(*(values for _, values in parts))]
    if isinstance(q.format, FloatFormat) and isinstance(q.granularity, PerGroup):
        found += [
            changes | level for changes in found if changes["restriction"] is Restriction.FLOAT for level in LEVELS
        ]
    return [q.replace(**changes) for changes in found if _allowed(q, changes)]


def small_rules(q: Quantizer) -> dict[str, Quantizer]:
    """A scale rule with each of the `SMALL` ones, by what it is called; and with subnormal numbers flushed."""
    found = {name: q.replace(**changes) for name, changes in SMALL.items() if _allowed(q, changes)}
    flushing = {f"{name}, subnormal numbers flushed": c.replace(flush_subnormals=True) for name, c in found.items()}
    return found | ({} if q.arithmetic.flush_subnormals else flushing)


def in_dialects(q: Quantizer) -> Iterator[tuple[str, Quantizer]]:
    """The claim in every dialect of `samebits.core.dialects` that has zero points like it."""
    for name, changes in dialects.items():
        whole = changes.get("zero_point_domain", ZeroPointDomain.INTEGER) is ZeroPointDomain.INTEGER
        if whole is (q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER) and _allowed(q, changes):
            yield name, q.replace(**changes)


def _acts(q: Quantizer, changes: Changes, dtype: str) -> bool:
    """Whether no field is other than its default where it cannot act on ordinary numbers."""
    domain = changes.get("zero_point_domain", ZeroPointDomain.INTEGER)
    before = changes["zero_point_order"] is ZeroPointOrder.BEFORE_ROUNDING
    if changes.get("nan", NanRule.PROPAGATE) is not NanRule.PROPAGATE and changes["saturate"]:
        return False
    if changes["compute_dtype"] is ComputeDtype.INPUT and dtype == "float32":
        return False
    if domain is not ZeroPointDomain.INTEGER or not q.affine:
        return not before
    return not changes["fused_multiply_add"] or (before and changes["division"] is Division.RECIPROCAL)


def _allowed(q: Quantizer, changes: Mapping[str, Any]) -> bool:
    try:
        return q.replace(**changes).affine == q.affine
    except (TypeError, ValueError):
        return False
