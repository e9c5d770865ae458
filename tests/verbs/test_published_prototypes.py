"""The published algorithms of `examples/prototypes`, each beside an oracle written without primitives.

The oracles take exact fractions or float64, whose own error is far below the distance between two levels; where a
result is a product of float32 they round as the formula says. Inputs are multiples of 1/64, so that sums are exact in
any order.
"""

import importlib
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from torch import is_tensor

from samebits.core.prototypes import vjp
from samebits.proofs import assert_same_bits
from samebits.proofs.prototypes.agreement import differing
from samebits.torch_frontend import primitives as torch_primitives
from tests.project.source import ROOT

FOLDER = ROOT / "examples" / "prototypes"
X = (np.random.default_rng(0).integers(-192, 192, size=(8, 64)) / 64).astype(np.float32)
G = (np.random.default_rng(1).integers(-64, 64, size=(8, 64)) / 64).astype(np.float32)
F = np.float32
E2M1 = sorted({s * m for s in (1, -1) for m in (0, 0.5, 1, 1.5, 2, 3, 4, 6)})


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Any:
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def found(file: str, name: str | None = None) -> Any:
    return getattr(importlib.import_module(file), name or file)


def dorefa(x: Any) -> Any:
    t = np.tanh(x.astype(np.float64))
    level = np.rint(3 * (t / (2 * abs(t).max()) + 0.5))
    return F(2) * (level.astype(F) / F(3)) - F(1)


def pact(x: Any) -> Any:
    codes = np.rint(np.clip(x, 0, 6).astype(F) * F(15) / F(6))
    return codes * F(6) / F(15)


def lsq_plus(x: Any) -> Any:
    s, beta = (x.max() - x.min()) / F(15), x.min()
    return np.rint(np.clip((x - beta) / s, F(0), F(15))) * s + beta


def sawb(x: Any) -> Any:
    square, size = (sum(map(Fraction, v.ravel().tolist())) / x.size for v in (x.astype(float) ** 2, abs(x)))
    alpha = F(3.212) * np.sqrt(F(float(square))) - F(2.178) * F(float(size))
    levels = alpha * np.array([-3, -1, 1, 3]) / 3
    place = abs(np.clip(x, -alpha, alpha)[..., None].astype(float) - levels).argmin(-1)
    place = np.where(x == 0, 2, place)  # as near to 1, and rounding takes the even one
    return (place.astype(F) / F(3) * F(2) - F(1)) * alpha


def apot(x: Any) -> Any:
    sums = {a + b for a, b in product((0, 1, 1 / 4, 1 / 16), (0, 1 / 2, 1 / 8, 1 / 32))}
    levels = np.array(sorted({s * v for v in sums for s in (-1, 1)}))
    alpha = abs(x).max()
    v = np.clip(x / alpha, -1, 1) * F(1.5)
    below = np.searchsorted(levels, v, side="right") - 1
    above = np.minimum(below + 1, len(levels) - 1)
    high = levels[above] - v.astype(float) < v.astype(float) - levels[below]
    return np.where(high, levels[above], levels[below]).astype(F) / F(1.5) * alpha


def logarithmic(x: Any) -> Any:
    with np.errstate(divide="ignore"):
        v = np.rint(np.log2(abs(x).astype(np.float64)))
    return np.where(x == 0, x, np.sign(x) * np.exp2(np.clip(v, v.max() - 16, v.max()))).astype(F)


def ternary(x: Any) -> Any:
    gamma = F(float(sum(map(Fraction, abs(x).ravel().tolist())) / x.size))
    return np.clip(np.rint(x / (gamma + F(1e-5))), F(-1), F(1)) * gamma


def per_token(x: Any) -> Any:
    scale = F(127) / np.maximum(abs(x).max(1, keepdims=True), F(1e-5))
    return np.clip(np.rint(x * scale), F(-128), F(127)) / scale


def four_over_six(x: Any) -> Any:
    """Formats by ml_dtypes; errors of a block as exact fractions."""
    alpha, result = abs(x).max() / F(1536), []
    for block in x.reshape(-1, 16):
        tried = []
        for largest in (6, 4):
            s = (abs(block).max() / (F(largest) * alpha)).astype(ml_dtypes.float8_e4m3fn).astype(F) * alpha
            y = (block / s).astype(ml_dtypes.float4_e2m1fn).astype(F) * s
            error = sum((Fraction(float(a)) - Fraction(float(b))) ** 2 for a, b in zip(y, block, strict=True))
            tried.append((error, y))
        result.append(tried[1][1] if tried[1][0] < tried[0][0] else tried[0][1])
    return np.stack(result).reshape(x.shape)


def residual(x: Any) -> Any:
    """Of fractions, with every mean and difference rounded."""
    rest, total = x, np.zeros_like(x)
    for _ in range(2):
        mean = F(float(sum(map(Fraction, abs(rest).ravel().tolist())) / x.size))
        part = np.where(rest < 0, -mean, mean)
        rest, total = rest - part, total + part
    return total


