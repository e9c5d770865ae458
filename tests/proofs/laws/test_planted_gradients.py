"""Faults planted in straight-through rules, gradient rules and learned rounding: each must be found."""

from functools import partial

import jax
import pytest

from samebits.core import learned_rounding
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.torch_frontend import learned_rounding as in_torch
from samebits.torch_frontend import straight_through

from ...planted import JAX, plant
from ...planted_gradients import FAULTS, GradientFault, value_of
from ...verbs import test_gradient_rules, test_learned_rounding, test_straight_through

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant


def look(subject: str, room: str) -> None:
    """Raises AssertionError where the room differs from the specification."""
    if subject == "rules" and room == JAX:
        program = test_straight_through.jax_program("float16")  # whatever ran before, it is traced anew
        operands = [to_jax(v) for v in test_straight_through.data("float16")]
        test_straight_through.check("float16", *jax.jit(program)(*operands), "jax jit")
        program = test_straight_through.jax_program("float32")
        operands = [to_jax(v) for v in test_straight_through.data("float32")]
        test_straight_through.check("float32", *jax.jit(program)(*operands), "jax jit")
    elif subject == "rules":
        test_straight_through.test_torch_eager("float32")
    elif subject == "learned":
        jax.clear_caches()
        name = "soft"
        if room == JAX:
            test_learned_rounding.test_jax_jit(name)
        else:
            test_learned_rounding.test_torch_eager(name)
            for rule in test_learned_rounding.RULES:
                v = test_learned_rounding.parameters()
                for function in test_learned_rounding.FUNCTIONS:
                    want, got = (partial(getattr(m, function), rule) for m in (learned_rounding, in_torch))
                    assert_same_bits(want(v), got(to_torch(v)), call=function)
    else:
        jax.clear_caches()
        for name in ("clipped quotient, int8", "learned clip, uint4"):
            test_gradient_rules.test_gradient_of_x_in_every_eager_room(name, "float32")


@pytest.mark.parametrize("subject", ["rules", "learned", "quotient"])
@pytest.mark.parametrize("room", ["torch_frontend", JAX])
def test_nothing_is_found_without_a_fault(subject: str, room: str) -> None:
    look(subject, room)


def test_nothing_is_found_of_right_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The carrier of the faults of values, by itself."""
    for name in ("round_ste", "tensor_clamp_ste", "scalar_clamp_ste", "ternary_sign_ste", "signed_clamp_min_ste"):
        right = getattr(straight_through, name)
        plant(monkeypatch, f"torch_frontend.straight_through.{name}", value_of(right))
    look("rules", "torch_frontend")


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{f.target.split('.')[0]}: {f.name}" for f in FAULTS])
def test_planted_fault_is_found(fault: GradientFault, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, fault.target, fault.make)
    with pytest.raises(AssertionError):
        look(fault.subject, fault.target.split(".")[0])
    jax.clear_caches()
