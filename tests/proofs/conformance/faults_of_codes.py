"""Faults in how given parameters are used: `conformance` finds the rule that is broken.

Functions return codes where that is enough: values bring the sign of zero with them, which is a rule of its own.
"""

from functools import cache
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from samebits.core import IntegerFormat, catalog, dialects

from .instruments import Fault, Function, conforms

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


def cast(x: Any, dtype: Any, limit: float | None = None) -> Any:
    """To an eight-bit float and back; without a limit what is too large becomes what the cast makes of it."""
    wide = x if limit is None else np.clip(x, -limit, limit)
    return wide.astype(dtype).astype(x.dtype)


def values(number: Function) -> Function:
    """number(x / s) * s."""
    return lambda x, s: (number(x / s) * s).astype(x.dtype)


def on_grid(x: Any, table: Any, ties: str) -> Any:
    """The nearest of some magnitudes, halves to "zero", "away" or "even": to the place with an even number."""
    known = np.asarray(table, np.float64)
    size = np.minimum(np.abs(x.astype(np.float64)), known[-1])
    below = np.clip(np.searchsorted(known, size, "right") - 1, 0, len(known) - 2)
    middle = (known[below] + known[below + 1]) / 2
    up = (size > middle) | ((size == middle) & ((ties == "away") | ((ties == "even") & (below % 2 == 1))))
    found = np.copysign(known[below + up], x).astype(x.dtype)
    return np.where(np.isnan(x), x, found)


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E5M2_NUMBERS = np.arange(0x7C, dtype=np.uint8).view(E5M2).astype(np.float64)


