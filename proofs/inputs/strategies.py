"""Hypothesis strategies for quantizers, scales, parameters and arrays: what random draws never meet is drawn often.

Scales come from the bits (every exponent is as likely as any other), from powers of two and their neighbours, and from
both ends of the normal numbers. Arrays come in the kinds of `KINDS`; those that need a scale take that of each
element's own block.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core.blocks import expand_blocks
from ...core.catalog import catalog
from ...core.descriptions import ON_QUOTIENT, Gradient, QParams, Quantizer, ZeroPoint
from ...core.directions import Rounding
from ...core.formats import BinaryFormat, CodebookFormat, FloatFormat, Format, IntegerFormat, Specials, TernaryFormat
from ...core.granularity import (
    Granularity,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    PerToken,
    Shape,
    qparams_shape,
)
from ...core.requirements import explaining
from ...core.scales import Denominator, Restriction, ScaleRule, Statistic
from .bits import from_ordinal, ordinal, stored_bits
from .knife_edges import special_values
from .numbers import decisions, numbers, places_of_zero, zero_points

with explaining(__name__):
    from hypothesis import strategies as st

Array = NDArray[Any]


class Near(NamedTuple):
    """For each element a number of the format (or one a little beyond), and a point where it decides; see `near`."""

    number: Array
    decision: Array


Kind = Callable[[np.random.Generator, Array, Near, Any], Array]  # (random, scale, near, dtype), all elementwise

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "float32": np.dtype(np.float32),
        "bfloat16": np.dtype(ml_dtypes.bfloat16),
        "float16": np.dtype(np.float16),
        "float64": np.dtype(np.float64),
    }
)


def dtypes(*names: str) -> st.SearchStrategy[np.dtype[Any]]:
    """Floating dtypes by name; without names float32, bfloat16 and float16, which every mode takes."""
    return st.sampled_from([DTYPES[name] for name in names or ("float32", "bfloat16", "float16")])


def granularities() -> st.SearchStrategy[Granularity]:
    """Every kind of granularity, with axes from both ends and small groups and blocks."""
    sizes = st.sampled_from([1, 2, 3, 8, 32])
    return st.one_of(
        st.just(PerTensor()),
        st.builds(PerAxis, st.integers(-3, 2)),
        st.just(PerToken()),
        st.builds(PerGroup, sizes, st.integers(-2, 1)),
        st.builds(PerBlock, st.lists(sizes, min_size=1, max_size=3).map(tuple)),
    )


def formats() -> st.SearchStrategy[Format]:
    """Formats of every kind whose scales are numbers whatever the data.

    So what would have a scale larger than the data is left out: integers of a single bit (the whole range of the data),
    floating-point formats and codebooks whose largest number is below 1.
    """
    return st.one_of(integer_formats(), listed_formats(), float_formats())


def integer_formats() -> st.SearchStrategy[IntegerFormat]:
    """Integer formats of 2 to 16 bits, signed and not, whole and narrow."""
    return st.builds(IntegerFormat, st.integers(2, 16), st.booleans(), st.booleans())


def listed_formats() -> st.SearchStrategy[Format]:
    """Binary formats, ternary ones of several thresholds, and codebooks of up to 17 numbers between -4 and 4."""
    number = st.floats(-4, 4, width=32, allow_subnormal=False).map(lambda v: v + 0.0)
    ends = st.tuples(st.sampled_from([-5.0, -1.0, 0.0, 0.25]), st.sampled_from([1.0, 2.5]))
    codebooks = st.tuples(st.lists(number, max_size=15), ends).map(
        lambda drawn: CodebookFormat(tuple(sorted({*drawn[0], *drawn[1]})))
    )
    thresholds = st.sampled_from([0.0, 0.05, 1 / 3, 0.5, 0.7, 1 - 2.0**-24])
    return st.one_of(st.just(BinaryFormat()), st.builds(TernaryFormat, thresholds), codebooks)


@st.composite
def float_formats(draw: st.DrawFn) -> FloatFormat:
    """Floating-point formats of 1 to 8 exponent bits and 0 to 10 of significand, with any bias, special codes, and rule
    of overflow.
    """
    exponent_bits = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 8]))
    mantissa_bits = draw(st.one_of(st.integers(0, 4), st.integers(0, min(10, 15 - exponent_bits))))
    specials, saturate = draw(st.sampled_from(Specials)), draw(st.booleans())
    exponent_bits = min(exponent_bits, 8 if specials is Specials.IEEE else 7)  # more would reach beyond float32
    usual = 2 ** (exponent_bits - 1) - (specials is not Specials.NEGATIVE_ZERO)
    shift = draw(st.integers(-usual, 1)) if exponent_bits < 7 else 0
    form = FloatFormat(exponent_bits, mantissa_bits, usual + shift, specials, saturate)
    return form if form.hi >= 1 else FloatFormat(exponent_bits + 1, mantissa_bits, -2, specials, saturate)


@st.composite
def variants(draw: st.DrawFn) -> Quantizer:
    """Quantizers put together at random from every format, granularity, scale rule, zero point, rounding, gradient."""
    form = draw(formats())
    integer, listed = isinstance(form, IntegerFormat), isinstance(form, BinaryFormat | TernaryFormat | CodebookFormat)
    two_sided = [d for d in Denominator if form.lo or d is not Denominator.LO]
    denominators = st.sampled_from(two_sided if integer or form.lo <= -1 else [Denominator.HI])
    floors = st.one_of(st.none(), st.sampled_from([2.0**-126, 1e-6, 1.5]))
    zero_point, denominator = draw(st.sampled_from(ZeroPoint)) if integer else ZeroPoint.NONE, draw(denominators)
    plain = zero_point is not ZeroPoint.NONE or denominator is Denominator.LARGER
    often = (*[Restriction.FLOAT] * 3, *Restriction)  # negative scales, for one, have no other
    restriction = draw(st.sampled_from((Restriction.FLOAT, Restriction.POWER_OF_TWO) if plain else often))
    quantized = restriction is Restriction.QUANTIZED
    rules = [rule for rule in Gradient if _has_gradient(form, zero_point, rule)]
    rules += [rule for rule in (Gradient.LEARNED_CLIP,) * 4 if rule in rules]  # few have it, so that those often do
    directions = [r for r in Rounding if isinstance(form, IntegerFormat) or r is not Rounding.LEARNED]
    rule = ScaleRule(
        restriction=restriction,
        denominator=denominator,
        scale_format=FloatFormat(4, 3, specials=Specials.NAN_ONLY) if quantized else None,
        two_level=quantized and draw(st.booleans()),
        floor=draw(floors),
    )
    affine, direction = zero_point is not ZeroPoint.NONE, Rounding.TIES_TO_EVEN if listed else None
    rounding = direction or draw(st.sampled_from(directions))
    rule = replace(rule, **draw(statistics(form, rule, affine=affine, learned=rounding is Rounding.LEARNED)))
    return Quantizer(
        format=form,
        granularity=draw(granularities()),
        scale=rule,
        zero_point=zero_point,
        rounding=rounding,
        gradient=draw(st.sampled_from(rules)),
    )


@st.composite
def statistics(draw: st.DrawFn, form: Format, rule: ScaleRule, *, affine: bool, learned: bool) -> dict[str, Any]:
    """A statistic that goes with a format and a rule, and its parameters: fields of a `ScaleRule`. Often the extremes.

    Args:
        affine: whether there is a zero point; ``learned``: whether the rounding is learned.
    """
    integer = isinstance(form, IntegerFormat)
    allowed = [Statistic.EXTREMES] * 4
    if rule.denominator is not Denominator.LARGER:
        allowed += [Statistic.PERCENTILE, Statistic.MEAN_SIGMA]
        if not affine:
            allowed += [Statistic.ABSMEAN, Statistic.L1, Statistic.L2, Statistic.RMS]
        if not rule.two_level and 2.0**-40 <= form.hi <= 2.0**40:
            allowed += [Statistic.MSE]
        if integer and not affine and not rule.two_level:
            allowed += [Statistic.HQO] * 4
        if integer and form.lo < 0 and not affine and not learned and rule.restriction is Restriction.FLOAT:
            allowed += [Statistic.SIGNED_ABSMAX] * 8
    return {
        "statistic": draw(st.sampled_from(allowed)),
        "percentile": draw(st.sampled_from([100.0, 99.0, 75.0, 50.0, 1e-3])),
        "low_percentile": draw(st.sampled_from([0.0, 1.0, 30.0])),
        "sigma": draw(st.sampled_from([0.0, 0.7, 3.0])),
        "search_steps": draw(st.integers(1, 4)),
    }


def _has_gradient(form: Format, zero_point: ZeroPoint, rule: Gradient) -> bool:
    symmetric = zero_point is ZeroPoint.NONE and isinstance(form, IntegerFormat | FloatFormat)
    unsigned = isinstance(form, IntegerFormat) and form.lo == 0
    return rule not in ON_QUOTIENT or (symmetric and (unsigned or rule is Gradient.CLIPPED_QUOTIENT))


def quantizers() -> st.SearchStrategy[Quantizer]:
    """Entries of the catalog and `variants`."""
    return st.one_of(st.sampled_from(list(catalog.values())), variants())


def shapes(granularity: Granularity) -> st.SearchStrategy[Shape]:
    """Shapes that the granularity accepts, of at most a few thousand elements; empty and 0-d ones where allowed."""
    length = st.one_of(st.integers(1, 9), st.integers(0, 9))
    count = st.integers(0, 3)

    def deep(fewest: int, most: int) -> st.SearchStrategy[Shape]:
        return st.lists(length, min_size=fewest, max_size=most).map(tuple)

    match granularity:
        case PerTensor():
            return st.one_of(deep(0, 4), st.integers(0, 300).map(lambda n: (n,)))
        case PerAxis(axis):
            need = axis + 1 if axis >= 0 else -axis
            return deep(need, max(need, 4))
        case PerToken():
            return deep(1, 4)
        case PerGroup(size, axis):
            need = axis + 1 if axis >= 0 else -axis
            return st.tuples(deep(need, max(need, 3)), count).map(
                lambda drawn: tuple(size * drawn[1] if i == axis % len(drawn[0]) else n for i, n in enumerate(drawn[0]))
            )
        case PerBlock(block):
            counts = st.tuples(*(st.integers(0, 2) for _ in block))
            lead = st.lists(st.integers(0, 2), max_size=1).map(tuple)
            return st.tuples(lead, counts).map(
                lambda drawn: (*drawn[0], *(n * b for n, b in zip(drawn[1], block, strict=True)))
            )


def scales(dtype: Any = np.float32, *, restriction: Restriction = Restriction.FLOAT) -> st.SearchStrategy[float]:
    """Positive normal numbers of the dtype: of ordinary size, over all exponents, around powers of two, and the ends.

    Args:
        restriction: `POWER_OF_TWO` leaves only those.
    """
    binade = low = 2 ** stored_bits(dtype)  # all in ordinals; this one is that of the smallest normal number
    one, high = int(ordinal(np.asarray(1, dtype))), int(ordinal(np.asarray(np.inf, dtype))) - 1
    powers = st.one_of(st.integers(one // binade - 10, one // binade + 4), st.integers(1, high // binade)).map(
        lambda exponent: exponent * binade
    )
    ends = st.sampled_from([low, low + 1, high - 1, high])
    nearby = st.tuples(powers, st.sampled_from([-1, 1])).map(sum)
    common = st.integers(one - 12 * binade, one + 2 * binade)
    places = st.one_of(common, st.integers(low, high), powers, nearby, ends)
    if restriction is Restriction.POWER_OF_TWO:
        places = powers
    return places.map(lambda place: float(from_ordinal(np.clip(place, low, high), dtype)))


@st.composite
def qparams(draw: st.DrawFn, q: Quantizer, shape: Shape, dtype: Any) -> QParams:
    """Parameters for an array of this shape and dtype: a few scales dealt out to the blocks, and any zero points."""
    kind = np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)
    parameters = qparams_shape(q.granularity, shape)
    few = draw(st.lists(scales(kind, restriction=q.scale.restriction), min_size=1, max_size=6), label="scales")
    scale = np.resize(np.array(few, kind), parameters).reshape(parameters)
    if q.scale.signed:
        scale = scale * np.resize(np.array(draw(st.lists(st.sampled_from([-1, 1]), min_size=1)), kind), parameters)
    if not q.affine:
        return QParams(scale)
    lo, hi = int(q.format.lo), int(q.format.hi)
    ends = st.sampled_from([lo, hi, min(max(0, lo), hi)])
    codes = st.lists(st.one_of(ends, st.integers(lo, hi)), min_size=1, max_size=7)
    zero = np.resize(np.array(draw(codes, label="zero points"), np.int32), parameters).reshape(parameters)
    if q.arithmetic.has_float_zeros:  # off the codes, too
        between = draw(st.lists(st.floats(-20, 20), min_size=1, max_size=5), label="between codes")
        zero = zero + np.resize(np.array([0.0, *between]), parameters).reshape(parameters)
    return QParams(scale, zero_points(q, zero, scale))


def near(random: np.random.Generator, q: Quantizer, zero: Array) -> Near:
    """Numbers of a quantizer, of integers also a little beyond the range, and decisions, less the zero point."""
    if isinstance(q.format, IntegerFormat):
        number = random.integers(q.format.lo - 2, q.format.hi + 3, zero.shape).astype(np.float64)
    else:
        number = random.choice(numbers(q.format), zero.shape)
    return Near(number - zero, random.choice(decisions(q), zero.shape) - zero)


@st.composite
def arrays(
    draw: st.DrawFn, q: Quantizer, qparams: QParams, shape: Shape, dtype: Any, *, kinds: tuple[str, ...] = ()
) -> Array:
    """An array of one of the `KINDS`, or of a different one for each element.

    Args:
        qparams: whose grid the kinds that lie near one use.
        kinds: names to choose among; none for all.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    names = draw(st.lists(st.sampled_from(kinds or tuple(KINDS)), min_size=1, max_size=3), label="kinds")
    wide = np.asarray(qparams.scale, np.float64)
    zero = np.zeros_like(wide) if qparams.zero_point is None else places_of_zero(q, qparams.zero_point, wide)
    scale, offset = (expand_blocks(p, q.granularity, shape) for p in (wide, zero))
    choice = random.integers(0, len(names), shape)
    x = np.zeros(shape, dtype)
    for number, name in enumerate(names):
        with np.errstate(all="ignore"):
            one = KINDS[name](random, scale, near(random, q, offset), np.dtype(dtype))
        x = np.where(choice == number, one, x)
    return np.asarray(x, dtype)


