"""Where scales come from: the rule, and the names of what it may say. Nouns only."""

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import ClassVar

from .arithmetic import ComputeDtype, Division, RangeRule, Threshold, ZeroPointRule, ZeroPointScale
from .choice import check_count, check_int, check_number, choice
from .directions import DETERMINISTIC, Rounding
from .formats import FloatFormat


class ScaleSource(StrEnum):
    """Where a layer takes the scale from.

    The functions are stateless: `choose_qparams` is the statistic of the tensor, or the value where the rule has one.
    """

    STATISTIC = "statistic"  # of the tensor at hand, at every call
    CONSTANT = "constant"  # `scale_value`, and `zero_point_value` when affine, whatever the tensor
    RUNNING_STATISTIC = "running_statistic"  # average, or percentile of a window; frozen in evaluation
    LEARNED = "learned"  # a parameter; starts at `scale_value`, or at the statistic of the first tensor seen
    STATISTIC_THEN_LEARNED = "statistic_then_learned"  # `steps` tensors of running statistic, from then on a parameter


class Statistic(StrEnum):
    """Which number of a block its scale comes from. ``m`` takes the place of absmax, ``n`` is the size of the block.

    Sums are added in one fixed order (`sums.ordered_sum`), every operation rounded, on elements divided by the power of
    two below absmax, of which those below 2**-60 (float64: 2**-508) count as 0. See docs/scales.md.
    """

    EXTREMES = "extremes"  # m = absmax; affine: the smallest and the largest element
    PERCENTILE = "percentile"  # the `percentile` of magnitudes; affine: `low_percentile` and `percentile` of elements
    SIGNED_ABSMAX = "signed_absmax"  # m = absmax, and s < 0 where the first element so large is positive
    ABSMEAN = "absmean"  # m = sum(|x|) / n
    MEAN_SIGMA = "mean_sigma"  # m = mean + sigma * std of |x|; affine: mean -+ sigma * std of x; std divides by n - 1
    L1 = "l1"  # m = sum(|x|)
    L2 = "l2"  # m = sqrt(sum(x**2))
    RMS = "rms"  # m = sqrt(sum(x**2) / n)
    MSE = "mse"  # absmax * k / search_steps with the least sum((x_hat - x)**2), k = 1, 2, ...; affine: both ends
    HQO = "hqo"  # half-quadratic optimization from the extremes: of m; affine: of the zero point (HQQ), as they are


SEARCHED = (Statistic.MSE, Statistic.HQO)  # which begin with the extremes


class Restriction(StrEnum):
    """Which scales are allowed."""

    FLOAT = "float"  # any positive normal number
    LOG_FLOAT = "log_float"  # exp2(log2(s)), of our own, in float32: what layers keep as a logarithm; affine ones too
    POWER_OF_TWO = "power_of_two"  # 2**ceil(log2(absmax / d)), nothing is clamped (MX "RCEIL"); affine scales as well
    POWER_OF_TWO_FLOOR = "power_of_two_floor"  # 2**(floor(log2 absmax) - floor(log2 d)) (OCP MX 1.0, section 6.3)
    POWER_OF_TWO_CEIL = "power_of_two_ceil"  # 2**(ceil(log2 absmax) - floor(log2 d))
    POWER_OF_TWO_EVEN = "power_of_two_even"  # as FLOOR, absmax first rounded, halves up, to the format's significand
    QUANTIZED = "quantized"  # a number of `scale_format`, times one float32 of the whole array if `two_level` (NVFP4)
    INTEGER = "integer"  # the next integer, at least 1, nothing is clamped; affine scales as well
    INTEGER_NEAREST = "integer_nearest"  # the nearest integer, halves to even, at least 1; affine scales as well


INTEGER_SCALE = (Restriction.INTEGER, Restriction.INTEGER_NEAREST)


SHARED_EXPONENT = (Restriction.POWER_OF_TWO_FLOOR, Restriction.POWER_OF_TWO_CEIL, Restriction.POWER_OF_TWO_EVEN)


class Denominator(StrEnum):
    """What the magnitude is divided by in a symmetric scale; of int8: 127, 127.5, 128, one of two, 127.5, 128."""

    HI = "hi"  # absmax / hi
    HALF_RANGE = "half_range"  # absmax / ((hi - lo) / 2)
    LO = "lo"  # absmax / -lo
    LARGER = "larger"  # the larger of |min| / -lo and max / hi
    EDGE = "edge"  # absmax / (hi + 1/2): the largest code reaches half a step beyond its value (AQT)
    NEXT = "next"  # absmax / (hi + 1), of integers a power of two (Brevitas' fixed point)


