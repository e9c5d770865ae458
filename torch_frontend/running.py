"""Running statistics: the average, or a percentile, of what one tensor after the other gives."""

import math

import torch
from torch import Tensor

from ..core.descriptions import Quantizer
from . import devices


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
        average = devices.product(old, q.scale.momentum) + devices.product(new, 1 - q.scale.momentum)
    elif seen is None:
        raise TypeError("`seen` must be a tensor for a mean, got None")
    else:
        count = (seen + 1).to(old.dtype).expand(old.shape)
        share = devices.quotient(seen.to(old.dtype).expand(old.shape), count)
        average = devices.product(old, share) + devices.quotient(new, count)
    return torch.where(new != new, old, torch.where(old != old, new, average))


def running_percentile(q: Quantizer, history: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
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
    kept = torch.cat([history[1:], new[None]])
    history = torch.where(new[0] != new[0], history, kept)
    scales, percentile = history[:, 0], float(q.scale.decimals[3])
    order = scales.argsort(dim=0, stable=True)  # NaN last
    ranks = [max(math.floor(0.01 * percentile * n + 0.5), 1) - 1 for n in range(history.shape[0] + 1)]
    place = torch.tensor(ranks, device=new.device)[(scales == scales).sum(0, keepdim=True)]
    row = order.gather(0, place)
    return history, history.gather(0, row[:, None].expand(1, *new.shape))[0]
