"""Components: the parts that quantizers are put together of, each a small module under the name that it is known by.

A tensor quantizer takes a scaling, roundings, clamps and the rest as arguments, named so that a declaration
(`samebits.core.inject.Injector`) wires them. What they make up is a description, ``tensor_quant.quantizer``: a
`samebits.core.Quantizer` whose bits the values have, so that layers contract codes exactly.
"""

from .apart import DecoupledIntQuant as DecoupledIntQuant
from .apart import DecoupledRescalingIntQuant as DecoupledRescalingIntQuant
from .apart import PrescaledRestrictIntQuant as PrescaledRestrictIntQuant
from .apart import PrescaledRestrictIntQuantWithInputBitWidth as PrescaledRestrictIntQuantWithInputBitWidth
from .apart import TruncIntQuant as TruncIntQuant
from .apart import TruncMsbScaling as TruncMsbScaling
from .bit_width import BitWidthConst as BitWidthConst
from .bit_width import BitWidthParameter as BitWidthParameter
from .bit_width import BitWidthStatefulConst as BitWidthStatefulConst
from .bit_width import MsbClampBitWidth as MsbClampBitWidth
from .bit_width import RemoveBitwidthParameter as RemoveBitwidthParameter
from .clamp import TensorClamp as TensorClamp
from .clamp import TensorClampSte as TensorClampSte
from .delay import DelayWrapper as DelayWrapper
from .float_quant import FloatQuant as FloatQuant
from .int_quant import IntQuant as IntQuant
from .int_quant import RescalingIntQuant as RescalingIntQuant
from .int_scaling import IntScaling as IntScaling
from .int_scaling import PowerOfTwoIntScaling as PowerOfTwoIntScaling
from .restrict import FloatRestrictValue as FloatRestrictValue
from .restrict import IntRestrictValue as IntRestrictValue
from .restrict import LogFloatRestrictValue as LogFloatRestrictValue
from .restrict import PowerOfTwoRestrictValue as PowerOfTwoRestrictValue
from .restrict import QuantRestrictValue as QuantRestrictValue
from .rounding import CeilSte as CeilSte
from .rounding import DPURoundSte as DPURoundSte
from .rounding import FloorSte as FloorSte
from .rounding import LearnedRoundHardSigmoid as LearnedRoundHardSigmoid
from .rounding import LearnedRoundSigmoid as LearnedRoundSigmoid
from .rounding import LearnedRoundSte as LearnedRoundSte
from .rounding import RoundSte as RoundSte
from .rounding import RoundToZeroSte as RoundToZeroSte
from .rounding import StochasticRoundSte as StochasticRoundSte
from .scaling import ConstScaling as ConstScaling
from .scaling import ParameterFromRuntimeStatsScaling as ParameterFromRuntimeStatsScaling
from .scaling import ParameterFromStatsFromParameterScaling as ParameterFromStatsFromParameterScaling
from .scaling import ParameterScaling as ParameterScaling
from .scaling import RuntimeDynamicGroupStatsScaling as RuntimeDynamicGroupStatsScaling
from .scaling import RuntimeStatsScaling as RuntimeStatsScaling
from .scaling import StatsFromParameterScaling as StatsFromParameterScaling
from .statistics import MSE as MSE
from .statistics import AbsAve as AbsAve
from .statistics import AbsMax as AbsMax
from .statistics import AbsMinMax as AbsMinMax
from .statistics import AbsPercentile as AbsPercentile
from .statistics import HalfQuadraticOptimizerScale as HalfQuadraticOptimizerScale
from .statistics import HalfQuadraticOptimizerZeroPoint as HalfQuadraticOptimizerZeroPoint
from .statistics import L1Norm as L1Norm
from .statistics import L2Norm as L2Norm
from .statistics import MeanLearnedSigmaStd as MeanLearnedSigmaStd
from .statistics import MeanSigmaStd as MeanSigmaStd
from .statistics import NegativeMinOrZero as NegativeMinOrZero
from .statistics import NegativePercentileOrZero as NegativePercentileOrZero
from .statistics import PercentileInterval as PercentileInterval
from .statistics import RootMeanSquare as RootMeanSquare
from .statistics import SignedAbsMax as SignedAbsMax
from .tensor_quant import BinaryQuant as BinaryQuant
from .tensor_quant import ClampedBinaryQuant as ClampedBinaryQuant
from .tensor_quant import TernaryQuant as TernaryQuant
from .zero_point import ParameterFromRuntimeZeroPoint as ParameterFromRuntimeZeroPoint
from .zero_point import ParameterFromStatsFromParameterZeroPoint as ParameterFromStatsFromParameterZeroPoint
from .zero_point import ParameterZeroPoint as ParameterZeroPoint
from .zero_point import RuntimeZeroPoint as RuntimeZeroPoint
from .zero_point import StatsFromParameterZeroPoint as StatsFromParameterZeroPoint
from .zero_point import ZeroZeroPoint as ZeroZeroPoint
