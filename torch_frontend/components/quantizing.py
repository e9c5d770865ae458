"""What the tensor quantizers have in common: functions that stand in their classes as methods.

``m`` is a tensor quantizer: a module with ``quantizer``, what it is as a description; ``scaling_impl``;
``delay_wrapper``; and, where it has them, ``zero_point_impl``, ``bit_width_impl`` and ``float_to_int_impl``. With these
it keeps to what layers expect of what they hold: see `samebits.torch_frontend.tensor_quantizer.TensorQuantizer`.
"""

from typing import Any

import torch
from torch import Tensor

from ...core.descriptions import QParams, Quantizer
from ...core.granularity import qparams_shape
from ..arguments import check_array, check_operands
from ..arrays import is_concrete
from ..quantizer import choose_qparams, fake_quantize
from ..states import unless_waiting
from .description import granularity_of, says
from .zero_point import in_range

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def qparams(m: Any, x: Tensor) -> QParams:
    """Parameters for ``x``; while training, the state learns from it first, and a step is over.

    Raises:
        RuntimeError: no state yet, and not training.
        TypeError, ValueError: as `choose_qparams`; then nothing was learned or counted.
    """
    check_array(m.quantizer, x)
    scale, chosen = _scale(m, x)
    width = None if m.quantizer.learned_bits is None else m.bit_width_impl().to(scale.dtype)
    zero = None
    if m.quantizer.affine:
        zero = in_range(m.zero_point_impl, m.zero_point_impl.used(x, scale, chosen), width)
    m.delay_wrapper.count()
    return QParams(scale, zero, width, *drawn(m))


def waits(m: Any) -> Tensor | None:
    """Whether the tensor to come passes unquantized, because of a delay: 0-d, or None once that is over."""
    waiting: Tensor | None = m.delay_wrapper.waits()
    return waiting


def quantized(m: Any, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
    """`fake_quantize` of ``x``, or ``x`` where it ``waits``."""
    q = m.quantizer
    if waits is None:
        return fake_quantize(q, x, qparams)
    if is_concrete(x, waits):
        return x
    return unless_waiting(q, x, check_operands(q, x, qparams), waits)


def forward(m: Any, x: Tensor) -> Outputs:
    """Value, scale, zero point and bit width: of ``x``; of `qparams_shape`; so, or 0; 0-d.

    The value has the dtype of ``x``, the others are float32 (float64 for float64 ``x``). During a delay it is ``x``.

    Raises:
        RuntimeError, TypeError, ValueError: as `qparams` and `fake_quantize`.
    """
    waiting = m.waits()
    used = m.qparams(x)
    value = m.quantized(x, used, waiting)
    scale = used.scale
    zero = torch.zeros((), dtype=scale.dtype, device=scale.device) if used.zero_point is None else used.zero_point
    width = torch.full((), m.quantizer.format.bits, dtype=scale.dtype, device=scale.device)
    return value, scale, zero.to(scale.dtype), width if used.bit_width is None else used.bit_width


def _scale(m: Any, x: Tensor) -> tuple[Tensor, QParams | None]:
    """The scale, and what the statistic of ``x`` gives, if it was needed."""
    part = m.scaling_impl
    if says(part):
        needed = part.looks() or (m.quantizer.affine and m.zero_point_impl.looks())
        chosen = choose_qparams(m.quantizer, x) if needed else None
        return part.used(x, chosen), chosen
    scale = part(x, m.int_threshold()) if hasattr(m, "int_threshold") else part(x)
    return _fitting(m, x, scale), None


def _fitting(m: Any, x: Tensor, scale: Tensor) -> Tensor:
    """A scale that somebody else's module gives; the description takes over which elements share it."""
    if qparams_shape(m.quantizer.granularity, tuple(x.shape)) != tuple(scale.shape):
        if torch.compiler.is_compiling():
            raise RuntimeError("the shape of scales cannot become known in compiled code: run the first batch eagerly")
        become(m, m.in_training.replace(granularity=granularity_of(tuple(scale.shape))))
    return scale


def drawn(m: Any) -> tuple[Tensor | None, Tensor | None]:
    """Seed of stochastic and parameter of learned rounding."""
    part: Any = getattr(m, "float_to_int_impl", None)
    return (part.seed() if hasattr(part, "seed") else None), getattr(part, "value", None)


def become(m: Any, quantizer: Quantizer) -> None:
    """Takes over a description, and that with rounding to whole codes."""
    m.in_training, m.in_evaluation = quantizer, quantizer.decided


def description(m: Any) -> Quantizer:
    """What it is as a description: in evaluation with rounding to whole codes."""
    q: Quantizer = m.in_training if m.training else m.in_evaluation
    return q


def learned_width(m: Any) -> Tensor | None:
    """The parameter of a width that is learned."""
    offset: Tensor | None = getattr(getattr(m, "bit_width_impl", None), "bit_width_offset", None)
    return offset
