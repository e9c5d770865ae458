"""What the layers have in common: the quantizers that they hold, and contractions over codes or over values."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...core.descriptions import Quantizer
from ..arrays import is_concrete
from ..tensor_quantizer import TensorQuantizer, quantizer_of

Quant = str | Quantizer | TensorQuantizer | None


def held(name: str, value: Quant, weight: Tensor | None = None) -> TensorQuantizer | None:
    """What a layer keeps for an argument, beside the weight if it quantizes that."""
    if value is None or isinstance(value, TensorQuantizer):
        return value
    q = quantizer_of(name, value)
    return TensorQuantizer(q) if weight is None else TensorQuantizer(q, tuple(weight.shape)).to(weight.device)


def contract(
    q_x: TensorQuantizer | None,
    x: Tensor,
    q_w: TensorQuantizer | None,
    weight: Tensor,
    over_values: Callable[..., Tensor],
    over_codes: Callable[..., Tensor],
) -> Tensor:
    """A layer over what quantizers make of its operands; over values where one of these is not quantized."""
    learned = any(q is not None and q.bit_width is not None for q in (q_x, q_w))
    if q_x is None or q_w is None or learned:
        return over_values(or_same(q_x, x), or_same(q_w, weight))
    x_waits, w_waits = q_x.waits(), q_w.waits()
    x_qparams, w_qparams = q_x.qparams(x), q_w.qparams(weight)
    if x_waits is None and w_waits is None:
        return over_codes(q_x.quantizer, x, x_qparams, q_w.quantizer, weight, w_qparams)
    y = over_values(q_x.quantized(x, x_qparams, x_waits), q_w.quantized(weight, w_qparams, w_waits))
    waits = x_waits if w_waits is None else w_waits if x_waits is None else x_waits | w_waits
    if waits is None or is_concrete(waits):
        return y
    return torch.where(waits, y, over_codes(q_x.quantizer, x, x_qparams, q_w.quantizer, weight, w_qparams))


def or_same(quantizer: TensorQuantizer | None, x: Tensor) -> Tensor:
    """``x`` quantized, or as it is where nothing is to quantize it."""
    return x if quantizer is None else quantizer(x)
