"""Ready quantizers as declarations, under the names that users of Brevitas know: each is a line of data.

``Int8WeightPerTensorFloat.quantizer`` is a `Quantizer`. Fields (see `samebits.core.quant_fields`) are changed by
inheriting or with ``let``: ``Int8WeightPerTensorFloat.let(bit_width=4)``. Floats are in `samebits.core.quant_floats`.

**Not the same as in Brevitas**, on purpose. The arithmetic is ours (float32, no -0.0; ``dialect="brevitas"`` asks for
theirs, which components do not have). A scale that is a power of two is read from bits, theirs from a rounded
logarithm. Of quantizers with a zero point: MSE searches it together with the scale, theirs apart; one that is not
rounded is kept as the value of the middle code (``zero_point_domain="float"``), theirs as a fraction of a code; and the
range of a fixed point is divided by 255 before it is raised to a power of two, theirs by 256. HQO judges every block by
itself, theirs all by their mean. Activations of a fixed point have powers of two while they are collected, too.

**Left out**, and why:

- ``Int24Bias``, ``Int32Bias``, ``IntBias``: `IntegerFormat` ends at 16 bits, since its codes have to be numbers of
  float32. A bias that is not quantized keeps every bit that float32 has.
- ``Int8ActPerTensorFloatBatchQuant1d`` and the other three: the mean of the largest magnitudes of channels is no
  `Statistic` (docs/scales.md).
- ``Int4WeightPerTensorFloatDecoupled`` and the other decoupled ones, ``Int8WeightNormL2PerChannelFixedPoint``,
  ``Int8AccumulatorAwareWeightQuant``, ``Int8AccumulatorAwareZeroCenterWeightQuant``: codes and values are scaled apart,
  and a `Quantizer` has one scale. `samebits.core.accumulator` computes them.
- ``TruncTo8bit``, ``RoundTo8bit`` are here without a ``quantizer``: they go from codes to codes, as
  `accumulator.truncate` does. ``ShiftRoundSaturateTo8bit`` takes its shift from a statistic, which that does not.
"""

from .inject import Injector
from .quant_fields import ActQuant, BiasQuant, WeightQuant


class Narrow(Injector):
    """Integers of a symmetric range."""

    narrow_range = True


class Unsigned(Injector):
    """Integers from 0."""

    signed = False


class Shifted(Injector):
    """Unsigned integers with a zero point, over a range that holds 0."""

    signed = False
    scaling_stats_op = "min_max"
    zero_point_type = "min_max"


class PerChannel(Injector):
    """A scale for each channel."""

    scaling_per_output_type = "channel"


class PerGroups(Injector):
    """A scale for each group of consecutive elements."""

    scaling_per_output_type = "group"


class FixedPoint(Injector):
    """Scales that are powers of two."""

    restrict_scaling_type = "power_of_two"


class RuntimePercentile(Injector):
    """A scale that begins as a percentile of the tensors seen, and is then learned."""

    scaling_impl_type = "parameter_from_stats"
    scaling_stats_op = "percentile"


class RuntimeMax(Injector):
    """A scale that begins as the largest magnitude of the tensors seen, and is then learned."""

    scaling_impl_type = "parameter_from_stats"


class FromRange(Injector):
    """A learned scale that begins at the given ``min_val`` and ``max_val``."""

    scaling_impl_type = "parameter"


class MSE(Injector):
    """A learned scale that begins where the squared error is smallest."""

    scaling_impl_type = "parameter_from_stats"
    scaling_stats_op = "mse"


class HQO(Injector):
    """A learned scale that begins where half-quadratic optimization ends."""

    scaling_impl_type = "parameter_from_stats"
    scaling_stats_op = "hqo"


class Dynamic(Injector):
    """The statistic of the tensor at hand, in evaluation too."""

    scaling_impl_type = "dynamic"


class FloatZeroHQO(Injector):
    """A zero point that is no code, and begins where half-quadratic optimization ends."""

    scaling_impl_type = "parameter_from_stats"
    scaling_stats_op = "hqo"
    quantize_zero_point = False


