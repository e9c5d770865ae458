"""Bias correction: what quantized weights move the mean of the outputs by; see `samebits.core.bias_correction`."""

import torch
from torch import Tensor

from ...core import checks
from ...core.layerwise import check_mean, check_rows
from ..arguments import check_tensor
from ..arrays import dtype_name


def mean_update(mean: Tensor, n: int, x: Tensor) -> tuple[Tensor, int]:
    """The mean of the n rows so far, and of those of ``x`` too.

    Args:
        mean: float64, ``(in,)``; zeros to begin with. ``n``: rows so far.
        x: ``(rows, in)``, any floating-point dtype.
    Returns:
        The new mean and the new n.
    Raises:
        TypeError: ``x`` is no floating-point tensor. ValueError: another shape, or a negative ``n``.
    """
    check_tensor("x", x)
    checks.check_float("x", dtype_name(x.dtype))
    check_rows(tuple(x.shape), len(mean), n)
    total = n + len(x)
    if not len(x):
        return mean, n
    return mean * (n / total) + x.detach().sum(0, dtype=torch.float64) / total, total


def corrected_bias(bias: Tensor, w: Tensor, w_hat: Tensor, mean: Tensor) -> Tensor:
    """The bias with which outputs have the mean that they had.

    Args:
        bias: ``(out,)``, zeros where the layer has none. ``w``, ``w_hat``: ``(out, in)``.
        mean: float64, ``(in,)``, as `mean_update` gives it.
    Returns:
        Shape and dtype of ``bias``.
    Raises:
        ValueError: a mean that is not finite, or shapes that do not fit.
    """
    finite = bool(mean.isfinite().all())
    check_mean(tuple(bias.shape), tuple(w.shape), tuple(w_hat.shape), tuple(mean.shape), finite)
    off = w_hat.detach().double() - w.detach().double()
    return torch.addmv(bias.detach().double(), off, mean, alpha=-1).to(bias.dtype)
