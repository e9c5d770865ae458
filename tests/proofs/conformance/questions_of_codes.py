"""Faults in how given parameters are used: `conformance` finds the rule that is broken.

Functions return codes where that is enough: values bring the sign of zero with them, which is a rule of its own.
"""

from functools import cache
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from samebits.core import IntegerFormat, catalog, dialects

from .instruments import Function, Question, conforms

F32, E4M3, E5M2 = np.float32, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
INT8 = catalog["int8_per_tensor"]
INT4 = INT8.replace(format=IntegerFormat(4))
UINT3 = INT8.replace(format=IntegerFormat(3, signed=False))


def codes(rounded: Function, lo: int = -128, hi: int = 127) -> Function:
    """clip(rounded(x, s))."""
    return lambda x, s: np.clip(rounded(x, s), lo, hi).astype(np.int64)


def affine(rounded: Function) -> Function:
    """clip(rounded(x, s, z)) of uint8."""
    return lambda x, s, z: np.clip(rounded(x, s, z.astype(F32)), 0, 255).astype(np.int64)


def divided(x: Any, s: Any) -> Any:
    return np.rint(x / s)


right, right_affine = codes(divided), affine(lambda x, s, z: np.rint(x / s) + z)


def away(x: Any) -> Any:
    """Halves away from zero, without adding one half to anything: of 0.49999997 that is 1."""
    down = np.floor(np.abs(x))
    return np.copysign(down + (np.abs(x) - down >= 0.5), x)


def half_up(x: Any) -> Any:
    return np.floor(x) + (x - np.floor(x) >= 0.5)


def above(x: Any, s: Any) -> Any:
    """One ulp more than the quotient, as an approximate division may have it."""
    return np.nextafter(x / s, np.inf, dtype=(x / s).dtype)


