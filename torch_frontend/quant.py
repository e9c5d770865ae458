"""The ready quantizers as modules: the declarations of `samebits.core.quant`, with components for their fields.

``Int8ActPerTensorFloat.tensor_quant`` is a graph of `samebits.torch_frontend.components` with the bits of
``TensorQuantizer(Int8ActPerTensorFloat.quantizer)``. Every part of it is an attribute, so a declaration that inherits
changes one: ``scaling_impl = MyScaling``, ``float_to_int_impl = FloorSte``.
"""

from typing import Any

from ..core import quant, quant_fields, quant_floats
from ..core.descriptions import Gradient
from ..core.directions import Relaxation, Rounding
from ..core.formats import BinaryFormat, FloatFormat, TernaryFormat
from ..core.granularity import PerTensor, qparams_shape
from ..core.inject import Declaration, Injector, this, value
from ..core.scales import Denominator, Restriction, ScaleSource, Statistic
from . import components as c

ROUNDINGS: dict[Rounding, Any] = {
    Rounding.TIES_TO_EVEN: c.RoundSte,
    Rounding.TOWARD_NEGATIVE: c.FloorSte,
    Rounding.TOWARD_POSITIVE: c.CeilSte,
    Rounding.TOWARD_ZERO: c.RoundToZeroSte,
    Rounding.DPU: c.DPURoundSte,
    Rounding.STOCHASTIC: c.StochasticRoundSte,
    Rounding.LEARNED: c.LearnedRoundSte,
}
STATISTICS: dict[Statistic, Any] = {
    Statistic.EXTREMES: c.AbsMax,
    Statistic.PERCENTILE: c.AbsPercentile,
    Statistic.SIGNED_ABSMAX: c.SignedAbsMax,
    Statistic.ABSMEAN: c.AbsAve,
    Statistic.MEAN_SIGMA: c.MeanSigmaStd,
    Statistic.L1: c.L1Norm,
    Statistic.L2: c.L2Norm,
    Statistic.RMS: c.RootMeanSquare,
    Statistic.MSE: c.MSE,
    Statistic.HQO: c.HalfQuadraticOptimizerScale,
}
OF_RANGES: dict[Statistic, Any] = STATISTICS | {
    Statistic.EXTREMES: c.AbsMinMax,
    Statistic.PERCENTILE: c.PercentileInterval,
    Statistic.HQO: c.HalfQuadraticOptimizerZeroPoint,
}
ZERO_POINTS: dict[ScaleSource, Any] = {
    ScaleSource.STATISTIC: c.StatsFromParameterZeroPoint,
    ScaleSource.LEARNED: c.ParameterFromStatsFromParameterZeroPoint,
    ScaleSource.RUNNING_STATISTIC: c.RuntimeZeroPoint,
    ScaleSource.STATISTIC_THEN_LEARNED: c.ParameterFromRuntimeZeroPoint,
}
SCALINGS: dict[ScaleSource, Any] = {
    ScaleSource.STATISTIC: c.StatsFromParameterScaling,
    ScaleSource.CONSTANT: c.ConstScaling,
    ScaleSource.LEARNED: c.ParameterFromStatsFromParameterScaling,
    ScaleSource.RUNNING_STATISTIC: c.RuntimeStatsScaling,
    ScaleSource.STATISTIC_THEN_LEARNED: c.ParameterFromRuntimeStatsScaling,
}
RESTRICTIONS: dict[Restriction, Any] = {
    Restriction.FLOAT: c.FloatRestrictValue,
    Restriction.LOG_FLOAT: c.LogFloatRestrictValue,
    Restriction.INTEGER: c.IntRestrictValue,
    Restriction.INTEGER_NEAREST: c.IntRestrictValue,
    Restriction.QUANTIZED: c.QuantRestrictValue,
}


