"""A quantizer as a list of steps, and the exact float32 inputs between which each step lies.

In the default arithmetic the code, the value divided by the scale, and the gradient mask of an element depend on the
rounded quotient ``fl(x / s)`` alone, and they are monotone in it (the mask: 0, then 1, then 0). `steps` finds where
they change among all 2**32 float32 quotients, by bisection of the specification at scale 1, where ``fl(x / 1) = x``;
nothing in it knows which format it looks at. `exact_steps` derives the same list for integer formats from the
definition of the rounding directions, with integers only; the two are compared whenever a certificate is made.

`thresholds` carries a step to any scale. Let ``b`` be the last quotient before the step and ``m`` the midpoint of b and
the next float32. Division rounds to nearest, so ``fl(x / s) <= b`` exactly when ``x / s < m``, or ``x / s = m`` and the
tie goes to b, whose last bit then is 0. ``m`` has 25 significant bits and ``s`` 24: their product is a float64, and the
last x before the step is found by comparing with it.
"""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import core
from ...core.descriptions import Gradient, QParams, Quantizer
from ...core.directions import Rounding
from ...core.formats import IntegerFormat
from ...core.granularity import PerTensor
from ..inputs.bits import at_place, ordinal, place, raw_bits
from ..inputs.found_edges import found_edges

Array = NDArray[Any]
BY_QUOTIENT = (
    Rounding.TIES_TO_EVEN,
    Rounding.TIES_TO_AWAY,
    Rounding.TIES_TOWARD_POSITIVE,
    Rounding.TOWARD_ZERO,
    Rounding.TOWARD_POSITIVE,
    Rounding.TOWARD_NEGATIVE,
    Rounding.DPU,
)
LARGEST = np.finfo(np.float32).max
ZEROS = np.array([-0.0, 0.0], np.float32)
AT_ONCE = 1 << 15  # thresholds computed at a time, which stay in cache
GRID = 1 << 20  # numbers between those that bisection begins with: a step may be undone by a later one


class Steps(NamedTuple):
    """Where a quantizer changes, in float32 quotients, and what it gives in between (K steps, K + 1 plateaus).

    Attributes:
        last: float32 (K,), ascending: the last quotient before each step.
        middles: float64 (K,): midpoint of ``last`` and the float32 after it; 0 between the two zeros.
        tie_stays: bool (K,): whether a quotient half way between the two rounds to ``last``.
        codes: (K + 1,) in the storage dtype of the format.
        units: float32 (K + 1,): the values at scale 1.
        passes: bool (K + 1,): the gradient mask.
        nan_code: the code of NaN where `quantize` gives one: the format's, or that of zero.
    """

    last: Array
    middles: Array
    tie_stays: Array
    codes: Array
    units: Array
    passes: Array
    nan_code: Any

    @property
    def zeros(self) -> tuple[int, int]:
        """The plateaus of -0.0 and +0.0: how many steps lie below each."""
        return tuple(int(i) for i in np.searchsorted(place(self.last), place(ZEROS)))  # type: ignore[return-value]

    @property
    def answers(self) -> tuple[Array, Array, Array]:
        """Codes, units and mask of every plateau, and behind them those of NaN, which is one more (`plateau_of`)."""
        nan = np.array([np.nan], np.float32)
        return np.append(self.codes, self.nan_code), np.append(self.units, nan), np.append(self.passes, True)


def check_of_quotient(q: Quantizer) -> None:
    """ValueError unless the arithmetic is the default: then a code is a function of ``x / s`` and the zero point.

    The fields of a `ScaleRule` that describe how others choose (`OF_OTHERS`) must be the default too, with a floor.
    """
    if q.scale.of_others:
        name = q.scale.of_others[0]
        raise ValueError(f"`q.scale.{name}` must be the default for a certificate, got {getattr(q.scale, name)!s}")
    if q.scale.floor == 0:
        raise ValueError("`q.scale.floor` must not be 0 for a certificate")
    if not q.usual:
        raise ValueError(f"`q.arithmetic` must be the default for a certificate, got {q.arithmetic}")
    if q.arithmetic.has_float_zeros:
        raise ValueError("`zero_point_domain` must be 'integer' for a certificate: else no code is a function of x / s")


