"""`core.quantizer` without gradients: quantize, dequantize and fake_quantize against exact rationals."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import (
    IntegerFormat,
    PerAxis,
    PerGroup,
    QParams,
    Quantizer,
    Rounding,
    catalog,
    choose_qparams,
    dequantize,
    fake_quantize,
    quantize,
)
from samebits.core.quantizer import codes_and_zero_points
from samebits.proofs.inputs.compare import assert_same_bits

from ..exact import DIRECTIONS, DTYPES, code, edges, elementwise, fake_quantized

DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
ZERO_POINTS = {
    "int8_per_tensor": None,
    "uint8_affine_per_tensor": 7,
    "uint4_affine_per_group32": 15,
    "int16_per_tensor": None,
}
DEFAULT = [name for name, q in catalog.items() if q.arithmetic.is_default]
SCALES = {
    "float32": (0.1, 2.0**-126, 1e36),
    "bfloat16": (0.1, 2.0**-120),
    "float16": (0.003,),
    "float64": (0.1, 2.0**-1022),
}


def parameters(q: Quantizer, scale: float, zero: float | None, dtype: np.dtype[Any]) -> QParams:
    """Parameters of one tensor; the quantizer is made per tensor by the caller."""
    wide = np.float64 if dtype == np.float64 else np.float32
    domain = wide if q.arithmetic.zero_point_domain == "float" else np.int32
    return QParams(np.array(scale, wide), None if zero is None else np.array(zero, domain))


def per_tensor(name: str) -> Quantizer:
    return catalog[name].replace(granularity=catalog["int8_per_tensor"].granularity)


@DTYPE
@pytest.mark.parametrize("rounding", DIRECTIONS)
@pytest.mark.parametrize("name", ZERO_POINTS)
def test_default_arithmetic_is_exact(name: str, rounding: Rounding, dtype: np.dtype[Any]) -> None:
    q, zero = per_tensor(name).replace(rounding=rounding), ZERO_POINTS[name]
    for scale in SCALES[dtype.name]:
        qparams = parameters(q, scale, zero, dtype)
        x = edges(q, float(qparams.scale), zero or 0, dtype, codes=2)
        got = fake_quantize(q, x, qparams)
        assert_same_bits(elementwise(fake_quantized, q, x, float(qparams.scale), zero or 0), got, inputs=x)
        numbers = x[~np.isnan(x)]
        expected = [code(q, float(v), float(qparams.scale), zero or 0, dtype.name) for v in numbers]
        codes = quantize(q, numbers, qparams)
        assert_same_bits(np.array(expected).astype(q.format.storage), codes, inputs=numbers)
        assert_same_bits(got[~np.isnan(x)], dequantize(q, codes, qparams, dtype), inputs=numbers)


SWITCHES: list[dict[str, Any]] = [
    {"division": "reciprocal"},
    {"zero_point_order": "before_rounding"},
    {"zero_point_order": "before_rounding", "division": "reciprocal"},
    {"zero_point_order": "before_rounding", "division": "reciprocal", "fused_multiply_add": True},
    {"zero_point_domain": "float"},
    {"zero_point_domain": "float", "zero_point_order": "before_rounding", "division": "reciprocal"},
    {"zero_point_domain": "float", "fused_multiply_add": True, "nan": "zero_point"},
    {"clamp_order": "before_rounding"},
    {"clamp_order": "before_rounding", "rounding": "toward_positive"},
    {"clamp_order": "before_rounding", "zero_point_order": "before_rounding", "nan": "zero_point"},
    {"flush_subnormals": True, "rounding": "toward_negative"},
    {"keep_negative_zero": True},
    {"keep_negative_zero": True, "clamp_order": "before_rounding", "rounding": "dpu"},
    *({"nan": rule} for rule in ("lowest", "highest", "zero", "zero_point")),
]


@DTYPE
@pytest.mark.parametrize("compute_dtype", ["widened", "input", "float64"])
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: ",".join(map(str, s.values())))
def test_every_arithmetic_is_exact(switches: dict[str, Any], compute_dtype: str, dtype: np.dtype[Any]) -> None:
    for name, zero in (("int8_per_tensor", None), ("uint8_affine_per_tensor", 7)):
        q = per_tensor(name).replace(compute_dtype=compute_dtype, **switches)
        if zero is not None and q.arithmetic.zero_point_domain == "float":
            zero = 0.77
        qparams = parameters(q, 0.1, zero, dtype)
        zero = float(qparams.zero_point) if q.affine else 0.0
        x = edges(q, 0.1, 128 - 7.7 if isinstance(zero, float) and zero % 1 else zero, dtype, codes=2)
        expected = elementwise(fake_quantized, q, x, float(qparams.scale), zero)
        assert_same_bits(expected, fake_quantize(q, x, qparams), call=str(q), inputs=x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["int16_per_tensor", "uint16"])
def test_codes_stay_in_range_where_the_dtype_cannot_hold_the_limit(name: str, dtype: str) -> None:
    """32767 is no bfloat16 and 65535 no float16: the limit is the next number inwards, never one beyond the format."""
    q = catalog["int16_per_tensor"].replace(bits=16, signed=name != "uint16", compute_dtype="input")
    qparams = QParams(np.float32(2.0**-7))
    codes = quantize(q, np.array([np.inf, 500, -np.inf, 1]).astype(DTYPES[dtype]), qparams).astype(int)
    largest = {
        "int16_per_tensor": {"bfloat16": 32640, "float16": 32752},
        "uint16": {"bfloat16": 65280, "float16": 65504},
    }
    assert codes.tolist() == [largest[name][dtype], min(64000, largest[name][dtype]), q.format.lo, 128]


@DTYPE
def test_shapes_and_strides(dtype: np.dtype[Any]) -> None:
    q, qparams = catalog["int8_per_tensor"], parameters(catalog["int8_per_tensor"], 0.1, None, dtype)
    base = np.linspace(-20, 20, 60).reshape(3, 4, 5).astype(dtype)
    views = [
        base,
        base.T,
        base[:, ::2, ::-1],
        np.asfortranarray(base),
        base[1, 2, 3],
        base[:0],
        np.broadcast_to(base[0], (2, 4, 5)),
    ]
    for x in views:
        expected = elementwise(fake_quantized, q, np.ascontiguousarray(x).reshape(x.shape), float(qparams.scale))
        got = np.asarray(fake_quantize(q, x, qparams))
        assert_same_bits(expected, got)
        codes = np.asarray(quantize(q, x, qparams))
        assert (codes.shape, codes.dtype) == (x.shape, np.int8)
        assert_same_bits(got, np.asarray(dequantize(q, codes, qparams, dtype)))


def test_dequantize_defaults_to_the_dtype_of_the_scale_and_rounds_once() -> None:
    q, codes = catalog["int8_per_tensor"], np.array([-128, 0, 127], np.int8)
    assert dequantize(q, codes, QParams(np.float32(0.1))).dtype == np.float32
    assert dequantize(q, codes, QParams(np.float64(0.1))).dtype == np.float64
    for dtype in (DTYPES["bfloat16"], DTYPES["float16"]):
        wide = dequantize(q, codes, QParams(np.float32(0.1)))
        assert_same_bits(wide.astype(dtype), dequantize(q, codes, QParams(np.float32(0.1)), dtype))


def block_by_block(q: Quantizer, x: NDArray[Any], qparams: QParams, block: tuple[int, ...]) -> NDArray[Any]:
    """Every element by itself, its parameters found by index arithmetic."""
    out, alone = np.empty_like(x), q.replace(granularity=catalog["int8_per_tensor"].granularity)
    for index in np.ndindex(x.shape):
        at = tuple(i // b for i, b in zip(index, block, strict=True))
        zero = None if qparams.zero_point is None else qparams.zero_point[at]
        out[index] = fake_quantize(alone, x[index], QParams(qparams.scale[at], zero))
    return out


@pytest.mark.parametrize(
    ("name", "shape", "block"),
    [
        ("int8_per_channel", (3, 4, 5), (1, 4, 5)),
        ("uint8_affine_per_channel", (3, 8), (1, 8)),
        ("int8_affine_per_token", (2, 3, 7), (1, 1, 7)),
        ("uint4_affine_per_group32", (2, 96), (1, 32)),
        ("int8_per_block", (2, 64, 32), (1, 32, 32)),
    ],
)
def test_every_element_uses_the_parameters_of_its_block(
    name: str, shape: tuple[int, ...], block: tuple[int, ...]
) -> None:
    q = catalog[name]
    x = (np.random.default_rng(0).standard_normal(shape) * 4).astype(np.float32)
    qparams = choose_qparams(q, x)
    assert len(np.unique(qparams.scale)) == qparams.scale.size > 1
    assert_same_bits(block_by_block(q, x, qparams, block), fake_quantize(q, x, qparams), inputs=x)
    assert_same_bits(fake_quantize(q, x), fake_quantize(q, x, qparams))


def test_groups_along_another_axis() -> None:
    q = catalog["int4_per_group32"].replace(granularity=PerGroup(2, axis=0))
    x = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    qparams = choose_qparams(q, x)
    assert qparams.scale.shape == (3, 3)
    assert_same_bits(block_by_block(q, x, qparams, (2, 1)), fake_quantize(q, x, qparams))
    last = q.replace(granularity=PerAxis(-1))
    assert choose_qparams(last, x).scale.shape == (1, 3)


def test_codes_and_zero_points_keeps_nan() -> None:
    q, qparams = catalog["uint8_affine_per_tensor"], QParams(np.float32(0.5), np.int32(3))
    codes, zero = codes_and_zero_points(q, np.array([1, np.nan, -9], np.float32), qparams)
    assert_same_bits(np.array([5, np.nan, 0], np.float32), codes)
    assert_same_bits(np.full(3, 3, np.float32), np.asarray(zero))


@pytest.mark.parametrize("name", [name for name in DEFAULT if isinstance(catalog[name].format, IntegerFormat)])
def test_no_negative_zero_and_infinities_saturate(name: str) -> None:
    q = per_tensor(name)
    qparams = QParams(np.float32(0.5), np.int32(q.format.lo + 1) if q.affine else None)
    x = np.array([-0.0, -1e-30, -0.2, np.inf, -np.inf], np.float32)
    got = fake_quantize(q, x, qparams)
    zero = int(qparams.zero_point) if q.affine else 0
    assert_same_bits(np.array([0, 0, 0, (q.format.hi - zero) / 2, (q.format.lo - zero) / 2 + 0.0], np.float32), got)
    assert quantize(q, x, qparams).tolist() == [zero, zero, zero, q.format.hi, q.format.lo]
