"""A thread that flushes subnormal numbers: core and eager torch refuse to compute there, before anything changes."""

from collections.abc import Callable, Iterator
from functools import partial
from timeit import repeat
from typing import Any

import numpy as np
import pytest
import torch

from samebits import core, torch_frontend
from samebits.core import QParams, ScaleRule, catalog, checks
from samebits.core import learned_rounding as core_learned
from samebits.core import learned_sigma as core_sigma
from samebits.core import straight_through as core_rules
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import straight_through as torch_rules
from samebits.torch_frontend.arrays import is_concrete
from samebits.torch_frontend.learned_rounding import rounding_share
from samebits.torch_frontend.learned_sigma import scale_at_sigma
from samebits.torch_frontend.nn import QuantLinear, TensorQuantizer

INT8 = catalog["int8_per_tensor"]
SIGMA = INT8.replace(scale=ScaleRule(statistic="mean_sigma", learned_sigma=True))
NAMES = ("choose_qparams", "quantize", "dequantize", "fake_quantize", "fake_quantize_vjp")
RULES = ("round_ste", "binary_sign_ste", "ternary_sign_ste", "abs_binary_sign_grad")


@pytest.fixture
def flushed() -> Iterator[None]:
    """A thread that takes subnormal numbers for zero."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def calls(room: Any, rules: Any, x: Any, scale: Any, sigma: Any, codes: Any) -> dict[str, Callable[[], Any]]:
    """Every verb of a room."""
    given = QParams(scale)
    share, at_sigma = (
        (core_learned.rounding_share, core_sigma.scale_at_sigma) if room is core else (rounding_share, scale_at_sigma)
    )
    return {
        "choose_qparams": lambda: room.choose_qparams(INT8, x).scale,
        "quantize": lambda: room.quantize(INT8, x, given),
        "dequantize": lambda: room.dequantize(INT8, codes, given),
        "fake_quantize": lambda: room.fake_quantize(INT8, x, given),
        "fake_quantize_vjp": lambda: room.fake_quantize_vjp(INT8, x, given, x).x,
        "linear": lambda: room.linear(INT8, x, given, INT8, x, given),
        "rounding_share": lambda: share(INT8.learned_rounding, x),
        "scale_at_sigma": lambda: at_sigma(SIGMA, x, sigma),
        "tensor_clamp": lambda: rules.tensor_clamp(x, -1.0, 1.0),
        "tensor_clamp_vjp": lambda: rules.tensor_clamp_vjp(x, -1.0, 1.0, x)[0],
        **{name: partial(getattr(rules, name), x) for name in RULES},
    }


X = np.array([[1e-45, 1e-40, 1.0], [-1e-45, -1e-39, 2.0]], np.float32)
ROOMS = {
    "core": calls(core, core_rules, X, np.float32(0.01), np.float32(3.0), X.astype(np.int8)),
    "torch": calls(
        torch_frontend,
        torch_rules,
        torch.from_numpy(X),
        torch.tensor(0.01),
        torch.tensor(3.0),
        torch.from_numpy(X).to(torch.int8),
    ),
}


@pytest.mark.parametrize("name", ROOMS["core"])
@pytest.mark.parametrize("room", ROOMS)
def test_every_verb_refuses(room: str, name: str, flushed: None) -> None:
    with pytest.raises(
        RuntimeError, match=r"this thread flushes subnormal numbers .* torch.set_flush_denormal\(False\)"
    ):
        ROOMS[room][name]()


@pytest.mark.parametrize("name", ROOMS["core"])
@pytest.mark.parametrize("room", ROOMS)
def test_after_it_the_bits_are_the_same(room: str, name: str) -> None:
    expected = ROOMS[room][name]()
    torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)
    assert_same_bits(expected, ROOMS[room][name]())


def test_layers_and_state_refuse_before_anything_changes(flushed: None) -> None:
    held = TensorQuantizer(INT8.replace(scale=ScaleRule(source="running_statistic")))
    for call in (lambda: held(torch.from_numpy(X)), lambda: QuantLinear(3, 2)(torch.from_numpy(X))):
        with pytest.raises(RuntimeError, match="this thread flushes subnormal numbers"):
            call()
    assert held.state_dict()["scale"].isnan().all()


def test_the_check_costs_little() -> None:
    """Below 1 us a call; `is_concrete` as a whole, which holds it, a few."""
    assert min(repeat(checks.keeps_subnormals, number=10_000, repeat=5)) / 10_000 < 1e-6
    x = torch.ones(2)
    assert min(repeat(lambda: is_concrete(x), number=10_000, repeat=5)) / 10_000 < 5e-6
