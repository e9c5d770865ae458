"""The parameters that torchao chooses, against the specification: today's and those of 2024, and the FLOAT domain.

The functions of 2024 (`choose_qparams_affine`, `quantize_affine`, `dequantize_affine` of commit 1cfe69e5f, August 2024)
are gone from the installed torchao. Their formulas are repeated here in torch, operation by operation: `qparams_2024`
and `affine_2024` are no oracle by others, only the same source read again.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchao.quantization import quant_primitives as torchao
from torchao.quantization.quant_primitives import MappingType

from samebits.core import PerTensor, QParams, Quantizer, catalog, choose_qparams, dequantize, dialects, quantize
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..exact import DTYPES
from ..oracle_inputs import blocks
from .test_torch_and_onnxruntime import inputs

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]
NARROW = pytest.mark.parametrize("dtype", [DTYPES[n] for n in ("float32", "bfloat16", "float16")], ids=str)
SYMMETRIC, ASYMMETRIC = MappingType.SYMMETRIC, MappingType.ASYMMETRIC
NAMES = ["int8_per_channel", "uint8_affine_per_channel", "int4_per_channel", "int8_affine_per_token"]
SIGNED_AFFINE = catalog["uint4_affine_per_group32"].replace(signed=True)
NAN, INF = np.nan, np.inf


def wide(t: torch.Tensor) -> NDArray[np.float32]:
    return to_numpy(t).astype(np.float32)


def codes_of(q: Quantizer, theirs: torch.Tensor) -> NDArray[Any]:
    return to_numpy(theirs).astype(q.format.storage)


# --- torchao 0.18 ----------------------------------------------------------------------------------------------------


@NARROW
@pytest.mark.parametrize("name", NAMES)
def test_torchao_chooses(name: str, dtype: np.dtype[Any]) -> None:
    q = catalog[name].replace(**dialects["torchao"])
    mapping, limits = ASYMMETRIC if q.affine else SYMMETRIC, (q.format.lo, q.format.hi)
    target = torch.int8 if q.format.lo else torch.uint8
    for x in blocks(dtype):
        block = q.granularity.block_size(x.shape)
        scale, zero = torchao.choose_qparams_affine(to_torch(x), mapping, block, target, *limits, keepdim=True)
        qparams = choose_qparams(q, x)
        assert_same_bits(qparams.scale, wide(scale))
        if q.affine:
            assert_same_bits(qparams.zero_point, zero, call=f"{x[0]}")
        theirs = torchao.quantize_affine(to_torch(x), block, scale, zero, target, *limits)
        assert_same_bits(quantize(q, x, qparams), codes_of(q, theirs), inputs=x)


@NARROW
@pytest.mark.parametrize("q", [catalog["uint4_affine_per_group32"], SIGNED_AFFINE], ids=lambda q: str(q.format))
def test_torchao_tinygemm_chooses(q: Quantizer, dtype: np.dtype[Any]) -> None:
    """The FLOAT domain: groups of one sign and constant groups keep their own range."""
    q = q.replace(**dialects["torchao_tinygemm"])
    target, limits = torch.int8 if q.format.lo else torch.uint8, (q.format.lo, q.format.hi)
    for x in blocks(dtype):
        t, block = to_torch(x), (1, 32)
        scale, zero = torchao._choose_qparams_affine_tinygemm(t, ASYMMETRIC, block, target, *limits)
        qparams = choose_qparams(q, x)
        for ours, theirs in ((qparams.scale, scale), (qparams.zero_point, zero)):
            assert_same_bits(ours, wide(theirs).reshape(ours.shape))
        raw = torchao._quantize_affine_tinygemm(t, block, scale, zero, target, *limits)
        codes = codes_of(q, raw)
        assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
        back = torchao._dequantize_affine_tinygemm(raw, block, scale, zero, target, *limits, output_dtype=t.dtype)
        assert_same_bits(dequantize(q, codes, qparams, dtype), back)


@NARROW
def test_torchao_tinygemm_on_knife_edges(dtype: np.dtype[Any]) -> None:
    q = catalog["uint4_affine_per_group32"].replace(granularity=PerTensor(), **dialects["torchao_tinygemm"])
    for value in (0.1, 1 / 3, 2.0**-7, 1.7):
        for middle in (0.0, 1.3, -20.0):
            scale, zero = np.array(value).astype(dtype), np.array(middle).astype(dtype)
            x = inputs(q, float(scale), float(zero), dtype, random=300)
            arguments = to_torch(x), x.shape, to_torch(scale), to_torch(zero), torch.uint8, 0, 15
            qparams = QParams(scale.astype(np.float32), zero.astype(np.float32))
            codes = codes_of(q, torchao._quantize_affine_tinygemm(*arguments))
            assert_same_bits(quantize(q, x, qparams), codes, call=f"scale {scale}, zero point {zero}", inputs=x)


# --- torchao of 2024 -------------------------------------------------------------------------------------------------


def qparams_2024(q: Quantizer, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of rows in the dtype of x, as `choose_qparams_affine` of 2024: eps comes last."""
    low, high = torch.amin(x, dim=[1], keepdim=True), torch.amax(x, dim=[1], keepdim=True)
    low, high = torch.min(low, torch.zeros_like(low)), torch.max(high, torch.zeros_like(high))
    lo, hi = q.format.lo, q.format.hi
    if q.affine:
        scale = (high - low) / float(hi - lo)
        zero = torch.clamp(lo - torch.round(low / scale), lo, hi)
    else:
        scale = torch.max(-low, high) / (float(hi - lo) / 2)
        zero = torch.full_like(scale, int((hi + lo + 1) / 2))
    return torch.clamp(scale, min=torch.finfo(x.dtype).eps), zero


