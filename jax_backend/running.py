"""Running statistics: the average of what one tensor after the other gives. By `ieee`, so that nothing is flushed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ..core.descriptions import Quantizer
from .arrays import add
from .ieee import divide_exactly, multiply_exactly

Array = jax.Array


@partial(jax.jit, static_argnums=0)
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
