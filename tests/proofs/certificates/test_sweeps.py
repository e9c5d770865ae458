"""Sweeps of primitives and of prototypes: what is asked, the oracle, faults that are planted, and their files."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samebits.core import primitives
from samebits.core.formula_values import OPERANDS
from samebits.proofs.certificates.certificate import CertificateError, load, save
from samebits.proofs.certificates.certify import Difference, certify, explain_finding, replay, run
from samebits.proofs.certificates.evaluate_sweeps import edges_of, operands_of, run_sweep_tile
from samebits.proofs.certificates.nearest import BESIDE, not_nearest
from samebits.proofs.certificates.request import tiles_of
from samebits.proofs.certificates.subjects import APART, PRIMITIVES, Formula, function_of
from samebits.proofs.certificates.sweeps import Sweep, requested_primitive, requested_prototype, special
from samebits.proofs.certificates.tiles import Tile
from samebits.proofs.cli import commands as cli
from samebits.proofs.modes.execution import MODES
from samebits.torch_frontend import primitives as torch_primitives

from ...primitive_cases import operands as cases
from .schema import DOCS, schema_validator

EXAMPLES = Path(__file__).parents[3] / "examples" / "prototypes"
PACT = f"{EXAMPLES / 'pact.py'}:pact"
QUICK = ("numpy", "torch eager")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command `samebits certify` in this process: exit code, standard output, standard error."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samebits", "certify", *map(str, arguments), "--workers", "0"])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_oracle_agrees_with_the_specification_and_sees_one_ulp(dtype: str) -> None:
    operands = tuple(one[::5] for one in cases(dtype))
    for name in BESIDE:
        own = operands[: OPERANDS[name]]
        for options in [("float32",), ("bfloat16",), ("float16",)] if name == "cast" else [()]:
            y = getattr(primitives, name)(*own, *options)
            assert not not_nearest(name, own, y).any(), name
            asked = np.isfinite(y.astype(float)) & np.logical_and.reduce([np.isfinite(v.astype(float)) for v in own])
            asked &= {"divide": own[-1] != 0, "sqrt": own[0] >= 0}.get(name, True)
            assert asked.sum() > 100, name
            for end in (np.inf, -np.inf):
                assert not_nearest(name, own, np.nextafter(y, y.dtype.type(end)))[asked].all(), name


def test_the_oracle_knows_ties_and_the_ends() -> None:
    a, up = np.float32([2**24, 2**24 + 2]), np.float32([2**24, 2**24 + 4])
    assert not not_nearest("add", (a, np.float32([1, 1])), up).any()  # to even
    assert not_nearest("add", (a, np.float32([1, 1])), np.float32([2**24 + 2, 2**24 + 2])).all()
    top = np.finfo(np.float16).max
    half = np.float16([16, np.nextafter(np.float16(16), np.float16(0))])  # half a unit beyond the end, and less
    assert not not_nearest("add", (np.full(2, top), half), np.array([np.inf, top], np.float16)).any()
    assert not_nearest("add", (np.full(2, top), half), np.array([top, np.inf], np.float16)).all()
    tiny = np.float32([1e-45, 3e-45])
    assert not not_nearest("multiply", (tiny, np.float32([0.5, 0.5])), np.float32([0, 1e-45])).any()
    assert not_nearest("multiply", (tiny, np.float32([0.5, 0.5])), np.float32([1e-45, 3e-45])).all()


def test_what_is_asked() -> None:
    """Every bit pattern once; every pair once; of three operands each in turn."""
    assert set(PRIMITIVES) >= {*OPERANDS, "cast float16", "round dpu"} - {*APART, "cast"}
    for name, dtype, bits in (("exp2", "float32", 32), ("exp2", "bfloat16", 16)):
        tiles = tiles_of(requested_primitive(name, dtype))
        assert [t.first for t in tiles] == [sum(t.count for t in tiles[:i]) for i in range(len(tiles))]
        assert sum(t.count for t in tiles) == 2**bits
    (x,) = next(operands_of(PRIMITIVES["exp2"], Tile("numbers", 0x3F800000, 5, 7)))
    assert x.view(np.uint32).tolist() == [0x3F800000 + 7 * i for i in range(5)]
    tiles = tiles_of(requested_primitive("divide", "float16"))
    assert [t.first for t in tiles] == list(range(0, 2**16, tiles[0].count))
    a, b = next(operands_of(PRIMITIVES["divide"], Tile("pairs", 0x3C00, 2, dtype="float16")))
    pairs = a.view(np.uint16).astype(np.uint32) << 16 | b.view(np.uint16)
    np.testing.assert_array_equal(pairs, np.arange(0x3C000000, 0x3C020000))
    some = special("bfloat16")
    assert len({*some.view(np.uint16).tolist()}) == len(some) > 24
    parts = requested_primitive("fused_multiply_add", "bfloat16").plan()
    for place, part in enumerate(parts):
        assert sum(t.count for t in part.tiles) == len(some) ** 2
        given = next(operands_of(PRIMITIVES["clamp"], Tile(part.name, 1, 1, dtype="bfloat16")))
        np.testing.assert_array_equal(np.sort(given[place].view(np.uint16)), np.arange(2**16))
        others = [one[0].view(np.uint16) for i, one in enumerate(given) if i != place]
        assert others == [some[0].view(np.uint16), some[1].view(np.uint16)]


def test_a_sweep_in_modes_and_its_file(tmp_path: Path) -> None:
    request = requested_primitive("sqrt", "float16", QUICK)
    journal = tmp_path / "sqrt.tiles"
    found = certify(request, journal=journal)
    assert [progress.kept for progress in run(request, journal)] == [True]
    save(found, tmp_path / "sqrt.json")
    again, answered = load(tmp_path / "sqrt.json")
    assert (again, answered) == (found, request)
    assert found["domain"] == [
        {"part": "numbers", "claim": "every bit pattern of float16", "tiles": 1, "results per mode": 65536}
    ]
    assert "numbers nearest to the exact ones" in found["statement"]["says"]
    assert list(replay(request, found["tiles"]["numbers"], [0])) == [(0, True)]
    assert list(replay(request, ["0" * 32], [0])) == [(0, False)]
    for section, change, message in (
        ("primitive", {"name": "exp"}, "section `primitive` was changed"),
        ("domain", {}, "section `domain` was changed"),
    ):
        text = json.loads((tmp_path / "sqrt.json").read_text())
        text[section] = text[section] | change if change else []
        (tmp_path / "other.json").write_text(json.dumps(text))
        with pytest.raises(CertificateError, match=message):
            load(tmp_path / "other.json")


def planted(monkeypatch: pytest.MonkeyPatch, room: Any, name: str, wrong: Callable[..., Any]) -> None:
    right = getattr(room, name)
    monkeypatch.setattr(room, name, lambda *given: wrong(right(*given), *given))


def one_ulp_at(value: float) -> Callable[..., Any]:
    import torch

    return lambda y, x, *_: torch.where(x == value, torch.nextafter(y, torch.full_like(y, torch.inf)), y)


def test_one_ulp_at_one_of_all_inputs_is_found(monkeypatch: pytest.MonkeyPatch, command: Any, tmp_path: Path) -> None:
    planted(monkeypatch, torch_primitives, "sqrt", one_ulp_at(0.7001953125))
    asked = ("--primitive", "sqrt", "--dtype", "float16", "--mode", "torch eager", "--output", tmp_path)
    code, out, _ = command(*asked)
    assert code == 1
    assert "torch eager: sqrt differs from the specification at 1 of 65,536 inputs looked at" in out
    assert "  operand 0  0.7001953125 = 0x1.668p-1 (float16 bits 0x399a)" in out
    assert "  expected   0.8369140625 = " in out
    assert "  got        0.83740234375 = " in out
    assert not list(tmp_path.glob("*.json"))
    found = json.loads(command(*asked, "--json")[1])
    assert found["result"] == "different"
    monkeypatch.undo()


def test_a_specification_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By exact arithmetic, even if all modes agree."""
    planted(monkeypatch, primitives, "divide", lambda y, a, b: np.where((a == 3) & (b == 7), np.nextafter(y, y * 2), y))
    place = int(np.float16(3).view(np.uint16))
    result = run_sweep_tile(PRIMITIVES["divide"], Tile("pairs", place, 1, dtype="float16"), ["numpy"])
    (finding,) = result.findings
    assert finding.operands == (3, 7)
    assert explain_finding(finding).startswith("numpy: divide is not the nearest number at 1 of 65,536 inputs looked")
    for name in ("exp2", "round toward_zero"):  # of which there is no oracle
        assert not run_sweep_tile(PRIMITIVES[name], Tile("numbers", 0, 2**16, dtype="float16"), ["numpy"]).findings


