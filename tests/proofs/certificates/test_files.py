"""Files of certificates: when one still holds, and what a run that is interrupted while it writes leaves behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from samebits.core import catalog
from samebits.proofs.certificates import certificate as module
from samebits.proofs.certificates.certificate import conditions, is_current, load, save
from samebits.proofs.certificates.certify import _identity, _read_journal, _write_journal, certify
from samebits.proofs.certificates.evaluate import TileResult
from samebits.proofs.certificates.request import Request

REQUEST = Request("int4_per_channel", catalog["int4_per_channel"], ("numpy",), "exhaustive", (0.5,), "float16")


@pytest.fixture(scope="module")
def certificate() -> dict[str, Any]:
    return certify(REQUEST)


@pytest.fixture
def path(certificate: dict[str, Any], tmp_path: Path) -> Path:
    save(certificate, tmp_path / "c.json")
    return tmp_path / "c.json"


def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full after a hundred characters, whatever is written."""
    write = Path.write_text

    def full(self: Path, data: str, *rest: Any, **more: Any) -> int:
        write(self, data[:100], *rest, **more)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)


def test_a_certificate_holds_where_it_was_made(path: Path) -> None:
    assert is_current(path, REQUEST)
    assert not is_current(path.with_name("none.json"), REQUEST)
    path.write_text(path.read_text()[:-20])
    assert not is_current(path, REQUEST)


@pytest.mark.parametrize("condition", list(conditions()))
def test_a_certificate_does_not_hold_under_other_conditions(
    path: Path, condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other versions, another source, another processor, other flags: each of them by itself."""
    other = conditions() | {condition: "other"}
    monkeypatch.setattr(module, "conditions", lambda _: other)
    assert not is_current(path, REQUEST)


def test_conditions_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = conditions()
    assert here == conditions()
    assert set(here) == {"versions", "source", "processor features", "compiler", "XLA_FLAGS"}
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert conditions() == here | {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}


@pytest.mark.parametrize(
    "other",
    [{"q": catalog["int8_per_channel"]}, {"scales": (0.25,)}, {"dtype": "bfloat16"}, {"modes": ("numpy", "jax jit")}],
    ids=lambda other: next(iter(other)),
)
def test_a_certificate_does_not_hold_for_another_request(path: Path, other: dict[str, Any]) -> None:
    fields = {name: getattr(REQUEST, name) for name in ("name", "q", "modes", "engine", "scales", "dtype")}
    assert not is_current(path, Request(**(fields | other)))


def test_a_certificate_is_replaced_whole(path: Path, certificate: dict[str, Any], monkeypatch: Any) -> None:
    """Who reads the old file goes on reading it; who is interrupted while writing leaves it as it was."""
    before = path.read_text()
    with path.open() as reader:
        save(certificate | {"more": 1}, path)
        assert reader.read() == before
    assert json.loads(path.read_text())["more"] == 1
    save(certificate, path)
    interrupted(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        save(certificate | {"more": 1}, path)
    assert path.read_text() == before
    assert load(path) == (certificate, REQUEST)


def test_finished_tiles_survive_an_interruption_while_a_run_begins_again(tmp_path: Path, monkeypatch: Any) -> None:
    """A line that was cut short is dropped by writing the journal anew: in another file, until that is whole."""
    journal, result = tmp_path / "c.tiles", TileResult("ab" * 32, 10, {"numpy": 0.5})
    assert _read_journal(journal, REQUEST) == {}
    for tile in (0, 1):
        _write_journal(journal, tile, result)
    whole = journal.read_text()
    journal.write_text(whole + '{"tile": 2, "dig')
    with monkeypatch.context() as patched:
        interrupted(patched)
        with pytest.raises(OSError, match="No space left"):
            _read_journal(journal, REQUEST)
    assert _read_journal(journal, REQUEST) == {0: result, 1: result}
    assert journal.read_text() == whole
    assert json.loads(whole.split("\n")[0])["of"] == _identity(REQUEST)
