"""Faults in how parameters are chosen, in special values and in gradients: `fingerprint` finds the field.

Each target stands beside one that differs in the fault alone; what is said is what the fingerprints of both differ in.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization.quant_utils import compute_scale_zp, get_qmin_qmax_for_qType

from samebits.core import IntegerFormat, PerTensor, QParams, Quantizer, catalog
from samebits.proofs.conformance.targets import Kind, Target, resolve

from .instruments import Array, Function, Question, chooses, computes, written

F32 = np.float32
TINY = F32(2.0**-126)
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]
CHANNELS, INT4 = catalog["int8_per_channel"], catalog["int4_per_channel"]
INT4_TENSOR = INT8.replace(format=IntegerFormat(4))
FLOAT8, MXFP4, MXFP6 = catalog["float8_e4m3fn_per_tensor"], catalog["mxfp4_e2m1"], catalog["mxfp6_e2m3"]
MXFP8 = catalog["mxfp8_e4m3"]


def given(function: Function, q: Quantizer = INT8, **claims: Any) -> Target:
    """A target that is given its parameters: codes of ``function(x, scale, zero point)``."""

    def target(x: Array, qparams: QParams) -> Array:
        return np.asarray(function(x, qparams.scale, qparams.zero_point))

    return Target("planted", target, q, **{"kind": Kind.CODES, **claims})


def rounded(x: Array, s: Array, z: Array | None = None) -> Array:
    code = np.rint(x / s)
    code = np.where(np.isnan(code), F32(0), code)
    return np.clip(code + (F32(0) if z is None else z.astype(F32)), *((-128, 127) if z is None else (0, 255))).astype(
        int
    )


def choosing(scale: Function, q: Quantizer = INT8, **claims: Any) -> Target:
    """A target that chooses ``scale(low, high)`` of each block by itself; codes by division."""

    def target(x: Array, _: QParams | None) -> tuple[Array, QParams]:
        rows = x.reshape(-1, _size(q, x))
        found = scale(np.nanmin(rows, 1), np.nanmax(rows, 1))
        s, z = found if isinstance(found, tuple) else (found, None)
        shape = () if isinstance(q.granularity, PerTensor) else (*x.shape[:-1], -1)
        qparams = QParams(np.reshape(s, shape), None if z is None else np.reshape(z, shape).astype(np.int32))
        code = np.rint(x / qparams.scale) + np.asarray(0 if z is None else qparams.zero_point, F32)
        return np.clip(code, q.format.lo, q.format.hi).astype(int), qparams

    return Target("planted", target, q, kind=Kind.CODES, chooses=True, **claims)


def _size(q: Quantizer, x: Array) -> int:
    return int(x.size if isinstance(q.granularity, PerTensor) else getattr(q.granularity, "size", x.shape[-1]))


def peak(low: Array, high: Array) -> Array:
    return np.maximum(np.abs(low), np.abs(high))


def over(d: float, floor: float = TINY) -> Function:
    """absmax / d, at least a floor."""
    return lambda low, high: np.maximum(peak(low, high) / F32(d), F32(floor))


def affine(rule: Callable[[Any, Any], Any], whole: Callable[[Any], Any] = np.rint) -> Function:
    """A scale over a range (low, high), and the zero point by a rounding."""

    def scale(low: Array, high: Array) -> tuple[Array, Array]:
        a, b = rule(low, high)
        s = np.maximum((b - a) / F32(255), TINY)
        return s, np.clip(0 - whole(a / s), 0, 255)

    return scale


def half_away(x: Array) -> Array:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def with_zero(low: Array, high: Array) -> tuple[Array, Array]:
    return np.minimum(low, 0), np.maximum(high, 0)


def exponent(x: Array) -> Array:
    """floor(log2(x)), exactly."""
    return np.frexp(x)[1] - 1


def power(less: Function) -> Function:
    """2 ** less(absmax) of a row."""
    return lambda row: np.ldexp(F32(1), int(less(np.abs(row).max())))


def rows(size: int, ends: tuple[float, ...] = ()) -> Array:
    """Random rows of many magnitudes, and one for each number of ``ends`` with nothing beside it."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((40, size)) * np.exp2(rng.integers(-8, 8, (40, 1)))).astype(F32)
    alone = np.zeros((len(ends), size), F32)
    alone[:, 0] = ends
    return np.concatenate([x, alone])


