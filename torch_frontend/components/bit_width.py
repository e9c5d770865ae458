"""How many bits codes have: ``bit_width_impl``."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...core.choice import check_count, check_number
from .. import devices
from ..straight_through import abs_binary_sign_grad, round_ste, tensor_clamp_ste
from .description import number, precise

LARGEST = 16


class BitWidthConst(nn.Module):
    """A width that stays, and is not in the ``state_dict``.

    Args:
        bit_width: 1 to 16.
    Raises:
        TypeError, ValueError: no int, or out of range.
    """

    def __init__(self, bit_width: int) -> None:
        super().__init__()
        _check(bit_width)
        self.fields = {"bits": bit_width}

    def forward(self) -> Tensor:
        """The width, 0-d, float32."""
        return number(self.fields["bits"])

    def extra_repr(self) -> str:
        """The width."""
        return str(self.fields["bits"])


class BitWidthStatefulConst(nn.Module):
    """A width that stays; the ``state_dict`` holds it, and what is loaded has to be the same.

    Args:
        bit_width: 1 to 16.
    Raises:
        TypeError, ValueError: no int, or out of range. ValueError: another width is loaded.
    """

    bit_width: Tensor

    def __init__(self, bit_width: int) -> None:
        super().__init__()
        _check(bit_width)
        self.fields = {"bits": bit_width}
        self.register_buffer("bit_width", number(bit_width))

    def forward(self) -> Tensor:
        """The width, 0-d, float32."""
        return self.bit_width

    def extra_repr(self) -> str:
        """The width."""
        return str(self.fields["bits"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(prefix + "bit_width")
        if stored is not None and float(stored) != self.fields["bits"]:
            rest[-1].append(f"`{prefix}bit_width` must be {self.fields['bits']}, as the quantizer has it, got {stored}")
        else:
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BitWidthStatefulConst":
        super()._apply(precise(fn), recurse)  # type: ignore[no-untyped-call]
        return self


class BitWidthParameter(nn.Module):
    """A width that is learned: ``|bit_width_offset| + min_bit_width``, rounded to nearest even; gradient 1.

    Codes lie in the storage of int8, or of int16 where it begins above 8, which is as large as it grows.

    Args:
        bit_width: where it begins, up to 16.
        min_bit_width: the smallest one, at least 2.
    Raises:
        TypeError, ValueError: no int, or out of range.
    """

    def __init__(self, bit_width: int, min_bit_width: int = 2) -> None:
        super().__init__()
        _check(bit_width)
        check_count("min_bit_width", min_bit_width, 2)
        check_count("bit_width", bit_width, min_bit_width)
        self.min_bit_width = min_bit_width
        self.fields = {"bits": 8 if bit_width <= 8 else LARGEST, "learned_bits": float(bit_width)}
        self.bit_width_offset = nn.Parameter(number(bit_width - min_bit_width))

    def forward(self) -> Tensor:
        """The width, 0-d, float32: an integer."""
        width = round_ste(abs_binary_sign_grad(self.bit_width_offset) + self.min_bit_width)
        return tensor_clamp_ste(width, self.min_bit_width, self.fields["bits"])

    def extra_repr(self) -> str:
        """Where it begins, and the smallest one."""
        return f"{self.fields['learned_bits']:g}, min_bit_width={self.min_bit_width}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BitWidthParameter":
        super()._apply(precise(fn), recurse)  # type: ignore[no-untyped-call]
        return self


class RemoveBitwidthParameter(nn.Module):
    """How many bits are taken away, learned: ``1 / (non_zero_epsilon + |bit_width_coeff|)``.

    Args:
        bit_width_to_remove: where it begins, at least 0; 0 counts as ``remove_zero_bit_width``.
        non_zero_epsilon, remove_zero_bit_width: small positive numbers.
    Raises:
        TypeError, ValueError: no number, or negative.
    """

    def __init__(
        self, bit_width_to_remove: float, non_zero_epsilon: float = 1e-6, remove_zero_bit_width: float = 0.1
    ) -> None:
        super().__init__()
        check_number("bit_width_to_remove", bit_width_to_remove)
        if bit_width_to_remove < 0:
            raise ValueError(f"`bit_width_to_remove` must be at least 0, got {bit_width_to_remove!r}")
        self.non_zero_epsilon = non_zero_epsilon
        self.bit_width_coeff = nn.Parameter(number(1 / (bit_width_to_remove or remove_zero_bit_width)))

    def forward(self) -> Tensor:
        """The number of bits, 0-d, float32."""
        coefficient = self.bit_width_coeff.abs() + self.non_zero_epsilon
        return devices.reciprocal(coefficient)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RemoveBitwidthParameter":
        super()._apply(precise(fn), recurse)  # type: ignore[no-untyped-call]
        return self


class MsbClampBitWidth(nn.Module):
    """The width of an input, less what is taken away, within limits; gradients pass.

    Args:
        bit_width_to_remove_impl: gives how many bits are taken away: `RemoveBitwidthParameter`, `BitWidthConst`.
        min_overall_bit_width, max_overall_bit_width: the limits, 1 to 16.
    Raises:
        TypeError, ValueError: no ints, out of range, or the wrong way round.
    """

    def __init__(
        self, bit_width_to_remove_impl: nn.Module, min_overall_bit_width: int, max_overall_bit_width: int
    ) -> None:
        super().__init__()
        check_count("min_overall_bit_width", min_overall_bit_width, 1)
        check_count("max_overall_bit_width", max_overall_bit_width, min_overall_bit_width)
        self.bit_width_to_remove_impl = bit_width_to_remove_impl
        self.limits = (min_overall_bit_width, max_overall_bit_width)

    def forward(self, input_bit_width: Tensor) -> Tensor:
        """The width, of the shape and dtype of the input's."""
        width = (input_bit_width - self.bit_width_to_remove_impl()).abs()
        return tensor_clamp_ste(width, *self.limits)

    def extra_repr(self) -> str:
        """The limits."""
        return "{}..{}".format(*self.limits)


def _check(bit_width: int) -> None:
    check_count("bit_width", bit_width, 1)
    if bit_width > LARGEST:
        raise ValueError(f"`bit_width` must be in 1..{LARGEST}, got {bit_width}")
