"""Running statistics: the average, or a percentile, of what one tensor after the other gives."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .descriptions import Quantizer

Array = NDArray[Any]


@np.errstate(all="ignore")  # special values are meant
def running_average(q: Quantizer, old: Array, new: Array, seen: int) -> Array:
    """``momentum * old + (1 - momentum) * new``, the factors rounded to float32, then each operation.

    Without momentum the mean: ``(n / (n + 1)) * old + new / (n + 1)``, each operation rounded, with n for ``seen``.
    Where ``old`` is NaN, nothing was seen yet, and ``new`` is copied; where ``new`` is NaN, ``old`` stays.

    Args:
        old: scales or zero points so far, float32; ``new``: of the tensor at hand, the same shape and dtype.
        seen: number of tensors in ``old``, below 2**24; only the mean looks at it.

    Source: momentum as Brevitas `inplace_momentum_update` (whose momentum is the weight of the new value).
    """
    if q.scale.momentum is None:
        count = np.float32(seen + 1)
        average = old * (np.float32(seen) / count) + new / count
    else:
        average = old * np.float32(q.scale.momentum) + new * np.float32(1 - q.scale.momentum)
    return np.where(np.isnan(new), old, np.where(np.isnan(old), new, average))


def running_percentile(q: Quantizer, history: Array, new: Array) -> tuple[Array, Array]:
    """The last scales with ``new`` behind them, and of them the one that `ScaleRule.window_percentile` names.

    Of n scales in ascending order, equal ones by age, the ``floor(0.01 * p * n + 0.5)``-th, at least the first; and the
    zero point that came with it. Until the window is full, n is the number of those seen. Where the new scale is
    NaN, nothing changes. NaN where nothing was seen. Exact.

    Args:
        history: float32, ``(window, k, *shape)``: the scale, and for ``k = 2`` the zero point, of one tensor after the
            other, the newest last; NaN where none was seen. ``new``: of the tensor at hand, ``(k, *shape)``.

    Source: delayed scaling of float8 training (arXiv 2209.05433, Transformer Engine, AQT ``DelayedScalingCalibration``)
    is the largest; here the tensor at hand counts.
    """
    history, chosen = history.copy(), np.full_like(new, np.nan)
    for block in np.ndindex(new.shape[1:]):
        window = history[(..., *block)]  # a view: one row per tensor
        latest = new[(slice(None), *block)]
        if not np.isnan(latest[0]):
            window[:-1], window[-1] = window[1:].copy(), latest
        seen = sorted((row.tolist() for row in window if not np.isnan(row[0])), key=lambda row: row[0])
        if seen:
            rank = max(math.floor(0.01 * q.scale.window_percentile * len(seen) + 0.5), 1)
            chosen[(slice(None), *block)] = seen[rank - 1]
    return history, chosen
