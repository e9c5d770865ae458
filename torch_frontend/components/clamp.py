"""Clamping: ``tensor_clamp_impl``. Which gradients pass is what these differ in."""

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.choice import choice
from ...core.descriptions import Gradient
from ..straight_through import tensor_clamp, tensor_clamp_ste


class TensorClamp(nn.Module):
    """Limits, and passes gradients where nothing was limited.

    Args:
        gradient: which of the rules that do so: see `Gradient`.
    Raises:
        ValueError: ``gradient`` is no member, or "pass_through": that of `TensorClampSte`.
    """

    def __init__(self, gradient: Gradient | str = Gradient.CLIPPED) -> None:
        super().__init__()
        self.gradient = choice("gradient", gradient, Gradient)
        if self.gradient is Gradient.PASS_THROUGH:
            raise ValueError("`gradient` must not be 'pass_through', which is that of TensorClampSte")
        self.fields = {"gradient": self.gradient}

    def forward(self, x: Tensor, min_val: Tensor | float, max_val: Tensor | float) -> Tensor:
        """``x`` limited to what lies between; gradients to the one of the three that was taken."""
        return tensor_clamp(x, min_val, max_val)

    def extra_repr(self) -> str:
        """The rule, where it is not the usual one."""
        return "" if self.gradient is Gradient.CLIPPED else self.gradient


class TensorClampSte(nn.Module):
    """Limits, and passes every gradient."""

    fields: ClassVar[dict[str, Any]] = {"gradient": Gradient.PASS_THROUGH}

    def forward(self, x: Tensor, min_val: Tensor | float, max_val: Tensor | float) -> Tensor:
        """``x`` limited to what lies between; gradient 1, none to the limits."""
        return tensor_clamp_ste(x, min_val, max_val)
