"""Laws of codes and values: what `quantize`, `dequantize` and `fake_quantize` promise of finite numbers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import core
from ...core.descriptions import QParams, Quantizer
from ...core.directions import Rounding
from ...core.formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat, TernaryFormat
from ..inputs.bits import stored_bits
from ..inputs.numbers import beyond_the_ends, codes_of, every_code, number_of, numbers, reach, with_next
from ..modes.execution import Implementation
from .blockwise import owners, per_element, quotient
from .judging import claim, only_finite, require, same, without_nan

Array = NDArray[Any]


def equals_specification(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """All five functions have the bits of `samebits.core`; of the gradients, that of x (the others are sums)."""
    finite, number = only_finite(x), x if q.format.has_nan else without_nan(x)
    codes = core.quantize(q, number, qparams)
    seen = {"x": x}
    same(f, q, "choose_qparams", core.choose_qparams(q, finite), f.choose_qparams(q, finite), seen)
    same(f, q, "quantize", codes, f.quantize(q, number, qparams), seen)
    dequantized = f.dequantize(q, codes, qparams, x.dtype)
    same(f, q, "dequantize", core.dequantize(q, codes, qparams, x.dtype), dequantized, {"codes": codes})
    same(f, q, "fake_quantize", core.fake_quantize(q, x, qparams), f.fake_quantize(q, x, qparams), seen)
    same(f, q, "fake_quantize(x)", core.fake_quantize(q, finite), f.fake_quantize(q, finite), seen)
    expected, got = core.fake_quantize_vjp(q, x, qparams, g).x, f.fake_quantize_vjp(q, x, qparams, g).x
    same(f, q, "fake_quantize_vjp", expected, got, {"x": x, "g": g})


def inputs_are_kept(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """No function writes to its arguments, and the same arguments give the same bits again."""
    number, finite = without_nan(x), only_finite(x)
    codes = f.quantize(q, number, qparams)
    arguments = (number, finite, codes, qparams, g)
    before = _copied(arguments)
    first = _copied(_everything(f, q, *arguments))
    same(f, q, "arguments afterwards", before, arguments)
    same(f, q, "second call", first, _everything(f, q, *arguments), {"x": number})


def codes_lie_in_range(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """Codes have the shape of x, the storage dtype of the format, and stand for numbers in [lo, hi].

    Where a format does not saturate, they may also stand for what it has instead of larger numbers.
    """
    codes = f.quantize(q, without_nan(x), qparams)
    same(f, q, "dtype and shape of codes", np.zeros(x.shape, q.format.storage), np.zeros_like(codes))
    value, instead = number_of(q.format, codes), beyond_the_ends(q.format)
    held = (value >= q.format.lo) & (value <= q.format.hi)
    held |= np.isnan(value) if np.isnan(instead) else np.abs(value) == instead
    require(held, claim(f, q, "a code of a number in [lo, hi]"), x=x, code=codes)


def fake_is_dequantize_of_quantize(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """``fake_quantize(x)`` has the bits of ``dequantize(quantize(x))``, with parameters given or chosen."""
    number, finite = without_nan(x), only_finite(x)
    values = f.dequantize(q, f.quantize(q, number, qparams), qparams, x.dtype)
    same(f, q, "fake_quantize", values, f.fake_quantize(q, number, qparams), {"x": x})
    chosen = f.choose_qparams(q, finite)
    values = f.dequantize(q, f.quantize(q, finite, chosen), chosen, x.dtype)
    same(f, q, "fake_quantize, parameters chosen", values, f.fake_quantize(q, finite), {"x": x})


def fake_quantize_is_idempotent(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """``fake(fake(x)) = fake(x)`` wherever the dtype resolves the grid: its rounding moves x_hat too little to matter.

    (Directed roundings do not promise it: the product ``n * s`` is rounded, perhaps to the other side of n.)
    """
    number = without_nan(x)
    once = f.fake_quantize(q, number, qparams)
    fine = _resolved(q, f.quantize(q, number, qparams), qparams, x.dtype)
    again = f.fake_quantize(q, once, qparams)
    same(f, q, "fake_quantize again", np.where(fine, once, again), again, {"x": x})


def grid_points_keep_their_codes(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """``quantize(dequantize(code)) = code`` for every code of a number whose value the dtype holds well enough."""
    codes = every_code(q, x.shape, finite=True)
    fine = _resolved(q, codes, qparams, x.dtype)
    again = f.quantize(q, f.dequantize(q, codes, qparams, x.dtype), qparams)
    same(f, q, "quantize(dequantize(code))", np.where(fine, codes, again), again, {"code": codes})


def values_are_rounded_products(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """``dequantize(code)`` is the real number ``(code - z) * s`` rounded to the dtype of s, then to that asked for."""
    codes = every_code(q, x.shape)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        expected = _exact_values(q, codes, qparams).astype(qparams.scale.dtype)
    same(f, q, "dequantize", expected, f.dequantize(q, codes, qparams), {"code": codes})
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        narrow = expected.astype(x.dtype)
    if q.scale.signed:  # where no result is -0.0
        narrow = np.where(narrow == 0, np.zeros_like(narrow), narrow)
    same(f, q, f"dequantize to {x.dtype}", narrow, f.dequantize(q, codes, qparams, x.dtype), {"code": codes})


def halves_round_in_the_named_direction(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """At scale 1, numbers keep their value and halves go where `q.rounding` says, by integer arithmetic on
    their places.

    Of binary, ternary and codebook formats what stands between two numbers goes to the lower one, or to zero; the zero
    between the binary ones to the upper.
    """
    ones = QParams(np.ones_like(qparams.scale), qparams.zero_point)
    if not isinstance(q.format, IntegerFormat):
        places, goes = _halfway(q)
        with np.errstate(over="ignore", under="ignore"):
            values = np.resize(places.astype(x.dtype), x.shape)
        wanted = np.resize(codes_of(q.format, goes), x.shape)
        got = f.quantize(q, values, ones)
        held = values.astype(np.float64) == np.resize(places, x.shape)
        same(f, q, "quantize at scale 1", np.where(held, wanted, got), got, {"x": values})
        return
    largest = min(2 * (q.format.hi - q.format.lo + 2), 2 ** (stored_bits(x.dtype) + 1))
    double = np.array(sorted(range(-largest, largest + 1), key=abs))
    double = np.resize(double, x.shape)
    zero = per_element(q, ones, x.shape)[1].astype(np.int64)
    expected = np.clip(_half(double, q.rounding) + zero, q.format.lo, q.format.hi).astype(q.format.storage)
    values = (double / 2).astype(x.dtype)
    same(f, q, "quantize at scale 1", expected, f.quantize(q, values, ones), {"x": values})


def error_is_bounded(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """The number of a code is the nearest to ``x / s``, or the next on the named side, beyond the ends the last.

    ``|x / s - (code - z)| <= 1/2`` for integers. Up to the rounding of the quotient, which is what is rounded.
    """
    number = without_nan(x)
    codes = f.quantize(q, number, qparams)
    real, slack = quotient(q, number, qparams)
    scale, zero = per_element(q, qparams, x.shape)
    given, instead = number_of(q.format, codes), beyond_the_ends(q.format)
    finite, last = np.isfinite(given), np.copysign(q.format.hi, real)  # of larger numbers, the last that is one
    n = np.where(finite, given, last) - zero
    below, above = reach(q, n)
    saturated = finite & (instead == q.format.hi)
    low = (real >= n - below - slack) | (saturated & (given == q.format.lo))
    high = (real <= n + above + slack) | (saturated & (given == q.format.hi))
    beyond = np.where(real > 0, real >= n + above - slack, real <= n - below + slack)
    beyond &= np.isnan(instead) | (given == np.copysign(instead, real))
    held = np.where(finite, low & high, beyond)
    require(held, claim(f, q, "the code is that of x / s"), x=x, scale=scale, quotient=real, code=codes)


def quantize_is_monotone(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """Within a block, a larger x never has a smaller number. (NaN, which a format may have for large x, is none.)

    Where the scale is negative, never a larger one.
    """
    number = without_nan(x)
    codes = number_of(q.format, f.quantize(q, number, qparams)).reshape(-1)
    codes = codes * np.sign(per_element(q, qparams, x.shape)[0]).reshape(-1)
    rows = owners(q.granularity, x.shape)
    rows = np.take_along_axis(rows, np.argsort(number.reshape(-1)[rows].astype(np.float64), -1, kind="stable"), -1)
    left, right = codes[rows][:, :-1], codes[rows][:, 1:]
    smaller, larger = number.reshape(-1)[rows[:, :-1]], number.reshape(-1)[rows[:, 1:]]
    holds = (left <= right) | (smaller == larger) | np.isnan(left) | np.isnan(right)
    require(holds, claim(f, q, "monotone"), smaller=smaller, its_code=left, larger=larger, code=right)


def quantize_is_odd(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """The number of -x is that of x, negated, but for lo where the range has no hi to match it; signs of zero too."""
    number = without_nan(x)
    codes, mirrored = (number_of(q.format, f.quantize(q, v, qparams)) for v in (number, -number))
    matched = (np.minimum(codes, mirrored) > q.format.lo) | (q.format.lo == -q.format.hi)
    opposite = (codes == -mirrored) & ((np.signbit(codes) != np.signbit(mirrored)) | (not q.format.negative_zero))
    opposite |= np.isnan(codes) & np.isnan(mirrored)
    require(~matched | opposite, claim(f, q, "odd"), x=x, number=codes, of_minus_x=mirrored)


def powers_of_two_cancel(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """``quantize(x * 2**k, s * 2**k) = quantize(x, s)`` wherever both products are exact."""
    scale = np.asarray(qparams.scale)
    exponent = np.where(np.abs(scale) < 1, 5, -3)
    shifted = QParams(np.ldexp(scale, exponent).astype(scale.dtype), qparams.zero_point)
    number = without_nan(x)
    each = np.empty(x.size, np.int64)
    each[owners(q.granularity, x.shape)] = exponent.reshape(-1, 1)
    with np.errstate(over="ignore", under="ignore"):
        exact = np.ldexp(number.astype(np.float64), each.reshape(x.shape))
        moved = exact.astype(x.dtype)
    fine = moved.astype(np.float64) == exact
    expected, got = f.quantize(q, number, qparams), f.quantize(q, np.where(fine, moved, number), shifted)
    same(f, q, "quantize at the scaled scale", np.where(fine, expected, got), got, {"x": x})


def _exact_values(q: Quantizer, codes: Array, qparams: QParams) -> Array:
    """``(code - z) * s`` in float64: exact for float32 scales, rounded once for float64 ones. 0 is +0 if s < 0."""
    scale, zero = per_element(q, qparams, codes.shape)
    number = number_of(q.format, codes)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        value = (number - zero if q.affine else number) * scale
        return np.asarray(np.where((value == 0) & (scale < 0), 0.0, value))


def _resolved(q: Quantizer, codes: Array, qparams: QParams, dtype: Any) -> Array:
    """Where the dtype holds the values of codes to 0.98 of the way to the next decision (of integers, 0.49 s), so that
    they lead back to the same code.
    """
    exact, number = _exact_values(q, codes, qparams), number_of(q.format, codes)
    scale, zero = per_element(q, qparams, codes.shape)
    finite = np.isfinite(number)
    way = np.minimum(*reach(q, np.where(finite, number - zero, numbers(q.format)[0])))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        moved = exact.astype(qparams.scale.dtype).astype(dtype).astype(np.float64) - exact
        return np.asarray(finite & (np.abs(moved) < 0.98 * way * np.abs(scale)))


def _halfway(q: Quantizer) -> tuple[Array, Array]:
    """What lies halfway between numbers of a format that is not of integers, and they themselves; and where they go."""
    every = numbers(q.format)
    match q.format:
        case BinaryFormat():
            between, goes = np.zeros(1), np.ones(1)
        case TernaryFormat(threshold):
            between, goes = np.array([-threshold, threshold]), np.zeros(2)
        case CodebookFormat(values):
            between, goes = np.array(q.format.midpoints), np.array(values[:-1])
        case IntegerFormat():
            raise ValueError(f"`q` must not be of integers, got {q.format}")
        case FloatFormat():
            last = len(every) // 2  # the place of the largest number, counted from zero
            double = np.arange(-2 * last - 1, 2 * last + 2)
            places = with_next(q.format)
            between = (places[(double >> 1) + last + 1] + places[-(-double >> 1) + last + 1]) / 2
            to = _half(double, q.rounding)
            goes = np.where(np.abs(to) > last, beyond_the_ends(q.format), every[np.abs(to).clip(0, last) + last])
            zero = (goes == 0) & (not q.format.negative_zero)
            goes = np.where(zero, goes, np.copysign(goes, double))
            every = every[:0]
    order = np.random.default_rng(0).permutation(len(every) + len(between))
    return np.concatenate([every, between])[order], np.concatenate([every, goes])[order]


def _half(double: Array, rounding: Rounding) -> Array:
    """``double / 2`` rounded to an integer, for integers ``double``."""
    floor, half, positive = double >> 1, double & 1, double > 0
    to_even = half & floor
    match rounding:
        case Rounding.TIES_TO_EVEN:
            return np.asarray(floor + to_even)
        case Rounding.TIES_TO_AWAY:
            return np.asarray(floor + half * positive)
        case Rounding.TIES_TOWARD_POSITIVE | Rounding.TOWARD_POSITIVE:
            return np.asarray(floor + half)
        case Rounding.TOWARD_ZERO:
            return np.asarray(floor + half * ~positive)
        case Rounding.TOWARD_NEGATIVE | Rounding.LEARNED:  # without a parameter
            return floor
        case Rounding.DPU:
            return np.asarray(floor + np.where(positive, to_even, half))
        case Rounding.STOCHASTIC:
            raise ValueError("`rounding` must be deterministic, got 'stochastic'")


def _everything(
    f: Implementation, q: Quantizer, number: Array, finite: Array, codes: Array, qparams: QParams, g: Array
) -> tuple[Any, ...]:
    return (
        f.choose_qparams(q, finite),
        f.quantize(q, number, qparams),
        f.dequantize(q, codes, qparams, number.dtype),
        f.fake_quantize(q, number, qparams),
        f.fake_quantize(q, finite),
        f.fake_quantize_vjp(q, number, qparams, g),
    )


def _copied(value: Any) -> Any:
    """Arrays of nested tuples, copied."""
    if isinstance(value, tuple):
        return tuple(_copied(part) for part in value)
    return None if value is None else np.array(value)
