"""What a magnitude is divided by: the same scales in all three rooms, for every denominator."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from samebits import core, jax_backend, torch_frontend
from samebits.core import Denominator, IntegerFormat, PerAxis, Quantizer, Restriction
from samebits.proofs.inputs.compare import assert_same_bits

FORMATS = [IntegerFormat(8), IntegerFormat(8, narrow=True), IntegerFormat(3), IntegerFormat(4, signed=False)]


@pytest.mark.parametrize("denominator", Denominator)
def test_scales_are_the_same_in_every_room(denominator: Denominator) -> None:
    peaks = [1.0, 127.0, 127.25, 127.5, 127.75, 128.0, 255.5, 3.5, 15.5, 1e-45, 3e38]
    x = np.array([[p, -p / 3] for p in peaks] + [[p / 3, -p] for p in peaks], np.float32)
    for form in FORMATS:
        if denominator is Denominator.LO and form.lo == 0:
            continue
        for restriction in (Restriction.FLOAT, Restriction.POWER_OF_TWO):
            q = Quantizer(format=form, granularity=PerAxis(0)).replace(denominator=denominator, restriction=restriction)
            want = core.choose_qparams(q, x).scale
            assert_same_bits(want, torch_frontend.choose_qparams(q, torch.from_numpy(x)).scale, inputs=x)
            assert_same_bits(want, jax_backend.choose_qparams(q, jnp.asarray(x)).scale, inputs=x)


def test_the_next_code_makes_powers_of_two_of_powers_of_two() -> None:
    q = Quantizer(format=IntegerFormat(8, narrow=True)).replace(denominator="next")
    assert core.choose_qparams(q, np.array([-4.0, 1.0], np.float32)).scale == 4 / 128
