"""Where an oracle chooses parameters that no description covers: as in `tests/oracles/test_differences.py`."""

import warnings
from collections.abc import Callable
from typing import Any

import brevitas.nn
import brevitas.quant
import jax.numpy as jnp
import numpy as np
import optimum.quanto as quanto
import pytest
import torch
from numpy.typing import NDArray
from torchao.quantization import quant_primitives as torchao
from torchao.quantization.quant_primitives import MappingType

from samebits.core import IntegerFormat, PerAxis, Quantizer, catalog, choose_qparams
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..exact import BFLOAT16
from .test_differences import INT8, UINT8, KnownDifference, check, dialect, f32
from .test_torch_and_onnxruntime import dynamic_quantize_linear
from .test_torch_qparams import fused

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from aqt.jax.v2 import aqt_quantizer
    from torch.ao.quantization import MinMaxObserver

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]
Pair = tuple[Any, Any]
NARROW = Quantizer(format=IntegerFormat(8, narrow=True))
BIG = float(np.float32(3.4e38))


def scale(q: Quantizer, x: NDArray[Any]) -> NDArray[Any]:
    return choose_qparams(q, x).scale.reshape(-1)


def fused_symmetric(part: int, *data: float) -> Callable[[], Pair]:
    def run() -> Pair:
        q, x = dialect(INT8, "torch_fused_fake_quantize"), f32(*data)[None]
        return (scale(q, x) if part == 1 else np.zeros(1, np.int32)), fused(q, x)[part]

    return run


def observer() -> Pair:
    watching = MinMaxObserver(dtype=torch.quint8)
    watching(torch.tensor([-BIG, BIG]))
    return scale(dialect(UINT8, "torch_fake_quantize"), f32(-BIG, BIG)), to_numpy(watching.calculate_qparams()[0])


def onnx_dynamic(*data: float) -> Callable[[], Pair]:
    return lambda: (scale(dialect(UINT8, "onnx"), f32(*data)), dynamic_quantize_linear()(f32(*data))[1][None])


def aqt(dtype: Any, value: float) -> Callable[[], Pair]:
    x = np.array([[value]], dtype)
    theirs = aqt_quantizer.quantizer_make(8)
    return lambda: (
        scale(dialect(NARROW, "aqt"), x),
        np.asarray(theirs.quant(jnp.asarray(x), calibration_axes=[0, 1])[0].scale[0]).reshape(-1).astype(np.float32),
    )


def brevitas_weight(dtype: Any, *data: float) -> Callable[[], Pair]:
    def run() -> Pair:
        x = np.array([data]).astype(dtype)
        layer = brevitas.nn.QuantLinear(len(data), 1, bias=False, weight_quant=brevitas.quant.Int8WeightPerTensorFloat)
        layer.to(to_torch(x).dtype).weight.data = to_torch(x)
        return scale(dialect(NARROW, "brevitas"), x), to_numpy(layer.quant_weight().scale).reshape(-1).astype(
            np.float32
        )

    return run


HALF = np.array([[-6e4, 6e4]], np.float16)


def torchao_overflow() -> Pair:
    q = dialect(catalog["uint8_affine_per_channel"], "torchao")
    theirs = torchao.choose_qparams_affine(to_torch(HALF), MappingType.ASYMMETRIC, (1, 2), torch.uint8)[0]
    return scale(q, HALF), to_numpy(theirs).reshape(-1).astype(np.float32)


def quanto_overflow() -> Pair:
    q = dialect(catalog["uint4_affine_per_group32"], "quanto_affine").replace(granularity=PerAxis(0))
    x = np.concatenate([HALF, HALF])
    theirs = quanto.MaxOptimizer()(to_torch(x), quanto.qint4, 0)[0]
    return scale(q, x), to_numpy(theirs).reshape(-1).astype(np.float32)


TINY16 = float(np.float16(0.001))

DIFFERENCES = [
    KnownDifference(
        "torch.fused_moving_avg_obs_fake_quant, symmetric, data of one sign",
        "preserve_sparsity acts on ranges with both signs only: the scale is affine, and the zero point -128",
        "torch 2.13.0",
        fused_symmetric(1, 0, 3),
        f32(3) / f32(127),
        f32(3) / f32(255),
    ),
    KnownDifference(
        "torch.fused_moving_avg_obs_fake_quant, symmetric, the zero point of the smallest numbers",
        "max_scale * -128 underflows to zero, which is no longer a range with both signs",
        "torch 2.13.0",
        fused_symmetric(2, -1e-45, 1e-45),
        np.array([0], np.int32),
        np.array([127], np.int32),
    ),
    KnownDifference(
        "torch.ao observers, a range beyond float32",
        "max - min overflows",
        "torch 2.13.0",
        observer,
        f32(BIG) / f32(127.5),
        f32(np.inf),
    ),
    KnownDifference(
        "onnxruntime DynamicQuantizeLinear, a range below 255 * 2**-150",
        "only a range of 0 gets the scale 1: here the division gives 0",
        "onnxruntime 1.31.1",
        onnx_dynamic(0, 7 * 2.0**-149),
        f32(1),
        f32(0),
    ),
    KnownDifference(
        "AQT, float32, a scale below 2**-126",
        "XLA:CPU flushes it to zero; the reciprocal of that counts as 1, and all codes are 0",
        "aqtp 0.9.0",
        aqt(np.float32, 2.0**-124),
        f32(2.0**-126),
        f32(0),
    ),
    KnownDifference(
        "AQT, float16, a scale below 2**-14",
        "no floor, and float16 is computed in float32, where its subnormals are not flushed",
        "aqtp 0.9.0",
        aqt(np.float16, TINY16),
        f32(2.0**-14),
        (f32(TINY16) / f32(127.5)).astype(np.float16).astype(np.float32),
    ),
    KnownDifference(
        "Brevitas scale of bfloat16 weights, per tensor",
        "the statistic has no axes and is raised to a float32 number without axes: the result is float32",
        "brevitas 0.13.4",
        brevitas_weight(BFLOAT16, 1, -0.5),
        (f32(1) / f32(127)).astype(BFLOAT16).astype(np.float32),
        f32(1) / f32(127),
    ),
    KnownDifference(
        "torchao choose_qparams_affine, float16, a range beyond 65504",
        "max - min overflows",
        "torchao 0.18.0",
        torchao_overflow,
        (f32(HALF[0, 1]) / f32(127.5)).astype(np.float16).astype(np.float32),
        f32(np.inf),
    ),
    KnownDifference(
        "quanto MaxOptimizer, float16, a range beyond 65504",
        "max - min overflows",
        "optimum-quanto 0.2.7",
        quanto_overflow,
        np.repeat((f32(HALF[0, 1]) / f32(7.5)).astype(np.float16).astype(np.float32), 2),
        f32(np.inf, np.inf),
    ),
]


@pytest.mark.parametrize("known", DIFFERENCES, ids=[d.where for d in DIFFERENCES])
def test_known_difference_of_parameters(known: KnownDifference) -> None:
    check(known)
