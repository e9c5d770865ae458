"""The hardest quotients there are: those nearest to halfway between two floats, by number theory.

With significands ``X`` and ``S`` of 24 bits, ``X * 2**j / S`` differs from an integer ``m`` by ``R / S`` where
``X * 2**j = m * S + R``. An odd ``m`` of one bit more than a float has is halfway between two of them; the least
``|R|`` that there can be is the largest power of two in ``S``. So for each ``S`` and each small odd multiple of that,
``m`` is the solution of a congruence, by the inverse of the odd part of ``S`` modulo a power of two.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LEAST, DIGITS = 1 << 23, 24  # of a significand of float32


class Hard(NamedTuple):
    """Dividends and divisors, both significands, and the exponent: ``dividend * 2**exponent / divisor`` is about m."""

    dividend: Array
    divisor: Array
    exponent: Array


def nearly_halfway(divisors: Array, distance: int, bits: int = DIGITS + 1) -> Hard:
    """Quotients of ``bits`` bits that are an odd integer but for ``distance`` times the least that there can be.

    Args:
        divisors: significands, int64, in [2**23, 2**24).
        distance: odd; where it is positive, quotients lie above the integer. 25 bits are halfway between two normal
            float32 numbers, fewer between two subnormal ones.
    Returns:
        One, two or no dividends for each divisor, int64, in [2**23, 2**24).
    Raises:
        ValueError: an even distance, or bits beyond 2 to 25.
    """
    if distance % 2 == 0 or not 2 <= bits <= DIGITS + 1:
        raise ValueError(f"`distance` must be odd and `bits` 2 to {DIGITS + 1}, got {distance!r} and {bits!r}")
    power = divisors & -divisors
    odd, zeros = divisors // power, np.log2(power).astype(np.int64)
    inverse = odd.copy()  # modulo 8; each step doubles the bits that are right
    for _ in range(4):
        inverse = inverse * (2 - odd * inverse & 0xFFFFFFFF) & 0xFFFFFFFF
    found = []
    for exponent in (bits - 1, bits):
        modulus = np.int64(1) << np.maximum(exponent - zeros, 1)
        start = np.int64(1 << (bits - 1))
        whole = start + ((-distance * inverse - start) % modulus)
        total = whole * divisors + distance * power
        dividend = total >> exponent
        fits = (dividend << exponent == total) & (dividend >= LEAST) & (dividend < 2 * LEAST)
        fits &= (whole < 2 * start) & (whole & 1 == 1) & (odd > abs(distance))  # by powers of two all is exact
        found.append((dividend[fits], divisors[fits], np.full(int(fits.sum()), exponent)))
    return Hard(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def subnormal_quotients(hard: Hard, draw: Any) -> tuple[Array, Array]:
    """``x`` and ``s``, float32, whose quotient is that many halves of the smallest subnormal number.

    Args:
        hard: of fewer than 25 bits. ``draw``: a generator, for exponents of the scales.
    """
    of_s = draw.integers(1 - hard.exponent, 105)  # the dividend is a normal number, the scale is finite
    x = np.ldexp(hard.dividend.astype(np.float64), of_s + hard.exponent - 150)
    return x.astype(np.float32), np.ldexp(hard.divisor.astype(np.float64), of_s).astype(np.float32)
