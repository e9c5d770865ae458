"""What a quantizer is: frozen descriptions that all three implementations share. Nouns only."""

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple

from .arithmetic import Arithmetic, ZeroPointDomain
from .choice import check_count, check_number, choice
from .directions import DETERMINISTIC, LearnedRounding, Rounding
from .formats import BinaryFormat, CodebookFormat, FloatFormat, Format, IntegerFormat, TernaryFormat
from .granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken
from .scales import INTEGER_SCALE, Denominator, Restriction, ScaleRule, ScaleSource, Statistic


class Gradient(StrEnum):
    """Surrogate derivative of fake quantization. ``inside`` is 1 where the code was not clamped, else 0.

    In all of them, with ``m`` the factor for x: ``d x = g * m``,
    ``d scale = sum(g * ((code - z) - m * x / s))`` and ``d zero_point = sum(g * s * (m - 1))`` over each block. With
    floating-point zero points ``sum(g * ((code - mid) - m * ((x - z) / s)))`` and ``sum(g * (1 - m))``.
    """

    CLIPPED = "clipped"  # straight-through inside the range: m = inside (torch fake quantize, Brevitas TensorClamp)
    PASS_THROUGH = "pass_through"  # straight-through everywhere: m = 1 (Brevitas TensorClampSte)
    LEARNED_SCALE = "learned_scale"  # as CLIPPED, d scale, d zero_point / sqrt(n * hi) (LSQ, arXiv 1902.08153)
    CLIPPED_QUOTIENT = "clipped_quotient"  # m = [lo <= x / s <= hi], before rounding (AQT `clip_gradient`); symmetric
    # PACT, arXiv 1805.06085, with alpha = hi * s of an unsigned integer format: m = [0 <= x / s < hi], and d scale =
    # sum(g * code) over what does not pass, so d alpha = sum(g) where x >= alpha
    LEARNED_CLIP = "learned_clip"


# Rules that look at the quotient itself, not at the code it rounds to
ON_QUOTIENT = (Gradient.CLIPPED_QUOTIENT, Gradient.LEARNED_CLIP)


class ZeroPoint(StrEnum):
    """Where zero lies."""

    NONE = "none"  # symmetric: zero is code 0, and qparams.zero_point is None
    MIN_MAX = "min_max"  # affine: from the smallest and largest element


class QParams(NamedTuple):
    """Parameters of a quantizer for one array.

    Attributes:
        scale: float32 (float64 for float64 arrays), shape `granularity.qparams_shape`, positive normal numbers. One of
            bfloat16 or float16 counts as the float32 scale of the same value, as which it is computed with; its
            gradient alone is of its own dtype: the one in float32, rounded.
        zero_point: None when symmetric, else integers in [lo, hi] of the scale's shape, of any integer dtype, or of a
            floating one that a scale may have, so that it can be differentiated; in other domains numbers of such a
            dtype. The gradient has the dtype of a floating zero point, else that of a scale of the array's.
        bit_width: None: the format's own width. Else one number, an integer (as a seed may be given) or of the scale's
            dtype, rounded to nearest even: codes are then those of a format of that width, at most the format's own, in
            whose storage they stay.
        seed: of stochastic rounding, which alone looks at it: integer in [0, 2**32), None for 0: of Python or NumPy, or
            a 0-d array of any integer dtype; a bool is none. Where it is traced, its value cannot be looked at and its
            last 32 bits count. The same seed draws the same for the same place in arrays of the same shape, so every
            step of a training needs its own.
        rounding: of learned rounding, which alone looks at it: v, shape of the array, dtype of the scale; None for
            zeros, which round toward negative.
    """

    scale: Any
    zero_point: Any = None
    bit_width: Any = None
    seed: Any = None
    rounding: Any = None


class QuantizerGradients(NamedTuple):
    """Gradients of `fake_quantize` towards its inputs: as `x`, the scale and the zero point (None when symmetric).

    That of a bit width b, None where there is none: ``sum(g * s * d hi/db)`` over all codes that were clamped to hi,
    and the same with lo, in the whole array; see `core.bit_width.range_slopes`. And as ``qparams.rounding``, where it
    is given and rounding is learned, else None.
    """

    x: Any
    scale: Any
    zero_point: Any = None
    bit_width: Any = None
    rounding: Any = None