@cache
def session(level: str) -> Any:
    """Relu, QuantizeLinear to int4 and DequantizeLinear in onnxruntime."""
    info = helper.make_tensor_value_info
    zero = helper.make_tensor("z", TensorProto.INT4, [], [0])
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    inputs = [info("x", TensorProto.FLOAT, None), info("s", TensorProto.FLOAT, [])]
    graph = helper.make_graph(nodes, "one", inputs, [info("y", TensorProto.FLOAT, None)], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def relu_of_onnxruntime(level: str) -> Function:
    return lambda x, s: np.rint(session(level).run(None, {"x": x, "s": s})[0] / s).astype(np.int64)


@cache
def reference() -> Any:
    """QuantizeLinear in the reference evaluator of onnx."""
    info = helper.make_tensor_value_info
    inputs = [info("x", TensorProto.FLOAT, None), info("s", TensorProto.FLOAT, [])]
    zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    graph = helper.make_graph([node], "one", inputs, [info("y", TensorProto.INT8, None)], [zero])
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def of_make_tensor(x: Any, s: Any) -> Any:
    """Codes that lie outside int4, as `onnx.helper.make_tensor` stores them."""
    whole = np.clip(np.nan_to_num(np.rint(x / s)), -100, 100).astype(np.int64)
    return numpy_helper.to_array(helper.make_tensor("t", TensorProto.INT4, whole.shape, whole.reshape(-1))).astype(int)


def textbook(x: Any, s: Any) -> Any:
    return torch.clamp(torch.round(x / s), -128, 127) * s


def in_float32(x: Any, s: Any) -> Any:
    return (torch.clamp(torch.round(x.float() / s), -128, 127) * s + 0.0).to(x.dtype)


def per_channel(x: Any, s: Any) -> Any:
    zero = torch.zeros(len(x), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(x, s.reshape(-1), zero, 0, -128, 127)


def row_by_row(x: Any, s: Any) -> Any:
    rows = [torch.fake_quantize_per_tensor_affine(row, float(t), 0, -128, 127) for row, t in zip(x, s, strict=True)]
    return torch.stack(rows) if rows else x


def grouped(other: bool) -> Function:
    """int4 in groups of 32, with the scales repeated, or laid out one after the other."""

    def function(x: Any, s: Any) -> Any:
        size = x.shape[-1] // max(s.shape[-1], 1)
        each = np.tile(s, (1, size)) if other else np.repeat(s, size, 1)
        return np.clip(np.rint(x / each), -8, 7).astype(np.int64)

    return function


def shifted(x: Any, s: Any) -> Any:
    """OpenVINO: code * scale + shift instead of (code - zero) * scale."""
    return (np.clip(np.rint(x / s), -128, 127) + F32(128)) * s + F32(-128) * s


def plain(x: Any, s: Any) -> Any:
    return np.clip(np.rint(x / s), -128, 127) * s + F32(0)


QUESTIONS: dict[str, Question] = {
    "qat-multiplies": conforms(codes(lambda x, s: np.rint(x * (1 / s))), right),
    "scalar-divisor": conforms(
        lambda x, s: torch.clamp(torch.round(x * torch.reciprocal(s)), -128, 127) * s + 0.0,
        lambda x, s: textbook(x, s) + 0.0,
    ),
    "approximate-division": conforms(codes(lambda x, s: np.rint(above(x, s))), right),
    "floor-of-approximate": conforms(
        codes(lambda x, s: np.floor(np.nextafter(x / s, -np.inf, dtype=F32))),
        codes(lambda x, s: np.floor(x / s)),
        INT8.replace(rounding="toward_negative"),
    ),
    "exact-numbers-move": conforms(
        codes(lambda x, s: np.floor(x / s) + 1),
        codes(lambda x, s: np.ceil(x / s)),
        INT8.replace(rounding="toward_positive"),
    ),
    "wrapping-cast": conforms(lambda x, s: np.rint(x / s).astype(np.int64).astype(np.int8), right),
    "int64-before-clamp": conforms(lambda x, s: np.clip(np.rint(x / s).astype(np.int64), -128, 127), right),
    "int32-before-clamp": conforms(lambda x, s: np.clip(np.rint(x / s).astype(np.int32), -128, 127), right),
    "reference-evaluator": conforms(lambda x, s: reference().run(None, {"x": x, "s": s})[0], right),
    "per-channel-infinity": conforms(
        per_channel, row_by_row, catalog["int8_per_channel"].replace(**dialects["torch_fake_quantize"])
    ),
    "clamp-at-half": conforms(lambda x, s: np.rint(np.clip(x / s, -128.5, 127.5)).astype(np.int64), right),
    "inference-rounds": conforms(right, codes(lambda x, s: np.floor(x / s)), INT8.replace(rounding="toward_negative")),
    "float16-truncates": conforms(
        codes(lambda x, s: np.trunc(x.astype(F32) / s)), codes(lambda x, s: np.rint(x.astype(F32) / s)), dtype="float16"
    ),
    "half-away": conforms(codes(lambda x, s: away(x / s)), right),
    "half-away-by-adding": conforms(codes(lambda x, s: np.trunc(x / s + np.copysign(F32(0.5), x))), right),
    "half-up-by-adding": conforms(
        codes(lambda x, s: np.floor(x / s + F32(0.5))),
        codes(lambda x, s: half_up(x / s)),
        INT8.replace(rounding="ties_toward_positive"),
    ),
    "truncates-toward-zero": conforms(
        codes(lambda x, s: np.trunc(x / s)),
        codes(lambda x, s: np.floor(x / s)),
        INT8.replace(rounding="toward_negative"),
    ),
    "half-step-up": conforms(codes(lambda x, s: half_up(x / s)), right),
    "zero-point-first": conforms(affine(lambda x, s, z: np.rint(x / s + z)), right_affine, "uint8_affine_per_tensor"),
    "zero-point-first-clamped": conforms(
        lambda x, s, z: np.rint(np.clip(x / s + z.astype(F32), 0, 255)).astype(np.int64),
        right_affine,
        "uint8_affine_per_tensor",
    ),
    "zero-point-dequantized": conforms(
        affine(lambda x, s, z: np.rint(x / s) + np.rint(z * s)), right_affine, "uint8_affine_per_tensor"
    ),
    "unsigned-bound": conforms(
        affine(lambda x, s, z: np.minimum(np.rint(x / s) + z, 128)), right_affine, "uint8_affine_per_tensor"
    ),
    "bits-dropped": conforms(right, codes(divided, -8, 7), INT4),
    "relu-dropped": conforms(
        relu_of_onnxruntime("ORT_ENABLE_ALL"), relu_of_onnxruntime("ORT_DISABLE_ALL"), UINT3, shapes=False
    ),
    "make-tensor-wraps": conforms(of_make_tensor, codes(divided, -8, 7), INT4),
    "astype-int4-wraps": conforms(
        lambda x, s: np.clip(np.rint(x / s), -1e6, 1e6).astype(ml_dtypes.int4).astype(int), codes(divided, -8, 7), INT4
    ),
    "int4-in-int8": conforms(
        codes(lambda x, s: np.trunc(x / s)),
        codes(lambda x, s: np.trunc(x / s), -8, 7),
        INT4.replace(rounding="toward_zero"),
    ),
    "bfloat16-steps": conforms(
        lambda x, s: textbook(x, s.to(x.dtype)) + 0.0, in_float32, dtype="bfloat16", shapes=False
    ),
    "subnormals": conforms(
        lambda x, s: jnp.clip(jnp.round(x / jnp.full(x.shape, s)), -128, 127).astype(jnp.int8), right, shapes=False
    ),
    "eps-in-quantize": conforms(codes(lambda x, s: np.rint(x / np.maximum(s, F32(1e-7)))), right),
    "eps-added": conforms(codes(lambda x, s: np.rint(x / (s + F32(1e-7)))), right),
    "groups-mixed": conforms(grouped(True), grouped(False), "int4_per_group32"),
    "shift-not-zero-point": conforms(shifted, plain),
    "ratio-of-256ths": conforms(codes(lambda x, s: np.rint(x * (np.rint(F32(256) / s) / F32(256)))), right),
    "dtype-of-scale": conforms(
        lambda x, s: np.clip(np.rint(x.astype(F32) / s), -128, 127) * s,
        lambda x, s: (np.clip(np.rint(x.astype(F32) / s), -128, 127) * s + F32(0)).astype(x.dtype),
        dtype="bfloat16",
    ),
    "nan-is-highest": conforms(lambda x, s: np.where(np.isnan(x), F32(127) * s, plain(x, s)), plain),
}
