"""Laws of the gradients: which elements they pass, and what is summed for scale and zero point."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Gradient, QParams, Quantizer
from ..inputs.numbers import clipping_ends, number_of
from ..modes.execution import Implementation
from .blockwise import owners, per_element, quotient
from .judging import claim, require, same, without_nan

Array = NDArray[Any]
TOGETHER = 64  # terms a frontend may add in one go; see `_sums_up`


def gradient_is_g_or_zero(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """Every element of dx is the incoming gradient, bit for bit, or +0.0; with `PASS_THROUGH` always the former."""
    dx = f.fake_quantize_vjp(q, x, qparams, g).x
    nothing = dx.astype(np.float64) == 0
    passing = q.gradient is Gradient.PASS_THROUGH
    expected = g if passing else np.where(nothing, np.where(np.signbit(g) & (g == 0), dx, np.zeros_like(g)), g)
    same(f, q, "fake_quantize_vjp", expected, dx, {"x": x, "g": g})


def gradient_passes_inside_only(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """dx is g where ``x / s`` rounds to a number within [lo, hi], and for NaN; 0 where it was clamped.

    (Within one rounding of the outermost boundaries `equals_specification` decides.)
    """
    ones = np.ones_like(g)
    dx = f.fake_quantize_vjp(q, x, qparams, ones).x
    real, slack = quotient(q, x, qparams)
    low, high = clipping_ends(q, per_element(q, qparams, x.shape)[1])
    inside = ((real > low + slack) & (real < high - slack)) | np.isnan(x)
    outside = (real < low - slack) | (real > high + slack)
    holds = ~(inside & (dx != 1)) & ~(outside & (dx != 0))
    require(holds, claim(f, q, "g passes inside the range only"), x=x, quotient=real, dx=dx)


def scale_gradient_is_the_sum(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """d scale is the sum over the block of ``g * ((code - z) - m * x / s)``, m being 1 where g passes.

    Of `LEARNED_CLIP`, of ``g * code`` where g does not pass.

    How exact a sum has to be says `_sums_up`.
    """
    work = qparams.scale.dtype
    number, (scale, zero) = without_nan(x), per_element(q, qparams, x.shape)
    d = f.fake_quantize_vjp(q, number, qparams, g)
    passes = _passes(f, q, number, qparams)
    n = number_of(q.format, f.quantize(q, number, qparams)) - zero
    with np.errstate(all="ignore"):
        ratio = np.where(passes, number.astype(work) / scale.astype(work), np.zeros_like(scale, work))
        terms = g.astype(work) * (n.astype(work) - ratio)
        if q.gradient is Gradient.LEARNED_CLIP:
            terms = np.where(passes, np.zeros_like(terms), terms)
    _sums_up(f, q, "d scale", terms, d.scale, qparams)


def zero_point_gradient_is_the_sum(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """d zero_point is the sum over the block of ``-g * s`` where g does not pass (`_sums_up`)."""
    work = qparams.scale.dtype
    number, scale = without_nan(x), per_element(q, qparams, x.shape)[0]
    d = f.fake_quantize_vjp(q, number, qparams, g)
    with np.errstate(all="ignore"):
        clamped = g.astype(work) * -scale.astype(work)
        terms = np.where(_passes(f, q, number, qparams), np.zeros_like(clamped), clamped)
    _sums_up(f, q, "d zero_point", terms, d.zero_point, qparams)


def _passes(f: Implementation, q: Quantizer, x: Array, qparams: QParams) -> Array:
    """Where the gradient passes, by the implementation's own word; the other laws judge that."""
    return np.asarray(f.fake_quantize_vjp(q, x, qparams, np.ones_like(x)).x == 1)


def _sums_up(f: Implementation, q: Quantizer, name: str, terms: Array, got: Array, qparams: QParams) -> None:
    """Whether a gradient is the sum of the terms of each block, times the factor of the gradient rule.

    A sum may be off by one rounding for each of `TOGETHER` terms, and again for each of as many such sums, and so on;
    an addition may lose a subnormal number. Where the terms, or sums of them, are not finite, no sum is promised.
    """
    limits = np.finfo(terms.dtype)
    unit, tiny = float(limits.eps) / 2, float(limits.smallest_normal)
    rows = terms.reshape(-1)[owners(q.granularity, terms.shape)].astype(np.float64)
    count = rows.shape[-1]
    factor = 1.0
    if q.gradient is Gradient.LEARNED_SCALE and count:
        factor = 1 / math.sqrt(count * max(q.format.hi, 1))
    roundings = min(count, TOGETHER * math.ceil(math.log(max(count, 2), TOGETHER))) + 3
    with np.errstate(all="ignore"):
        size = np.abs(rows).sum(-1)
        finite = size < float(limits.max) / 4
        exact = np.array([math.fsum(row) if fine else 0.0 for row, fine in zip(rows, finite, strict=True)])
        found = np.where(finite, np.asarray(got, np.float64).reshape(-1), 0.0)
        bound = (roundings * unit * np.where(finite, size, 0.0) + (count + 2) * tiny) * factor + tiny
    exact *= factor
    what = claim(f, q, f"{name} within {roundings} roundings of the exact sum")
    require(np.abs(found - exact) <= bound, what, exact=exact, got=found, bound=bound)
