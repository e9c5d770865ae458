"""The five functions of the specification, by definition and without state.

Let ``s`` be the scale and ``z`` the zero point (0 when symmetric) of the block an element lies in, ``[lo, hi]`` the
format. In the default arithmetic, computed in float32 (float64 for float64 input; 16-bit input is widened first):

    code  = clamp(round(x / s) + z, lo, hi)        x / s is one correctly rounded division
    x_hat = (code - z) * s                         one correctly rounded multiplication

and ``x_hat`` is rounded once to the dtype of ``x``. ``+inf`` becomes hi, ``-inf`` lo. No result is -0.0.
Scales are positive, but for the statistic SIGNED_ABSMAX; with a negative one ``+inf`` becomes lo, ``-inf`` hi.
`q.arithmetic` changes any of this; see `samebits.core.arithmetic`. A zero point of the float domain is the value of the
middle code, mid = (lo + hi + 1) // 2:

    code  = clamp(round((x - (z - mid * s)) / s), lo, hi)
    x_hat = (code - mid) * s + z                   every operation of both is rounded

Shapes: ``x`` and codes any shape the granularity accepts; parameters `granularity.qparams_shape`. Dtypes of ``x``:
float32, bfloat16, float16, float64. Codes come in the format's `storage` dtype, parameters as `QParams` says.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import arguments, checks
from .arithmetic import (
    Arithmetic,
    ClampOrder,
    Division,
    NanRule,
    ZeroPointDomain,
    ZeroPointOrder,
)
from .bit_width import range_slopes
from .blocks import expand_blocks, split_blocks
from .clamp import clamp
from .descriptions import Gradient, QParams, Quantizer, QuantizerGradients
from .directions import Rounding
from .formats import IntegerFormat
from .granularity import PerTensor
from .grid import decode, encode, limit_to_grid, round_to_grid
from .half_quadratic import half_quadratic_range
from .learned_rounding import rounding_offset, rounding_slope
from .operations import (
    add,
    divide,
    multiply,
    multiply_add,
    reciprocal,
    round_to_dtype,
    working_dtype,
)
from .ranges import average_range, percentile_range, searched_range
from .scale_rules import data_range, flushed, given_parameters, parameters_of_range, scale_dtypes, widened_range
from .scales import SEARCHED, Denominator, Statistic
from .statistics import absmax, min_max, positive_peak
from .ste import block_sum, learned_scale_factor, passing_mask
from .threefry import rounding_noise
from .zero_point import middle_code

Array = NDArray[Any]


@np.errstate(all="ignore")  # special values are meant
def choose_qparams(q: Quantizer, x: Array) -> QParams:
    """Scale (and zero point) of each block from its smallest and largest element, or another `Statistic`.

    All-zero and empty blocks get the floor of the rule as scale. A rule with a `scale_value` gives that for any ``x``.

    Raises:
        TypeError: ``q`` is no Quantizer, ``x`` no floating-point array.
        ValueError: a shape the granularity does not divide, or NaN or an infinity in ``x`` where it matters.
    """
    x = arguments.check_array(q, x)
    if q.scale.scale_value is not None:
        return given_parameters(q, x)
    of_range, _ = scale_dtypes(q, x.dtype)
    low, high = _range(q, flushed(q, x, of_range))
    checks.check_finite_statistic(bool(np.isfinite(low).all() and np.isfinite(high).all()))
    found = _searched(q, x, low, high) if q.scale.statistic in SEARCHED else (low, high)
    chosen = parameters_of_range(q, x.dtype, *found)
    return QParams(np.where(positive_peak(x, q.granularity), -chosen.scale, chosen.scale)) if q.scale.signed else chosen


@np.errstate(all="ignore")  # special values are meant
def quantize(q: Quantizer, x: Array, qparams: QParams) -> Array:
    """Integer codes of ``x``.

    Raises:
        TypeError, ValueError: as `fake_quantize`; and ValueError for NaN in ``x`` (under `NanRule.PROPAGATE`), since no
            integer stands for it.
    """
    x, qparams = arguments.check_operands(q, x, qparams)
    q = q.decided
    if q.arithmetic.nan is NanRule.PROPAGATE and not q.format.has_nan:
        checks.check_no_nan(bool(np.isnan(x).any()))
    codes = _codes(_at_width(q, qparams), x, qparams)
    if not q.format.has_nan and np.isnan(codes).any():
        # inf - inf, where the least value of a floating-point domain of zero points overflows
        codes = np.where(np.isnan(codes), np.clip(0, q.format.lo, q.format.hi).astype(codes.dtype), codes)
    return encode(q, codes)


@np.errstate(all="ignore")  # special values are meant
def dequantize(q: Quantizer, codes: Array, qparams: QParams, dtype: DTypeLike | None = None) -> Array:
    """Real values ``(code - z) * s`` of integer codes.

    Args:
        dtype: of the result; None for the dtype of the scale (float32 for one of 16 bits). Rounded to it once.
    Raises:
        TypeError: codes not in the format's storage dtype; wrong dtype of the parameters.
        ValueError: wrong shape or values of the parameters.
    """
    checks.check_subnormals()
    checks.check_quantizer(q)
    codes = arguments.as_array("codes", codes)
    checks.check_codes(q, codes.dtype.name)
    if dtype is not None:
        checks.check_float("dtype", np.dtype(dtype).name)
    qparams = arguments.check_qparams(q, codes.shape, None if dtype is None else np.dtype(dtype).name, qparams)
    out = np.dtype(qparams.scale.dtype if dtype is None else np.dtype(dtype).name)  # of the machine's byte order
    return _values(q, decode(q, codes, working_dtype(q.arithmetic, out)), qparams, out)


@np.errstate(all="ignore")  # special values are meant
def fake_quantize(q: Quantizer, x: Array, qparams: QParams | None = None) -> Array:
    """``dequantize(quantize(x))`` in the dtype of ``x``, with NaN propagated (or as `q.arithmetic.nan` says).

    Args:
        qparams: None to choose them from ``x``.
    Raises:
        TypeError: ``q`` is no Quantizer, ``x`` no floating-point array, wrong dtype of scale or zero point, or a zero
            point missing or not wanted.
        ValueError: wrong shape of scale or zero point; a scale that is no positive normal finite number; a zero point
            that is no integer of the format (NaN in other domains); and as `choose_qparams` when it chooses.
    """
    if qparams is None:
        x = arguments.check_array(q, x)
        qparams = choose_qparams(q, x)
    else:
        x, qparams = arguments.check_operands(q, x, qparams)
    return _values(q, _codes(_at_width(q, qparams), x, qparams), qparams, x.dtype)


@np.errstate(all="ignore")  # special values are meant
def fake_quantize_vjp(q: Quantizer, x: Array, qparams: QParams, g: Array) -> QuantizerGradients:
    """Gradients of ``sum(g * fake_quantize(q, x, qparams))`` as `q.gradient` defines them; see `Gradient`.

    ``x``: elementwise, ``g`` where the code was not clamped (NaN is not clamped), else +0.0; everywhere for
    `PASS_THROUGH`. ``scale`` and ``zero_point``: float32 terms (float64 for float64 ``x``), every operation rounded,
    their sum over each block exact and rounded once. Shapes and dtypes of the parameters;
    float32 (or float64) for integers, and for 16 bits the one in float32 rounded once more.
    ``rounding``: ``fl(fl(g * s) * h'(v))`` where the code was not clamped and ``h'(v)`` is not 0, else +0.0.
    ``bit_width``, where there is one: the sum, exact and rounded once, of ``g * s`` where codes were clamped above, and
    of ``-g * s`` below if signed, times the derivative of the largest code (`bit_width.range_slopes`).

    Args:
        g: incoming gradient, shape and dtype of ``x``.
    Raises:
        TypeError, ValueError: as `fake_quantize`, and when ``g`` has another shape or dtype than ``x``.
    """
    given = qparams
    x, qparams = arguments.check_operands(q, x, qparams)
    g = arguments.as_array("g", g)
    checks.check_cotangent(x.shape, x.dtype.name, g.shape, g.dtype.name)
    width, q = qparams.bit_width, _at_width(q, qparams)
    quotient, unclamped, later = _unclamped_codes(q, x, qparams)
    passes = _passes(q, quotient, unclamped, later)
    dx = np.where(passes, g, np.zeros_like(g))

    work = quotient.dtype
    scale, zero = _expanded(q, qparams, x.shape, work)
    codes = _codes(q, x, qparams).astype(work)
    wide, zeros = g.astype(work), np.zeros_like(quotient)
    match q.arithmetic.zero_point_domain:
        case ZeroPointDomain.INTEGER:
            offset, per_zero = zero, -scale
        case ZeroPointDomain.FLOAT:
            quotient = divide(add(x.astype(work), -zero, q.arithmetic), scale, q.arithmetic)
            offset, per_zero = np.asarray(middle_code(q), work), np.ones_like(scale)
        case ZeroPointDomain.SHIFT:
            offset, per_zero = np.zeros_like(scale), -np.ones_like(scale)
    distance = add(add(codes, -offset, q.arithmetic), -np.where(passes, quotient, zeros), q.arithmetic)
    per_scale = multiply(wide, distance, q.arithmetic)
    if q.gradient is Gradient.LEARNED_CLIP:
        per_scale = np.where(passes, zeros, per_scale)
    d_scale = _reduced(q, per_scale, qparams)
    d_zero, d_width, d_rounding = None, None, None
    if q.affine:
        d_zero = _reduced(q, np.where(passes, zeros, multiply(wide, per_zero, q.arithmetic)), qparams)
    if width is not None:
        ends = np.where(codes == q.format.hi, wide, -wide if q.format.lo else zeros)
        terms = np.where(passes, zeros, multiply(ends, scale, q.arithmetic))
        d_width = block_sum(terms, PerTensor()) * range_slopes(q, width)[1].astype(terms.dtype)
        d_width = np.asarray(d_width, qparams.scale.dtype)
    if q.rounding is Rounding.LEARNED and qparams.rounding is not None:
        slope = rounding_slope(q.learned_rounding, qparams.rounding).astype(work)
        d_rounding = multiply(multiply(wide, scale, q.arithmetic), slope, q.arithmetic)
        d_rounding = np.where(passes & (slope != 0), d_rounding, zeros).astype(qparams.scale.dtype)
    d_zero = None if d_zero is None else _in_dtype_of(given.zero_point, d_zero)
    return QuantizerGradients(dx, _in_dtype_of(given.scale, d_scale), d_zero, d_width, d_rounding)


@np.errstate(all="ignore")  # special values are meant
def codes_and_zero_points(q: Quantizer, x: Array, qparams: QParams) -> tuple[Array, Array]:
    """Codes in the working dtype (NaN where `fake_quantize` propagates it), and the zero point of every element.

    Raises:
        TypeError, ValueError: as `fake_quantize`.
    """
    x, qparams = arguments.check_operands(q, x, qparams)
    codes = _codes(_at_width(q.decided, qparams), x, qparams)
    return codes, _expanded(q, qparams, x.shape, codes.dtype)[1]


def _range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """The range that the scale of each block comes from."""
    if q.scale.statistic not in (Statistic.EXTREMES, Statistic.SIGNED_ABSMAX, *SEARCHED):
        if q.scale.statistic is Statistic.PERCENTILE:
            low, high = percentile_range(q, x)
        else:
            wide = np.dtype(checks.scale_dtype(x.dtype.name))
            low, high = (round_to_dtype(v, x.dtype) for v in average_range(q, x.astype(wide)))
        # + 0: zeros among percentiles may have either sign
        return widened_range(q, low + np.zeros((), low.dtype), high) if q.affine else (low, high)
    if q.affine:
        return data_range(q, x)
    if q.scale.denominator is Denominator.LARGER:
        return min_max(x, q.granularity)
    high = absmax(x, q.granularity)
    return -high, high


def _searched(q: Quantizer, x: Array, low: Array, high: Array) -> tuple[Array, ...]:
    """The range that a search finds; rounding that draws or learns counts as rounding to nearest there."""
    if not q.deterministic:
        q = q.replace(rounding=Rounding.TIES_TO_EVEN)
    wide = np.dtype(checks.scale_dtype(x.dtype.name))

    def attempt(low: Array, high: Array, lower_end: Array | None = None) -> tuple[Array, Array, Array]:
        qparams = parameters_of_range(q, x.dtype, low, high, lower_end)
        codes = _codes(q, x, qparams)
        return qparams.scale, codes, _values(q, codes, qparams, wide)

    if q.scale.statistic is Statistic.MSE:
        return searched_range(q, x.astype(wide), low, high, lambda low, high: attempt(low, high)[2])
    return half_quadratic_range(q, x.astype(wide), low, high, attempt)


def _at_width(q: Quantizer, qparams: QParams) -> Quantizer:
    """The quantizer of the width that the parameters say."""
    return q if qparams.bit_width is None else checks.at_width(q, float(qparams.bit_width))


def _expanded(q: Quantizer, qparams: QParams, shape: tuple[int, ...], work: np.dtype[Any]) -> tuple[Array, Array]:
    """Scale and zero point (0 when symmetric) of every element, in the working dtype."""
    scale = round_to_dtype(qparams.scale, work)
    zero = np.zeros_like(scale) if qparams.zero_point is None else qparams.zero_point.astype(work)
    return expand_blocks(scale, q.granularity, shape), expand_blocks(zero, q.granularity, shape)


def _unclamped_codes(q: Quantizer, x: Array, qparams: QParams) -> tuple[Array, Array, Array | None]:
    """``x / s``; the codes as the clamp sees them; and the zero point where it is still to be added after the clamp.

    The codes are rounded unless the arithmetic clamps first. The zero point comes after the clamp when it comes after a
    rounding that itself comes after the clamp; the limits of the clamp then are ``[lo - z, hi - z]``.
    """
    a: Arithmetic = q.arithmetic
    work = working_dtype(a, x.dtype)
    value = round_to_dtype(x, work)
    scale, zero = _expanded(q, qparams, x.shape, work)
    if a.zero_point_domain is ZeroPointDomain.FLOAT:
        low = multiply_add(scale, np.asarray(-middle_code(q), work), zero, a)
        value, zero = add(value, -low, a), np.zeros_like(zero)
    elif a.zero_point_domain is ZeroPointDomain.SHIFT:
        value, zero = add(value, zero, a), np.zeros_like(zero)
    quotient, noise = divide(value, scale, a), _noise(q, qparams, x.shape)
    if a.zero_point_order is ZeroPointOrder.AFTER_ROUNDING:
        if a.clamp_order is ClampOrder.BEFORE_ROUNDING:
            return quotient, quotient, zero
        return quotient, _shift(round_to_grid(q, quotient, noise), zero, q), None
    if a.division is Division.RECIPROCAL:
        shifted = multiply_add(value, reciprocal(scale, a), zero, a)
    else:
        shifted = add(quotient, zero, a)
    if a.clamp_order is ClampOrder.BEFORE_ROUNDING:
        return quotient, shifted, None
    return quotient, round_to_grid(q, shifted, noise), None


def _noise(q: Quantizer, qparams: QParams, shape: tuple[int, ...]) -> Array | None:
    """What stochastic rounding compares with, or learned rounding adds; None for other directions."""
    if q.rounding is Rounding.LEARNED:
        if qparams.rounding is None and not q.relaxed:
            return None
        v = np.zeros(shape, qparams.scale.dtype) if qparams.rounding is None else qparams.rounding
        return rounding_offset(q.learned_rounding, v)
    if q.rounding is not Rounding.STOCHASTIC:
        return None
    return rounding_noise(0 if qparams.seed is None else qparams.seed, shape)


def _shift(rounded: Array, zero: Array, q: Quantizer) -> Array:
    """``rounded + z``; without a zero point nothing is added, so that the sign of zero can survive."""
    return add(rounded, zero, q.arithmetic) if q.affine else rounded


def _limits(q: Quantizer, dtype: np.dtype[Any], later: Array | None) -> tuple[Array, Array]:
    """Limits of the clamp: the format's, inwards to a number of the dtype, less the zero point that is added later."""
    limits = []
    for bound in (q.format.lo, q.format.hi):
        nearest = np.asarray(bound, dtype)
        outside = abs(float(nearest)) > abs(bound)
        limits.append(np.nextafter(nearest, np.zeros((), dtype)) if outside else nearest)
    low, high = limits
    return (low, high) if later is None else (low - later, high - later)


def _passes(q: Quantizer, quotient: Array, unclamped: Array, later: Array | None) -> Array:
    """`passing_mask`, also where the limits of the clamp move with the zero point."""
    if later is None or q.gradient is Gradient.PASS_THROUGH:
        return passing_mask(q, quotient, unclamped.astype(np.float64))  # where every code is a number of its own
    low, high = _limits(q, unclamped.dtype, later)
    return np.asarray(~((unclamped < low) | (unclamped > high)))


def _codes(q: Quantizer, x: Array, qparams: QParams) -> Array:
    """Codes in the working dtype; NaN where the NaN rule propagates it."""
    _, unclamped, later = _unclamped_codes(q, x, qparams)
    if isinstance(q.format, IntegerFormat):
        codes = clamp(unclamped, *_limits(q, unclamped.dtype, later))
    else:
        codes = limit_to_grid(q, unclamped)
    if q.arithmetic.clamp_order is ClampOrder.BEFORE_ROUNDING:
        codes = round_to_grid(q, codes, _noise(q, qparams, x.shape))
        codes = codes if later is None else _shift(codes, later, q)
    if not (q.arithmetic.keep_negative_zero or q.format.negative_zero):
        codes = codes + np.zeros((), codes.dtype)  # -0 + 0 is +0, anything else itself
    match q.arithmetic.nan:
        case NanRule.PROPAGATE:
            return codes
        case NanRule.LOWEST:
            instead = np.asarray(q.format.lo)
        case NanRule.HIGHEST:
            instead = np.asarray(q.format.hi)
        case NanRule.ZERO:
            instead = np.clip(0, q.format.lo, q.format.hi)
        case NanRule.ZERO_POINT:
            instead = _codes(q.replace(nan=NanRule.PROPAGATE), np.zeros_like(x), qparams)
    return np.where(np.isnan(codes), instead.astype(codes.dtype), codes)


def _values(q: Quantizer, codes: Array, qparams: QParams, dtype: np.dtype[Any]) -> Array:
    """``(code - z) * s`` in the working dtype, rounded once to ``dtype``."""
    scale, zero = _expanded(q, qparams, codes.shape, codes.dtype)
    match q.arithmetic.zero_point_domain:
        case ZeroPointDomain.INTEGER:
            centred = add(codes, -zero, q.arithmetic) if q.affine else codes
            value = multiply(centred, scale, q.arithmetic)
            if q.scale.signed:  # 0 times a negative scale is 0, too
                value = round_to_dtype(value, dtype) + np.zeros((), dtype)
        case ZeroPointDomain.FLOAT:
            centred = add(codes, np.asarray(-middle_code(q), codes.dtype), q.arithmetic)
            value = multiply_add(centred, scale, zero, q.arithmetic)
        case ZeroPointDomain.SHIFT:
            value = multiply_add(codes, scale, -zero, q.arithmetic)
    return round_to_dtype(value, dtype)


def _in_dtype_of(parameter: Any, gradient: Array) -> Array:
    """The gradient rounded to the dtype of a parameter of 16 bits, as autodiff rounds what a widening hands back."""
    dtype = np.asarray(parameter).dtype.name
    return round_to_dtype(gradient, np.dtype(dtype)) if dtype in checks.HALVES else gradient


def _reduced(q: Quantizer, terms: Array, qparams: QParams) -> Array:
    """Terms summed over each block, times the factor of the gradient rule, in the dtype of the scale."""
    block_elements = split_blocks(terms, q.granularity).shape[-1]
    factor = np.asarray(learned_scale_factor(q, block_elements), terms.dtype)
    return np.asarray(block_sum(terms, q.granularity) * factor, qparams.scale.dtype)
