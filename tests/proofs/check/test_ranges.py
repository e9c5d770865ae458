"""Ranges at which parameters are decided: what they are, and that `check` finds with them what tensors do not show."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from samebits.core import PerToken, catalog, choose_qparams
from samebits.proofs.check import check as module
from samebits.proofs.check.check import check
from samebits.proofs.check.pieces import RANGES, range_rows, table_shape
from samebits.proofs.inputs.ranges import end_ranges, knife_edge_ranges, tied_ranges

from ...exact import DTYPES
from ...planted import plant

Array = NDArray[Any]
AFFINE = [name for name, q in catalog.items() if q.affine]
EPSILON = 2.0**-23


# --- what they are ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["uint8_affine_per_channel", "uint4_affine_per_group32"])
def test_zero_points_of_tied_ranges_are_ties(name: str, dtype: str) -> None:
    """Exactly, and in the arithmetic of the specification, which then takes the even one."""
    q = catalog[name].replace(granularity=PerToken())
    lo, span = int(q.format.lo), int(q.format.hi - q.format.lo)
    ranges = tied_ranges(q, DTYPES[dtype])
    assert len(ranges) >= (3 if dtype == "bfloat16" and span == 255 else span)
    chosen = choose_qparams(q, ranges)
    for (low, high), scale, zero in zip(ranges.tolist(), chosen.scale.flat, chosen.zero_point.flat, strict=True):
        step = (Fraction(float(high)) - Fraction(float(low))) / span
        place = Fraction(float(low)) / step
        assert (2 * place).denominator == 1
        assert place.denominator == 2
        assert Fraction(float(scale)) == step
        assert int(zero) == lo - round(place)  # to even


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["int8_per_tensor", "uint8_affine_per_tensor", "mxfp4_e2m1", "ternary_per_tensor"])
def test_the_ends_hold_zeros_and_both_sides_of_floors(name: str, dtype: str) -> None:
    q = catalog[name]
    ends = end_ranges(q, DTYPES[dtype]).astype(np.float64)
    assert np.isfinite(ends).all()
    assert (ends[:, 0] <= 0).all()
    assert (ends[:, 1] >= 0).all()
    with np.errstate(over="ignore"):
        size = (ends[:, 1] - ends[:, 0]) if q.affine else np.maximum(-ends[:, 0], ends[:, 1])
    width = float(q.format.hi - q.format.lo if q.affine else q.format.hi)
    info: Any = ml_dtypes.finfo(DTYPES[dtype])
    wide = np.finfo(np.float64 if dtype == "float64" else np.float32)
    assert size[0] == 0
    assert {float(info.max), float(info.smallest_subnormal)} <= set(np.abs(ends).ravel())
    for floor in [float(wide.eps)] if dtype == "float16" else [float(wide.eps), float(wide.smallest_normal)]:
        near = size[(size > floor * width * 0.4) & (size < floor * width * 1.6)]
        assert (near < floor * width).any(), floor
        assert (near > floor * width).any(), floor


@pytest.mark.parametrize("name", catalog)
def test_there_are_as_many_as_were_asked_for_and_some_of_each_kind(name: str) -> None:
    q = catalog[name]
    every = knife_edge_ranges(q, np.float32, 10**6)
    assert len(every) == len(end_ranges(q, np.float32)) + len(tied_ranges(q, np.float32))
    for count in (1, 2, RANGES, 40, 128):
        some = knife_edge_ranges(q, np.float32, count)
        assert 1 <= len(some) <= count
        assert not some[0].any()  # zeros come first
        tied = {tuple(row) for row in tied_ranges(q, np.float32).tolist()} & {tuple(row) for row in some.tolist()}
        assert bool(tied) == (q.affine and count > 2)
    rows, most = range_rows(q, np.float32), max(table_shape(q.granularity)[0], RANGES)
    assert len(rows.values) <= most
    assert rows.values.shape == rows.real.shape
    assert (rows.real.sum(1) == 2).all()
    assert np.array_equal(rows.values.min(1), knife_edge_ranges(q, np.float32, most)[:, 0])


# --- what they find ---------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One ordinary tensor."""
    save_file({"w": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


Fault = tuple[str, Callable[[Any], Any]]
FAULTS: dict[str, Fault] = {
    "zero points rounded half away": (
        "zero_point.affine_zero_point",
        lambda own: lambda q, low, scale: own(q.replace(zero_point_rounding="ties_to_away"), low, scale),
    ),
    "a floor of epsilon": (
        "scaling.restrict_scale",
        lambda own: lambda q, scale: own(q.replace(floor=EPSILON), scale),
    ),
    "no guard for blocks of zeros": ("scaling.restrict_scale", lambda own: lambda q, scale: scale),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("uint8_affine_per_tensor", "torch_frontend"),
        ("uint8_affine_per_channel", "torch_frontend"),
        ("uint8_affine_per_channel", "jax_backend"),
    ],
)
def test_faults_of_parameters_are_found(
    checkpoint: Path, name: str, fault: str, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With these ranges, and not without them: a tensor alone shows nothing, unless its piece is filled with zeros."""
    target, make = FAULTS[fault]
    plant(monkeypatch, f"{room}.{target}", make)
    mode = "torch eager" if room == "torch_frontend" else "jax eager"
    wanted: Any = {"quantizers": [name], "dtypes": ["float32"], "modes": ["numpy", mode]}
    (row,) = check(checkpoint, **wanted).rows
    assert row.tally.differing
    assert row.tally.example is not None
    named = dict(row.tally.parts).keys()
    assert named == {"raised ValueError"} or "ranges at which parameters are decided" in row.tally.example.tensor
    assert named & {"choose_qparams: scale", "choose_qparams: zero point"} or named == {"raised ValueError"}
    monkeypatch.setattr(module, "range_rows", _none)
    assert check(checkpoint, **wanted).same != (named == {"raised ValueError"} and name == "uint8_affine_per_channel")


def _none(q: Any, dtype: Any) -> Any:
    rows = range_rows(q, dtype)
    return type(rows)(rows.values[:0], rows.real[:0], rows.source)


def test_float64_is_checked(checkpoint: Path) -> None:
    """In its own arithmetic: scales that no float32 is."""
    result = check(
        checkpoint, quantizers=["uint8_affine_per_channel"], dtypes=["float64"], modes=["numpy", "torch eager"]
    )
    (row,) = result.rows
    assert result.same
    assert result.dtypes == {"float64": 1}
    assert row.tally.compared > 1000
