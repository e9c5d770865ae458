"""The specification against optimum-quanto: scales, shifts, codes and values, bit for bit.

Symmetric quantization divides by a scale that may be 0; affine quantization moves the data by its minimum first. Both
are computed in the dtype of the data throughout.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import optimum.quanto as quanto
import pytest
import torch
from numpy.typing import NDArray
from optimum.quanto.tensor.grouped import ungroup
from optimum.quanto.tensor.qbits import QBitsDequantizer

from samebits.core import (
    PerAxis,
    PerGroup,
    PerTensor,
    QParams,
    Quantizer,
    catalog,
    choose_qparams,
    dequantize,
    dialects,
    fake_quantize,
    quantize,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..exact import DTYPES
from ..oracle_inputs import blocks
from .test_torch_and_onnxruntime import inputs

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]
NARROW = pytest.mark.parametrize("dtype", [DTYPES[n] for n in ("float32", "bfloat16", "float16")], ids=str)
SCALES = (0.1, 1 / 3, 2.0**-7, 1.7)
GROUP = 16
NAN, INF = np.nan, np.inf


def symmetric(granularity: Any) -> Quantizer:
    return catalog["int8_per_tensor"].replace(granularity=granularity, **dialects["quanto"])


def affine(bits: int, granularity: Any) -> Quantizer:
    return catalog["uint4_affine_per_group32"].replace(bits=bits, granularity=granularity, **dialects["quanto_affine"])


def codes_of(q: Quantizer, theirs: torch.Tensor, shape: tuple[int, ...]) -> NDArray[Any]:
    """Their codes, uint8 for 2 and 4 bits, laid out like the data and in our storage dtype."""
    codes = to_numpy(ungroup(theirs, 0, shape)).astype(np.int64)
    assert q.format.lo <= codes.min() <= codes.max() <= q.format.hi
    return codes.astype(q.format.storage)


def unpacked(raw: torch.Tensor, qtype: Any, scale: torch.Tensor, shift: torch.Tensor, shape: Any) -> Any:
    """What their dequantizer sees of a tensor, without the packing to bytes (whose kernel would be compiled first)."""
    return SimpleNamespace(_data=raw, _scale=scale, _shift=shift, qtype=qtype, axis=0, shape=shape)


def wide(t: torch.Tensor) -> NDArray[np.float32]:
    return to_numpy(t).astype(np.float32)


@NARROW
@pytest.mark.parametrize(("granularity", "axis"), [(PerTensor(), None), (PerAxis(0), 0), (PerAxis(1), -1)], ids=str)
def test_quanto_symmetric(granularity: Any, axis: int | None, dtype: np.dtype[Any]) -> None:
    q = symmetric(granularity)
    for x in blocks(dtype):
        scale = quanto.AbsmaxOptimizer()(to_torch(x), quanto.qint8, axis)
        qparams = choose_qparams(q, x)
        assert_same_bits(qparams.scale, wide(scale), inputs=x)
        theirs = quanto.WeightQBytesTensor.quantize(to_torch(x), quanto.qint8, axis, scale)
        assert_same_bits(quantize(q, x, qparams), theirs._data, inputs=x)
        assert_same_bits(fake_quantize(q, x), theirs.dequantize(), inputs=x)


@NARROW
def test_quanto_symmetric_on_knife_edges(dtype: np.dtype[Any]) -> None:
    q = symmetric(PerTensor())
    for value in (*SCALES, 0.0):
        scale = np.array(value).astype(dtype)
        x, qparams = inputs(q, float(scale) or 1.0, 0, dtype, random=300), QParams(scale.astype(np.float32))
        theirs = quanto.WeightQBytesTensor.quantize(to_torch(x), quanto.qint8, None, to_torch(scale))
        codes = quantize(q, x, qparams)
        assert_same_bits(codes, theirs._data, call=f"scale {scale}", inputs=x)
        assert_same_bits(dequantize(q, codes, qparams, dtype), theirs.dequantize(), call=f"scale {scale}", inputs=x)


def test_quanto_symmetric_special_values() -> None:
    q, x = symmetric(PerTensor()), np.array([NAN, INF, -INF, -0.0, 0.0], np.float32)
    for value, expected in ((0.1, [0, 127, -128, 0, 0]), (0.0, [0, 127, -128, 0, 0])):
        scale = np.array(value, np.float32)
        theirs = torch.ops.quanto.quantize_symmetric(to_torch(x), torch.int8, None, to_torch(scale))
        assert theirs.tolist() == quantize(q, x, QParams(scale)).tolist() == expected


@NARROW
@pytest.mark.parametrize(("bits", "qtype"), [(4, quanto.qint4), (2, quanto.qint2)])
@pytest.mark.parametrize("granularity", [PerGroup(GROUP), PerAxis(0)], ids=str)
def test_quanto_affine(bits: int, qtype: Any, granularity: Any, dtype: np.dtype[Any]) -> None:
    q = affine(bits, granularity)
    size = GROUP if isinstance(granularity, PerGroup) else None
    for x in blocks(dtype):
        scale, shift = quanto.MaxOptimizer()(to_torch(x), qtype, 0, size)
        qparams = choose_qparams(q, x)
        assert_same_bits(qparams.scale, wide(scale).reshape(qparams.scale.shape), inputs=x)
        assert_same_bits(qparams.zero_point, wide(shift).reshape(qparams.scale.shape), inputs=x)
        if not np.isfinite(to_numpy(scale).astype(float)).all():
            continue
        raw = torch.ops.quanto.quantize_affine(to_torch(x), bits, 0, size, scale, shift)
        codes = codes_of(q, raw, x.shape)
        assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
        back = QBitsDequantizer.forward(None, unpacked(raw, qtype, scale, shift, x.shape))
        assert_same_bits(dequantize(q, codes, qparams, dtype), back, inputs=x)
        assert_same_bits(fake_quantize(q, x), back, inputs=x)


@NARROW
def test_quanto_affine_on_knife_edges(dtype: np.dtype[Any]) -> None:
    q = affine(4, PerAxis(0))
    for value in (*SCALES, 0.0):
        for moved in (0.0, 1.3, -20.0):
            scale, shift = np.array([[value]]).astype(dtype), np.array([[moved]]).astype(dtype)
            x = inputs(q, float(scale[0, 0]) or 1.0, float(shift[0, 0]), dtype, random=300)[None]
            raw = torch.ops.quanto.quantize_affine(to_torch(x), 4, 0, None, to_torch(scale), to_torch(shift))
            qparams = QParams(scale.astype(np.float32), shift.astype(np.float32))
            assert_same_bits(
                quantize(q, x, qparams), codes_of(q, raw, x.shape), call=f"scale {scale}, shift {shift}", inputs=x
            )


def test_quanto_constant_groups_are_exact() -> None:
    """Scale 0, codes 0, and the value is minus the shift: the constant itself."""
    q, x = affine(4, PerGroup(GROUP)), np.full((2, GROUP), 1 / 3, np.float32)
    qparams = choose_qparams(q, x)
    assert qparams.scale.tolist() == [[0], [0]]
    assert_same_bits(fake_quantize(q, x, qparams), x)


@NARROW
def test_quanto_integer_zero_points(dtype: np.dtype[Any]) -> None:
    """``zeropoint=True``: the shift as an integer code, the range still that of the data."""
    q = affine(4, PerGroup(GROUP)).replace(zero_point_domain="integer")
    for x in blocks(dtype, tiny=False):
        scale, zero = quanto.MaxOptimizer()(to_torch(x), quanto.qint4, 0, GROUP, zeropoint=True)
        qparams = choose_qparams(q, x)
        assert_same_bits(qparams.scale, wide(scale).reshape(qparams.scale.shape), inputs=x)
        some = qparams.scale > 0  # 0 / 0 and 1 / 0 have no zero point
        assert (qparams.zero_point == to_numpy(zero).reshape(qparams.scale.shape))[some].all()
        if some.all():
            raw = torch.ops.quanto.quantize_affine(to_torch(x), 4, 0, GROUP, scale, zero)
            assert_same_bits(quantize(q, x, qparams), codes_of(q, raw, x.shape), inputs=x)
