"""torch_frontend beside core, bit for bit: eager, in every layout; what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samebits import core, torch_frontend
from samebits.core import (
    CodebookFormat,
    FloatFormat,
    Gradient,
    IntegerFormat,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    Quantizer,
    Rounding,
    catalog,
)
from samebits.core.descriptions import ON_QUOTIENT
from samebits.core.ste import block_sum
from samebits.proofs.inputs import strategies
from samebits.proofs.inputs.compare import assert_same_bits, same_bits
from samebits.proofs.inputs.knife_edges import knife_edge_array, special_values
from samebits.proofs.modes.arrays import to_numpy, to_torch
from samebits.torch_frontend.arrays import CHUNK, WHOLE, rounded_to
from samebits.torch_frontend.rounding import round_to_integer

from ..exact import DIRECTIONS, DTYPES
from ..torch_beside_core import assert_same_functions, cotangent, gradient, in_torch

Array = NDArray[Any]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_entry = pytest.mark.parametrize("name", catalog)
each_rounding = pytest.mark.parametrize("rounding", [r for r in Rounding if r is not Rounding.LEARNED])

SYMMETRIC = catalog["int8_per_tensor"]
AFFINE = catalog["uint8_affine_per_channel"]


def edges(q: Quantizer, dtype: str, scales: tuple[float, ...] = (0.1, 1 / 3, 2.0**-126)) -> list[tuple[Array, QParams]]:
    """Knife edges at several scales and zero points, in as few arrays as the granularity allows."""
    kind = np.float64 if dtype == "float64" else np.float32
    zeros = np.resize([min(7, q.format.hi), q.format.lo, q.format.hi], len(scales)).astype(np.int32)
    groups = [[i] for i in range(len(scales))] if q.granularity == PerTensor() else [list(range(len(scales)))]
    every = []
    for chosen in groups:
        parameters = QParams(np.array(scales, kind)[chosen], zeros[chosen] if q.affine else None)
        every.append(knife_edge_array(q, parameters, DTYPES[dtype]))
    return every


# --- eager, element by element ---------------------------------------------------------------------------------------


@each_dtype
@each_entry
def test_knife_edges_of_the_catalog(name: str, dtype: str) -> None:
    q = catalog[name]
    scales = (0.1, 2.0**-126) if q.format.bits == 16 else (0.1, 1 / 3, 2.0**-126, 3e30)
    for x, qparams in edges(q, dtype, scales):
        assert_same_functions(q, x, qparams)


@each_dtype
@each_rounding
@pytest.mark.parametrize(
    "name",
    ["int8_narrow_per_channel", "uint4_affine_per_group32", "float8_e5m2_per_tensor", "float8_e4m3fnuz_per_tensor"],
)
def test_knife_edges_of_every_rounding(name: str, rounding: Rounding, dtype: str) -> None:
    q = catalog[name].replace(rounding=rounding)
    infinite = q.replace(saturate=False) if isinstance(q.format, FloatFormat) else q
    for x, qparams in edges(q, dtype):
        assert_same_functions(q, x, qparams)
        assert_same_functions(infinite.replace(gradient="pass_through"), x, qparams)


@each_rounding
def test_every_zero_point_moves_the_ends_of_the_mask(rounding: Rounding) -> None:
    q = Quantizer(format=IntegerFormat(3), granularity=PerAxis(0), zero_point="min_max", rounding=rounding)
    scale = np.array([0.1, 2.0**-126, 2.0**127, 3e30, 1, 1 / 3, 2.0**-100, 5e-324**0.1], np.float32)
    x, qparams = knife_edge_array(q, QParams(scale, np.arange(-4, 4, dtype=np.int32)), np.dtype(np.float32))
    assert_same_functions(q, x, qparams)


@each_dtype
@pytest.mark.parametrize("rounding", DIRECTIONS)
def test_round_to_integer_keeps_the_sign_of_zero(rounding: Rounding, dtype: str) -> None:
    halves = np.arange(-9, 10) / 2
    around = [np.nextafter(halves, np.inf), halves, np.nextafter(halves, -np.inf), [1e7 + 0.5, 2.0**23 + 1, -(2.0**30)]]
    with np.errstate(all="ignore"):
        x = np.concatenate([np.concatenate(around).astype(DTYPES[dtype]), special_values(DTYPES[dtype])])
        want = core.rounding.round_to_integer(x, rounding)
    assert_same_bits(want, round_to_integer(to_torch(x), rounding), inputs=x)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_by_bits_is_the_native_cast(dtype: str) -> None:
    """All 16-bit numbers, the midpoints between them, their float32 neighbours, random bits, and every kind of NaN."""
    kind = getattr(torch, dtype)
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(kind).float().sort().values
    middle = ((numbers[1:].double() + numbers[:-1].double()) / 2).float()
    bits = torch.cat([t.view(torch.int32) for t in (numbers, middle)])
    drawn = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=torch.Generator().manual_seed(0))
    every = torch.cat([bits - 1, bits, bits + 1, drawn.to(torch.int32), torch.tensor([2**31 - 1, -1, -(2**23) + 1])])
    value = every.to(torch.int32).view(torch.float32)
    assert_same_bits(value.to(kind).float(), rounded_to(value, kind), inputs=value)
    assert same_bits(rounded_to(value, torch.float32), value)


@each_dtype
@each_entry
def test_parameters_of_awkward_data(name: str, dtype: str) -> None:
    q, rng, kind = catalog[name], np.random.default_rng(0), DTYPES[dtype]
    largest = float(np.finfo(np.float16).max if dtype == "float16" else np.finfo(np.float32).max / 2)
    rows = [rng.standard_normal(128) * 2.0**k for k in (-140, -126, -20, 0, 10)]
    rows += [np.zeros(128), -np.zeros(128), np.full(128, 5.0), np.full(128, -5.0), np.linspace(-largest, largest, 128)]
    for x in [np.stack(np.broadcast_arrays(*part)) for part in ([row] * 32 for row in rows)] + [
        np.resize(rows, (64, 128))
    ]:
        x = x.astype(kind)
        if np.isfinite(x).all():
            expected, got = core.choose_qparams(q, x), torch_frontend.choose_qparams(q, to_torch(x))
            assert_same_bits(tuple(expected[:2]), tuple(got[:2]), call=f"choose_qparams({q})")
            assert_same_bits(core.fake_quantize(q, x), torch_frontend.fake_quantize(q, to_torch(x)), inputs=x)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_quantizer_any_array(data: st.DataObject) -> None:
    q = data.draw(strategies.variants())
    dtype = data.draw(strategies.dtypes(*DTYPES))
    x, parameters, _ = data.draw(strategies.cases(q, dtype=dtype))
    assert_same_functions(q, x, parameters)
    if np.isfinite(x).all():
        expected, got = core.choose_qparams(q, x), torch_frontend.choose_qparams(q, to_torch(x))
        assert_same_bits(tuple(expected[:2]), tuple(got[:2]), call=f"choose_qparams({q})")


# --- gradients of the parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient_rule", [rule for rule in Gradient if rule not in ON_QUOTIENT])
@pytest.mark.parametrize(
    "name", ["int8_per_tensor", "uint8_affine_per_channel", "uint4_affine_per_group32", "int8_per_block"]
)
def test_gradients_of_parameters_are_within_the_stated_bound(name: str, gradient_rule: Gradient) -> None:
    q, rng = catalog[name].replace(gradient=gradient_rule), np.random.default_rng(0)
    for dtype in ("float32", "float64", "bfloat16"):
        x = rng.standard_normal((64, 128)).astype(DTYPES[dtype])
        qparams = core.choose_qparams(q, x)
        qparams = QParams(
            qparams.scale * np.asarray(0.7, qparams.scale.dtype), qparams.zero_point
        )  # so that some are clamped
        g = rng.standard_normal(x.shape).astype(x.dtype)
        want, parameters = core.fake_quantize_vjp(q, x, qparams, g), in_torch(qparams)
        scale = parameters.scale.requires_grad_()
        zero = parameters.zero_point.to(scale.dtype).requires_grad_() if q.affine else None
        torch_frontend.fake_quantize(q, to_torch(x), QParams(scale, zero)).backward(to_torch(g))
        steps = 2 * (q.format.hi - q.format.lo + 1)
        sizes = block_sum(np.abs(g).astype(np.float64), q.granularity)
        count = x.size / np.asarray(qparams.scale).size
        for got, expected, size in (
            (scale.grad, want.scale, steps),
            (zero if zero is None else zero.grad, want.zero_point, 2),
        ):
            if expected is not None:
                bound = count * 2.0**-53 * sizes * size + 2 * np.spacing(np.abs(expected))
                assert got is not None
                assert np.all(np.abs(to_numpy(got).astype(np.float64) - expected) <= bound)
                assert to_numpy(got).dtype == expected.dtype


def test_only_what_is_wanted_is_computed_and_the_chosen_scale_is_constant() -> None:
    x = torch.randn(8, 32)
    leaf = x.clone().requires_grad_()
    torch_frontend.fake_quantize(SYMMETRIC, leaf).sum().backward()
    assert_same_bits(torch.ones_like(x), leaf.grad)
    chosen = torch_frontend.choose_qparams(AFFINE, leaf)
    assert not chosen.scale.requires_grad
    scale = chosen.scale.clone().requires_grad_()
    torch_frontend.fake_quantize(AFFINE, x, QParams(scale, chosen.zero_point)).sum().backward()
    assert scale.grad is not None
    assert scale.grad.shape == scale.shape


def test_second_derivatives_are_those_of_the_surrogate() -> None:
    """d scale is linear in x inside the range: its derivative by x is -g / s."""
    x = torch.linspace(-1, 1, 64).requires_grad_()
    scale, g = torch.tensor(0.03, requires_grad=True), torch.linspace(1, 2, 64)
    y = torch_frontend.fake_quantize(SYMMETRIC, x, QParams(scale))
    (d_scale,) = torch.autograd.grad(y, scale, g, create_graph=True)
    (by_x,) = torch.autograd.grad(d_scale, x)
    torch.testing.assert_close(by_x, -g / scale.detach())


# --- layouts, sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerAxis(1), PerToken(), PerGroup(4, 0), PerBlock((2, 3))], ids=str
)
def test_layouts(granularity: Any) -> None:
    q = Quantizer(format=IntegerFormat(8, signed=False), granularity=granularity, zero_point="min_max")
    base = torch.randn(8, 6, 12, 9)
    layouts = {
        "transposed": base.transpose(0, 2),
        "channels last": base.to(memory_format=torch.channels_last),
        "sliced": base[::2, :, ::3, :6],
        "expanded": base[:1].expand(8, 6, 12, 9),
        "one row of many": torch.randn(8, 8, 6, 12, 9)[:, 3],
    }
    for layout, t in layouts.items():
        x = t.numpy()
        if layout in ("transposed", "sliced") and granularity == PerBlock((2, 3)):
            t, x = t[..., :6, :6], x[..., :6, :6]
        qparams = core.choose_qparams(q, x)
        given, g = in_torch(qparams), cotangent(x)
        assert_same_bits(tuple(qparams[:2]), tuple(torch_frontend.choose_qparams(q, t)[:2]), call=layout)
        assert_same_bits(core.fake_quantize(q, x, qparams), torch_frontend.fake_quantize(q, t, given), call=layout)
        assert_same_bits(core.quantize(q, x, qparams), torch_frontend.quantize(q, t, given), call=layout)
        dx = core.fake_quantize_vjp(q, x, qparams, g).x
        assert_same_bits(dx, gradient(q, t, given, to_torch(g)), call=layout)
        turned = to_torch(np.ascontiguousarray(g.T)).permute(3, 2, 1, 0)
        assert_same_bits(dx, torch_frontend.fake_quantize_vjp(q, t, given, turned).x, call=layout)


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (PerTensor(), (WHOLE + 20,)),
        (PerTensor(), (5, CHUNK - 1)),
        (PerAxis(0), (2, 2 * CHUNK + 5)),
        (PerAxis(1), (3, 5, CHUNK // 2)),
        (PerAxis(1), (1, 2 * CHUNK, 3)),
        (PerToken(), (2 * CHUNK, 3)),
        (PerGroup(7, 1), (2, 14, CHUNK // 5)),
        (PerBlock((2, 4)), (10, CHUNK // 2)),
    ],
    ids=str,
)
def test_arrays_of_several_chunks(granularity: Any, shape: tuple[int, ...]) -> None:
    """Special values lie at the seams and far inside, where native loops are vectorized."""
    q = Quantizer(format=IntegerFormat(8), granularity=granularity, zero_point="min_max")
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    qparams = core.choose_qparams(q, x)
    flat = x.reshape(-1)
    for start in (0, 1000, CHUNK - 12, flat.size - 30):
        flat[start : start + 26] = special_values(np.float32)[: flat[start : start + 26].size]
    given = in_torch(qparams)
    assert_same_bits(core.fake_quantize(q, x, qparams), torch_frontend.fake_quantize(q, to_torch(x), given), inputs=x)
    g, expanded = cotangent(x), core.blocks.expand_blocks
    s, z = (expanded(np.asarray(p, np.float32), granularity, shape) for p in qparams[:2])
    with np.errstate(all="ignore"):
        inside = core.ste.clip_mask(q, np.round(x / s) + z)
    assert_same_bits(np.where(inside, g, np.float32(0)), gradient(q, to_torch(x), given, to_torch(g)), inputs=x)
    finite = np.where(np.isfinite(x) & (np.abs(x) < 1e9), x, np.float32(0))
    quotient = finite / s
    distance = np.clip(np.round(quotient) + z, -128, 127) - z - np.where(inside, quotient, 0)
    got = torch_frontend.fake_quantize_vjp(q, to_torch(finite), given, torch.ones(shape)).scale
    want = torch_frontend.ste.block_sum(to_torch(distance.astype(np.float32)), granularity)
    torch.testing.assert_close(got, want, rtol=2.0**-22, atol=1e-6)


@each_dtype
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)])
def test_scalars_and_empty_arrays(shape: tuple[int, ...], dtype: str) -> None:
    x = np.full(shape, 0.3, DTYPES[dtype])
    for q in (SYMMETRIC, catalog["uint8_affine_per_tensor"], AFFINE, catalog["int8_affine_per_token"]):
        if shape or q.granularity == PerTensor():
            qparams = core.choose_qparams(q, x)
            assert_same_bits(tuple(qparams[:2]), tuple(torch_frontend.choose_qparams(q, to_torch(x))[:2]))
            assert_same_functions(q, x, qparams)


# --- compiled ---------------------------------------------------------------------------------------------------------

GOOD = QParams(torch.tensor(0.1))
ROW = torch.ones(2, 3)
ZEROS = torch.zeros(2, 1, dtype=torch.int32)
REFUSED: dict[str, tuple[type[Exception], str, Any]] = {
    "no quantizer": (TypeError, "`q` must be a Quantizer", lambda f: f.fake_quantize("int8_per_tensor", ROW)),
    "integers": (TypeError, "`x` must have dtype float32", lambda f: f.fake_quantize(SYMMETRIC, ROW.int(), GOOD)),
    "NumPy": (TypeError, "`x` must be a torch.Tensor, got ndarray", lambda f: f.fake_quantize(SYMMETRIC, ROW.numpy())),
    "number": (TypeError, "`qparams.scale` must be a torch.Tensor", lambda f: f.quantize(SYMMETRIC, ROW, QParams(0.1))),
    "shape": (
        ValueError,
        r"`qparams.scale` must have shape \(\)",
        lambda f: f.quantize(SYMMETRIC, ROW, QParams(torch.ones(2))),
    ),
    "dtype": (
        TypeError,
        "must have dtype float32, bfloat16, float16; got float64",
        lambda f: f.quantize(SYMMETRIC, ROW, QParams(torch.ones(()).double())),
    ),
    "zero": (
        ValueError,
        "positive normal finite",
        lambda f: f.fake_quantize(SYMMETRIC, ROW, QParams(torch.tensor(0.0))),
    ),
    "subnormal": (
        ValueError,
        "positive normal finite",
        lambda f: f.quantize(SYMMETRIC, ROW, QParams(torch.tensor(1e-40))),
    ),
    "infinite scale": (
        ValueError,
        "positive normal finite",
        lambda f: f.quantize(SYMMETRIC, ROW, QParams(torch.tensor(torch.inf))),
    ),
    "NaN scale": (
        ValueError,
        "positive normal finite",
        lambda f: f.quantize(SYMMETRIC, ROW, QParams(torch.tensor(torch.nan))),
    ),
    "no zero point": (
        TypeError,
        "`qparams.zero_point` must be an array",
        lambda f: f.quantize(AFFINE, ROW, QParams(torch.ones(2, 1))),
    ),
    "zero point": (
        TypeError,
        "`qparams.zero_point` must be None",
        lambda f: f.quantize(SYMMETRIC, ROW, QParams(torch.tensor(0.1), torch.tensor(0))),
    ),
    "range": (
        ValueError,
        r"integers in \[0, 255\], got 256",
        lambda f: f.quantize(AFFINE, ROW, QParams(torch.ones(2, 1), ZEROS + 256)),
    ),
    "fraction": (
        ValueError,
        r"integers in \[0, 255\], got 0.5",
        lambda f: f.fake_quantize(AFFINE, ROW, QParams(torch.ones(2, 1), ZEROS + 0.5)),
    ),
    "NaN": (ValueError, "`x` must not hold NaN", lambda f: f.quantize(SYMMETRIC, ROW * torch.nan, GOOD)),
    "groups": (
        ValueError,
        "multiple of the group size 32",
        lambda f: f.choose_qparams(catalog["int4_per_group32"], ROW),
    ),
    "codes": (TypeError, "`codes` of int8 must have dtype int8", lambda f: f.dequantize(SYMMETRIC, ROW, GOOD)),
    "cotangent": (
        ValueError,
        "`g` must have the shape of x",
        lambda f: f.fake_quantize_vjp(SYMMETRIC, ROW, GOOD, ROW[:1]),
    ),
    "cotangent dtype": (
        TypeError,
        "`g` must have the dtype of x",
        lambda f: f.fake_quantize_vjp(SYMMETRIC, ROW, GOOD, ROW.half()),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    error, message, call = REFUSED[case]
    with pytest.raises(error, match=message):
        call(torch_frontend)


@pytest.mark.parametrize("granularity", [PerTensor(), PerAxis(0), PerToken()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scales_beyond_the_largest_number(granularity: Any, dtype: Any) -> None:
    """A format whose largest number is below 1, so that the quotient overflows."""
    q = Quantizer(format=CodebookFormat((-0.5, 0.0, 0.25, 0.5)), granularity=granularity)
    x = np.array([[0.9, -0.1], [1, 2]], dtype) * np.array([[np.finfo(dtype).max], [1]], dtype)
    with np.errstate(over="ignore"):
        expected = core.choose_qparams(q, x)
    assert np.isnan(expected.scale).any()
    assert_same_bits(expected, torch_frontend.choose_qparams(q, to_torch(x)))
