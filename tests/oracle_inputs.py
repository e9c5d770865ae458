"""Data that parameters are chosen from: what the oracles of `choose_qparams` are asked about."""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def blocks(
    dtype: np.dtype[Any],
    rows: int = 8,
    columns: int = 32,
    powers: tuple[int, ...] = (-30, -9, -5, -3, 0, 2, 9, 30),
    tiny: bool = True,
) -> Iterator[Array]:
    """Matrices whose rows are blocks: random of many sizes, of one sign, shifted, zero, constant, tiny, with ties.

    Args:
        powers: of ten, by which random data is multiplied; those that leave the dtype are left out.
        tiny: whether subnormal and smallest normal numbers occur.
    """
    info: Any = ml_dtypes.finfo(dtype)
    rng = np.random.default_rng(0)
    for power in powers:
        if float(info.smallest_normal) * 1e4 < 10.0**power < float(info.max) / 1e2:
            x = rng.standard_normal((rows, columns)) * 10.0**power
            yield from (v.astype(dtype) for v in (x, np.abs(x), -np.abs(x)))
    shifted = rng.standard_normal((rows, columns)) + rng.choice([-100, -5, 5, 100], (rows, 1))
    yield shifted.astype(dtype)
    ones = np.ones((rows, columns))
    for value in (0.0, -0.0, 1.0, -1.0, 5.0, -0.1, 127.5, 2.0**-10):
        yield (ones * value).astype(dtype)
    ends = np.array(
        [[-127.5, 127.5], [-126.5, 128.5], [-128, 127], [-0.5, 254.5], [-1.5, 253.5], [-7.5, 7.5], [0, 255]]
    )
    both = np.zeros((rows, columns))
    both[:, :2] = np.resize(ends, (rows, 2))
    yield both.astype(dtype)
    yield from (_near_ties(steps, dtype, rows, columns) for steps in (255, 15))
    if tiny:
        smallest = [float(info.smallest_subnormal), float(info.smallest_normal), float(info.smallest_normal) * 200]
        for value in smallest:
            signs = np.where(np.arange(columns) % 3 == 0, -1.0, 1.0)
            yield (ones * value * signs).astype(dtype)
            yield (ones * value).astype(dtype)


def _near_ties(steps: int, dtype: np.dtype[Any], rows: int, columns: int) -> Array:
    """Rows of a range of ``steps`` whose zero is just short of halfway between two codes near the first."""
    low = np.nextafter((np.arange(rows) % steps + 0.5).astype(dtype), np.zeros((), dtype))
    x = np.zeros((rows, columns), dtype)
    x[:, 0], x[:, 1] = -low, (steps - low.astype(np.float64)).astype(dtype)
    return x
