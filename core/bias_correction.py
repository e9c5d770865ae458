"""Bias correction: what quantized weights move the mean of the outputs by is taken off the bias.

    bias - (E[w_hat x] - E[w x]) = bias - (w_hat - w) E[x]

In float64, rounded once. Source: Nagel et al., arXiv 1906.04721, section 4.2.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .arguments import as_array
from .layerwise import check_mean, check_rows

Array = NDArray[Any]


def mean_update(mean: Array, n: int, x: Array) -> tuple[Array, int]:
    """The mean of the n rows so far, and of those of ``x`` too.

    Args:
        mean: float64, ``(in,)``; zeros to begin with. ``n``: rows so far.
        x: ``(rows, in)``, any floating-point dtype.
    Returns:
        The new mean and the new n.
    Raises:
        TypeError: ``x`` is no floating-point array. ValueError: another shape, or a negative ``n``.
    """
    x = as_array("x", x)
    checks.check_float("x", x.dtype.name)
    check_rows(x.shape, len(mean), n)
    total = n + len(x)
    if not len(x):
        return mean, n
    return mean * (n / total) + x.astype(np.float64).sum(0) / total, total


def corrected_bias(bias: Array, w: Array, w_hat: Array, mean: Array) -> Array:
    """The bias with which outputs have the mean that they had.

    Args:
        bias: ``(out,)``, zeros where the layer has none. ``w``, ``w_hat``: ``(out, in)``.
        mean: float64, ``(in,)``, as `mean_update` gives it.
    Returns:
        Shape and dtype of ``bias``.
    Raises:
        ValueError: a mean that is not finite, or shapes that do not fit.
    """
    check_mean(bias.shape, w.shape, w_hat.shape, mean.shape, bool(np.isfinite(mean).all()))
    moved = (w_hat.astype(np.float64) - w.astype(np.float64)) @ mean
    return (bias.astype(np.float64) - moved).astype(bias.dtype)
