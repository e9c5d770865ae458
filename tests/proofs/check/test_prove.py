"""`samebits prove`: what it covers, that it finds a planted fault, and a share of the catalog that moves day by day.

SAMEBITS_SHARE (a number, by default that of the day) says which share.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from samebits.core import QParams, catalog
from samebits.proofs.check import prove
from samebits.proofs.check.pieces import pack
from samebits.proofs.cli import commands as cli
from samebits.proofs.inputs.knife_edges import knife_edges

from ...planted import FORMULAS, Make, codes_by, plant
from ...planted_formats import FORMULAS as FORMATS
from ...planted_formats import numbers_by

STEP = len(catalog)  # shares; each entry has its turn once
SHARE = int(os.environ.get("SAMEBITS_SHARE", int(time.time()) // 86400))
ENTRIES = tuple(catalog)[SHARE % STEP :: STEP]
COMPILED = tuple(prove.DTYPES)[SHARE // STEP % 3]  # compiling with torch takes longest: one dtype at a time


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("dtype", prove.DTYPES)
def test_a_share_of_the_catalog_is_the_same_everywhere(name: str, dtype: str) -> None:
    modes = prove.MODES if dtype == COMPILED else tuple(m for m in prove.MODES if m != "torch compiled")
    (job,) = (j for j in prove.jobs([name], modes=modes, scales=12, seed=SHARE) if j.dtype == dtype)
    found = prove.run_job(job)
    assert found.same, f"SAMEBITS_SHARE={SHARE}: {found}"
    assert tuple(found.modes) == modes
    assert dtype == "float32" or found.inputs == 12 * 2**16


@pytest.mark.parametrize("name", ["int8_per_tensor", "uint8_affine_per_channel", "mxfp4_e2m1", "int8_per_block"])
def test_every_16_bit_value_meets_every_scale(name: str) -> None:
    q, count = catalog[name], 8
    met: dict[tuple[float, ...], list[np.ndarray]] = {}
    for piece in pack(q, prove.rows(q, "bfloat16", count), prove.height_of(q, "bfloat16")):
        given = piece.qparams
        assert isinstance(given, QParams)
        scale = np.asarray(given.scale).reshape(-1)
        for block in np.unique(piece.block[piece.real]):
            values = piece.x[piece.real & (piece.block == block)]
            met.setdefault((float(scale[block]),), []).append(values)
    assert len(met) == count
    for values in met.values():
        patterns = np.concatenate(values)
        assert patterns.dtype == ml_dtypes.bfloat16
        assert np.array_equal(np.sort(patterns.view(np.uint16)), np.arange(2**16))


def test_edges_of_every_scale_are_met() -> None:
    q = catalog["float8_e4m3fn_per_channel"]
    scales = prove.scales_of(q, "float32", 8)
    expected = sum(len(knife_edges(q, s, None, np.dtype(np.float32))) for s in scales)
    assert (
        sum(int(piece.real.sum()) for piece in pack(q, prove.rows(q, "float32", 8), prove.height_of(q, "float32")))
        == expected
    )


@pytest.mark.parametrize("name", catalog)
@pytest.mark.parametrize(("dtype", "count"), [("bfloat16", prove.SCALES), ("float32", prove.EDGE_SCALES)])
def test_scales_reach_the_ends_of_their_domain(name: str, dtype: str, count: int) -> None:
    scales = prove.scales_of(catalog[name], dtype, count)
    assert all(type(s) is np.float32 and np.isfinite(s) and s >= np.finfo(np.float32).tiny for s in scales)
    powers = np.frexp(scales)[0] == 0.5
    assert min(scales) == np.float32(2.0**-126)
    assert powers.any()
    if catalog[name].scale.restriction in ("float", "quantized"):
        assert len(set(scales)) == len(scales) == count
        assert max(scales) == np.finfo(np.float32).max
        assert {np.nextafter(np.float32(2.0**-126), np.float32(1)), np.float32(1 - 2.0**-24)} <= set(scales)
        assert (~powers).sum() >= count / 2
    else:
        assert len(set(scales)) == len(scales) == min(count, 254)
        assert max(scales) == np.float32(2.0**127)
        assert powers.all()


def test_other_seeds_draw_other_scales() -> None:
    q = catalog["int8_per_tensor"]
    assert set(prove.scales_of(q, "float16", 64, 1)) != set(prove.scales_of(q, "float16", 64, 2))
    assert prove.scales_of(q, "float16", 64, 1) == prove.scales_of(q, "float16", 64, 1)


@pytest.mark.parametrize("dtype", prove.DTYPES)
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("int8_per_tensor", codes_by(FORMULAS["halves away from zero"][0], "torch eager")),
        ("float8_e4m3fn_per_tensor", numbers_by(FORMATS["float: -0.0 lost"][0], "torch eager")),
    ],
)
def test_a_planted_fault_is_found(
    name: str, target: tuple[str, Make], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = (j for j in prove.jobs([name], modes=["torch eager"], scales=8) if j.dtype == dtype)
    assert prove.run_job(job).same
    plant(monkeypatch, *target)
    found = prove.run_job(job)
    assert not found.same
    assert found.modes["torch eager"].differing
    assert "expected" in (found.modes["torch eager"].example or "")
    page = prove.page_of({name: found})
    assert "## Differences" in page
    assert f"| {found.modes['torch eager'].words} |" in page


def proof(name: str, **changes: object) -> prove.Proof:
    found = prove.Proof(name, 10, {mode: prove.Found(50) for mode in prove.MODES}, "ab" * 32, {"numpy": "2.0"})
    return replace(found, **changes)


def test_parts_are_added_when_all_have_come() -> None:
    parts = [proof("nvfp4"), proof("mxint8"), proof("nvfp4"), proof("nvfp4", inputs=1), proof("mxint8")]
    (whole,) = prove.complete(parts)
    assert (whole.quantizer, whole.inputs) == ("nvfp4", 21)
    assert whole.modes == {mode: prove.Found(150) for mode in prove.MODES}
    assert whole.same
    (mixed,) = prove.complete([proof("nvfp4"), proof("nvfp4"), proof("nvfp4", source="cd" * 32)])
    assert mixed.source == "of several states"


def test_what_did_not_run_is_no_agreement() -> None:
    assert not proof("nvfp4", modes={"jax jit": prove.Found(missing="no jax")}).same
    assert not proof("nvfp4", modes={"jax jit": prove.Found(0)}).same
    assert "did not run: no jax" in prove.page_of(
        {"nvfp4": proof("nvfp4", modes={"jax jit": prove.Found(missing="no jax")})}
    )


def test_page_and_figures_are_kept(tmp_path: Path) -> None:
    page = tmp_path / "proofs.md"
    proofs = {"nvfp4": proof("nvfp4"), "int8_per_tensor": proof("int8_per_tensor", source="cd" * 32)}
    prove.save(proofs, page)
    assert prove.load(page.with_suffix(".json")) == proofs
    text = page.read_text()
    assert f"2 of {len(catalog)} entries ran" in text
    assert "| `nvfp4` | 10 | 0 of 50 | 0 of 50 | 0 of 50 | 0 of 50 |" in text
    assert "1 with the source abababababababab and numpy 2.0:" in text
    assert prove.valid(proofs) == frozenset()
    here = prove.jobs(["nvfp4"])[0].source
    libraries = prove.run_job(prove.jobs(["binary_per_channel"], modes=["torch eager"], scales=8)[0]).libraries
    assert prove.valid({"nvfp4": proof("nvfp4", source=here, libraries=libraries)}) == {"nvfp4"}


def test_requests_that_make_no_sense_are_refused() -> None:
    with pytest.raises(KeyError, match="int8_per_tensor"):
        prove.jobs(["int8_per_tenso"])
    with pytest.raises(ValueError, match="at least 8"):
        prove.jobs(scales=7)


def test_command_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prove, "SCALES", 8)
    monkeypatch.setattr(prove, "EDGE_SCALES", 8)
    monkeypatch.setattr(prove, "MODES", ("torch eager",))
    page = tmp_path / "p.md"
    for arguments, words in ((["binary_per_channel"], "torch eager 0 of"), (["binary_per_channel", "--missing"], "")):
        monkeypatch.setattr("sys.argv", ["samebits", "prove", *arguments, "--workers", "0", "--output", str(page)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert words in capsys.readouterr().out
    assert "| `binary_per_channel` |" in page.read_text()
