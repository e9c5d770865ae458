"""Modes on a GPU: what their names say; that a machine without one says so; that they run, with other places put in.

Here "cuda" and "gpu" are put on the CPU: names, conversions and programs are then those of a GPU, the compiler is not.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import pytest
import torch

from samebits import core
from samebits.core import QParams, catalog
from samebits.jax_backend import platforms
from samebits.proofs.certificates.request import requested
from samebits.proofs.check.check import plan
from samebits.proofs.divergence import divergence
from samebits.proofs.inputs import digits
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edges
from samebits.proofs.modes import devices, execution
from samebits.proofs.modes.devices import ACCELERATED, Way, in_jax, same_way_on, way_of
from samebits.proofs.modes.execution import MODES, Case, implementation, modes_on, run_all, run_together, without_device
from samebits.proofs.modes.gradient_of_x import gradients_of_x

THOROUGH = pytest.param("torch cuda compiled", marks=pytest.mark.thorough)
Q, S = catalog["int8_per_tensor"], QParams(np.float32(0.7))


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The CPU stands for the GPU: arrays are put there, and JAX takes the way that it has for a GPU."""
    places = {"torch": {"cpu": "cpu", "cuda": "cpu"}, "jax": {"cpu": "cpu", "cuda": "cpu"}}
    monkeypatch.setattr(devices, "PLACES", MappingProxyType(places))
    monkeypatch.setattr(execution, "missing_device", lambda mode: None)
    monkeypatch.setattr(platforms, "rounds_once", lambda: False)
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_names_say_framework_device_and_way() -> None:
    assert way_of("numpy") == Way(None, "cpu", "numpy")
    assert way_of("torch cuda eager") == Way("torch", "cuda", "eager")
    assert [way_of(mode).compiled for mode in ACCELERATED] == [False, True, True]
    assert [way_of(mode).device for mode in MODES] == ["cpu"] * 5
    assert [same_way_on(mode, "cuda") for mode in ("torch compiled", "jax jit", "numpy")] == [*ACCELERATED[1:], "numpy"]
    assert same_way_on("jax eager", "cuda") == "jax eager"
    assert modes_on("cpu") == MODES
    assert modes_on("cuda") == ("numpy", *ACCELERATED)
    assert divergence.modes_on("cpu") == divergence.MODES
    assert set(ACCELERATED) < set(divergence.modes_on("cuda"))
    for call in (modes_on, divergence.pairs_on):
        with pytest.raises(ValueError, match="`device` must be one of cpu, cuda; got 'tpu'"):
            call("tpu")


def test_a_machine_without_a_gpu_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu(*_: Any) -> Any:
        raise RuntimeError("Unknown backend: 'gpu' requested\nand more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(jax, "devices", no_gpu)
    reasons = [execution.unavailable(mode) for mode in ACCELERATED]
    assert "finds no CUDA device" in str(reasons[0])
    assert reasons[0] == reasons[1]
    assert str(reasons[2]).endswith("finds no GPU")
    assert without_device(ACCELERATED) == f"{reasons[0]}; {reasons[2]}"
    assert without_device(MODES) is None
    with pytest.raises(ValueError, match=r"mode torch cuda eager cannot run here: .* finds no CUDA device"):
        requested("int8_per_tensor", device="cuda")
    assert plan(quantizers=["int8_per_tensor"], device="cuda").modes == ("numpy", *ACCELERATED)


def test_a_gpu_without_triton_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert execution.unavailable("torch cuda eager") is None
    assert execution.unavailable("torch cuda compiled") == "torch finds no Triton, which compiles for CUDA devices"


def test_jax_is_told_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose default is a GPU, modes of the CPU stay on the CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with in_jax("jax jit"):
        assert jax.config.values["jax_default_device"] == jax.devices("cpu")[0]
    asked: list[str] = []
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(jax, "devices", lambda kind: [asked.append(kind)])  # type: ignore[func-returns-value]
    monkeypatch.setattr(jax, "default_device", lambda device: nullcontext())
    with in_jax("jax gpu jit"):
        assert asked == ["gpu"]


@pytest.mark.parametrize("mode", [m if "jit" in m or "eager" in m else THOROUGH for m in ACCELERATED])
def test_the_five_functions_run(on_the_cpu: None, mode: str) -> None:
    x = knife_edges(Q, S.scale, None, np.float32)
    g = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    want, got = run_all("numpy", Q, x, g, S), run_all(mode, Q, x, g, S)
    assert_same_bits(want[:4], got[:4])
    assert_same_bits(want.gradients.x, got.gradients.x)
    assert_same_bits(want[:4], run_together(mode, [Case(Q, x, g, S)])[0][:4])
    own = implementation(mode)
    assert own.refuses == (mode == "torch cuda eager")
    assert_same_bits(want.fake, own.fake_quantize(Q, x, S))
    assert set(gradients_of_x(own, Q, x, S, g)) == {"fake_quantize_vjp", "gradient of x alone"}


@pytest.mark.parametrize("mode", [ACCELERATED[0], pytest.param(ACCELERATED[2], marks=pytest.mark.thorough)])
def test_the_digits_run(on_the_cpu: None, mode: str) -> None:
    assert_same_bits(digits.logits("numpy", 8, count=16), digits.logits(mode, 8, count=16))


def test_divergence_runs(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "unavailable", lambda mode: None if mode != "torch cuda compiled" else "not here")
    rows = divergence.run_job(divergence.Job("samebits", "scalar", "float32", "+ b", "cuda"))
    assert {(row.left, row.right) for row in rows} == {("torch eager", m) for m in ("torch cuda eager", "jax gpu jit")}
    assert not any(row.differing for row in rows)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ACCELERATED)
@pytest.mark.parametrize("name", ["int8_per_tensor", "uint8_affine_per_tensor", "float8_e4m3fn_per_tensor"])
def test_a_gpu_has_the_bits_of_the_specification(mode: str, name: str) -> None:
    q = catalog[name]
    p = QParams(np.float32(0.7), np.int32(7) if q.affine else None)
    x = knife_edges(q, p.scale, p.zero_point, np.float32)
    want, got = run_all("numpy", q, x, np.ones_like(x), p), run_all(mode, q, x, np.ones_like(x), p)
    assert_same_bits(want[:4], got[:4], call=mode)
    assert_same_bits(core.fake_quantize(q, x, p), implementation(mode).fake_quantize(q, x, p))
