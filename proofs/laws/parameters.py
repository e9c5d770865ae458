"""Laws of the parameters that `choose_qparams` chooses. Arrays are made finite first, but where refused."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import QParams, Quantizer
from ...core.directions import DETERMINISTIC, Rounding
from ...core.formats import IntegerFormat
from ...core.granularity import qparams_shape
from ...core.scales import INTEGER_SCALE, SEARCHED, Denominator, Restriction, Statistic
from ..inputs.numbers import DIRECTED, number_of
from ..modes.execution import Implementation
from .blockwise import owners, per_element
from .judging import claim, only_finite, refuses, require, same, with_every
from .scale_rules import ends, line, raised, raw_scale, signs, zero_point

Array = NDArray[Any]


def chosen_parameters_are_allowed(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """A chosen scale is a positive normal number, at least the floor, of the restriction; a zero point in [lo, hi].

    Where scales may be negative, their magnitudes are.
    """
    chosen = f.choose_qparams(q, only_finite(x))
    shape, work = qparams_shape(q.granularity, x.shape), qparams.scale.dtype
    model = QParams(np.zeros(shape, work), np.zeros(shape, np.int32) if q.affine else None)
    same(f, q, "dtype and shape", model, QParams(*(None if p is None else np.zeros_like(p) for p in chosen)))
    limits = np.finfo(work)
    floor = limits.smallest_normal if q.scale.floor is None else np.asarray(q.scale.floor, work)
    size = np.abs(chosen.scale) if q.scale.signed else chosen.scale
    good = (size >= floor) & (size <= limits.max)
    if q.scale.restriction in INTEGER_SCALE:
        good &= (chosen.scale >= 1) & (chosen.scale == np.trunc(chosen.scale))
    elif q.scale.restriction not in (Restriction.FLOAT, Restriction.LOG_FLOAT, Restriction.QUANTIZED):
        good &= np.frexp(chosen.scale)[0] == 0.5
    require(good, claim(f, q, "scale allowed"), scale=chosen.scale)
    if q.affine:
        held = (chosen.zero_point >= q.format.lo) & (chosen.zero_point <= q.format.hi)
        require(held, claim(f, q, "zero point in range"), zero_point=chosen.zero_point)


def chosen_scale_is_the_statistic(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """Scale and zero point are what `ScaleRule` says of the `Statistic` of each block, each step rounded once.

    Of a rule with a `scale_value`: that, raised and restricted, and its `zero_point_value`, whatever the data.
    Computed here from the quotient in float64, whose second rounding to float32 changes nothing (53 >= 2 * 24 + 2). Of
    a search: they are those of one of the candidates, and no candidate has a smaller squared error (computed in
    float64, which may tell errors apart that the search, whose sum is rounded, does not). Of HQO: their absolute error
    is no larger than where it started; where it moves zero points, scales are those of the extremes.
    """
    finite, work = only_finite(x), np.asarray(qparams.scale).dtype
    rows = finite.reshape(-1)[owners(q.granularity, x.shape)].astype(work)
    shape, chosen = qparams_shape(q.granularity, x.shape), f.choose_qparams(q, finite)
    if q.scale.scale_value is not None:
        scale = raised(q, np.full(shape, q.scale.scale_value, work))
        kind = work if q.arithmetic.has_float_zeros else np.int32
        zero = np.full(shape, q.scale.zero_point_value, kind) if q.affine else None
        same(f, q, "choose_qparams", QParams(scale, zero), chosen)
        return
    if q.scale.statistic not in SEARCHED:
        expected = _of_range(q, *ends(q, rows), shape)
        expected = expected._replace(scale=expected.scale * signs(q, rows).reshape(shape))
        same(f, q, "choose_qparams", expected, chosen)
        return
    low, high = ends(q, rows)
    if q.scale.statistic is Statistic.HQO:
        own, first = _error(f, q, finite, chosen, 1), _of_range(q, low, high, shape)
        if q.affine:
            same(f, q, "scale", first.scale, chosen.scale)
        start = _error(f, q, finite, first, 1)
        better = own <= start * (1 + 2.0**-16)
        require(better | np.isnan(start), claim(f, q, "no worse than at the start"), error=own, start=start)
        return
    error, found = np.full(shape, np.inf), np.zeros(shape, np.bool_)
    for k in range(1, q.scale.search_steps + 1):
        factor = np.asarray(k / q.scale.search_steps, work)
        candidate = _of_range(q, low * factor, high * factor, shape)
        error = np.fmin(error, _error(f, q, finite, candidate, 2))
        agrees = [a == b for a, b in zip(chosen[:2], candidate[:2], strict=True) if a is not None]
        found |= np.all(agrees, axis=0)
    require(found, claim(f, q, "one of the candidates"), scale=chosen.scale)
    own = _error(f, q, finite, chosen, 2)
    require(own <= error * (1 + 2.0**-16), claim(f, q, "the least error"), error=own, least=error)


def _of_range(q: Quantizer, low: Array, high: Array, shape: tuple[int, ...]) -> QParams:
    """Parameters of the ranges of all blocks."""
    scale = raised(q, raw_scale(q, low, high))
    return QParams(scale.reshape(shape), zero_point(q, low, scale).reshape(shape) if q.affine else None)


def _error(f: Implementation, q: Quantizer, x: Array, qparams: QParams, p: int) -> Array:
    """Mean of ``|error|**p`` of each block in units of its absmax, of values as they are rounded; infinite if they are.

    NaN where a zero point is infinite.
    """
    plain = q if q.rounding in DETERMINISTIC else q.replace(rounding=Rounding.TIES_TO_EVEN)
    codes = number_of(q.format, f.quantize(plain, x, qparams)).astype(np.float64)
    scale, zero = per_element(q, qparams, x.shape)
    work = np.asarray(qparams.scale).dtype
    with np.errstate(over="ignore"):
        values = ((codes - zero) * scale).astype(work)
    if q.arithmetic.has_float_zeros:
        values = line(scale.astype(work), codes - (q.format.lo + q.format.hi + 1) // 2, zero)
    difference = (values.astype(np.float64) - x.astype(np.float64)).reshape(-1)[owners(q.granularity, x.shape)]
    unit = np.maximum(np.abs(x.astype(np.float64)).reshape(-1)[owners(q.granularity, x.shape)].max(-1), 2.0**-149)
    return np.asarray(np.mean(np.abs(difference / unit[:, None]) ** p, -1).reshape(np.shape(qparams.scale)))


def chosen_range_covers_the_data(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """With chosen parameters no element is farther than a step from its value, or half a step where that is promised.

    Of other formats than integers: no element lies beyond the ends. Half a step: nearest rounding, no zero point, and a
    denominator that does not shorten the range. An unsigned symmetric format covers positive elements only, a codebook
    those above its lower end. Scales at the largest power of two cannot grow; they are exempt.
    """
    finite = only_finite(x)
    chosen = f.choose_qparams(q, finite)
    scale, zero = per_element(q, chosen, x.shape)
    real = finite.astype(np.float64) / scale
    lo, hi = q.format.lo, q.format.hi
    beyond = (real < lo) & (lo > -hi) & (not q.affine)
    if q.scale.restriction is Restriction.POWER_OF_TWO:
        beyond |= scale >= 2.0 ** (np.finfo(chosen.scale.dtype).maxexp - 1)
    if not isinstance(q.format, IntegerFormat):
        slack = 1e-6 * np.abs(real)
        inside = (real >= lo - slack) & (real <= hi + slack)
        require(inside | beyond, claim(f, q, "within the ends"), x=finite, scale=scale, quotient=real)
        return
    codes = f.quantize(q, finite, chosen)
    whole = q.scale.denominator in (Denominator.HI, Denominator.LARGER)
    steps = 0.5 if whole and not q.affine and q.rounding not in DIRECTED else 1.0
    held = np.abs(real - (codes - zero)) <= steps + 1e-6 * np.abs(real)
    what = claim(f, q, f"within {steps} steps of the value")
    require(held | beyond, what, x=finite, scale=scale, zero_point=zero, code=codes)


def nothing_has_the_smallest_scale(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """All-zero blocks get the smallest scale that the rule allows, and lo as zero point."""
    nothing = with_every(np.zeros_like(x), -0.0, 2)
    shape, work = qparams_shape(q.granularity, x.shape), np.asarray(qparams.scale).dtype
    zeros = np.zeros(shape, work)
    scale = raised(q, raw_scale(q, zeros, zeros))
    zero = np.full(shape, q.format.lo, np.int32) if q.affine else None
    same(f, q, "choose_qparams of zeros", QParams(scale, zero), f.choose_qparams(q, nothing))


def infinite_data_has_no_scale(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """NaN or an infinity in x: ValueError; where nothing can be raised, NaN as scale of that block and of no other.

    Scales in two levels have a part in common: there all are NaN.
    """
    finite = only_finite(x)
    rows = owners(q.granularity, x.shape)
    for value in (np.nan, np.inf, -np.inf):
        odd = np.array(finite)
        odd.reshape(-1)[rows[::2, :1]] = value
        if not f.refuses:
            expected = np.array(f.choose_qparams(q, finite).scale)
            if x.size:
                expected.reshape(-1)[:: 1 if q.scale.two_level else 2] = np.nan
            same(f, q, f"scale of data with {value}", expected, f.choose_qparams(q, odd).scale)
        elif x.size:
            refuses(f, q, f"choose_qparams of data with {value}", partial(f.choose_qparams, q, odd))
