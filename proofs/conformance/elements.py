"""Elements that were asked, and where two answers to them differ."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..inputs.bits import is_float, raw_bits

Array = NDArray[Any]


@dataclass(frozen=True)
class Asked:
    """Single elements that were asked, all 1-d: inputs, the parameters of each, and incoming gradients."""

    x: Array
    scale: Array
    zero: Array | None
    g: Array

    def at(self, which: Array | slice) -> "Asked":
        """Some of them."""
        zero = None if self.zero is None else self.zero[which]
        return Asked(self.x[which], self.scale[which], zero, self.g[which])


def unlike(expected: Array, got: Array) -> Array:
    """Where two arrays of one shape differ: codes as numbers, floats bit for bit, any NaN equal to any NaN."""
    if not is_float(expected.dtype):
        return np.asarray(np.asarray(expected).astype(np.int64) != np.asarray(got).astype(np.int64))
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.asarray((raw_bits(expected) != raw_bits(got)) & ~(np.isnan(expected) & np.isnan(got)))


def subnormal(x: Array) -> Array:
    """Where numbers are smaller than the smallest normal number of their dtype, zeros among them."""
    least = float(ml_dtypes.finfo(x.dtype).smallest_normal)  # type: ignore[no-untyped-call]
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.asarray(np.abs(x.astype(np.float64)) < least)


def apart(expected: Array, got: Array) -> Array:
    """As `unlike`, with both zeros the same: signs of zero are a rule of their own."""
    zeros = (expected == 0) & (got == 0) if is_float(expected.dtype) else np.zeros(got.shape, np.bool_)
    return np.asarray(unlike(expected, got) & ~zeros)
