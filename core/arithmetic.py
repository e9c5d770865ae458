"""Arithmetic: how the real formula of a quantizer becomes machine operations. Nouns only.

The formula ``code = clamp(round(x / s) + z)``, ``x_hat = (code - z) * s`` does not say which operations round, in which
dtype, and in which order. Each field below is one such choice that some system of the field makes differently; the
defaults are ours. All three rooms compute all of them, to reproduce others (see `samebits.core.dialects`).
"""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import ClassVar

from .choice import choice


class ComputeDtype(StrEnum):
    """Dtype in which every operation rounds."""

    WIDENED = "widened"  # float32; float64 for float64 input; the result is rounded once to the input dtype
    INPUT = "input"  # every operation rounds to the input dtype (eager bfloat16 chains)
    FLOAT64 = "float64"  # every operation in float64, the result is rounded once to the input dtype


class Division(StrEnum):
    """How ``x / s`` is computed."""

    DIVIDE = "divide"  # one correctly rounded division
    RECIPROCAL = "reciprocal"  # x * (1 / s), both steps rounded


class ZeroPointOrder(StrEnum):
    """Where the zero point enters."""

    AFTER_ROUNDING = "after_rounding"  # round(x / s) + z
    BEFORE_ROUNDING = "before_rounding"  # round(x / s + z): ties go to odd codes when z is odd


class ZeroPointDomain(StrEnum):
    """What the zero point is."""

    INTEGER = "integer"  # an integer code
    FLOAT = "float"  # a real value: code = round((x - (z - mid * s)) / s), x_hat = (code - mid) * s + z (tinygemm)
    SHIFT = "shift"  # a real value, minus that of code 0: code = round((x + z) / s), x_hat = code * s - z (quanto)


class ClampOrder(StrEnum):
    """Whether codes are clamped after or before they are rounded."""

    AFTER_ROUNDING = "after_rounding"
    BEFORE_ROUNDING = "before_rounding"


class NanRule(StrEnum):
    """What NaN becomes under fake quantization (`quantize` refuses NaN under `PROPAGATE`)."""

    PROPAGATE = "propagate"  # NaN stays NaN
    LOWEST = "lowest"  # the smallest code
    HIGHEST = "highest"  # the largest code
    ZERO = "zero"  # the code 0 (clamped to the range), whatever it stands for
    ZERO_POINT = "zero_point"  # the code of 0.0


class RangeRule(StrEnum):
    """Which range an affine scale spans."""

    WITH_ZERO = "with_zero"  # max(max, 0) - min(min, 0)
    LOW_WITH_ZERO = "low_with_zero"  # max - min(min, 0), so that of negative data may not hold 0 (Brevitas)
    OF_DATA = "of_data"  # max - min (tinygemm, quanto)


class Threshold(StrEnum):
    """A small number that depends on the dtype a scale is computed in."""

    EPSILON = "epsilon"  # distance from 1 to the next number: 2**-23 for float32 (torchao of 2024)
    SQRT_SMALLEST_NORMAL = "sqrt_smallest_normal"  # 2**-63 for float32 and bfloat16, 2**-7 for float16 (Qwix)


class ZeroPointRule(StrEnum):
    """How the zero point of an affine quantizer is rounded; it is clamped to the range in all of them."""

    ROUNDED_QUOTIENT = "rounded_quotient"  # lo - round(min / s)
    ROUNDED_CODE = "rounded_code"  # round(lo - min / s), the difference rounded to the dtype (Qwix, Brevitas)
    SMALLER_DIFFERENCE = "smaller_difference"  # by the end with the smaller |lo| - |min / s|, |hi| - |max / s| (ATen)
    SMALLER_SUM = "smaller_sum"  # by the end with the smaller sum of these; s is rounded to its dtype first (fbgemm)


class ZeroPointScale(StrEnum):
    """By which scale the zero point is computed where the scale was too small and another is used."""

    USED = "used"  # the scale that is used
    RAW = "raw"  # the scale that was too small; a range of 0 then has no zero point, ours is 0's code (torchao of 2024)
    STRETCHED = "stretched"  # the scale that is used; where that is the floor, the range is stretched to it (fbgemm)


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """One way to compute a quantizer; see the module. Fields take the enum's member or its string.

    Args:
        compute_dtype: dtype in which every operation rounds.
        division: true division or multiplication by the rounded reciprocal.
        zero_point_order: zero point added after or before rounding.
        zero_point_domain: integer code or real value.
        clamp_order: clamp after or before rounding.
        nan: what NaN becomes.
        fused_multiply_add: a product that is added to is not rounded in between: ``x * (1/s) + z`` (with `RECIPROCAL`
            and `BEFORE_ROUNDING`) and ``(code - mid) * s + z`` (with `ZeroPointDomain.FLOAT`).
        flush_subnormals: subnormal inputs and results of every operation become zero of the same sign.
        keep_negative_zero: codes keep the sign of zero, so a negative input that rounds to zero gives -0.0. Ours is
            False: codes are integers, and integers have one zero.

    Attributes:
        is_default: whether no field differs from its default; known from the start, since compilers that trace the
            frontends would compare field by field at every call.
        has_float_zeros: whether no field differs but the domain of the zero point, which is FLOAT.

    Raises:
        ValueError: a name that is no member; the message lists those that are.
    """

    compute_dtype: ComputeDtype = ComputeDtype.WIDENED
    division: Division = Division.DIVIDE
    zero_point_order: ZeroPointOrder = ZeroPointOrder.AFTER_ROUNDING
    zero_point_domain: ZeroPointDomain = ZeroPointDomain.INTEGER
    clamp_order: ClampOrder = ClampOrder.AFTER_ROUNDING
    nan: NanRule = NanRule.PROPAGATE
    fused_multiply_add: bool = False
    flush_subnormals: bool = False
    keep_negative_zero: bool = False
    is_default: ClassVar[bool] = True
    has_float_zeros: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, kind in (
            ("compute_dtype", ComputeDtype),
            ("division", Division),
            ("zero_point_order", ZeroPointOrder),
            ("zero_point_domain", ZeroPointDomain),
            ("clamp_order", ClampOrder),
            ("nan", NanRule),
        ):
            object.__setattr__(self, name, choice(name, getattr(self, name), kind))
        for name in ("fused_multiply_add", "flush_subnormals", "keep_negative_zero"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"`{name}` must be a bool, got {getattr(self, name)!r}")
        differing = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        object.__setattr__(self, "is_default", not differing)
        float_zeros = differing == {"zero_point_domain": ZeroPointDomain.FLOAT}
        object.__setattr__(self, "has_float_zeros", float_zeros)