class Binary(Injector):
    """The sign, times a constant."""

    quant_type = "binary"
    scaling_impl_type = "const"
    bit_width = 1


class TwoBits(Injector):
    """Integers from -1 to 1, times a constant."""

    scaling_impl_type = "const"
    narrow_range = True
    bit_width = 2


class SymmetricUnit(Injector):
    """The range from -1 to 1."""

    min_val = -1.0
    max_val = 1.0


class OfAccumulator(Injector):
    """A scale that the layer gives: that of the input times that of the weight."""

    requires_input_scale = True


class TruncTo8bit(Injector):
    """To 8 bits by dropping the lower ones."""

    role = "trunc"
    bit_width = 8
    float_to_int_impl_type = "floor"


class RoundTo8bit(TruncTo8bit):
    """To 8 bits by rounding."""

    float_to_int_impl_type = "round"


class Int8WeightPerTensorFloat(Narrow, WeightQuant):
    """Narrow int8, one scale: the largest magnitude."""


class Int8WeightPerChannelFloat(PerChannel, Int8WeightPerTensorFloat):
    """Narrow int8, a scale for each channel."""


class Int8WeightPerTensorFloatMSE(MSE, Int8WeightPerTensorFloat):
    """Narrow int8, a learned scale that begins at the least squared error."""


class Int8WeightPerChannelFloatMSE(MSE, Int8WeightPerChannelFloat):
    """The same for each channel."""


class Int8WeightPerTensorFloatHQO(HQO, Int8WeightPerTensorFloat):
    """Narrow int8, a learned scale that begins at the optimum of HQO."""


class Int8WeightPerChannelFloatHQO(HQO, Int8WeightPerChannelFloat):
    """The same for each channel."""


class Int8ActPerTensorFloat(RuntimePercentile, ActQuant):
    """Int8, a percentile collected and then learned."""


class Uint8ActPerTensorFloat(Unsigned, Int8ActPerTensorFloat):
    """Uint8, a percentile collected and then learned."""


class Int8ActPerTensorFloatMSE(MSE, Int8ActPerTensorFloat):
    """Int8, the scale of the least squared error collected and then learned."""


class Uint8ActPerTensorFloatMSE(MSE, Uint8ActPerTensorFloat):
    """Uint8, the same."""


class Int8ActPerTensorFloatHQO(HQO, Int8ActPerTensorFloat):
    """Int8, the scale of HQO collected and then learned."""


class Uint8ActPerTensorFloatHQO(HQO, Uint8ActPerTensorFloat):
    """Uint8, the same."""


class Int8ActPerTensorFloatMinMaxInit(FromRange, ActQuant):
    """Int8, a learned scale that begins at ``min_val`` and ``max_val``."""


class Uint8ActPerTensorFloatMaxInit(Unsigned, FromRange, ActQuant):
    """Uint8, a learned scale that begins at ``max_val``."""


class Int8DynamicActPerTensorFloat(Dynamic, ActQuant):
    """Int8, the largest magnitude of the tensor at hand."""


class Int8WeightPerTensorFixedPoint(FixedPoint, Int8WeightPerTensorFloat):
    """Narrow int8, one power of two."""


class Int8WeightPerChannelFixedPoint(FixedPoint, Int8WeightPerChannelFloat):
    """Narrow int8, a power of two for each channel."""


class Int8WeightPerTensorFixedPointMSE(MSE, Int8WeightPerTensorFixedPoint):
    """Narrow int8, a learned power of two that begins at the least squared error."""


class Int8WeightPerChannelFixedPointMSE(MSE, Int8WeightPerChannelFixedPoint):
    """The same for each channel."""


class Int8ActPerTensorFixedPoint(FixedPoint, Int8ActPerTensorFloat):
    """Int8, a power of two from a percentile, then learned."""


class Uint8ActPerTensorFixedPoint(FixedPoint, Uint8ActPerTensorFloat):
    """Uint8, the same."""


