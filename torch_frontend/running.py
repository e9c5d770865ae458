"""Running statistics: the average of what one tensor after the other gives."""

import torch
from torch import Tensor

from ..core.descriptions import Quantizer


def running_average(q: Quantizer, old: Tensor, new: Tensor, seen: Tensor | None) -> Tensor:
    """``momentum * old + (1 - momentum) * new``, the factors rounded to float32, then each operation.

    Without momentum the mean: ``(n / (n + 1)) * old + new / (n + 1)``, each operation rounded, with n for ``seen``.
    Where ``old`` is NaN, nothing was seen yet, and ``new`` is copied; where ``new`` is NaN, ``old`` stays.

    Args:
        old: scales or zero points so far, float32; ``new``: of the tensor at hand, the same shape and dtype.
        seen: number of tensors in ``old``, 0-d, below 2**24; only the mean looks at it.

    Source: momentum as Brevitas `inplace_momentum_update` (whose momentum is the weight of the new value).
    """
    if q.scale.momentum is not None:
        average = old * q.scale.momentum + new * (1 - q.scale.momentum)
    elif seen is None:
        raise TypeError("`seen` must be a tensor for a mean, got None")
    else:
        count = (seen + 1).to(old.dtype).expand(old.shape)
        average = old * (seen.to(old.dtype).expand(old.shape) / count) + new / count
    return torch.where(new != new, old, torch.where(old != old, new, average))
