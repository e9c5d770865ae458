"""Which scales are allowed: ``restrict_scaling_impl``."""

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.descriptions import Quantizer
from ...core.directions import Rounding
from ...core.formats import BinaryFormat, FloatFormat
from ...core.scales import Restriction
from ..arrays import narrowed, widened
from ..scaling import restrict_scale
from ..states import replaced
from .description import fields_of

POWERS = {
    Rounding.TOWARD_POSITIVE: Restriction.POWER_OF_TWO,
    Rounding.TOWARD_NEGATIVE: Restriction.POWER_OF_TWO_FLOOR,
}
INTEGERS = {Rounding.TIES_TO_EVEN: Restriction.INTEGER_NEAREST, Rounding.TOWARD_POSITIVE: Restriction.INTEGER}


def described(**fields: Any) -> Quantizer:
    """A description whose scales are restricted so."""
    return Quantizer(format=BinaryFormat()).replace(**fields)


def restricted(m: Any, x: Tensor) -> Tensor:
    """Scales, of any shape, as they are allowed, at least the smallest normal number. NaN for NaN and infinities.

    Gradient 1.
    """
    wide = widened(x)
    return narrowed(replaced(wide, restrict_scale(m.described, wide.detach())), x.dtype)


class FloatRestrictValue(nn.Module):
    """Any positive number."""

    fields: ClassVar[dict[str, Any]] = {"restriction": Restriction.FLOAT}
    described, forward = described(**fields), restricted


class LogFloatRestrictValue(nn.Module):
    """Any positive number, learned as its logarithm: see "log_float" in docs/scales.md."""

    fields: ClassVar[dict[str, Any]] = {"restriction": Restriction.LOG_FLOAT}
    described, forward = described(**fields), restricted


class PowerOfTwoRestrictValue(nn.Module):
    """Powers of two.

    Args:
        restrict_value_float_to_int_impl: how exponents are rounded: `CeilSte` (None) the next above, `FloorSte` as MX
            does.
        restriction: another of the rules for powers of two, see `Restriction`.
    Raises:
        ValueError: another rounding, or a rule for other numbers.
    """

    forward = restricted

    def __init__(
        self,
        restrict_value_float_to_int_impl: nn.Module | None = None,
        restriction: Restriction | str | None = None,
    ) -> None:
        super().__init__()
        rounding = fields_of(restrict_value_float_to_int_impl).get("rounding", Rounding.TOWARD_POSITIVE)
        if rounding not in POWERS:
            raise ValueError(
                "`restrict_value_float_to_int_impl` must be CeilSte or FloorSte for powers of two, "
                f"got {restrict_value_float_to_int_impl!r}"
            )
        self.restriction = POWERS[rounding] if restriction is None else Restriction(restriction)
        if not self.restriction.startswith("power_of_two"):
            raise ValueError(f"`restriction` must be one of powers of two, got '{self.restriction}'")
        self.fields = {"restriction": self.restriction}
        self.described = described(**self.fields)

    def extra_repr(self) -> str:
        """The rule."""
        return self.restriction


class IntRestrictValue(nn.Module):
    """Integers, at least 1.

    Args:
        restrict_value_float_to_int_impl: `RoundSte` (None) or `CeilSte`.
    Raises:
        ValueError: another rounding.
    """

    forward = restricted

    def __init__(self, restrict_value_float_to_int_impl: nn.Module | None = None) -> None:
        super().__init__()
        rounding = fields_of(restrict_value_float_to_int_impl).get("rounding", Rounding.TIES_TO_EVEN)
        if rounding not in INTEGERS:
            raise ValueError(
                "`restrict_value_float_to_int_impl` must be RoundSte or CeilSte for integers, "
                f"got {restrict_value_float_to_int_impl!r}"
            )
        self.fields = {"restriction": INTEGERS[rounding]}
        self.described = described(**self.fields)


class QuantRestrictValue(nn.Module):
    """Numbers of a floating-point format, as NVFP4 has them.

    Args:
        scale_format: that format.
        two_level: whether one number of the whole tensor multiplies them.
    Raises:
        TypeError: no `FloatFormat`.
    """

    def __init__(self, scale_format: FloatFormat, two_level: bool = False) -> None:
        super().__init__()
        if not isinstance(scale_format, FloatFormat):
            raise TypeError(f"`scale_format` must be a FloatFormat, got {scale_format!r}")
        restriction = Restriction.QUANTIZED
        self.fields = {"restriction": restriction, "scale_format": scale_format, "two_level": two_level}

    def extra_repr(self) -> str:
        """The format, and whether there are two levels."""
        return f"{self.fields['scale_format']}{', two levels' if self.fields['two_level'] else ''}"
