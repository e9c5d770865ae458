"""What an observer remembers of a tensor, and the parameters that follow, by torch's operators.

What is computed is stated in `samebits.core.observers`. Values are checked where they can be looked at; in compiled
code NaN and infinities go into the state. Nothing here has a gradient. Modules around these: `observer_modules`.
"""

import torch
from torch import Tensor

from ...core.arithmetic import RangeRule
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerTensor
from ...core.observing import Observer, ObserverKind, ObserverState, check_fed, check_has_parameters, check_observed
from ...core.scales import Statistic
from ..arguments import check_array
from ..arrays import is_concrete
from ..blocks import split_blocks
from ..quantizer import fake_quantize
from ..ranges import average_range, percentile_range, searched_range
from ..scale_rules import data_range, given_parameters, parameters_of_range, widened_range
from .histograms import counted, merged, searched_ends


def init(observer: Observer) -> ObserverState:
    """The state before the first tensor."""
    shape = () if isinstance(observer.quantizer.granularity, PerTensor) else (0,)
    low = torch.full(shape, torch.inf, dtype=torch.float32)
    histogram = observer.kind is ObserverKind.HISTOGRAM
    return ObserverState(low, -low, torch.zeros(observer.bins, dtype=torch.float32) if histogram else None)


def is_fed(observer: Observer, state: ObserverState) -> bool:
    """Whether there are parameters: an observer that needs tensors has seen one."""
    if observer.kind in (ObserverKind.FIXED, ObserverKind.PLACEHOLDER):
        return observer.kind is ObserverKind.FIXED
    return bool(state.low.numel() and (state.low <= state.high).all())


@torch.no_grad()
def observe(observer: Observer, state: ObserverState, x: Tensor) -> ObserverState:
    """The state after ``x``. An empty ``x`` changes nothing.

    Args:
        x: float32, or float64, bfloat16, float16: read as float32.
    Raises:
        TypeError: no floating-point array.
        ValueError: NaN or an infinity in ``x`` (as float32), or a shape with other scales than the state has.
    """
    q = observer.quantizer
    check_array(q, x)
    if observer.kind in (ObserverKind.FIXED, ObserverKind.PLACEHOLDER) or x.numel() == 0:
        return state
    x = x.detach().to(torch.float32)
    if is_concrete(x):
        check_observed(bool(x.isfinite().all()))
    low, high = (end + 0.0 for end in batch_range(observer.of_scale, x))  # one zero
    state = ObserverState(*(None if v is None else v.to(x.device) for v in state))
    if not is_fed(observer, state):
        counts = counted(x, observer.bins, low, high).to(x.device) if observer.kind is ObserverKind.HISTOGRAM else None
        return ObserverState(low, high, counts)
    if low.shape != state.low.shape:
        raise ValueError(f"`x` must have scales of shape {tuple(state.low.shape)}, as before, got {tuple(low.shape)}")
    match observer.kind:
        case ObserverKind.MIN_MAX:
            return ObserverState(torch.minimum(state.low, low), torch.maximum(state.high, high))
        case ObserverKind.MOVING_AVERAGE:
            c = observer.averaging_constant
            return ObserverState(state.low + (low - state.low) * c, state.high + (high - state.high) * c)
        case _:
            return merged(state, x, low, high)


@torch.no_grad()
def observed_qparams(observer: Observer, state: ObserverState) -> QParams:
    """Scale and zero point that follow from a state.

    Raises:
        RuntimeError: no tensor was seen ("calibration never run"), or a placeholder, which has none.
    """
    check_has_parameters(observer)
    q = observer.quantizer
    if observer.kind is ObserverKind.FIXED:
        return given_parameters(q, torch.zeros((), dtype=torch.float32, device=state.low.device))
    check_fed(is_fed(observer, state))
    ends = (state.low, state.high) if state.histogram is None else searched_ends(state, observer.steps)
    used = observer.of_scale
    chosen = parameters_of_range(used, torch.float32, *widened_range(used, *ends))
    if observer.symmetric_at is None:
        return chosen
    return QParams(chosen.scale, torch.full_like(chosen.scale, observer.symmetric_at, dtype=torch.int32))


def batch_range(q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The range of one tensor by the statistic of ``q``: extremes as they are, others as `choose_qparams` takes them.

    Args:
        x: float32, finite, not empty.
    """
    if q.scale.statistic is Statistic.PERCENTILE:
        return percentile_range(q, x)
    if q.scale.statistic is Statistic.MEAN_SIGMA:
        return average_range(q, x)
    low, high = data_range(q.replace(range=RangeRule.OF_DATA), x)
    if q.scale.statistic is not Statistic.MSE:
        return low, high
    low, high = widened_range(q, low, high)
    if not q.affine:
        high = torch.maximum(-low, high)
        low = -high
    nearest = q if q.deterministic else q.replace(rounding="ties_to_even")

    def fake(lows: Tensor, highs: Tensor) -> Tensor:
        each = (parameters_of_range(nearest, x.dtype, a, b) for a, b in zip(lows, highs, strict=True))
        return torch.stack([split_blocks(fake_quantize(nearest, x, qparams), q.granularity) for qparams in each])

    return searched_range(nearest, x, low, high, fake)
