"""`samebits quantize`: what it prints and writes, and that a mistake is one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from samebits.proofs.cli import commands as cli
from samebits.proofs.cli import display_quantize
from samebits.proofs.inputs import minilm
from samebits.proofs.quantizing.methods import METHODS
from samebits.torch_frontend.ptq import QuantWeight, read_quantized

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process, in a directory with a small encoder."""
    save_file(minilm.random_tensors(), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samebits", "quantize", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


def test_a_table_a_file_and_a_page(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_quantize, "PLOTTED", 2)  # the rest of them takes seconds
    code, out, err = run(
        "model.safetensors", "--method", "int4_weight_only", "--group-size", "64", "--report", "p.html"
    )
    assert (code, err) == (0, "")
    assert out.count("int4_weight_only, group 64") == 12
    assert "12 of 37 tensors quantized: 350,720 bytes, then 129,536; written to model.quantized.safetensors" in out
    assert "left as they are, not a matrix: embeddings.LayerNorm.bias, embeddings.LayerNorm.weight and 20 more" in out
    held = read_quantized(tmp_path / "model.quantized.safetensors")
    assert sum(isinstance(value, QuantWeight) for value in held.values()) == 12
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") == 1 + 2
    assert page.count("data-layer=") == 2
    assert "src=" not in page
    assert "samebits quantize model.safetensors --method int4_weight_only" in page


def test_json(run: Run) -> None:
    code, out, _ = run("model.safetensors", "--method", "int8_weight_only", "--layers", "encoder.*.query", "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {"command", "model", "output", "seconds", "versions", "recommended", "layers"}
    assert found["output"] == "model.quantized.safetensors"
    quantized = [one for one in found["layers"] if one["method"] != "none"]
    assert [one["name"] for one in quantized] == [f"encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)]
    assert all(0 < one["error"] < 0.01 and 35 < one["sqnr"] < 50 for one in quantized)
    assert all(one["error"] is None and one["why"] for one in found["layers"] if one["method"] == "none")


def test_recommended_methods_say_why_and_write_when_asked(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("model.safetensors", "--recommend", "--goal", "size")
    assert code == 0
    assert "groups_for_size: 12 × int4_weight_only: 4 bits are half of 8" in out
    assert "nothing is written without --output" in out
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    monkeypatch.setattr(display_quantize, "PLOTTED", 0)
    code, out, _ = run("model.safetensors", "--recommend", "--output", "small", "--json", "--report", "p.html")
    assert json.loads(out)["recommended"]["goal"] == "throughput"
    weights = [value for value in read_quantized(tmp_path / "small").values() if isinstance(value, QuantWeight)]
    assert len(weights) == 12
    assert all(weight.act_quant is not None for weight in weights)
    assert "dynamic_for_linear" in (tmp_path / "p.html").read_text()


def test_a_description_beside_the_model_is_taken(run: Run, tmp_path: Path) -> None:
    layers = {"encoder.*": {"method": "nvfp4"}, "encoder.layer.1": {"method": "none"}}
    (tmp_path / "model.layers.json").write_text(json.dumps({"layers": layers}))
    code, out, _ = run("model.safetensors")
    assert code == 0
    assert out.count("nvfp4") == 6
    assert "left as they are, it is to stay as it is" in out


MISTAKES = {
    "no file": (["none.safetensors", "--method", "nvfp4"], "none.safetensors: no such file"),
    "no method": (["model.safetensors"], f"or --recommend; methods are {', '.join(METHODS)}"),
    "method": (["model.safetensors", "--method", "int8"], "unknown method 'int8'; methods are"),
    "pattern": (["model.safetensors", "--method", "nvfp4", "--layers", "head"], "the pattern 'head' fits no matrix"),
    "both": (["model.safetensors", "--method", "nvfp4", "--recommend"], "give either --recommend, or"),
    "goal": (["model.safetensors", "--recommend", "--goal", "speed"], "`goal` must be one of"),
    "group": (["model.safetensors", "--method", "int4_weight_only", "--group-size", "48"], "group size 48, got 64"),
    "uneven": (
        ["model.safetensors", "--method", "int4_weight_only", "--uneven", "error"],
        "must be a multiple of the group size 128, got 64",
    ),
    "description": (["model.safetensors", "--description", "none.json"], "none.json: cannot be read"),
    "output": (["model.safetensors", "--method", "nvfp4", "--output", "none/a"], "no such directory"),
    "over itself": (["model.safetensors", "--method", "nvfp4", "--output", "model.safetensors"], "another file"),
    "codes": (["codes.safetensors", "--method", "nvfp4"], "no floating-point tensor"),
    "truncated": (["cut.safetensors", "--method", "nvfp4"], "truncated or corrupt"),
    "not finite": (["nan.safetensors", "--method", "nvfp4"], "w: must be finite"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(run: Run, arguments: list[str], message: str, tmp_path: Path) -> None:
    save_file({"w": np.ones((64, 64), np.int8)}, tmp_path / "codes.safetensors")
    save_file({"w": np.full((64, 64), np.nan, np.float32)}, tmp_path / "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("samebits: ")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
