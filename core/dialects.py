"""Dialects: the arithmetic and scale rules of other systems, as fields of ours.

``q.replace(**dialects["torch_fake_quantize"])`` is a quantizer of ours with the bits of theirs: codes, values, and the
scale and zero point they choose. Each entry is compared with the installed library in ``tests/oracles``. What
stays different (overflow faults, say) is listed in ``tests/oracles/test_differences.py``, with its cause. Chosen
parameters of data that holds NaN or an infinity are nobody's business: we refuse it, most others return NaN.

``R`` is rounding to nearest even, ``z`` the zero point, ``m`` the magnitude max(|x|), and min and max are widened to 0
where nothing else is said. The table is in ``docs/semantics.md``.
"""

from collections.abc import Mapping
from typing import Any

from .arithmetic import (
    ClampOrder,
    ComputeDtype,
    Division,
    NanRule,
    RangeRule,
    Threshold,
    ZeroPointDomain,
    ZeroPointOrder,
    ZeroPointRule,
    ZeroPointScale,
)
from .catalog import Named
from .descriptions import ZeroPoint
from .directions import Rounding
from .scales import Denominator

# torch's observers: s = max(m / ((hi - lo) / 2), 2**-23), or max((max - min) / (hi - lo), 2**-23), z = lo - R(min / s)
_OBSERVER: dict[str, Any] = {"denominator": Denominator.HALF_RANGE, "floor": 2.0**-23}

# ATen's ChooseQuantizationParams, in double: s = (max - min) / (hi - lo), 0.1 where float(s) is 0 or its reciprocal
# infinite, at least 6.1e-5 with the range stretched to that, z from the end with the smaller error
_ATEN: dict[str, Any] = {
    "scale_dtype": ComputeDtype.FLOAT64,
    "replace_below": 2.0**-128 + 2.0**-150 + 2.0**-180,  # the first double that float() takes beyond 2**-128
    "replacement": 0.1,
    "floor": float.fromhex("0x1.ffb48p-15"),  # 6.1e-5f
    "zero_point_rule": ZeroPointRule.SMALLER_DIFFERENCE,
    "zero_point_scale": ZeroPointScale.STRETCHED,
}

# clamp(R(fma(x, 1 / s, z))), NaN to the highest code
_QUANTIZE_PER_TENSOR: dict[str, Any] = {
    "division": Division.RECIPROCAL,
    "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
    "fused_multiply_add": True,
    "nan": NanRule.HIGHEST,
}

# clamp(R(x * (1 / s)) + z) in the dtype of x, NaN to 0
_TORCHAO: dict[str, Any] = {
    "compute_dtype": ComputeDtype.INPUT,
    "division": Division.RECIPROCAL,
    "nan": NanRule.ZERO,
    "denominator": Denominator.HALF_RANGE,
}

# op by op, XLA turns a broadcast or constant divisor into a multiplication by its reciprocal, except in bfloat16
_XLA_RECIPROCALS: dict[str, Any] = {"division": Division.RECIPROCAL, "scale_division": Division.RECIPROCAL}

# R(x / s + z), then a saturating cast, in the dtype of x; s = m / (hi + 1/2) (here (hi - lo) / 2) or
# (max - min) / (hi - lo), 1 where that is below the root of the smallest normal number; z = R(lo - min / s)
_QWIX: dict[str, Any] = {
    "compute_dtype": ComputeDtype.INPUT,
    "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
    "nan": NanRule.ZERO,
    "denominator": Denominator.HALF_RANGE,
    "replace_below": Threshold.SQRT_SMALLEST_NORMAL,
    "replacement": 1.0,
    "zero_point_rule": ZeroPointRule.ROUNDED_CODE,
}

# ai-edge-quantizer: s = max(m, 1e-9) / hi, or max(max - min, 1e-9) / (hi - lo), z = R(lo - min / s)
_AI_EDGE: dict[str, Any] = {"range_floor": 1e-9, "zero_point_rule": ZeroPointRule.ROUNDED_CODE}

