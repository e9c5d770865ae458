"""The specification against quantization libraries by others: Brevitas and torchao, bit for bit.

Inputs as in `test_torch_and_onnxruntime.py`; 16-bit dtypes are computed in 16 bits throughout, as these libraries do.
"""

from collections.abc import Iterator
from typing import Any

import brevitas.core.function_wrapper as brevitas_functions
import brevitas.nn
import brevitas.quant
import numpy as np
import pytest
import torch
from brevitas.core.quant import IntQuant
from numpy.typing import NDArray
from torchao.quantization import quant_primitives as torchao
from torchao.quantization.quant_primitives import MappingType

from samebits.core import (
    Gradient,
    IntegerFormat,
    PerTensor,
    QParams,
    Quantizer,
    Rounding,
    catalog,
    choose_qparams,
    dequantize,
    dialects,
    fake_quantize,
    fake_quantize_vjp,
    quantize,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..exact import DTYPES
from .test_torch_and_onnxruntime import inputs

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]
DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
SCALES = (0.1, 1 / 3, 2.0**-7, 1.7)

ROUNDINGS = {
    Rounding.TIES_TO_EVEN: brevitas_functions.RoundSte,
    Rounding.TOWARD_POSITIVE: brevitas_functions.CeilSte,
    Rounding.TOWARD_NEGATIVE: brevitas_functions.FloorSte,
    Rounding.TOWARD_ZERO: brevitas_functions.RoundToZeroSte,
    Rounding.DPU: brevitas_functions.DPURoundSte,
}
CLAMPS = {Gradient.CLIPPED: brevitas_functions.TensorClamp, Gradient.PASS_THROUGH: brevitas_functions.TensorClampSte}
FORMATS = [
    (IntegerFormat(8), 0),
    (IntegerFormat(8, narrow=True), 0),
    (IntegerFormat(8, signed=False), 7),
    (IntegerFormat(4), 0),
]
FORMAT = pytest.mark.parametrize(("fmt", "zero"), FORMATS, ids=lambda v: str(v).replace(" ", "-"))


def quantizer(fmt: IntegerFormat, **changes: Any) -> Quantizer:
    affine = "none" if fmt.signed else "min_max"
    return Quantizer(format=fmt, zero_point=affine).replace(**(dialects["brevitas"] | changes))


def brevitas_module(q: Quantizer) -> Any:
    rounding, clamp = ROUNDINGS[q.rounding](), CLAMPS[q.gradient]()
    identity = torch.nn.Identity()
    narrow, signed = q.format.lo == -q.format.hi, q.format.lo < 0
    return IntQuant(narrow, signed, identity, float_to_int_impl=rounding, tensor_clamp_impl=clamp)


def brevitas_run(
    q: Quantizer, x: NDArray[Any], scale: NDArray[Any], zero: int, g: NDArray[Any]
) -> tuple[Any, list[Any]]:
    """Their value, and their gradients towards x, scale and zero point."""
    leaves = [to_torch(v).requires_grad_() for v in (x, scale, np.array(zero).astype(x.dtype))]
    value = brevitas_module(q)(leaves[1], leaves[2], torch.tensor(float(q.format.bits)), leaves[0])
    value.backward(to_torch(g))
    return value, [to_numpy(leaf.grad) for leaf in leaves]


def parameters(q: Quantizer, scale: NDArray[Any], zero: int) -> QParams:
    wide = np.float64 if scale.dtype == np.float64 else np.float32
    return QParams(scale.astype(wide), np.array(zero, np.int32) if q.affine else None)


@DTYPE
@FORMAT
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_brevitas_int_quant(rounding: Rounding, fmt: IntegerFormat, zero: int, dtype: np.dtype[Any]) -> None:
    for value in SCALES:
        for gradient in CLAMPS:
            q, scale = quantizer(fmt, rounding=rounding, gradient=gradient), np.array(value).astype(dtype)
            x = inputs(q, float(scale), zero, dtype, random=300)
            g = np.random.default_rng(1).standard_normal(x.shape).astype(dtype)
            theirs, grads = brevitas_run(q, x, scale, zero, g)
            qparams = parameters(q, scale, zero)
            assert_same_bits(fake_quantize(q, x, qparams), theirs, call=f"scale {scale}", inputs=x)
            # autograd multiplies by s on the way back through `* s` and divides by it on the way through `/ s`
            passed = fake_quantize_vjp(q, x, qparams, (g * scale) / scale).x
            assert_same_bits(passed, grads[0], call=f"gradient, scale {scale}", inputs=x)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@FORMAT
