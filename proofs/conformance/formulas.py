"""What people write for ``round(x / scale)`` that no field of a description can say, each with the answers it gives.

Where a field explains all answers, that is the reason; else one of these may be. A reason is tried on all elements that
were asked, not only on the one to be explained, so that the one that leaves the fewest wins (`rules.broken_rule`).
"""

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import Division, ZeroPointDomain
from ...core.descriptions import Quantizer
from ...core.directions import Rounding
from ...core.formats import IntegerFormat
from ..inputs.numbers import DIRECTED
from .elements import Asked, apart
from .vectors import answers

Array = NDArray[Any]
Named = Iterator[tuple[str, Array]]
VIA = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FLOORS = (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 2.0**-23, 1e-6, 1e-5)  # "eps" in other people's code
ONWARD = {Rounding.TOWARD_POSITIVE: np.inf, Rounding.TOWARD_NEGATIVE: -np.inf, Rounding.TOWARD_ZERO: 0.0}
WIDEST = IntegerFormat(16)
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
    quotient = _quotient(q, asked)

    def like(other: Array, scale: Array | None = None) -> Array:
        return _like(_answered(q, asked, other, column, asked.scale if scale is None else scale), got)

    via = [name for name, dtype in VIA.items() if dtype.itemsize < asked.x.dtype.itemsize]
    found = [(name, like(quotient.astype(VIA[name]).astype(work))) for name in via]
    for names, where in _together(found):
        yield f"double rounding: x / scale is rounded to {' or '.join(names)} before it is rounded to the format", where
    for to, towards in (("zero", 0.0), ("negative", -np.inf)) if q.rounding not in DIRECTED else ():
        beside = np.nextafter(quotient.astype(np.float64), towards)
        where = _like(_answered(q, asked, beside, column, asked.scale), got)
        yield f"rounding direction: ties_toward_{to}, must be {q.rounding}", where
    if q.rounding in ONWARD:
        beside = np.nextafter(quotient.astype(np.float64), ONWARD[q.rounding])
        words = f"rounding direction: {q.rounding} moves what is exact, too, as where a quotient is a little off"
        yield words, _like(_answered(q, asked, beside, column, asked.scale), got)
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
    quotient = _quotient(q, asked)
    found = [_like(_answered(q, asked, near, column, asked.scale), got) for near in (quotient, *_near(quotient))]
    yield "division: x / scale is 1 or 2 ulp off, must be correctly rounded", np.logical_or.reduce(found)
    yield from _mixed_up(q, asked, column, got)


def _integers(q: Quantizer, asked: Asked, column: str, got: Array, quotient: Array) -> Named:
    """Conversions to an integer before the clamp, or in place of it."""
    low, cast = np.full_like(quotient, -np.inf), dict[int, Array]()
    for width in (32, 64):
        lowest = np.where(np.abs(quotient) >= 2.0 ** (width - 1), low, quotient)
        cast[width] = _like(_answered(q, asked, lowest, column, asked.scale), got)
    same = bool((cast[32] == cast[64]).all())
    for width, which in cast.items():
        yield f"overflow: converted to an integer of {'32 or 64' if same else width} bits before the clamp", which
    yield from _ends(q, asked, column, got)
    if q.rounding is not Rounding.TIES_TO_EVEN:
        return
    added = 0 if asked.zero is None else asked.zero.astype(np.float64)
    rounded = np.rint(quotient).astype(np.float64) + added
    small = np.abs(rounded) < 2.0**31
    around = np.mod(np.where(small, rounded, 0) - q.format.lo, 2.0**q.format.bits) + q.format.lo - added
    words = "overflow: codes wrap around, must be clamped"
    wrapped = _answered(q, asked, around.astype(quotient.dtype), column, asked.scale)
    yield words, _like(wrapped, got) & small


