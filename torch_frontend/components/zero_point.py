"""Where zero lies: ``zero_point_impl``.

A zero point is called with the tensor, its scale and its bit width, as ``zero_point_impl(x, scale, bit_width)``, and
gives numbers of the shape of the scale: codes, or values where they are not quantized (``quantize_zero_point=False``:
see "floating-point zero points" in docs/semantics.md). It is part of one quantizer, from which it knows the range of
codes. State is float32 and stays so, NaN until it is set.

Common arguments:

- ``zero_point_stats_impl``: the lower end of the range; None for `NegativeMinOrZero`.
- ``quantize_zero_point``: whether zero points are codes.
- ``zero_point_shape``: shape of the state; None for that of the first tensor's scale.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.arithmetic import ZeroPointDomain
from ...core.choice import check_count, check_number
from ...core.descriptions import QParams, Quantizer, ZeroPoint
from ...core.directions import Rounding
from ...core.scales import ScaleSource
from ..bit_width import code_range
from ..clamp import clamp
from ..rounding import round_to_integer
from ..states import replaced
from ..zero_point import affine_zero_point, float_zero_point
from . import kept
from .description import check_says, number
from .kept import Shape
from .learning import begin, learned, looks, train
from .statistics import NegativeMinOrZero


class ZeroZeroPoint(nn.Module):
    """Zero is code 0: symmetric."""

    fields: ClassVar[dict[str, Any]] = {"zero_point": ZeroPoint.NONE}

    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        """0, of the dtype of the scale."""
        return torch.zeros((), dtype=scale.dtype, device=scale.device)


def found(m: Any, x: Tensor, scale: Tensor, chosen: QParams | None = None) -> Tensor:
    """The zero point of ``x`` from the lower end of its range.

    Args:
        chosen: what the statistic of ``x`` gives, if that is known already.
    """
    if chosen is not None and m.quantizer.scale.source is m.source:
        zero: Tensor = chosen.zero_point
        return zero
    low = m.zero_point_stats_impl(x).to(scale.dtype)
    choose = float_zero_point if m.quantizer.arithmetic.has_float_zeros else affine_zero_point
    return choose(m.quantizer, low, scale.detach())


def state(m: Any, x: Tensor, scale: Tensor, chosen: QParams | None = None) -> Tensor:
    """The zero point that the state gives for ``x``; while training, the state learns from it first.

    Raises:
        RuntimeError: no state yet, and not training.
    """
    zero = learned(m, found(m, x, scale, chosen).to(scale.dtype) if looks(m) else None)
    return handed_on(m, zero.to(scale.dtype))


def handed_on(m: Any, zero: Tensor) -> Tensor:
    """What is used instead of a state: a code of the format, or the number itself; gradients pass."""
    q: Quantizer = m.quantizer
    if q.arithmetic.has_float_zeros:
        return replaced(zero, zero.detach().clone())
    return replaced(zero, clamp(round_to_integer(zero.detach(), Rounding.TIES_TO_EVEN), q.format.lo, q.format.hi))


def in_range(m: Any, zero: Tensor, bit_width: Tensor | None) -> Tensor:
    """A zero point limited to the codes that a learned width leaves; gradients pass."""
    if bit_width is None or m.quantizer.arithmetic.has_float_zeros:
        return zero
    lo, hi = (end.to(zero.dtype) for end in code_range(m.quantizer, bit_width.detach()))
    limited = torch.minimum(torch.maximum(zero.detach(), lo), hi)
    return replaced(zero, limited) if zero.is_floating_point() else limited


def forward(m: Any, x: Tensor, scale: Tensor, bit_width: Tensor | None = None) -> Tensor:
    """The zero point, of the shape of the scale: int32, or the dtype of the scale where it is learned.

    Raises:
        RuntimeError: it is part of no quantizer yet; or no state yet, and not training.
    """
    if m.quantizer is None:
        raise RuntimeError(f"a {type(m).__name__} has no range of codes before a tensor quantizer takes it")
    return in_range(m, m.used(x, scale), bit_width)


class StatsFromParameterZeroPoint(nn.Module):
    """That of the tensor at hand, at every call; no state, a constant to autograd.

    Args:
        zero_point_stats_impl, quantize_zero_point: see the module.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    forward, looks, join, used = forward, kept.always, kept.join, found

    def __init__(self, zero_point_stats_impl: nn.Module | None = None, quantize_zero_point: bool = True) -> None:
        super().__init__()
        _share(self, zero_point_stats_impl, quantize_zero_point)
        self.source = ScaleSource.STATISTIC


