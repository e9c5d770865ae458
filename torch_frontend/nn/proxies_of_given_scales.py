"""Proxies of what a layer gives a scale to: biases, and codes that become shorter."""

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams
from ...core.granularity import PerAxis, PerTensor
from ...core.inject import Declaration
from ...core.quant_fields import ROUNDINGS
from .. import components, quant
from ..quantizer import fake_quantize
from .proxy import QuantProxy


class BiasQuantProxy(QuantProxy):
    """Of a bias: with a scale of its own, or that of the products that it is added to.

    Attributes:
        requires_input_scale: whether it is that of the products, as the declaration says.
    """

    requires_input_scale: bool
    roles = ("bias",)

    def qparams(self, x: Tensor, input_scale: Tensor | None = None, weight_scale: Tensor | None = None) -> QParams:
        """Parameters for ``x``.

        Args:
            input_scale: one number.
            weight_scale: one number, or one for each channel, of any shape.
        Raises:
            RuntimeError: they are wanted and missing.
        """
        if not self.requires_input_scale:
            return super().qparams(x)
        if input_scale is None or weight_scale is None:
            raise RuntimeError(
                f"{self.declaration!r} takes the scale of input and weight, so the layer needs `input_quant` and "
                "`weight_quant` with a scale for each tensor or channel"
            )
        scale = input_scale.reshape(()) * weight_scale
        scale = scale.clamp(min=torch.finfo(scale.dtype).smallest_normal)
        return QParams(scale.reshape(()) if scale.numel() == 1 else scale.reshape(x.shape))

    def _make(self, loaded: set[str]) -> None:
        super()._make(loaded)
        declaration = self.declaration
        self.requires_input_scale = "requires_input_scale" in declaration and bool(declaration.requires_input_scale)

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
        """``x`` quantized with these parameters, one for all or one for each; as it is where it waits or when off."""
        q = self.quantizer
        if not self.requires_input_scale:
            return super().quantized(x, qparams, waits)
        if self.disable_quant:
            return x
        self._check_signed()
        if q is None:
            y: Tensor = self.tensor_quant(x, qparams.scale)[0]
        else:
            granularity = PerTensor() if qparams.scale.ndim == 0 else PerAxis(0)
            y = fake_quantize(q.replace(granularity=granularity), x, qparams)
        return y if waits is None else torch.where(waits, x, y)

    def forward(self, x: Tensor, input_scale: Tensor | None = None, weight_scale: Tensor | None = None) -> Tensor:
        """``x`` quantized. Arguments and errors as `qparams`."""
        if self.disable_quant:
            return x
        if self.requires_input_scale:
            return self.quantized(x, self.qparams(x, input_scale, weight_scale), None)
        return super().forward(x)


class TruncQuantProxy(QuantProxy):
    """Of codes that become shorter; where the declaration has no ``tensor_quant``, by `components.TruncIntQuant`."""

    roles = ("trunc",)

    def __init__(self, quant_layer: nn.Module, quant_injector: Declaration) -> None:
        if "tensor_quant" not in quant_injector:
            rounding = quant.ROUNDINGS[ROUNDINGS[quant_injector.float_to_int_impl_type]]
            quant_injector = quant_injector.let(
                tensor_quant=components.TruncIntQuant,
                bit_width_impl=components.BitWidthConst,
                float_to_int_impl=rounding,
            )
        super().__init__(quant_layer, quant_injector)

    def forward(  # type: ignore[override]  # the layer says what the codes are
        self, x: Tensor, scale: Tensor, zero_point: Tensor, bit_width: Tensor, signed: bool | Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Value, scale, zero point and bit width of values ``(code - zero_point) * scale``; as they are when off."""
        if self.disable_quant:
            return x, scale, zero_point, bit_width
        made: tuple[Tensor, Tensor, Tensor, Tensor] = self.tensor_quant(x, scale, zero_point, bit_width, signed)
        return made


class ClampQuantProxy(QuantProxy):
    """Of codes that are clamped to a width, as an accumulator does.

    Where the declaration has no ``tensor_quant``, by `components.PrescaledRestrictIntQuant`.
    """

    roles = ("clamp",)

    def __init__(self, quant_layer: nn.Module, quant_injector: Declaration) -> None:
        if "tensor_quant" not in quant_injector:
            quant_injector = quant_injector.let(
                tensor_quant=components.PrescaledRestrictIntQuant,
                int_quant=components.IntQuant,
                bit_width_impl=components.BitWidthConst,
            )
        super().__init__(quant_layer, quant_injector)

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Value, scale, zero point and bit width of values ``code * scale``; NaN for the width when off."""
        if self.disable_quant:
            return x, scale, torch.zeros_like(scale), torch.full_like(scale, torch.nan)
        self._check_signed()
        made: tuple[Tensor, Tensor, Tensor, Tensor] = self.tensor_quant(x, scale)
        return made


# the names that users of Brevitas know
BiasQuantProxyFromInjector = BiasQuantProxy
TruncQuantProxyFromInjector = TruncQuantProxy
ClampQuantProxyFromInjector = ClampQuantProxy