@lru_cache(maxsize=512)
def steps(q: Quantizer, zero_point: int | None = None) -> Steps:
    """The steps of the specification, found by bisection at scale 1; the granularity does not count.

    Raises:
        ValueError: another arithmetic than the default, stochastic or learned rounding, a learned width: they depend on
            more than the quotient, or are not what is certified.
    """
    check_of_quotient(q)
    if q.learned_bits is not None:
        raise ValueError(f"`learned_bits` must be None for a certificate, got {q.learned_bits}")
    if q.rounding not in BY_QUOTIENT:
        raise ValueError(
            f"`rounding` must be one of {', '.join(BY_QUOTIENT)}; {q.rounding} depends on more than the quotient"
        )
    q = q.replace(granularity=PerTensor())
    last = found_edges(partial(_answers, q, zero_point), np.float32, spacing=GRID).before
    codes, units, passes = _answers(q, zero_point, np.append(last, np.float32(np.inf)))
    nan = np.array([np.nan if q.format.has_nan else 0.0], np.float32)
    return _with_ties(last, codes, units, passes, core.quantize(q, nan, _unit(zero_point))[0])


def exact_steps(q: Quantizer, zero_point: int | None = None) -> Steps:
    """The steps of an integer format by definition, in integers and halves, which are float32 numbers exactly.

    With ``j`` the integer before a step (``j = k - z`` for code k) the step lies at ``j + 1/2`` for the nearest
    roundings, whose ties stay with j or not, and at ``j`` or ``j + 1`` for the directed ones: up beyond j, down at
    j + 1, toward zero at the one nearer to infinity. The mask begins and ends where codes would go on beyond ``lo`` and
    ``hi``, or where the quotient itself passes the ends that its rule names.
    """
    if not isinstance(q.format, IntegerFormat):
        raise TypeError(f"`q.format` must be an IntegerFormat, got {q.format}")
    lo, hi, z = q.format.lo, q.format.hi, zero_point or 0
    of_codes = place(np.array([_last_quotient(j, q.rounding) for j in range(lo - z, hi - z)], np.float32))
    of_mask = place(np.array(_mask_ends(q, lo - z, hi - z), np.float32))
    places = np.union1d(of_codes, of_mask)
    plateaus = np.append(places, places[-1] + 1)  # each by its last quotient, or one beyond the last step
    codes = lo + np.searchsorted(of_codes, plateaus, side="left")
    passed = np.searchsorted(of_mask, plateaus, side="left")
    inside = passed == 1 if len(of_mask) else np.ones(len(codes), bool)
    stored, units = codes.astype(q.format.storage), (codes - z).astype(np.float32)
    of_zero = np.array(max(lo, min(z, hi)), q.format.storage)
    return _with_ties(at_place(places, np.float32), stored, units, inside, of_zero)


def _mask_ends(q: Quantizer, lo: int, hi: int) -> tuple[np.float32, ...]:
    """The last quotient before the mask begins and the last in it, the codes less the zero point being lo to hi."""
    down = np.float32(-np.inf)
    match q.gradient:
        case Gradient.PASS_THROUGH:
            return ()
        case Gradient.CLIPPED_QUOTIENT:
            return np.nextafter(np.float32(lo), down), np.float32(hi)
        case Gradient.LEARNED_CLIP:
            return np.nextafter(np.float32(0), down), np.nextafter(np.float32(hi), down)
        case _:
            return _last_quotient(lo - 1, q.rounding), _last_quotient(hi, q.rounding)