def test_pairs_and_triples(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, tile in (
        ("divide", Tile("pairs", 0x3C01, 2, dtype="bfloat16")),
        ("less", Tile("pairs", 0x8001, 1, dtype="float16")),
        ("clamp", Tile("all of b", 40, 2, dtype="float16")),
        ("cast bfloat16", Tile("numbers", 0x3F800000, 2**16, 3)),
    ):
        result = run_sweep_tile(PRIMITIVES[name], tile, QUICK)
        assert not result.findings, name
        assert result.results == (tile.count if tile.kind == "numbers" else tile.count << 16)
    planted(monkeypatch, torch_primitives, "clamp", lambda y, x, lo, hi: -y)
    found = run_sweep_tile(PRIMITIVES["clamp"], Tile("all of a", 500, 1, dtype="float16"), ["torch eager"]).findings
    assert [f.function for f in found] == ["clamp"]
    assert len(found[0].operands) == 3


def test_a_sample_is_a_quick_look(command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("samebits.proofs.certificates.sweeps.AT_ONCE", 1 << 18)
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("--primitive", "negative", "--tiles", "2", "--mode", "torch eager")
    assert code == 0
    assert out.startswith("negative: 0 of 524,288 results per mode differ in 2 of 16384 tiles")
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "primitive": (["--primitive", "sqr"], "unknown primitive 'sqr'; did you mean sqrt"),
    "dtype": (["--primitive", "sqrt", "--dtype", "float8"], "`dtype` must be one of float32"),
    "wide pairs": (["--primitive", "add"], "`dtype` must be bfloat16 or float16 for add, which has 2 operands"),
    "mode": (["--primitive", "sqrt", "--mode", "jax"], "`mode` must be one of numpy"),
    "nothing": ([], "give either names"),
    "scale": (["--primitive", "sqrt", "--scale", "0.5"], "--scale"),
    "set": (["int8_per_tensor", "--set", "bits=3"], "--set is of prototypes"),
    "tiles": (["int8_per_tensor", "--tiles", "3"], "--tiles is of a replay"),
    "engine": ([PACT, "--engine", "scales"], "`engine` must be boundary or exhaustive"),
    "parameter": ([PACT, "--set", "beta=3"], "`pact` has no parameter beta; it has alpha, bits"),
    "value": ([PACT, "--set", "alpha=much"], "`alpha` of `pact` must be a number, got 'much'"),
    "no value": ([PACT, "--set", "alpha"], "a parameter is NAME=VALUE, got 'alpha'"),
    "no prototype": ([f"{EXAMPLES / 'pact.py'}:pact_gradient"], "must be a prototype, got function"),
    "no file": (["nothing.py:pact"], "no such file: nothing.py"),
    "statistics": ([f"{EXAMPLES / 'dorefa.py'}:dorefa"], "dorefa.py:19: `absmax` of `dorefa` makes an element depend"),
    "groups": (
        [f"{EXAMPLES / 'four_over_six.py'}:four_over_six"],
        "four_over_six.py:19: `reshape` of `four_over_six` makes",
    ),
    "begins": (
        [f"{EXAMPLES / 'apot.py'}:apot"],
        "`alpha` of `apot` begins as a formula of the array: give",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_exit_code_2_and_one_line(command: Any, arguments: list[str], message: str) -> None:
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("samebits: ")
    assert err.count("\n") == 1


def test_a_prototype_on_all_inputs(monkeypatch: pytest.MonkeyPatch, command: Any, tmp_path: Path) -> None:
    """Values and gradients; at parameters that are given."""
    asked = (PACT, "--dtype", "bfloat16", "--set", "alpha=0.3", "--set", "bits=3", "--mode", "torch eager")
    code, out, err = command(*asked, "--output", tmp_path)
    assert (code, err) == (0, "")
    found, request = load(tmp_path / "pact.bfloat16.json")
    assert isinstance(request, Sweep)
    assert found["prototype"]["given"] == {"alpha": 0.3, "bits": 3}
    assert found["domain"][0]["results per mode"] == 2 * 2**16 + 1  # and the gradient of alpha
    planted(monkeypatch, torch_primitives, "divide", lambda y, a, b: a * (1 / b))
    code, out, _ = command(*asked, "--output", tmp_path)
    assert code == 1
    assert "torch eager: y differs from the specification at " in out
    assert "  operand 0  " in out


def test_edges_of_a_prototype() -> None:
    """Fifteen steps, and both ends of the mask: each with its neighbours."""
    subject = requested_prototype(PACT, modes=["numpy"]).subject
    assert isinstance(subject, Formula)
    edges = edges_of(subject, "float32")
    y = np.unique(function_of(subject, "numpy", "float32")(edges)["y"])
    assert len(y[~np.isnan(y)]) == 16
    assert {0.0, 6.0, np.nextafter(np.float32(6), np.float32(0))} <= set(edges.tolist())
    assert len(edges) < 200
    parts = requested_prototype(PACT).plan()
    assert [part.name for part in parts] == ["edges", "sample"]
    assert [p.name for p in requested_prototype(PACT, engine="exhaustive").plan()] == ["edges", "numbers"]


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        ("float16", "torch eager"),
        ("bfloat16", "torch eager"),
        pytest.param("float16", "jax jit", marks=pytest.mark.thorough),
    ],
)
def test_every_primitive_of_one_operand_on_all_inputs(dtype: str, mode: str) -> None:
    for one in PRIMITIVES.values():
        if one.operands == 1:
            assert not run_sweep_tile(one, Tile("numbers", 0, 2**16, dtype=dtype), [mode]).findings


@pytest.mark.thorough
def test_primitives_of_more_operands_in_all_modes() -> None:
    for name, one in PRIMITIVES.items():
        if one.operands > 1:
            request = requested_primitive(name, "bfloat16", ["torch eager", "jax jit"])
            tile = Tile(tiles_of(request)[0].kind, 70, 1, dtype="bfloat16")
            assert not run_sweep_tile(one, tile, request.modes).findings


def test_differences_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, torch_primitives, "absolute", one_ulp_at(2.0))
    with pytest.raises(Difference, match="torch eager: absolute differs"):
        certify(requested_primitive("absolute", "float16", QUICK))