class Grid(NamedTuple):
    """Numbers, and the direction in which others are rounded to them: what of a quantizer `grid` looks at."""

    format: Format
    rounding: Rounding = Rounding.TIES_TO_EVEN


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """A quantizer, whole: two equal descriptions compute the same bits. Hashable, so a static argument under `jax.jit`.

    Args:
        format: which numbers exist.
        granularity: which elements share a scale.
        scale: how the scale is chosen.
        zero_point: where zero lies.
        rounding: direction.
        gradient: surrogate derivative.
        arithmetic: how the formula becomes machine operations.
        learned_bits: where a bit width begins that a layer learns; None for a width that stays. Needs scales that do
            not come from the width: constant, learned, or a statistic that is learned later.
        delay: how many tensors of training a layer passes unquantized before it begins; the functions know no time.
        learned_rounding: what `Rounding.LEARNED` does with its parameter.

    Attributes:
        affine: whether there is a zero point.
        relaxed: whether `fake_quantize` gives what lies between two codes: learned rounding while it is soft.
        deterministic: whether rounding looks at nothing but the number.
        nearest_integers: whether codes are integers without a zero point, rounded to nearest even, as usual: for which
            compilers get the shortest form.
        ends: smallest and largest number of the format as text, which is a constant to a compiler that takes numbers
            for variables.
        usual: whether codes and values are those of the default arithmetic, perhaps with floating-point zero points, at
            scales of at least the smallest normal number.
        is_usual: whether the scale is chosen as usual, too. (All are known from the start, as those of `Arithmetic`
            are.)

    Raises:
        TypeError: a field of the wrong kind.
        ValueError: a name that is no member, a symmetric quantizer whose format has no positive code, a negative
            ``delay``, a ``zero_point_value`` that is none, or ``learned_bits`` beyond the format's or not possible.
    """

    format: Format
    granularity: Granularity = field(default_factory=PerTensor)
    scale: ScaleRule = field(default_factory=ScaleRule)
    zero_point: ZeroPoint = ZeroPoint.NONE
    rounding: Rounding = Rounding.TIES_TO_EVEN
    gradient: Gradient = Gradient.CLIPPED
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    learned_bits: float | None = None
    delay: int = 0
    learned_rounding: LearnedRounding = field(default_factory=LearnedRounding)
    affine: ClassVar[bool] = False
    relaxed: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    nearest_integers: ClassVar[bool] = False
    ends: ClassVar[tuple[str, str]] = ("", "")
    usual: ClassVar[bool] = True
    is_usual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, kind in (
            ("format", (IntegerFormat, FloatFormat, BinaryFormat, TernaryFormat, CodebookFormat)),
            ("granularity", (PerTensor, PerAxis, PerToken, PerGroup, PerBlock)),
            ("scale", ScaleRule),
            ("arithmetic", Arithmetic),
            ("learned_rounding", LearnedRounding),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"`{name}` must be of type {_names(kind)}, got {getattr(self, name)!r}")
        for name, enum in (("zero_point", ZeroPoint), ("rounding", Rounding), ("gradient", Gradient)):
            object.__setattr__(self, name, choice(name, getattr(self, name), enum))
        object.__setattr__(self, "affine", self.zero_point is not ZeroPoint.NONE)
        object.__setattr__(self, "relaxed", self.rounding is Rounding.LEARNED and self.learned_rounding.soft)
        object.__setattr__(self, "deterministic", self.rounding in DETERMINISTIC)
        object.__setattr__(self, "ends", (repr(float(self.format.lo)), repr(float(self.format.hi))))
        default = self.arithmetic.is_default or (self.affine and self.arithmetic.has_float_zeros)
        usual = default and self.scale.floor != 0
        object.__setattr__(self, "usual", usual)
        nearest = self.rounding is Rounding.TIES_TO_EVEN and isinstance(self.format, IntegerFormat)
        object.__setattr__(self, "nearest_integers", nearest and usual and not self.affine)
        object.__setattr__(self, "is_usual", usual and self.scale.is_usual)
        if self.affine and not isinstance(self.format, IntegerFormat):
            raise ValueError(f"`zero_point` must be 'none' for {self.format}: only integers have one")
        nearest_only = isinstance(self.format, BinaryFormat | TernaryFormat | CodebookFormat)
        if nearest_only and self.rounding is not Rounding.TIES_TO_EVEN:
            raise ValueError(f"`rounding` must be 'ties_to_even' for {self.format}, got '{self.rounding}'")
        if self.gradient in ON_QUOTIENT and (self.affine or not isinstance(self.format, IntegerFormat | FloatFormat)):
            raise ValueError(f"`gradient` '{self.gradient}' is for symmetric integers and floats, got {self.format}")
        if self.gradient is Gradient.LEARNED_CLIP and not (
            isinstance(self.format, IntegerFormat) and not self.format.lo
        ):
            raise ValueError(f"`gradient` 'learned_clip' is for unsigned integers, got {self.format}")
        if self.rounding is Rounding.LEARNED and not isinstance(self.format, IntegerFormat):
            raise ValueError(f"`rounding` must not be 'learned' for {self.format}: only that of integers is")
        if self.zero_point is ZeroPoint.NONE and self.format.hi <= 0:
            raise ValueError(f"`format` of a symmetric quantizer must have a positive code, got {self.format}")
        plain = (Restriction.FLOAT, Restriction.LOG_FLOAT, Restriction.POWER_OF_TWO, *INTEGER_SCALE)
        if self.scale.restriction not in plain and (self.affine or self.scale.denominator is Denominator.LARGER):
            raise ValueError(
                f"`restriction` must be {', '.join(plain)} where the scale is affine or the larger of two, "
                f"got '{self.scale.restriction}'"
            )
        self._check_statistic()
        if self.scale.denominator is Denominator.LO and self.format.lo == 0:
            raise ValueError(f"`denominator` 'lo' needs a format with negative codes, got {self.format}")
        check_count("delay", self.delay, 0)
        if self.rounding is Rounding.LEARNED and (self.delay or self.learned_bits is not None):
            raise ValueError("`delay` must be 0 and `learned_bits` None where rounding is learned")
        self._check_zero_point_value()
        if self.learned_bits is not None:
            self._check_learned_bits(self.learned_bits)

    def _check_learned_bits(self, bits: float) -> None:
        check_number("learned_bits", bits)
        if not isinstance(self.format, IntegerFormat) or not 1 <= bits <= self.format.bits:
            raise ValueError(f"`learned_bits` must be None, or in [1, bits] of an integer format, got {bits!r}")
        if self.scale.source in (ScaleSource.STATISTIC, ScaleSource.RUNNING_STATISTIC):
            raise ValueError(f"`learned_bits` must be None for '{self.scale.source}' scales, got {bits!r}")
        if self.gradient in ON_QUOTIENT:
            raise ValueError(f"`learned_bits` must be None for the gradient '{self.gradient}', got {bits!r}")

    def _check_zero_point_value(self) -> None:
        value, lo, hi = self.scale.zero_point_value, self.format.lo, self.format.hi
        if not self.affine and value != 0:
            raise ValueError(f"`zero_point_value` must be 0 where the quantizer is symmetric, got {value!r}")
        integers = self.affine and self.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
        if integers and self.scale.scale_value is not None and not (lo <= value <= hi and value == int(value)):
            raise ValueError(f"`zero_point_value` must be an integer in [{lo}, {hi}], got {value!r}")

    def _check_statistic(self) -> None:
        statistic = self.scale.statistic
        two_ends = (Statistic.EXTREMES, Statistic.PERCENTILE, Statistic.MEAN_SIGMA, Statistic.MSE, Statistic.HQO)
        if self.affine and statistic not in two_ends:
            raise ValueError(f"`statistic` of an affine scale must be {', '.join(two_ends)}, got '{statistic}'")
        if self.affine and self.scale.learned_sigma:
            raise ValueError("`learned_sigma` must be False for an affine quantizer, got True")
        if self.scale.denominator is Denominator.LARGER and statistic is not Statistic.EXTREMES:
            raise ValueError(f"`statistic` must be 'extremes' for the denominator 'larger', got '{statistic}'")
        if self.scale.signed and not (isinstance(self.format, IntegerFormat) and self.format.lo < 0):
            raise ValueError(f"`statistic` 'signed_absmax' is for signed integers, got {self.format}")
        if self.scale.signed and (self.rounding is Rounding.LEARNED or self.learned_bits is not None):
            raise ValueError("`statistic` must not be 'signed_absmax' where a rounding or a bit width is learned")
        if statistic is Statistic.MSE and (self.scale.two_level or not 2.0**-40 <= self.format.hi <= 2.0**40):
            raise ValueError(
                "`statistic` 'mse' needs a format whose largest number is in [2**-40, 2**40] and scales of one level, "
                f"got {self.format}, two_level={self.scale.two_level}"
            )

        if statistic is Statistic.HQO and (self.scale.two_level or not isinstance(self.format, IntegerFormat)):
            raise ValueError(
                "`statistic` 'hqo' needs a format of integers and scales of one level, "
                f"got {self.format}, two_level={self.scale.two_level}"
            )
        whole = self.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
        if statistic is Statistic.HQO and self.affine and whole:
            raise ValueError(
                "`statistic` 'hqo' of an affine scale needs a `zero_point_domain` of 'float' or 'shift', got 'integer' "
                "(where rounding takes back what a step moves a zero point, less than half a code)"
            )

    @property
    def decided(self) -> "Quantizer":
        """This quantizer with rounding to whole codes."""
        return self.replace(soft=False) if self.relaxed else self

    def replace(self, **changes: Any) -> "Quantizer":
        """This quantizer with fields changed: its own, or those of its format, scale rule, arithmetic and so on.

        ``q.replace(bits=4, rounding="toward_zero", division="reciprocal", source="learned")`` changes one field each of
        the format, the quantizer, the arithmetic and the scale rule; no two of the parts share a field name.

        Raises:
            TypeError: a name that is no field; the message lists those that are.
        """
        own = {f.name for f in fields(self)}
        for part in ("format", "scale", "arithmetic", "learned_rounding"):
            inner = changes.get(part, getattr(self, part))
            names = {f.name for f in fields(inner) if f.init} - own
            inside = {name: changes.pop(name) for name in list(changes) if name in names}
            if inside:
                changes[part] = replace(inner, **inside)
        unknown = set(changes) - own
        if unknown:
            parts = (self, self.format, self.scale, self.arithmetic, self.learned_rounding)
            allowed = sorted({f.name for part in parts for f in fields(part) if f.init})
            raise TypeError(f"no field {', '.join(sorted(unknown))} in a quantizer; fields are {', '.join(allowed)}")
        return replace(self, **changes)


def _names(kind: Any) -> str:
    return " or ".join(k.__name__ for k in kind) if isinstance(kind, tuple) else kind.__name__
