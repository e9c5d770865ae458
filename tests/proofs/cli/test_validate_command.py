"""`samebits validate`: what it prints and writes, what it exits with, and that a mistake of usage is one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from samebits.proofs.cli import commands as cli

MODELS = """
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())

def port(transposed=False):
    port = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.relu)
    weight = model[0].weight.detach().numpy()
    port.layers[0].kernel[...] = jnp.asarray(weight if transposed else weight.T)
    port.layers[0].bias[...] = jnp.asarray(model[0].bias.detach().numpy())
    return port

def right():
    return port()

def wrong():
    return port(True)

def broken():
    raise RuntimeError("no")

three = 3
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process, in a directory with a model, ports, and inputs."""
    (tmp_path / "own_models.py").write_text(MODELS)
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    save_file({"x": x}, tmp_path / "x.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_models", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samebits", "validate", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


def test_a_right_port(run: Run) -> None:
    code, out, err = run("own_models:model", "own_models:right", "--inputs", "x.safetensors", "--all")
    assert (code, err) == (0, "")
    assert "rounding explains every difference" in out
    assert "Linear" in out


def test_a_wrong_port_in_words_in_json_and_on_a_page(run: Run, tmp_path: Path) -> None:
    arguments = ("own_models:model", "own_models:wrong", "--inputs", "x.npz")
    code, out, _ = run(*arguments, "--report", "page.html")
    assert code == 1
    assert "explained by: transposed weight" in out
    assert "the first layer beyond its bound: 0" in out
    assert "smallest input, row" in out
    page = (tmp_path / "page.html").read_text()
    for words in (
        "differences found",
        "<svg",
        "transposed weight",
        "own_models:wrong",
        "Distance by depth",
        "beyond the bound",
    ):
        assert words in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    code, out, _ = run(*arguments, "--json")
    found = json.loads(out)
    assert code == 1
    assert (found["right"], found["first"], found["mistakes"]) == (False, "0", ["transposed weight"])
    assert found["rows"][0]["verdict"] == "beyond the bound"
    assert found["pairs"] == [["", ""], ["0", "0"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("own_models:model", "own_models:right", "--inputs", "no.npz"), "no.npz: no such file"),
        (("own_models:model", "own_models:right", "--inputs", "no.safetensors"), "no.safetensors: no such file"),
        (("own_models:model", "own_models:right", "--inputs", "own_models.py"), "own_models.py: "),
        (("own_models:none", "own_models:right", "--inputs", "x.npz"), "own_models has no 'none'"),
        (("no_such_module:model", "own_models:right", "--inputs", "x.npz"), "cannot import no_such_module"),
        (("own_models", "own_models:right", "--inputs", "x.npz"), "own_models: must be package.module:name"),
        (("own_models:broken", "own_models:right", "--inputs", "x.npz"), "own_models:broken failed: RuntimeError: no"),
        (("own_models:three", "own_models:right", "--inputs", "x.npz"), "must be a torch model or a function, got int"),
        (("own_models:model", "own_models:right", "--inputs", "x.npz", "--pair", "0"), "--pair must be TORCH=JAX"),
        (("own_models:model", "own_models:right", "--inputs", "x.npz", "--pair", "9=0"), "modules of the torch model"),
        (("own_models:model", "own_models:right", "--inputs", "x.npz", "--report", "no/p.html"), "no such directory"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
