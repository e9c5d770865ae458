"""Fake quantization as everybody writes it in torch: clamp(round(x / s), -128, 127) * s, eager and compiled."""

from functools import cache
from typing import Any

from numpy.typing import NDArray

from ....core.catalog import catalog
from ....core.descriptions import QParams
from ...modes.arrays import to_numpy, to_torch
from ..targets import Target

Array = NDArray[Any]
Q = catalog["int8_per_tensor"]


def targets() -> dict[str, Target]:
    """The textbook formula in torch, by name."""
    eager = Target("textbook.torch_eager", _eager, Q, gradient=_gradient)
    return {eager.name: eager, "textbook.torch_compiled": Target("textbook.torch_compiled", _compiled, Q)}


def formula(x: Any, s: Any) -> Any:
    """``clamp(round(x / s), -128, 127) * s``."""
    import torch

    return torch.clamp(torch.round(x / s), -128, 127) * s


def _eager(x: Array, qparams: QParams) -> Array:
    return to_numpy(formula(to_torch(x), to_torch(qparams.scale)))


def _gradient(x: Array, qparams: QParams, g: Array) -> Array:
    leaf = to_torch(x).requires_grad_()
    formula(leaf, to_torch(qparams.scale)).backward(to_torch(g))
    return to_numpy(leaf.grad)


def _compiled(x: Array, qparams: QParams) -> Array:
    return to_numpy(_program()(to_torch(x), to_torch(qparams.scale)))


@cache
def _program() -> Any:
    import torch

    return torch.compile(formula, dynamic=True)
