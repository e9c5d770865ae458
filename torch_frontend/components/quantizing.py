"""What the tensor quantizers have in common: functions that stand in their classes as methods.

``m`` is a tensor quantizer: a module with ``quantizer``, what it is as a description; ``scaling_impl``;
``delay_wrapper``; and, where it has them, ``zero_point_impl``, ``bit_width_impl`` and ``float_to_int_impl``. With these
it keeps to what layers expect of what they hold: see `samebits.torch_frontend.tensor_quantizer.TensorQuantizer`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ...core.directions import Rounding
from ...core.granularity import qparams_shape
from ...core.scales import ScaleSource
from ..arguments import check_array, check_operands
from ..arrays import is_concrete
from ..quantizer import choose_qparams, fake_quantize
from ..ranks import choose_over_ranks, may_share
from ..recomputation import lists_of, refuse_repetition, repeated
from ..states import replaced, unlearned, unless_waiting
from .description import granularity_of, precise, says
from .learning import RUNNING, collects
from .zero_point import in_range

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


class Used(NamedTuple):
    """What one call of a tensor quantizer used: to be used again where it is repeated."""

    parameters: QParams
    collects: tuple[Tensor | None, ...]  # whether the states of scale and zero point still were statistics
    waits: Tensor | None


def qparams(m: Any, x: Tensor) -> QParams:
    """Parameters for ``x``; while training, the state learns from it first, and a step is over.

    Raises:
        RuntimeError: no state yet, and not training; where that changes with every tensor, inside a backward pass that
            does not repeat what ``torch.utils.checkpoint`` ran before.
        TypeError, ValueError: as `choose_qparams`; then nothing was learned or counted.
    """
    check_array(m.quantizer, x)
    if not (m.training and m.changes):
        return _next(m, x)
    if torch.compiler.is_compiling():
        refuse_repetition(m.mark)
        return _next(m, x)
    before: Used | None = repeated(m, ends=True)
    collecting = tuple(map(_collects, _parts(m))) if before is None else before.collects
    waiting = m.delay_wrapper.waits() if before is None else before.waits
    used = _next(m, x) if before is None else _again(m, x, before)
    for calls in lists_of(m):
        calls.append(Used(_detached(used), collecting, waiting))
    return used


def waits(m: Any) -> Tensor | None:
    """Whether the tensor to come passes unquantized, because of a delay: 0-d, or None once that is over."""
    if m.training and m.changes and not torch.compiler.is_compiling():
        before: Used | None = repeated(m, ends=False)
        if before is not None:
            return before.waits
    waiting: Tensor | None = m.delay_wrapper.waits()
    return waiting


def quantized(m: Any, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
    """`fake_quantize` of ``x``, or ``x`` where it ``waits``."""
    q = m.quantizer
    if waits is None:
        return fake_quantize(q, x, qparams)
    if is_concrete(x, waits) and not may_share():  # there every parameter must have a gradient, if it is 0
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


def _next(m: Any, x: Tensor) -> QParams:
    """What the next tensor uses; a step is over."""
    scale, chosen = _scale(m, x)
    width = None if m.quantizer.learned_bits is None else m.bit_width_impl().to(scale.dtype)
    zero = None
    if m.quantizer.affine:
        zero = in_range(m.zero_point_impl, m.zero_point_impl.used(x, scale, chosen), width)
    m.delay_wrapper.count()
    return QParams(scale, zero, width, *drawn(m, scale.dtype))


def _again(m: Any, x: Tensor, before: Used) -> QParams:
    """What a call used before, with the gradients that it had."""
    used, parts = before.parameters, _parts(m)
    found = []
    for part, value, collecting in zip(parts, used[:2], before.collects, strict=False):
        if not isinstance(getattr(part, "value", None), Tensor) or value is None:
            found.append(value)
            continue
        state = part.value.to(value.dtype).expand(value.shape)
        state = state if collecting is None else unlearned(state, None, collecting)
        logarithm = part is m.scaling_impl and m.quantizer.scale.learns_logarithm
        found.append(replaced(state, value, logarithm=logarithm))
    width = None if m.quantizer.learned_bits is None else m.bit_width_impl().to(used.scale.dtype)
    return QParams(found[0], found[1], width, used.seed, used.rounding)


def _parts(m: Any) -> tuple[Any, Any]:
    """What gives scale and zero point."""
    return m.scaling_impl, getattr(m, "zero_point_impl", None)


def follows_tensor(m: Any) -> bool:
    """Whether scale or zero point of evaluation depend on the tensor: statistics, and what is no component."""
    parts = (part for part in _parts(m) if part is not None)
    return any(
        not says(part) or ScaleSource.STATISTIC in (getattr(part, "source", None), part.fields.get("source"))
        for part in parts
    )


def _collects(part: Any) -> Tensor | None:
    return collects(part) if hasattr(part, "steps") else None


def _detached(used: QParams) -> QParams:
    """The same, constants to autograd; what rounding learns stays."""
    scale, zero, width = (None if t is None else t.detach() for t in used[:3])
    return used._replace(scale=scale, zero_point=zero, bit_width=width)


def _scale(m: Any, x: Tensor) -> tuple[Tensor, QParams | None]:
    """The scale, and what the statistic of ``x`` gives, if it was needed."""
    part = m.scaling_impl
    if says(part):
        needed = part.looks() or (m.quantizer.affine and m.zero_point_impl.looks())
        learns = m.training and any(hasattr(p, "steps") for p in _parts(m))
        chosen = (choose_over_ranks if learns else choose_qparams)(m.quantizer, x) if needed else None
        return part.used(x, chosen), chosen
    scale = part(x, m.int_threshold()) if hasattr(m, "int_threshold") else part(x)
    if not isinstance(scale, Tensor):
        raise TypeError(f"`scaling_impl`, a {type(part).__name__}, must give a scale as a tensor, got {scale!r}")
    return _fitting(m, x, scale), None


def _fitting(m: Any, x: Tensor, scale: Tensor) -> Tensor:
    """A scale that somebody else's module gives; the description takes over which elements share it."""
    if qparams_shape(m.quantizer.granularity, tuple(x.shape)) != tuple(scale.shape):
        if torch.compiler.is_compiling():
            raise RuntimeError("the shape of scales cannot become known in compiled code: run the first batch eagerly")
        become(m, m.in_training.replace(granularity=granularity_of(tuple(scale.shape))))
    return scale


