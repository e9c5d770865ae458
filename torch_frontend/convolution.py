"""Contractions by torch's own operators: what a layer is, and convolutions in the terms of `core.windows`."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.contraction import contracts_codes, contracts_matrices
from ..core.descriptions import Quantizer
from ..core.windows import Window
from . import exact
from .arrays import without_autocast


@dataclass(frozen=True)
class Layer:
    """What a layer is apart from its tensors: a convolution has a ``window``; else of a batch of ``matrices``."""

    q_x: Quantizer
    q_w: Quantizer
    window: Window | None = None
    matrices: bool = False

    @property
    def linear(self) -> bool:
        """Whether it is neither a convolution nor a batch of matrices."""
        return self.window is None and not self.matrices

    @property
    def codes(self) -> bool:
        """Whether it contracts codes."""
        if self.matrices:
            return contracts_matrices(self.q_x, self.q_w)
        axis = 1 if self.window is not None and self.window.transposed else 0
        return contracts_codes(self.q_x, self.q_w, per_token=self.window is None, axis=axis)

    def contract(self, a: Tensor, b: Tensor) -> Tensor:
        """Sums of products of values, by torch's operator."""
        with without_autocast(a):
            if self.matrices:
                return a @ b.transpose(-2, -1)
            return F.linear(a, b) if self.window is None else convolve(self.window, a, b)

    def exactly(self, a: Tensor, b: Tensor) -> Tensor:
        """`contract` of codes."""
        if self.matrices:
            return exact.contraction(self.q_x, a, self.q_w, b, self.contract, along=-1, axis=-1)
        if self.window is None:
            return exact.contraction(self.q_x, a, self.q_w, b, self.contract)
        groups, along = self.window.groups, 0 if self.window.transposed else 1
        return exact.contraction(self.q_x, a, self.q_w, b, self.contract, groups, along)

    def outputs(self, values: Tensor) -> Tensor:
        """One value per output channel (or one in all), as it broadcasts against the outputs; linear ones as rows."""
        if values.ndim == 0:
            return values
        return values.reshape(1, -1) if self.window is None else values.reshape(1, -1, *(1 for _ in self.window.stride))

    def added(self, bias: Tensor) -> Tensor:
        """One value per output channel, as it is added to outputs, also to those of a single row."""
        return bias if self.window is None else bias.reshape(-1, *(1 for _ in self.window.stride))

    def scales(self, w_scale: Tensor) -> Tensor:
        """`outputs` of the scales of a weight: a transposed convolution has the same in every group."""
        if self.window is not None and self.window.transposed and w_scale.ndim:
            w_scale = w_scale.reshape(-1).repeat(self.window.groups)
        return self.outputs(w_scale)


def convolve(window: Window, a: Tensor, b: Tensor) -> Tensor:
    """The convolution of ``a`` with the kernels ``b``, without a bias."""
    return torch.convolution(_padded(window, a), b, None, *_geometry(window))


def convolution_gradients(
    window: Window, g: Tensor, a: Tensor, b: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `convolve` towards ``a`` and ``b``, None for what is not wanted."""
    padded = _padded(window, a)
    da, db, _ = torch.ops.aten.convolution_backward(g, padded, b, None, *_geometry(window), (*wanted, False))
    if da is not None:
        for axis, (before, after) in enumerate(window.margins, 2):
            da = da if before == after else da.narrow(axis, max(before - after, 0), a.shape[axis])
    return da, db


def spoiled(window: Window, b: Tensor) -> Tensor:
    """Which outputs have NaN in their kernels: of products with margins torch leaves out some, and 0 * NaN is NaN."""
    nan = b.isnan()
    if window.transposed:
        nan = nan.reshape(window.groups, len(b) // window.groups, *b.shape[1:]).transpose(1, 2).flatten(0, 1)
    return nan.flatten(1).any(1)


def _geometry(
    window: Window,
) -> tuple[tuple[int, ...], list[int], tuple[int, ...], bool, tuple[int, ...], int]:
    """The arguments of torch's operators; margins as far as they are the same on both sides."""
    sides = [min(before, after) for before, after in window.margins]
    extra = window.extra if window.transposed else (0,) * len(sides)
    return window.stride, sides, window.dilation, window.transposed, extra, window.groups


def _padded(window: Window, a: Tensor) -> Tensor:
    """``a`` with the rest of the margins around it."""
    rest = [(before - min(before, after), after - min(before, after)) for before, after in window.margins]
    if not any(max(pair) for pair in rest):
        return a
    return F.pad(a, [n for pair in reversed(rest) for n in pair])