def test_the_certificate_that_is_kept_holds_together() -> None:
    """The square root of every float32 in four modes, which a sweep of minutes gave."""
    found, request = load(Path(__file__).parents[3] / "docs" / "certificates" / "primitives" / "sqrt.json")
    assert request == requested_primitive("sqrt", modes=["numpy", "torch eager", "torch compiled", "jax jit"])
    assert found["domain"][0]["results per mode"] == 2**32


@pytest.mark.parametrize("path", sorted((DOCS / "primitives").glob("*.json")), ids=lambda path: path.stem)
def test_the_schema_describes_the_files_of_sweeps(path: Path) -> None:
    certificate, _ = load(path)
    validator = schema_validator()
    validator.validate(certificate)
    for key in certificate:
        assert list(validator.iter_errors({k: v for k, v in certificate.items() if k != key}))
    prototype = {"name": "a.py:b", "given": {"bits": 3}, "file": "0" * 32}
    of_prototype = {k: v for k, v in certificate.items() if k != "primitive"} | {"prototype": prototype}
    validator.validate(of_prototype)
    both = certificate | of_prototype
    for wrong in (both, certificate | {"quantizer": {}}, of_prototype | {"prototype": prototype | {"file": ""}}):
        assert list(validator.iter_errors(wrong))


def test_sweeps_of_all_numbers_of_16_bits_are_kept() -> None:
    """Of every primitive of one operand, in all modes, as `docs/primitives.md` says."""
    for name in (one.name for one in PRIMITIVES.values() if one.operands == 1):
        for dtype in ("bfloat16", "float16"):
            certificate, request = load(DOCS / "primitives" / f"{name.replace(' ', '_')}.{dtype}.json")
            assert (request.name, request.modes) == (name, MODES)
            assert certificate["statement"]["result"] == "complete"
            assert certificate["domain"][0]["results per mode"] == 2**16
