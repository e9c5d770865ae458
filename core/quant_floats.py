"""Ready quantizers to floating-point numbers, and those of the OCP microscaling formats; see `samebits.core.quant`.

**Not the same as in Brevitas**, beyond what is said there: infinity becomes the largest number (theirs: NaN), and the
gradient is straight through inside the range (theirs: y / x). ``MXInt8*`` are those of the OCP specification, of which
the largest element has a code; theirs take half that scale and clamp.

**Left out**, and why: ``FpOCPWeight`` and the others without widths, since a declaration with ``exponent_bit_width``
and ``mantissa_bit_width`` is as short; ``ShiftedMXUInt8Weight`` and its MSE (a power of two below the largest element
is for symmetric quantizers).
"""

from .descriptions import Gradient
from .inject import Injector
from .quant import MSE, Dynamic, PerChannel, PerGroups, RuntimeMax
from .quant_fields import ActQuant, WeightQuant


class Float8E4M3(Injector):
    """1 sign bit, 4 of exponent, 3 of mantissa."""

    quant_type = "float"
    gradients = Gradient.CLIPPED
    bit_width = 8
    exponent_bit_width = 4
    mantissa_bit_width = 3


class Float8E5M2(Injector):
    """1 sign bit, 5 of exponent, 2 of mantissa."""

    quant_type = "float"
    gradients = Gradient.CLIPPED
    bit_width = 8
    exponent_bit_width = 5
    mantissa_bit_width = 2


class Ocp(Injector):
    """Special codes of the OCP 8-bit floating-point specification."""

    float_standard = "ocp"


class Fnuz(Injector):
    """One NaN, the code of -0, and no infinity."""

    float_standard = "fnuz"


class NoScale(Injector):
    """A scale of 1."""

    scaling_impl_type = None


class MX(PerGroups):
    """Groups of 32, each with a power of two."""

    restrict_scaling_type = "power_of_two_floor"
    scaling_min_val = None


class Fp8e4m3Weight(Float8E4M3, NoScale, WeightQuant):
    """E4M3, every code a number, without a scale."""


class Fp8e4m3Act(Float8E4M3, NoScale, ActQuant):
    """E4M3, every code a number, without a scale."""


class Fp8e4m3WeightPerTensorFloat(Float8E4M3, WeightQuant):
    """E4M3, every code a number, one scale."""


class Fp8e4m3WeightPerChannelFloat(PerChannel, Fp8e4m3WeightPerTensorFloat):
    """The same for each channel."""


class Fp8e4m3WeightPerTensorFloatMSE(MSE, Fp8e4m3WeightPerTensorFloat):
    """A learned scale that begins at the least squared error."""


class Fp8e4m3WeightPerChannelFloatMSE(MSE, Fp8e4m3WeightPerChannelFloat):
    """The same for each channel."""


class Fp8e4m3ActPerTensorFloat(Float8E4M3, RuntimeMax, ActQuant):
    """E4M3, every code a number, the largest magnitude collected and then learned."""


class Fp8e4m3ActPerTensorFloatMSE(MSE, Fp8e4m3ActPerTensorFloat):
    """The same, from the least squared error."""


class Fp8e4m3ActPerChannelFloat2d(PerChannel, Fp8e4m3ActPerTensorFloat):
    """A scale for each channel."""


class Fp8e4m3ActPerChannelFloat2dMSE(PerChannel, Fp8e4m3ActPerTensorFloatMSE):
    """The same, from the least squared error."""


class Fp8e4m3OCPWeight(Ocp, Float8E4M3, NoScale, WeightQuant):
    """E4M3 of OCP, without a scale."""


class Fp8e4m3OCPAct(Ocp, Float8E4M3, NoScale, ActQuant):
    """E4M3 of OCP, without a scale."""


class Fp8e4m3OCPWeightPerTensorFloat(Ocp, Float8E4M3, WeightQuant):
    """E4M3 of OCP, one scale."""


class Fp8e4m3OCPWeightPerChannelFloat(PerChannel, Fp8e4m3OCPWeightPerTensorFloat):
    """The same for each channel."""


class Fp8e4m3OCPWeightPerTensorFloatMSE(MSE, Fp8e4m3OCPWeightPerTensorFloat):
    """A learned scale that begins at the least squared error."""


