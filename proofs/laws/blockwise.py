"""What the laws need of blocks and of numbers: by element, in float64, and without the verbs that the laws judge."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.blocks import split_blocks
from ...core.descriptions import QParams, Quantizer
from ...core.formats import TernaryFormat
from ...core.granularity import Granularity, Shape

Array = NDArray[Any]


def owners(granularity: Granularity, shape: Shape) -> Array:
    """Indices of the elements of each block, into the flattened array: one row per block, in row-major order."""
    index = split_blocks(np.arange(math.prod(shape)).reshape(shape), granularity)
    return index.reshape(math.prod(index.shape[:-1]), index.shape[-1])


def per_element(q: Quantizer, qparams: QParams, shape: Shape) -> tuple[Array, Array]:
    """Scale and zero point (0 when symmetric) of every element, float64."""
    scale = np.empty(math.prod(shape), np.float64)
    zero = np.zeros_like(scale)
    rows = owners(q.granularity, shape)
    scale[rows] = np.asarray(qparams.scale, np.float64).reshape(-1, 1)
    if qparams.zero_point is not None:
        zero[rows] = np.asarray(qparams.zero_point, np.float64).reshape(-1, 1)
    return scale.reshape(shape), zero.reshape(shape)


def quotient(q: Quantizer, x: Array, qparams: QParams) -> tuple[Array, Array]:
    """``x / s`` in float64, and how far the quotient that a quantizer rounds may lie from it.

    That is half a place in the dtype of the scale, below its normal numbers by their spacing, and our own rounding; and
    as much again where it is compared with a threshold, which is rounded too.
    """
    roundings = 2 if isinstance(q.format, TernaryFormat) else 1
    with np.errstate(all="ignore"):
        real = x.astype(np.float64) / per_element(q, qparams, x.shape)[0]
        limits = np.finfo(np.asarray(qparams.scale).dtype)
        return real, np.abs(real) * (roundings * float(limits.eps) / 2 + 2.0**-52) + float(limits.smallest_normal)


def rearranged(granularity: Granularity, x: Array, order: Array) -> Array:
    """``x`` with the elements of every block in another order (indices into a block)."""
    rows = owners(granularity, x.shape)
    out = np.empty_like(x).reshape(-1)
    out[rows] = x.reshape(-1)[rows[:, order]]
    return out.reshape(x.shape)
