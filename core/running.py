"""Running statistics: the average of what one tensor after the other gives."""

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
