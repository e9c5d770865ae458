"""Certificates as a process: planted faults are found, tiles are scheduled, kept, lost and done again."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import QParams, Quantizer, catalog
from samebits.proofs.certificates import certify as certify_module
from samebits.proofs.certificates import evaluate
from samebits.proofs.certificates.certificate import ITSELF, CertificateError, canonical, load
from samebits.proofs.certificates.certify import certificate_of, certify, replay, run, run_together
from samebits.proofs.certificates.evaluate import MaskCase, run_tile
from samebits.proofs.certificates.request import Request, requested, tiles_of
from samebits.proofs.certificates.steps import BY_QUOTIENT
from samebits.proofs.certificates.tiles import BINADE, CHUNK, ONE, POINTS, Part, Tile, boundary_plan, elementwise
from samebits.proofs.cli import commands as cli
from samebits.proofs.modes.execution import MODES, implementation

Array = NDArray[Any]
INT2, INT4 = catalog["int2_per_channel"], catalog["int4_per_channel"]
UINT4 = catalog["uint4_affine_per_group32"]
SCALES = tuple(float(np.float32(s)) for s in (0.1, 0.25, 0.3, 1.7, 2.0**-20, 5.0, 6.0, 7.0))
SMALL = Request("int4_per_channel", INT4, ("numpy", "torch eager"), "exhaustive", SCALES, "bfloat16")
ENTRIES = [name for name, q in catalog.items() if q.format.bits <= 8 and q.arithmetic.is_default]


class FewTiles(Request):
    """The beginning of some parts of the boundary engine, and 512 scales of each tile."""

    def plan(self) -> tuple[Part, ...]:
        parts = [
            p for p in boundary_plan(self.q) if p.name in ("significands", "small scales", "exponents", "granularity")
        ]
        return tuple(
            replace(part, tiles=tuple(replace(tile, count=min(512, tile.count)) for tile in part.tiles[:2]))
            for part in parts
        )


def few(q: Quantizer, tile: Tile, *modes: str) -> Any:
    return run_tile(q, tile, [implementation(mode) for mode in modes])


# --- nothing is found where nothing is wrong, in every part of the plan -----------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_passes_a_few_scales_of_every_step(mode: str) -> None:
    result = few(INT4, Tile("scales", ONE + 4711, 256, 8191), mode)
    assert not result.findings
    assert set(result.seconds) == {mode}
    assert result.digest == few(INT4, Tile("scales", ONE + 4711, 256, 8191), "numpy").digest


@pytest.mark.parametrize("function", ["quantize", "fake_quantize", "fake_quantize_vjp"])
def test_a_digest_is_of_codes_values_and_gradients(function: str) -> None:
    """One bit of one result of any of them changes it."""
    tile, right = Tile("scales", ONE + 4711, 256, 8191), implementation("numpy")

    def wrong(*arguments: Any) -> Any:
        result = getattr(right, function)(*arguments)
        array = (result.x if function == "fake_quantize_vjp" else result).copy()
        array.view(np.uint8).reshape(-1)[0] ^= 1
        return result._replace(x=array) if function == "fake_quantize_vjp" else array

    assert run_tile(INT4, tile, [replace(right, **{function: wrong})]).digest != few(INT4, tile, "numpy").digest


@pytest.mark.parametrize("rounding", BY_QUOTIENT)
def test_every_direction_passes_at_all_exponents(rounding: str) -> None:
    q = INT4.replace(rounding=rounding)
    assert not few(q, Tile("scales", BINADE, 508, 4_194_301), "numpy", "torch eager", "jax jit").findings


@pytest.mark.parametrize("rounding", ["ties_to_even", "toward_positive"])
def test_scales_at_the_ends_of_the_range_pass(rounding: str) -> None:
    assert not few(INT4.replace(rounding=rounding), Tile("critical", 0, 0), "numpy", "torch eager", "jax jit").findings


@pytest.mark.parametrize("zero_point", [0, 1, 7, 15])
def test_zero_points_pass(zero_point: int) -> None:
    assert not few(UINT4, Tile("scales", ONE, 64, 131_071, zero_point), "numpy", "torch eager", "jax jit").findings


def test_every_part_of_a_plan_passes() -> None:
    """One tile of each part, cut short."""
    for q in (INT4, UINT4, catalog["int8_per_tensor"]):
        for part in boundary_plan(q):
            tile = part.tiles[len(part.tiles) // 2]
            count = {"scales": 512, "inputs": 1 << 14, "granularity": 4}.get(tile.kind, tile.count)
            stride = tile.stride * (tile.count // count) if tile.kind == "inputs" else tile.stride
            short = replace(tile, count=min(count, tile.count), stride=stride)
            assert not few(q, short, "numpy", "torch eager").findings, part.name


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_of_the_catalog_passes_at_a_few_scales(name: str) -> None:
    """Whatever its format: the engine knows steps, not formats."""
    zero_point = 3 if catalog[name].affine else None
    for tile in (Tile("scales", BINADE, 32, 66_000_001, zero_point), Tile("granularity", ONE, 2, 77, zero_point)):
        assert not few(catalog[name], tile, "numpy", "torch eager").findings


def test_the_plan_holds_every_significand_once() -> None:
    """With the least and the largest zero point, where there are any."""
    for q in (INT2, INT4, UINT4, catalog["int8_per_tensor"], catalog["int16_per_tensor"]):
        tiles = next(part.tiles for part in boundary_plan(q) if part.name == "significands")
        for zero_point in (0, 15) if q.affine else (None,):
            place = ONE
            for tile in (tile for tile in tiles if tile.zero_point == zero_point):
                assert (tile.first, tile.stride, tile.steps) == (place, 1, None)
                place += tile.count
            assert place == ONE + BINADE
        assert {tile.zero_point for tile in tiles} == ({None} if not q.affine else {0, 15})


# --- scheduling -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate() -> dict[str, Any]:
    return certify(SMALL)


def test_processes_give_the_same_certificate(certificate: dict[str, Any]) -> None:
    assert canonical(certify(SMALL, workers=2)) == canonical(certificate)


def test_room_is_made_between_quantizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory always; where a process needs too much, the whole process, or, where it has to stay, its programs."""
    done: list[str] = []
    monkeypatch.setattr(certify_module, "give_back_memory", lambda: done.append("memory"))
    monkeypatch.setattr(certify_module, "ask_for_fresh_process", lambda: done.append("process"))
    monkeypatch.setattr(jax, "clear_caches", lambda: done.append("programs"))
    monkeypatch.setattr(certify_module, "_LATEST", {})
    monkeypatch.setattr(certify_module, "resident_memory", lambda: 0)
    for name in ("int8_per_tensor", "int8_per_tensor", "int4_per_channel"):
        certify_module._make_room(catalog[name])
    assert done == ["memory", "memory"]
    monkeypatch.setattr(certify_module, "resident_memory", lambda: certify_module.LIVE + 1)
    certify_module._make_room(catalog["int2_per_channel"])
    assert done[2:] == ["memory", "process", "programs", "memory"]
    certify_module._make_room(catalog["int2_per_channel"])  # the same again: only where it holds too much
    assert len(done) == 6
    monkeypatch.setattr(certify_module, "resident_memory", lambda: certify_module.MOST + 1)
    certify_module._make_room(catalog["int2_per_channel"])
    assert done[6:] == ["memory", "process", "programs", "memory"]
    certify_module._LATEST.clear()  # a fresh process: another one would need no less
    certify_module._make_room(catalog["int2_per_channel"])
    assert done[10:] == ["memory", "programs", "memory"]


