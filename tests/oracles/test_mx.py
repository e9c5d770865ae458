"""MX and NVFP4 scales and values, and float8 rules, against torchao and gfloat, bit for bit."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import RoundMode, round_ndarray
from gfloat.formats import format_info_ocp_e2m1, format_info_ocp_e2m3, format_info_ocp_e3m2, format_info_ocp_e4m3
from numpy.typing import NDArray
from torchao.prototype.mx_formats import constants
from torchao.prototype.mx_formats.mx_tensor import MXTensor, ScaleCalculationMode, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

from samebits.core import PerGroup, QParams, Quantizer, Rounding, ScaleRule, choose_qparams, fake_quantize, quantize
from samebits.core.formats import FLOAT4_E2M1, FLOAT6_E2M3, FLOAT6_E3M2, FLOAT8_E4M3FN, FLOAT8_E5M2, FloatFormat
from samebits.core.scales import Restriction
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..verbs.test_block_scales import blocks

Array = NDArray[Any]
ELEMENTS = {
    FLOAT8_E4M3FN: torch.float8_e4m3fn,
    FLOAT8_E5M2: torch.float8_e5m2,
    FLOAT6_E3M2: constants.DTYPE_FP6_E3M2,
    FLOAT6_E2M3: constants.DTYPE_FP6_E2M3,
    FLOAT4_E2M1: torch.float4_e2m1fn_x2,
}
MODES = {
    ScaleCalculationMode.FLOOR: Restriction.POWER_OF_TWO_FLOOR,
    ScaleCalculationMode.CEIL: Restriction.POWER_OF_TWO_CEIL,
    ScaleCalculationMode.EVEN: Restriction.POWER_OF_TWO_EVEN,
    ScaleCalculationMode.RCEIL: Restriction.POWER_OF_TWO,
}
DTYPES = pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)], ids=str)
FORMAT = pytest.mark.parametrize("fmt", ELEMENTS, ids=str)


def data(fmt: FloatFormat, dtype: np.dtype[Any]) -> Array:
    """Blocks of 32: at the boundaries of the rules, and random ones of all sizes."""
    random = np.random.default_rng(0)
    anything = random.standard_normal((500, 32)) * np.exp2(random.integers(-120, 120, (500, 1)))
    edges = np.tile(blocks(fmt, dtype), 2)
    return np.concatenate([anything.astype(dtype), edges])


@DTYPES
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@FORMAT
def test_oracle_torchao_mx(fmt: FloatFormat, mode: ScaleCalculationMode, dtype: np.dtype[Any]) -> None:
    """Scales and values. Two of their faults are left out, and counted.

    A scale byte of 0 means 2**-127 to them, which is no normal number; they divide by 2**-126 then and multiply by
    2**-127. And RCEIL takes log2 in float32, which is a whole number for some magnitudes just above a power of two.
    """
    q = Quantizer(format=fmt, granularity=PerGroup(32), scale=ScaleRule(restriction=MODES[mode]))
    x = data(fmt, dtype)
    stored = to_mx(to_torch(x), ELEMENTS[fmt], 32, mode)[0].view(torch.uint8).numpy().reshape(-1, 1)
    theirs = to_numpy(MXTensor.to_mx(to_torch(x), ELEMENTS[fmt], 32, mode).dequantize(torch.float32))
    ours = choose_qparams(q, x)
    byte = ours.scale.view(np.int32) >> 23
    slack = (stored > 0) & (byte == stored + 1) & (mode is ScaleCalculationMode.RCEIL)
    descale = np.abs(x).max(1, keepdims=True).astype(np.float32) / np.float32(fmt.hi)
    assert (np.log2(descale[slack]) == np.round(np.log2(descale[slack]))).all()
    assert slack.mean() < 0.15
    normal = (stored > 0)[:, 0] & ~slack[:, 0]
    assert normal.mean() > 0.5
    np.testing.assert_array_equal(byte[~slack[:, 0]], np.maximum(stored, 1)[~slack[:, 0]])
    values = fake_quantize(q, x.astype(np.float32), ours)
    assert_same_bits(theirs[normal], values[normal], inputs=x[normal].astype(np.float32))


@DTYPES
@pytest.mark.parametrize("size", [1.0, 1e-6, 300.0, 1e30])
def test_oracle_torchao_nvfp4(size: float, dtype: np.dtype[Any]) -> None:
    """Scales of both kinds. (Their codes come from a multiplication by the rounded reciprocal of the scale.)"""
    random = np.random.default_rng(1)
    x = (random.standard_normal((64, 64)) * np.exp(3 * random.standard_normal((64, 1))) * size).astype(dtype)
    x[3], x[5, :16] = 0, 0
    one_level = ScaleRule(restriction="quantized", scale_format=FLOAT8_E4M3FN)
    q = Quantizer(format=FLOAT4_E2M1, granularity=PerGroup(16), scale=one_level)
    stored = nvfp4_quantize(to_torch(x), 16)[0]
    assert_same_bits(to_numpy(stored.float().reshape(64, 4)), choose_qparams(q, x).scale)
    tensor = per_tensor_amax_to_scale(to_torch(np.abs(x).max()))
    stored = nvfp4_quantize(to_torch(x), 16, tensor)[0]
    total = to_numpy(stored.float().reshape(64, 4) * tensor)
    assert_same_bits(total, choose_qparams(q.replace(two_level=True), x).scale)


GFLOAT = {
    FLOAT8_E4M3FN: format_info_ocp_e4m3,
    FLOAT6_E3M2: format_info_ocp_e3m2,
    FLOAT6_E2M3: format_info_ocp_e2m3,
    FLOAT4_E2M1: format_info_ocp_e2m1,
}
DIRECTIONS = {
    Rounding.TIES_TO_EVEN: RoundMode.TiesToEven,
    Rounding.TIES_TO_AWAY: RoundMode.TiesToAway,
    Rounding.TOWARD_ZERO: RoundMode.TowardZero,
    Rounding.TOWARD_POSITIVE: RoundMode.TowardPositive,
    Rounding.TOWARD_NEGATIVE: RoundMode.TowardNegative,
}


@pytest.mark.parametrize("rounding", DIRECTIONS)
@pytest.mark.parametrize("fmt", GFLOAT, ids=str)
def test_oracle_gfloat_rounding_directions(fmt: FloatFormat, rounding: Rounding) -> None:
    """All bfloat16 numbers, at scale 1."""
    x = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    x = x[np.isfinite(x)]
    theirs = round_ndarray(GFLOAT[fmt], x, DIRECTIONS[rounding], sat=True)
    q = Quantizer(format=fmt, rounding=rounding)
    ours = fake_quantize(q, x, QParams(np.float64(1.0)))
    assert_same_bits(np.asarray(theirs, np.float64), ours, inputs=x)


@pytest.mark.parametrize("fmt", [FLOAT8_E4M3FN, FLOAT8_E5M2], ids=str)
def test_oracle_torch_casts(fmt: FloatFormat) -> None:
    """Codes are the bits of torch's own float8 cast of the clamped quotient; all bfloat16 numbers, four scales."""
    x = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    q = Quantizer(format=fmt)
    for s in (1.0, 0.1, 2.0**-126, 3e30):
        with np.errstate(all="ignore"):
            quotient = x.astype(np.float32) / np.float32(s)
        number = ~np.isnan(quotient)
        cast = to_torch(np.clip(quotient, fmt.lo, fmt.hi)).to(ELEMENTS[fmt]).view(torch.uint8)
        codes = quantize(q, x, QParams(np.float32(s)))
        assert_same_bits(to_numpy(cast)[number], codes[number], inputs=x[number])