def _ends(q: Quantizer, asked: Asked, column: str, got: Array) -> Named:
    """Another range of codes, as far as 16 bits hold it: the one that was seen."""
    zero = np.zeros(len(asked.x)) if asked.zero is None else asked.zero.astype(np.float64)
    scale = asked.scale.astype(np.float64)
    seen = got.astype(np.float64) if column == "code" else np.rint(got.astype(np.float64) / scale) + zero
    seen = seen[np.isfinite(seen) & ~np.isnan(asked.x)]
    if not len(seen) or seen.min() < WIDEST.lo or seen.max() > WIDEST.hi or seen.min() == seen.max():
        return
    low, high = int(seen.min()), int(seen.max())
    wide = answers(q.replace(format=WIDEST), asked.x, asked.scale, asked.zero, asked.g, ("code",))["code"]
    beyond = ((low, q.format.lo, wide < low), (high, q.format.hi, wide > high))
    if any(end != own and not past.any() for end, own, past in beyond):
        return  # where nothing was clamped, the largest code seen is no end
    code = np.clip(wide.astype(np.float64), low, high)
    words = f"clamp: codes end at {low} and {high}, must end at {q.format.lo} and {q.format.hi}"
    if column == "code":
        yield words, _like(code.astype(np.int64), got)
        return
    work = asked.scale.dtype
    found = ((code - zero).astype(work) * asked.scale).astype(asked.x.dtype)
    yield words, _like(np.where(np.isnan(asked.x), asked.x, found), got)
    if asked.zero is not None:
        right = answers(q, asked.x, asked.scale, asked.zero, asked.g, ("code",))["code"]
        found = (right.astype(work) * asked.scale).astype(asked.x.dtype)
        words = "zero point: not taken off, values must be (code - zero_point) * scale"
        yield words, _like(np.where(np.isnan(asked.x), asked.x, found), got)


def _raised(asked: Asked, like: Any) -> Named:
    """Scales that are made larger, for the division alone or for both steps."""
    wide = asked.x.astype(asked.scale.dtype)
    ways: dict[str, Callable[[Any], Array]] = {"{} is added to it": lambda eps: asked.scale + eps}
    if (asked.scale < max(FLOORS)).any():
        ways = {"raised to {}": lambda eps: np.maximum(asked.scale, eps)} | ways
    for words, other in ways.items():
        scales = [(f"{floor:g}", other(np.asarray(floor, asked.scale.dtype))) for floor in FLOORS]
        for where, same in ((" for the division alone", False), ("", True)):
            found = [(floor, like(wide / scale, scale if same else None)) for floor, scale in scales]
            for floors, which in _together(found):
                said = floors[0] if len(floors) == 1 else f"{floors[0]} ... {floors[-1]}"
                yield f"scale: {words.format(said)}{where}", which


def _together(found: list[tuple[str, Array]]) -> Iterator[tuple[list[str], Array]]:
    """Those that nothing asked tells apart."""
    kinds: dict[bytes, tuple[list[str], Array]] = {}
    for name, where in found:
        kinds.setdefault(where.tobytes(), ([], where))[0].append(name)
    yield from kinds.values()


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


def _quotient(q: Quantizer, asked: Asked) -> Array:
    x = asked.x.astype(asked.scale.dtype)
    by_reciprocal = q.arithmetic.division is Division.RECIPROCAL
    return np.asarray(x * (np.ones((), x.dtype) / asked.scale) if by_reciprocal else x / asked.scale)


def _near(quotient: Array) -> Iterator[Array]:
    for towards in (-np.inf, np.inf):
        near = quotient
        for _ in ULPS:
            near = np.nextafter(near, np.asarray(towards, quotient.dtype))
            yield near


def _answered(q: Quantizer, asked: Asked, quotient: Array, column: str, scale: Array) -> Array:
    """What becomes of these quotients; values under a scale."""
    given = Asked(quotient, np.ones(asked.scale.shape, quotient.dtype), asked.zero, np.ones_like(quotient))
    found = answers(q, given.x, given.scale, given.zero, given.g, (column,))[column]
    return found if column == "code" else np.asarray((found * scale).astype(asked.x.dtype))


def _like(expected: Array, got: Array) -> Array:
    floats = [a.dtype.kind not in "iu" for a in (expected, got)]
    if expected.dtype != got.dtype and any(floats):
        return np.zeros(got.shape, np.bool_)
    return ~apart(expected, got)
