"""What the fields of a declared quantizer say: from names that users of Brevitas know to a `Quantizer`.

`Declared` has the fields, with their defaults, and the attribute ``quantizer`` that they resolve to; `WeightQuant`,
`ActQuant` and `BiasQuant` are the kinds of tensor, and everything else is one group of fields each, to inherit from.
`samebits.core.quant` puts the ready quantizers together.

    ============================  =====================================================================================
    field                         values
    ============================  =====================================================================================
    ``quant_type``                ``int``, ``float``, ``binary``, ``ternary``
    ``bit_width``, ``signed``,    of integers
    ``narrow_range``
    ``exponent_bit_width``,       of floats; ``float_standard`` is ``ieee`` (every code a number), ``ocp`` or ``fnuz``
    ``mantissa_bit_width``,
    ``saturating``
    ``scaling_impl_type``         ``stats``, ``parameter_from_stats``, ``parameter``, ``const``; None for a scale of 1;
                                  of activations ``dynamic``: the statistic of the tensor at hand
    ``scaling_stats_op``          ``max``, ``min_max``, ``percentile``, ``percentile_interval``, ``ave``,
                                  ``mean_sigma_std``, ``signed_max``, ``mse``, ``hqo``
    ``restrict_scaling_type``     ``fp``, ``signed_fp``, ``log_fp``, ``int``, ``power_of_two`` (upwards),
                                  ``power_of_two_floor``, ``power_of_two_even``
    ``scaling_per_output_type``   ``tensor``, ``channel``, ``group`` (of ``group_size``)
    ``float_to_int_impl_type``    ``round``, ``ceil``, ``floor``, ``round_to_zero``, ``dpu``, ``stochastic_round``,
                                  ``learned_round``
    ``bit_width_impl_type``       ``const``, ``parameter``
    ``dialect``                   None, or a name of `core.dialects`: the arithmetic of another system
    ============================  =====================================================================================

A value that is none of these raises ValueError when ``quantizer`` is resolved.
"""

import struct
from typing import Any

from .arithmetic import Arithmetic, ZeroPointDomain
from .descriptions import Gradient, Quantizer, ZeroPoint
from .dialects import dialects
from .directions import Rounding
from .formats import BinaryFormat, FloatFormat, Format, IntegerFormat, Specials, TernaryFormat
from .granularity import Granularity, PerAxis, PerGroup, PerTensor
from .inject import Injector, this, value
from .scales import Denominator, Restriction, ScaleRule, ScaleSource, Statistic

STATISTICS = {
    "max": Statistic.EXTREMES,
    "min_max": Statistic.EXTREMES,
    "percentile": Statistic.PERCENTILE,
    "percentile_interval": Statistic.PERCENTILE,
    "ave": Statistic.ABSMEAN,
    "mean_sigma_std": Statistic.MEAN_SIGMA,
    "signed_max": Statistic.SIGNED_ABSMAX,
    "mse": Statistic.MSE,
    "hqo": Statistic.HQO,
}
RESTRICTIONS = {
    "fp": Restriction.FLOAT,
    "signed_fp": Restriction.FLOAT,
    "log_fp": Restriction.LOG_FLOAT,
    "int": Restriction.INTEGER_NEAREST,
    "power_of_two": Restriction.POWER_OF_TWO,
    "power_of_two_floor": Restriction.POWER_OF_TWO_FLOOR,
    "power_of_two_even": Restriction.POWER_OF_TWO_EVEN,
}
TO_THE_END = ("fp", "signed_fp", "log_fp")  # of the range; floor exponents have a rule of their own
ROUNDINGS = {
    "round": Rounding.TIES_TO_EVEN,
    "ceil": Rounding.TOWARD_POSITIVE,
    "floor": Rounding.TOWARD_NEGATIVE,
    "round_to_zero": Rounding.TOWARD_ZERO,
    "dpu": Rounding.DPU,
    "stochastic_round": Rounding.STOCHASTIC,
    "learned_round": Rounding.LEARNED,
}
# of `scaling_impl_type`, for parameters of a network and for activations
SOURCES_OF_PARAMETERS = {
    "stats": ScaleSource.STATISTIC,
    "parameter_from_stats": ScaleSource.LEARNED,
    "parameter": ScaleSource.LEARNED,
    "const": ScaleSource.CONSTANT,
    None: ScaleSource.CONSTANT,
}
SOURCES_OF_ACTIVATIONS = SOURCES_OF_PARAMETERS | {
    "stats": ScaleSource.RUNNING_STATISTIC,
    "parameter_from_stats": ScaleSource.STATISTIC_THEN_LEARNED,
    "dynamic": ScaleSource.STATISTIC,
}
STANDARDS = {
    ("ocp", 4, 3): Specials.NAN_ONLY,
    ("ocp", 5, 2): Specials.IEEE,
    ("ocp", 3, 2): Specials.NONE,
    ("ocp", 2, 3): Specials.NONE,
    ("ocp", 2, 1): Specials.NONE,
}


