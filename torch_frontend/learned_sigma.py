"""Scales by mean and standard deviation with a sigma that is a number of a program, and its gradient.

Formulas and sources stand in `samebits.core.learned_sigma`. The slopes are computed beside the scale, where autograd
wants them.
"""

from typing import Any

import torch
from torch import Tensor

from ..core import checks
from ..core.descriptions import Quantizer
from ..core.granularity import PerTensor
from . import devices
from .arguments import check_array, check_tensor
from .arrays import apply, apply_plainly, dtype_name, is_concrete, records_gradient, widened
from .ranges import mean_and_deviation
from .scaling import restrict_scale, scale_slope, symmetric_scale
from .ste import block_sum
from .sums import of_units

LARGEST = 2.0**20  # sigma


def scale_at_sigma(q: Quantizer, x: Tensor, sigma: Tensor) -> Tensor:
    """The scale of `choose_qparams` for the statistic MEAN_SIGMA with this sigma: that of ``m = mean + sigma * std``.

    Differentiable in sigma (`sigma_gradient`); a constant to autograd in ``x``. Specials as in core.

    Args:
        x: any floating-point dtype; ``sigma``: 0-d, float32 or the dtype of the scale.
    Raises:
        TypeError: wrong dtypes. ValueError: an affine quantizer, another statistic, a sigma that is not 0-d, another
            arithmetic than the default; in eager mode NaN or an infinity in ``x``.
    """
    magnitude, deviation = _magnitude(q, x, sigma)
    scale = restrict_scale(q, symmetric_scale(q, -magnitude, magnitude))
    if is_concrete(x, sigma):
        if not records_gradient(sigma):
            return scale
        return apply_plainly(_OfSigma, sigma, scale, scale_slope(q, magnitude, deviation))
    return apply(_OfSigma, sigma, scale, scale_slope(q, magnitude, deviation))


def sigma_gradient(q: Quantizer, x: Tensor, sigma: Tensor, d_scale: Tensor) -> Tensor:
    """Gradient of sigma: the sum over all blocks of ``fl(d_scale * slope)``; 0-d, dtype of the scale.

    Summed in float64 (error at most ``n * 2**-53 * sum(|terms|)`` over the n blocks), rounded once.

    Args:
        d_scale: gradient of the scale, of its shape and dtype; the others as `scale_at_sigma`.
    Raises:
        TypeError, ValueError: as `scale_at_sigma`, and another shape or dtype of ``d_scale``.
    """
    slope = scale_slope(q, *_magnitude(q, x, sigma))
    check_tensor("d_scale", d_scale)
    checks.check_d_scale(q, tuple(x.shape), dtype_name(x.dtype), tuple(d_scale.shape), dtype_name(d_scale.dtype))
    return _summed(d_scale.detach(), slope)


def _magnitude(q: Quantizer, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """``m`` and the std of ``|x|``, in the wide dtype; constants to autograd."""
    check_array(q, x)
    check_tensor("sigma", sigma)
    checks.check_sigma(q, dtype_name(x.dtype), tuple(sigma.shape), dtype_name(sigma.dtype))
    mean, deviation, unit = mean_and_deviation(q, widened(x.detach()))
    if is_concrete(x):
        checks.check_finite_statistic(bool(mean.isfinite().all()))
    used = sigma.detach().to(mean.dtype).clamp(0, LARGEST)
    return of_units(mean + devices.product(deviation, used.expand_as(deviation)), unit), of_units(deviation, unit)


def _summed(d_scale: Tensor, slope: Tensor) -> Tensor:
    return block_sum(torch.where(slope == 0, 0.0, d_scale * slope), PerTensor())


class _OfSigma(torch.autograd.Function):
    """The scale, with its slopes as derivatives by sigma."""

    generate_vmap_rule = True

    @staticmethod
    def forward(sigma: Tensor, scale: Tensor, slope: Tensor) -> Tensor:
        return scale.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        sigma, _, slope = inputs
        ctx.dtype = sigma.dtype
        ctx.save_for_backward(slope)
        ctx.save_for_forward(slope)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return _summed(g, slope).to(ctx.dtype), None, None

    @staticmethod
    def tangent(ctx: Any, t: Tensor, *_: None) -> Tensor:
        (slope,) = ctx.saved_tensors
        return torch.where(slope == 0, 0.0, t.to(slope.dtype) * slope)
