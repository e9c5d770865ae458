"""Where the clamp begins, stated on ``x``: a mask needs then no division, only two comparisons.

``fl(x / s)`` is monotone in ``x``, so the elements whose rounded quotient stays in ``[lo - z, hi - z]`` form an
interval. Its ends are exact: with ``b`` the largest float32 quotient that rounds to at most ``hi - z``, and ``m`` the
midpoint of b and the next float32, ``fl(x / s) <= b`` exactly when ``x < m * s``, or ``x = m * s`` and that tie goes to
b. ``m`` has 25 significant bits and ``s`` 24, so ``m * s`` is an exact float64.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.descriptions import Quantizer
from ..core.formats import FloatFormat
from .grid import round_to_grid

Array = NDArray[Any]
SIDES = np.array([-1.0, 1.0], np.float32)
OUTWARD = SIDES * np.float32(np.inf)


def passing_interval(q: Quantizer, scale: Array, zero: Array | None) -> tuple[Array, Array]:
    """Open interval of float32 ``x`` that are not clamped: they pass when ``below < x < above`` (as NaN does).

    Args:
        scale, zero: float32, same shape; ``zero`` None when symmetric.
    Returns:
        ``below`` and ``above``, float32, shape of the scale; infinite where only an infinite ``x`` is clamped.
    """
    if zero is None:
        ends = _ends(q, 0, scale)
    else:
        ends = np.empty((*scale.shape, 2), np.float32)
        for z in np.unique(zero):
            ends[zero == z] = _ends(q, int(z), scale[zero == z])
    return ends[..., 0], ends[..., 1]


def _ends(q: Quantizer, zero: int, scale: Array) -> Array:
    """Below and above, in a last axis: the first float32 past the tie that ends the interval, or at it."""
    middles, least = _last_quotients(q, q.format.lo - zero, q.format.hi - zero)
    exact = scale[..., None].astype(np.float64) * middles
    with np.errstate(over="ignore"):  # beyond the largest float32 lie the infinities
        nearest = exact.astype(np.float32)
        after = np.nextafter(nearest, OUTWARD)
    return np.where((nearest - exact) * SIDES > least, nearest, after)


@lru_cache(maxsize=4096)
def _last_quotients(q: Quantizer, lo: float, hi: float) -> tuple[Array, Array]:
    """Midpoints between the last float32 quotient that rounds into ``[lo, hi]`` and the next; and what is less than any
    distance beyond them: 0 where the tie itself stays inside, a negative number where it does not.
    """
    step = 1.0
    if isinstance(q.format, FloatFormat):
        step = 2.0 ** (max(q.format.max_exponent, q.format.min_exponent) - q.format.mantissa_bits)
    middles, least = [], []
    for limit, side in ((lo, -1), (hi, 1)):
        beyond = np.float32(side * np.inf)
        with np.errstate(over="ignore"):
            ends = [np.float32(limit + side * step / 2), np.float32(limit + side * step)]
        candidates = np.array([limit, *ends, *(np.nextafter(end, -beyond) for end in ends)], np.float32)
        rounded = round_to_grid(q, torch.from_numpy(candidates)).numpy()
        last = np.float32(side * np.max(side * candidates[side * rounded <= side * limit]))
        following = float(np.nextafter(last, beyond))
        if not np.isfinite(following):  # from there on quotients are infinite
            following = float(last) + side * float(np.spacing(np.abs(last)))
        middles.append((float(last) + following) / 2)
        least.append(0.0 if last.view(np.uint32) % 2 == 0 else -1e-300)
    return np.array(middles), np.array(least)
