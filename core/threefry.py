"""Threefry-2x32: random bits as a function of a key and a counter, without state. Here in NumPy's uint32, which wraps.

Source: Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011); Random123, ``threefry.h``.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .granularity import Shape

Array = NDArray[Any]
Pair = tuple[Array, Array]
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of four rounds, then of the next four, in turn
PARITY = 0x1BD11BDA  # what makes the third word of a key from the other two


def threefry2x32(key: Pair, counter: Pair) -> Pair:
    """Two words of random bits for each counter: 20 rounds of Threefry-2x32.

    Args:
        key: two words of 32 bits, uint32, which broadcast against the counter.
        counter: two words, uint32, the same shape.
    Returns:
        Two words, uint32, of that shape.
    """
    keys = (*key, key[0] ^ key[1] ^ np.uint32(PARITY))
    with np.errstate(over="ignore"):  # wrapping is meant
        x, y = counter[0] + keys[0], counter[1] + keys[1]
        for group in range(5):
            for distance in ROTATIONS[group % 2]:
                x = x + y
                y = (y << np.uint32(distance) | y >> np.uint32(32 - distance)) ^ x
            x = x + keys[(group + 1) % 3]
            y = y + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def rounding_noise(seed: ArrayLike, shape: Shape) -> Array:
    """What stochastic rounding compares with: for every element one of the integers 0 .. 2**24 - 1, all as likely.

    For the element at place i in row-major order, ``threefry2x32((seed, 0), (i % 2**32, i // 2**32))``: its first word
    without the last 8 bits: it depends on the shape alone, not on how an array lies in memory.

    Args:
        seed: integer in ``[0, 2**32)``, 0-d.
        shape: of the array.
    Returns:
        float32, of that shape.
    """
    place = np.arange(math.prod(shape), dtype=np.uint64)
    counter = (place % 2**32).astype(np.uint32), (place // 2**32).astype(np.uint32)
    word = threefry2x32((np.asarray(seed).astype(np.uint32), np.zeros((), np.uint32)), counter)[0]
    return (word >> np.uint32(8)).astype(np.float32).reshape(shape)