POWERS = tuple(2.0**k for k in range(-8, 31))
BELOW = tuple(float(np.nextafter(F32(p), F32(0))) for p in POWERS)  # each the number before a power of two


NEAR = tuple(p * (1 - 2.0**-10) for p in POWERS)  # which bfloat16 rounds up


def log2_of_xla(m: Array) -> int:
    """floor(log2(x)), where log2 of some powers of two is a little less than it is."""
    return int(exponent(m)) - (np.frexp(m)[0] == 0.5 and int(exponent(m)) in (13, 15, 26, 27, 30))


def values(x: Array, qparams: QParams) -> Array:
    return np.clip(np.rint(x / qparams.scale), -128, 127) * qparams.scale + F32(0)


def sloped(slope: Function) -> Target:
    """The textbook formula with a gradient of ``slope(x / s)``."""
    return Target(
        "planted", values, INT8, gradient=lambda x, p, g: np.where(slope(x / p.scale), g, F32(0)).astype(x.dtype)
    )


def inside(x: Array) -> Array:
    """Where the rounded code lies in the range."""
    return (np.rint(x) >= -128) & (np.rint(x) <= 127)


def of_onnxruntime(row: Array) -> Array:
    """The scale that the quantization tool of onnxruntime has for symmetric int4."""
    lo, hi = get_qmin_qmax_for_qType(TensorProto.INT4, symmetric=True)
    _, scale = compute_scale_zp(row.min(), row.max(), lo, hi, symmetric=True)
    return np.asarray(scale)


