"""Convolutions of values by torch's own operators, in the terms of `core.windows`."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.windows import Window


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
