"""Running statistics: the average, or a percentile, of what one tensor after the other gives.

Averages by `ieee`, so that nothing is flushed; percentiles by sorting bit patterns.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.descriptions import Quantizer
from .arrays import add, ordered
from .ieee import divide_exactly, multiply_exactly
from .sharding import laid_out_by, like_first, spec_of

Array = jax.Array


@partial(jax.jit, static_argnums=0)
@laid_out_by(like_first)
def running_average(q: Quantizer, old: Array, new: Array, seen: Array | None) -> Array:
    """``momentum * old + (1 - momentum) * new``, the factors rounded to float32, then each operation.

    Without momentum the mean: ``(n / (n + 1)) * old + new / (n + 1)``, each operation rounded, with n for ``seen``.
    Where ``old`` is NaN, nothing was seen yet, and ``new`` is copied; where ``new`` is NaN, ``old`` stays.

    Args:
        old: scales or zero points so far, float32; ``new``: of the tensor at hand, the same shape and dtype.
        seen: number of tensors in ``old``, 0-d, below 2**24; only the mean looks at it.

    Source: momentum as Brevitas `inplace_momentum_update` (whose momentum is the weight of the new value).
    """
    if q.scale.momentum is not None:
        kept, share = (jnp.full_like(old, np.float32(w)) for w in (q.scale.momentum, 1 - q.scale.momentum))
        parts = multiply_exactly(old, kept), multiply_exactly(new, share)
    elif seen is None:
        raise TypeError("`seen` must be an array for a mean, got None")
    else:
        number = jnp.broadcast_to(seen.astype(old.dtype), old.shape)
        count = number + 1
        parts = multiply_exactly(old, divide_exactly(number, count)), divide_exactly(new, count)
    return jnp.where(jnp.isnan(new), old, jnp.where(jnp.isnan(old), new, add(*parts)))


@partial(jax.jit, static_argnums=0)
@laid_out_by(lambda q, history, new: (spec_of(history), spec_of(new)))
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
    window = history.shape[0]
    history = jnp.where(jnp.isnan(new[0]), history, jnp.concatenate([history[1:], new[None]]))
    seen = ~jnp.isnan(history[:, 0])
    keys = jnp.where(seen, ordered(history[:, 0]), np.iinfo(np.int32).max)
    columns = lax.sort((keys, *jnp.unstack(history, axis=1)), dimension=0, is_stable=True, num_keys=1)[1:]
    count = jnp.sum(seen, axis=0, dtype=np.int32)
    ranks = np.asarray([math.floor(0.01 * q.scale.window_percentile * n + 0.5) for n in range(window + 1)], np.int32)
    place = jnp.maximum(jnp.asarray(ranks)[count], 1) - 1
    return history, jnp.stack([jnp.take_along_axis(c, place[None], axis=0)[0] for c in columns])
