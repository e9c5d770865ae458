"""Directions in which numbers are rounded, and what a learned one is. Nouns only."""

from dataclasses import dataclass
from enum import StrEnum

from .choice import choice


class Rounding(StrEnum):
    """Direction in which a real number becomes an integer (names of IEEE 754 where it has one)."""

    TIES_TO_EVEN = "ties_to_even"  # nearest; halves to the even integer
    TIES_TO_AWAY = "ties_to_away"  # nearest; halves away from zero
    TIES_TOWARD_POSITIVE = "ties_toward_positive"  # nearest; halves upward: floor(x + 1/2), computed exactly
    TOWARD_ZERO = "toward_zero"  # truncate
    TOWARD_POSITIVE = "toward_positive"  # ceil
    TOWARD_NEGATIVE = "toward_negative"  # floor
    DPU = "dpu"  # nearest; positive halves to even, negative halves upward (Xilinx DPU, Brevitas `dpu_round`)
    STOCHASTIC = "stochastic"  # away from zero if `|x - trunc(x)| * 2**24` exceeds the element's `rounding_noise`
    LEARNED = "learned"  # floor, plus 0 or 1 (or, softly, between) by the element's parameter: see `LearnedRounding`


class Relaxation(StrEnum):
    """How much of a step learned rounding adds to the floor, as a function of a parameter: h(v), in [0, 1]."""

    HARD_SIGMOID = "hard_sigmoid"  # clamp(1.2 * sigmoid(v) - 0.1, 0, 1) (AdaRound, arXiv 2004.10568)
    SIGMOID = "sigmoid"  # sigmoid(v / temperature)


@dataclass(frozen=True, kw_only=True)
class LearnedRounding:
    """Rounding by a parameter ``v`` for each element, `QParams.rounding`; see `samebits.core.learned_rounding`.

    Args:
        relaxation: h.
        temperature: of SIGMOID, in [2**-10, 2**10]; rounded to float32.
        soft: whether `fake_quantize` adds ``h(v)`` to the floor, as in training. If not, it adds 1 where the element
            goes up (``h(v) > 1/2``, or ``v > 0`` of SIGMOID), else 0. `quantize` always does that.

    Raises:
        ValueError: a name that is no member, a temperature out of range.
        TypeError: ``soft`` is no bool.
    """

    relaxation: Relaxation = Relaxation.HARD_SIGMOID
    temperature: float = 1.0
    soft: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "relaxation", choice("relaxation", self.relaxation, Relaxation))
        if not 2.0**-10 <= self.temperature <= 2.0**10:
            raise ValueError(f"`temperature` must be in [2**-10, 2**10], got {self.temperature!r}")
        if not isinstance(self.soft, bool):
            raise TypeError(f"`soft` must be a bool, got {self.soft!r}")


# Directions that look at nothing but the number
DETERMINISTIC = (
    Rounding.TIES_TO_EVEN,
    Rounding.TIES_TO_AWAY,
    Rounding.TIES_TOWARD_POSITIVE,
    Rounding.TOWARD_ZERO,
    Rounding.TOWARD_POSITIVE,
    Rounding.TOWARD_NEGATIVE,
    Rounding.DPU,
)
