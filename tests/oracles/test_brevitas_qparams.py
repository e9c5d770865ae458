"""The parameters that Brevitas chooses, against the specification: of weights, shifted weights, and activations."""

from typing import Any

import brevitas.nn
import brevitas.quant
import numpy as np
import pytest
import torch
from brevitas.core.quant import IntQuant
from brevitas.core.zero_point import _ScaleShiftZeroPoint
from brevitas.inject.enum import StatsOp
from numpy.typing import NDArray

from samebits.core import (
    IntegerFormat,
    PerAxis,
    PerTensor,
    Quantizer,
    ZeroPoint,
    choose_qparams,
    dialects,
    fake_quantize,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..exact import BFLOAT16, DTYPES
from ..oracle_inputs import blocks

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]
# a single scale of bfloat16 data is float32, and in float16 1e-10 is 0: see test_oracle_differences
SHARED = [(PerAxis(0), BFLOAT16)] + [
    (g, DTYPES[name]) for g in (PerTensor(), PerAxis(0)) for name in ("float32", "float64")
]
POWERS = (-30, -10, -9, -3, 0, 9)  # 1e-10 is the smallest range
NARROW_INT8, UINT8 = IntegerFormat(8, narrow=True), IntegerFormat(8, signed=False)


def quantizer(fmt: IntegerFormat, granularity: Any, zero_point: ZeroPoint = ZeroPoint.NONE) -> Quantizer:
    q = Quantizer(format=fmt, granularity=granularity, zero_point=zero_point)
    return q.replace(**dialects["brevitas"])


def weight(layer: Any, x: NDArray[Any]) -> Any:
    layer.weight.data = to_torch(x)
    return layer.quant_weight()


def wide(x: Any) -> NDArray[Any]:
    x = to_numpy(x)
    return x if x.dtype == np.float64 else x.astype(np.float32)


def layer(injector: Any, dtype: np.dtype[Any]) -> Any:
    made = brevitas.nn.QuantLinear(32, 8, bias=False, weight_quant=injector)
    return made.to(to_torch(np.zeros(1, dtype)).dtype)


@pytest.mark.parametrize(("granularity", "dtype"), SHARED, ids=str)
def test_brevitas_weights(granularity: Any, dtype: np.dtype[Any]) -> None:
    one = isinstance(granularity, PerTensor)
    injector = brevitas.quant.Int8WeightPerTensorFloat if one else brevitas.quant.Int8WeightPerChannelFloat
    q, made = quantizer(NARROW_INT8, granularity), layer(injector, dtype)
    for x in blocks(dtype, powers=POWERS):
        theirs, qparams = weight(made, x), choose_qparams(q, x)
        assert_same_bits(qparams.scale, wide(theirs.scale).reshape(qparams.scale.shape))
        assert_same_bits(fake_quantize(q, x), theirs.value, inputs=x)


@pytest.mark.parametrize(("granularity", "dtype"), SHARED, ids=str)
def test_brevitas_shifted_weights(granularity: Any, dtype: np.dtype[Any]) -> None:
    """The largest element is not widened to 0: the scale of negative data spans the data, and its zero point clamps."""
    one, quant = isinstance(granularity, PerTensor), brevitas.quant
    injector = quant.ShiftedUint8WeightPerTensorFloat if one else quant.ShiftedUint8WeightPerChannelFloat
    q, made = quantizer(UINT8, granularity, ZeroPoint.MIN_MAX), layer(injector, dtype)
    for x in blocks(dtype, powers=POWERS):
        theirs, qparams = weight(made, x), choose_qparams(q, x)
        shape = qparams.scale.shape
        assert_same_bits(qparams.scale, wide(theirs.scale).reshape(shape))
        assert (qparams.zero_point == to_numpy(theirs.zero_point).astype(float).reshape(shape)).all()
        assert_same_bits(fake_quantize(q, x), theirs.value, inputs=x)


@pytest.mark.parametrize("dtype", [DTYPES[n] for n in ("float32", "bfloat16", "float64")], ids=str)
def test_brevitas_signed_zero_points(dtype: np.dtype[Any]) -> None:
    """``round(lo - min / s)``: where lo is not 0, the difference rounds before it is rounded to an integer."""
    q = quantizer(IntegerFormat(8), PerAxis(0), ZeroPoint.MIN_MAX)
    identity = torch.nn.Identity()
    module = _ScaleShiftZeroPoint(IntQuant(False, True, identity), quantize_zero_point=True)
    seen = 0
    for x in blocks(dtype, powers=POWERS):
        qparams = choose_qparams(q, x)
        smallest = to_torch(-np.minimum(x.min(1, keepdims=True), np.zeros((), dtype)))
        theirs = module(smallest, to_torch(qparams.scale.astype(dtype)), torch.tensor(8.0))
        assert (qparams.zero_point == to_numpy(theirs).astype(float)).all()
        other = choose_qparams(q.replace(zero_point_rule="rounded_quotient"), x)
        seen += int((other.zero_point != qparams.zero_point).sum())
    assert seen


def test_brevitas_negative_data_has_no_zero() -> None:
    q = quantizer(UINT8, PerTensor(), ZeroPoint.MIN_MAX)
    x = np.array([-5, -1], np.float32)
    assert choose_qparams(q, x)[:2] == (np.float32(4) / np.float32(255), 255)


@pytest.mark.parametrize(
    ("injector", "fmt", "denominator"),
    [
        (brevitas.quant.Int8ActPerTensorFloat, IntegerFormat(8), "lo"),
        (brevitas.quant.Uint8ActPerTensorFloat, UINT8, "hi"),
    ],
    ids=["Int8", "Uint8"],
)
def test_brevitas_activations_in_training(injector: Any, fmt: IntegerFormat, denominator: str) -> None:
    """Divided by 128 (signed) or 255, with the largest magnitude as statistic of the batch."""
    q = quantizer(fmt, PerTensor()).replace(denominator=denominator)
    for x in blocks(DTYPES["float32"]):
        act = brevitas.nn.QuantIdentity(act_quant=injector, scaling_stats_op=StatsOp.MAX, return_quant_tensor=True)
        act.train()
        theirs = act(to_torch(x))
        assert_same_bits(choose_qparams(q, x).scale, wide(theirs.scale).reshape(()))
        assert_same_bits(fake_quantize(q, x), theirs.value, inputs=x)
