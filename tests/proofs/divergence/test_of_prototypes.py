"""Textbook code of prototypes beside their primitives, mode by mode, and the primitive that parts."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from samebits.proofs.cli import commands as cli
from samebits.proofs.cli.prototypes import same
from samebits.proofs.divergence.of_prototypes import TEXTBOOK, Job, Parted, jobs, run_job
from samebits.proofs.divergence.programs import programs
from samebits.proofs.prototypes.textbook import OPERATORS, textbook_room
from samebits.torch_frontend import primitives as torch_primitives

EXAMPLES = Path(__file__).parents[3] / "examples" / "prototypes"
PACT = f"{EXAMPLES / 'pact.py'}:pact"
CURVED = """
from samebits.core import formula as p
from samebits.proofs import prototype


@prototype
def curved(x):
    return p.round(p.tanh(x) * 2.0**14)
"""


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the modes eager torch alone."""
    monkeypatch.setattr("samebits.proofs.divergence.of_prototypes.MODES", ("torch eager",))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samebits", "diverge", *arguments, "--workers", "0"])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


@pytest.mark.usefixtures("eager")
def test_textbook_code_parts_at_a_primitive(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """torch's own tanh has other bits than the one that is specified; what is ours has none."""
    (tmp_path / "curved.py").write_text(CURVED)
    name = f"{tmp_path / 'curved.py'}:curved"
    code, out, err = command(name, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)["rows"]
    assert {row["inputs"] for row in rows} == {"random", "real", "edges"}
    assert not any(row["differing"] for row in rows if row["program"] != TEXTBOOK)
    told = next(row["first"] for row in rows if row["differing"] and row["dtype"] == "float32")
    assert told.startswith(f"{tmp_path / 'curved.py'}:8: `tanh` of curved: ")
    assert "torch eager" in told


@pytest.mark.usefixtures("eager")
def test_a_fault_of_ours_is_exit_code_1(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch_primitives.clamp
    monkeypatch.setattr(torch_primitives, "clamp", lambda x, lo, hi: right(x, lo, hi) + 0.5)
    code, out, _ = command(PACT)
    assert code == 1
    assert "\nsamebits, torch eager: bits, in dtype float32" in out


@pytest.mark.thorough
def test_all_modes() -> None:
    """In JAX the division by one number becomes a product."""
    found: tuple[Parted, ...] = run_job(Job(PACT, ("alpha=0.3",), "float32"))
    assert same(found)
    told = {row.mode: row.first for row in found if row.differing}
    assert "`divide` of pact" in told["jax jit"]
    assert "torch eager" not in told


def test_mistakes(command: Callable[..., tuple[int, str, str]]) -> None:
    for arguments, message in (
        ([PACT, "textbook"], "prototypes go by themselves"),
        ([PACT + "s"], "has no 'pacts'"),
        ([PACT, "--set", "beta=1"], "`pact` has no parameter beta"),
        (["textbook", "--set", "beta=1"], "--set is of prototypes"),
    ):
        code, out, err = command(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    with pytest.raises(KeyError, match="has no 'none'"):
        jobs([f"{EXAMPLES / 'pact.py'}:none"])


def test_causes_take_the_textbook_code() -> None:
    (program,) = programs([PACT])
    assert program.in_torch is not None
    assert program.in_jax is not None
    assert program.name.endswith("pact.py:pact, textbook")


def test_every_primitive_has_textbook_code_or_is_itself() -> None:
    room = textbook_room("torch")
    assert room.primitives.add is OPERATORS["add"]
    assert room.primitives.to_format is torch_primitives.to_format
    with pytest.raises(ValueError, match="`library` must be 'torch' or 'jax', got 'numpy'"):
        textbook_room("numpy")