@pytest.mark.parametrize("gradient", CLAMPS)
def test_brevitas_gradients_where_arithmetic_is_exact(
    gradient: Gradient, fmt: IntegerFormat, zero: int, dtype: np.dtype[Any]
) -> None:
    """With a power of two for scale, x in eighths of it and small integers for g no operation and no sum rounds."""
    q, scale = quantizer(fmt, gradient=gradient), np.array(0.25).astype(dtype)
    steps = np.arange(8 * (fmt.lo - zero - 3), 8 * (fmt.hi - zero + 4))
    x = (steps / 8 * 0.25).astype(dtype)
    g = np.resize(np.array([1, -1, 2]), x.shape).astype(dtype)
    _, grads = brevitas_run(q, x, scale, zero, g)
    ours = fake_quantize_vjp(q, x, parameters(q, scale, zero), g)
    assert_same_bits(ours.x, grads[0], inputs=x)
    assert float(ours.scale) == float(grads[1]) != 0
    if q.affine:
        assert float(ours.zero_point) == float(grads[2])
        assert (float(grads[2]) == 0) == (gradient is Gradient.PASS_THROUGH)


WEIGHTS = [
    (brevitas.quant.Int8WeightPerTensorFloat, catalog["int8_narrow_per_channel"].replace(granularity=PerTensor())),
    (brevitas.quant.Int8WeightPerChannelFloat, catalog["int8_narrow_per_channel"]),
    (
        brevitas.quant.Int8WeightPerTensorFixedPoint,
        Quantizer(format=IntegerFormat(8)).replace(restriction="power_of_two", denominator="lo"),
    ),
]


@pytest.mark.parametrize(("injector", "q"), WEIGHTS, ids=[w[0].__name__ for w in WEIGHTS])
def test_brevitas_weight_scales(injector: Any, q: Quantizer) -> None:
    """absmax / 127, and for fixed point absmax / 128 raised to a power of two (by log2; see the differences)."""
    rng = np.random.default_rng(0)
    layer = brevitas.nn.QuantLinear(20, 6, bias=False, weight_quant=injector)
    for power in range(-3, 4):
        w = (rng.standard_normal((6, 20)) * 10.0**power).astype(np.float32)
        layer.weight.data = torch.from_numpy(w)
        theirs = layer.quant_weight()
        qparams = choose_qparams(q, w)
        assert_same_bits(qparams.scale, theirs.scale)
        clamped = q.replace(narrow=True) if injector is WEIGHTS[2][0] else q  # narrow codes, scale of the full range
        assert_same_bits(
            fake_quantize(clamped.replace(denominator="hi", **dialects["brevitas"]), w, qparams), theirs.value, inputs=w
        )


# --- torchao ---------------------------------------------------------------------------------------------------------

SYMMETRIC, NO_CLIPPING, ASYMMETRIC = (
    MappingType.SYMMETRIC,
    MappingType.SYMMETRIC_NO_CLIPPING_ERR,
    MappingType.ASYMMETRIC,
)
MAPPINGS = [
    ("int8_per_channel", SYMMETRIC),
    ("int4_per_group32", SYMMETRIC),
    ("int8_per_block", SYMMETRIC),
    ("int8_per_channel", NO_CLIPPING),
    ("uint8_affine_per_channel", ASYMMETRIC),
    ("uint4_affine_per_group32", ASYMMETRIC),
    ("int8_affine_per_token", ASYMMETRIC),
]
NARROW = pytest.mark.parametrize("dtype", [DTYPES[n] for n in ("float32", "bfloat16", "float16")], ids=str)
MAPPING = pytest.mark.parametrize(
    ("name", "mapping"), MAPPINGS, ids=lambda v: v if isinstance(v, str) else v.name.lower()
)


def torchao_quantizer(name: str, mapping: Any) -> Quantizer:
    q = catalog[name].replace(**dialects["torchao"])
    return q.replace(denominator="larger") if mapping is NO_CLIPPING else q


