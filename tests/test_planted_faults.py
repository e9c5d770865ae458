"""Planted faults: every one of `tests/planted.py` must be found by comparison with the specification.

One that survives fails, and so does one whose place no longer exists: then the faults have to follow the code.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, Quantizer
from samebits.proofs.arrays import to_jax, to_torch
from samebits.proofs.compare import same_bits
from samebits.proofs.knife_edges import knife_edges

from .exact import DTYPES
from .examine import QPARAMS, cases, found, parameters_found
from .planted import COMPILED, FAULTS, Fault, plant

SETTINGS = sorted({(f.route, f.q, f.dtype) for f in FAULTS}, key=str)


@pytest.mark.parametrize(
    ("route", "q", "dtype"), SETTINGS, ids=[f"{r}-{d}-{i}" for i, (r, _, d) in enumerate(SETTINGS)]
)
def test_nothing_is_found_without_a_fault(route: str, q: Quantizer, dtype: str) -> None:
    assert cases(q, dtype)
    assert found(route, q, dtype) == set()


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{f.route}: {f.name}" for f in FAULTS])
def test_planted_fault_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, make in fault.plants:
        plant(monkeypatch, target, make)
    look = parameters_found if fault.breaks <= set(QPARAMS) else found
    assert fault.breaks <= look(fault.route, fault.q, fault.dtype)


def compiled_program(fault: Fault, scale: np.float32) -> Callable[..., Any]:
    """``fake_quantize(x)`` and ``fake_quantize(x) + b`` in one program, the scale a constant of it."""
    if fault.route == "jax jit":
        given: Any = QParams(jnp.asarray(scale))
        room: Any = jax_backend
    else:
        given, room = QParams(torch.tensor(scale)), torch_frontend

    def program(x: Any, b: Any) -> Any:
        fake = room.fake_quantize(fault.q, x, given)
        return fake, fake + b

    if fault.route == "jax jit":
        return lambda x, b: jax.jit(program)(to_jax(x), to_jax(b))
    whole = torch.compile(program, fullgraph=True)
    return lambda x, b: whole(to_torch(x), to_torch(b))


@pytest.mark.parametrize("fault", COMPILED, ids=[f"{f.route}: {f.name}" for f in COMPILED])
def test_fault_of_compiled_code_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = np.float32(0.1)
    x = knife_edges(fault.q, scale, None, DTYPES[fault.dtype])
    x = x[np.isfinite(x) & (np.abs(x) < 1e4)]
    b = np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype)
    expected = core.fake_quantize(fault.q, x, QParams(scale))
    answers = dict(zip(("fake", "sum"), (expected, expected + b), strict=True))
    for faulty in (False, True):
        q = fault.q.replace(floor=2.0**-100 if faulty else None)  # changes no bits either
        for target, make in fault.plants if faulty else ():
            plant(monkeypatch, target, make)
        got = dict(zip(("fake", "sum"), compiled_program(replace(fault, q=q), scale)(x, b), strict=True))
        wrong = {name for name, value in answers.items() if not same_bits(value, got[name])}
        assert (fault.breaks <= wrong) if faulty else not wrong