def test_masks_are_joined_while_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array for all, filled up to the rows of a whole tile, or one after the other, with the same bytes."""
    rows, tile = np.arange(6, dtype=np.float32).reshape(3, 2), Tile("scales", ONE, 6)
    masks = [MaskCase(rows + k, QParams(rows[:, :1] + 1), rows[:, :1], rows, rows) for k in range(2)]
    (joined,) = evaluate._joined(tile, masks)
    whole = b"".join(m.x.tobytes() for m in masks)
    assert len(joined.x) == 3 * (POINTS // CHUNK) == len(joined.qparams.scale)
    assert joined.x.tobytes() == POINTS // CHUNK // len(masks) * whole
    assert list(evaluate._joined(replace(tile, kind="granularity"), masks)) == masks
    monkeypatch.setattr(evaluate, "CHUNK", 11)
    assert list(evaluate._joined(tile, masks)) == masks


@pytest.fixture
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as running:
        yield running


def test_a_cluster_that_loses_a_worker_gives_the_same_certificate(cluster: Any) -> None:
    """Tiles of all steps of int8, as they are in its certificate."""
    request = FewTiles("int8_per_tensor", catalog["int8_per_tensor"], ("numpy", "torch eager"))
    kinds = [tile.kind for tile in tiles_of(request)]
    assert kinds == ["scales"] * 6 + ["granularity"] * 2
    seen: list[int] = []

    def kill_one(progress: Any) -> None:
        seen.append(progress.place)
        if len(seen) == 2:
            os.kill(next(iter(cluster.workers.values())).process.pid, signal.SIGKILL)

    again = certify(request, scheduler=cluster.scheduler_address, on_progress=kill_one)
    assert sorted(seen) == list(range(len(kinds)))
    assert canonical(again) == canonical(certify(request))


def test_like_quantizers_share_their_evidence() -> None:
    """What ran for one is not run again for another, but for what each runs itself; the file says which is which."""
    known: dict[Any, Any] = {}
    first = FewTiles("int4_per_channel", INT4, ("numpy",))
    like = FewTiles("int4_per_group32", catalog["int4_per_group32"], ("numpy",))
    one = certify(first, known=known)
    kept: list[bool] = []
    other = certify(like, known=known, on_progress=lambda progress: kept.append(progress.kept))
    assert kept == [tile.kind == "scales" for tile in tiles_of(like)]
    assert kept.count(True) >= 4
    own = {part["part"] for part in other["domain"] if part["ran"] == ITSELF}
    assert own == {"granularity"}
    assert {name for name in one["tiles"] if one["tiles"][name] == other["tiles"][name]} == set(one["tiles"]) - own
    assert canonical(other) == canonical(certify(like))


def test_quantizers_certified_together_are_certified_as_alone(tmp_path: Path) -> None:
    """What they share runs once, and after an interruption both go on."""
    requests = [FewTiles(name, catalog[name], ("numpy",)) for name in ("int4_per_channel", "int4_per_group32")]
    journals = [tmp_path / f"{request.name}.tiles" for request in requests]
    first = run_together(requests, journals)
    assert [r for r, _ in (next(first), next(first), next(first))] == [0, 1, 0]
    first.close()
    results: list[dict[int, Any]] = [{}, {}]
    kept = 0
    for r, progress in run_together(requests, journals):
        results[r][progress.place] = progress.result
        kept += progress.kept
    assert kept == 4  # the second and its twin were in the journals of both, or known from the other's
    for request, own in zip(requests, results, strict=True):
        assert canonical(certificate_of(request, own)) == canonical(certify(request))


def test_elementwise_functions_are_told_apart() -> None:
    """By format, zero point, rounding and mask; not by who shares a scale, how it is chosen or learned."""
    int8 = catalog["int8_per_tensor"]
    like = ("int8_per_channel", "int8_per_block", "int8_power_of_two_per_tensor", "int8_learned_per_tensor", "mxint8")
    assert {elementwise(catalog[name]) for name in like} == {elementwise(int8)}
    other = ("int8_narrow_per_channel", "uint8_per_tensor", "int8_affine_per_tensor", "int8_toward_zero_per_channel")
    different = {elementwise(int8), elementwise(int8.replace(gradient="pass_through"))}
    assert len({elementwise(catalog[name]) for name in other} | different) == len(other) + 2


def test_every_zero_point_is_met_in_all_binades() -> None:
    part = next(part for part in boundary_plan(UINT4) if part.name == "zero points")
    for zero_point in range(16):
        tiles = [tile for tile in part.tiles if tile.zero_point == zero_point]
        assert [tile.kind for tile in tiles] == ["zero point"]
        bits = tiles[0].first + tiles[0].stride * np.arange(tiles[0].count)
        assert np.bincount(bits >> 23, minlength=255)[1:255].min() >= 8
        assert bits[-1] < 255 << 23


def test_an_interrupted_run_goes_on(tmp_path: Path, certificate: dict[str, Any]) -> None:
    journal = tmp_path / "a.tiles"
    first = run(SMALL, journal)
    done = [next(first).place for _ in range(3)]
    first.close()
    with journal.open("a") as file:
        file.write('{"tile": 3, "digest": "cut sh')
    seen: list[Any] = []
    again = certify(SMALL, journal=journal, on_progress=seen.append)
    assert [p.place for p in seen if p.kept] == done
    assert len(seen) == len(SCALES)
    assert canonical(again) == canonical(certificate)


def test_a_source_that_changes_meanwhile_ends_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_of_it = run(replace(SMALL, modes=("numpy",), scales=SCALES[:2]))
    next(steps_of_it)
    monkeypatch.setattr("samebits.proofs.modes.source.ROOMS", ("core",))
    with pytest.raises(CertificateError, match="the source or the environment changed"):
        list(steps_of_it)


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "a.tiles"
    next(run(SMALL, journal))
    with pytest.raises(CertificateError, match="another request or environment"):
        next(run(replace(SMALL, scales=SCALES[:2]), journal))


def test_a_replay_compares_digests(certificate: dict[str, Any]) -> None:
    digests = list(certificate["tiles"]["inputs"])
    assert dict(replay(SMALL, digests, [1, 5])) == {1: True, 5: True}
    digests[5] = digests[4]
    assert dict(replay(SMALL, digests, [1, 5])) == {1: True, 5: False}


# --- requests and the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"name": "int9"}, "unknown quantizer 'int9'"),
        ({"engine": "guess"}, "`engine` must be one of boundary, exhaustive, scales; got 'guess'"),
        ({"modes": ("numpi",)}, "`mode` must be one of"),
        ({"dtype": "int8", "engine": "exhaustive"}, "`dtype` must be one of"),
        ({"scales": (0.5,)}, "are for the exhaustive engine"),
        ({"scales": (-1.0,), "engine": "exhaustive"}, "must hold positive normal float32 numbers, got -1.0"),
        ({"scales": (1e-42,), "engine": "exhaustive"}, "must hold positive normal float32 numbers"),
        ({"zero_point": 3, "engine": "exhaustive"}, "`zero_point` must be None"),
        ({"name": "uint4_affine_per_group32", "engine": "exhaustive"}, "`zero_point` must be given"),
        (
            {"name": "uint4_affine_per_group32", "engine": "exhaustive", "zero_point": 16},
            r"`zero_point` must be in \[0, 15\]",
        ),
        ({"rounding": "up"}, "`rounding` must be one of"),
    ],
)
def test_wrong_requests_are_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises((KeyError, ValueError), match=message):
        requested(**{"name": "int4_per_channel", **wanted})


def test_another_arithmetic_is_refused() -> None:
    with pytest.raises(ValueError, match="must be the default"):
        Request("other", INT4.replace(division="reciprocal")).plan()


def test_zero_points_that_are_no_codes_are_refused() -> None:
    for engine in ("boundary", "exhaustive", "scales"):
        with pytest.raises(ValueError, match="`zero_point_domain` must be 'integer'"):
            requested("uint4_affine_float_zero_per_group64", engine, zero_point=3 if engine == "exhaustive" else None)


def test_a_learned_width_is_refused() -> None:
    with pytest.raises(ValueError, match="`learned_bits` must be None"):
        Request("other", catalog["int8_learned_per_tensor"].replace(learned_bits=6.0)).plan()


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def run_command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["samebits", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run_command


def test_the_command_writes_and_replays(command: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    small = ("--engine", "exhaustive", "--dtype", "float16", "--scale", "0.1", "--scale", "3", "--workers", "0")
    code, out, _ = command("certify", SMALL.name, "--mode", "numpy", *small, "--output", str(file))
    assert code == 0
    assert "for every float16 input at the scales listed" in " ".join(out.split())
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]  # the journal is gone
    certificate, request = load(file)
    assert isinstance(request, Request)
    assert request.scales == (*SCALES[:1], 3.0)
    assert certificate["domain"][0]["tiles"] == 2
    code, out, _ = command("certify", SMALL.name, "--mode", "numpy", *small, "--output", str(tmp_path), "--missing")
    assert code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", f"{SMALL.name}.json"]
    arguments = ("certify", SMALL.name, "--mode", "numpy", *small, "--output", str(file), "--missing")
    assert command(*arguments) == (0, "", "")  # nothing is missing
    code, out, _ = command("certify", "--replay", str(file), "--tiles", "1", "--workers", "0")
    assert (code, out) == (0, "1 of 1 tiles replayed agree with the certificate\n")
    code, out, _ = command("certify", "--replay", str(file), "--workers", "0", "--json")
    assert (code, json.loads(out)) == (0, {"replayed": [0, 1], "different": []})


def test_the_command_refuses_in_one_line(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("certify")[0] == 2
    code, _, err = command("certify", "int9")
    assert code == 2
    assert "did you mean" in err
    code, _, err = command("certify", SMALL.name, "int2_per_channel", "--output", str(tmp_path / "c.json"))
    assert code == 2
    assert "must be a directory" in err
    code, _, err = command("certify", "--replay", str(tmp_path / "none.json"))
    assert code == 2
    assert "cannot be read" in err
    monkeypatch.setattr("samebits.proofs.certificates.schedule.CONNECT", 0.5)
    arguments = ("certify", SMALL.name, "--scheduler", "tcp://127.0.0.1:9", "--output", str(tmp_path / "c.json"))
    code, _, err = command(*arguments)
    assert code == 2
    assert "no Dask scheduler at tcp://127.0.0.1:9" in err


def test_the_command_shows_a_difference(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = implementation("numpy")
    wrong = replace(good, quantize=lambda q, x, p: good.quantize(q, -x, p))
    monkeypatch.setattr("samebits.proofs.modes.execution.implementation", lambda mode: wrong)
    file = tmp_path / "c.json"
    small = ("--engine", "exhaustive", "--dtype", "bfloat16", "--mode", "numpy", "--workers", "0")
    code, out, _ = command("certify", SMALL.name, *small, "--output", str(file))
    assert code == 1
    assert "numpy: quantize differs from the specification" in out
    assert "bfloat16 bits 0x" in out
    assert not file.exists()
