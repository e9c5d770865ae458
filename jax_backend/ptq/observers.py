"""What an observer remembers of a tensor, and the parameters that follow, for JAX arrays.

What is computed is stated in `samebits.core.observers`. Ends are compared by their bits, since XLA reads subnormals as
zeros. Values are checked where they are at hand; in traced code NaN and infinities go into the state. A histogram is
for values that are at hand.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.arithmetic import Arithmetic, RangeRule
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerTensor
from ...core.observing import Observer, ObserverKind, ObserverState, check_fed, check_has_parameters, check_observed
from ...core.scales import Statistic
from ..arguments import check_array
from ..arrays import is_concrete, ordered
from ..operations import FLOAT32, add, multiply, round_to_dtype
from ..quantizer import fake_quantize
from ..ranges import average_range, percentile_range, searched_range
from ..scale_rules import data_range, given_parameters, parameters_of_range, widened_range
from .histograms import counted, merged, searched_ends

Array = jax.Array
PLAIN = Arithmetic()


def init(observer: Observer) -> ObserverState:
    """The state before the first tensor."""
    shape = () if isinstance(observer.quantizer.granularity, PerTensor) else (0,)
    histogram = jnp.zeros(observer.bins, np.float32) if observer.kind is ObserverKind.HISTOGRAM else None
    return ObserverState(jnp.full(shape, jnp.inf, np.float32), jnp.full(shape, -jnp.inf, np.float32), histogram)


def is_fed(observer: Observer, state: ObserverState) -> Any:
    """Whether there are parameters: an observer that needs tensors has seen one. An array in traced code."""
    if observer.kind in (ObserverKind.FIXED, ObserverKind.PLACEHOLDER):
        return observer.kind is ObserverKind.FIXED
    if state.low.size == 0:
        return False
    fed = ~jnp.any(ordered(state.low) > ordered(state.high))
    return bool(fed) if is_concrete(fed) else fed


def observe(observer: Observer, state: ObserverState, x: Array) -> ObserverState:
    """The state after ``x``. An empty ``x`` changes nothing.

    Args:
        x: float32, or float64, bfloat16, float16: read as float32.
    Raises:
        TypeError: no floating-point array, or a histogram in traced code.
        ValueError: NaN or an infinity in ``x`` (as float32), or a shape with other scales than the state has.
    """
    x = check_array(observer.quantizer, x)
    if observer.kind in (ObserverKind.FIXED, ObserverKind.PLACEHOLDER) or x.size == 0:
        return state
    x = round_to_dtype(x, FLOAT32)
    if is_concrete(x):
        check_observed(bool(jnp.isfinite(x).all()))
    elif observer.kind is ObserverKind.HISTOGRAM:
        raise TypeError("a 'histogram' observer needs values that are at hand: calibrate outside of jax.jit")
    low, high = (add(end, jnp.zeros_like(end), PLAIN) for end in batch_range(observer.of_scale, x))  # one zero
    fed = is_fed(observer, state)
    if isinstance(fed, bool) and not fed:
        counts = counted(x, observer.bins, low, high) if observer.kind is ObserverKind.HISTOGRAM else None
        return ObserverState(low, high, counts)
    if low.shape != state.low.shape:
        raise ValueError(f"`x` must have scales of shape {state.low.shape}, as before, got {low.shape}")
    match observer.kind:
        case ObserverKind.MIN_MAX:
            return ObserverState(_smaller(state.low, low), -_smaller(-state.high, -high))
        case ObserverKind.MOVING_AVERAGE:
            ends = (_moved(observer, old, new, fed) for old, new in ((state.low, low), (state.high, high)))
            return ObserverState(*ends)
        case _:
            return merged(state, x, low, high)


def observed_qparams(observer: Observer, state: ObserverState) -> QParams:
    """Scale and zero point that follow from a state.

    Raises:
        RuntimeError: no tensor was seen ("calibration never run"), or a placeholder, which has none. In traced code the
            scale is NaN then.
    """
    check_has_parameters(observer)
    q = observer.quantizer
    if observer.kind is ObserverKind.FIXED:
        return given_parameters(q, jnp.zeros((), np.float32))
    fed = is_fed(observer, state)
    check_fed(fed if isinstance(fed, bool) else True)
    ends = (state.low, state.high) if state.histogram is None else searched_ends(state, observer.steps)
    return _of_range(observer, *ends)


def _of_range(observer: Observer, low: Array, high: Array) -> QParams:
    used = observer.of_scale
    chosen: QParams = _parameters(used, low, high)
    if observer.symmetric_at is None:
        return chosen
    return QParams(chosen.scale, jnp.full(chosen.scale.shape, observer.symmetric_at, np.int32))


def _parameters_of(q: Quantizer, low: Array, high: Array) -> QParams:
    return parameters_of_range(q, FLOAT32, *widened_range(q, low, high))


_parameters = jax.jit(_parameters_of, static_argnums=0)


def batch_range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """The range of one tensor by the statistic of ``q``: extremes as they are, others as `choose_qparams` takes them.

    Args:
        x: float32, finite, not empty.
    """
    low, high = _batch_range(q, x)
    return low, high


def _batch_range_of(q: Quantizer, x: Array) -> tuple[Array, Array]:
    if q.scale.statistic is Statistic.PERCENTILE:
        return percentile_range(q, x)
    if q.scale.statistic is Statistic.MEAN_SIGMA:
        return average_range(q, x)
    low, high = data_range(q.replace(range=RangeRule.OF_DATA), x)
    if q.scale.statistic is not Statistic.MSE:
        return low, high
    low, high = widened_range(q, low, high)
    if not q.affine:
        low = _smaller(low, -high)
        high = -low
    nearest = q if q.deterministic else q.replace(rounding="ties_to_even")

    def fake(low: Array, high: Array) -> Array:
        return fake_quantize(nearest, x, parameters_of_range(nearest, FLOAT32, low, high))

    return searched_range(nearest, x, low, high, fake)


_batch_range = jax.jit(_batch_range_of, static_argnums=0)


def _smaller(a: Array, b: Array) -> Array:
    """The smaller of both, NaN where either is."""
    nan = jnp.isnan(a) | jnp.isnan(b)
    return jnp.where(nan, jnp.full_like(a, jnp.nan), jnp.where(ordered(a) < ordered(b), a, b))


def _moved(observer: Observer, old: Array, new: Array, fed: Any) -> Array:
    """One end of the moving average; the new one where nothing was seen."""
    c = jnp.full(old.shape, np.float32(observer.averaging_constant))
    moved = add(old, multiply(c, add(new, -old, PLAIN), PLAIN), PLAIN)
    return moved if isinstance(fed, bool) else jnp.where(fed, moved, new)
