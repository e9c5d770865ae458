"""Certificates of the scale rules of MX formats: steps of the largest magnitude, and faults planted in them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import PerGroup, QParams, Quantizer, catalog
from samebits.proofs.certificates import scale_steps as module
from samebits.proofs.certificates.certificate import check
from samebits.proofs.certificates.certify import Difference, certify, run
from samebits.proofs.certificates.evaluate_scales import run_scale_tile, scales_plan
from samebits.proofs.certificates.request import Request, requested
from samebits.proofs.certificates.scale_steps import INFINITY, check_scale_steps, scale_steps
from samebits.proofs.certificates.tiles import Part, Tile
from samebits.proofs.modes.execution import MODES, Implementation, implementation

Array = NDArray[Any]
MX = [name for name, q in catalog.items() if name.startswith("mx")]
EVEN, CEIL = catalog["mxfp4_e2m1_even"], catalog["mxfp8_e4m3_rceil"]


class Few(Request):
    """The blocks, and the magnitudes of one tile shortened."""

    def plan(self) -> tuple[Part, ...]:
        magnitudes, blocks = scales_plan(self.q)
        return replace(magnitudes, tiles=(Tile("magnitudes", 0x3F800000 - 512, 1024),)), blocks


@pytest.mark.parametrize("name", MX)
def test_steps_are_those_of_the_definition(name: str) -> None:
    check_scale_steps(catalog[name])
    found = scale_steps(catalog[name])
    assert found.scales[0] == 2.0**-126
    assert (found.scales[1:] == 2 * found.scales[:-1]).all()
    assert 200 < len(found.first) < 254


def test_steps_of_another_rule_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = scale_steps(EVEN)._replace(first=scale_steps(EVEN).first + 1)
    monkeypatch.setattr(module, "scale_steps", lambda q: wrong)
    with pytest.raises(AssertionError, match="is not the definition's"):
        check_scale_steps(EVEN)


def test_the_plan_holds_every_pattern_once() -> None:
    tiles = scales_plan(EVEN)[0].tiles
    assert [tile.first for tile in tiles] == list(range(0, 2**32, tiles[0].count))
    assert {tile.count for tile in tiles} == {tiles[0].count}


@pytest.mark.parametrize(
    ("q", "mode"), [*((EVEN, mode) for mode in MODES), *((CEIL, mode) for mode in ("numpy", "torch eager", "jax jit"))]
)
def test_each_mode_passes_around_steps_and_ends(q: Quantizer, mode: str) -> None:
    """Zeros and subnormals, a step, the largest numbers, infinities and NaN; negative ones as well."""
    step = int(scale_steps(q).first[130])
    for first in (0, 0x00800000 - 512, step - 512, INFINITY - 512, (1 << 31) + step - 512, (1 << 32) - 1024):
        result = run_scale_tile(q, Tile("magnitudes", first, 1024), [implementation(mode)])
        assert not result.findings
        assert result.results == 1024
    assert not run_scale_tile(q, Tile("blocks", 0, 0), [implementation(mode)]).findings


def doubled(where: Callable[[Array], Array]) -> Implementation:
    """The specification with scales twice as large where a magnitude says so."""
    good = implementation("numpy")

    def choose_qparams(q: Quantizer, x: Array) -> QParams:
        largest = np.abs(x.reshape(*x.shape[:-1], -1, q.granularity.size)).max(axis=-1)  # type: ignore[union-attr]
        scale = good.choose_qparams(q, x).scale
        return QParams(np.where(where(largest), 2 * scale, scale).astype(np.float32))

    return replace(good, choose_qparams=choose_qparams)


def test_one_magnitude_with_another_scale_is_found() -> None:
    bits = 0x40490FDB
    wrong = doubled(lambda largest: largest.view(np.uint32) == bits)
    (found,) = run_scale_tile(EVEN, Tile("magnitudes", bits - 500, 1024), [wrong]).findings
    assert (found.function, found.differing) == ("choose_qparams", 1)
    assert np.float32(found.x).view(np.uint32) == bits
    assert found.got == 2 * found.expected
    assert not run_scale_tile(EVEN, Tile("magnitudes", bits + 1, 1024), [wrong]).findings


def test_a_step_one_place_off_is_found_in_blocks() -> None:
    first = int(scale_steps(CEIL).first[100])
    wrong = doubled(lambda largest: largest.view(np.uint32) == first - 1)
    (found,) = run_scale_tile(CEIL, Tile("blocks", 0, 0), [wrong]).findings
    assert found.differing == 64  # 32 places, 2 signs


def test_a_certificate_of_scales_is_written_and_read() -> None:
    request = Few("mxfp4_e2m1_even", EVEN, ("numpy", "torch eager"), "scales")
    certificate = certify(request)
    assert [part["ran"] for part in certificate["domain"]] == [
        "the quantizer with blocks of one element",
        "the quantizer itself",
    ]
    assert set(certificate["statement"]["functions"]) == {"choose_qparams"}
    assert "all 2**32 bit patterns" in certificate["statement"]["says"]
    with pytest.raises(Exception, match="section `tiles` must hold"):  # the whole plan is longer
        check(certificate)
    with pytest.raises(Difference):
        list(run(request, implementations=[doubled(lambda largest: largest == 1)]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int8_per_tensor", "`q.scale` must be the default with restriction"),
        ("int8_power_of_two_per_tensor", "`q.granularity` must be per group"),
        ("uint4_affine_per_group32", "`q.scale` must be"),
        ("nvfp4", "`q.scale` must be"),
    ],
)
def test_other_rules_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        requested(name, "scales")


def test_other_groups_are_the_same_rule() -> None:
    q = EVEN.replace(granularity=PerGroup(16))
    assert not run_scale_tile(q, Tile("blocks", 0, 0), [implementation("numpy")]).findings