class Fp8e4m3OCPWeightPerChannelFloatMSE(MSE, Fp8e4m3OCPWeightPerChannelFloat):
    """The same for each channel."""


class Fp8e4m3OCPActPerTensorFloat(Ocp, Float8E4M3, RuntimeMax, ActQuant):
    """E4M3 of OCP, the largest magnitude collected and then learned."""


class Fp8e4m3OCPActPerTensorFloatMSE(MSE, Fp8e4m3OCPActPerTensorFloat):
    """The same, from the least squared error."""


class Fp8e4m3OCPActPerChannelFloat2d(PerChannel, Fp8e4m3OCPActPerTensorFloat):
    """A scale for each channel."""


class Fp8e4m3OCPActPerChannelFloat2dMSE(PerChannel, Fp8e4m3OCPActPerTensorFloatMSE):
    """The same, from the least squared error."""


class Fp8e4m3FNUZWeight(Fnuz, Float8E4M3, NoScale, WeightQuant):
    """E4M3FNUZ, without a scale."""


class Fp8e4m3FNUZAct(Fnuz, Float8E4M3, NoScale, ActQuant):
    """E4M3FNUZ, without a scale."""


class Fp8e4m3FNUZWeightPerTensorFloat(Fnuz, Float8E4M3, WeightQuant):
    """E4M3FNUZ, one scale."""


class Fp8e4m3FNUZWeightPerChannelFloat(PerChannel, Fp8e4m3FNUZWeightPerTensorFloat):
    """The same for each channel."""


class Fp8e4m3FNUZWeightPerTensorFloatMSE(MSE, Fp8e4m3FNUZWeightPerTensorFloat):
    """A learned scale that begins at the least squared error."""


class Fp8e4m3FNUZWeightPerChannelFloatMSE(MSE, Fp8e4m3FNUZWeightPerChannelFloat):
    """The same for each channel."""


class Fp8e4m3FNUZActPerTensorFloat(Fnuz, Float8E4M3, RuntimeMax, ActQuant):
    """E4M3FNUZ, the largest magnitude collected and then learned."""


class Fp8e4m3FNUZActPerTensorFloatMSE(MSE, Fp8e4m3FNUZActPerTensorFloat):
    """The same, from the least squared error."""


class Fp8e4m3FNUZActPerChannelFloat2d(PerChannel, Fp8e4m3FNUZActPerTensorFloat):
    """A scale for each channel."""


class Fp8e4m3FNUZActPerChannelFloat2dMSE(PerChannel, Fp8e4m3FNUZActPerTensorFloatMSE):
    """The same, from the least squared error."""


class Fp8e5m2Weight(Float8E5M2, NoScale, WeightQuant):
    """E5M2, every code a number, without a scale."""


class Fp8e5m2Act(Float8E5M2, NoScale, ActQuant):
    """E5M2, every code a number, without a scale."""


class Fp8e5m2WeightPerTensorFloat(Float8E5M2, WeightQuant):
    """E5M2, every code a number, one scale."""


class Fp8e5m2WeightPerChannelFloat(PerChannel, Fp8e5m2WeightPerTensorFloat):
    """The same for each channel."""


class Fp8e5m2WeightPerTensorFloatMSE(MSE, Fp8e5m2WeightPerTensorFloat):
    """A learned scale that begins at the least squared error."""


class Fp8e5m2WeightPerChannelFloatMSE(MSE, Fp8e5m2WeightPerChannelFloat):
    """The same for each channel."""


class Fp8e5m2ActPerTensorFloat(Float8E5M2, RuntimeMax, ActQuant):
    """E5M2, every code a number, the largest magnitude collected and then learned."""


class Fp8e5m2ActPerTensorFloatMSE(MSE, Fp8e5m2ActPerTensorFloat):
    """The same, from the least squared error."""


class Fp8e5m2ActPerChannelFloat2d(PerChannel, Fp8e5m2ActPerTensorFloat):
    """A scale for each channel."""


class Fp8e5m2ActPerChannelFloat2dMSE(PerChannel, Fp8e5m2ActPerTensorFloatMSE):
    """The same, from the least squared error."""


