"""What watches a tensor while a model is calibrated, and which tensors of a layer are watched. Nouns only.

An `Observer` says what is remembered of the tensors that it sees, and for which quantizer. What it computes stands in
`samebits.core.observers`, and under ``ptq/observers.py`` in the rooms of the frameworks.
"""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, NamedTuple

from .arithmetic import ZeroPointDomain
from .catalog import catalog
from .choice import check_count, check_int, check_number, choice
from .descriptions import Quantizer
from .dialects import dialects
from .formats import IntegerFormat
from .granularity import PerAxis, PerTensor
from .scales import Denominator, ScaleRule, Statistic


class ObserverKind(StrEnum):
    """What is remembered from one tensor to the next. A batch has a range: its `Statistic`, by default the extremes."""

    MIN_MAX = "min_max"  # the smallest and the largest end of all ranges
    MOVING_AVERAGE = "moving_average"  # of each end: v + c * (new - v), the first copied
    HISTOGRAM = "histogram"  # counts in `bins` bins; the range with the least error of `levels` steps is searched in it
    FIXED = "fixed"  # nothing: the scale value (and the zero point value) of the quantizer
    PLACEHOLDER = "placeholder"  # nothing, and there are no parameters: each tensor chooses its own


RANGES = (ObserverKind.MIN_MAX, ObserverKind.MOVING_AVERAGE)
FED = (*RANGES, ObserverKind.HISTOGRAM)  # which have to see tensors


class ObserverState(NamedTuple):
    """What an observer remembers; the same names are those of a checkpoint.

    Attributes:
        low, high: ends of the range, float32, shape `granularity.qparams_shape`; before the first tensor infinity and
            -infinity of shape (), or (0,) where the shape is not known yet.
        histogram: counts, float32, ``(bins,)``; None for other kinds.
    """

    low: Any
    high: Any
    histogram: Any = None


@dataclass(frozen=True)
class Observer:
    """How a quantizer gets constant parameters from the tensors of a calibration.

    Args:
        kind: what is remembered.
        quantizer: whose parameters it finds, or its name in the catalog: per tensor, or per axis for the kinds of
            `RANGES`; its statistic is what counts as the range of one tensor (a percentile, the MSE search).
        averaging_constant: ``c`` of the moving average, above 0 and at most 1.
        bins: of a histogram.
        levels: into how many steps the search of a histogram cuts a range; None for all codes of the storage, 256.
        symmetric_at: None for the quantizer's own rule; else the range is made symmetric, and this code of an affine
            quantizer of unsigned integers stands for 0.

    Raises:
        TypeError, ValueError, KeyError: a field of the wrong kind, or a quantizer that the kind has no parameters for;
            the message names it.
    """

    kind: ObserverKind
    quantizer: Quantizer
    averaging_constant: float = 0.01
    bins: int = 2048
    levels: int | None = None
    symmetric_at: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", choice("kind", self.kind, ObserverKind))
        if isinstance(self.quantizer, str):
            object.__setattr__(self, "quantizer", catalog[self.quantizer])
        if not isinstance(self.quantizer, Quantizer):
            raise TypeError(f"`quantizer` must be a catalog name or a Quantizer, got {self.quantizer!r}")
        check_number("averaging_constant", self.averaging_constant)
        if not 0 < self.averaging_constant <= 1:
            raise ValueError(f"`averaging_constant` must be in (0, 1], got {self.averaging_constant!r}")
        check_count("bins", self.bins, 2)
        if self.levels is not None:
            check_count("levels", self.levels, 2)
        self._check_quantizer()
        self._check_symmetric()

    def _check_quantizer(self) -> None:
        q, kind = self.quantizer, self.kind
        if kind is ObserverKind.PLACEHOLDER:
            return
        allowed = (PerTensor, PerAxis) if kind in RANGES else (PerTensor,)
        if not isinstance(q.granularity, allowed):
            names = " or ".join(one.__name__ for one in allowed)
            raise ValueError(f"`quantizer` of a '{kind}' observer must be {names}, got {q.granularity}")
        if kind is ObserverKind.FIXED and q.scale.scale_value is None:
            raise ValueError("`quantizer` of a 'fixed' observer must have a `scale_value`, got None")
        if kind is ObserverKind.HISTOGRAM and not isinstance(q.format, IntegerFormat):
            raise ValueError(f"`quantizer` of a 'histogram' observer must be of integers, got {q.format}")
        statistics = (Statistic.EXTREMES, Statistic.PERCENTILE, Statistic.MEAN_SIGMA, Statistic.MSE)
        allowed_here = statistics if kind in RANGES else (Statistic.EXTREMES,)
        if kind in FED and q.scale.statistic not in allowed_here:
            names = ", ".join(f"'{one}'" for one in allowed_here)
            raise ValueError(f"`statistic` under a '{kind}' observer must be {names}, got '{q.scale.statistic}'")
        if kind in FED and q.scale.scale_value is not None:
            raise ValueError(f"`scale_value` under a '{kind}' observer must be None, got {q.scale.scale_value!r}")
        if q.learned_bits is not None or q.delay or q.scale.two_level:
            raise ValueError("`quantizer` of an observer must have no learned width, no delay and scales of one level")

    def _check_symmetric(self) -> None:
        code, q = self.symmetric_at, self.quantizer
        if code is None:
            return
        check_int("symmetric_at", code)
        integers = isinstance(q.format, IntegerFormat) and q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
        if not (q.affine and integers and q.format.lo <= code <= q.format.hi and self.kind in FED):
            raise ValueError(
                "`symmetric_at` must be a code of an affine quantizer of integers under a kind that is fed, "
                f"got {code} for {q.format}{' affine' if q.affine else ''}, '{self.kind}'"
            )
        if q.scale.statistic is not Statistic.EXTREMES:
            raise ValueError(f"`statistic` must be 'extremes' beside `symmetric_at`, got '{q.scale.statistic}'")

    @property
    def of_scale(self) -> Quantizer:
        """The quantizer whose rule gives the scale: the symmetric one where the range is made symmetric."""
        return self.quantizer if self.symmetric_at is None else self.quantizer.replace(zero_point="none")

    @property
    def steps(self) -> int:
        """How many steps the search of a histogram cuts a range into."""
        bits = {"int8": 8, "uint8": 8, "int16": 16, "int32": 32}[self.quantizer.format.storage]
        return 1 << bits if self.levels is None else self.levels

    def replace(self, **changes: Any) -> "Observer":
        """This observer with fields changed: its own, or those of its quantizer."""
        own = {name: changes.pop(name) for name in list(changes) if name in self.__dataclass_fields__}
        quantizer = own.pop("quantizer", self.quantizer)
        return replace(self, quantizer=quantizer.replace(**changes) if changes else quantizer, **own)


