"""The numbers of a format, listed, and where real numbers between them go: what knife edges and laws are made of.

Everything is in units of the scale, in float64, where all of it is exact. Floating-point numbers are counted upwards
from zero by their distances rather than decoded, so that this is no second copy of what the laws judge.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer
from ...core.directions import Rounding
from ...core.formats import BinaryFormat, CodebookFormat, FloatFormat, Format, IntegerFormat, Specials, TernaryFormat
from ...core.granularity import Shape

Array = NDArray[Any]
DIRECTED = (
    Rounding.TOWARD_ZERO,
    Rounding.TOWARD_POSITIVE,
    Rounding.TOWARD_NEGATIVE,
    Rounding.STOCHASTIC,
    Rounding.LEARNED,
)


def numbers(format: Format) -> Array:
    """All numbers of a format, ascending, each once (one zero); no infinity and no NaN."""
    values = code_table(format)[1]
    return np.unique(values[np.isfinite(values)]) + 0.0


def zero_points(q: Quantizer, codes: Array, scale: Array) -> Array:
    """Zero points that have 0.0 at these codes: int32, or of the dtype of the scale where the middle code has a value.

    Those are ``(mid - code) * s``, or the largest number there is.
    """
    if not q.arithmetic.has_float_zeros:
        return np.asarray(codes).astype(np.int32)
    scale = np.asarray(scale)
    most = float(np.finfo(scale.dtype).max)
    with np.errstate(over="ignore"):
        value = ((q.format.lo + q.format.hi + 1) // 2 - np.asarray(codes)) * scale.astype(np.float64)
    return np.asarray(np.clip(value, -most, most).astype(scale.dtype))


def places_of_zero(q: Quantizer, zero_point: Array, scale: Array) -> Array:
    """Where 0.0 lies among the codes for these zero points; float64, and no integer where they are none."""
    zero = np.asarray(zero_point, np.float64)
    if not q.arithmetic.has_float_zeros:
        return zero
    with np.errstate(over="ignore"):
        return np.asarray((q.format.lo + q.format.hi + 1) // 2 - zero / np.asarray(scale, np.float64))


@lru_cache(maxsize=256)
def code_table(format: Format) -> tuple[Array, Array]:
    """Every code, int64, and what it stands for, float64: a number, of which zero may be -0.0, an infinity or NaN."""
    match format:
        case IntegerFormat() | TernaryFormat():
            codes = np.arange(format.lo, format.hi + 1)
            values = codes.astype(np.float64)
        case BinaryFormat():
            codes = np.array([-1, 1])
            values = codes.astype(np.float64)
        case CodebookFormat():
            values = np.array(format.values)
            codes = np.arange(len(values))
        case FloatFormat():
            codes = np.arange(2**format.bits)
            values = _float_values(format)
    for table in (codes, values):
        table.flags.writeable = False
    return codes, values


def number_of(format: Format, codes: Array) -> Array:
    """What codes stand for, float64. AssertionError, as laws raise it, names the first that is no code."""
    known, values = code_table(format)
    wide = codes.astype(np.int64)
    index = np.clip(np.searchsorted(known, wide), 0, len(known) - 1)
    strange = known[index] != wide
    if strange.any():
        raise AssertionError(f"codes must be codes of {format}, got {wide[strange].flat[0]}")
    return np.asarray(values[index])


def codes_of(format: Format, number: Array) -> Array:
    """The codes of numbers (infinities, NaN) that the format has, in its storage dtype; of NaN the first one."""
    codes, values = code_table(format)
    known, first = np.unique(_bits(values), return_index=True)
    return np.asarray(codes[first[np.searchsorted(known, _bits(number))]].astype(format.storage))


def every_code(q: Quantizer, shape: Shape, *, finite: bool = False) -> Array:
    """All codes of the format, again and again (as many as fit), in its storage dtype; those of numbers, if asked."""
    codes, values = code_table(q.format)
    return np.resize(codes[np.isfinite(values)] if finite else codes, shape).astype(q.format.storage)


def beyond_the_ends(format: Format) -> float:
    """What magnitudes beyond the largest number become: it, infinity, or NaN."""
    if not isinstance(format, FloatFormat) or format.saturate or format.specials is Specials.NONE:
        return format.hi
    return np.inf if format.specials is Specials.IEEE else np.nan


@lru_cache(maxsize=256)
def decisions(q: Quantizer) -> Array:
    """Where the number, or the clipping mask, of a quantizer changes: ascending, from below the smallest number on.

    Midpoints of neighbouring numbers for the nearest roundings, the numbers themselves for the directed ones; beyond
    the ends, the one at which a number, as if there were another, would be clamped: there the mask changes. For formats
    without such a number the mask changes at lo and hi.
    """
    match q.format:
        case IntegerFormat(lo=lo, hi=hi):
            places = np.arange(lo - 1, hi + 2, dtype=np.float64)
            found = places if q.rounding in DIRECTED else places[:-1] + 0.5
        case FloatFormat():
            places = with_next(q.format)
            found = places if q.rounding in DIRECTED else _midpoints(places)
        case _:
            found = np.union1d(_cuts(q.format)[1:-1], [q.format.lo, q.format.hi])
    found.flags.writeable = False
    return found


def clipping_ends(q: Quantizer, zero: Array) -> tuple[Array, Array]:
    """Between which quotients the gradient passes, for codes shifted by ``zero``."""
    low, high = q.format.lo - zero, q.format.hi - zero
    if isinstance(q.format, IntegerFormat | FloatFormat):
        return low - reach(q, low)[0], high + reach(q, high)[1]
    return low, high


def reach(q: Quantizer, n: Array) -> tuple[Array, Array]:
    """How far below and above a number n of the format real numbers lie that round to it, as if it had no ends.

    Integers may be shifted by a zero point. Infinite at the ends of binary, ternary and codebook formats.
    """
    match q.format:
        case IntegerFormat():
            below = above = np.ones(n.shape)
        case FloatFormat():
            places = with_next(q.format)
            at = np.clip(np.searchsorted(places, n), 1, len(places) - 2)
            below, above = places[at] - places[at - 1], places[at + 1] - places[at]
        case _:
            cuts, at = _cuts(q.format), np.searchsorted(numbers(q.format), n)
            return n - cuts[at], cuts[at + 1] - n
    match q.rounding:
        case Rounding.TOWARD_NEGATIVE | Rounding.LEARNED:  # without a parameter
            return 0 * below, above
        case Rounding.TOWARD_POSITIVE:
            return below, 0 * above
        case Rounding.TOWARD_ZERO:
            return np.asarray(below * (n <= 0)), np.asarray(above * (n >= 0))
        case Rounding.STOCHASTIC:
            return below, above
        case _:
            return below / 2, above / 2


def with_next(format: FloatFormat) -> Array:
    """The numbers of a format, and at either end the next, as if its exponents went on."""
    inner = numbers(format)
    following = _magnitudes(format, len(inner) // 2 + 2)[-1]
    return np.concatenate([[-following], inner, [following]])


def _cuts(format: BinaryFormat | TernaryFormat | CodebookFormat) -> Array:
    """The points between numbers that stand in a list, with infinities around."""
    match format:
        case BinaryFormat():
            inner: tuple[float, ...] = (0.0,)
        case TernaryFormat():
            inner = (-format.threshold, format.threshold)
        case CodebookFormat():
            inner = format.midpoints
    return np.array([-np.inf, *inner, np.inf])


def _bits(values: Array) -> Array:
    """What tells numbers apart, zeros too, but no NaN from another."""
    wide = np.asarray(values, np.float64)
    return np.where(np.isnan(wide), np.nan, wide).view(np.int64)


def _midpoints(places: Array) -> Array:
    return np.asarray(places[:-1] + np.diff(places) / 2)


def _magnitudes(format: FloatFormat, count: int) -> Array:
    """The first ``count`` numbers from zero upwards: distances double with every ``2**mantissa_bits`` of them."""
    binade = np.maximum(np.arange(count - 1) >> format.mantissa_bits, 1) - 1
    distances = np.ldexp(1.0, format.min_exponent - format.mantissa_bits + binade)
    return np.concatenate([[0.0], np.cumsum(distances)])


def _float_values(format: FloatFormat) -> Array:
    """What the codes stand for, in their order: sign 0, then sign 1."""
    count = 2 ** (format.bits - 1)
    magnitudes = _magnitudes(format, count)
    top = count - 2**format.mantissa_bits  # the first code with the largest exponent
    if format.specials is Specials.IEEE:
        magnitudes[top:] = np.nan
        magnitudes[top] = np.inf
    elif format.specials is Specials.NAN_ONLY:
        magnitudes[-1] = np.nan
    values = np.concatenate([magnitudes, -magnitudes])
    if format.specials is Specials.NEGATIVE_ZERO:
        values[count] = np.nan
    return values
