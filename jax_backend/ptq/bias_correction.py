"""Bias correction: what quantized weights move the mean of the outputs by; see `samebits.core.bias_correction`.

In float64, which is on inside these functions alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ...core import checks
from ...core.layerwise import check_mean, check_rows
from ..arrays import as_array, with_float64

Array = jax.Array
Wide = Array | NDArray[Any]  # float64: JAX makes none where `jax_enable_x64` is not set


def mean_update(mean: Wide, n: int, x: Array) -> tuple[Array, int]:
    """The mean of the n rows so far, and of those of ``x`` too.

    Args:
        mean: float64 of JAX or NumPy, ``(in,)``; zeros to begin with. ``n``: rows so far.
        x: ``(rows, in)``, any floating-point dtype.
    Returns:
        The new mean and the new n.
    Raises:
        TypeError: ``x`` is no floating-point array. ValueError: another shape, or a negative ``n``.
    """
    with with_float64(np.float64):
        x = as_array("x", x)
        checks.check_float("x", x.dtype.name)
        check_rows(x.shape, len(mean), n)
        total = n + len(x)
        if not len(x):
            return jnp.asarray(mean, np.float64), n
        kept: Array = jnp.asarray(mean, np.float64) * np.float64(n / total)
        return kept + jnp.sum(x.astype(np.float64), 0) / np.float64(total), total


def corrected_bias(bias: Array, w: Array, w_hat: Array, mean: Wide) -> Array:
    """The bias with which outputs have the mean that they had.

    Args:
        bias: ``(out,)``, zeros where the layer has none. ``w``, ``w_hat``: ``(out, in)``.
        mean: float64, ``(in,)``, as `mean_update` gives it.
    Returns:
        Shape and dtype of ``bias``.
    Raises:
        ValueError: a mean that is not finite, or shapes that do not fit.
    """
    with with_float64(np.float64):
        mean = jnp.asarray(mean, np.float64)
        check_mean(bias.shape, w.shape, w_hat.shape, mean.shape, bool(jnp.isfinite(mean).all()))
        off = w_hat.astype(np.float64) - w.astype(np.float64)
        return (bias.astype(np.float64) - off @ mean).astype(bias.dtype)