def same_steps(a: Steps, b: Steps) -> bool:
    """Whether two lists are the same, bit for bit, a quotient of either zero being one place."""
    return (
        np.array_equal(ordinal(a.last), ordinal(b.last))
        and a.nan_code == b.nan_code
        and all(np.array_equal(raw_bits(x), raw_bits(y)) for x, y in zip(a[3:6], b[3:6], strict=True))
        and a.codes.dtype == b.codes.dtype
    )


@np.errstate(over="ignore")  # a threshold beyond the largest number
def thresholds(found: Steps, scales: Array) -> tuple[Array, Array]:
    """The last input before each step, and the first after it: float32, (scales, K).

    Args:
        scales: float32 (R,), positive normal numbers.
    Returns:
        Neighbours in float32, infinities included. Where a step lies beyond the largest number they are that and the
        infinity; several steps may then share them.
    """
    before, after = np.empty((2, len(scales), len(found.last)), np.int32)
    toward_zero = np.where(found.middles > 0, 1, -1).astype(np.int32)  # what one place down adds to the magnitude
    rows = max(1, AT_ONCE // max(1, len(found.last)))
    for i in range(0, len(scales), rows):
        exact = np.multiply.outer(scales[i : i + rows].astype(np.float64), found.middles)
        nearest = exact.astype(np.float32)
        behind = (nearest > exact) | ((nearest == exact) & ~found.tie_stays)
        np.subtract(nearest.view(np.int32), behind * toward_zero, out=before[i : i + rows])
        np.add(before[i : i + rows], toward_zero, out=after[i : i + rows])
    between_zeros = found.middles == 0  # a step between -0.0 and +0.0, which formats with two zeros have
    if between_zeros.any():
        before[:, between_zeros], after[:, between_zeros] = ZEROS.view(np.int32)
    return before.view(np.float32), after.view(np.float32)


def plateau_of(found: Steps, scale: Any, x: Array) -> Array:
    """On which plateau each ``x`` lies at one scale: the number of steps before it; for NaN one more than there are."""
    before = thresholds(found, np.asarray(scale, np.float32).reshape(1))[0][0]
    return np.where(np.isnan(x), len(before) + 1, np.searchsorted(place(before), place(x), side="left"))


def _last_quotient(j: int, rounding: Rounding) -> np.float32:
    """The last float32 that is rounded to at most the integer j."""
    half, up = np.float32(j + 0.5), np.float32(j + 1)
    match rounding:
        case Rounding.TIES_TO_EVEN:
            stays = j % 2 == 0
        case Rounding.TIES_TO_AWAY:
            stays = j < 0
        case Rounding.TIES_TOWARD_POSITIVE:
            stays = False
        case Rounding.DPU:
            stays = j >= 0 and j % 2 == 0
        case Rounding.TOWARD_POSITIVE:
            half, stays = np.float32(j), True
        case Rounding.TOWARD_NEGATIVE | Rounding.LEARNED:
            half, stays = up, False
        case Rounding.TOWARD_ZERO:
            half, stays = (np.float32(j), True) if j < 0 else (up, False)
        case Rounding.STOCHASTIC:
            raise ValueError("`rounding` must be deterministic: 'stochastic' is no step function")
    return half if stays else np.float32(np.nextafter(half, np.float32(-np.inf)))


def _with_ties(last: Array, codes: Array, units: Array, passes: Array, nan_code: Any) -> Steps:
    after = at_place(place(last) + 1, np.float32)
    middles = (last.astype(np.float64) + after.astype(np.float64)) / 2
    return Steps(last, middles, raw_bits(last) % 2 == 0, codes, units, passes, nan_code)


def _unit(zero_point: int | None) -> QParams:
    return QParams(np.float32(1), None if zero_point is None else np.int32(zero_point))


def _answers(q: Quantizer, zero_point: int | None, x: Array) -> tuple[Array, Array, Array]:
    """Codes, values and mask of the specification at scale 1."""
    qparams = _unit(zero_point)
    gradient = core.fake_quantize_vjp(q, x, qparams, np.ones_like(x)).x
    return core.quantize(q, x, qparams), core.fake_quantize(q, x, qparams), gradient != 0