class Solver(Injector):
    """The components that say what a declaration's ``quantizer`` says; it stands last among the bases."""

    int_quant = c.IntQuant
    zero_point_shape = this.scaling_shape

    @value
    def scaling_shape(quantizer: Any, per_channel_broadcastable_shape: Any = None, role: Any = None) -> Any:
        """The shape of the scale, where it is known before there is a tensor; else, and for one scale, None."""
        if isinstance(quantizer.granularity, PerTensor):
            return None
        if per_channel_broadcastable_shape is not None:
            return tuple(per_channel_broadcastable_shape)
        return this.shape_for_weight if role == "weight" else None

    @value
    def shape_for_weight(quantizer: Any, module: Any = None) -> Any:
        """That for the weight of the layer."""
        layer = module[0] if isinstance(module, tuple) else module
        return None if layer is None else qparams_shape(quantizer.granularity, tuple(layer.weight.shape))

    @value
    def tensor_quant(quantizer: Any, number_format: Any, requires_input_scale: Any = False) -> Any:
        """The module: value, scale, zero point and bit width of a tensor."""
        if not quantizer.is_usual:
            raise ValueError(f"`dialect` must be None here: components have the default arithmetic, got {quantizer}")
        if quantizer.format != number_format:
            raise ValueError(
                f"`quantizer` must be what the fields say, from which components are made: {number_format}, "
                f"got {quantizer.format}; without `tensor_quant` a declaration may have any"
            )
        if requires_input_scale:
            return c.PrescaledRestrictIntQuant
        straight = quantizer.gradient is Gradient.PASS_THROUGH
        binary = c.BinaryQuant if straight else c.ClampedBinaryQuant
        kinds = {TernaryFormat: c.TernaryQuant, FloatFormat: c.FloatQuant, BinaryFormat: binary}
        return kinds.get(type(quantizer.format), c.RescalingIntQuant)

    @value
    def scaling_impl(quantizer: Any, scaling_impl_type: Any, scaling_min_val: Any) -> Any:
        """Where the scale comes from; a scale of 1 is that of a magnitude like the largest number."""
        if scaling_impl_type is None:
            return c.ConstScaling(quantizer.format.hi, scaling_min_val=scaling_min_val)
        source = quantizer.scale.source
        starts = source is ScaleSource.LEARNED and quantizer.scale.scale_value is not None
        return c.ParameterScaling if starts else SCALINGS[source]

    @value
    def scaling_stats_impl(quantizer: Any) -> Any:
        """Which number of a tensor that is."""
        if quantizer.scale.learned_sigma:
            return c.MeanLearnedSigmaStd
        return (OF_RANGES if quantizer.affine else STATISTICS)[quantizer.scale.statistic]

    @value
    def hqo_iters_scale(quantizer: Any) -> int:
        """How many steps the search takes at most."""
        steps: int = quantizer.scale.search_steps
        return steps

    @value
    def hqo_iters_zp(quantizer: Any) -> int:
        """How many steps the search takes at most."""
        steps: int = quantizer.scale.search_steps
        return steps

    @value
    def restrict_scaling_impl(quantizer: Any) -> Any:
        """Which scales are allowed."""
        restriction = quantizer.scale.restriction
        power = restriction not in RESTRICTIONS
        return c.PowerOfTwoRestrictValue(restriction=restriction) if power else RESTRICTIONS[restriction]

    @value
    def restrict_value_float_to_int_impl(quantizer: Any) -> Any:
        """How that rounds."""
        return c.CeilSte if quantizer.scale.restriction is Restriction.INTEGER else c.RoundSte

    @value
    def int_scaling_impl(quantizer: Any) -> Any:
        """What magnitudes are divided by."""
        denominator, format = quantizer.scale.denominator, quantizer.format
        if denominator is Denominator.NEXT:
            return c.PowerOfTwoIntScaling
        return c.IntScaling(format.narrow, format.signed, denominator)

    @value
    def zero_point_impl(quantizer: Any) -> Any:
        """Where zero lies."""
        return ZERO_POINTS[quantizer.scale.source] if quantizer.affine else c.ZeroZeroPoint

    @value
    def zero_point_stats_impl(quantizer: Any) -> Any:
        """The lower end of the range."""
        percentile = quantizer.scale.statistic is Statistic.PERCENTILE
        return c.NegativePercentileOrZero if percentile else c.NegativeMinOrZero

    @value
    def zero_point_stats_momentum(scaling_stats_momentum: Any) -> Any:
        """That of the scale."""
        return scaling_stats_momentum

    @value
    def bit_width_impl(quantizer: Any) -> Any:
        """How many bits there are."""
        return c.BitWidthConst if quantizer.learned_bits is None else c.BitWidthParameter

    @value
    def float_to_int_impl(quantizer: Any) -> Any:
        """How numbers are rounded."""
        return ROUNDINGS[quantizer.rounding]

    @value
    def learned_round_impl(quantizer: Any) -> Any:
        """How much of a step learned rounding adds."""
        sigmoid = quantizer.learned_rounding.relaxation is Relaxation.SIGMOID
        return c.LearnedRoundSigmoid if sigmoid else c.LearnedRoundHardSigmoid

    @value
    def tensor_clamp_impl(quantizer: Any) -> Any:
        """Which gradients pass."""
        straight = quantizer.gradient is Gradient.PASS_THROUGH
        return c.TensorClampSte if straight else c.TensorClamp(quantizer.gradient)

    @value
    def specials(quantizer: Any) -> Any:
        """Which codes of a float are no numbers."""
        return quantizer.format.specials


class TruncSolver(Injector):
    """The components of what goes from codes to fewer bits; it stands last among the bases."""

    tensor_quant = c.TruncIntQuant
    bit_width_impl = c.BitWidthConst

    @value
    def float_to_int_impl(float_to_int_impl_type: Any) -> Any:
        """How numbers are rounded."""
        return ROUNDINGS[quant_fields.ROUNDINGS[float_to_int_impl_type]]


def ready() -> dict[str, Declaration]:
    """The ready quantizers of core by name."""
    found = {n: d for room in (quant, quant_floats) for n, d in vars(room).items() if _is_of(room, d)}
    return {name: d for name, d in found.items() if "role" in d}


def declared() -> dict[str, Declaration]:
    """Those that have a description."""
    return {name: d for name, d in ready().items() if "quantizer" in d}


def _is_of(room: Any, found: Any) -> bool:
    return isinstance(found, Declaration) and found.__module__ == room.__name__


def __getattr__(name: str) -> Any:
    """A ready quantizer: its declaration in core, with components."""
    if name.startswith("_") or name not in ready():
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    base = ready()[name]
    body = {"__module__": __name__, "__qualname__": name, "__doc__": base.__doc__}
    globals()[name] = made = Declaration(name, (base, Solver if "quantizer" in base else TruncSolver), body)
    return made


def __dir__() -> list[str]:
    return sorted({*globals(), *ready()})
