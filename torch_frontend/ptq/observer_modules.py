"""Observers as modules of torch, and under the names and arguments of ``torch.ao.quantization``.

``MinMaxObserver(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)`` is an `ObserverModule`; ``with_args`` gives
the same with other defaults, for a `QConfig`. Types and schemes become a `Quantizer` in our arithmetic with the rules
of torch's observers: scales of at least ``eps``, magnitudes over half the range.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from ...core.catalog import catalog
from ...core.descriptions import QParams, Quantizer
from ...core.formats import IntegerFormat
from ...core.granularity import PerAxis
from ...core.observing import Observer, ObserverKind, ObserverState
from ...core.scales import Denominator, ScaleSource, Statistic
from ..quantizer import choose_qparams, fake_quantize
from ..states import give_shape
from .observers import init, is_fed, observe, observed_qparams
from .storing import scaled_for

DTYPES = {torch.qint8: (8, True), torch.int8: (8, True), torch.quint8: (8, False), torch.uint8: (8, False)}
DTYPES |= {torch.int16: (16, True), torch.uint16: (16, False)}
QSCHEMES = {
    torch.per_tensor_affine: (False, False),
    torch.per_tensor_symmetric: (False, True),
    torch.per_channel_affine: (True, False),
    torch.per_channel_symmetric: (True, True),
}
_PLACES = count(1)  # of tensors that were remembered


class ObserverModule(nn.Module):
    """An `Observer` with its state: passes tensors, remembers what it is to remember, and quantizes when it is told to.

    What layers hold for a tensor between ``prepare`` and ``convert``. It has what they ask of a `TensorQuantizer`.

    Args:
        observer: what is remembered.
        trains: whether it observes in training mode alone, as quantization-aware training wants.
        fresh: whether parameters come from the tensor at hand, observed alone: of weights, which are at hand always.

    Attributes:
        observes: whether tensors are remembered; ``quantizes``: whether they are quantized.
        place: the number of the last tensor that was remembered, among those of all observers; 0 for none.
    """

    low: Tensor
    high: Tensor
    histogram: Tensor | None
    bit_width = None

    def __init__(self, observer: Observer, *, trains: bool = False, fresh: bool = False) -> None:
        super().__init__()
        self.observer, self.trains, self.fresh = observer, trains, fresh
        self.observes, self.quantizes, self.place = True, trains, 0
        for name, value in init(observer)._asdict().items():
            self.register_buffer(name, value)
        q = observer.quantizer
        # what is computed with the parameters must not take them for those of the tensor at hand
        fixed = observer.kind is ObserverKind.PLACEHOLDER or q.scale.source is ScaleSource.CONSTANT
        self._quantizer = q if fixed else q.replace(source=ScaleSource.RUNNING_STATISTIC)

    @property
    def quantizer(self) -> Quantizer | None:
        """The quantizer, or None while it is off."""
        return self._quantizer if self.quantizes else None

    @property
    def is_watching(self) -> bool:
        """Whether tensors pass as they are: it is in the calibration, or off."""
        return not self.quantizes

    @property
    def state(self) -> ObserverState:
        """What is remembered."""
        return ObserverState(self.low, self.high, self.histogram)

    def is_fed(self) -> bool:
        """Whether there are parameters."""
        return self.fresh or self.observer.kind is ObserverKind.PLACEHOLDER or is_fed(self.observer, self.state)

    def watch(self, x: Tensor) -> None:
        """Remembers ``x``, where it is to. Raises as `observe`; then nothing is remembered."""
        if not self.observes or self.fresh or (self.trains and not self.training):
            return
        self._keep(observe(self.observer, self.state, x))
        self.place = next(_PLACES)

    def forget(self) -> None:
        """Begins anew."""
        state = init(self.observer)
        if not state.low.numel():  # shapes that are known stay
            state = state._replace(
                low=torch.full_like(self.low, torch.inf), high=torch.full_like(self.high, -torch.inf)
            )
        self._keep(state)

    def _keep(self, state: ObserverState) -> None:
        for name, value in state._asdict().items():
            if value is not None:
                buffer = getattr(self, name)
                give_shape(buffer, value.shape)
                buffer.copy_(value)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, zeros where there is none; raises as `observed_qparams`."""
        scale, zero, *_ = observed_qparams(self.observer, self.state)
        return scale, torch.zeros_like(scale, dtype=torch.int32) if zero is None else zero

    def qparams(self, x: Tensor) -> QParams:
        """Parameters for ``x``, which is remembered first; scales in the dtype that it asks for."""
        self.watch(x)
        if self.observer.kind is ObserverKind.PLACEHOLDER:
            return choose_qparams(self.observer.quantizer, x)
        state = observe(self.observer, init(self.observer), x) if self.fresh else self.state
        return scaled_for(x.dtype, observed_qparams(self.observer, state))

    def waits(self) -> None:
        """Nothing is delayed."""

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
        """`fake_quantize` of ``x``."""
        return fake_quantize(self._quantizer, x, qparams)

    def forward(self, x: Tensor) -> Tensor:
        """``x``, remembered; quantized if it is to be."""
        if self.quantizes:
            return self.quantized(x, self.qparams(x), None)
        self.watch(x)
        return x

    def extra_repr(self) -> str:
        """The observer."""
        q = self.observer.quantizer
        return f"{self.observer.kind}, {q.format}{' affine' if q.affine else ''}, {q.granularity}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ObserverModule":
        def precise(t: Tensor) -> Tensor:
            moved = fn(t)
            return t.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        super()._apply(precise, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("low", "high"):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                give_shape(getattr(self, name), stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def enable_observer(module: nn.Module) -> None:
    """For ``model.apply``: an `ObserverModule` remembers from now on."""
    if isinstance(module, ObserverModule):
        module.observes = True


def disable_observer(module: nn.Module) -> None:
    """For ``model.apply``: an `ObserverModule` remembers nothing more."""
    if isinstance(module, ObserverModule):
        module.observes = False


def enable_fake_quant(module: nn.Module) -> None:
    """For ``model.apply``: an `ObserverModule` quantizes from now on."""
    if isinstance(module, ObserverModule):
        module.quantizes = True


def disable_fake_quant(module: nn.Module) -> None:
    """For ``model.apply``: an `ObserverModule` passes tensors as they are."""
    if isinstance(module, ObserverModule):
        module.quantizes = False


@dataclass(frozen=True)
class ObserverFactory:
    """What makes an `ObserverModule` of one kind when it is called.

    Args:
        kind: of the observer; ``statistic``: what counts as the range of one tensor.
        axis: whether scales are per channel.
        defaults: arguments that a call may replace.
    """

    kind: ObserverKind
    statistic: Statistic = Statistic.EXTREMES
    axis: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, **arguments: Any) -> ObserverModule:
        """The module. Arguments and errors as `observer_of`."""
        return ObserverModule(observer_of(self, **(dict(self.defaults) | arguments)))

    def with_args(self, **arguments: Any) -> "ObserverFactory":
        """The same with other defaults."""
        return ObserverFactory(self.kind, self.statistic, self.axis, dict(self.defaults) | arguments)


def observer_of(
    factory: ObserverFactory,
    *,
    dtype: torch.dtype = torch.quint8,
    qscheme: torch.qscheme | None = None,
    reduce_range: bool = False,
    quant_min: int | None = None,
    quant_max: int | None = None,
    eps: float = 2.0**-23,
    ch_axis: int = 0,
    **options: Any,
) -> Observer:
    """The `Observer` that arguments of torch's observers describe.

    Args:
        dtype: qint8, quint8, or the integers of 8 and 16 bits of these signs.
        qscheme: None for affine, per tensor or per channel as the factory is.
        reduce_range: one bit less: of given ends half.
        quant_min, quant_max: ends of the codes, both or none; those of a width, ``-127`` and ``127`` and the like.
        eps: the smallest scale. ch_axis: of channels.
        options: ``averaging_constant``, ``bins``; ``scale`` and ``zero_point`` of fixed parameters; and fields of a
            scale rule: ``percentile``, ``low_percentile``, ``search_steps``.
    Raises:
        TypeError: an argument that is none. ValueError: a dtype, scheme or range that is none of these; the message
            names it.
    """
    usual = torch.per_channel_affine if factory.axis else torch.per_tensor_affine
    per_channel, symmetric = _looked_up("qscheme", usual if qscheme is None else qscheme, QSCHEMES)
    if per_channel is not factory.axis:
        wanted = "per_channel" if factory.axis else "per_tensor"
        raise ValueError(f"`qscheme` of this observer must be {wanted}_..., got {qscheme}")
    bits, signed = _looked_up("dtype", dtype, DTYPES)
    format = _format(bits, signed, reduce_range, quant_min, quant_max)
    fixed = {name: options.pop(f"{name}") for name in ("scale", "zero_point") if name in options}
    own = {name: options.pop(name) for name in ("averaging_constant", "bins") if name in options}
    affine = not (symmetric and signed)
    q = catalog["uint8_affine_per_tensor" if affine else "int8_per_tensor"].replace(
        format=format,
        denominator=Denominator.HALF_RANGE,
        floor=eps,
        statistic=factory.statistic,
        **{f"{name}_value": value for name, value in fixed.items()},
        **({"source": ScaleSource.CONSTANT} if fixed else {}),
        **({"granularity": PerAxis(ch_axis)} if per_channel else {}),
        **options,
    )
    middle = None
    if symmetric and not signed and factory.kind not in (ObserverKind.FIXED, ObserverKind.PLACEHOLDER):
        middle = (format.hi + 1) // 2 if quant_min is None else (format.lo + format.hi) // 2
    return Observer(factory.kind, q, symmetric_at=middle, **own)


def _looked_up(name: str, value: Any, table: Mapping[Any, Any]) -> Any:
    if value not in table:
        raise ValueError(f"`{name}` must be one of {', '.join(map(str, table))}; got {value}")
    return table[value]


def _format(bits: int, signed: bool, reduce: bool, lo: int | None, hi: int | None) -> IntegerFormat:
    """The integers of these ends; None for those of the width, which ``reduce`` halves."""
    if (lo is None) != (hi is None):
        raise ValueError(f"`quant_min` and `quant_max` must both be given or both be None, got {lo} and {hi}")
    if lo is None or hi is None:
        return IntegerFormat(bits - reduce, signed)
    lo, hi = (lo // 2, hi // 2) if reduce else (lo, hi)
    for width in range(1, bits + 1):
        for narrow in (False, True)[: 1 + (width > 1)]:
            made = IntegerFormat(width, signed, narrow)
            if (made.lo, made.hi) == (lo, hi):
                return made
    raise ValueError(
        f"`quant_min`, `quant_max` must be the ends of {'signed' if signed else 'unsigned'} integers of 1 to {bits} "
        f"bits (or one less at one end), got {lo} and {hi}"
    )


MinMaxObserver = ObserverFactory(ObserverKind.MIN_MAX)
MovingAverageMinMaxObserver = ObserverFactory(ObserverKind.MOVING_AVERAGE)
PerChannelMinMaxObserver = ObserverFactory(ObserverKind.MIN_MAX, axis=True)
MovingAveragePerChannelMinMaxObserver = ObserverFactory(ObserverKind.MOVING_AVERAGE, axis=True)
HistogramObserver = ObserverFactory(ObserverKind.HISTOGRAM)
PercentileObserver = ObserverFactory(ObserverKind.MIN_MAX, Statistic.PERCENTILE)
MSEObserver = ObserverFactory(ObserverKind.MIN_MAX, Statistic.MSE)
FixedQParamsObserver = ObserverFactory(ObserverKind.FIXED)
PlaceholderObserver = ObserverFactory(ObserverKind.PLACEHOLDER)