@cache
def int4_session() -> Any:
    """QuantizeLinear to int4 in onnxruntime."""
    info = helper.make_tensor_value_info
    inputs = [info("x", TensorProto.FLOAT, None), info("s", TensorProto.FLOAT, [])]
    zero = helper.make_tensor("z", TensorProto.INT4, [], [0])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Cast", ["q"], ["y"], to=TensorProto.INT8),
    ]
    graph = helper.make_graph(nodes, "one", inputs, [info("y", TensorProto.INT8, None)], [zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def int4_of_onnxruntime(x: Any, s: Any, z: Any) -> Any:
    return int4_session().run(None, {"x": x, "s": np.asarray(s)})[0]


def in_pairs(x: Any, s: Any, z: Any) -> Any:
    """The same for an even number of elements."""
    return int4_of_onnxruntime(np.append(x, x[-1:]) if x.size % 2 else x, s, z)[: x.size]


QUESTIONS: dict[str, Question] = {
    "nan-lowest": computes(resolve("torch.fake_quantize_per_tensor_affine"), resolve("textbook.torch_eager"), "NaN"),
    "nan-highest": computes(resolve("torch.quantize_per_tensor"), given(rounded, UINT8), "NaN"),
    "float16-quotient": computes(
        resolve("onnx.QuantizeLinear.float16"), given(lambda x, s, z: rounded(x.astype(F32), s), dtype="float16")
    ),
    "range-and-a-half": computes(choosing(over(127.5)), choosing(over(127))),
    "float8-over-127": chooses(
        lambda row: np.abs(row).max() / F32(127), lambda row: np.abs(row).max() / F32(448), FLOAT8, rows(8)
    ),
    "reciprocal-of-scale": computes(
        choosing(lambda a, b: np.maximum(peak(a, b) * (F32(1) / F32(127)), TINY), CHANNELS),
        choosing(over(127), CHANNELS),
    ),
    "double-reciprocal": chooses(
        lambda row: 1 / (F32(448) / np.abs(row).max()), lambda row: np.abs(row).max() / F32(448), FLOAT8, rows(8)
    ),
    "eps-of-dtype": computes(choosing(over(127, 2.0**-23)), choosing(over(127))),
    "signed-peak": computes(
        choosing(lambda a, b: np.where(peak(a, b) > -a, b, a) / F32(-8), INT4), choosing(over(7), INT4)
    ),
    "range-without-zero": computes(choosing(affine(lambda a, b: (a, b)), UINT8), choosing(affine(with_zero), UINT8)),
    "zero-point-half-away": computes(choosing(affine(with_zero, half_away), UINT8), choosing(affine(with_zero), UINT8)),
    "e8m0-of-quotient": chooses(
        power(lambda m: exponent(m / F32(7.5))), power(lambda m: exponent(m) - 2), MXFP6, rows(32)
    ),
    "threshold-of-exponent": chooses(
        power(lambda m: exponent(m * F32(8 / 7)) - 2), power(lambda m: exponent(m) - 2), MXFP4, rows(32)
    ),
    "bfloat16-before-e8m0": chooses(
        power(lambda m: exponent(m.astype(ml_dtypes.bfloat16).astype(F32)) - 8),
        power(lambda m: exponent(m) - 8),
        MXFP8,
        rows(32, BELOW + NEAR),
    ),
    "log2-in-float32": chooses(
        power(lambda m: np.floor(np.log2(m)) - 2), power(lambda m: exponent(m) - 2), MXFP4, rows(32, BELOW + NEAR)
    ),
    "log2-of-powers": chooses(
        power(lambda m: log2_of_xla(m) - 2), power(lambda m: exponent(m) - 2), MXFP4, rows(32, POWERS)
    ),
    "ceil-of-log2": chooses(
        power(lambda m: np.ceil(np.nextafter(np.log2(m), F32(np.inf))) - 2),
        power(lambda m: np.frexp(m)[1] - (np.frexp(m)[0] == 0.5) - 2),
        catalog["mxfp4_e2m1_ceil"],
        rows(32, POWERS),
    ),
    "depends-on-place": computes(
        given(
            lambda x, s, z: np.where(
                np.arange(x.size) < x.size // 8 * 8,
                rounded(x, s),
                np.clip(half_away(np.nan_to_num(x / s, posinf=1e9, neginf=-1e9)), -128, 127).astype(int),
            )
        ),
        given(rounded),
    ),
    "float16-scale-overflows": chooses(
        lambda row: F32(1) / F32(np.float16(127) / np.abs(row).max().astype(np.float16)),
        lambda row: np.abs(row).max() / F32(127),
        INT8,
        rows(8) / F32(1000),
    ),
    "zero-range-is-one": computes(resolve("onnxruntime.DynamicQuantizeLinear"), choosing(affine(with_zero), UINT8)),
    "gradient-passes-clamp": computes(sloped(lambda q: np.ones(q.shape, bool)), sloped(inside), "gradient"),
    "gradient-of-unrounded": computes(sloped(lambda q: (q >= -128) & (q <= 127)), sloped(inside), "gradient"),
    "gradient-blocked": computes(sloped(lambda q: np.zeros(q.shape, bool)), sloped(inside), "gradient"),
    "epsilon-in-absmax": chooses(
        lambda row: (np.abs(row).max() + F32(1e-7)) / F32(127), lambda row: np.abs(row).max() / F32(127), INT8, rows(8)
    ),
    "half-of-the-range": chooses(
        lambda row: 2 * np.abs(row).max() / F32(127), lambda row: np.abs(row).max() / F32(127), INT8, rows(8)
    ),
    "scale-in-bfloat16": chooses(
        lambda row: (np.abs(row).max() / F32(7)).astype(ml_dtypes.bfloat16),
        lambda row: np.abs(row).max() / F32(7),
        INT4,
        rows(8),
    ),
    "int4-over-half-range": chooses(of_onnxruntime, lambda row: np.abs(row).max() / F32(7), INT4, rows(8)),
    "float16-scale-in-file": written(np.float16, np.float32),
    "odd-length": computes(given(int4_of_onnxruntime, INT4_TENSOR), given(in_pairs, INT4_TENSOR)),
}
