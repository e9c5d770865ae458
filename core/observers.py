"""What an observer remembers of a tensor, and the parameters that follow: pure functions over a state.

Everything is float32, and every operation rounds. Ends of ranges are those of the data, not widened to 0; that and the
scale come last, by `scale_rules.parameters_of_range`.

Source: ``torch.ao.quantization.observer``, whose parameters these are, bit for bit, for quantizers with its rules (see
`samebits.core.observing.default_qconfig`). Known differences are listed in ``docs/post_training.md``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .arithmetic import RangeRule
from .descriptions import QParams, Quantizer
from .granularity import PerTensor
from .histograms import counted, merged, searched_ends
from .observing import Observer, ObserverKind, ObserverState, check_fed, check_has_parameters, check_observed
from .quantizer import fake_quantize
from .ranges import average_range, percentile_range, searched_range
from .scale_rules import data_range, given_parameters, parameters_of_range, widened_range
from .scales import Statistic

Array = NDArray[Any]


def init(observer: Observer) -> ObserverState:
    """The state before the first tensor."""
    shape = () if isinstance(observer.quantizer.granularity, PerTensor) else (0,)
    histogram = np.zeros(observer.bins, np.float32) if observer.kind is ObserverKind.HISTOGRAM else None
    return ObserverState(np.full(shape, np.inf, np.float32), np.full(shape, -np.inf, np.float32), histogram)


def is_fed(observer: Observer, state: ObserverState) -> bool:
    """Whether there are parameters: an observer that needs tensors has seen one."""
    if observer.kind in (ObserverKind.FIXED, ObserverKind.PLACEHOLDER):
        return observer.kind is ObserverKind.FIXED
    return bool(state.low.size and (state.low <= state.high).all())


@np.errstate(all="ignore")  # special values are meant
def observe(observer: Observer, state: ObserverState, x: Array) -> ObserverState:
    """The state after ``x``. An empty ``x`` changes nothing.

    Args:
        x: float32, or float64, bfloat16, float16: read as float32.
    Raises:
        TypeError: no floating-point array.
        ValueError: NaN or an infinity in ``x`` (as float32), or a shape with other scales than the state has.
    """
    q = observer.quantizer
    x = arguments.check_array(q, x).astype(np.float32)
    if observer.kind in (ObserverKind.FIXED, ObserverKind.PLACEHOLDER) or x.size == 0:
        return state
    check_observed(bool(np.isfinite(x).all()))
    low, high = (end + np.float32(0) for end in batch_range(observer.of_scale, x))  # one zero
    if not is_fed(observer, state):
        counts = counted(x, observer.bins, low, high) if observer.kind is ObserverKind.HISTOGRAM else None
        return ObserverState(low, high, counts)
    if low.shape != state.low.shape:
        raise ValueError(f"`x` must have scales of shape {state.low.shape}, as before, got {low.shape}")
    match observer.kind:
        case ObserverKind.MIN_MAX:
            return ObserverState(np.minimum(state.low, low), np.maximum(state.high, high))
        case ObserverKind.MOVING_AVERAGE:
            c = np.float32(observer.averaging_constant)
            return ObserverState(state.low + c * (low - state.low), state.high + c * (high - state.high))
        case _:
            return merged(state, x, low, high)


@np.errstate(all="ignore")  # special values are meant
def observed_qparams(observer: Observer, state: ObserverState) -> QParams:
    """Scale and zero point that follow from a state.

    Raises:
        RuntimeError: no tensor was seen ("calibration never run"), or a placeholder, which has none.
    """
    check_has_parameters(observer)
    q = observer.quantizer
    if observer.kind is ObserverKind.FIXED:
        return given_parameters(q, np.zeros((), np.float32))
    check_fed(is_fed(observer, state))
    low, high = state.low, state.high
    if observer.kind is ObserverKind.HISTOGRAM:
        low, high = searched_ends(state, observer.steps)
    used = observer.of_scale
    chosen = parameters_of_range(used, np.dtype(np.float32), *widened_range(used, low, high))
    if observer.symmetric_at is None:
        return chosen
    return QParams(chosen.scale, np.full(chosen.scale.shape, observer.symmetric_at, np.int32))


def batch_range(q: Quantizer, x: Array) -> tuple[Array, Array]:
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
        high = np.maximum(-low, high)
        low = -high
    nearest = q.replace(rounding="ties_to_even") if not q.deterministic else q
    return searched_range(
        nearest, x, low, high, lambda a, b: fake_quantize(nearest, x, parameters_of_range(nearest, x.dtype, a, b))
    )