class Fp8e5m2OCPWeight(Ocp, Float8E5M2, NoScale, WeightQuant):
    """E5M2 of OCP, without a scale."""


class Fp8e5m2OCPAct(Ocp, Float8E5M2, NoScale, ActQuant):
    """E5M2 of OCP, without a scale."""


class Fp8e5m2OCPWeightPerTensorFloat(Ocp, Float8E5M2, WeightQuant):
    """E5M2 of OCP, one scale."""


class Fp8e5m2OCPWeightPerChannelFloat(PerChannel, Fp8e5m2OCPWeightPerTensorFloat):
    """The same for each channel."""


class Fp8e5m2OCPWeightPerTensorFloatMSE(MSE, Fp8e5m2OCPWeightPerTensorFloat):
    """A learned scale that begins at the least squared error."""


class Fp8e5m2OCPWeightPerChannelFloatMSE(MSE, Fp8e5m2OCPWeightPerChannelFloat):
    """The same for each channel."""


class Fp8e5m2OCPActPerTensorFloat(Ocp, Float8E5M2, RuntimeMax, ActQuant):
    """E5M2 of OCP, the largest magnitude collected and then learned."""


class Fp8e5m2OCPActPerTensorFloatMSE(MSE, Fp8e5m2OCPActPerTensorFloat):
    """The same, from the least squared error."""


class Fp8e5m2OCPActPerChannelFloat2d(PerChannel, Fp8e5m2OCPActPerTensorFloat):
    """A scale for each channel."""


class Fp8e5m2OCPActPerChannelFloat2dMSE(PerChannel, Fp8e5m2OCPActPerTensorFloatMSE):
    """The same, from the least squared error."""


class Fp8e5m2FNUZWeight(Fnuz, Float8E5M2, NoScale, WeightQuant):
    """E5M2FNUZ, without a scale."""


class Fp8e5m2FNUZAct(Fnuz, Float8E5M2, NoScale, ActQuant):
    """E5M2FNUZ, without a scale."""


class Fp8e5m2FNUZWeightPerTensorFloat(Fnuz, Float8E5M2, WeightQuant):
    """E5M2FNUZ, one scale."""


class Fp8e5m2FNUZWeightPerChannelFloat(PerChannel, Fp8e5m2FNUZWeightPerTensorFloat):
    """The same for each channel."""


class Fp8e5m2FNUZWeightPerTensorFloatMSE(MSE, Fp8e5m2FNUZWeightPerTensorFloat):
    """A learned scale that begins at the least squared error."""


class Fp8e5m2FNUZWeightPerChannelFloatMSE(MSE, Fp8e5m2FNUZWeightPerChannelFloat):
    """The same for each channel."""


class Fp8e5m2FNUZActPerTensorFloat(Fnuz, Float8E5M2, RuntimeMax, ActQuant):
    """E5M2FNUZ, the largest magnitude collected and then learned."""


class Fp8e5m2FNUZActPerTensorFloatMSE(MSE, Fp8e5m2FNUZActPerTensorFloat):
    """The same, from the least squared error."""


class Fp8e5m2FNUZActPerChannelFloat2d(PerChannel, Fp8e5m2FNUZActPerTensorFloat):
    """A scale for each channel."""


class Fp8e5m2FNUZActPerChannelFloat2dMSE(PerChannel, Fp8e5m2FNUZActPerTensorFloatMSE):
    """The same, from the least squared error."""


class MXFloat8e4m3Weight(MX, Fp8e4m3OCPWeightPerTensorFloat):
    """MXFP8, E4M3."""


class MXFloat8e4m3WeightMSE(MSE, MXFloat8e4m3Weight):
    """The same, learned, from the least squared error."""


class MXFloat8e4m3Act(MX, Ocp, Float8E4M3, Dynamic, ActQuant):
    """MXFP8, E4M3, of the tensor at hand."""


class MXInt8Weight(MX, WeightQuant):
    """MXINT8."""


class MXInt8WeightMSE(MSE, MXInt8Weight):
    """The same, learned, from the least squared error."""


class MXInt8Act(MX, Dynamic, ActQuant):
    """MXINT8, of the tensor at hand."""
