"""Ranges at which parameters are decided: a zero point that is a tie, blocks of zeros, tiny ones, ones at the floor.

Data hardly ever has such a range, and two rules that agree on all data may part here: halves of zero points rounded the
other way, another floor of scales, no guard for a block of zeros, a sum that overflows.
"""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.descriptions import Quantizer
from .bits import neighbours

Array = NDArray[Any]
SIGNIFICANDS = (1, 3)  # of the scales at which zero points are ties
EXPONENTS = (-3, 0, 30)
NEAR_FLOOR = 1  # of the numbers on each side of a floor


def knife_edge_ranges(q: Quantizer, dtype: DTypeLike, count: int) -> Array:
    """Pairs ``(low, high)`` with ``low <= 0 <= high``, one a row, in ``dtype``: at most ``count``, at least 1.

    First the ends, as `end_ranges` has them; what is left goes to `tied_ranges`, spread evenly.

    Args:
        q: its format, whether it is affine, and the floor of its scales count.
    """
    ends = end_ranges(q, dtype)
    ties = tied_ranges(q, dtype)
    room = max(count - len(ends), count // 3) if len(ties) else 0
    at = np.unique(np.linspace(0, max(len(ties) - 1, 0), min(room, len(ties))).astype(int))
    return np.concatenate([ends[: max(count - len(at), 1)], ties[at]]) if room else ends[:count]


def end_ranges(q: Quantizer, dtype: DTypeLike) -> Array:
    """Ranges of zeros and of the smallest and largest numbers; at the floor of the scale, and where others put one.

    In the order of what they find: a list that is cut still holds a block of zeros and one below every floor.
    """
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    kind = np.dtype(dtype)
    width = float(q.format.hi - q.format.lo if q.affine else q.format.hi)
    wide = np.finfo(np.float64 if kind == np.float64 else np.float32)
    floor = float(wide.smallest_normal) if q.scale.floor is None else q.scale.floor
    most, least = float(info.max), float(info.smallest_subnormal)
    sizes = [0.0, float(wide.eps) * width / 4, least, float(wide.eps) * width, most]
    with np.errstate(over="ignore", under="ignore"):
        floors = np.array([floor * width, float(wide.eps) * width], np.float64).astype(kind)
        floors = floors[np.isfinite(floors) & (floors > 0)]
        sizes += neighbours(floors, NEAR_FLOOR).astype(np.float64).tolist() if len(floors) else []
        sizes += [float(info.smallest_normal), 1e-10 * width, 1e-6 * width, 1e-4 * width]
        one_sided = np.array([(0.0, size) if i % 2 else (-size, 0.0) for i, size in enumerate(dict.fromkeys(sizes))])
        pairs = np.concatenate([one_sided, [(-most, most), (-least, least), (-0.0, -0.0)], -one_sided[:, ::-1]])
        pairs = pairs.astype(kind)
    return np.asarray(pairs[np.isfinite(pairs).all(1)])


def tied_ranges(q: Quantizer, dtype: DTypeLike) -> Array:
    """Ranges whose zero point lies halfway between two codes: none for quantizers that have none.

    ``low = -(k + 1/2) * s`` and ``high = (hi - lo) * s + low`` for scales s of few bits, where every step is exact.
    """
    kind = np.dtype(dtype)
    if not q.affine:
        return np.zeros((0, 2), kind)
    span = int(q.format.hi - q.format.lo)
    with np.errstate(over="ignore", under="ignore"):
        scales = np.array([m * 2.0**e for e in EXPONENTS for m in SIGNIFICANDS])
        low = -(np.arange(span) + 0.5)[:, None] * scales
        high = span * scales + low
        pairs = np.stack([low, high], -1).reshape(-1, 2)
        stored = pairs.astype(kind)
    return np.asarray(stored[(stored.astype(np.float64) == pairs).all(1)])
