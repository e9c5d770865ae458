"""Laws of zero, NaN and infinity, and of which elements may know of each other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import QParams, Quantizer
from ...core.granularity import qparams_shape
from ...core.scales import Statistic
from ..inputs.bits import from_ordinal, ordinal
from ..inputs.numbers import beyond_the_ends, codes_of, number_of
from ..modes.execution import Implementation
from .blockwise import owners, per_element, quotient, rearranged
from .judging import claim, only_finite, refuses, require, same, with_every, without_nan

Array = NDArray[Any]


def zero_stays_zero(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """Both zeros have the code of the zero point, or of 0, and come back as +0.0; or as they were, if both exist."""
    zeros = np.zeros(x.shape, x.dtype)
    zeros.reshape(-1)[::2] *= -1
    if q.affine:
        expected = per_element(q, qparams, x.shape)[1].astype(q.format.storage)
    else:
        expected = codes_of(q.format, zeros if q.format.negative_zero else np.abs(zeros))
    again = zeros if q.format.negative_zero else np.zeros_like(zeros)
    same(f, q, "quantize(0)", expected, f.quantize(q, zeros, qparams), {"x": zeros})
    same(f, q, "fake_quantize(0)", again, f.fake_quantize(q, zeros, qparams), {"x": zeros})


def zero_code_has_one_sign(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """Every x with the code of zero becomes +0.0. (A value below the range of float16 may round to -0.0.)"""
    number = without_nan(x)
    at_zero = number_of(q.format, f.quantize(q, number, qparams)) == per_element(q, qparams, x.shape)[1]
    fake = f.fake_quantize(q, number, qparams)
    same(f, q, "fake_quantize", np.where(at_zero, np.zeros_like(fake), fake), fake, {"x": x})


def values_keep_the_sign(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """In formats with a zero of either sign, x_hat has the sign of x, zero or not. (NaN has none.)"""
    number = without_nan(x)
    fake = f.fake_quantize(q, number, qparams)
    held = (np.signbit(fake) == np.signbit(number)) | np.isnan(fake)
    require(held, claim(f, q, "x_hat has the sign of x"), x=x, fake=fake)


def nan_propagates(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """``fake_quantize`` is NaN where x is NaN and nowhere else; the neighbours of a NaN do not notice it.

    Elsewhere only beyond the ends of formats that have nothing else there.
    """
    holed = with_every(x, np.nan, 3)
    fake = f.fake_quantize(q, holed, qparams)
    large = np.abs(quotient(q, holed, qparams)[0]) > q.format.hi
    allowed = np.isnan(holed) | (large & bool(np.isnan(beyond_the_ends(q.format))))
    held = np.where(np.isnan(fake), allowed, ~np.isnan(holed))
    require(held, claim(f, q, "NaN where x is NaN, nowhere else"), x=holed, fake=fake)
    whole = f.fake_quantize(q, without_nan(holed), qparams)
    same(f, q, "fake_quantize beside NaN", np.where(np.isnan(holed), fake, whole), fake, {"x": holed})


def quantize_has_no_code_for_nan(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """``quantize`` raises ValueError when x holds NaN; an implementation that cannot raise gives the code of zero."""
    holed = with_every(x, np.nan, 3)
    if not f.refuses:
        same(
            f,
            q,
            "quantize(NaN)",
            f.quantize(q, without_nan(holed), qparams),
            f.quantize(q, holed, qparams),
            {"x": holed},
        )
    elif x.size:
        refuses(f, q, "quantize of NaN", lambda: f.quantize(q, holed, qparams))


def nan_has_one_code(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """In formats with NaN, ``quantize`` gives every NaN the first code that stands for it."""
    holed = with_every(x, np.nan, 3)
    codes = f.quantize(q, holed, qparams)
    expected = np.where(np.isnan(holed), codes_of(q.format, np.array(np.nan)), codes)
    same(f, q, "quantize(NaN)", expected, codes, {"x": holed})


def infinities_go_to_the_ends(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """+inf has the code of hi and -inf that of lo, or of what stands for them; so has the value of `fake_quantize`.

    Of negative scales the other way round.
    """
    infinite = with_every(np.full_like(x, np.inf), -np.inf, 2)
    instead = beyond_the_ends(q.format)
    lowest = q.format.lo if instead == q.format.hi else -instead
    upwards = (infinite > 0) == (per_element(q, qparams, x.shape)[0] > 0)
    codes = codes_of(q.format, np.where(upwards, instead, lowest))
    same(f, q, "quantize(inf)", codes, f.quantize(q, infinite, qparams), {"x": infinite})
    values = f.dequantize(q, codes, qparams, x.dtype)
    same(f, q, "fake_quantize(inf)", values, f.fake_quantize(q, infinite, qparams), {"x": infinite})


def order_within_a_block_is_indifferent(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """Rearranging the elements of a block rearranges codes and gradients and leaves the chosen parameters alone.

    (Not so those from sums, which are added in the order of the elements: see `Statistic`.)
    """
    number, finite = without_nan(x), only_finite(x)
    order = np.random.default_rng(0).permutation(owners(q.granularity, x.shape).shape[-1])

    def moved(values: Array) -> Array:
        return rearranged(q.granularity, values, order)

    codes = f.quantize(q, number, qparams)
    same(f, q, "quantize, rearranged", moved(codes), f.quantize(q, moved(number), qparams), {"x": moved(x)})
    if q.scale.statistic in (Statistic.EXTREMES, Statistic.PERCENTILE):
        same(f, q, "choose_qparams, rearranged", f.choose_qparams(q, finite), f.choose_qparams(q, moved(finite)))
    dx = f.fake_quantize_vjp(q, x, qparams, g).x
    again = f.fake_quantize_vjp(q, moved(x), qparams, moved(g)).x
    same(f, q, "fake_quantize_vjp, rearranged", moved(dx), again, {"x": moved(x)})


def blocks_do_not_touch(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    """Other blocks, made all zero or as large as can be, leave codes and chosen parameters of a block as they were."""
    number, finite = without_nan(x), only_finite(x)
    quiet = np.where(np.abs(finite) > 1, np.ones_like(x), finite)  # so that the largest number is among the others
    rows = owners(q.granularity, x.shape)
    changed, other = np.zeros(x.shape, np.bool_), np.zeros(qparams_shape(q.granularity, x.shape), np.bool_)
    changed.reshape(-1)[rows[::2]] = True
    other.reshape(-1)[::2] = True
    codes, before = f.quantize(q, number, qparams), f.choose_qparams(q, quiet)
    for value in (np.zeros_like(x), from_ordinal(ordinal(np.full_like(x, np.inf)) - 1, x.dtype)):
        again = f.quantize(q, np.where(changed, value, number), qparams)
        same(f, q, "quantize of the rest", np.where(changed, again, codes), again, {"x": x})
        after = f.choose_qparams(q, np.where(changed, value, quiet))
        kept = QParams(*(b if b is None else np.where(other, a, b) for a, b in zip(after, before, strict=True)))
        same(f, q, "choose_qparams of the rest", kept, after)