ORACLES: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("dorefa", "dorefa"): dorefa,
    ("pact", "pact"): pact,
    ("lsq_plus", "lsq_plus"): lsq_plus,
    ("sawb", "sawb"): sawb,
    ("apot", "apot"): apot,
    ("logarithmic", "logarithmic"): logarithmic,
    ("bitnet", "ternary"): ternary,
    ("bitnet", "per_token"): per_token,
    ("four_over_six", "four_over_six"): four_over_six,
    ("residual", "residual"): residual,
    ("mxfp4_gradients", "mxfp4_gradients"): lambda x: x,
}


@pytest.mark.parametrize(("file", "name"), ORACLES, ids=lambda name: name)
def test_forward(file: str, name: str) -> None:
    one = found(file, name)
    assert_same_bits(ORACLES[file, name](X), one.numpy(X), inputs=X)
    assert differing(one, X, G, ("torch eager",)) == {"torch eager": 0}


def test_gradients() -> None:
    """What the papers say, on exact sums."""
    ours = vjp(found("pact"), X * 4, G)
    assert_same_bits(np.where((X < 0) | (4 * X >= 6), F(0), G), ours["x"])
    assert_same_bits(F(G[4 * X >= 6].astype(float).sum()), ours["alpha"])
    w, alpha = X, F(1.5)  # the ends of the range: where clipped, the sign; inside, the error of the projection
    ours = vjp(found("apot"), w, G, alpha=alpha)
    assert_same_bits(np.where(abs(w) > alpha, F(0), G), ours["x"])
    error = found("apot").numpy(w, alpha=alpha) / alpha - np.where(abs(w) <= alpha, w / alpha, 0)
    assert float(ours["alpha"]) == pytest.approx((G.astype(float) * error).sum(), rel=1e-5)
    s, beta, n = F(0.25), F(-1), F(15)
    ours = vjp(found("lsq_plus"), X, G, s=s, beta=beta)
    v = (X - beta) / s
    inside = (v >= 0) & (v <= n)
    assert_same_bits(np.where(inside, G, F(0)), ours["x"])
    of_s = (G.astype(float) * np.where(inside, np.rint(v) - v, np.clip(v, 0, n))).sum() / np.sqrt(X.size * 15)
    assert float(ours["s"]) == pytest.approx(of_s, rel=1e-5)
    assert float(ours["beta"]) == pytest.approx(G[~inside].astype(float).sum(), rel=1e-5)
    for file, name in (("logarithmic", "logarithmic"), ("bitnet", "ternary"), ("four_over_six", "four_over_six")):
        assert_same_bits(G, vjp(found(file, name), X, G)["x"])


def test_stochastic_gradients() -> None:
    """Neighbours of 3/4 g / X in E2M1, times 4/3, and without bias."""
    one, g = found("mxfp4_gradients"), np.tile(G[:1, :32], (1000, 1))
    assert np.array_equal(one.numpy(X), X)
    ours = vjp(one, g, g)["x"].astype(float)
    power = 2.0 ** (np.floor(np.log2(abs(g[0]).max())) - 2)
    exact = 0.75 * g[0].astype(float) / power
    levels = np.array(E2M1)
    seen = ours / power * 0.75
    for i, v in enumerate(exact):
        below, above = levels[levels <= v].max(), levels[levels >= v].min()
        assert set(np.round(seen[:, i], 5)) <= {below, above}
    spread = (levels[1:] - levels[:-1]).max() / 2 / np.sqrt(1000)
    assert abs(seen.mean(0) - exact).max() < 4.5 * spread


def test_none_is_longer_than_thirty_lines() -> None:
    files = [path for path in FOLDER.glob("*.py") if path.stem not in ("run", "train")]
    assert len(files) == 10
    for path in files:
        code = path.read_text().split('"""', 2)[2].splitlines()
        assert len([line for line in code if line.strip()]) <= 30, path


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Random inputs, special values, and at knife edges that are found."""
    run = importlib.import_module("run")
    arguments = ["--mode", "torch eager", "--mode", "jax jit", "--only", "pact", "--only", "residual", "--edges", "1"]
    assert run.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [["pact", "0", "0"], ["residual", "0", "0"]]


def test_the_table_shows_what_differs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A quotient by way of a reciprocal, planted in torch: a difference of one place, next to halves."""
    right = torch_primitives.divide
    monkeypatch.setattr(torch_primitives, "divide", lambda a, b: a * right(1.0, b) if is_tensor(b) else right(a, b))
    assert importlib.import_module("run").main(["--mode", "torch eager", "--only", "apot", "--edges", "2"]) == 1
    assert int(capsys.readouterr().out.split()[-1]) > 0


@pytest.mark.thorough
def test_the_whole_table() -> None:
    assert importlib.import_module("run").main([]) == 0


@pytest.mark.thorough
def test_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Losses part by less than their own rounding, as long as no quantized value takes another step."""
    run = importlib.import_module("run")
    assert run.main(["--mode", "torch eager", "--only", "pact", "--edges", "0", "--train"]) == 0
    plain, quantized = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert quantized[0] == "pact"
    for line in (plain, quantized):
        assert min(float(line[1]), float(line[3])) > 90
        assert float(line[5]) < 1e-5