def check_fed(fed: bool, name: str = "this observer") -> None:
    """RuntimeError for parameters of an observer that has seen nothing."""
    if not fed:
        raise RuntimeError(
            f"calibration never run: {name} has seen no tensor; run the prepared model on some batches before its "
            "parameters are asked for"
        )


def check_has_parameters(observer: Observer) -> None:
    """RuntimeError for parameters of a placeholder."""
    if observer.kind is ObserverKind.PLACEHOLDER:
        raise RuntimeError("a 'placeholder' observer has no parameters: each tensor chooses its own")


def check_observed(finite: bool) -> None:
    """ValueError for a tensor with NaN or an infinity, of which nothing is remembered then."""
    if not finite:
        raise ValueError("`x` must be finite to be observed, got NaN or an infinity")


# Rules of torch's observers, in our arithmetic: scales of at least 2**-23, magnitudes over half the range
_RULES: dict[str, Any] = {"denominator": Denominator.HALF_RANGE, "floor": 2.0**-23}


def described(role: str, value: Any) -> Observer | None:
    """The observer that an argument is, or that what it makes has under that name. TypeError for anything else."""
    made = getattr(value, "observer", value)
    if callable(made):
        made = getattr(made := made(), "observer", made)
    if made is not None and not isinstance(made, Observer):
        raise TypeError(f"`{role}` must be an Observer, what makes one, or None; got {value!r}")
    return made


@dataclass(frozen=True)
class QConfig:
    """What a layer observes.

    Args:
        activation: of what comes into a layer: an `Observer`, or what makes one when it is called (a class or function
            whose result has it as ``observer``). None leaves floats.
        weight: of its weight; per axis means per output channel, wherever a layer has them.
    Raises:
        TypeError: anything else.
    """

    activation: Any  # then an `Observer` or None
    weight: Any

    def __post_init__(self) -> None:
        for role in ("activation", "weight"):
            object.__setattr__(self, role, described(role, getattr(self, role)))


_ACTIVATION = catalog["uint8_affine_per_tensor"].replace(bits=7, **_RULES)  # 0..127
_WEIGHT = catalog["int8_per_tensor"].replace(narrow=False, **_RULES)

# As torch.ao.quantization under these names; `default_histogram_qconfig` as its default for x86
default_qconfig = QConfig(Observer(ObserverKind.MIN_MAX, _ACTIVATION), Observer(ObserverKind.MIN_MAX, _WEIGHT))
default_per_channel_qconfig = QConfig(
    Observer(ObserverKind.MIN_MAX, _ACTIVATION),
    Observer(ObserverKind.MIN_MAX, _WEIGHT.replace(granularity=PerAxis(0))),
)
default_histogram_qconfig = QConfig(
    Observer(ObserverKind.HISTOGRAM, _ACTIVATION),
    Observer(ObserverKind.MIN_MAX, _WEIGHT.replace(granularity=PerAxis(0))),
)
default_qat_qconfig = QConfig(
    Observer(ObserverKind.MOVING_AVERAGE, _ACTIVATION), Observer(ObserverKind.MOVING_AVERAGE, _WEIGHT)
)

# As torch.ao.quantization.quantize_dynamic: activations of each call in 7 bits, scales and zero points by ATen's rule
_OF_CALLS = {k: v for k, v in dialects["torch_dynamic"].items() if k in {f.name for f in fields(ScaleRule)}}
default_dynamic_qconfig = QConfig(
    Observer(ObserverKind.PLACEHOLDER, catalog["uint8_affine_per_tensor"].replace(bits=7, **_OF_CALLS)),
    Observer(ObserverKind.MIN_MAX, _WEIGHT),
)