def tensors(dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    rng = np.random.default_rng(0)
    for power in (-3, 0, 2):
        yield (rng.standard_normal((32, 64)) * 10.0**power).astype(dtype)
    x = rng.standard_normal((32, 64)).astype(dtype)
    yield from (np.abs(x), -np.abs(x), np.zeros_like(x), np.full_like(x, 5))


def codes_of(q: Quantizer, theirs: Any) -> NDArray[Any]:
    """Their codes in our storage dtype (theirs is uint8 for 4 bits)."""
    codes = to_numpy(theirs).astype(np.int64)
    assert q.format.lo <= codes.min()
    assert codes.max() <= q.format.hi
    return codes.astype(q.format.storage)


@NARROW
@MAPPING
def test_torchao_chooses_quantizes_and_dequantizes(name: str, mapping: Any, dtype: np.dtype[Any]) -> None:
    q = torchao_quantizer(name, mapping)
    target, limits = (torch.int8 if q.format.lo else torch.uint8), (q.format.lo, q.format.hi)
    for x in tensors(dtype):
        t, block = to_torch(x), q.granularity.block_size(x.shape)
        scale, zero = torchao.choose_qparams_affine(t, mapping, block, target, *limits, keepdim=True)
        qparams = choose_qparams(q, x)
        assert_same_bits(qparams.scale, to_numpy(scale).astype(np.float32))
        if q.affine:
            assert_same_bits(qparams.zero_point, zero)
        theirs = torchao.quantize_affine(t, block, scale, zero, target, *limits)
        codes = codes_of(q, theirs)
        assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
        back = torchao.dequantize_affine(theirs, block, scale, zero, target, *limits, output_dtype=t.dtype)
        assert_same_bits(dequantize(q, codes, qparams, dtype), back)
        faked = torchao._fake_quantize_affine(t, block, scale, zero, target, *limits)
        assert_same_bits(fake_quantize(q, x, qparams), faked, inputs=x)


@NARROW
@MAPPING
def test_torchao_on_knife_edges(name: str, mapping: Any, dtype: np.dtype[Any]) -> None:
    q = torchao_quantizer(name, mapping).replace(granularity=PerTensor())
    target, limits = (torch.int8 if q.format.lo else torch.uint8), (q.format.lo, q.format.hi)
    for value in SCALES:
        for zero in (0, 7) if q.affine else (0,):
            scale = np.array(value).astype(dtype)
            x, qparams = inputs(q, float(scale), zero, dtype, random=300), parameters(q, scale, zero)
            arguments = to_torch(x), x.shape, to_torch(scale), torch.tensor(zero, dtype=torch.int32), target, *limits
            codes = codes_of(q, torchao.quantize_affine(*arguments))
            assert_same_bits(quantize(q, x, qparams), codes, call=f"scale {scale}", inputs=x)
            # their training side propagates NaN, their inference side does not
            trained = fake_quantize(q.replace(nan="propagate"), x, qparams)
            assert_same_bits(trained, torchao._fake_quantize_affine(*arguments), call=f"scale {scale}", inputs=x)


@NARROW
def test_torchao_tinygemm(dtype: np.dtype[Any]) -> None:
    q = catalog["uint4_affine_per_group32"].replace(**dialects["torchao_tinygemm"])
    for x in list(tensors(dtype))[:3]:
        t, block = to_torch(x), (1, 32)
        scale, zero = torchao._choose_qparams_affine_tinygemm(t, ASYMMETRIC, block, torch.uint8, 0, 15)
        qparams = choose_qparams(q, x)
        for ours, theirs in ((qparams.scale, scale), (qparams.zero_point, zero)):
            assert_same_bits(ours, to_numpy(theirs).astype(np.float32).reshape(ours.shape))
        theirs = torchao._quantize_affine_tinygemm(t, block, scale, zero, torch.uint8, 0, 15)
        codes = codes_of(q, theirs)
        assert_same_bits(quantize(q, x, qparams), codes, inputs=x)
        back = torchao._dequantize_affine_tinygemm(theirs, block, scale, zero, torch.uint8, 0, 15, output_dtype=t.dtype)
        assert_same_bits(dequantize(q, codes, qparams, dtype), back)
