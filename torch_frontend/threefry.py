"""Threefry-2x32: random bits as a function of a key and a counter, without state. Here in int32, which compilers
vectorize: its sums wrap, and what a shift to the right drags in is masked away.

Source: Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011); Random123, ``threefry.h``.
"""

import math

import torch
from torch import Tensor

from ..core.granularity import Shape
from .arrays import CHUNK, is_concrete

Pair = tuple[Tensor, Tensor]
EVEN, ODD = (13, 15, 26, 6), (17, 29, 16, 24)  # rotations of four rounds, then of the next four


def threefry2x32(key: Pair, counter: Pair) -> Pair:
    """Two words of random bits for each counter: 20 rounds of Threefry-2x32.

    Args:
        key: two words of 32 bits, as int32, which broadcast against the counter.
        counter: two words, int32, the same shape.
    Returns:
        Two words, int32, of that shape.
    """
    first, second = key
    third = first ^ second ^ 0x1BD11BDA
    x, y = _rounds(counter[0] + first, counter[1] + second, EVEN)
    x, y = _rounds(x + second, y + third + 1, ODD)
    x, y = _rounds(x + third, y + first + 2, EVEN)
    x, y = _rounds(x + first, y + second + 3, ODD)
    x, y = _rounds(x + second, y + third + 4, EVEN)
    return x + third, y + first + 5


def rounding_noise(seed: int | Tensor, shape: Shape) -> Tensor:
    """What stochastic rounding compares with: for every element one of the integers 0 .. 2**24 - 1, all as likely.

    For the element at place i in row-major order, ``threefry2x32((seed, 0), (i % 2**32, i // 2**32))``: its first word
    without the last 8 bits: it depends on the shape alone, not on how a tensor lies in memory.

    Args:
        seed: integer in ``[0, 2**32)``, or a 0-d integer tensor, on whose device the noise is made.
        shape: of the tensor.
    Returns:
        float32, of that shape.
    """
    device = seed.device if isinstance(seed, Tensor) else None
    wide = seed.to(torch.int64) if isinstance(seed, Tensor) else torch.full((), seed, dtype=torch.int64)
    word, count = _low_word(wide), math.prod(shape)
    if not is_concrete(wide):
        return _noise(word, 0, count).reshape(shape)
    noise = torch.empty(count, dtype=torch.float32, device=device)
    for start in range(0, count, CHUNK):  # which stays in cache
        part = noise[start : start + CHUNK]
        part.copy_(_noise(word, start, start + part.numel()))
    return noise.reshape(shape)


def _noise(word: Tensor, start: int, stop: int) -> Tensor:
    """Of the places from ``start`` to ``stop``, counted in int32 as long as that is wide enough."""
    zero = torch.zeros_like(word)
    if stop <= 2**31:
        counter = torch.arange(start, stop, dtype=torch.int32, device=word.device), zero
    else:
        place = torch.arange(start, stop, dtype=torch.int64, device=word.device)
        counter = _low_word(place), (place >> 32).to(torch.int32)
    bits = threefry2x32((word, zero), counter)[0]
    return ((bits >> 8) & 0xFFFFFF).to(torch.float32)


def _low_word(value: Tensor) -> Tensor:
    """The last 32 bits of int64 as int32, by a conversion of numbers that fit."""
    low = value & 0xFFFFFFFF
    return torch.where(low > 0x7FFFFFFF, low - 0x100000000, low).to(torch.int32)


def _rounds(x: Tensor, y: Tensor, rotations: tuple[int, ...]) -> Pair:
    """A round for each rotation."""
    for distance in rotations:
        x = x + y
        y = ((y << distance) | ((y >> (32 - distance)) & ((1 << distance) - 1))) ^ x
    return x, y
