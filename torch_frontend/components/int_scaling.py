"""What magnitudes are divided by to become scales of integers: ``int_scaling_impl``."""

import torch
from torch import Tensor, nn

from ...core.choice import choice
from ...core.scales import Denominator


class IntScaling(nn.Module):
    """The end of the range: ``-lo`` of signed integers, ``hi`` of unsigned ones, which narrow ones have in common.

    Args:
        narrow_range: whether the range is shortened by one.
        signed: whether there are negative integers.
        denominator: "lo" or "hi", to have that end in any case.
    Raises:
        ValueError: another ``denominator``.
    """

    def __init__(self, narrow_range: bool, signed: bool, denominator: Denominator | str | None = None) -> None:
        super().__init__()
        self.narrow_range, self.signed = narrow_range, signed
        usual = Denominator.LO if signed and not narrow_range else Denominator.HI
        self.denominator = usual if denominator is None else choice("denominator", denominator, Denominator)
        if self.denominator not in (Denominator.LO, Denominator.HI):
            raise ValueError(f"`denominator` must be 'lo' or 'hi', got '{self.denominator}'")
        self.fields = {"denominator": self.denominator}

    def forward(self, bit_width: Tensor) -> Tensor:
        """0-d, dtype of the width."""
        lo, hi = limits(self.narrow_range, self.signed, bit_width)
        return hi if self.denominator is Denominator.HI else -lo

    def extra_repr(self) -> str:
        """Which integers, and which end."""
        return f"narrow_range={self.narrow_range}, signed={self.signed}, {self.denominator}"


class PowerOfTwoIntScaling(nn.Module):
    """The power of two after the largest integer.

    Args:
        signed: whether there are negative integers.
    """

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.signed = signed
        self.fields = {"denominator": Denominator.NEXT}

    def forward(self, bit_width: Tensor) -> Tensor:
        """0-d, dtype of the width."""
        return power_of_two(bit_width - 1 if self.signed else bit_width)

    def extra_repr(self) -> str:
        """The argument."""
        return f"signed={self.signed}"


def limits(narrow_range: bool, signed: bool, bit_width: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest code of a width, 0-d."""
    if signed:
        power = power_of_two(bit_width - 1)
        return -power + narrow_range, power - 1
    power = power_of_two(bit_width)
    return torch.zeros_like(power), power - (2 if narrow_range else 1)


def power_of_two(exponent: Tensor) -> Tensor:
    """``2**exponent`` of a whole exponent, exactly, by its bits; without its history."""
    field = (exponent.detach().to(torch.int32) + 127) << 23
    return field.view(torch.float32).to(exponent.dtype)
