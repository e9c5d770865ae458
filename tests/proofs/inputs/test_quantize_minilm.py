"""The example `quantize_minilm.py` in its small form: its table, and that it sees a difference."""

import importlib.util
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from ...project.source import ROOT


def example() -> ModuleType:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("quantize_minilm", ROOT / "examples" / "quantize_minilm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["quantize_minilm.py", "--small", *arguments])
    result: int = module.main()
    return result


QUICK = ["int8 weight-only", "int4 weight-only, group 32", "GPTQ int4, group 32", "int8 static"]


@pytest.mark.parametrize("names", [QUICK, pytest.param(None, marks=pytest.mark.thorough)], ids=["quick", "all"])
def test_methods_in_both_frameworks(
    names: list[str] | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example()
    assert run(module, monkeypatch, *(part for name in names or () for part in ("--method", name))) == 0
    rows = [re.split(r" *\| *", line)[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    found = {name: cells for name, *cells in rows[1:]}
    assert list(found) == ["float32", *(names or module.methods((32,)))]
    for name, (in_torch, in_jax, size, _, codes, qparams) in found.items():
        means, least = zip(*([float(part) for part in cell.split(" / ")] for cell in (in_torch, in_jax)), strict=True)
        assert min(least) > 0.99, name
        assert means[0] == pytest.approx(means[1], abs=2e-4)
        assert float(size) < 0.13 or name == "float32"
        assert codes in ("", "0")
        assert name.startswith(("SmoothQuant", "int8 static")) or qparams in ("", "0")
    assert float(found["GPTQ int4, group 32"][0].split()[0]) > float(found["int4 weight-only, group 32"][0].split()[0])


def test_another_code_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = example()
    stored = module.stored

    def planted(room: Any, model: Any) -> Any:
        tensors, size = stored(room, model)
        if room.ptq is module.in_jax:
            tensors["encoder.layer.0.output.dense.weight.codes"][3, 4] += 1
        return tensors, size

    monkeypatch.setattr(module, "stored", planted)
    assert run(module, monkeypatch, "--method", "int8 weight-only") == 1
    assert re.search(r"\| 1 +\| 0 +\|", capsys.readouterr().out)


def test_an_unknown_method_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(example(), monkeypatch, "--method", "int9")
    assert ended.value.code == 2
    assert "unknown method 'int9'; methods are int8 weight-only, " in capsys.readouterr().err
