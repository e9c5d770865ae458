"""What a layer holds for a tensor whose parameters are known for good: of its input, or of a weight kept as codes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ...core.scales import ScaleSource
from ..arrays import is_concrete
from ..packed import PackedWeight
from ..quantizer import dequantize, fake_quantize
from ..states import give_shape


class GivenQuantizer(nn.Module):
    """Quantizes with parameters that stay as they are, in training too. It has what layers ask of a `TensorQuantizer`.

    The buffers ``scale`` and ``zero_point`` keep their precision when the module is moved to 16 bits.

    Args:
        quantizer: what is computed with them; where its scales come from does not matter.
        qparams: scale, and zero point where the quantizer is affine, as `QParams` says.
    """

    scale: Tensor
    zero_point: Tensor | None
    bit_width = None

    def __init__(self, quantizer: Quantizer, qparams: QParams) -> None:
        super().__init__()
        constant = quantizer.scale.source is ScaleSource.CONSTANT
        # not a statistic of the tensor at hand, with which NaN in it would show in the scale
        self.quantizer = quantizer if constant else quantizer.replace(source=ScaleSource.RUNNING_STATISTIC)
        zero = qparams.zero_point
        self.register_buffer("scale", qparams.scale.detach().clone())
        self.register_buffer("zero_point", None if zero is None else zero.detach().clone())

    def qparams(self, x: Tensor) -> QParams:
        """The parameters, whatever ``x`` is; scales in the dtype that it asks for."""
        scale = self.scale.double() if x.dtype == torch.float64 else self.scale
        return QParams(scale, self.zero_point)

    def waits(self) -> None:
        """Nothing is delayed."""

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
        """`fake_quantize` of ``x``."""
        return fake_quantize(self.quantizer, x, qparams)

    def forward(self, x: Tensor) -> Tensor:
        """`fake_quantize` of ``x``."""
        return self.quantized(x, self.qparams(x), None)

    def extra_repr(self) -> str:
        """Format and granularity."""
        q = self.quantizer
        return f"{q.format}{' affine' if q.affine else ''}, {q.granularity}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GivenQuantizer":
        def precise(t: Tensor) -> Tensor:
            moved = fn(t)
            return t.to(moved.device) if moved.is_floating_point() else moved

        super()._apply(precise, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("scale", "zero_point"):
            state, stored = getattr(self, name), state_dict.get(prefix + name)
            if state is not None and stored is not None:
                give_shape(state, stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class CodedWeight(GivenQuantizer):
    """Of a weight that a layer keeps as integer codes, under the name of the weight.

    Args:
        quantizer, qparams: as `GivenQuantizer`.
        dtype: of the weight before.
    """

    def __init__(self, quantizer: Quantizer, qparams: QParams, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(quantizer, qparams)
        self.dtype = dtype
        self._packed: list[tuple[Quantizer | None, Tensor, int, PackedWeight]] = []

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None = None) -> Tensor:
        """The values of codes ``x``."""
        return dequantize(self.quantizer, x, qparams, self.dtype)

    def packed(self, q_x: Quantizer | None, codes: Tensor, qparams: QParams) -> Tensor | PackedWeight:
        """What a contraction with inputs of ``q_x`` takes of the weight: packed, or with gradients its values.

        Values have the same codes again. Packed weights are kept, if ``codes`` is the parameter of a layer; compiled
        code takes what eager code has kept, or computes with the values.
        """
        if torch.is_grad_enabled() or not isinstance(codes, nn.Parameter):
            return self.quantized(codes, qparams)
        for known, of, version, packed in self._packed:
            if known is q_x and of is codes and (torch.compiler.is_compiling() or version == codes._version):
                return packed
        if not is_concrete(codes):
            return self.quantized(codes, qparams)
        with torch.inference_mode(False), torch.no_grad():
            values = self.quantized(codes, qparams)
            kept = PackedWeight(q_x, self.quantizer, values, qparams)
        self._packed = [(q_x, codes, codes._version, kept)]
        return kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CodedWeight":
        self._packed = []
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": []}
