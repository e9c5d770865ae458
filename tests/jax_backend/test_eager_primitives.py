"""Primitives outside of `jax.jit`: each is one program, not one for each of its operations."""

import jax.monitoring
import numpy as np

from samebits.core import primitives as of_core
from samebits.jax_backend import primitives
from samebits.proofs.inputs.compare import assert_same_bits


def test_a_sum_is_a_few_programs() -> None:
    x = np.random.default_rng(0).standard_normal(1237).astype(np.float32)  # a length that no other test has
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    found = primitives.sum(x)
    programs = sum("backend_compile" in event for event in compiled)
    assert 0 < programs < 20  # of its operations there are some 400
    assert_same_bits(of_core.sum(x), found)