def drawn(m: Any, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Seed of stochastic and parameter of learned rounding."""
    part: Any = getattr(m, "float_to_int_impl", None)
    learned = getattr(part, "value", None)
    return (part.seed() if hasattr(part, "seed") else None), None if learned is None else learned.to(dtype)


def become(m: Any, quantizer: Quantizer) -> None:
    """Takes over a description, and that with rounding to whole codes."""
    m.in_training, m.in_evaluation = quantizer, quantizer.decided
    drawing = quantizer.rounding is Rounding.STOCHASTIC
    m.changes = quantizer.scale.source in RUNNING or drawing or quantizer.delay > 0  # with every tensor of training
    m.mark = torch.zeros(()) if m.changes else None  # of `refuse_repetition`


def apply_with_mark(m: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Moves the module, and the mark with it."""
    nn.Module._apply(m, fn, recurse)  # type: ignore[no-untyped-call]
    m.mark = None if m.mark is None else precise(fn)(m.mark)
    return m


def description(m: Any) -> Quantizer:
    """What it is as a description: in evaluation with rounding to whole codes."""
    q: Quantizer = m.in_training if m.training else m.in_evaluation
    return q


def learned_width(m: Any) -> Tensor | None:
    """The parameter of a width that is learned."""
    offset: Tensor | None = getattr(getattr(m, "bit_width_impl", None), "bit_width_offset", None)
    return offset
