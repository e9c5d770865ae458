"""What integer operations are given, computed here alone: tables of nonlinearities, multipliers, weights of norms.

Both backends take these as arrays, so that no library's own exponential is ever asked. Everything is decided on exact
fractions; transcendental functions come from decimals of `DIGITS` digits, far more than separate a value from a half.
"""

from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import integer_checks as checks
from .choice import check_count
from .formats import IntegerFormat

Array = NDArray[Any]
Number = float | Fraction | np.floating[Any]
DIGITS = 160
FURTHEST = 1000  # an exponential further out rounds as this one does, whatever the scale
SMALL_TAIL = 14  # beyond it erf is 1 or -1 to 87 digits


def lookup_table(
    function: str,
    x_format: IntegerFormat,
    x_scale: Number,
    y_format: IntegerFormat,
    y_scale: Number,
    x_zero: int = 0,
    y_zero: int = 0,
) -> Array:
    """``clamp(y_zero + round(f((code - x_zero) * x_scale) / y_scale))`` for each code, to nearest, ties to even, once.

    The function is the exact one, so the table is correctly rounded: every code is within half a step of it.

    Args:
        function: one of `FUNCTIONS`.
        x_format, y_format: of at most 8 bits. Codes of the storage dtype outside ``x_format`` count as its nearest.
        x_scale, y_scale: positive.
        x_zero, y_zero: zero points, codes of the storage dtypes.
    Returns:
        ``(256,)`` in the storage dtype of ``y_format``, for `core.integer_arithmetic.lookup`.
    Raises:
        TypeError: other formats. ValueError: another function, or numbers outside these ranges.
    """
    if function not in FUNCTIONS:
        raise ValueError(f"`function` must be one of {', '.join(map(repr, FUNCTIONS))}; got {function!r}")
    checks.check_format(x_format, x_zero)
    lo, hi = checks.check_format(y_format, y_zero)
    s_x, s_y, f = _positive("x_scale", x_scale), _positive("y_scale", y_scale), FUNCTIONS[function]
    least = checks.CODES[x_format.storage][0]
    table = np.empty(checks.SPREAD, y_format.storage)
    with localcontext(Context(prec=DIGITS)):
        for place in range(checks.SPREAD):
            code = min(max(place + least, x_format.lo), x_format.hi)
            table[place] = y_zero + min(max(round(f((code - x_zero) * s_x) / s_y), lo), hi)
    return table


