"""Whole networks: the specification against Python's integers, runs against the specification, planted faults found.

All runs of all networks on all digits are what `samebits check --networks` compares; here are enough to see a fault.
"""

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from samebits import core, torch_frontend
from samebits.proofs.cli import commands as cli
from samebits.proofs.inputs import digits
from samebits.proofs.networks import compare, runs
from samebits.proofs.networks.compare import Job, rows, specified
from samebits.proofs.networks.parameters import DATA, HEADS, parameters
from samebits.torch_frontend import int8

Array = NDArray[Any]
Matrix = list[list[int]]
INT8 = core.IntegerFormat(8)


def requantized(total: int, multiplier: Any, shift: Any, lo: int = -128, hi: int = 127) -> int:
    return min(max(round(Fraction(total * int(multiplier), 2 ** int(shift))), lo), hi)


def by_python(w: Mapping[str, Array], layer: str, x: Matrix, lo: int = -128, hi: int = 127) -> Matrix:
    """A linear layer over rows, requantized."""
    sums = sums_of(w, layer, x)
    channels = list(zip(w[f"{layer}.multiplier"], w[f"{layer}.shift"], strict=True))
    return [[requantized(t, *channel, lo, hi) for t, channel in zip(row, channels, strict=True)] for row in sums]


def sums_of(w: Mapping[str, Array], layer: str, x: Matrix) -> Matrix:
    weight, bias = w[f"{layer}.weight"].tolist(), w[f"{layer}.bias"].tolist()
    return [[sum(map(int.__mul__, row, out)) + b for out, b in zip(weight, bias, strict=True)] for row in x]


def normalised(w: Mapping[str, Array], norm: str, x: Matrix, epsilon: int) -> Matrix:
    result = []
    for row in x:
        n, total = len(row), sum(row)
        r = max(math.isqrt((n * sum(c * c for c in row) - total**2 + epsilon) << 20), 1)
        affine = zip(row, w[f"{norm}.weight"].tolist(), w[f"{norm}.bias"].tolist(), strict=True)
        y = [Fraction(1024 * (n * c - total) * g + r * b, r << 16) for c, g, b in affine]
        result.append([min(max(round(v), -128), 127) for v in y])
    return result


def added(a: Matrix, b: Matrix, multipliers: tuple[int, int], shift: int) -> Matrix:
    first, second = multipliers
    return [
        [min(max(round(Fraction(p * first + q * second, 2**shift)), -128), 127) for p, q in zip(r, s, strict=True)]
        for r, s in zip(a, b, strict=True)
    ]


def attention(w: Mapping[str, Array], h: Matrix) -> Matrix:
    q, k, v = (by_python(w, name, h) for name in ("query", "key", "value"))
    tokens, size = len(h), len(h[0]) // HEADS
    mixed = [[0] * len(h[0]) for _ in range(tokens)]
    for head in range(HEADS):
        own = range(head * size, (head + 1) * size)
        for i in range(tokens):
            scores = [
                requantized(sum(q[i][c] * k[j][c] for c in own), w["scores.multiplier"], w["scores.shift"])
                for j in range(tokens)
            ]
            e = [int(w["exponentials"][max(scores) - s]) for s in scores]
            shares = [round(Fraction(255 * one, sum(e))) for one in e]
            for c in own:
                total = sum(p * v[j][c] for j, p in enumerate(shares))
                mixed[i][c] = requantized(total, w["mixed.multiplier"], w["mixed.shift"])
    return by_python(w, "out", mixed)


def transformer_by_python(x: Matrix) -> list[int]:
    given = parameters("transformer")
    w, numbers = given.arrays, given.numbers
    h = by_python(w, "embed", x)
    h = normalised(w, "norm1", added(h, attention(w, h), *numbers["residual1"]), numbers["norm1"])
    inner = [[int(w["gelu"][c + 128]) for c in row] for row in by_python(w, "up", h)]
    h = normalised(w, "norm2", added(h, by_python(w, "down", inner), *numbers["residual2"]), numbers["norm2"])
    mean = [round(Fraction(sum(column), len(h))) for column in zip(*h, strict=True)]
    return sums_of(w, "head", [mean])[0]


def test_the_transformer_against_python() -> None:
    x = runs.inputs("transformer")
    for place in (0, 7, 500):
        assert specified("transformer")[place].tolist() == transformer_by_python(x[place].astype(int).tolist())


