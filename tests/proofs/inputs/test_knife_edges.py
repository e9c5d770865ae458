"""Tests of the knife edges: no decision of a quantizer may lie where none of them looks."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samebits import core
from samebits.core import (
    Granularity,
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
from samebits.core.granularity import qparams_shape
from samebits.proofs.inputs.bits import from_ordinal, ordinal, raw_bits
from samebits.proofs.inputs.knife_edges import boundaries, knife_edge_array, knife_edges, special_values
from samebits.proofs.inputs.strategies import scales
from samebits.proofs.laws.blockwise import owners

from ...exact import DIRECTIONS

pytestmark = pytest.mark.filterwarnings("error")

DTYPES = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float64)]
SCALES = [1.0, 0.1, 1 / 127, 2.0**-20, 3e4, 1 - 2.0**-24]
NAMES = ("int8_per_tensor", "uint8_affine_per_tensor", "int2_per_channel", "int4_per_channel")
QUANTIZERS = {name: catalog[name] for name in NAMES}


def everything(dtype: Any) -> NDArray[Any]:
    """All numbers of a 16-bit dtype, ascending, infinities included, one zero."""
    top = int(ordinal(np.asarray(np.inf, dtype)))
    return from_ordinal(np.arange(-top, top + 1), dtype)


def parameters(q: Quantizer, scale: float, zero: int, dtype: Any) -> QParams:
    kind = np.float64 if dtype == np.float64 else np.float32
    return QParams(np.asarray(scale, kind), np.asarray(zero, np.int32) if q.affine else None)


def decisions(q: Quantizer, x: NDArray[Any], qparams: QParams) -> NDArray[Any]:
    """Code and gradient mask, which together are all that a quantizer decides."""
    whole = q.replace(granularity=PerTensor())
    mask = core.fake_quantize_vjp(whole, x, qparams, np.ones_like(x)).x
    return np.stack([core.quantize(whole, x, qparams).astype(np.int64), mask.astype(np.int64)])


@pytest.mark.parametrize("rounding", DIRECTIONS)
@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16], ids=["bfloat16", "float16"])
def test_both_sides_of_every_decision_are_edges(dtype: Any, name: str, rounding: Rounding) -> None:
    q = QUANTIZERS[name].replace(rounding=rounding)
    x = everything(dtype)
    for scale in SCALES:
        for zero in sorted({q.format.lo, 0, 77 % (q.format.hi + 1), q.format.hi}) if q.affine else [0]:
            qparams = parameters(q, scale, zero, dtype)
            made = decisions(q, x, qparams)
            changes = np.flatnonzero((made[:, 1:] != made[:, :-1]).any(0))
            assert len(changes) or scale == 2.0**-20 or dtype == np.float16
            sides = x[np.concatenate([changes, changes + 1])]
            edges = knife_edges(q, scale, zero if q.affine else None, dtype)
            assert np.isin(ordinal(sides), ordinal(edges)).all()


@settings(max_examples=40)
@given(scales(), st.sampled_from([*DIRECTIONS]), st.integers(0, 255), st.sampled_from(DTYPES[::3]))
def test_both_sides_of_every_decision_are_edges_of_wide_dtypes(
    scale: float, rounding: Rounding, zero: int, dtype: np.dtype[Any]
) -> None:
    q = catalog["uint8_affine_per_tensor"].replace(rounding=rounding)
    qparams = parameters(q, scale, zero, dtype)
    real = boundaries(q, scale, zero)
    with np.errstate(over="ignore"):
        middle = ordinal(np.asarray(real, dtype))
    middle = middle[np.isfinite(from_ordinal(middle, dtype)) & (np.abs(real) >= 2.0**-100)]
    assume(len(middle))
    x = from_ordinal(np.unique(middle[:, None] + np.arange(-9, 10)), dtype)
    made = decisions(q, x, qparams)
    changes = np.flatnonzero((made[:, 1:] != made[:, :-1]).any(0))
    apart = np.diff(ordinal(x))[changes] == 1
    assert apart.any()
    changes = changes[apart]
    sides = x[np.concatenate([changes, changes + 1])]
    edges = knife_edges(q, scale, zero, dtype)
    assert np.isin(ordinal(sides), ordinal(edges)).all()


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_code_is_met(dtype: np.dtype[Any], name: str) -> None:
    q = QUANTIZERS[name].replace(granularity=PerTensor())
    edges = knife_edges(q, 0.1, 3 % (q.format.hi + 1) if q.affine else None, dtype)
    numbers = edges[~np.isnan(edges)]
    qparams = parameters(q, 0.1, 3 % (q.format.hi + 1), dtype)
    codes = set(core.quantize(q, numbers, qparams).tolist())
    wide = dtype.itemsize > 2  # a coarse dtype may have no number for a code
    there_are = range(q.format.lo, q.format.hi + 1) if wide else core.quantize(q, everything(dtype), qparams).tolist()
    assert codes == set(there_are)


def test_ties_and_grid_points_are_boundaries() -> None:
    int2 = catalog["int2_per_channel"]
    assert boundaries(int2, 2.0).tolist() == [-5.0, -3.0, -1.0, 1.0, 3.0]
    assert boundaries(int2.replace(rounding="toward_zero"), 2.0).tolist() == [-6.0, -4.0, -2.0, 0.0, 2.0, 4.0]
    assert boundaries(int2.replace(clamp_order="before_rounding"), 2.0).tolist() == [-5, -4, -3, -1, 1, 2, 3]
    assert boundaries(catalog["uint4_affine_per_group32"], 1.0, 15).tolist() == [k - 15.5 for k in range(17)]
    mid = catalog["uint4_affine_per_group32"].replace(zero_point_domain="float")
    assert boundaries(mid, 0.5, 10.0).tolist() == [10 + (k - 0.5 - 8) * 0.5 for k in range(17)]


def test_int16_is_not_too_large() -> None:
    edges = knife_edges(catalog["int16_per_tensor"], 0.1, None, np.float32)
    assert len(edges) == 5 * (2**16 + 1) + len(special_values(np.float32))


def test_huge_scales_reach_infinity_and_no_further() -> None:
    edges = knife_edges(catalog["int8_per_tensor"], float(np.finfo(np.float32).max), None, np.float16)
    assert edges[:6].tolist() == [-np.inf, -65504, -65472, 65472, 65504, np.inf]
    assert len(edges) == 6 + len(special_values(np.float16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(dtype: np.dtype[Any]) -> None:
    limits: Any = ml_dtypes.finfo(dtype)
    values = special_values(dtype)
    assert values.dtype == dtype
    bits = set(raw_bits(values).tolist())
    one = np.ones((), dtype)
    wanted = [0.0, limits.smallest_subnormal, limits.smallest_normal, limits.max, np.inf, one, one / 2]
    wanted += [from_ordinal(ordinal(np.asarray(limits.smallest_normal, dtype)) - 1, dtype), one + limits.eps]
    for value in wanted:
        number = np.asarray(value, dtype)
        assert {int(raw_bits(number)), int(raw_bits(-number))} <= bits
    assert np.isnan(values).sum() == 2
    assert np.signbit(values[np.isnan(values)].astype(np.float32)).tolist() == [False, True]


GRANULARITIES: list[Granularity] = [
    PerTensor(),
    *(PerAxis(axis) for axis in (0, 1, 2, -1, -2, -3)),
    PerToken(),
    *(PerGroup(size, axis) for size, axis in ((32, -1), (7, 0), (5, 1), (5, 2), (5, -3), (1, -1))),
    *(PerBlock(shape) for shape in ((4,), (32, 32), (2, 3, 4))),
]


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_arrays_hold_the_edges_of_every_block(granularity: Granularity, affine: bool) -> None:
    q = catalog["uint8_affine_per_tensor" if affine else "int8_per_tensor"].replace(granularity=granularity)
    count = 1 if granularity == PerTensor() else 3
    scale = np.array([0.1, 3.0, 2.0**-126], np.float32)[:count]
    zero = np.array([3, 255, 0], np.int32)[:count] if affine else None
    x, qparams = knife_edge_array(q, QParams(scale, zero), np.float32)
    assert qparams.scale.shape == qparams_shape(granularity, x.shape)
    core.fake_quantize(q, x, qparams)  # accepts the shapes
    blocks = x.reshape(-1)[owners(granularity, x.shape)]
    for i, s in enumerate(scale):
        mine = blocks[qparams.scale.reshape(-1) == s]
        expected = knife_edges(q, s, None if zero is None else zero[i], np.float32)
        assert set(raw_bits(mine).reshape(-1).tolist()) == set(raw_bits(expected).tolist())
        if qparams.zero_point is not None and zero is not None:
            assert (qparams.zero_point.reshape(-1)[qparams.scale.reshape(-1) == s] == zero[i]).all()


def test_one_scale_only_per_tensor() -> None:
    with pytest.raises(ValueError, match="must hold one scale, got 2"):
        knife_edge_array(catalog["int8_per_tensor"], QParams(np.ones(2, np.float32)), np.float32)