@st.composite
def cases(
    draw: st.DrawFn, q: Quantizer, *, dtype: Any = None, shape: Shape | None = None, kinds: tuple[str, ...] = ()
) -> tuple[Array, QParams, Array]:
    """An array for a quantizer, parameters that fit it, and an incoming gradient: what the laws take.

    Args:
        dtype: None to draw one of those every mode takes.
        shape: None to draw one that the granularity accepts.
        kinds: of the array.
    """
    dtype = draw(dtypes(), label="dtype") if dtype is None else np.dtype(dtype)
    shape = draw(shapes(q.granularity), label="shape") if shape is None else shape
    parameters = draw(qparams(q, shape, dtype), label="qparams")
    x = draw(arrays(q, parameters, shape, dtype, kinds=kinds), label="x")
    seed = draw(st.integers(0, 2**32 - 1), label="seed of g")
    return x, parameters, _gaussian(np.random.default_rng(seed), np.ones(shape), dtype)


def _nudged(random: np.random.Generator, x: Array, dtype: Any) -> Array:
    """Numbers of the dtype within 2 places of x."""
    near = np.asarray(x, dtype)
    return np.where(np.isnan(near), near, from_ordinal(ordinal(near) + random.integers(-2, 3, near.shape), dtype))


def _ties(random: np.random.Generator, scale: Array, near: Near, dtype: Any) -> Array:
    return _nudged(random, near.decision * scale, dtype)


