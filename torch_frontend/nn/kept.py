"""What stands in for a quantizer in `quant_inference_mode`: what its state and a weight determine is kept."""

from typing import Any

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ...core.scales import ScaleSource
from ..arrays import is_concrete, wide_dtype
from ..packed import PackedWeight


def standing_in(quantizer: Any) -> Any:
    """What a layer asks instead of ``quantizer``: in the mode, in evaluation and without gradients what is kept of it."""
    kept = getattr(quantizer, "kept", None)
    return quantizer if kept is None or quantizer.training or torch.is_grad_enabled() else kept


class Kept(nn.Module):
    """A quantizer in evaluation that keeps weights, and parameters that do not depend on the tensor at hand.

    It has what layers ask of a quantizer. A weight is what is an ``nn.Parameter``. Eager code looks whether the weight
    or the state of the quantizer has been written to since, and then computes anew; compiled code takes what is kept,
    and asks the quantizer where nothing is.

    Args:
        of: the quantizer, a module.
    """

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.of = (of,)  # in a tuple, where torch.nn sees no module
        self.quantizer: Quantizer = of.quantizer
        rule = self.quantizer.scale
        self.changes = rule.source is ScaleSource.STATISTIC and rule.scale_value is None  # with every tensor
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.weights, self.parameters_kept = nn.ModuleList(), nn.ModuleList()
        self.stamps: tuple[tuple[Any, ...], ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy, or what is unpickled, is not in the mode

    @property
    def bit_width(self) -> Tensor | None:
        """As the quantizer."""
        width: Tensor | None = self.of[0].bit_width
        return width

    def waits(self) -> Tensor | None:
        """As the quantizer."""
        waits: Tensor | None = self.of[0].waits()
        return waits

    def qparams(self, x: Tensor) -> QParams:
        """As the quantizer; kept where they do not depend on ``x``."""
        if self.changes or isinstance(x, nn.Parameter):
            return self._asked(x)
        self._look()
        for part in self.parameters_kept:
            if part.fits(x):
                return part.qparams
        given = self._asked(x)
        if is_concrete(x, given.scale):
            self._keep(self.parameters_kept, _KeptParameters(x, given))
        return given

    def packed(self, q_x: Quantizer | None, weight: Tensor) -> Tensor | PackedWeight:
        """The weight, quantized for contractions with inputs of ``q_x``; itself where it is not kept."""
        if isinstance(weight, nn.Parameter):
            self._look()
            for part in self.weights:
                if part.of[0] is weight and part.q_x is q_x:
                    return part
            if is_concrete(weight):
                packed = PackedWeight(q_x, self.quantizer, weight, self._asked(weight))
                self._keep(self.weights, packed)
                return packed
        return weight

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
        """As the quantizer."""
        value: Tensor = self.of[0].quantized(x, qparams, waits)
        return value

    def forward(self, x: Tensor) -> Tensor:
        """As the quantizer; kept for weights."""
        waits = self.waits()
        packed = self.packed(None, x) if waits is None else x
        return packed.values if isinstance(packed, PackedWeight) else self.quantized(x, self.qparams(x), waits)

    def _asked(self, x: Tensor) -> QParams:
        given: QParams = self.of[0].qparams(x)
        return given

    def _keep(self, parts: nn.ModuleList, part: nn.Module) -> None:
        parts.append(part)
        state = {id(where): where for m in self.of[0].modules() for where in (m._parameters, m._buffers)}
        weights = {str(k): held.of[0] for k, held in enumerate(self.weights)}
        self.stamps = tuple(
            (where, name, tensor, _version(tensor), tensor.data_ptr())
            for where in (weights, *state.values())
            for name, tensor in where.items()
            if tensor is not None
        )

    def _look(self) -> None:
        """Forgets everything if something that it came from has been written to, or is another tensor."""
        if torch.compiler.is_compiling():
            return
        for where, name, tensor, version, address in self.stamps:
            if where.get(name) is not tensor or _version(tensor) != version or tensor.data_ptr() != address:
                self.clear()
                return


class _KeptParameters(nn.Module):
    """What a quantizer gives for every tensor of one dtype, and of one shape unless it is a single scale."""

    def __init__(self, x: Tensor, qparams: QParams) -> None:
        super().__init__()
        self.dtype, self.shape, self.device = wide_dtype(x.dtype), tuple(x.shape), x.device
        for name, value in qparams._asdict().items():
            self.register_buffer(name, None if value is None else value.detach().clone(), persistent=False)

    def fits(self, x: Tensor) -> bool:
        """Whether these are the parameters for ``x``."""
        same = self.scale.ndim == 0 or tuple(x.shape) == self.shape
        return same and wide_dtype(x.dtype) == self.dtype and x.device == self.device

    @property
    def qparams(self) -> QParams:
        return QParams(self.scale, self.zero_point, self.bit_width, self.seed, self.rounding)


def _version(t: Tensor) -> int:
    """How often it was written to; tensors of inference mode do not count."""
    return 0 if t.is_inference() else t._version
