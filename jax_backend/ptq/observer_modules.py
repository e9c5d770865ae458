"""Observers as flax nnx modules: what layers hold for a tensor between ``prepare`` and ``convert``."""

from itertools import count
from typing import Any

import jax
from flax import nnx

from ...core.descriptions import QParams, Quantizer
from ...core.observing import Observer, ObserverKind, ObserverState
from ..arrays import is_concrete
from ..layers import Axes
from ..nn.given import quantized_as_laid_out
from ..quantizer import choose_qparams
from .observers import init, is_fed, observe, observed_qparams
from .storing import scaled_for

Array = jax.Array
_PLACES = count(1)  # of arrays that were remembered


class ObserverModule(nnx.Module):
    """An `Observer` with its state: passes arrays, remembers what it is to remember, and quantizes when it is told to.

    It has what layers ask of a `TensorQuantizer`. Its state are variables of the kind ``nnx.BatchStat``.

    Args:
        observer: what is remembered.
        trains: whether it observes in training alone, which ``model.train()`` and ``model.eval()`` say by the attribute
            ``use_running_average``.
        fresh: whether parameters come from the array at hand, observed alone: of weights, which are at hand always.

    Attributes:
        observes: whether arrays are remembered; ``quantizes``: whether they are quantized.
        place: the number of the last array that was remembered, among those of all observers; 0 for none.
    """

    def __init__(self, observer: Observer, *, trains: bool = False, fresh: bool = False) -> None:
        self.observer, self.trains, self.fresh = observer, trains, fresh
        self.observes, self.quantizes, self.use_running_average, self.place = True, trains, False, 0
        low, high, histogram = init(observer)
        self.low, self.high = nnx.BatchStat(low), nnx.BatchStat(high)
        self.histogram = None if histogram is None else nnx.BatchStat(histogram)

    @property
    def quantizer(self) -> Quantizer | None:
        """The quantizer, or None while it is off."""
        return self.observer.quantizer if self.quantizes else None

    @property
    def state(self) -> ObserverState:
        """What is remembered."""
        return ObserverState(self.low[...], self.high[...], None if self.histogram is None else self.histogram[...])

    def is_fed(self) -> bool:
        """Whether there are parameters."""
        return self.fresh or self.observer.kind is ObserverKind.PLACEHOLDER or bool(is_fed(self.observer, self.state))

    def watch(self, x: Array, use_running_average: bool | None = None) -> None:
        """Remembers ``x``, where it is to. Raises as `observe`; then nothing is remembered."""
        frozen = self.use_running_average if use_running_average is None else use_running_average
        if not self.observes or self.fresh or (self.trains and frozen):
            return
        self._keep(observe(self.observer, self.state, x))
        if is_concrete(x):
            self.place = next(_PLACES)

    def forget(self) -> None:
        """Begins anew."""
        self._keep(init(self.observer))

    def _keep(self, state: ObserverState) -> None:
        self.low.set_value(state.low)
        self.high.set_value(state.high)
        if self.histogram is not None:
            self.histogram.set_value(state.histogram)

    def qparams(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> QParams:
        """Parameters for ``x.transpose(axes)``, which is remembered first; scales in the dtype that it asks for."""
        laid = jax.lax.stop_gradient(x if axes is None else x.transpose(axes))
        self.watch(laid, use_running_average)
        if self.observer.kind is ObserverKind.PLACEHOLDER:
            return choose_qparams(self.observer.quantizer, laid)
        state = observe(self.observer, init(self.observer), laid) if self.fresh else self.state
        return scaled_for(x.dtype, observed_qparams(self.observer, state))

    def waits(self) -> None:
        """Nothing is delayed."""

    def quantized(self, x: Array, qparams: QParams, waits: Any, axes: Axes | None = None) -> Array:
        """`fake_quantize` of ``x``; it keeps its layout, ``axes`` as in `qparams`."""
        return quantized_as_laid_out(self.observer.quantizer, x, qparams, axes)

    def __call__(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> Array:
        """``x``, remembered; quantized if it is to be."""
        if self.quantizes:
            return self.quantized(x, self.qparams(x, use_running_average, axes), None, axes)
        self.watch(x if axes is None else x.transpose(axes), use_running_average)
        return x

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What ``nnx.view`` calls.

        Args:
            use_running_average: whether training is over; None to leave that.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
