"""Faults in casts to small floating-point formats: `conformance` finds the rule that is broken."""

from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

from .instruments import Function, Question, conforms

F32, E4M3, E5M2 = np.float32, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E5M2_NUMBERS = np.arange(0x7C, dtype=np.uint8).view(E5M2).astype(np.float64)


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


@cache
def session() -> Any:
    """QuantizeLinear to float8_e4m3fn without saturation, and DequantizeLinear, in onnxruntime."""
    info = helper.make_tensor_value_info
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], saturate=0),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    inputs = [info("x", TensorProto.FLOAT, None), info("s", TensorProto.FLOAT, [])]
    graph = helper.make_graph(nodes, "one", inputs, [info("y", TensorProto.FLOAT, None)], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def float8_of_onnxruntime(x: Any, s: Any) -> Any:
    return session().run(None, {"x": x, "s": s})[0]


QUESTIONS: dict[str, Question] = {
    "overflow-is-nan": conforms(values(lambda q: cast(q, E4M3)), direct(E4M3, 448), "float8_e4m3fn_per_tensor"),
    "overflow-saturates": conforms(of_torch, values(lambda q: cast(q, E4M3)), "float8_e4m3fn_overflow_per_tensor"),
    "two-steps-openvino": conforms(through(np.float16, E4M3, 448), direct(E4M3, 448), "float8_e4m3fn_per_tensor"),
    "two-steps": conforms(through(np.float16, E5M2, 57344), direct(E5M2, 57344), "float8_e5m2_per_tensor"),
    "two-steps-bfloat16": conforms(
        through(ml_dtypes.bfloat16, E4M3, 448), direct(E4M3, 448), "float8_e4m3fn_per_tensor"
    ),
    "float64-in-two-steps": conforms(direct(E4M3, 448), once, "float8_e4m3fn_per_tensor", dtype="float64"),
    "e5m2-half-away": conforms(e5m2("away"), e5m2("even"), "float8_e5m2_per_tensor", dtype="float16"),
    "fp4-ties-to-zero": conforms(
        values(lambda q: on_grid(q, E2M1, "zero")), values(lambda q: on_grid(q, E2M1, "even")), "float4_e2m1_per_tensor"
    ),
    "e0mx-overflow": conforms(
        values(lambda q: on_grid(q, (*E2M1, 8.0), "even")),
        values(lambda q: on_grid(q, E2M1, "even")),
        "float4_e2m1_per_tensor",
    ),
    "first-binade-lost": conforms(values(first_binade_lost), direct(E4M3, 448), "float8_e4m3fn_per_tensor"),
    "round-up-lost": conforms(values(round_up_lost), direct(E4M3, 448), "float8_e4m3fn_per_tensor"),
    "infinity-is-nan": conforms(
        values(lambda q: np.where(np.isinf(q), np.nan, cast(q, E4M3, 448)).astype(q.dtype)),
        direct(E4M3, 448),
        "float8_e4m3fn_per_tensor",
    ),
    "nan-is-lowest": conforms(
        values(lambda q: cast(np.where(np.isnan(q), -448, q).astype(q.dtype), E4M3, 448)),
        direct(E4M3, 448),
        "float8_e4m3fn_per_tensor",
    ),
    "float8-no-saturation": conforms(
        float8_of_onnxruntime, values(lambda q: cast(q, E4M3)), "float8_e4m3fn_overflow_per_tensor", shapes=False
    ),
}
