"""Upsampling of tensors with codes; see `samebits.torch_frontend.quant_rescaled.interpolated`.

What is no `QuantTensor` is upsampled as by the float layer.
"""

from typing import Any

from torch import Tensor, nn

from ..quant_rescaled import interpolated
from . import layer as shared
from .layer import or_same


class QuantUpsample(nn.Upsample):
    """``torch.nn.Upsample`` in the format of the input: nearest keeps codes, other modes round to codes again.

    Args:
        size, scale_factor, mode, align_corners: as ``torch.nn.Upsample``.
        return_quant_tensor: whether a `QuantTensor` gives one.
    """

    load_state_dict = shared.load_state_dict

    def __init__(
        self,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        *,
        return_quant_tensor: bool = True,
    ) -> None:
        super().__init__(size, scale_factor, mode, align_corners)
        self.return_quant_tensor = return_quant_tensor

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, *spatial)`` to ``(batch, channels, *spatial')``."""
        factor: Any = self.scale_factor
        y = interpolated(x, self.size, factor, self.mode, self.align_corners)
        return or_same(None, y, self.return_quant_tensor)


class QuantUpsamplingNearest2d(QuantUpsample):
    """`QuantUpsample` by the nearest element."""

    def __init__(self, size: Any = None, scale_factor: Any = None, *, return_quant_tensor: bool = True) -> None:
        super().__init__(size, scale_factor, "nearest", return_quant_tensor=return_quant_tensor)


class QuantUpsamplingBilinear2d(QuantUpsample):
    """`QuantUpsample`, bilinear with aligned corners, as ``torch.nn.UpsamplingBilinear2d``."""

    def __init__(self, size: Any = None, scale_factor: Any = None, *, return_quant_tensor: bool = True) -> None:
        super().__init__(size, scale_factor, "bilinear", True, return_quant_tensor=return_quant_tensor)
