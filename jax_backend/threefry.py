"""Threefry-2x32: random bits as a function of a key and a counter, without state. Here with XLA's uint32.

Source: Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011); Random123, ``threefry.h``.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ..core.granularity import Shape

Array = jax.Array
Pair = tuple[Any, Any]
WORDS = 2**32  # counters with the same second word
ROTATIONS = np.tile([13, 15, 26, 6, 17, 29, 16, 24], 3)[:20]


def threefry2x32(key: Pair, counter: Pair) -> Pair:
    """Two words of random bits for each counter: 20 rounds of Threefry-2x32.

    Args:
        key: two words of 32 bits, uint32, which broadcast against the counter.
        counter: two words, uint32, the same shape.
    Returns:
        Two words, uint32, of that shape.
    """
    first, second = (jnp.asarray(word, np.uint32) for word in key)
    schedule = (first, second, first ^ second ^ np.uint32(0x1BD11BDA))
    x, y = counter[0] + first, counter[1] + second
    for done, distance in enumerate(map(int, ROTATIONS), 1):
        x = x + y
        y = (y << np.uint32(distance) | y >> np.uint32(32 - distance)) ^ x
        if done % 4 == 0:
            injected = done // 4
            x = x + schedule[injected % 3]
            y = y + schedule[(injected + 1) % 3] + np.uint32(injected)
    return x, y


def rounding_noise(seed: ArrayLike, shape: Shape) -> Array:
    """What stochastic rounding compares with: for every element one of the integers 0 .. 2**24 - 1, all as likely.

    For the element at place i in row-major order, ``threefry2x32((seed, 0), (i % 2**32, i // 2**32))``: its first word
    without the last 8 bits: it depends on the shape alone.

    Args:
        seed: integer in ``[0, 2**32)``, 0-d.
        shape: of the array.
    Returns:
        float32, of that shape.
    """
    key, count = (jnp.asarray(seed).astype(np.uint32), np.uint32(0)), math.prod(shape)
    parts = []
    for start in range(0, max(count, 1), WORDS):
        low = lax.iota(np.uint32, min(WORDS, count - start))
        parts.append(threefry2x32(key, (low, jnp.full_like(low, start // WORDS)))[0])
    word = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    return (word >> np.uint32(8)).astype(np.float32).reshape(shape)
