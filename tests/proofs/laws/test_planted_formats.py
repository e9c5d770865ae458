"""Faults planted in formats, codes, scales and masks: each must be found by comparison with the specification."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from samebits import core
from samebits.core import Quantizer
from samebits.proofs.inputs.compare import same_bits

from ...examine import ROUTES, Answers, Case, answers, cases
from ...planted import Fault, plant
from ...planted_formats import FORMULAS, code_faults, number_faults, numbers_by, right
from ...planted_scales import mask_faults, scale_faults

FAULTS = [*number_faults(), *code_faults(), *scale_faults(), *mask_faults()]
EDGES = ("codes", "values", "fake", "dx", "dx_alone")
SCALE = frozenset({"scale"})
SETTINGS = sorted({(f.route, f.q, f.breaks == SCALE) for f in FAULTS}, key=str)
SIDE = 64


@cache
def blocks(q: Quantizer) -> tuple[Case, Answers]:
    """Data whose largest elements lie at, around and between powers of two, from nothing to a large number."""
    rng = np.random.default_rng(0)
    sizes = np.array([1, 1.0625, 1.25, 1.4375, 1.5, 1.6875, 1.75, 1.8125, 1.9375, 448 / 256])[:, None]
    near = np.array([-2, -1, 0, 1]) * np.float32(2.0**-23)
    peaks = ((sizes * (1 + near)).reshape(-1) * 2.0 ** np.arange(-12, 28)).astype(np.float32)
    exact = np.array([1, np.nextafter(np.float32(2), np.float32(0)), 2.0**-18, 2.0**12, 0], np.float32)
    size = np.resize(np.concatenate([peaks, exact]), SIDE * SIDE // 32)
    x = rng.uniform(-1, 1, (SIDE * SIDE // 32, 32)).astype(np.float32) * size[:, None]
    x[:, 0] = size
    x = x.reshape(SIDE, SIDE)
    return Case(x, x, None), core.choose_qparams(q, x)._asdict()


def seen(route: str, q: Quantizer, *, scales: bool, dtype: str = "float32") -> Iterator[set[str]]:
    """What differs, case after case, each kind of answer by itself."""
    if scales:
        data = [blocks(q), (Case(np.zeros((SIDE, SIDE), np.float32), np.ones((SIDE, SIDE), np.float32), None), {})]
        for case, _ in data:
            expected = core.choose_qparams(q, case.x).scale
            yield set() if same_bits(expected, ROUTES[route].choose(q, case.x).scale) else {"scale"}
        return
    for case, wanted in cases(q, dtype):
        if case.qparams is not None and not case.exact_sums:
            got: dict[str, Any] = answers(route, q, case)
            yield {name for name in EDGES if not same_bits(wanted[name], got[name])}


@pytest.mark.parametrize(
    ("route", "q", "scales"),
    SETTINGS,
    ids=[f"{r}-{i}-{'scale' if s else 'edges'}" for i, (r, _, s) in enumerate(SETTINGS)],
)
def test_nothing_is_found_without_a_fault(route: str, q: Quantizer, scales: bool) -> None:
    assert list(seen(route, q, scales=scales))
    assert not any(seen(route, q, scales=scales))


@pytest.mark.parametrize("route", ["torch eager", "torch func", "jax eager"])
def test_nothing_is_found_of_the_right_formula(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for q in {q for _, q in FORMULAS.values()}:
        with monkeypatch.context() as patch:
            plant(patch, *numbers_by(right, route))
            assert not any(seen(route, q, scales=False))


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{f.route}: {f.name}" for f in FAULTS])
def test_planted_fault_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, make in fault.plants:
        plant(monkeypatch, target, make)
    wrong: set[str] = set()
    for differing in seen(fault.route, fault.q, scales=fault.breaks == SCALE, dtype=fault.dtype):
        wrong |= differing
        if fault.breaks <= wrong:
            return
    assert fault.breaks <= wrong
