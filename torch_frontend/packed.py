"""Weights that are quantized once for many contractions.

A `PackedWeight` takes the place of a weight in `matmul` where no gradients are wanted. It holds what the contraction
needs, which depends on the weight and its parameters alone: codes as int8, with their sums, for linear layers; centred
codes in the wide dtype for convolutions, and where int8 does not fit; dequantized values where floats are contracted.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.contraction import contracts_codes
from ..core.descriptions import QParams, Quantizer
from ..core.scales import ScaleSource
from ..core.windows import Window
from . import int8, routes
from .arrays import is_concrete, narrowed
from .convolution import convolve

FEWEST = 16  # channels for which columns of int8 are worth their while


def follows_tensor(q: Quantizer) -> bool:
    """Whether the scale is a statistic of the tensor at hand: where that holds NaN, the scale is NaN, or refused."""
    return q.scale.source is ScaleSource.STATISTIC and q.scale.scale_value is None


class PackedWeight:
    """A weight, quantized, for inputs quantized by ``q_x``. A constant to autograd.

    A copy of it, or what is unpickled, is None: it belongs to this weight.

    Args:
        q_x: None for inputs that are not quantized, or where values are wanted.
        q_w: quantizer of the weight.
        weight: ``(out, in, ...)``, of a linear layer where it has two axes; an ordinary tensor.
        qparams: of the weight, checked.
    """

    @torch.no_grad()
    def __init__(self, q_x: Quantizer | None, q_w: Quantizer, weight: Tensor, qparams: QParams) -> None:
        self.q_x, self.q_w, self.weight = q_x, q_w, weight
        self.shape, self.ndim, self.dtype = weight.shape, weight.ndim, weight.dtype
        self.scale = scale = qparams.scale.detach().clone()
        self.row, self.least = scale.reshape(1, -1) if scale.ndim else scale, torch.finfo(scale.dtype).smallest_normal
        self.zero_point = routes.wide(qparams.zero_point, scale)
        self.given = qparams
        self.codes: Tensor | None = None
        self.shift: Tensor | None = None
        self.sums: Tensor | None = None
        self.integers: Tensor | None = None
        self.values: Tensor | None = None
        self.largest_sums: tuple[int, int] | None = None  # of the magnitudes of `centred` along all axes but 0, or 1
        self.has_nan = bool(weight.isnan().any())
        self.watched = q_x is None or not follows_tensor(q_x)  # whether NaN in x is not in its scale as well
        if q_x is None or not any(contracts_codes(q_x, q_w, per_token=weight.ndim == 2, axis=a) for a in (0, 1)):
            self.dequantized()
        elif self.has_nan or not (weight.is_cpu and int8.fits_int8(q_x, q_w, weight)):
            self.centred()
        else:
            numbers = self._numbers()
            rows = int8.narrow(q_w, numbers).movedim(1, -1).reshape(weight.shape[0], -1)  # channels innermost
            self.codes, self.shift = rows.contiguous(), int8.shift(q_w, self.qparams)
            self.sums = self.codes.sum(1, dtype=torch.int32)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    @property
    def qparams(self) -> QParams:
        """Scale and zero point that it was quantized with."""
        return QParams(self.scale, self.zero_point)

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """`fake_quantize` of the weight."""
        if self.values is not None:
            return self.values
        q, x, (scale, zero, width, *_) = self.q_w, self.weight, self.given
        values = routes.forward(q, x, scale, zero, routes.seed_of(q, x, self.given), width)
        if is_concrete(values):
            self.values = values
        return values

    @torch.no_grad()
    def centred(self) -> Tensor:
        """``code - z`` in the dtype of the scale, NaN where the weight is NaN."""
        if self.integers is not None:
            return self.integers
        numbers = self._numbers()
        integers = numbers if self.zero_point is None else numbers - self.zero_point
        if is_concrete(integers):
            self.integers = integers
            if integers.numel():
                sizes = integers.abs().double()  # of NaN no sum is asked for: outputs are NaN
                self.largest_sums = (_largest(sizes), _largest(sizes.transpose(0, 1)))
        return integers

    def _numbers(self) -> Tensor:
        q, x, (scale, zero, *_) = self.q_w, self.weight, self.given
        return routes.codes(q, x, scale, zero, routes.seed_of(q, x, self.given))

    def linear(self, x: Tensor, qparams: QParams, bias: Tensor | None) -> Tensor | None:
        """`matmul.linear` over codes as int8. None where they do not fit: NaN is seen in ``x``, another dtype or shape.

        Args:
            x: ``(..., in)``; ``qparams``: of one scale, or per token; ``bias``: None or ``(out,)``.
        """
        if self.codes is None or self.q_x is None or not x.numel() or not self.q_x.deterministic:
            return None
        if x.dtype != self.dtype or x.ndim == 0 or x.shape[-1] != self.shape[1]:
            return None
        scale, zero = qparams.scale, qparams.zero_point
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        if scale.ndim:
            scale, zero = scale.reshape(-1, 1), None if zero is None else zero.reshape(-1, 1)
        qparams, concrete = QParams(scale, zero), is_concrete(x, scale)
        a = int8.shifted(self.q_x, rows, qparams, watched=self.watched, concrete=concrete)
        if a is None:
            return None
        total = int8.int8_sum(a, int8.shift(self.q_x, qparams), self.codes, self.shift, self.sums)
        if not concrete and self.watched:  # where NaN was not seen: it goes to the outputs of its row by the scale
            largest = rows.amax(1, keepdim=True).to(scale.dtype)
            scale = torch.where(largest != largest, largest, scale)
        y = self._scaled(total, scale, bias, x.dtype, concrete=concrete)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], self.shape[0])

    def conv(self, x: Tensor, qparams: QParams, bias: Tensor | None, window: Window) -> Tensor | None:
        """`matmul.conv` over codes as int8, the result channels-last. None as in `linear`, or where it gains nothing.

        Args:
            x: ``(batch, in, *lengths)``; ``qparams``: of one scale; ``bias``: None or ``(out,)``.
        """
        if self.codes is None or self.q_x is None or not x.numel() or not self.q_x.deterministic:
            return None
        if not gains(tuple(self.shape), window.groups, window.dilation):
            return None
        if x.dtype != self.dtype or x.ndim != self.ndim or x.shape[1] != self.shape[1] or qparams.scale.ndim:
            return None
        scale, kernel, concrete = qparams.scale, tuple(self.shape[2:]), is_concrete(x, qparams.scale)
        if not concrete and not _are_numbers(x.shape[2:]):
            return None  # inductor fails at rows of so many variables
        lengths = window.lengths(tuple(x.shape), tuple(self.shape))
        a = int8.shifted(self.q_x, x, qparams, watched=self.watched, concrete=concrete)
        if a is None or min(lengths) < 1:
            return None
        shift = int8.shift(self.q_x, qparams)
        margin = int8.half_of(self.q_x) if shift is None or qparams.zero_point is None else shift
        rows = int8.columns(a, window, kernel, margin)
        total = int8.int8_sum(rows, shift, self.codes, self.shift, self.sums)
        if not concrete and self.watched:
            nan = (x != x).any(1, keepdim=True).to(scale.dtype)
            met = convolve(window, nan, nan.new_ones((1, 1, *kernel)))
            scale = torch.where(met > 0, torch.nan, scale).movedim(1, -1).reshape(-1, 1)
        y = self._scaled(total, scale, bias, x.dtype, concrete=concrete)
        return y.reshape(x.shape[0], *lengths, self.shape[0]).movedim(-1, 1)

    def _scaled(
        self, total: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype, *, concrete: bool
    ) -> Tensor:
        """``fl(fl(fl(total) * scale * s_w) + bias)`` of ``(rows, out)``; see `matmul`."""
        scale = scale * self.row
        y = total.to(scale.dtype)
        if concrete:
            y.mul_(scale.clamp_(min=self.least))
            y = y if bias is None else y.add_(bias.to(y.dtype))
        else:
            y = y * scale.clamp(min=self.least)
            y = y if bias is None else y + bias.to(y.dtype)
        return narrowed(y, dtype)


def gains(kernel: tuple[int, ...], groups: int, dilation: tuple[int, ...]) -> bool:
    """Whether a convolution is possible over int8, and copying its columns costs less than that saves."""
    return groups == 1 and set(dilation) == {1} and kernel[1] >= FEWEST


def _are_numbers(lengths: Sequence[int]) -> bool:
    """Whether traced code knows these, and does not keep them as variables."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy

    return all(statically_known_true(n < 2**31) for n in lengths)


def _largest(sizes: Tensor) -> int:
    """The largest sum over all axes but the first."""
    return int(sizes.flatten(1).sum(1).nan_to_num(nan=0.0).max())


def unpacked(w: Tensor | PackedWeight) -> Tensor:
    """The weight itself."""
    return w.weight if isinstance(w, PackedWeight) else w
