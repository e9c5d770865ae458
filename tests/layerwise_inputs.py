"""Weights and inputs for methods that quantize layer by layer: columns of inputs are correlated, one is unused."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from samebits.core.gptq import hessian_update

Array = NDArray[Any]
UNUSED = 5


def layer(rows: int, columns: int, seed: int = 0, samples: int = 400) -> tuple[Array, Array]:
    """A weight ``(rows, columns)`` and inputs ``(samples, columns)``, float32."""
    draws = np.random.default_rng(seed)
    mixing = np.eye(columns) + 0.3 * draws.standard_normal((columns, columns))
    x = (draws.standard_normal((samples, columns)) @ mixing).astype(np.float32)
    x[:, UNUSED] = 0
    return draws.standard_normal((rows, columns)).astype(np.float32), x


def statistics(x: Array, pieces: int = 3) -> Array:
    """The matrix of inputs that come in pieces."""
    hessian, n = np.zeros((x.shape[1], x.shape[1])), 0
    for piece in np.array_split(x, pieces):
        hessian, n = hessian_update(hessian, n, piece)
    assert n == len(x)
    return hessian


def damped(hessian: Array, percdamp: float = 0.01) -> Array:
    """The matrix with a 1 where no input was, and with ``percdamp`` of the mean diagonal added."""
    diagonal = np.where(np.diag(hessian) == 0, 1, np.diag(hessian))
    return hessian - np.diag(np.diag(hessian)) + np.diag(diagonal + percdamp * diagonal.mean())