class Declared(Injector):
    """The fields that every quantizer has, and what they resolve to."""

    quant_type = "int"
    bit_width = 8
    signed = True
    narrow_range = False
    threshold = 0.5  # of ternary quantizers
    float_standard = "ieee"
    saturating = True
    scaling_impl_type: Any = "stats"
    scaling_stats_op = "max"
    restrict_scaling_type = "fp"
    scaling_per_output_type = "tensor"
    scaling_min_val: Any = 1e-10
    group_size = 32
    high_percentile_q = 99.999
    low_percentile_q = 0.001
    sigma = 3.0
    collect_stats_steps = 300
    scaling_stats_momentum: Any = 0.1  # weight of the new tensor; None for the mean of all
    mse_iters = 20
    zero_point_type = "none"
    quantize_zero_point = True
    float_to_int_impl_type = "round"
    bit_width_impl_type = "const"
    quant_delay_steps = 0
    dialect: Any = None

    @value
    def number_format(quant_type: Any) -> Any:
        """Which numbers exist. The formats are attributes of their own, so that only the fields of one are needed."""
        formats = {
            "int": this.integer_format,
            "float": this.float_format,
            "binary": BinaryFormat,
            "ternary": TernaryFormat,
        }
        return _of("quant_type", quant_type, formats)

    @value
    def integer_format(bit_width: Any, signed: Any, narrow_range: Any, bit_width_impl_type: Any) -> Format:
        """Integers; where the width is learned, in the storage that holds it and more."""
        learned = _of("bit_width_impl_type", bit_width_impl_type, {"const": False, "parameter": True})
        return IntegerFormat((8 if bit_width <= 8 else 16) if learned else bit_width, signed, narrow_range)

    @value
    def float_format(exponent_bit_width: Any, mantissa_bit_width: Any, float_standard: Any, saturating: Any) -> Format:
        """Floating-point numbers."""
        widths = (exponent_bit_width, mantissa_bit_width)
        standards = {"ieee": Specials.NONE, "fnuz": Specials.NEGATIVE_ZERO, "ocp": STANDARDS.get(("ocp", *widths))}
        specials = _of("float_standard", float_standard, standards)
        if specials is None:
            raise ValueError("`float_standard` 'ocp' has no float of {} exponent and {} mantissa bits".format(*widths))
        return FloatFormat(*widths, specials=specials, saturate=saturating)

    @value
    def granularity(scaling_per_output_type: Any, scaling_per_output_channel: Any = None) -> Any:
        """Which elements share a scale; the flag, where it is given, counts before the name."""
        if scaling_per_output_channel is not None:
            scaling_per_output_type = "channel" if scaling_per_output_channel else "tensor"
        granularities = {"tensor": PerTensor, "channel": this.per_channel, "group": this.per_group}
        return _of("scaling_per_output_type", scaling_per_output_type, granularities)

    @value
    def per_channel(channel_axis: Any) -> Granularity:
        """A scale for each channel."""
        return PerAxis(channel_axis)

    @value
    def per_group(group_size: Any, group_dim: Any) -> Granularity:
        """A scale for each group."""
        return PerGroup(group_size, group_dim)

    @value
    def scale_divisor(number_format: Any, quant_type: Any, restrict_scaling_type: Any) -> Any:
        """What a magnitude is divided by: the end of the range, and of a fixed point the power of two after it."""
        if quant_type == "int" and restrict_scaling_type == "power_of_two":
            return Denominator.NEXT
        longer = quant_type == "int" and -number_format.lo > number_format.hi
        return Denominator.LO if longer and restrict_scaling_type in TO_THE_END else Denominator.HI

    @value
    def scale_value(scaling_impl_type: Any) -> Any:
        """The scale that a quantizer begins with; None for a statistic."""
        if scaling_impl_type is None:
            return 1.0
        return this.first_scale if scaling_impl_type in ("const", "parameter") else None

    @value
    def first_scale(scaling_init: Any, number_format: Any, scale_divisor: Any) -> float:
        """The scale of a given largest magnitude, rounded as in float32."""
        try:
            largest = float(scaling_init)
        except (TypeError, ValueError) as error:
            raise ValueError(f"`scaling_init` of a `quantizer` must be one number, got {scaling_init!r}") from error
        return _single(_single(largest) / _divisor(number_format, scale_divisor))

    @value
    def scale_rule(
        sources: Any,
        scaling_impl_type: Any,
        scaling_stats_op: Any,
        restrict_scaling_type: Any,
        scale_divisor: Any,
        scale_value: Any,
        scaling_min_val: Any,
        number_format: Any,
        high_percentile_q: Any,
        low_percentile_q: Any,
        sigma: Any,
        collect_stats_steps: Any,
        scaling_stats_momentum: Any,
        mse_iters: Any,
        zero_point_type: Any,
    ) -> ScaleRule:
        """How the scale is chosen."""
        affine = zero_point_type != "none"
        divisor = number_format.hi - number_format.lo if affine else _divisor(number_format, scale_divisor)
        source = _of("scaling_impl_type", scaling_impl_type, sources)
        collected = source in (ScaleSource.RUNNING_STATISTIC, ScaleSource.STATISTIC_THEN_LEARNED)
        statistic = _of("scaling_stats_op", scaling_stats_op, STATISTICS)
        return ScaleRule(
            source=source,
            restriction=_of("restrict_scaling_type", restrict_scaling_type, RESTRICTIONS),
            denominator=Denominator.HI if affine else scale_divisor,
            scale_value=scale_value,
            floor=None if scaling_min_val is None else _single(_single(scaling_min_val) / divisor),
            statistic=Statistic.EXTREMES if scale_value is not None else statistic,
            percentile=high_percentile_q,
            low_percentile=low_percentile_q,
            sigma=sigma,
            steps=collect_stats_steps,
            momentum=None if scaling_stats_momentum is None else 1 - scaling_stats_momentum,
            batch_in_training=collected,
            search_steps=1000 if statistic is Statistic.HQO else mse_iters,
        )

    @value
    def gradient(gradients: Any, scaling_impl_type: Any, bit_width_impl_type: Any) -> Gradient:
        """Straight through where a parameter is clamped by a range that its own statistic spans, else clipped."""
        learned = scaling_impl_type in ("parameter", "parameter_from_stats") or bit_width_impl_type == "parameter"
        return Gradient.CLIPPED if learned else gradients

    @value
    def quantizer(
        number_format: Any,
        granularity: Any,
        scale_rule: Any,
        zero_point_type: Any,
        quantize_zero_point: Any,
        float_to_int_impl_type: Any,
        gradient: Any,
        bit_width: Any,
        bit_width_impl_type: Any,
        quant_delay_steps: Any,
        dialect: Any,
    ) -> Quantizer:
        """The description that all fields together are."""
        unrounded = zero_point_type != "none" and not quantize_zero_point
        q = Quantizer(
            format=number_format,
            granularity=granularity,
            scale=scale_rule,
            zero_point=_of("zero_point_type", zero_point_type, {"none": ZeroPoint.NONE, "min_max": ZeroPoint.MIN_MAX}),
            rounding=_of("float_to_int_impl_type", float_to_int_impl_type, ROUNDINGS),
            gradient=gradient,
            learned_bits=float(bit_width) if bit_width_impl_type == "parameter" else None,
            delay=quant_delay_steps,
            arithmetic=Arithmetic(zero_point_domain=ZeroPointDomain.FLOAT) if unrounded else Arithmetic(),
        )
        return q if dialect is None else q.replace(floor=None, **dialects[dialect])


