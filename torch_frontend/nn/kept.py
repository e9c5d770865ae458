"""What stands in for a quantizer in `quant_inference_mode`: what its state and a weight determine is kept."""

from typing import Any

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ..arguments import check_operands
from ..arrays import is_concrete, wide_dtype
from ..components import quantizing
from ..packed import PackedWeight, follows_tensor
from ..quantizer import choose_qparams
from ..tensor_quantizer import TensorQuantizer


def standing_in(quantizer: Any) -> Any:
    """What a layer asks instead of ``quantizer``: in the mode, in evaluation, without gradients, what is kept of it."""
    kept = getattr(quantizer, "kept", None)
    if kept is None or quantizer.training or torch.is_grad_enabled() or quantizer.quantizer is None:
        return quantizer
    return kept


class Kept:
    """A quantizer in evaluation that keeps weights, and parameters that do not depend on the tensor at hand.

    It has what layers ask of a quantizer. A weight is what is an ``nn.Parameter``. Eager code looks whether the weight
    or the state of the quantizer has been written to since, and then computes anew; compiled code takes what is kept,
    and asks the quantizer where nothing is.

    Args:
        of: the quantizer, a module.
    """

    training = False

    def __init__(self, of: Any) -> None:
        self.of = of
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.quantizer: Any = self.of.quantizer  # None while it is off
        self.changes = self.quantizer is not None and _follows_tensor(self.of)
        self.chooses = self.changes and isinstance(self.of, TensorQuantizer) and self.of.chooses
        self.weights: list[PackedWeight] = []
        self.given: list[_Given] = []
        self.stamps: tuple[tuple[Any, ...], ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy, or what is unpickled, is not in the mode

    @property
    def bit_width(self) -> Tensor | None:
        """As the quantizer."""
        width: Tensor | None = self.of.bit_width
        return width

    def waits(self) -> Tensor | None:
        """As the quantizer."""
        waits: Tensor | None = self.of.waits()
        return waits

    def qparams(self, x: Tensor) -> QParams:
        """As the quantizer; kept where they do not depend on ``x``."""
        if isinstance(x, nn.Parameter):
            self._look()
            for packed in self.weights:
                if packed.weight is x:
                    return packed.given
            return self._asked(x)
        if self.changes:
            return self._asked(x)
        self._look()
        for given in self.given:
            if given.fits(x):
                return given.qparams
        if not is_concrete(x):
            return self._asked(x)
        with torch.inference_mode(False), torch.no_grad():
            qparams = check_operands(self.quantizer, x, self._asked(x))
            self.given.append(_Given(x, qparams))
        self._stamp()
        return qparams

    def packed(self, q_x: Quantizer | None, weight: Tensor) -> Tensor | PackedWeight:
        """The weight, quantized for contractions with inputs of ``q_x``; itself where it is not kept.

        Asked after `qparams`, which looks whether it has been written to.
        """
        if isinstance(weight, nn.Parameter) and (weight.ndim > 1 or q_x is None):
            for packed in self.weights:
                if packed.weight is weight and packed.q_x is q_x:
                    return packed
            if is_concrete(weight):
                with torch.inference_mode(False), torch.no_grad():
                    qparams = check_operands(self.quantizer, weight, self._asked(weight))
                    packed = PackedWeight(q_x, self.quantizer, weight, qparams)
                self.weights.append(packed)
                self._stamp()
                return packed
        return weight

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
        """As the quantizer; kept for weights, whose parameters are those of `qparams`."""
        packed = self.packed(None, x) if waits is None else x
        value: Tensor = (
            packed.dequantized() if isinstance(packed, PackedWeight) else self.of.quantized(x, qparams, waits)
        )
        return value

    def __call__(self, x: Tensor) -> Tensor:
        """As the quantizer; kept for weights."""
        waits = self.waits()
        return self.quantized(x, self.qparams(x), waits)

    def _asked(self, x: Tensor) -> QParams:
        given: QParams = choose_qparams(self.quantizer, x) if self.chooses else self.of.qparams(x)
        return given

    def _stamp(self) -> None:
        """Remembers what everything came from."""
        state: list[Any] = [w for m in self.of.modules() for w in (m._parameters, m._buffers, m._modules)]
        state.append({str(k): packed.weight for k, packed in enumerate(self.weights)})
        layers = getattr(self.of, "_layers", ())
        state += [layer._parameters for layer in layers] if len(layers) > 1 else []  # which share their statistics
        self.stamps = tuple(
            (where, name, value, *_written(value))
            for where in state
            for name, value in where.items()
            if value is not None
        )

    def _look(self) -> None:
        """Forgets everything where `is_old`. Not in compiled code."""
        if not torch.compiler.is_compiling() and self.is_old():
            self.clear()

    def is_old(self) -> bool:
        """Whether something that it came from has been written to, or is another tensor."""
        for where, name, value, version, address in self.stamps:
            if where.get(name) is not value or _written(value) != (version, address):
                return True
        return False


def _follows_tensor(quantizer: Any) -> bool:
    """Whether scale or zero point depend on the tensor at hand."""
    inner = getattr(quantizer, "tensor_quant", quantizer)
    return follows_tensor(inner.quantizer) if isinstance(inner, TensorQuantizer) else quantizing.follows_tensor(inner)


class _Given:
    """What a quantizer gives for every tensor of one dtype, and of one shape unless it is a single scale."""

    def __init__(self, x: Tensor, qparams: QParams) -> None:
        self.dtype, self.shape, self.device = wide_dtype(x.dtype), tuple(x.shape), x.device
        self.qparams = QParams(*(v.detach().clone() if isinstance(v, Tensor) else v for v in qparams))

    def fits(self, x: Tensor) -> bool:
        """Whether these are the parameters for ``x``."""
        same = self.qparams.scale.ndim == 0 or tuple(x.shape) == self.shape
        return same and wide_dtype(x.dtype) == self.dtype and x.device == self.device


def _written(value: Any) -> tuple[int, int]:
    """How often a tensor was written to (not of those of inference mode), and where it lies. Of modules nothing."""
    if not isinstance(value, Tensor):
        return 0, 0
    return 0 if value.is_inference() else value._version, value.data_ptr()