@cache
def session(kind: str, level: str) -> Any:
    """One model of onnxruntime: Relu and QuantizeLinear to int4, or QuantizeLinear to float8 without saturation."""
    whole = TensorProto.INT4 if kind == "relu" else TensorProto.FLOAT8E4M3FN
    info = helper.make_tensor_value_info
    zero = helper.make_tensor("z", whole, [], [0])
    quantize = {"saturate": 0} if kind == "float8" else {}
    nodes = [helper.make_node("Relu", ["x"], ["r"])] if kind == "relu" else []
    nodes += [helper.make_node("QuantizeLinear", ["r" if nodes else "x", "s", "z"], ["q"], **quantize)]
    nodes += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    inputs = [info("x", TensorProto.FLOAT, None), info("s", TensorProto.FLOAT, [])]
    graph = helper.make_graph(nodes, "one", inputs, [info("y", TensorProto.FLOAT, None)], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def relu_of_onnxruntime(level: str) -> Function:
    return lambda x, s: np.rint(session("relu", level).run(None, {"x": x, "s": s})[0] / s).astype(np.int64)


def float8_of_onnxruntime(x: Any, s: Any) -> Any:
    return session("float8", "ORT_ENABLE_ALL").run(None, {"x": x, "s": s})[0]


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


def through(dtype: Any, to: Any, limit: float) -> Function:
    """Values of a cast to float8 by way of another dtype."""
    return values(lambda q: cast(np.clip(q, -limit, limit).astype(dtype).astype(q.dtype), to))


def direct(to: Any, limit: float) -> Function:
    """The same, rounded once; ml_dtypes rounds float64 to float32 first, so that this is for less."""
    return values(lambda q: cast(q, to, limit))


def once(x: Any, s: Any) -> Any:
    """float64 to e4m3fn by halves: to odd in float32, so that the second rounding does no harm."""
    q = np.clip(x / s, -448, 448)
    near = q.astype(F32)
    inward = np.where(np.abs(near.astype(np.float64)) > np.abs(q), np.nextafter(near, F32(0)), near)
    odd = np.where(inward.astype(np.float64) == q, inward, (inward.view(np.uint32) | 1).view(F32))
    return odd.astype(E4M3).astype(np.float64) * s


def of_torch(x: Any, s: Any) -> Any:
    return (x / s).to(torch.float8_e4m3fn).to(x.dtype) * s


def e5m2(ties: str) -> Function:
    return lambda x, s: (on_grid(x.astype(F32) / s, E5M2_NUMBERS, ties) * s).astype(x.dtype)


def first_binade_lost(q: Any) -> Any:
    size = np.abs(q)
    return np.where((size > 464) & (size < 1024), 0 * q, cast(q, E4M3, 448))


def round_up_lost(q: Any) -> Any:
    """What rounds up from the subnormal numbers to the smallest normal one becomes 0."""
    found = cast(q, E4M3, 448)
    return np.where((np.abs(q) < 2.0**-6) & (np.abs(found) == F32(2.0**-6)), 0 * q, found)


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


EXPECTED_AWAY = "rounding direction: ties_to_away, must be ties_to_even"
ORDER = "zero point before rounding: round(x / scale + zero_point), must be round(x / scale) + zero_point"
RECIPROCAL = "reciprocal: x * (1 / scale), must be x / scale, one correctly rounded division"

FAULTS: tuple[Fault, ...] = (
    Fault("qat-multiplies", "torchao", "pytorch/ao#229", "QAT multiplies by the reciprocal where PTQ divides",
        conforms(codes(lambda x, s: np.rint(x * (1 / s))), right), RECIPROCAL),
    Fault("scalar-divisor", "torch, CUDA", "pytorch/pytorch#186618", "a scalar divisor becomes its reciprocal on one device only",
        conforms(lambda x, s: torch.clamp(torch.round(x * torch.reciprocal(s)), -128, 127) * s + 0.0, lambda x, s: textbook(x, s) + 0.0), RECIPROCAL),
    Fault("approximate-division", "Triton", "triton-lang/triton#10661", "/ is an approximate division: 4.6875 / 0.9375 is 5.0000005",
        conforms(codes(lambda x, s: np.rint(above(x, s))), right), "?"),
    Fault("floor-of-approximate", "Inductor", "pytorch/pytorch#177926", "floor(a / b) is floor(3.9999997): one too small",
        conforms(codes(lambda x, s: np.floor(np.nextafter(x / s, -np.inf, dtype=F32))), codes(lambda x, s: np.floor(x / s)), INT8.replace(rounding="toward_negative")), "?"),
    Fault("wrapping-cast", "Inductor", "numerics A13", "a cast to int8 wraps where eager code saturates",
        conforms(lambda x, s: np.rint(x / s).astype(np.int64).astype(np.int8), right), "?"),
    Fault("int64-before-clamp", "torch, CUDA and ROCm", "pytorch/pytorch#171777", "infinity is cast to int64 before the clamp, and becomes the lowest code",
        conforms(lambda x, s: np.clip(np.rint(x / s).astype(np.int64), -128, 127), right), "?"),
    Fault("int32-before-clamp", "LiteRT", "discovery S22", "numbers beyond 2**31 steps become the lowest code",
        conforms(lambda x, s: np.clip(np.rint(x / s).astype(np.int32), -128, 127), right), "?"),
    Fault("reference-evaluator", "onnx", "discovery S6", "the reference evaluator casts to int32 before it clips",
        conforms(lambda x, s: reference().run(None, {"x": x, "s": s})[0], right), "?", live=True),
    Fault("per-channel-infinity", "torch", "pytorch/pytorch#106780", "per channel, infinity and 1e18 steps become the lowest code",
        conforms(per_channel, row_by_row, catalog["int8_per_channel"].replace(**dialects["torch_fake_quantize"])), "?", live=True),
    Fault("clamp-at-half", "qwix, Brevitas", "brevitas@c34c1d22", "clamped to 127.5 before it is rounded: code 128",
        conforms(lambda x, s: np.rint(np.clip(x / s, -128.5, 127.5)).astype(np.int64), right), "?"),
    Fault("inference-rounds", "Brevitas", "Xilinx/brevitas#1146", "inference rounds to nearest whatever rounding was trained with",
        conforms(right, codes(lambda x, s: np.floor(x / s)), INT8.replace(rounding="toward_negative")), "?"),
    Fault("float16-truncates", "onnxruntime", "microsoft/onnxruntime#18576", "QuantizeLinear of float16 truncates",
        conforms(codes(lambda x, s: np.trunc(x.astype(F32) / s)), codes(lambda x, s: np.rint(x.astype(F32) / s)), dtype="float16"), "?"),
    Fault("half-away", "torch-mlir", "llvm/torch-mlir#3569", "halves go away from zero",
        conforms(codes(lambda x, s: away(x / s)), right), "?"),
    Fault("half-away-by-adding", "tract", "sonos/tract#2672", "halves go away from zero, by adding one half to them",
        conforms(codes(lambda x, s: np.trunc(x / s + np.copysign(F32(0.5), x))), right), "?"),
    Fault("half-up-by-adding", "HGQ2, qonnx", "discovery S17", "floor(x + 1/2) in floating point: of 0.49999997 that is 1",
        conforms(codes(lambda x, s: np.floor(x / s + F32(0.5))), codes(lambda x, s: half_up(x / s)), INT8.replace(rounding="ties_toward_positive")), "?"),
    Fault("truncates-toward-zero", "fxpmath", "discovery L7", "trunc goes toward zero, where hardware goes down",
        conforms(codes(lambda x, s: np.trunc(x / s)), codes(lambda x, s: np.floor(x / s)), INT8.replace(rounding="toward_negative")), "?"),
    Fault("half-step-up", "Keras", "discovery S13", "values round halves up, zero points halves to even, in one function",
        conforms(codes(lambda x, s: half_up(x / s)), right), "?"),
    Fault("zero-point-first", "torch", "pytorch/pytorch#65055", "the zero point is added before rounding",
        conforms(affine(lambda x, s, z: np.rint(x / s + z)), right_affine, "uint8_affine_per_tensor"), ORDER),
    Fault("zero-point-first-clamped", "compressed-tensors", "discovery D2", "clamp, then round, of x / s + z",
        conforms(lambda x, s, z: np.rint(np.clip(x / s + z.astype(F32), 0, 255)).astype(np.int64), right_affine, "uint8_affine_per_tensor"), ORDER),
    Fault("zero-point-dequantized", "Brevitas", "brevitas@bc2cb0f1", "the zero point is dequantized before it is added",
        conforms(affine(lambda x, s, z: np.rint(x / s) + np.rint(z * s)), right_affine, "uint8_affine_per_tensor"), "?"),
    Fault("zero-point-not-taken-off", "Brevitas", "brevitas@a7eb8b98", "",
        conforms(lambda x, s, z: (np.clip(np.rint(x / s) + z, 0, 255) * s).astype(F32) , lambda x, s, z: ((np.clip(np.rint(x / s) + z, 0, 255) - z) * s).astype(F32)+F32(0), "uint8_affine_per_tensor"), "?"),
    Fault("unsigned-bound", "Brevitas", "brevitas@16c2147f", "the bound of unsigned codes is 2**(bits - 1)",
        conforms(affine(lambda x, s, z: np.minimum(np.rint(x / s) + z, 128)), right_affine, "uint8_affine_per_tensor"), "?"),
    Fault("bits-dropped", "Keras", "discovery S11", "num_bits is dropped in a functional model: always eight",
        conforms(right, codes(divided, -8, 7), INT4), "?"),
    Fault("relu-dropped", "onnxruntime", "discovery S1", "Relu before QuantizeLinear to int4 is optimized away",
        conforms(relu_of_onnxruntime("ORT_ENABLE_ALL"), relu_of_onnxruntime("ORT_DISABLE_ALL"), UINT3, shapes=False), "?", live=True),
    Fault("make-tensor-wraps", "onnx", "discovery S7", "helper.make_tensor wraps int4 where it saturates float8",
        conforms(of_make_tensor, codes(divided, -8, 7), INT4), "?", live=True),
    Fault("astype-int4-wraps", "ml_dtypes", "discovery I4", "a cast to int4 wraps, where that of JAX saturates",
        conforms(lambda x, s: np.clip(np.rint(x / s), -1e6, 1e6).astype(ml_dtypes.int4).astype(int), codes(divided, -8, 7), INT4), "?", live=True),
    Fault("int4-in-int8", "OpenVINO", "discovery S21", "i4 is treated as i8: codes outside its range",
        conforms(codes(lambda x, s: np.trunc(x / s)), codes(lambda x, s: np.trunc(x / s), -8, 7), INT4.replace(rounding="toward_zero")), "?"),
    Fault("overflow-is-nan", "ml_dtypes, JAX", "jax-ml/ml_dtypes#400", "beyond 464 float8_e4m3fn becomes NaN, in torch 448",
        conforms(values(lambda q: cast(q, E4M3)), direct(E4M3, 448), "float8_e4m3fn_per_tensor"), "?", live=True),
    Fault("overflow-saturates", "torch", "pytorch/pytorch#178817", "a cast to float8_e4m3fn saturates, and so does infinity",
        conforms(of_torch, values(lambda q: cast(q, E4M3)), "float8_e4m3fn_overflow_per_tensor"), "?", live=True),
    Fault("two-steps", "Triton", "triton-lang/triton#2583", "float32 becomes float8 by way of float16, which rounds twice",
        conforms(through(np.float16, E4M3, 448), direct(E4M3, 448), "float8_e4m3fn_per_tensor"), "?"),
    Fault("two-steps-e5m2", "OpenVINO", "discovery S19", "Convert to float8 goes through float16",
        conforms(through(np.float16, E5M2, 57344), direct(E5M2, 57344), "float8_e5m2_per_tensor"), "?"),
    Fault("two-steps-bfloat16", "XLA:CPU", "openxla/xla#17324", "float32 to float8_e4m3fn is rounded twice",
        conforms(through(ml_dtypes.bfloat16, E4M3, 448), direct(E4M3, 448), "float8_e4m3fn_per_tensor"), "?"),
    Fault("float64-in-two-steps", "torch, ml_dtypes", "discovery S11", "float64 becomes float8 by way of float32",
        conforms(through(F32, E4M3, 448), once, "float8_e4m3fn_per_tensor", dtype="float64"), "?", live=True),
    Fault("e5m2-half-away", "Triton", "triton-lang/triton#5925", "9 becomes 10 in e5m2, to even is 8",
        conforms(e5m2("away"), e5m2("even"), "float8_e5m2_per_tensor", dtype="float16"), "?"),
    Fault("fp4-ties-to-zero", "gguf", "discovery B7", "halves between MXFP4 numbers go toward zero",
        conforms(values(lambda q: on_grid(q, E2M1, "zero")), values(lambda q: on_grid(q, E2M1, "even")), "float4_e2m1_per_tensor"), "?"),
    Fault("e0mx-overflow", "AQT", "google/aqt@dcd2dd6", "the largest number is computed as if it were normal: 8 for 6",
        conforms(values(lambda q: on_grid(q, (*E2M1, 8.0), "even")), values(lambda q: on_grid(q, E2M1, "even")), "float4_e2m1_per_tensor"), "?"),
    Fault("first-binade-lost", "pychop", "discovery S16", "the first binade above the largest number becomes 0",
        conforms(values(first_binade_lost), direct(E4M3, 448), "float8_e4m3fn_per_tensor"), "?"),
    Fault("round-up-lost", "apytypes", "discovery S15", "what rounds up to the smallest normal number becomes 0",
        conforms(values(round_up_lost), direct(E4M3, 448), "float8_e4m3fn_per_tensor"), "?"),
    Fault("infinity-is-nan", "qonnx", "discovery S23", "infinity becomes NaN in spite of saturation",
        conforms(values(lambda q: np.where(np.isinf(q), np.nan, cast(q, E4M3, 448)).astype(q.dtype)), direct(E4M3, 448), "float8_e4m3fn_per_tensor"), "?"),
    Fault("nan-is-lowest", "OpenVINO", "discovery S20", "FakeConvert makes -448 of NaN",
        conforms(values(lambda q: cast(np.where(np.isnan(q), -448, q).astype(q.dtype), E4M3, 448)), direct(E4M3, 448), "float8_e4m3fn_per_tensor"), "?"),
    Fault("float8-no-saturation", "onnxruntime", "discovery S4", "saturate=0: 480 to 496 becomes 448, both sides of it NaN",
        conforms(float8_of_onnxruntime, values(lambda q: cast(q, E4M3)), "float8_e4m3fn_overflow_per_tensor", shapes=False), "?", live=True),
    Fault("bfloat16-steps", "torch, Inductor", "discovery S9", "eager bfloat16 rounds x / s to bfloat16, compiled code does not",
        conforms(lambda x, s: textbook(x, s.to(x.dtype)) + 0.0, in_float32, dtype="bfloat16", shapes=False), "?", live=True),
    Fault("subnormals", "XLA:CPU", "jax-ml/jax#37762", "subnormal numbers are zero",
        conforms(lambda x, s: jnp.clip(jnp.round(x / jnp.full(x.shape, s)), -128, 127).astype(jnp.int8), right, shapes=False), "?", live=True),
    Fault("eps-in-quantize", "torchao", "pytorch/ao#2986", "fake quantization raises the scale to another eps than the kernel",
        conforms(codes(lambda x, s: np.rint(x / np.maximum(s, F32(1e-7)))), right), "?"),
    Fault("eps-added", "Keras", "discovery A1", "epsilon is added to what is divided by",
        conforms(codes(lambda x, s: np.rint(x / (s + F32(1e-7)))), right), "?"),
    Fault("groups-mixed", "Qwix, Brevitas", "google/qwix@0684523", "groups lie along the other axis: scales of other blocks",
        conforms(grouped(True), grouped(False), "int4_per_group32"), "?"),
    Fault("shift-not-zero-point", "OpenVINO", "discovery F2", "values are code * scale + shift: the ends of the range are missed",
        conforms(shifted, plain), "?"),
    Fault("ratio-of-256ths", "LiteRT", "discovery S23", "XNNPACK rounds the ratio of scales to 1/256",
        conforms(codes(lambda x, s: np.rint(x * (np.rint(F32(256) / s) / F32(256)))), right), "?"),
    Fault("dtype-of-scale", "compressed-tensors", "discovery D2", "a float32 scale makes float32 of bfloat16 values",
        conforms(lambda x, s: np.clip(np.rint(x.astype(F32) / s), -128, 127) * s, lambda x, s: (np.clip(np.rint(x.astype(F32) / s), -128, 127) * s + F32(0)).astype(x.dtype), dtype="bfloat16"), "?"),
)
