"""Where an oracle does what no description covers: each as data, with its input, both results and the cause.

Strict both ways: an oracle that begins to agree fails here as well; then the entry goes and its inputs join the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import brevitas.nn
import brevitas.quant
import numpy as np
import pytest
import torch
from brevitas.core.function_wrapper import TensorClamp
from brevitas.core.quant import IntQuant
from numpy.typing import NDArray
from onnx import TensorProto
from torchao.quantization import quant_primitives as torchao

from samebits.core import (
    QParams,
    Quantizer,
    catalog,
    choose_qparams,
    dialects,
    fake_quantize,
    fake_quantize_vjp,
    quantize,
)
from samebits.proofs.inputs.compare import assert_same_bits, differences
from samebits.proofs.modes.arrays import to_numpy, to_torch

from .test_torch_and_onnxruntime import dynamic_quantize_linear, quantize_linear

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
NAN, INF = np.nan, np.inf
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]
TENTH = np.float32(0.1)


@dataclass(frozen=True)
class KnownDifference:
    """One place where an oracle and its dialect part.

    Attributes:
        where: the function, and which inputs.
        why: the cause, in the oracle.
        versions: the package and version it was seen in.
        run: gives (ours, theirs), NumPy arrays.
        ours, theirs: what they give, exactly; every element differs.
    """

    where: str
    why: str
    versions: str
    run: Callable[[], tuple[Any, Any]]
    ours: NDArray[Any]
    theirs: NDArray[Any]


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def dialect(q: Quantizer, name: str) -> Quantizer:
    return q.replace(**dialects[name])


def per_channel_overflow() -> tuple[Any, Any]:
    x, q = f32(9.3e17, 1e30, INF)[None], dialect(catalog["int8_per_channel"], "torch_fake_quantize")
    parts = torch.tensor([0.1]), torch.tensor([0], dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(to_torch(x), *parts, 0, -128, 127)
    return fake_quantize(q, x, QParams(f32(0.1)[:, None]))[0], to_numpy(theirs)[0]


def per_channel_just_below() -> tuple[Any, Any]:
    x, q = f32(9.2e17)[None], dialect(catalog["int8_per_channel"], "torch_fake_quantize")
    parts = torch.tensor([0.1]), torch.tensor([0], dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(to_torch(x), *parts, 0, -128, 127)
    return fake_quantize(q, x, QParams(f32(0.1)[:, None]))[0], to_numpy(theirs)[0]


def double_in_float() -> tuple[Any, Any]:
    x, q = np.array([0.3, -0.050000000745058046]), dialect(INT8, "torch_fake_quantize")
    theirs = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), float(TENTH), 0, -128, 127)
    return fake_quantize(q, x, QParams(np.float64(TENTH))), to_numpy(theirs)


def masked_gradient() -> tuple[Any, Any]:
    x, g = f32(NAN, 100, 100), f32(1, -1, INF)
    t = to_torch(x).requires_grad_()
    torch.fake_quantize_per_tensor_affine(t, 0.1, 0, -128, 127).backward(to_torch(g))
    return fake_quantize_vjp(dialect(INT8, "torch_fake_quantize"), x, QParams(TENTH), g).x, to_numpy(t.grad)


def onnx_float16_infinity() -> tuple[Any, Any]:
    x, scale = np.array([INF], np.float16), np.array(0.1, np.float16)
    theirs = quantize_linear("int8", TensorProto.FLOAT16)(x, scale, np.array(0, np.int8))[0]
    return quantize(dialect(INT8, "onnx"), x, QParams(scale.astype(np.float32))), theirs


def onnx_dynamic_scale(*data: float) -> Callable[[], tuple[Any, Any]]:
    return lambda: (
        choose_qparams(dialect(UINT8, "onnx"), f32(*data)).scale[None],
        dynamic_quantize_linear()(f32(*data))[1][None],
    )


def torchao_nan() -> tuple[Any, Any]:
    x, zero = f32(NAN), torch.tensor(0, dtype=torch.int32)
    theirs = torchao._fake_quantize_affine(to_torch(x), (1,), torch.tensor(0.1), zero, torch.int8)
    return fake_quantize(dialect(INT8, "torchao"), x, QParams(TENTH)), to_numpy(theirs)


def brevitas_gradient() -> tuple[Any, Any]:
    q, x, g = dialect(INT8, "brevitas"), f32(0.01), f32(0.35144785)
    t = to_torch(x).requires_grad_()
    module = IntQuant(False, True, torch.nn.Identity(), tensor_clamp_impl=TensorClamp())
    module(torch.tensor(0.1), torch.tensor(0.0), torch.tensor(8.0), t).backward(to_torch(g))
    return fake_quantize_vjp(q, x, QParams(TENTH), g).x, to_numpy(t.grad)


def brevitas_scale(injector: Any, q: Quantizer, *data: float) -> Callable[[], tuple[Any, Any]]:
    def run() -> tuple[Any, Any]:
        layer = brevitas.nn.QuantLinear(len(data), 1, bias=False, weight_quant=injector)
        layer.weight.data = torch.tensor([data])
        return choose_qparams(q, f32(*data)).scale[None], to_numpy(layer.quant_weight().scale)[None]

    return run


POWER_OF_TWO = INT8.replace(restriction="power_of_two", denominator="lo")

DIFFERENCES = [
    KnownDifference(
        "torch.fake_quantize_per_channel_affine, x / s at least 2**63",
        "the quotient is cast to int64 before it is clamped, and the cast overflows to the smallest integer",
        "torch 2.13.0",
        per_channel_overflow,
        f32(12.7, 12.7, 12.7),
        f32(-12.8, -12.8, -12.8),
    ),
    KnownDifference(
        "torch.fake_quantize_per_tensor_affine, float64",
        "1 / s and (code - z) * s are computed in float32 whatever the dtype of x",
        "torch 2.13.0",
        double_in_float,
        np.array([3 * float(TENTH), 0.0]),
        np.array([float(np.float32(3) * TENTH), -float(TENTH)]),
    ),
    KnownDifference(
        "gradient of torch.fake_quantize_per_tensor_affine, NaN in x and masked elements",
        "the mask is qmin <= code <= qmax, false for NaN, and g is multiplied by it: -1 * 0 is -0.0, inf * 0 is NaN",
        "torch 2.13.0",
        masked_gradient,
        f32(1, 0, 0),
        f32(0, -0.0, NAN),
    ),
    KnownDifference(
        "onnxruntime QuantizeLinear, float16, +inf",
        "the quotient is cast to an integer before it is clamped; float32 is not affected",
        "onnxruntime 1.31.1",
        onnx_float16_infinity,
        np.array([127], np.int8),
        np.array([-128], np.int8),
    ),
    KnownDifference(
        "onnxruntime DynamicQuantizeLinear, a range beyond float32",
        "max - min overflows",
        "onnxruntime 1.31.1",
        onnx_dynamic_scale(3.4e38, -3.4e38),
        f32(np.float32(3.4e38) / np.float32(127.5)),
        f32(INF),
    ),
    KnownDifference(
        "torchao _fake_quantize_affine, NaN",
        "training does not cast to the integer dtype, which is what makes 0 of NaN in quantize_affine",
        "torchao 0.18.0",
        torchao_nan,
        f32(0),
        f32(NAN),
    ),
    KnownDifference(
        "gradient of Brevitas IntQuant towards x",
        "automatic differentiation gives (g * s) / s, each rounded, where the straight-through gradient is g",
        "brevitas 0.13.4",
        brevitas_gradient,
        f32(0.35144785),
        np.nextafter(f32(0.35144785), f32(1)),
    ),
    KnownDifference(
        "Brevitas power-of-two scales, absmax just above a power of two",
        "ceil(log2(absmax)) in float32, where log2 of the neighbour of 32 is 5",
        "brevitas 0.13.4",
        brevitas_scale(
            brevitas.quant.Int8WeightPerTensorFixedPoint, POWER_OF_TWO, float(np.nextafter(f32(32), f32(33))[0])
        ),
        f32(0.5),
        f32(0.25),
    ),
]


def check(known: KnownDifference) -> None:
    """Both results are what the entry says, and every element differs."""
    package, seen = known.versions.split()
    context = f"{known.where}: {known.why} (seen in {known.versions}, here {version(package)}, then {seen})"
    ours, theirs = map(np.asarray, known.run())
    assert_same_bits(known.ours, ours, call=f"ours, {context}")
    assert_same_bits(known.theirs, theirs, call=f"theirs, {context}")
    assert differences(ours, theirs).differing == ours.size


@pytest.mark.parametrize("known", DIFFERENCES, ids=[d.where for d in DIFFERENCES])
def test_known_difference(known: KnownDifference) -> None:
    check(known)


def test_per_channel_agrees_just_below_the_overflow() -> None:
    ours, theirs = per_channel_just_below()
    assert_same_bits(ours, theirs)