class ParameterZeroPoint(nn.Module):
    """A zero point that is learned: the parameter ``value``.

    Args:
        zero_point_init: where it begins, a number or a tensor.
        quantize_zero_point, zero_point_shape: see the module.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    forward, looks, join, _apply = forward, kept.never, kept.join, kept.apply_precisely

    def __init__(
        self, zero_point_init: float | Tensor, quantize_zero_point: bool = True, zero_point_shape: Shape | None = None
    ) -> None:
        super().__init__()
        if not isinstance(zero_point_init, Tensor):
            check_number("zero_point_init", zero_point_init)
        _share(self, None, quantize_zero_point)
        first = number(zero_point_init)
        shape = tuple(first.shape) if zero_point_shape is None else zero_point_shape
        self.value = nn.Parameter(first.expand(shape).clone())

    def used(self, x: Tensor, scale: Tensor, chosen: QParams | None = None) -> Tensor:
        """The zero point, with a gradient towards the parameter."""
        return handed_on(self, self.value.to(scale.dtype)).expand(scale.shape)


class ParameterFromStatsFromParameterZeroPoint(nn.Module):
    """A zero point that is learned, the parameter ``value``: first that of the first tensor seen in training.

    Args:
        zero_point_stats_impl, quantize_zero_point, zero_point_shape: see the module.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    forward, looks, join, used = forward, looks, kept.join, state
    train, _apply, _load_from_state_dict = train, kept.apply_precisely, kept.load

    def __init__(
        self,
        zero_point_stats_impl: nn.Module | None = None,
        quantize_zero_point: bool = True,
        zero_point_shape: Shape | None = None,
    ) -> None:
        super().__init__()
        _share(self, zero_point_stats_impl, quantize_zero_point)
        begin(self, ScaleSource.LEARNED, zero_point_shape, steps=0, counts=False)


class RuntimeZeroPoint(nn.Module):
    """In training that of the tensor at hand, in evaluation the average of those seen: the buffer ``value``.

    Args:
        zero_point_stats_impl, quantize_zero_point, zero_point_shape: see the module.
        zero_point_stats_momentum: weight of the new one, the same as that of the scale; None for the mean of all.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    forward, looks, join, used = forward, looks, kept.join, state
    train, _apply, _load_from_state_dict = train, kept.apply_precisely, kept.load

    def __init__(
        self,
        zero_point_stats_impl: nn.Module | None = None,
        quantize_zero_point: bool = True,
        zero_point_shape: Shape | None = None,
        zero_point_stats_momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        _share(self, zero_point_stats_impl, quantize_zero_point)
        self.fields |= kept.averages(zero_point_stats_momentum)
        counts = zero_point_stats_momentum is None
        begin(self, ScaleSource.RUNNING_STATISTIC, zero_point_shape, steps=0, counts=counts)


class ParameterFromRuntimeZeroPoint(nn.Module):
    """For so many tensors of training as `RuntimeZeroPoint`; then that average is the parameter ``value``, learned.

    Args:
        collect_stats_steps: how many, at least 1.
        zero_point_stats_impl, quantize_zero_point, zero_point_shape: see the module.
        zero_point_stats_momentum: weight of the new one, the same as that of the scale; None for the mean of all.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    forward, looks, join, used = forward, looks, kept.join, state
    train, _apply, _load_from_state_dict = train, kept.apply_precisely, kept.load

    def __init__(
        self,
        collect_stats_steps: int = 300,
        zero_point_stats_impl: nn.Module | None = None,
        quantize_zero_point: bool = True,
        zero_point_shape: Shape | None = None,
        zero_point_stats_momentum: float | None = 0.1,
    ) -> None:
        super().__init__()
        check_count("collect_stats_steps", collect_stats_steps, 1)
        _share(self, zero_point_stats_impl, quantize_zero_point)
        self.fields |= {"steps": collect_stats_steps} | kept.averages(zero_point_stats_momentum)
        source = ScaleSource.STATISTIC_THEN_LEARNED
        begin(self, source, zero_point_shape, steps=collect_stats_steps, counts=True)


def _share(m: Any, zero_point_stats_impl: nn.Module | None, quantize_zero_point: bool) -> None:
    """Gives a zero point its part, and what it says of a description."""
    part = zero_point_stats_impl or NegativeMinOrZero()
    check_says("zero_point_stats_impl", part, "NegativeMinOrZero", "NegativePercentileOrZero")
    m.zero_point_stats_impl, m.is_part = part, False
    domain = ZeroPointDomain.INTEGER if quantize_zero_point else ZeroPointDomain.FLOAT
    own = getattr(m.zero_point_stats_impl, "fields", {})
    m.fields = {"zero_point": ZeroPoint.MIN_MAX, "zero_point_domain": domain} | own
    m.quantizer = None
