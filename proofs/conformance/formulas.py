"""What people write for ``round(x / scale)`` that no field of a description can say, each with the answers it gives.

Where a field explains all answers, that is the reason; else one of these may be. A reason is tried on all elements that
were asked, not only on the one to be explained, so that the one that leaves the fewest wins (`rules.broken_rule`).
"""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import ZeroPointDomain
from ...core.descriptions import Quantizer
from ...core.directions import Rounding
from ...core.formats import IntegerFormat
from .elements import Asked, apart
from .vectors import answers

Array = NDArray[Any]
Named = Iterator[tuple[str, Array]]
VIA = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
FLOORS = (2.0**-23, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)  # "eps" in other people's code
ULPS = (1, 2)  # what an approximate division may be off
PAIRS = 8  # blocks whose parameters may have been mixed up


@np.errstate(all="ignore")  # special values are meant
def formulas(q: Quantizer, asked: Asked, column: str, got: Array) -> Named:
    """Words for each formula, and where it has the answers that were got.

    Args:
        column: "code" or "value"; of gradients nothing is known.
        got: 1-d.
    """
    if column == "dx" or q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        return
    work = asked.scale.dtype
    quotient = asked.x.astype(work) / asked.scale

    def like(other: Array, scale: Array | None = None) -> Array:
        return _like(_answered(q, asked, other, column, asked.scale if scale is None else scale), got)

    for name, dtype in VIA.items():
        if dtype.itemsize < asked.x.dtype.itemsize:
            words = f"double rounding: x / scale is rounded to {name} before it is rounded to the format, must be once"
            yield words, like(quotient.astype(dtype).astype(work))
    if isinstance(q.format, IntegerFormat):
        half = np.asarray(0.5, work)
        added = "in floating point, where 0.49999997 + 0.5 is 1; must be"
        words = f"rounding direction: ties_toward_positive by floor(x / scale + 1/2) {added} {q.rounding}"
        yield words, like(np.floor(quotient + half))
        words = f"rounding direction: ties_to_away by trunc(x / scale +- 1/2) {added} {q.rounding}"
        yield words, like(np.trunc(quotient + np.copysign(half, quotient)))
        yield from _integers(q, asked, column, got, quotient)
    yield from _raised(asked, like)


@np.errstate(all="ignore")
def loose(q: Quantizer, asked: Asked, column: str, got: Array) -> Named:
    """The same for what allows several answers, and so explains more than it should: to be tried last."""
    if column == "dx" or q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        return
    quotient = asked.x.astype(asked.scale.dtype) / asked.scale
    found = [_like(_answered(q, asked, near, column, asked.scale), got) for near in (quotient, *_near(quotient))]
    yield "division: x / scale is 1 or 2 ulp off, must be correctly rounded", np.logical_or.reduce(found)
    yield from _mixed_up(q, asked, column, got)


def _integers(q: Quantizer, asked: Asked, column: str, got: Array, quotient: Array) -> Named:
    """Conversions to an integer before the clamp, or in place of it."""
    low = np.full_like(quotient, -np.inf)
    for width in (32, 64):
        words = f"overflow: converted to an integer of {width} bits before the clamp"
        cast = np.where(np.abs(quotient) >= 2.0 ** (width - 1), low, quotient)
        yield words, _like(_answered(q, asked, cast, column, asked.scale), got)
    if q.rounding is not Rounding.TIES_TO_EVEN:
        return
    added = 0 if asked.zero is None else asked.zero.astype(np.float64)
    rounded = np.rint(quotient).astype(np.float64) + added
    small = np.abs(rounded) < 2.0**31
    around = np.mod(np.where(small, rounded, 0) - q.format.lo, 2.0**q.format.bits) + q.format.lo - added
    words = "overflow: codes wrap around, must be clamped"
    wrapped = _answered(q, asked, around.astype(quotient.dtype), column, asked.scale)
    yield words, _like(wrapped, got) & small


def _raised(asked: Asked, like: Any) -> Named:
    """Scales that are made larger, for the division alone or for both steps."""
    wide = asked.x.astype(asked.scale.dtype)
    for floor in FLOORS:
        eps = np.asarray(floor, asked.scale.dtype)
        if not (asked.scale < eps).any():
            continue
        for words, scale in (
            (f"scale: raised to {floor:g}", np.maximum(asked.scale, eps)),
            (f"scale: {floor:g} is added to it", asked.scale + eps),
        ):
            yield f"{words} for the division alone", like(wide / scale)
            yield words, like(wide / scale, scale)


def _mixed_up(q: Quantizer, asked: Asked, column: str, got: Array) -> Named:
    """The parameters of another block."""
    zero = np.zeros_like(asked.scale) if asked.zero is None else asked.zero
    pairs = np.unique(np.stack([asked.scale.astype(np.float64), zero.astype(np.float64)], 1), axis=0)
    if not 1 < len(pairs) <= PAIRS:
        return
    found = np.zeros(got.shape, np.bool_)
    for scale, z in pairs:
        given = np.full_like(asked.scale, scale)
        other = Asked(asked.x, given, None if asked.zero is None else np.full_like(asked.zero, z), asked.g)
        found |= _like(answers(q, other.x, other.scale, other.zero, other.g, (column,))[column], got)
    yield "granularity: computed with the parameters of another block", found


def _near(quotient: Array) -> Iterator[Array]:
    for towards in (-np.inf, np.inf):
        near = quotient
        for _ in ULPS:
            near = np.nextafter(near, np.asarray(towards, quotient.dtype))
            yield near


def _answered(q: Quantizer, asked: Asked, quotient: Array, column: str, scale: Array) -> Array:
    """What becomes of these quotients; values under a scale."""
    given = Asked(quotient, np.ones_like(asked.scale), asked.zero, np.ones_like(quotient))
    found = answers(q, given.x, given.scale, given.zero, given.g, (column,))[column]
    return found if column == "code" else np.asarray((found * scale).astype(asked.x.dtype))


def _like(expected: Array, got: Array) -> Array:
    floats = [a.dtype.kind not in "iu" for a in (expected, got)]
    if expected.dtype != got.dtype and any(floats):
        return np.zeros(got.shape, np.bool_)
    return ~apart(expected, got)
