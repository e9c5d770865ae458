"""The hardest quotients: as near to halfway as they say, by integers."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.proofs.inputs.halfway import LEAST, nearly_halfway, subnormal_quotients


def divisors() -> NDArray[Any]:
    some = np.random.default_rng(0).integers(LEAST, 2 * LEAST, 500)
    return np.concatenate([[LEAST, LEAST + 1, 2 * LEAST - 1, 2 * LEAST - 2, LEAST + (LEAST >> 1)], some])


@pytest.mark.parametrize("bits", [25, 24, 9])
@pytest.mark.parametrize("distance", [1, -1, 3])
def test_quotients_are_as_near_as_they_say(bits: int, distance: int) -> None:
    found = nearly_halfway(divisors(), distance, bits)
    assert len(found.dividend) > 300
    for x, s, exponent in zip(*(part.tolist() for part in found), strict=True):
        rest = distance * (s & -s)
        odd, left = divmod((x << exponent) - rest, s)
        assert left == 0
        assert odd % 2 == 1
        assert odd.bit_length() == bits
        assert x.bit_length() == 24


def test_most_divisors_have_one() -> None:
    given = divisors()
    found = np.unique(nearly_halfway(given, 1).divisor)
    assert len(found) > 0.8 * len(given)
    assert LEAST not in found, "by a power of two every quotient is exact"


def test_subnormal_quotients() -> None:
    found = nearly_halfway(divisors(), 1, 12)
    x, s = subnormal_quotients(found, np.random.default_rng(0))
    halves = x.astype(np.float64) / s * 2.0**150
    whole = np.rint(halves)
    assert (whole % 2 == 1).all()
    assert (halves > whole).all()
    assert (x >= 2.0**-126).all()
    assert np.isfinite(s).all()


def test_arguments() -> None:
    for distance, bits in ((2, 25), (1, 26), (1, 1)):
        with pytest.raises(ValueError, match="`distance` must be odd and `bits` 2 to 25"):
            nearly_halfway(divisors(), distance, bits)
