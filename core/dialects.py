"""Dialects: the arithmetic and scale rules of other systems, as fields of ours.

``q.replace(**dialects["torch_fake_quantize"])`` is a quantizer of ours with the bits of theirs. Each entry is compared
with the installed library in ``tests/test_oracle*.py``: codes and values for given parameters, and the choice of
parameters where the comment says so. What stays different (overflow faults, say) is listed there, with its cause.
"""

from collections.abc import Mapping
from typing import Any

from .arithmetic import ComputeDtype, Division, NanRule, ZeroPointDomain, ZeroPointOrder
from .catalog import Named
from .descriptions import Denominator, ZeroPoint

dialects: Mapping[str, Mapping[str, Any]] = Named(
    "dialect",
    {
        # torch.fake_quantize_per_tensor_affine, _per_channel_affine: (clamp(round(x * (1 / s)) + z) - z) * s, float32
        "torch_fake_quantize": {"division": Division.RECIPROCAL, "nan": NanRule.LOWEST},
        # torch.quantize_per_tensor: clamp(round(fma(x, 1 / s, z)))
        "torch_quantize": {
            "division": Division.RECIPROCAL,
            "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
            "fused_multiply_add": True,
            "nan": NanRule.HIGHEST,
        },
        # torch.quantize_per_channel: clamp(round(x * (1 / s) + z)), the product rounded
        "torch_quantize_per_channel": {
            "division": Division.RECIPROCAL,
            "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
            "nan": NanRule.ZERO,
        },
        # torch.ops.quantized_decomposed.quantize_per_tensor: clamp(round(x * (1 / s)) + z) in float32
        "torch_decomposed": {"division": Division.RECIPROCAL, "nan": NanRule.ZERO},
        # torchao choose_qparams_affine, quantize_affine, dequantize_affine: as above in the dtype of x. Parameters too:
        # s = absmax / ((hi - lo) / 2) (MappingType.SYMMETRIC), or affine like ours (ASYMMETRIC)
        "torchao": {
            "compute_dtype": ComputeDtype.INPUT,
            "division": Division.RECIPROCAL,
            "nan": NanRule.ZERO,
            "denominator": Denominator.HALF_RANGE,
        },
        # torchao's FLOAT domain (tinygemm): clamp(round((x - (z - s * mid)) / s)), (code - mid) * s + z. Parameters
        # too, of groups that hold both signs (theirs do not widen the range to 0)
        "torchao_tinygemm": {
            "compute_dtype": ComputeDtype.INPUT,
            "zero_point": ZeroPoint.MIN_MAX,
            "zero_point_domain": ZeroPointDomain.FLOAT,
            "nan": NanRule.ZERO,
        },
        # Brevitas IntQuant: clamp(round(x / s + z)) in the dtype of x, floats throughout, so -0.0 survives. Parameters
        # too, of a narrow format and float scales
        "brevitas": {
            "compute_dtype": ComputeDtype.INPUT,
            "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
            "keep_negative_zero": True,
        },
        # ONNX QuantizeLinear: saturate(round(x / s) + z) in float32, and DynamicQuantizeLinear, parameters too
        "onnx": {"nan": NanRule.LOWEST},
    },
)