def exponential_table(scale: Number, positions: int) -> tuple[Array, int]:
    """``round(2**bits * exp(-d * scale))`` for d = 0 .. 255, and ``bits``, for `core.softmax.integer_softmax`.

    Args:
        scale: of the codes, positive.
        positions: the most that a row has; ``bits`` is 22, or so much less that their sum fits int32.
    Raises:
        TypeError, ValueError: no positive scale, or more positions than 2**23 - 1.
    """
    s = _positive("scale", scale)
    check_count("positions", positions, 1)
    bits = min(checks.MOST_EXPONENTIAL_BITS, (checks.LARGEST // positions).bit_length() - 1)
    if bits < 8:
        raise ValueError(f"`positions` must be at most {checks.LARGEST >> 8}, for a sum to fit int32, got {positions}")
    with localcontext(Context(prec=DIGITS)):
        return np.array([round(_exp(-d * s) * 2**bits) for d in range(checks.SPREAD)], np.int32), bits


def fixed_point(x_scale: ArrayLike, w_scale: ArrayLike, y_scale: Number) -> tuple[Array, Array]:
    """``x_scale * w_scale / y_scale`` as ``multiplier / 2**shift``, to the nearest multiplier of 31 bits.

    Args:
        x_scale, w_scale: of the operands of a sum of products, numbers or ``(channels,)``; ``y_scale``: of the result.
    Returns:
        Two int32 arrays for `core.integer_arithmetic.requantize`, in the shape of both scales.
    Raises:
        ValueError: a scale that is not positive; or a quotient outside ``[2**-32, 2**8)``, which is named.
    """
    s_y = _positive("y_scale", y_scale)
    pairs = np.broadcast(np.asarray(x_scale), np.asarray(w_scale))
    found = [_multiplier(_positive("x_scale", x) * _positive("w_scale", w) / s_y) for x, w in pairs]
    both = np.array(found, np.int32).reshape(*pairs.shape, 2)
    return both[..., 0], both[..., 1]


def fixed_points(a_scale: Number, b_scale: Number, y_scale: Number) -> tuple[tuple[int, int], int]:
    """Both scales over that of the result, with one shift, for `core.integer_arithmetic.integer_add`.

    The largest shift, at most 30, with which the multipliers, rounded to nearest, have a sum of at most 2**23.

    Raises:
        ValueError: a scale that is not positive; or scales so far apart that a multiplier is 0 or too large.
    """
    s_y = _positive("y_scale", y_scale)
    ratios = _positive("a_scale", a_scale) / s_y, _positive("b_scale", b_scale) / s_y
    for shift in range(30, -1, -1):
        first, second = (round(ratio * 2**shift) for ratio in ratios)
        if first + second <= checks.SUM_OF_MULTIPLIERS:
            if min(first, second) < 1:
                break
            return (first, second), shift
    given = f"{float(a_scale)}, {float(b_scale)} and {float(y_scale)}"
    raise ValueError(f"`a_scale`, `b_scale` and `y_scale` must lie within a factor of 2**22, got {given}")


def norm_weights(weight: ArrayLike, bias: ArrayLike, y_scale: Number) -> tuple[Array, Array]:
    """``weight / y_scale`` and ``bias / y_scale`` in steps of 2**-16, rounded to nearest, ties to even: int32.

    Args:
        weight, bias: finite, ``(features,)``. ``y_scale``: of the result of the norm.
    Raises:
        ValueError: a scale that is not positive, a number that is not finite or, in these steps, is above 2**28.
    """
    unit, parts = _positive("y_scale", y_scale) / 2**checks.WEIGHT_BITS, []
    for name, of in (("weight", weight), ("bias", bias)):
        given = np.asarray(of, np.float64).ravel()
        if not np.isfinite(given).all():
            raise ValueError(f"`{name}` must be finite, got {given[~np.isfinite(given)][0]}")
        steps = [round(Fraction(float(n)) / unit) for n in given]
        largest = checks.LARGEST_NORM_WEIGHT
        checks.check_ends(f"{name} / y_scale * 2**16", (min(steps), max(steps)) if steps else None, (-largest, largest))
        parts.append(np.array(steps, np.int32))
    return parts[0], parts[1]


def norm_epsilon(epsilon: Number, x_scale: Number, features: int) -> int:
    """``epsilon`` of a norm as what is added to W: ``round(epsilon * features**2 / x_scale**2)``.

    Raises:
        ValueError: a negative epsilon, a scale that is not positive, or more than 2**40.
    """
    if not epsilon >= 0 or not isfinite(epsilon):
        raise ValueError(f"`epsilon` must be a finite number from 0 on, got {epsilon}")
    exact = epsilon if isinstance(epsilon, Fraction) else Fraction(float(epsilon))
    added = round(exact * features**2 / _positive("x_scale", x_scale) ** 2)
    checks.check_epsilon(added)
    return added


def _positive(name: str, scale: Any) -> Fraction:
    """A scale as the fraction that it is. ValueError unless it is positive and finite."""
    number = scale if isinstance(scale, Fraction) else float(scale)
    if not isfinite(number) or not number > 0:
        raise ValueError(f"`{name}` must be positive and finite, got {scale}")
    return Fraction(number)


def _multiplier(ratio: Fraction) -> tuple[int, int]:
    """The fraction as 31 bits and a shift."""
    shift = 31 - (ratio.numerator.bit_length() - ratio.denominator.bit_length())  # gives 2**30 to 2**32
    if ratio * 2**shift >= 2**31:
        shift -= 1
    multiplier = round(ratio * 2**shift)
    if multiplier == 2**31:  # rounded up to the next power of two
        multiplier, shift = 2**30, shift - 1
    if not checks.SHIFTS[0] <= shift <= checks.SHIFTS[1]:
        raise ValueError(f"`x_scale * w_scale / y_scale` must be in [2**-32, 2**8), got {float(ratio)}")
    return multiplier, shift


def _decimal(x: Fraction) -> Decimal:
    return Decimal(x.numerator) / Decimal(x.denominator)


def _exp(x: Fraction) -> Fraction:
    limited = min(max(x, Fraction(-FURTHEST)), Fraction(FURTHEST))
    return Fraction(_decimal(limited).exp())


def _sigmoid(x: Fraction) -> Fraction:
    e = _exp(-abs(x))
    return (1 if x >= 0 else e) / (1 + e)


def _tanh(x: Fraction) -> Fraction:
    e = _exp(-2 * abs(x))
    return (1 - e) / (1 + e) * (1 if x >= 0 else -1)


def _erf(x: Fraction) -> Fraction:
    """``2 x exp(-x**2) / sqrt(pi) * sum (2 x**2)**n / (3 * 5 * ... * (2 n + 1))``, whose terms are positive."""
    if abs(x) > SMALL_TAIL:
        return Fraction(1 if x > 0 else -1)
    d = _decimal(x)
    term, total, odd = Decimal(1), Decimal(1), 1
    while term > total.scaleb(-DIGITS):
        odd += 2
        term = term * 2 * d * d / odd
        total += term
    return Fraction(2 * d * (-d * d).exp() / _pi().sqrt() * total)


@lru_cache(maxsize=1)
def _pi() -> Decimal:
    """``16 atan(1/5) - 4 atan(1/239)`` (Machin), in integers of ten more digits."""
    unit = 10 ** (DIGITS + 10)

    def atan(inverse: int) -> int:
        power, total, odd = unit // inverse, 0, 1
        while power:
            total += power // odd if odd % 4 == 1 else -(power // odd)
            power, odd = power // inverse**2, odd + 2
        return total

    return Decimal(16 * atan(5) - 4 * atan(239)).scaleb(-DIGITS - 10, Context(prec=DIGITS + 20))


def _gelu(x: Fraction) -> Fraction:
    return x * (1 + _erf(Fraction(_decimal(x) / Decimal(2).sqrt()))) / 2


def _gelu_tanh(x: Fraction) -> Fraction:
    inner = Fraction((2 / _pi()).sqrt()) * (x + Fraction(44715, 10**6) * x**3)
    return x * (1 + _tanh(inner)) / 2


FUNCTIONS: dict[str, Callable[[Fraction], Fraction]] = {
    "exp": _exp,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hard_swish": lambda x: x * min(max(x + 3, Fraction(0)), Fraction(6)) / 6,
    "relu": lambda x: max(x, Fraction(0)),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": _tanh,
}