# Fields of a `ScaleRule` that say how other systems choose
OF_OTHERS = (
    "scale_dtype",
    "scale_division",
    "range",
    "range_floor",
    "empty_range",
    "replace_below",
    "replacement",
    "zero_point_rule",
    "zero_point_scale",
)

# Fields of a `ScaleRule` that are numbers, as compilers are to see them: constants
DECIMALS = (
    "percentile",
    "low_percentile",
    "sigma",
    "window_percentile",
    "search_norm",
    "search_beta",
    "search_kappa",
    "floor",
    "range_floor",
    "empty_range",
    "replace_below",
    "replacement",
)


@dataclass(frozen=True, kw_only=True)
class ScaleRule:
    """How a scale is chosen from the smallest and largest element of a block (both widened to include 0).

    Or from another `Statistic` in the place of these.

    Symmetric: ``s = absmax / denominator``. Affine: ``s = (max - min) / (hi - lo)``. Computed in float32 (float64 for
    float64 input), then raised to ``floor``, then restricted (upwards, so never below the floor again). A block that
    holds NaN or an infinity has no scale: `choose_qparams` refuses it where it can raise, and gives NaN where compiled.

    Args:
        source: where a layer takes the scale from.
        restriction: which scales are allowed. ``d`` is the denominator; exponents are taken from bits.
        denominator: symmetric scales only.
        scale_format: of QUANTIZED scales, which lie between its smallest normal and its largest number; else None.
        two_level: whether QUANTIZED scales are multiples of ``t = absmax of the array / (d * scale_format.hi)``, the
            division rounded and raised to the floor: ``s = fl(t * scale_format(clamp(fl(fl(absmax / d) / t))))``.
        momentum: weight of the old value in a running statistic: ``new = momentum * old + (1 - momentum) * batch``;
            None for the mean of all.
        window: the running statistic is no average but the ``window_percentile`` of the scales of this many tensors,
            the last ones (``running.running_percentile``); None for the average.
        window_percentile: in percent, in (0, 100]: of n scales the ``floor(0.01 * p * n + 0.5)``-th from below, at
            least the first. 100 is the largest.
        batch_in_training: whether a running statistic is used in evaluation only, and in training that of the batch
            at hand, as in batch normalization.
        steps: how many tensors of training a statistic that is learned later is averaged over.
        scale_value: of CONSTANT scales, and where LEARNED ones start; rounded to the scale's dtype, then raised to the
            floor and restricted. None for the statistic.
        zero_point_value: the zero point beside it.
        floor: smallest scale; None for the smallest normal number of the scale's dtype (2**-126, 2**-1022), and for an
            arithmetic in the input dtype at least that of the input dtype (2**-14 for float16). 0.0 for none: scales
            may then be subnormal or 0, as no scale may otherwise, and 0 / 0 is NaN.
        statistic: which number of a block the scale comes from.
        percentile: in percent, in (0, 100]: the ``floor(0.01 * p * n + 0.5)``-th number from below, at least the first.
        low_percentile: in percent, in [0, 100): the ``ceil(0.01 * p * n)``-th number from below, at least the first.
        sigma: how many standard deviations MEAN_SIGMA goes beyond the mean; in [0, 2**20].
        learned_sigma: whether layers hold sigma as a parameter, which begins there; the functions use the number.
            MEAN_SIGMA and the source STATISTIC only, symmetric quantizers only.
        search_steps: how many candidates MSE tries, and HQO at most; in 1..1000.
        search_norm: p of the error ``|x - x_hat|**p`` that HQO makes small; in (0, 1].
        search_beta: how little HQO takes for an outlier at the beginning, in [2**-40, 2**40]; None for the usual 1e5
            (zero points: 10).
        search_kappa: what it is multiplied by in every step; in [1, 2].
        zero_point_rounding: direction in which ``low / s`` is rounded, ``z = lo - round(low / s)``.

    What follows is how others choose (`samebits.core.scale_rules`). ``m`` is the magnitude or the range.

    Args:
        scale_dtype: dtype in which the range and its division are rounded; None for that of the arithmetic. The zero
            point is computed in the wider of both.
        scale_division: ``m / d``, or ``m * fl(1 / d)`` where there are several scales (XLA, which so divides arrays by
            a constant).
        range: affine only: which range the codes span.
        range_floor: smallest m for the scale (the zero point does not see it): Brevitas 1e-10.
        empty_range: what m = 0 counts as for the scale: AQT 1.0.
        replace_below: scales below this are replaced, before the floor.
        replacement: by what: Qwix and onnxruntime 1.0, fbgemm 0.1; None for ``replace_below`` itself (torchao of 2024).
        zero_point_rule: how the zero point is rounded.
        zero_point_scale: by which scale it is computed.

    Attributes:
        of_others: names of the fields of `OF_OTHERS` that are not the default.
        decimals: the fields that `DECIMALS` names, as text.
        is_usual: whether there are no such fields, and a floor.
        signed: whether scales may be negative: then no code but one for 0 has the sign that its value has. (All are
            known from the start because compilers that trace the frontends would take the numbers themselves for
            variables of the program, and look at all that a property looks at whenever it runs.)

    Raises:
        TypeError: ``steps`` or ``window`` is no int, ``batch_in_training`` or ``learned_sigma`` no bool.
        ValueError: a name that is no member, a ``scale_format`` or ``two_level`` without QUANTIZED scales, ``momentum``
            outside [0, 1), ``steps`` or ``window`` below 1, ``floor`` neither 0.0 nor in [2**-126, 2**127], another
            negative number; a ``scale_value`` that is no positive normal float32, that is missing or not wanted; a
            percentile or another parameter of a statistic outside the range above.
    """

    source: ScaleSource = ScaleSource.STATISTIC
    restriction: Restriction = Restriction.FLOAT
    denominator: Denominator = Denominator.HI
    scale_format: FloatFormat | None = None
    two_level: bool = False
    momentum: float | None = 0.9
    window: int | None = None
    window_percentile: float = 100.0
    batch_in_training: bool = False
    steps: int = 300
    scale_value: float | None = None
    zero_point_value: float = 0
    floor: float | None = None
    statistic: Statistic = Statistic.EXTREMES
    percentile: float = 99.999
    low_percentile: float = 0.001
    sigma: float = 3.0
    learned_sigma: bool = False
    search_steps: int = 20
    search_norm: float = 0.7
    search_beta: float | None = None
    search_kappa: float = 1.01
    zero_point_rounding: Rounding = Rounding.TIES_TO_EVEN
    scale_dtype: ComputeDtype | None = None
    scale_division: Division = Division.DIVIDE
    range: RangeRule = RangeRule.WITH_ZERO
    range_floor: float = 0.0
    empty_range: float = 0.0
    replace_below: float | Threshold = 0.0
    replacement: float | None = None
    zero_point_rule: ZeroPointRule = ZeroPointRule.ROUNDED_QUOTIENT
    zero_point_scale: ZeroPointScale = ZeroPointScale.USED
    of_others: ClassVar[tuple[str, ...]] = ()
    decimals: ClassVar[tuple[str, ...]] = ()
    is_usual: ClassVar[bool] = True
    signed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name, kind in (("source", ScaleSource), ("restriction", Restriction), ("denominator", Denominator)):
            object.__setattr__(self, name, choice(name, getattr(self, name), kind))
        self._check_rules_of_others()
        self._check_statistic()
        if (self.restriction is Restriction.QUANTIZED) != isinstance(self.scale_format, FloatFormat):
            raise ValueError(
                f"`scale_format` must be a FloatFormat for 'quantized' scales, else None, got {self.scale_format!r}"
            )
        if self.two_level and self.restriction is not Restriction.QUANTIZED:
            raise ValueError(f"`two_level` must be False unless scales are 'quantized', got {self.two_level!r}")
        self._check_source()
        if self.signed:
            self._check_signed()
        if self.floor is not None and self.floor != 0 and not 2.0**-126 <= self.floor <= 2.0**127:
            raise ValueError(f"`floor` must be None, 0.0 or in [2**-126, 2**127], got {self.floor!r}")
        usual = {f.name: f.default for f in fields(self)}
        others = tuple(name for name in OF_OTHERS if getattr(self, name) != usual[name])
        object.__setattr__(self, "of_others", others)
        object.__setattr__(self, "is_usual", not others and self.floor != 0)
        object.__setattr__(self, "decimals", tuple(repr(getattr(self, name)) for name in DECIMALS))

    @property
    def learns_logarithm(self) -> bool:
        """Whether layers keep the logarithm of the scale: a parameter, also while it is a statistic still."""
        learned = (ScaleSource.LEARNED, ScaleSource.STATISTIC_THEN_LEARNED)
        return self.restriction is Restriction.LOG_FLOAT and self.source in learned

    def _check_statistic(self) -> None:
        object.__setattr__(self, "statistic", choice("statistic", self.statistic, Statistic))
        object.__setattr__(self, "signed", self.statistic is Statistic.SIGNED_ABSMAX)
        rounding = choice("zero_point_rounding", self.zero_point_rounding, Rounding)
        object.__setattr__(self, "zero_point_rounding", rounding)
        if rounding not in DETERMINISTIC:
            raise ValueError(f"`zero_point_rounding` must be {', '.join(DETERMINISTIC)}, got '{rounding}'")
        for name in ("percentile", "low_percentile", "sigma", "window_percentile"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("percentile", "window_percentile"):
            if not 0 < getattr(self, name) <= 100:
                raise ValueError(f"`{name}` must be in (0, 100], got {getattr(self, name)!r}")
        if not 0 <= self.low_percentile < 100:
            raise ValueError(f"`low_percentile` must be in [0, 100), got {self.low_percentile!r}")
        if not 0 <= self.sigma <= 2**20:
            raise ValueError(f"`sigma` must be in [0, 2**20], got {self.sigma!r}")
        self._check_learned_sigma()
        check_int("search_steps", self.search_steps)
        if not 1 <= self.search_steps <= 1000:
            raise ValueError(f"`search_steps` must be in 1..1000, got {self.search_steps}")
        for name, low, high in (("search_beta", 2.0**-40, 2.0**40), ("search_kappa", 1.0, 2.0)):
            value = getattr(self, name)
            if value is not None or name == "search_kappa":
                object.__setattr__(self, name, float(value))
                if not low <= value <= high:
                    raise ValueError(f"`{name}` must be in [{low:g}, {high:g}], got {value!r}")
        object.__setattr__(self, "search_norm", float(self.search_norm))
        if not 0 < self.search_norm <= 1:
            raise ValueError(f"`search_norm` must be in (0, 1], got {self.search_norm!r}")

    def _check_learned_sigma(self) -> None:
        if not isinstance(self.learned_sigma, bool):
            raise TypeError(f"`learned_sigma` must be a bool, got {self.learned_sigma!r}")
        if self.learned_sigma and (self.statistic, self.source) != (Statistic.MEAN_SIGMA, ScaleSource.STATISTIC):
            raise ValueError(
                "`learned_sigma` must be False unless the statistic is 'mean_sigma' and the source 'statistic', "
                f"got '{self.statistic}' and '{self.source}'"
            )

    def _check_signed(self) -> None:
        if self.restriction is not Restriction.FLOAT:
            raise ValueError(f"`restriction` must be 'float' for statistic 'signed_absmax', got '{self.restriction}'")
        averaged = (ScaleSource.RUNNING_STATISTIC, ScaleSource.STATISTIC_THEN_LEARNED)
        if self.source in averaged:
            raise ValueError(
                f"`source` must not be '{self.source}' for the statistic 'signed_absmax': scales of both signs have no "
                "meaningful average"
            )

    def _check_source(self) -> None:
        for name in ("momentum", "scale_value", "zero_point_value"):
            if getattr(self, name) is not None or name == "zero_point_value":
                check_number(name, getattr(self, name))
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1), got {self.momentum!r} (None is the mean)")
        if not isinstance(self.batch_in_training, bool):
            raise TypeError(f"`batch_in_training` must be a bool, got {self.batch_in_training!r}")
        check_count("steps", self.steps, 1)
        if self.window is not None:
            check_count("window", self.window, 1)
        if self.scale_value is None:
            if self.source is ScaleSource.CONSTANT or self.zero_point_value != 0:
                raise ValueError("`scale_value` must be a number for 'constant' scales or with a `zero_point_value`")
            return
        if self.source not in (ScaleSource.CONSTANT, ScaleSource.LEARNED):
            raise ValueError(f"`scale_value` must be None for '{self.source}' scales, got {self.scale_value!r}")
        if self.restriction is Restriction.QUANTIZED:
            raise ValueError(f"`scale_value` must be None for 'quantized' scales, got {self.scale_value!r}")
        if not 2.0**-126 <= self.scale_value <= 2.0**128 * (1 - 2.0**-24):
            raise ValueError(f"`scale_value` must be a positive normal float32, got {self.scale_value!r}")

    def _check_rules_of_others(self) -> None:
        for name, kind in (
            ("scale_dtype", ComputeDtype),
            ("scale_division", Division),
            ("range", RangeRule),
            ("zero_point_rule", ZeroPointRule),
            ("zero_point_scale", ZeroPointScale),
        ):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, choice(name, getattr(self, name), kind))
        if isinstance(self.replace_below, str):
            object.__setattr__(self, "replace_below", choice("replace_below", self.replace_below, Threshold))
        for name in ("range_floor", "empty_range", "replace_below", "replacement"):
            value = getattr(self, name)
            if not isinstance(value, Threshold | None) and not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be a finite number of at least 0, got {value!r}")


def inverse_betas(rule: ScaleRule, affine: bool) -> list[float]:
    """``1 / beta`` at each step of HQO; 0 below 2**-100."""
    given, usual = rule.decimals[5], 10.0 if affine else 1e5
    beta = usual if given == "None" else float(given)
    found = []
    for _ in range(rule.search_steps):
        found.append(1 / beta if beta <= 2.0**100 else 0.0)
        beta = beta * float(rule.decimals[6])
    return found
