"""Weights that are quantized once for many contractions.

A `PackedWeight` takes the place of a weight in `matmul` where no gradients are wanted. It holds what the contraction
needs, which depends on the weight and its parameters alone: codes as int8, with their sums, for linear layers; centred
codes in the wide dtype for convolutions, and where int8 does not fit; dequantized values where floats are contracted.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..core.contraction import contracts_codes
from ..core.descriptions import QParams, Quantizer
from . import exact, routes
from .arrays import is_concrete


class PackedWeight(nn.Module):
    """A weight, quantized, for inputs quantized by ``q_x``. A constant to autograd.

    Nothing of it is in a ``state_dict``. A copy of it, or what is unpickled, is None: it belongs to this weight.

    Args:
        q_x: None for inputs that are not quantized, or where values are wanted.
        q_w: quantizer of the weight.
        weight: ``(out, in, ...)``, of a linear layer where it has two axes; an ordinary tensor.
        qparams: of the weight, checked.
    """

    scale: Tensor
    zero_point: Tensor | None
    codes: Tensor | None
    shift: Tensor | None
    sums: Tensor | None
    integers: Tensor | None
    values: Tensor | None

    @torch.no_grad()
    def __init__(self, q_x: Quantizer | None, q_w: Quantizer, weight: Tensor, qparams: QParams) -> None:
        super().__init__()
        self.q_x, self.of = q_x, (weight,)  # in a tuple, where torch.nn sees no parameter
        self.shape, self.ndim, self.dtype = weight.shape, weight.ndim, weight.dtype
        self.largest_sum = 0  # of the magnitudes of terms, for inputs of 1
        seed = routes.seed_of(q_w, weight, qparams)
        scale, zero = qparams.scale, routes.wide(qparams.zero_point, qparams.scale)
        held: dict[str, Tensor | None] = {"scale": scale.detach().clone(), "zero_point": zero}
        if q_x is None or not contracts_codes(q_x, q_w, per_token=weight.ndim == 2):
            held["values"] = routes.forward(q_w, weight, scale, zero, seed, qparams.bit_width)
        else:
            numbers = routes.codes(q_w, weight, scale, zero, seed)
            if weight.is_cpu and exact.fits_int8(q_x, q_w, weight) and not numbers.isnan().any():
                held["codes"], held["shift"] = exact.narrow(q_w, numbers), exact.shift(q_w, scale, zero)
                held["sums"] = held["codes"].sum(1, dtype=torch.int32)
            else:
                integers = numbers if zero is None else numbers - zero
                held["integers"] = integers
                sums = integers.abs().flatten(1).sum(1, dtype=torch.float64)  # NaN among them counts as no term
                self.largest_sum = int(sums.nan_to_num(nan=0.0).max()) if weight.numel() else 0
        for name in ("scale", "zero_point", "codes", "shift", "sums", "integers", "values"):
            self.register_buffer(name, held.get(name), persistent=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    @property
    def qparams(self) -> QParams:
        """Scale and zero point that it was quantized with."""
        return QParams(self.scale, self.zero_point)

    def centred(self, dtype: torch.dtype) -> Tensor:
        """``code - z``, NaN where the weight is NaN."""
        if self.integers is None and self.codes is not None:
            return (self.codes if self.shift is None else self.codes + self.shift).to(dtype)
        return self.integers

    def int8_product(self, q_x: Quantizer, x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor] | None:
        """As `exact.int8_product`, and the scale of ``x`` with NaN for rows that hold NaN; None where it does not fit.

        Args:
            x: ``(rows, in)``, ``qparams``: 0-d, or columns.
        """
        if self.codes is None or not x.numel():
            return None
        scale = qparams.scale
        if not is_concrete(x, scale):
            largest = x.amax(1, keepdim=True).to(scale.dtype)
            scale = torch.where(largest != largest, largest, scale)
        elif x.amax().isnan():
            return None
        a, a_shift = exact.shifted(q_x, x, qparams)
        return exact.int8_sum(a, a_shift, self.codes, self.shift, self.sums), scale
