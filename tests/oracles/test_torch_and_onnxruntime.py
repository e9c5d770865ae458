"""The specification against implementations by others: torch's own operators and onnxruntime, bit for bit.

Each oracle is described by a dialect (`samebits.core.dialects`); inputs are all knife edges of the format at the scale,
special values, random numbers around the range and random bit patterns. Where an oracle does something that no
description covers, `tests/oracles/test_differences.py` states the input and the cause, and inputs here leave it out.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from samebits.core import (
    PerGroup,
    QParams,
    Quantizer,
    catalog,
    choose_qparams,
    dequantize,
    dialects,
    fake_quantize,
    fake_quantize_vjp,
    quantize,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edges
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..exact import DTYPES

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*quantize_per:UserWarning"),  # torch announces the end of its quantized tensors
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NaN is meant
]

SCALES = {
    "float32": [0.1, 1 / 3, 2.0**-7, 0.00372, 2.0**-126, 2.5e-38, 1e-20, 1.7, 3e36, 2.0**127],
    "bfloat16": [0.1, 1 / 3, 2.0**-7, 2.0**-120, 3e30],
    "float16": [0.1, 1 / 3, 2.0**-7, 20.0],
}
CASES = [
    ("int8_per_tensor", 0),
    ("uint8_affine_per_tensor", 0),
    ("uint8_affine_per_tensor", 7),
    ("uint8_affine_per_tensor", 255),
]
CASE = pytest.mark.parametrize(("name", "zero"), CASES)
NARROW = pytest.mark.parametrize("dtype", [DTYPES[n] for n in SCALES], ids=str)
FLOAT32 = DTYPES["float32"]


def parameters(q: Quantizer, scale: float, zero: int) -> QParams:
    return QParams(np.array(scale, np.float32), np.array(zero, np.int32) if q.affine else None)


def inputs(q: Quantizer, scale: Any, zero: float, dtype: np.dtype[Any], random: int = 1000) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2 ** (8 * dtype.itemsize), random, dtype=np.uint64).astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(over="ignore"):
        around = ((rng.uniform(q.format.lo - 5, q.format.hi + 5, random) - zero) * float(scale)).astype(dtype)
    return np.concatenate([knife_edges(q, scale, zero, dtype), around, bits])


def cases(
    name: str, zero: int, dtype: np.dtype[Any], dialect: str
) -> Iterator[tuple[Quantizer, QParams, NDArray[Any]]]:
    """The quantizer in the dialect, parameters and inputs, for each scale."""
    q = catalog[name].replace(**dialects[dialect])
    for scale in SCALES[dtype.name]:
        qparams = parameters(q, scale, zero)
        yield q, qparams, inputs(q, qparams.scale, zero, dtype)


def channels(q: Quantizer, dtype: np.dtype[Any]) -> tuple[QParams, NDArray[Any]]:
    """Four channels, each with its own scale, zero point and knife edges."""
    scales, zeros = np.array([0.1, 1 / 3, 0.00372, 1.7], np.float32), np.array([0, 7, 128, 255], np.int32)
    zeros = zeros if q.affine else np.zeros_like(zeros)
    rows = [inputs(q, s, z, dtype) for s, z in zip(scales, zeros, strict=True)]
    x = np.stack([np.resize(row, max(map(len, rows))) for row in rows])
    return QParams(scales[:, None], zeros[:, None] if q.affine else None), x


# --- torch.fake_quantize_per_tensor_affine, ..._per_channel_affine ---------------------------------------------------


@CASE
@NARROW
def test_torch_fake_quantize_per_tensor(name: str, zero: int, dtype: np.dtype[Any]) -> None:
    for q, qparams, x in cases(name, zero, dtype, "torch_fake_quantize"):
        limits = q.format.lo, q.format.hi
        scale, point = torch.tensor(float(qparams.scale)), torch.tensor(zero, dtype=torch.int32)
        expected = fake_quantize(q, x, qparams)
        got = torch.fake_quantize_per_tensor_affine(to_torch(x), scale, point, *limits)
        assert_same_bits(expected, got, call=f"tensor parameters, scale {scale}", inputs=x)
        got = torch.fake_quantize_per_tensor_affine(to_torch(x), float(qparams.scale), zero, *limits)
        assert_same_bits(expected, got, call=f"scalar parameters, scale {scale}", inputs=x)


@np.errstate(all="ignore")
def below_overflow(x: NDArray[Any], scale: NDArray[Any]) -> NDArray[Any]:
    """Where the per-channel operator does not overflow an int64; see `test_oracle_differences`."""
    return np.where(x.astype(float) / scale < 2.0**62, x, np.zeros_like(x))


@NARROW
@pytest.mark.parametrize("name", ["int8_per_channel", "uint8_affine_per_channel"])
def test_torch_fake_quantize_per_channel(name: str, dtype: np.dtype[Any]) -> None:
    q = catalog[name].replace(**dialects["torch_fake_quantize"])
    qparams, x = channels(q, dtype)
    x = np.where(np.isnan(x), x, below_overflow(x, qparams.scale))
    zeros = np.zeros(4, np.int32) if qparams.zero_point is None else qparams.zero_point.reshape(-1)
    parts = torch.from_numpy(qparams.scale.reshape(-1)), torch.from_numpy(zeros)
    got = torch.fake_quantize_per_channel_affine(to_torch(x), *parts, 0, q.format.lo, q.format.hi)
    assert_same_bits(fake_quantize(q, x, qparams), got, inputs=x)


@CASE
@NARROW
def test_torch_fake_quantize_gradient(name: str, zero: int, dtype: np.dtype[Any]) -> None:
    """Their mask is our `clip_mask`, NaN apart; what it masks is ``g * 0``, which for positive g is our +0.0."""
    for q, qparams, x in cases(name, zero, dtype, "torch_fake_quantize"):
        x = x[~np.isnan(x)]
        g = np.abs(np.random.default_rng(1).standard_normal(x.shape)).astype(dtype)
        t = to_torch(x).requires_grad_()
        scale, point = torch.tensor(float(qparams.scale)), torch.tensor(zero, dtype=torch.int32)
        torch.fake_quantize_per_tensor_affine(t, scale, point, q.format.lo, q.format.hi).backward(to_torch(g))
        assert_same_bits(fake_quantize_vjp(q, x, qparams, g).x, t.grad, inputs=x)


@pytest.mark.parametrize("name", ["int8_per_channel", "uint8_affine_per_channel"])
def test_torch_fake_quantize_per_channel_gradient(name: str) -> None:
    q = catalog[name].replace(**dialects["torch_fake_quantize"])
    qparams, x = channels(q, FLOAT32)
    x = below_overflow(np.where(np.isnan(x), np.zeros_like(x), x), qparams.scale)
    zeros = np.zeros(4, np.int32) if qparams.zero_point is None else qparams.zero_point.reshape(-1)
    parts = torch.from_numpy(qparams.scale.reshape(-1)), torch.from_numpy(zeros)
    t = to_torch(x).requires_grad_()
    torch.fake_quantize_per_channel_affine(t, *parts, 0, q.format.lo, q.format.hi).backward(torch.ones_like(t))
    assert_same_bits(fake_quantize_vjp(q, x, qparams, np.ones_like(x)).x, t.grad, inputs=x)


# --- torch.quantize_per_tensor, torch.quantize_per_channel -----------------------------------------------------------


@pytest.mark.parametrize(("name", "zero"), [*CASES, ("uint8_affine_per_tensor", 200)])
def test_torch_quantize_per_tensor(name: str, zero: int) -> None:
    for q, qparams, x in cases(name, zero, FLOAT32, "torch_quantize"):
        kind = torch.qint8 if q.format.lo else torch.quint8
        expected = quantize(q, x, qparams)
        # the scalar loop that a vectorised body leaves must fuse as well, and where there is no vectorised body at all
        for count in (x.size, *(x.size // 64 * 64 - tail for tail in (1, 5, 15, 17, 31)), 3, 1):
            theirs = torch.quantize_per_tensor(to_torch(x[:count]), float(qparams.scale), zero, kind)
            assert_same_bits(expected[:count], theirs.int_repr(), call=f"scale {qparams.scale}", inputs=x[:count])
            assert_same_bits(dequantize(q, expected[:count], qparams), theirs.dequantize())


def test_torch_quantize_needs_the_fused_multiply_add() -> None:
    """Without it the dialect would be wrong: the product x * (1 / s) is not rounded before the zero point is added."""
    q, qparams, x = next(cases("uint8_affine_per_tensor", 7, FLOAT32, "torch_quantize"))
    assert np.any(quantize(q, x, qparams) != quantize(q.replace(fused_multiply_add=False), x, qparams))


@pytest.mark.parametrize("name", ["int8_per_channel", "uint8_affine_per_channel"])
def test_torch_quantize_per_channel(name: str) -> None:
    q = catalog[name].replace(**dialects["torch_quantize_per_channel"])
    qparams, x = channels(q, FLOAT32)
    zeros = np.zeros(4, np.int64) if qparams.zero_point is None else qparams.zero_point.reshape(-1).astype(np.int64)
    kind = torch.qint8 if q.format.lo else torch.quint8
    parts = torch.from_numpy(qparams.scale.reshape(-1)), torch.from_numpy(zeros)
    for count in (x.shape[1], 33, 7):
        part = np.ascontiguousarray(x[:, :count])
        theirs = torch.quantize_per_channel(to_torch(part), *parts, 0, kind)
        codes = to_numpy(theirs.int_repr())
        assert_same_bits(quantize(q, part, qparams), codes, inputs=part)
        assert_same_bits(dequantize(q, codes, qparams), theirs.dequantize())


# --- torch.ops.quantized_decomposed ----------------------------------------------------------------------------------


@CASE
@NARROW
def test_torch_decomposed(name: str, zero: int, dtype: np.dtype[Any]) -> None:
    import torch.ao.quantization.fx._decomposed

    ops = torch.ops.quantized_decomposed
    for q, qparams, x in cases(name, zero, dtype, "torch_decomposed"):
        how = float(qparams.scale), zero, q.format.lo, q.format.hi, getattr(torch, q.format.storage)
        codes = ops.quantize_per_tensor(to_torch(x), *how)
        assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
        got = ops.dequantize_per_tensor(codes, *how, out_dtype=to_torch(x).dtype)
        assert_same_bits(dequantize(q, to_numpy(codes), qparams, dtype), got)


# --- onnxruntime -----------------------------------------------------------------------------------------------------

ONNX = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16}


def onnx_program(
    node: str, names: dict[str, tuple[int, int]], outputs: dict[str, tuple[int, int]], **how: Any
) -> Callable[..., list[Any]]:
    """One operator as a function of arrays; names and outputs give element type and rank."""
    values = [
        [helper.make_tensor_value_info(n, kind, [None] * rank) for n, (kind, rank) in side.items()]
        for side in (names, outputs)
    ]
    graph = helper.make_graph([helper.make_node(node, list(names), list(outputs), **how)], "one", *values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def quantize_linear(
    storage: str, kind: int = TensorProto.FLOAT, ranks: tuple[int, int] = (1, 0), **how: Any
) -> Callable[..., list[Any]]:
    code, (rank, of_scale) = ONNX[storage], ranks
    return onnx_program(
        "QuantizeLinear", {"x": (kind, rank), "s": (kind, of_scale), "z": (code, of_scale)}, {"y": (code, rank)}, **how
    )


def dequantize_linear(
    storage: str, kind: int = TensorProto.FLOAT, ranks: tuple[int, int] = (1, 0), **how: Any
) -> Callable[..., list[Any]]:
    code, (rank, of_scale) = ONNX[storage], ranks
    return onnx_program(
        "DequantizeLinear",
        {"x": (code, rank), "s": (kind, of_scale), "z": (code, of_scale)},
        {"y": (kind, rank)},
        **how,
    )


@pytest.mark.parametrize(("name", "zero"), [*CASES, ("int16_per_tensor", 0)])
def test_onnx_per_tensor(name: str, zero: int) -> None:
    forward, back = (f(catalog[name].format.storage) for f in (quantize_linear, dequantize_linear))
    few = 2 if name == "int16_per_tensor" else len(SCALES["float32"])  # 65,536 codes have many edges
    for q, qparams, x in islice(cases(name, zero, FLOAT32, "onnx"), few):
        point = np.array(zero, q.format.storage)
        expected = quantize(q, x, qparams)
        for count in (x.size, x.size // 64 * 64 - 5, 1):
            (codes,) = forward(x[:count], qparams.scale, point)
            assert_same_bits(expected[:count], codes, call=f"scale {qparams.scale}", inputs=x[:count])
            assert_same_bits(dequantize(q, codes, qparams), back(codes, qparams.scale, point)[0])


@CASE
def test_onnx_float16(name: str, zero: int) -> None:
    q, dtype = catalog[name].replace(**dialects["onnx"]), DTYPES["float16"]
    forward, back = (f(q.format.storage, TensorProto.FLOAT16) for f in (quantize_linear, dequantize_linear))
    for value in SCALES["float16"]:
        scale, point = np.array(value, np.float16), np.array(zero, q.format.storage)
        qparams = parameters(q, float(scale), zero)
        x = inputs(q, qparams.scale, zero, dtype)
        x = x[x != np.inf]  # see test_oracle_differences
        (codes,) = forward(x, scale, point)
        assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
        assert_same_bits(dequantize(q, codes, qparams, dtype), back(codes, scale, point)[0])


def test_onnx_per_channel_and_blocked() -> None:
    q = catalog["uint8_affine_per_channel"].replace(**dialects["onnx"])
    qparams, x = channels(q, FLOAT32)
    args = qparams.scale.reshape(-1), qparams.zero_point.reshape(-1).astype(np.uint8)
    (codes,) = quantize_linear("uint8", ranks=(2, 1), axis=0)(x, *args)
    assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
    assert_same_bits(dequantize(q, codes, qparams), dequantize_linear("uint8", ranks=(2, 1), axis=0)(codes, *args)[0])

    rng, groups = np.random.default_rng(0), q.replace(granularity=PerGroup(5))
    x = x[:, : x.shape[1] - x.shape[1] % 5]
    shape = (4, x.shape[1] // 5)
    qparams = QParams(rng.uniform(0.01, 2, shape).astype(np.float32), rng.integers(0, 256, shape).astype(np.int32))
    blocked = {"ranks": (2, 2), "axis": 1, "block_size": 5}
    args = qparams.scale, qparams.zero_point.astype(np.uint8)
    (codes,) = quantize_linear("uint8", **blocked)(x, *args)
    assert_same_bits(quantize(groups, x, qparams), codes, inputs=x)
    assert_same_bits(dequantize(groups, codes, qparams), dequantize_linear("uint8", **blocked)(codes, *args)[0])


def dynamic_quantize_linear() -> Callable[..., list[Any]]:
    outputs = {"y": (TensorProto.UINT8, 1), "s": (TensorProto.FLOAT, 0), "z": (TensorProto.UINT8, 0)}
    return onnx_program("DynamicQuantizeLinear", {"x": (TensorProto.FLOAT, 1)}, outputs)


def test_onnx_dynamic_chooses_the_parameters_we_choose() -> None:
    q = catalog["uint8_affine_per_tensor"].replace(**dialects["onnx"])
    dynamic, rng = dynamic_quantize_linear(), np.random.default_rng(0)
    special = ([-127.5, 127.5], [-126.5, 128.5], [5, 6], [-6, -5], [1e30, -1e30], [0, 0], [1e-40, 0], [-1e-40, 2e-43])
    ties = [np.array(v, np.float32) for v in special]
    drawn = [
        rng.standard_normal(rng.integers(1, 6)) * 10.0 ** rng.integers(-30, 30) + rng.choice([0, 0, 5, -5])
        for _ in range(1500)
    ]
    for x in [*ties, *(v.astype(np.float32) for v in drawn)]:
        codes, scale, zero = dynamic(x)
        qparams = choose_qparams(q, x)
        assert_same_bits(qparams.scale, np.asarray(scale), call=f"x = {x}")
        assert qparams.zero_point == zero
        assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
