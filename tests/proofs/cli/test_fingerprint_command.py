"""`samebits fingerprint`: what it prints, what it exits with, and that a mistake is one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from samebits.proofs.cli import commands as cli
from samebits.proofs.conformance import peers, targets

OWN = """
import numpy as np
def mine(x, qparams):
    return np.clip(np.rint(x / qparams.scale), -128, 127) * qparams.scale
def wrong(x, qparams):
    return x * 2
def broken(x, qparams):
    raise RuntimeError("no")
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process, in a directory with quantizers of our own."""
    (tmp_path / "own_quantizers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_quantizers", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samebits", "fingerprint", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


def test_a_recognised_target_is_a_table_with_its_evidence(run: Run) -> None:
    code, out, err = run("ml_dtypes.float8_e4m3fn", "--evidence")
    assert (code, err) == (0, "")
    assert "ml_dtypes.float8_e4m3fn: recognised" in out
    assert "ties_to_away: at " in out
    assert "no input tells" in out
    assert "inputs asked" in out


def test_own_functions_and_exit_codes(run: Run) -> None:
    code, out, _ = run("own_quantizers:mine", "--like", "int8_per_tensor")
    assert code == 0
    assert "own_quantizers:mine: recognised" in out
    code, out, _ = run(
        "own_quantizers:mine", "own_quantizers:wrong", "own_quantizers:broken", "--like", "int8_per_tensor"
    )
    assert code == 1
    assert "own_quantizers:wrong: none of the candidates; the nearest leaves" in out
    assert "smallest unexplained input" in out
    assert "own_quantizers:broken: raises RuntimeError: no at " in out
    code, out, _ = run("own_quantizers:wrong", "--like", "int8_per_tensor", "--json")
    (verdict,) = json.loads(out)["verdicts"]
    assert (code, verdict["recognised"]) == (1, False)
    assert 0 < verdict["residual"] <= 1


MISTAKES = {
    "unknown": (["torch.fake_quantise"], "unknown target 'torch.fake_quantise'"),
    "no claim": (["own_quantizers:mine"], "say what it claims to be with --like"),
    "claim": (["own_quantizers:mine", "--like", "int8"], "did you mean"),
    "kind": (["own_quantizers:mine", "--like", "int8_per_tensor", "--kind", "bits"], "`kind` must be"),
    "no module": (["nowhere:mine", "--like", "int8_per_tensor"], "cannot import nowhere"),
    "file alone": (["--file", "a.gguf"], "both --file and --original"),
    "no file": (["--file", "a.gguf", "--original", "b.safetensors"], "b.safetensors: no such file"),
    "atlas": (["--atlas", "none/atlas.md"], "no such directory"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(arguments: list[str], message: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_without_targets_all_are_listed_also_what_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = peers.Peer("no_such_library", "nothing", "peers-nothing", ("nothing.at_all",))
    for module in (peers, targets):
        monkeypatch.setattr(module, "PEERS", (*peers.PEERS, absent))
    code, out, _ = run()
    assert code == 0
    assert "torch.fake_quantize_per_tensor_affine" in out
    assert "no_such_library is not installed: pip install 'samebits[peers-nothing]'" in out
    code, out, _ = run("nothing.at_all", "ml_dtypes.float8_e5m2")
    assert code == 2
    assert "ml_dtypes.float8_e5m2: recognised" in out, "the run goes on"
    assert "nothing.at_all: no_such_library is not installed" in out


def test_files(run: Run, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    scale = np.abs(x).max(1, keepdims=True) / np.float32(127)
    codes = np.rint(x / scale).astype(np.int8)
    save_file({"w": x}, tmp_path / "floats.safetensors")
    save_file({"w": codes, "w_scale": scale}, tmp_path / "codes.safetensors")
    pair = "--file", "codes.safetensors", "--original", "floats.safetensors"
    code, out, _ = run(*pair)
    assert code == 0
    assert "256 of 256" in out
    codes[0, 0] += 1
    save_file({"w": codes, "w_scale": scale}, tmp_path / "codes.safetensors")
    code, out, _ = run(*pair, "--json")
    (found,) = json.loads(out)
    assert (code, found["codes"], found["scales"]) == (1, 255 / 256, 1)
