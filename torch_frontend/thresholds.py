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


def passing_interval(q: Quantizer, scale: Array, zero: Array | None) -> tuple[Array, Array]:
    """Open interval of float32 ``x`` that are not clamped: they pass when ``below < x < above`` (as NaN does).

    Args:
        scale, zero: float32, same shape; ``zero`` None when symmetric.
    Returns:
        ``below`` and ``above``, float32, shape of the scale; infinite where only an infinite ``x`` is clamped.
    """
    lo, hi = q.format.lo, q.format.hi
    if zero is None:
        return _end(q, lo, scale, -1.0), _end(q, hi, scale, 1.0)
    below, above = np.empty_like(scale), np.empty_like(scale)
    for z in np.unique(zero):
        here = zero == z
        below[here] = _end(q, lo - int(z), scale[here], -1.0)
        above[here] = _end(q, hi - int(z), scale[here], 1.0)
    return below, above


def _end(q: Quantizer, limit: float, scale: Array, side: float) -> Array:
    """The first float32 past those whose quotient rounds to ``limit`` or less (side 1), ``limit`` or more (side -1)."""
    middle, tie_stays = _last_quotient(q, limit, side)
    end = scale.astype(np.float64) * middle  # exact
    with np.errstate(over="ignore"):
        nearest = end.astype(np.float32)
    beyond = (nearest - end) * side  # sign only; inf - finite is inf
    outside = beyond > 0 if tie_stays else beyond >= 0
    return np.where(outside, nearest, np.nextafter(nearest, np.float32(side * np.inf)))


@lru_cache(maxsize=4096)
def _last_quotient(q: Quantizer, limit: float, side: float) -> tuple[float, bool]:
    """Midpoint between the last float32 quotient that stays within ``limit`` and the next; whether the tie stays."""
    beyond = np.float32(side * np.inf)
    step = 1.0
    if isinstance(q.format, FloatFormat):
        step = 2.0 ** (max(q.format.max_exponent, q.format.min_exponent) - q.format.mantissa_bits)
    with np.errstate(over="ignore"):
        ends = np.array([limit + side * step / 2, limit + side * step], np.float32)
    candidates = np.array([limit, *ends, *np.nextafter(ends, -beyond)], np.float32)
    rounded = round_to_grid(q, torch.from_numpy(candidates)).numpy()
    last = side * np.max(side * candidates[side * rounded <= side * limit])
    following = float(np.nextafter(last, beyond))
    if not np.isfinite(following):  # from where quotients round to infinity
        following = float(last) + side * float(np.spacing(np.abs(last)))
    return (float(last) + following) / 2, bool(last.view(np.uint32) % 2 == 0)
