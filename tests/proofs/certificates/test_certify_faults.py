"""Faults planted in the modes, which certificates must find, and what they say of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import PerAxis, QParams, Quantizer, catalog
from samebits.proofs.certificates.certify import Difference, certify, explain_finding, run
from samebits.proofs.certificates.evaluate import run_tile
from samebits.proofs.certificates.request import Request, tiles_of
from samebits.proofs.certificates.steps import steps
from samebits.proofs.certificates.tiles import BINADE, ONE, Part, Tile, boundary_plan
from samebits.proofs.modes.execution import MODES, Implementation, implementation

Array = NDArray[Any]
INT2, INT4 = catalog["int2_per_channel"], catalog["int4_per_channel"]
SCALE = float(np.float32(0.1))
INF, LARGEST = np.float32(np.inf), np.nextafter(np.finfo(np.float32).max, np.float32(0))


class OneTile(Request):
    """The beginning of the boundary engine: 512 scales."""

    def plan(self) -> tuple[Part, ...]:
        part = boundary_plan(self.q)[0]
        return (replace(part, tiles=(replace(part.tiles[0], count=512),)),)


def few(q: Quantizer, tile: Tile, *modes: str) -> Any:
    return run_tile(q, tile, [implementation(mode) for mode in modes])


def faulty(mode: str, wrong: Callable[[Array, Array], Array], *, in_codes: bool = True) -> Implementation:
    """A mode whose input is replaced by ``wrong(x, s)`` (and, if so wished, that of codes too)."""
    good = implementation(mode)

    def fake_quantize(q: Quantizer, x: Array, qparams: QParams) -> Array:
        return good.fake_quantize(q, wrong(x, np.broadcast_to(qparams.scale, x.shape)), qparams)

    def quantize(q: Quantizer, x: Array, qparams: QParams) -> Array:
        return good.quantize(q, wrong(x, np.broadcast_to(qparams.scale, x.shape)), qparams)

    return replace(good, fake_quantize=fake_quantize, quantize=quantize if in_codes else good.quantize)


def one_ulp_at(bits: int) -> Callable[[Array, Array], Array]:
    """The next number up, at a single scale."""
    scale = np.uint32(bits).view(np.float32)
    return lambda x, s: np.where(s == scale, np.nextafter(np.minimum(x, LARGEST), INF), x)


@pytest.mark.parametrize("mode", MODES)
def test_one_ulp_at_one_significand_is_found(mode: str) -> None:
    bits = ONE + 1_234_567
    tile = next(
        tile
        for tile in tiles_of(Request("int4_per_channel", INT4))
        if tile.kind == "scales" and tile.first <= bits < tile.first + tile.count
    )
    near = replace(tile, first=bits - 100, count=256)
    assert not few(INT4, near, mode).findings
    found = run_tile(INT4, near, [faulty(mode, one_ulp_at(bits))]).findings
    assert [f.function for f in found] == ["quantize", "fake_quantize"]
    for f in found:
        assert f.mode == mode
        assert np.float32(f.scale).view(np.uint32) == bits
        assert f.alone == f.got != f.expected
        # the smallest input before a step
        assert f.x == steps(INT4).middles[7] * float(f.scale) or abs(f.x) < float(f.scale)
    text = explain_finding(found[1])
    assert f"float32 bits {int(np.float32(found[1].x).view(np.uint32)):#010x}" in text
    assert "expected" in text
    assert "got" in text


def test_the_first_fault_ends_a_run_and_is_explained() -> None:
    request = OneTile("int2_per_channel", INT2, ("numpy",))
    with pytest.raises(Difference, match=r"fake_quantize differs from the specification at 3 inputs") as error:
        list(run(request, implementations=[faulty("numpy", one_ulp_at(ONE + 77), in_codes=False)]))
    assert len(error.value.findings) == 1


def test_a_fault_in_the_mask_is_found() -> None:
    good = implementation("numpy")

    def vjp(q: Quantizer, x: Array, qparams: QParams, g: Array) -> Any:
        d = good.fake_quantize_vjp(q, x, qparams, g)
        return d._replace(x=np.where(x / qparams.scale > q.format.hi, np.zeros_like(g), d.x))  # should be hi + 1/2

    found = run_tile(INT4, Tile("scales", ONE, 16), [replace(good, fake_quantize_vjp=vjp)]).findings
    assert [f.function for f in found] == ["fake_quantize_vjp"]
    assert (found[0].expected, found[0].got) == (1.5, 0)


@pytest.mark.parametrize("gradient", ["clipped_quotient", "learned_clip"])
def test_masks_of_the_quotient_pass_and_their_faults_are_found(gradient: str) -> None:
    """One that stops (or passes) a quotient of exactly hi, and passes the least one below 0."""
    q = catalog["uint4_affine_per_group32"].replace(zero_point="none", gradient=gradient)
    tiles = Tile("scales", BINADE, 254, 8_388_593), Tile("scales", ONE, 64, 131_071, steps=(0, 1))
    for tile in tiles:
        assert not few(q, tile, "numpy", "torch eager", "jax jit").findings
    good = implementation("numpy")
    early, late = np.float32(15 - 2**-20 if gradient == "clipped_quotient" else 15), np.float32(-(2.0**-149))

    @np.errstate(over="ignore")
    def vjp(q: Quantizer, x: Array, qparams: QParams, g: Array) -> Any:
        quotient = x / qparams.scale
        passes = (quotient >= late) & (quotient <= early)
        return good.fake_quantize_vjp(q, x, qparams, g)._replace(x=np.where(passes, g, np.zeros_like(g)))

    for tile in tiles:
        found = run_tile(q, tile, [replace(good, fake_quantize_vjp=vjp)]).findings
        assert [f.function for f in found] == ["fake_quantize_vjp"]


def test_results_that_do_not_ascend_are_reported_as_such() -> None:
    """Wrong between the steps, where only a sweep looks."""

    def wrong(x: Array, s: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.where(np.abs(x / s - 2.2) < 0.01, -x, x)

    q = catalog["int8_per_tensor"]
    implementations = [faulty("numpy", wrong)]
    assert not run_tile(q, Tile("scales", ONE, 16), implementations).findings
    sweep = next(part for part in boundary_plan(q) if part.name == "sweeps").tiles[0]
    found = run_tile(q, sweep, implementations).findings
    assert found[1].function == "fake_quantize"
    assert not found[1].monotone
    assert "the results do not ascend with the inputs" in explain_finding(found[1])


def test_a_fault_that_needs_company_is_told_apart() -> None:
    """Right for one element, wrong for many."""
    shifted = faulty("numpy", lambda x, s: x if x.size == 1 else np.nextafter(np.minimum(x, LARGEST), INF))
    found = run_tile(INT4, Tile("scales", ONE, 16), [shifted]).findings
    assert found[0].alone == found[0].expected != found[0].got


def test_a_result_of_another_dtype_is_refused() -> None:
    good = implementation("numpy")
    wide = replace(good, quantize=lambda q, x, p: good.quantize(q, x, p).astype(np.int32))
    with pytest.raises(TypeError, match="numpy: quantize must give int8 of shape"):
        run_tile(INT4, Tile("scales", ONE, 16), [wide])


def test_a_fault_outside_the_domain_is_outside_the_statement() -> None:
    """A bfloat16 certificate says nothing of float32 inputs, and says so."""
    only_float32 = faulty("numpy", lambda x, s: np.nextafter(x, np.float32(np.inf)) if x.dtype == np.float32 else x)
    request = Request("int4_per_channel", INT4, ("numpy",), "exhaustive", (SCALE,), "bfloat16")
    certificate = certify(request, implementations=[only_float32])
    assert "for every bfloat16 input at the scales listed, and no others" in certificate["statement"]["says"]


def test_rows_are_taken_per_axis() -> None:
    """What stands in the docs: modes run with one scale per row."""
    seen = []
    good = implementation("numpy")

    def quantize(q: Quantizer, x: Array, qparams: QParams) -> Array:
        seen.append(q.granularity)
        return good.quantize(q, x, qparams)

    run_tile(catalog["int8_per_tensor"], Tile("scales", ONE, 4), [replace(good, quantize=quantize)])
    assert set(seen) == {PerAxis(0)}