def _grid(random: np.random.Generator, scale: Array, near: Near, dtype: Any) -> Array:
    return _nudged(random, near.number * scale, dtype)


def _normal(random: np.random.Generator, scale: Array, near: Near, dtype: Any) -> Array:
    return _gaussian(random, scale * np.maximum(np.abs(near.number), 1), dtype)


def _gaussian(random: np.random.Generator, size: Array, dtype: Any) -> Array:
    return np.asarray(random.standard_normal(size.shape) * size, dtype)


def _tiny(random: np.random.Generator, scale: Array, near: Near, dtype: Any) -> Array:
    return np.asarray(random.standard_normal(scale.shape) * scale * 2.0**-20, dtype)


def _bits(random: np.random.Generator, scale: Array, near: Near, dtype: Any) -> Array:
    width = 8 * np.dtype(dtype).itemsize
    raw = random.integers(0, 2**width, scale.shape, dtype=np.uint64)
    return raw.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)


def _subnormal(random: np.random.Generator, scale: Array, near: Near, dtype: Any) -> Array:
    normal = 2 ** stored_bits(dtype)
    return from_ordinal(random.integers(-normal, normal + 1, scale.shape), dtype)


def _powers(random: np.random.Generator, scale: Array, near: Near, dtype: Any) -> Array:
    binade = 2 ** stored_bits(dtype)
    exponent = random.integers(1, int(ordinal(np.asarray(np.inf, dtype))) // binade, scale.shape)
    sign = random.choice([-1, 1], scale.shape)
    return _nudged(random, from_ordinal(sign * exponent * binade, dtype), dtype)


def _special(random: np.random.Generator, scale: Array, near: Near, dtype: Any) -> Array:
    return np.asarray(random.choice(special_values(dtype), scale.shape), dtype)


def _huge(random: np.random.Generator, scale: Array, near: Near, dtype: Any) -> Array:
    inf = int(ordinal(np.asarray(np.inf, dtype)))
    sign = random.choice([-1, 1], scale.shape)
    return from_ordinal(sign * random.integers(inf - 2 ** stored_bits(dtype), inf, scale.shape), dtype)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "ties": _ties,
        "grid": _grid,
        "normal": _normal,
        "positive": lambda random, scale, near, dtype: np.abs(_normal(random, scale, near, dtype)),
        "tiny": _tiny,
        "huge": _huge,
        "subnormal": _subnormal,
        "powers of two": _powers,
        "bits": _bits,
        "special": _special,
        "zero": lambda random, scale, near, dtype: np.zeros(scale.shape, dtype),
        "equal": lambda random, scale, near, dtype: np.full(scale.shape, random.standard_normal(), dtype),
    }
)
"""Kinds of elements by name, each a function ``(random, scale, near, dtype)`` of one scale and one `Near` per element.

``ties``: at decision boundaries and up to 2 numbers away; ``grid``: the same around the numbers; ``normal``: of
the quantizer's range; ``positive``: their magnitudes; ``tiny``: far below the scale; ``huge``: the last finite binade;
``subnormal``: with the smallest normal number; ``powers of two`` and neighbours, any sign; ``bits``: any pattern, NaN
and infinities included; ``special``: `special_values`; ``zero``; ``equal``: one value throughout.
"""
FINITE = tuple(name for name in KINDS if name in ("huge", "subnormal", "powers of two", "zero", "equal"))
"""Kinds that are finite whatever the scale (others hold infinities, or overflow where the scale is large)."""
