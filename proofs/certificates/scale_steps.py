"""The scale of a block as steps of its largest magnitude: for rules whose scales are powers of two (MX formats).

`scale_steps` finds the steps by bisection of the specification over the bit patterns of float32, which for magnitudes
are in their order. `exact_scale` is the definition of the rules in fractions; `check_scale_steps` compares the two on
both sides of every step. Blocks of one element are used: the largest magnitude of such a block is that of its element.
"""

from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import core
from ...core.descriptions import Quantizer
from ...core.formats import significand_bits
from ...core.granularity import PerGroup
from ...core.scales import SHARED_EXPONENT, Restriction, ScaleRule
from .steps import check_of_quotient

Array = NDArray[Any]
RULES = (*SHARED_EXPONENT, Restriction.POWER_OF_TWO)
INFINITY = 0x7F800000  # its bits; those of NaN are larger
GRID = 1 << 16  # places between the magnitudes that bisection begins with
LOWEST, HIGHEST = -126, 127  # exponents of scales


class ScaleSteps(NamedTuple):
    """Bits of the first magnitude of each step, int64 (K,), ascending; and the scales, float32 (K + 1,)."""

    first: Array
    scales: Array


def by_elements(q: Quantizer) -> Quantizer:
    """The quantizer with blocks of one element, whose scales are those of its elements' magnitudes."""
    return q.replace(granularity=PerGroup(1))


def check_rule(q: Quantizer) -> None:
    """ValueError unless the scale is a power of two by one of `RULES`, of blocks along the last axis."""
    check_of_quotient(q)
    if q.affine or q.scale.restriction not in RULES or q.scale != ScaleRule(restriction=q.scale.restriction):
        raise ValueError(
            f"`q.scale` must be the default with restriction {' or '.join(RULES)}, symmetric, got {q.scale}"
        )
    if not isinstance(q.granularity, PerGroup) or q.granularity.axis != -1:
        raise ValueError(f"`q.granularity` must be per group along the last axis, got {q.granularity}")


@lru_cache(maxsize=64)
def scale_steps(q: Quantizer) -> ScaleSteps:
    """The steps of the specification, found by bisection."""
    check_rule(q)
    grid = np.append(np.arange(0, INFINITY, GRID), INFINITY - 1)
    low, high = grid[:-1], grid[1:]
    while True:
        unequal = _scales(q, low) != _scales(q, high)
        low, high = low[unequal], high[unequal]
        if (high - low <= 1).all():
            break
        middle = (low + high) // 2
        apart = high - low > 1
        low, high = np.concatenate([low, middle[apart]]), np.concatenate([np.where(apart, middle, high), high[apart]])
    first = np.sort(high)
    return ScaleSteps(first, _scales(q, np.append(0, first)))


def check_scale_steps(q: Quantizer) -> None:
    """The steps are those of the definition.

    Raises:
        AssertionError: they are not; nothing can be certified then.
    """
    found = scale_steps(q)
    for bits, scale in (
        *zip(found.first, found.scales[1:], strict=True),
        *zip(found.first - 1, found.scales[:-1], strict=True),
        (0, found.scales[0]),
        (INFINITY - 1, found.scales[-1]),
    ):
        magnitude = Fraction(float(np.uint32(bits).view(np.float32)))
        if exact_scale(q, magnitude) != Fraction(float(scale)):
            raise AssertionError(f"the specification's scale of magnitude {float(magnitude)!r} is not the definition's")


def exact_scale(q: Quantizer, magnitude: Fraction) -> Fraction:
    """The rule of the restriction by definition, in fractions: monotone, and never below 2**-126 or above 2**127.

    With ``e`` the exponent of the format's largest number: FLOOR ``floor(log2 magnitude) - e``, CEIL the ceiling
    instead, EVEN the floor of the magnitude rounded, halves up, to the bits of the format's significand; POWER_OF_TWO
    the ceiling of ``log2`` of the magnitude over the largest number, which float32 rounds.
    """
    if magnitude == 0:
        return Fraction(2) ** LOWEST
    largest = Fraction(q.format.hi)
    match q.scale.restriction:
        case Restriction.POWER_OF_TWO_FLOOR:
            exponent = _floor_log2(magnitude) - _floor_log2(largest)
        case Restriction.POWER_OF_TWO_CEIL:
            exponent = _ceil_log2(magnitude) - _floor_log2(largest)
        case Restriction.POWER_OF_TWO_EVEN:
            quantum = Fraction(2) ** (_floor_log2(magnitude) - significand_bits(q.format))
            exponent = _floor_log2((magnitude / quantum + Fraction(1, 2)).__floor__() * quantum) - _floor_log2(largest)
        case _:
            exponent = _ceil_log2(max(_rounded(magnitude / largest), Fraction(2) ** LOWEST))
    return Fraction(2) ** min(max(exponent, LOWEST), HIGHEST)


def _rounded(x: Fraction) -> Fraction:
    """To the nearest float32, ties to even; of normal numbers, others are raised to the smallest anyway."""
    quantum = Fraction(2) ** (max(_floor_log2(x), LOWEST) - 23)
    return round(x / quantum) * quantum


def _floor_log2(x: Fraction) -> int:
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= x else exponent - 1


def _ceil_log2(x: Fraction) -> int:
    return -_floor_log2(1 / x)


def _scales(q: Quantizer, bits: Array) -> Array:
    """Scales of the specification for the magnitudes with these bits."""
    return np.asarray(core.choose_qparams(by_elements(q), bits.astype(np.uint32).view(np.float32)).scale)
