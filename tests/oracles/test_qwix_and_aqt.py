"""The specification against Qwix and AQT, op by op on the CPU, bit for bit.

XLA:CPU multiplies by the reciprocal wherever a divisor is constant or broadcast, and makes zeros of subnormal numbers;
bfloat16 it divides in float32. A divisor of the shape of the data (blocks of one element) is divided by.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import torch_frontend
from samebits.core import (
    IntegerFormat,
    PerAxis,
    PerGroup,
    PerTensor,
    QParams,
    Quantizer,
    ZeroPoint,
    choose_qparams,
    dequantize,
    dialects,
    fake_quantize,
    quantize,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_torch

from ..exact import BFLOAT16, DTYPES
from ..oracle_inputs import blocks
from .test_torch_and_onnxruntime import inputs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from aqt.jax.v2 import aqt_quantizer, aqt_tensor
    from qwix._src.core import qarray

pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
NARROW = pytest.mark.parametrize("dtype", [DTYPES[n] for n in ("float32", "bfloat16", "float16")], ids=str)
SCALES = (0.1, 1 / 3, 2.0**-7, 1.7)
GRANULARITIES = {
    PerTensor(): {},
    PerAxis(0): {"channelwise_axes": (0,)},
    PerGroup(8): {"channelwise_axes": (0,), "tiled_axes": {1: 8}},
}
QWIX = [(g, bits, affine) for g in GRANULARITIES for bits, affine in ((8, False), (4, True))]
QWIX += [(PerAxis(0), bits, affine) for bits, affine in ((4, False), (3, False), (6, False), (8, True))]
NAN, INF = np.nan, np.inf


def to_jax(x: NDArray[Any]) -> jax.Array:
    return jnp.asarray(x)


def wide(x: Any) -> NDArray[np.float32]:
    return np.asarray(x).astype(np.float32)


# --- Qwix ------------------------------------------------------------------------------------------------------------


def qwix(bits: int, dtype: np.dtype[Any], granularity: Any, affine: bool) -> Quantizer:
    name = "qwix_bfloat16" if dtype == BFLOAT16 else "qwix"
    zero_point = ZeroPoint.MIN_MAX if affine else ZeroPoint.NONE
    q = Quantizer(format=IntegerFormat(bits), granularity=granularity, zero_point=zero_point)
    return q.replace(**dialects[name])


def how(bits: int, granularity: Any, affine: bool) -> Any:
    kind = {8: jnp.int8, 4: jnp.int4}.get(bits, f"int{bits}")
    method = "minmax" if affine else "absmax"
    return qarray.HowToQuantize(qtype=kind, calibration_method=method, **GRANULARITIES[granularity])


@NARROW
@pytest.mark.parametrize(("granularity", "bits", "affine"), QWIX, ids=str)
def test_qwix(granularity: Any, bits: int, affine: bool, dtype: np.dtype[Any]) -> None:
    q = qwix(bits, dtype, granularity, affine)
    for x in blocks(dtype):
        theirs = qarray.quantize(to_jax(x), how(bits, granularity, affine))
        qparams = choose_qparams(q, x)
        shape = qparams.scale.shape
        assert_same_bits(qparams.scale, wide(theirs.scale).reshape(shape), inputs=x if x.size == 1 else None)
        if affine:
            assert_same_bits(qparams.zero_point, np.asarray(theirs.zero_point).astype(np.int32).reshape(shape))
        codes = np.asarray(theirs.qvalue).astype(np.int8)
        assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
        if bits in (4, 8):
            assert_same_bits(dequantize(q, codes, qparams, dtype), np.asarray(qarray.dequantize(theirs)))
            assert_same_bits(fake_quantize(q, x), np.asarray(qarray.dequantize(theirs)), inputs=x)


@NARROW
@pytest.mark.parametrize(("bits", "zero"), [(8, None), (4, None), (8, 7), (8, -128), (8, 127)])
def test_qwix_on_knife_edges(bits: int, zero: int | None, dtype: np.dtype[Any]) -> None:
    q = qwix(bits, dtype, PerTensor(), zero is not None)
    for value in SCALES:
        scale = np.array([[value]]).astype(dtype)
        x = inputs(q, float(scale[0, 0]), zero or 0, dtype, random=300)[None]
        kind = jnp.int8 if bits == 8 else jnp.int4
        point = None if zero is None else jnp.full((1, 1), zero, kind)
        theirs = qarray.quantize_with_scale_zero_point(to_jax(x), kind, to_jax(scale), point)
        qparams = QParams(wide(scale)[0, 0], None if zero is None else np.int32(zero))
        codes = np.asarray(theirs.qvalue).astype(np.int8)
        assert_same_bits(quantize(q, x, qparams), codes, call=f"scale {scale}", inputs=x)
        assert_same_bits(dequantize(q, codes, qparams, dtype), np.asarray(qarray.dequantize(theirs)))


@NARROW
def test_torch_computes_what_qwix_does(dtype: np.dtype[Any]) -> None:
    """`torch_frontend` at the knife edges of 100 scales: 0 differences."""
    q = qwix(8, dtype, PerTensor(), False)
    smallest = 2.0**-12 if dtype == np.float16 else 1e-4  # normal numbers of the dtype
    for scale in np.exp(np.random.default_rng(5).uniform(np.log(smallest), 5, 100)).astype(dtype):
        x = inputs(q, float(scale), 0, dtype, random=100)[None]
        theirs = qarray.quantize_with_scale_zero_point(to_jax(x), jnp.int8, to_jax(np.full((1, 1), scale)), None)
        given = QParams(torch.tensor(float(scale)))
        codes = torch_frontend.quantize(q, to_torch(x), given)
        assert_same_bits(np.asarray(theirs.qvalue), codes, inputs=x)
        values = torch_frontend.dequantize(q, codes, given, to_torch(x).dtype)
        assert_same_bits(np.asarray(qarray.dequantize(theirs)), values, inputs=x)


def test_qwix_special_values() -> None:
    q, x = qwix(8, DTYPES["float32"], PerTensor(), False), np.array([[NAN, INF, -INF, -0.0, 1e-45]], np.float32)
    theirs = qarray.quantize_with_scale_zero_point(to_jax(x), jnp.int8, jnp.full((1, 1), 0.1), None)
    assert (
        np.asarray(theirs.qvalue).tolist()
        == quantize(q, x, QParams(np.float32(0.1))).tolist()
        == [[0, 127, -128, 0, 0]]
    )


def test_qwix_divides_by_a_full_divisor() -> None:
    """One element per block: the divisor has the shape of the data, and XLA divides."""
    x = inputs(qwix(8, DTYPES["float32"], PerTensor(), False), 0.1, 0, DTYPES["float32"])[None]
    q = qwix(8, DTYPES["float32"], PerTensor(), False)
    theirs = qarray.quantize_with_scale_zero_point(to_jax(x), jnp.int8, jnp.full(x.shape, 0.1), None)
    qparams = QParams(np.float32(0.1))
    assert_same_bits(quantize(q.replace(division="divide"), x, qparams), np.asarray(theirs.qvalue), inputs=x)
    assert np.any(quantize(q, x, qparams) != np.asarray(theirs.qvalue))


# --- AQT -------------------------------------------------------------------------------------------------------------


def aqt(bits: int, dtype: np.dtype[Any], granularity: Any) -> Quantizer:
    q = Quantizer(format=IntegerFormat(bits, narrow=True), granularity=granularity).replace(**dialects["aqt"])
    return q.replace(scale_division="divide") if dtype == BFLOAT16 else q


@NARROW
@pytest.mark.parametrize("bits", [8, 4, 5])
@pytest.mark.parametrize(("granularity", "axes"), [(PerTensor(), [0, 1]), (PerAxis(0), [1])], ids=str)
def test_aqt(granularity: Any, axes: list[int], bits: int, dtype: np.dtype[Any]) -> None:
    q = aqt(bits, dtype, granularity)
    theirs = aqt_quantizer.quantizer_make(bits)
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    for x in blocks(dtype, tiny=False):
        if 0 < np.abs(wide(x)).max(1).min() < 200 * smallest:
            continue  # scales below the smallest normal number: see test_oracle_differences
        tensor, _ = theirs.quant(to_jax(x), calibration_axes=axes)
        qparams = choose_qparams(q, x)
        assert_same_bits(qparams.scale, wide(tensor.scale[0]).reshape(qparams.scale.shape))
        codes = np.asarray(tensor.qvalue).astype(np.int8)
        assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
        assert_same_bits(dequantize(q, codes, qparams, dtype), np.asarray(tensor.dequant()))
        assert_same_bits(fake_quantize(q, x), np.asarray(tensor.dequant()), inputs=x)


@NARROW
@pytest.mark.parametrize("bits", [8, 4])
def test_aqt_on_knife_edges(bits: int, dtype: np.dtype[Any]) -> None:
    q, quantizer = aqt(bits, dtype, PerTensor()), aqt_quantizer.quantizer_make(bits)
    for value in SCALES:
        scale = np.array([[value]]).astype(dtype)
        x = inputs(q, float(scale[0, 0]), 0, dtype, random=300)[None]
        start = aqt_tensor.QTensor(qvalue=None, scale=[to_jax(scale)], scale_t=None, bias=[], dequant_dtype=dtype)
        tensor, _ = quantizer.calculate_qvalue(to_jax(x), start)
        qparams = QParams(wide(scale)[0, 0])
        codes = np.asarray(tensor.qvalue).astype(np.int8)
        assert_same_bits(quantize(q, x, qparams), codes, call=f"scale {scale}", inputs=x)
        assert_same_bits(dequantize(q, codes, qparams, dtype), np.asarray(tensor.dequant()))


def test_aqt_special_values() -> None:
    q, x = aqt(8, DTYPES["float32"], PerTensor()), np.array([[NAN, INF, -INF, -0.0, 1e-45]], np.float32)
    scale = jnp.full((1, 1), 0.1)
    start = aqt_tensor.QTensor(qvalue=None, scale=[scale], scale_t=None, bias=[], dequant_dtype=np.float32)
    tensor, _ = aqt_quantizer.quantizer_make(8).calculate_qvalue(to_jax(x), start)
    codes = quantize(q, x, QParams(np.float32(0.1)))
    assert np.asarray(tensor.qvalue).tolist() == codes.tolist() == [[0, 127, -127, 0, 0]]


def test_aqt_zero_counts_as_one() -> None:
    q = aqt(8, DTYPES["float32"], PerTensor())
    assert choose_qparams(q, np.zeros(3, np.float32)).scale == np.float32(1) / np.float32(127.5)
    assert choose_qparams(q.replace(bits=4), np.zeros(3, np.float32)).scale == np.float32(1) / np.float32(7.5)