def affine_2024(q: Quantizer, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> tuple[Any, Any]:
    """Codes and values as `quantize_affine` and `dequantize_affine` of 2024: z is subtracted in int32."""
    target = torch.int8 if q.format.lo else torch.uint8
    codes = torch.clamp(torch.round(x * (1.0 / scale)) + zero, q.format.lo, q.format.hi).to(target)
    value = codes.to(torch.int32) - zero.to(torch.int32)
    return codes, value.to(x.dtype) * scale


@NARROW
@pytest.mark.parametrize("name", NAMES)
def test_torchao_2024(name: str, dtype: np.dtype[Any]) -> None:
    q = catalog[name].replace(**dialects["torchao_2024"])
    for x in blocks(dtype):
        scale, zero = qparams_2024(q, to_torch(x))
        qparams = choose_qparams(q, x)
        assert_same_bits(qparams.scale, wide(scale))
        if torch.isnan(zero).any():  # a range whose scale is 0 before eps: theirs is NaN, ours the code nearest 0
            assert (np.ptp(x, 1) / (q.format.hi - q.format.lo) < np.finfo(np.float32).tiny).all() or dtype == np.float16
            assert (qparams.zero_point == min(max(0, q.format.lo), q.format.hi)).all()
            continue
        if q.affine:
            assert_same_bits(qparams.zero_point, wide(zero).astype(np.int32))
        codes, value = affine_2024(q, to_torch(x), scale, zero)
        assert_same_bits(quantize(q, x, qparams), codes_of(q, codes), inputs=x)
        assert_same_bits(dequantize(q, codes_of(q, codes), qparams, dtype), value)


@NARROW
@pytest.mark.parametrize("zero", [0, 7, 255])
def test_torchao_2024_on_knife_edges(zero: int, dtype: np.dtype[Any]) -> None:
    q = catalog["uint8_affine_per_tensor"].replace(**dialects["torchao_2024"])
    for value in (0.1, 1 / 3, 2.0**-7, 1.7):
        scale = np.array(value).astype(dtype)
        x = inputs(q, float(scale), zero, dtype, random=300)
        qparams = QParams(scale.astype(np.float32), np.array(zero, np.int32))
        codes, back = affine_2024(q, to_torch(x), to_torch(scale), torch.tensor(zero).to(to_torch(x).dtype))
        assert_same_bits(quantize(q, x, qparams), codes_of(q, codes), call=f"scale {scale}", inputs=x)
        assert_same_bits(dequantize(q, codes_of(q, codes), qparams, dtype), back)


def test_torchao_2024_zero_point_comes_before_epsilon() -> None:
    """A tiny range: z is that of the range, though codes of the raised scale reach no other."""
    q = catalog["uint8_affine_per_channel"].replace(**dialects["torchao_2024"])
    x = np.array([[-1e-6, 3e-6], [0, 1e-9]], np.float32)
    qparams = choose_qparams(q, x)
    assert qparams.scale.tolist() == [[2.0**-23], [2.0**-23]]
    assert qparams.zero_point.tolist() == [[64], [0]]
    assert choose_qparams(q.replace(zero_point_scale="used"), x).zero_point.tolist() == [[8], [0]]
