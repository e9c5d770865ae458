"""Dialects: the arithmetic and scale rules of other systems, as fields of ours.

``q.replace(**dialects["torch_fake_quantize"])`` is a quantizer of ours with the bits of theirs, for parameters given;
each entry is compared with the installed library in ``tests/test_oracles.py``.
"""

from collections.abc import Mapping
from typing import Any

from .arithmetic import Division, NanRule, ZeroPointOrder
from .catalog import Named

dialects: Mapping[str, Mapping[str, Any]] = Named(
    "dialect",
    {
        # torch.fake_quantize_per_tensor_affine: (clamp(round(x * (1 / s)) + z) - z) * s
        "torch_fake_quantize": {"division": Division.RECIPROCAL, "nan": NanRule.LOWEST},
        # torch.quantize_per_tensor, torch.quantize_per_channel: clamp(round(fma(x, 1 / s, z)))
        "torch_quantize": {
            "division": Division.RECIPROCAL,
            "zero_point_order": ZeroPointOrder.BEFORE_ROUNDING,
            "fused_multiply_add": True,
            "nan": NanRule.HIGHEST,
        },
        # Brevitas IntQuant: clamp(round(x / s + z)), floats throughout, so -0.0 survives
        "brevitas": {"zero_point_order": ZeroPointOrder.BEFORE_ROUNDING, "keep_negative_zero": True},
        # ONNX QuantizeLinear: saturate(round(x / s) + z)
        "onnx": {"nan": NanRule.LOWEST},
    },
)