class Int8ActPerTensorFixedPointMSE(MSE, Int8ActPerTensorFixedPoint):
    """Int8, a power of two from the least squared error, then learned."""


class Uint8ActPerTensorFixedPointMSE(MSE, Uint8ActPerTensorFixedPoint):
    """Uint8, the same."""


class Int8ActPerTensorFixedPointMinMaxInit(FixedPoint, Int8ActPerTensorFloatMinMaxInit):
    """Int8, a learned power of two that begins at ``min_val`` and ``max_val``."""


class Uint8ActPerTensorFixedPointMaxInit(FixedPoint, Uint8ActPerTensorFloatMaxInit):
    """Uint8, a learned power of two that begins at ``max_val``."""


class ShiftedUint8WeightPerTensorFloat(Shifted, WeightQuant):
    """Uint8 with a zero point, one scale."""


class ShiftedUint8WeightPerChannelFloat(PerChannel, ShiftedUint8WeightPerTensorFloat):
    """Uint8 with a zero point, for each channel."""


class ShiftedUint8WeightGroupQuantFloat(PerGroups, ShiftedUint8WeightPerTensorFloat):
    """Uint8 with a zero point, for each group."""


class ShiftedUint8WeightPerTensorFloatMSE(MSE, ShiftedUint8WeightPerTensorFloat):
    """Learned, begins at the least squared error."""


class ShiftedUint8WeightPerChannelFloatMSE(MSE, ShiftedUint8WeightPerChannelFloat):
    """The same for each channel."""


class ShiftedUint8WeightPerTensorFloatHQO(FloatZeroHQO, ShiftedUint8WeightPerTensorFloat):
    """The zero point, not rounded, begins at the optimum of HQO."""


class ShiftedUint8WeightPerChannelFloatHQO(FloatZeroHQO, ShiftedUint8WeightPerChannelFloat):
    """The same for each channel."""


class ShiftedUint8WeightPerGroupFloatHQO(PerGroups, ShiftedUint8WeightPerChannelFloatHQO):
    """The same for each group of 32."""


class ShiftedUint8ActPerTensorFloat(RuntimePercentile, Shifted, ActQuant):
    """Uint8 with a zero point, percentiles of both ends collected and then learned."""


class ShiftedUint8ActPerTensorFixedPoint(FixedPoint, ShiftedUint8ActPerTensorFloat):
    """The same with a power of two."""


class ShiftedUint8ActPerTensorFloatMSE(MSE, ShiftedUint8ActPerTensorFloat):
    """The same, from the least squared error."""


class ShiftedUint8ActPerTensorFixedPointMSE(MSE, ShiftedUint8ActPerTensorFixedPoint):
    """The same with a power of two."""


class ShiftedUint8ActPerTensorFloatHQO(FloatZeroHQO, ShiftedUint8ActPerTensorFloat):
    """The zero point, not rounded, from HQO."""


class SignedBinaryWeightPerTensorConst(Binary, WeightQuant):
    """-0.1 and 0.1."""

    scaling_const = 0.1


class SignedBinaryActPerTensorConst(Binary, SymmetricUnit, ActQuant):
    """-1 and 1."""


class SignedTernaryWeightPerTensorConst(TwoBits, WeightQuant):
    """-0.1, 0 and 0.1, rounded to the nearest."""

    scaling_const = 0.1


class SignedTernaryActPerTensorConst(TwoBits, SymmetricUnit, ActQuant):
    """-1, 0 and 1, rounded to the nearest."""


class Int8Bias(OfAccumulator, BiasQuant):
    """Int8, the scale of the products that it is added to."""


class Int16Bias(OfAccumulator, BiasQuant):
    """Int16, the same."""

    bit_width = 16


class Int8BiasPerTensorFloatInternalScaling(BiasQuant):
    """Int8, a scale of its own: the largest magnitude."""


class Int8BiasPerTensorFixedPointInternalScaling(FixedPoint, Int8BiasPerTensorFloatInternalScaling):
    """Int8, a power of two of its own."""