class WeightQuant(Declared):
    """Of weights: the statistic is that of the weight at every call, and passes gradients to it."""

    role = "weight"
    sources = SOURCES_OF_PARAMETERS
    gradients = Gradient.PASS_THROUGH

    @value
    def scaling_init(scaling_const: Any) -> Any:
        """The largest magnitude that a constant scale has."""
        return scaling_const

    @value
    def channel_axis(module: Any = None) -> int:
        """The axis of the output channels: the second one of transposed convolutions."""
        return 1 if getattr(_first(module), "transposed", False) else 0

    @value
    def group_dim(module: Any = None) -> int:
        """The axis of the input channels, which groups lie along."""
        layer = _first(module)
        if layer is None or len(layer.weight.shape) <= 2:
            return -1
        return 0 if getattr(layer, "transposed", False) else 1


class ActQuant(Declared):
    """Of activations: a statistic is collected while training, and used in evaluation."""

    role = "act"
    sources = SOURCES_OF_ACTIVATIONS
    gradients = Gradient.CLIPPED
    group_dim = -1

    @value
    def scaling_init(max_val: Any, min_val: Any = 0.0) -> float:
        """The largest magnitude of the range that is given."""
        return max(abs(float(min_val)), abs(float(max_val)))

    @value
    def channel_axis(per_channel_broadcastable_shape: Any = None) -> int:
        """The one axis of that shape that is longer than 1; without it the second."""
        if per_channel_broadcastable_shape is None:
            return 1
        long = [axis for axis, n in enumerate(per_channel_broadcastable_shape) if n != 1]
        if len(long) > 1:
            shape = tuple(per_channel_broadcastable_shape)
            raise ValueError(f"`per_channel_broadcastable_shape` must have one axis longer than 1, got {shape}")
        return long[0] if long else 1


class BiasQuant(WeightQuant):
    """Of biases, with a scale of their own."""

    role = "bias"
    requires_input_scale = False


def _of(field: str, given: Any, table: Any) -> Any:
    """What a name stands for. ValueError names the field, what was given, and what is allowed."""
    key = given.value if hasattr(given, "value") else given
    key = key.lower() if isinstance(key, str) else key
    if key not in table:
        raise ValueError(f"`{field}` must be one of {', '.join(map(repr, table))}; got {given!r}")
    return table[key]


def _first(module: Any) -> Any:
    """The layer, or the first of those that share a quantizer."""
    return module[0] if isinstance(module, tuple) else module


def _divisor(number_format: Format, denominator: Denominator) -> float:
    ends = {Denominator.LO: -number_format.lo, Denominator.NEXT: number_format.hi + 1}
    return float(ends.get(denominator, number_format.hi))


def _single(number: float) -> float:
    """The nearest number of float32: what other systems keep such numbers in."""
    return float(struct.unpack("f", struct.pack("f", number))[0])