def test_the_mlp_against_python() -> None:
    w, x = parameters("mlp").arrays, runs.inputs("mlp")
    for place in (0, 7, 500):
        h = [x[place].astype(int).ravel().tolist()]
        for layer in ("fc1", "fc2"):
            h = by_python(w, layer, h, 0, 255)
        assert specified("mlp")[place].tolist() == sums_of(w, "fc3", h)[0]


@pytest.mark.parametrize(("network", "least"), [("mlp", 98.0), ("transformer", 97.0), ("cnn", 98.5)])
def test_accuracy(network: str, least: float) -> None:
    assert digits.accuracy(specified(network), digits.images()[1]) >= least


def test_logits_stand_for_those_of_the_float_network() -> None:
    """Times their scale, they are near the logits of the float weights: no layer is wired another way."""
    example = trained()
    for network in ("mlp", "transformer"):
        stored = load_file(DATA)
        own = {n.removeprefix(f"{network}."): torch.from_numpy(x) for n, x in stored.items() if n.startswith(network)}
        want = example.NETWORKS[network](own, torch.from_numpy(digits.images()[0]), {}).numpy()
        error = specified(network) * parameters(network).logit_scale - want
        assert np.abs(error).mean() < 0.05 * np.abs(want).mean()


SAMPLE = [
    *(("mlp", run, (1, 7)) for run in ("torch eager", "torch int8", "torch compiled")),
    *(("mlp", run, (5,)) for run in ("jax eager", "jax jit")),
    *(("transformer", run, (1, 8)) for run in ("torch eager", "torch int8")),
    *(("transformer", run, (10,)) for run in ("jax jit", "jax sharded")),
    ("cnn", "torch int8", (1, 8)),
]


@pytest.mark.parametrize(("network", "run", "sizes"), SAMPLE)
def test_a_sample_of_runs_has_the_bits_of_the_specification(network: str, run: str, sizes: tuple[int, ...]) -> None:
    count = 300 if run in ("torch eager", "torch int8") else 20
    for row in rows(Job(network, run, sizes, count)):
        assert row.missing is None
        assert (row.compared, row.differing) == (10 * count, 0), row.example


@pytest.mark.thorough
@pytest.mark.parametrize("network", runs.NETWORKS)
@pytest.mark.parametrize("run", runs.RUNS)
def test_every_run_has_the_bits_of_the_specification(network: str, run: str) -> None:
    for row in rows(Job(network, run)):
        assert row.differing == 0, row.example


def test_int8_runs_contract_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    product = torch._int_mm

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(a.shape))
        return product(a, b)

    monkeypatch.setattr(torch, "_int_mm", watched)
    runs.run_of("cnn", "torch int8")(runs.inputs("cnn")[:64])
    assert calls == [(64, 512)]  # its linear layer
    runs.run_of("mlp", "torch int8")(runs.inputs("mlp")[:64])
    assert calls[1:] == [(64, 64), (64, 64), (64, 32)]


def off_by_one(codes: Any, table: Any) -> Any:
    """A table whose entry of a frequent code is one too large."""
    wrong = table.clone()
    wrong[128 - 3] += 1
    return table_lookup(codes, wrong)


def float_sum(x: Any, exponentials: Any, bits: int, mask: Any = None) -> Any:
    """Exponentials of 16-bit floats, summed in halves."""
    e = exponentials[(x.int().amax(-1, keepdim=True) - x.int()).long()].bfloat16()
    half = e.shape[-1] // 2
    total = e[..., :half].sum(-1, keepdim=True) + e[..., half:].sum(-1, keepdim=True)
    return (255 * e / total).round().to(torch.uint8)


def toward_zero(codes: Any, size: Any) -> Any:
    """A mean that is cut off."""
    total = codes.unfold(2, size[0], size[0]).sum(-1, dtype=torch.int32)
    return torch.div(total, size[0], rounding_mode="trunc").to(codes.dtype)


def toward_negative(acc: Any, multiplier: Any, shift: Any, zero_point: int = 0, format: Any = INT8) -> Any:
    """A shift without rounding."""
    whole = (acc.long() * multiplier.long()) >> shift.long()
    return whole.clamp(format.lo, format.hi).to(getattr(torch, format.storage))