dialects: Mapping[str, Mapping[str, Any]] = Named(
    "dialect",
    {
        # torch.fake_quantize_per_tensor_affine, _per_channel_affine: (clamp(R(x * (1 / s)) + z) - z) * s, float32;
        # parameters of torch.ao's observers
        "torch_fake_quantize": {**_OBSERVER, "division": Division.RECIPROCAL, "nan": NanRule.LOWEST},
        # torch.quantize_per_tensor: clamp(R(fma(x, 1 / s, z))); parameters of torch.ao's observers
        "torch_quantize": {**_OBSERVER, **_QUANTIZE_PER_TENSOR},
        # torch.quantize_per_channel: clamp(R(x * (1 / s) + z)), the product rounded; parameters of torch.ao's observers
        "torch_quantize_per_channel": {
            **_OBSERVER,
            "division": Division.RECIPROCAL,
            "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
            "nan": NanRule.ZERO,
        },
        # torch.quantize_per_tensor_dynamic, and inside dynamic linear layers: as quantize_per_tensor, parameters of
        # torch._choose_qparams_per_tensor
        "torch_dynamic": {**_ATEN, **_QUANTIZE_PER_TENSOR},
        # torch.fused_moving_avg_obs_fake_quant: as fake_quantize, parameters of fbgemm, which judges the error by sums;
        # symmetric s is the larger of |min| / -lo and max / hi, where the data has both signs
        "torch_fused_fake_quantize": {
            **_ATEN,
            "denominator": Denominator.LARGER,
            "zero_point_rule": ZeroPointRule.SMALLER_SUM,
            "division": Division.RECIPROCAL,
            "nan": NanRule.LOWEST,
        },
        # torch.ops.quantized_decomposed: clamp(R(x * (1 / s)) + z) in float32; parameters as the observers, with the
        # division by hi - lo in the dtype of x
        "torch_decomposed": {
            **_OBSERVER,
            "scale_dtype": ComputeDtype.INPUT,
            "division": Division.RECIPROCAL,
            "nan": NanRule.ZERO,
        },
        # torchao 0.18: clamp(R(x * (1 / s)) + z) in the dtype of x; s = m / ((hi - lo) / 2) (MappingType.SYMMETRIC), or
        # affine like ours (ASYMMETRIC), at least the smallest normal number
        "torchao": _TORCHAO,
        # torchao of 2024: the same, s at least 2**-23 (epsilon of the dtype), z by the s before that
        "torchao_2024": {
            **_TORCHAO,
            "replace_below": Threshold.EPSILON,
            "zero_point_scale": ZeroPointScale.RAW,
        },
        # torchao's FLOAT domain (tinygemm): clamp(R((x - (z - s * mid)) / s)), (code - mid) * s + z; z = min + s * mid,
        # s = (max - min) / (hi - lo) of the data alone
        "torchao_tinygemm": {
            "compute_dtype": ComputeDtype.INPUT,
            "zero_point": ZeroPoint.MIN_MAX,
            "zero_point_domain": ZeroPointDomain.FLOAT,
            "range": RangeRule.OF_DATA,
            "nan": NanRule.ZERO,
        },
        # Brevitas IntQuant: clamp(R(x / s + z)) in the dtype of x, floats throughout, so -0.0 survives. Weights:
        # s = max(m, 1e-10) / hi (narrow) or max(max - min, 1e-10) / (hi - lo), max not widened, z = R(lo - min / s).
        # Signed activations divide by 128: denominator="lo"
        "brevitas": {
            "compute_dtype": ComputeDtype.INPUT,
            "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
            "keep_negative_zero": True,
            "range": RangeRule.LOW_WITH_ZERO,
            "range_floor": 1e-10,
            "zero_point_rule": ZeroPointRule.ROUNDED_CODE,
        },
        # quanto quantize_symmetric: clamp(R(x / s)) in the dtype of x, s = m / hi, which may be 0 (codes 0)
        "quanto": {"compute_dtype": ComputeDtype.INPUT, "nan": NanRule.ZERO, "floor": 0.0},
        # quanto quantize_affine: clamp(R((x + z) / s)), code * s - z; z = -min, s = (max - min) / (hi - lo) of the data
        # alone, which may be 0 (codes 0, value min)
        "quanto_affine": {
            "compute_dtype": ComputeDtype.INPUT,
            "zero_point": ZeroPoint.MIN_MAX,
            "zero_point_domain": ZeroPointDomain.SHIFT,
            "range": RangeRule.OF_DATA,
            "nan": NanRule.ZERO,
            "floor": 0.0,
        },
        # Qwix quantize: sat(R(x * (1 / s) + z)) in the dtype of x, op by op on XLA:CPU; s = m * (1 / 127.5), 1 if tiny
        "qwix": {**_QWIX, **_XLA_RECIPROCALS},
        # the same for bfloat16, where XLA:CPU divides: sat(R(x / s + z)), s = m / 127.5, 1 if tiny
        "qwix_bfloat16": _QWIX,
        # AQT IntSymmetric (narrow formats): R(clip(x * (1 / s))) in the dtype of x, subnormals flushed (not those of
        # float16); s = m * (1 / (hi + 1/2)), m = 0 counts as 1. For bfloat16 XLA:CPU divides m: scale_division="divide"
        "aqt": {
            **_XLA_RECIPROCALS,
            "compute_dtype": ComputeDtype.INPUT,
            "nan": NanRule.ZERO,
            "flush_subnormals": True,
            "denominator": Denominator.EDGE,
            "empty_range": 1.0,
        },
        # ONNX QuantizeLinear: sat(R(x / s) + z) in float32; DynamicQuantizeLinear: s = (max - min) / (hi - lo), or 1
        # where that is 0, z = lo - R(min / s)
        "onnx": {"nan": NanRule.LOWEST, "floor": 0.0, "replace_below": 2.0**-149, "replacement": 1.0},
        # the same to float8 and float4, as onnxruntime and the reference evaluator do: NaN stays, and so does -0.0
        "onnx_float": {"keep_negative_zero": True, "floor": 0.0, "replace_below": 2.0**-149, "replacement": 1.0},
        # compressed-tensors quantize, fake_quantize: R(clamp(x / s + z)) in the dtype of x, floats throughout, so -0.0
        # survives; s = m / ((hi - lo) / 2) or (max - min) / (hi - lo), epsilon of the dtype where that is 0 (here that
        # of float32; of 16 bits: replacement=2**-7 for bfloat16, 2**-10 for float16), z = R(lo - min / s),
        # 0 there
        "compressed_tensors": {
            "compute_dtype": ComputeDtype.INPUT,
            "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
            "clamp_order": ClampOrder.BEFORE_ROUNDING,
            "keep_negative_zero": True,
            "denominator": Denominator.HALF_RANGE,
            "floor": 0.0,
            "replace_below": 2.0**-149,
            "replacement": 2.0**-23,
            "zero_point_rule": ZeroPointRule.ROUNDED_CODE,
            "zero_point_scale": ZeroPointScale.RAW,
        },
        # LiteRT QUANTIZE by XNNPACK: clamp(R(x * (1 / s)) + z) in float32, subnormals flushed; parameters of
        # ai-edge-quantizer
        "litert": {
            **_AI_EDGE,
            "division": Division.RECIPROCAL,
            "nan": NanRule.HIGHEST,
            "flush_subnormals": True,
        },
        # LiteRT QUANTIZE by the reference kernel: clamp(A(x / s) + z), A rounding ties away from zero
        "litert_reference": {**_AI_EDGE, "rounding": Rounding.TIES_TO_AWAY, "nan": NanRule.LOWEST},
        # ai-edge-quantizer uniform_quantize (signed 8 bits: narrow): clamp(R(x / s + z)) in float32, NaN to 0
        "ai_edge_quantizer": {
            **_AI_EDGE,
            "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
            "nan": NanRule.ZERO,
        },
    },
)
