"""Pooling of tensors with codes: the largest code, and averages as exact sums that are cut to fewer bits.

What is no `QuantTensor` is pooled as by the float layer.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ...core.directions import Rounding
from ...core.inject import Declaration
from ...core.quant_fields import ROUNDINGS
from ..components import BitWidthConst, TruncIntQuant, TruncMsbScaling
from ..quant_rescaled import truncated
from ..quant_tensor import QuantTensor
from . import layer as shared
from .layer import or_same

Size = int | tuple[int, int]


class QuantMaxPool1d(nn.MaxPool1d):
    """The largest code of each window; scale, zero point and width stay.

    Args:
        return_quant_tensor: whether a `QuantTensor` gives one.
        args, kwargs: as ``torch.nn.MaxPool1d``.
    """

    load_state_dict = shared.load_state_dict

    def __init__(self, *args: Any, return_quant_tensor: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.return_quant_tensor = return_quant_tensor

    def forward(self, x: Tensor) -> Any:
        """``(batch, channels, length)`` to ``(batch, channels, length')``."""
        return _given(super().forward(x), self.return_quant_tensor)


class QuantMaxPool2d(nn.MaxPool2d):
    """The largest code of each window; scale, zero point and width stay.

    Args:
        return_quant_tensor: whether a `QuantTensor` gives one.
        args, kwargs: as ``torch.nn.MaxPool2d``.
    """

    load_state_dict = shared.load_state_dict

    def __init__(self, *args: Any, return_quant_tensor: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.return_quant_tensor = return_quant_tensor

    def forward(self, x: Tensor) -> Any:
        """``(batch, channels, height, width)`` to ``(batch, channels, height', width')``."""
        return _given(super().forward(x), self.return_quant_tensor)


class QuantAvgPool2d(nn.AvgPool2d):
    """The sum of the codes of each window, exact, cut to ``trunc_bits``: `quant_rescaled.truncated`.

    The scale is ``s / n`` for n elements, times a power of two for the bits that were dropped; none are where the sum
    has no more.

    Args:
        kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override: as ``torch.nn.AvgPool2d``; all
            windows must be divided by the same number.
        trunc_quant: a declaration of both that follow, as `core.quant.RoundTo8bit`; None for these themselves.
        trunc_bits, trunc_rounding: width of the result, and direction.
        return_quant_tensor: whether a `QuantTensor` gives one.
    Raises:
        TypeError: another declaration. ValueError: windows at the border would be divided by another number.
    """

    load_state_dict = shared.load_state_dict

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        trunc_quant: Declaration | None = None,
        trunc_bits: int = 8,
        trunc_rounding: Rounding | str = Rounding.TIES_TO_EVEN,
        return_quant_tensor: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        if divisor_override is None and (ceil_mode or (padding not in (0, (0, 0)) and not count_include_pad)):
            raise ValueError(
                "`ceil_mode` must be False, and `count_include_pad` True where there is padding, or `divisor_override` "
                f"given: one number divides the sums of codes; got {ceil_mode}, {count_include_pad}, {padding}"
            )
        self.trunc_bits, self.trunc_rounding = _truncation(trunc_quant, trunc_bits, trunc_rounding)
        self.return_quant_tensor = return_quant_tensor

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` to ``(batch, channels, height', width')``."""
        y: Tensor = _given(
            truncated(super().forward(x), self.trunc_bits, self.trunc_rounding), self.return_quant_tensor
        )
        return y


class QuantAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """`QuantAvgPool2d` with windows that give ``output_size``; heights and widths must be multiples of it.

    Args:
        output_size: as ``torch.nn.AdaptiveAvgPool2d``.
        trunc_quant, trunc_bits, trunc_rounding, return_quant_tensor: as `QuantAvgPool2d`.
    """

    load_state_dict = shared.load_state_dict

    def __init__(
        self,
        output_size: Any,
        *,
        trunc_quant: Declaration | None = None,
        trunc_bits: int = 8,
        trunc_rounding: Rounding | str = Rounding.TIES_TO_EVEN,
        return_quant_tensor: bool = True,
    ) -> None:
        super().__init__(output_size)
        self.trunc_bits, self.trunc_rounding = _truncation(trunc_quant, trunc_bits, trunc_rounding)
        self.return_quant_tensor = return_quant_tensor

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` to ``(batch, channels, *output_size)``.

        Raises:
            ValueError: a `QuantTensor` whose windows differ in size.
        """
        y = F.adaptive_avg_pool2d(x, self.output_size)
        if isinstance(x, QuantTensor) and any(n % m for n, m in zip(x.shape[-2:], y.shape[-2:], strict=True)):
            raise ValueError(
                f"a QuantTensor of height and width {tuple(x.shape[-2:])} has no windows of one size for the output "
                f"{tuple(y.shape[-2:])}: multiples of it have"
            )
        result: Tensor = _given(truncated(y, self.trunc_bits, self.trunc_rounding), self.return_quant_tensor)
        return result


def _truncation(declaration: Any, bits: int, rounding: Rounding | str) -> tuple[int, Rounding | str]:
    """Width and direction, of the declaration if there is one. TypeError for what is none of a truncation.

    A declaration of components must be of those that core's stand for.
    """
    if declaration is None:
        return bits, rounding
    role = declaration.role if isinstance(declaration, Declaration) and "role" in declaration else None
    if role != "trunc":
        raise TypeError(f"`trunc_quant` must inherit from TruncTo8bit or RoundTo8bit, got {declaration!r}")
    if "tensor_quant" in declaration:
        made = declaration.tensor_quant
        usual = isinstance(made, TruncIntQuant) and isinstance(made.bit_width_impl, BitWidthConst)
        if not usual or made.narrow_range or not isinstance(made.trunc_scaling_impl, TruncMsbScaling):
            raise TypeError(
                "`trunc_quant` must have as `tensor_quant` a TruncIntQuant of a BitWidthConst, which drops lower bits, "
                f"got {made!r} of {declaration!r}"
            )
        return made.bit_width_impl.fields["bits"], made.float_to_int_impl.fields["rounding"]
    return declaration.bit_width, ROUNDINGS[declaration.float_to_int_impl_type]


def _given(y: Any, as_codes: bool) -> Any:
    """What a layer returns; of a pair with indices the first is the tensor."""
    return (or_same(None, y[0], as_codes), y[1]) if isinstance(y, tuple) else or_same(None, y, as_codes)