def halves_up(acc: Any, multiplier: Any, shift: Any, zero_point: int = 0, format: Any = INT8) -> Any:
    """Rounding twice, first to 31 bits, as in gemmlowp."""
    high = (acc.long() * multiplier.long() + 2**30) >> 31
    rest = shift.long() - 31
    whole = (high + (torch.ones_like(rest) << (rest - 1).clamp(min=0))) >> rest.clamp(min=0)
    return whole.clamp(format.lo, format.hi).to(getattr(torch, format.storage))


table_lookup = torch_frontend.lookup
FAULTS: list[tuple[str, str, Callable[..., Any]]] = [
    ("transformer", "lookup", off_by_one),
    ("transformer", "integer_softmax", float_sum),
    ("transformer", "integer_average_pool", toward_zero),
    ("mlp", "requantize", toward_negative),
    ("transformer", "requantize", halves_up),
]


@pytest.mark.parametrize(("network", "operation", "fault"), FAULTS)
def test_planted_faults_are_found(
    network: str, operation: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_frontend, operation, fault)
    (row,) = rows(Job(network, "torch eager", (256,), 512))
    assert row.differing > 0
    assert row.example is not None
    assert "expected" in row.example


@pytest.fixture
def samebits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, output, errors."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samebits", "check", "--networks", "--workers", "0", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return (int(exit.value.code or 0), *capsys.readouterr())

    return run


def test_the_command(
    samebits: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Agreement, then a fault: exit code, table, JSON and page. Of two networks and a few digits, for time."""
    asked = [Job(network, run, (1, 5), 20) for network in ("mlp", "transformer") for run in ("numpy", "torch eager")]
    monkeypatch.setattr(compare, "jobs", lambda runs: asked)
    code, out, _ = samebits("--report", tmp_path / "page.html")
    assert code == 0
    assert "0 of 1,600 logits differ" in out
    page = (tmp_path / "page.html").read_text()
    assert "the same bits" in page
    assert page.count("0 of 200") == 8
    monkeypatch.setattr(torch_frontend, "requantize", toward_negative)
    code, out, _ = samebits("--json", "--report", tmp_path / "page.html")
    assert code == 1
    found = json.loads(out)
    assert not found["same"]
    assert len(found["rows"]) == 8
    assert {row["run"] for row in found["rows"] if row["differing"]} == {"torch eager"}
    assert "differences found" in (tmp_path / "page.html").read_text()
    code, out, _ = samebits()
    assert code == 1
    assert "mlp, torch eager, batch 1: bits, in dtype int32" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mode", "torch"), "`run` must be one of 'numpy', 'torch eager'"),
        (("--quantizer", "int8_per_tensor"), "--networks takes no checkpoint, --quantizer"),
        (("--thorough",), "--networks takes no checkpoint"),
    ],
)
def test_wrong_usage(samebits: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], words: str) -> None:
    code, _, errors = samebits(*arguments)
    assert code == 2
    assert words in errors


def test_what_is_not_there_is_named() -> None:
    for call in (lambda: runs.inputs("rnn"), lambda: runs.run_of("rnn", "numpy"), lambda: parameters("rnn")):
        with pytest.raises(ValueError, match=r"`network` must be one of 'mlp', 'transformer'.*got 'rnn'"):
            call()
    with pytest.raises(ValueError, match=r"`run` must be one of 'numpy'.*got 'jax sharded'"):
        runs.run_of("mlp", "jax sharded")
    with pytest.raises(ValueError, match="`network` must be one of"):
        compare.jobs(networks=["rnn"])
    assert len(compare.jobs()) == len(runs.NETWORKS) * len(runs.RUNS)


def test_training_writes_what_the_networks_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "networks.safetensors"
    monkeypatch.setattr(sys, "argv", ["train_networks.py", "--epochs", "1", "--output", str(path)])
    trained().main()
    kept, given = load_file(path), load_file(DATA)
    assert {n: (t.dtype, t.shape) for n, t in kept.items()} == {n: (t.dtype, t.shape) for n, t in given.items()}
    assert DATA.stat().st_size < 200_000
    for network in ("mlp", "transformer"):
        assert parameters(network, path).logit_scale > 0


def trained() -> Any:
    """The program that trains, as a module."""
    path = Path(__file__).parents[3] / "examples" / "train_networks.py"
    spec = importlib.util.spec_from_file_location("train_networks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_int8_products_of_the_run_are_torchs() -> None:
    assert runs.operations("torch int8").integer_matmul is int8.integer_matmul_int8
    assert runs.operations("torch eager").integer_matmul is torch_frontend.integer_matmul
