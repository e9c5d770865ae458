"""Sums of codes that share a scale, so that no addition rounds: ``sum of (code - z)``, times ``s``."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..core.descriptions import QParams, Quantizer
from ..core.granularity import Granularity, PerAxis, PerTensor, PerToken
from ..core.integer_range import IntegerRange, integer_range
from . import kernels
from .arguments import check_operands
from .arrays import narrow, product

Array = jax.Array


class Coded(NamedTuple):
    """Integers and their scale, which broadcasts against them.

    Attributes:
        codes: without their zero point, in the dtype of the scale.
        range: which integers these may be.
    """

    codes: Array
    scale: Array
    range: IntegerRange

    def values(self, dtype: np.dtype) -> Array:
        """``code * s``, rounded once, and once to ``dtype``; +0.0 for zero codes."""
        scale = jnp.broadcast_to(self.scale, self.codes.shape)
        return narrow(product(self.codes, scale), dtype)


def coded_range(q: Quantizer | None) -> IntegerRange | None:
    """Which integers ``code - z`` may be; None where values are no such integers times a scale.

    None also where a width is learned; scales are per tensor, axis or token, which broadcast against the codes.
    """
    if q is None or q.relaxed or q.scale.signed or not q.usual or q.learned_bits is not None:
        return None
    plain: tuple[type[Granularity], ...] = (PerTensor, PerAxis, PerToken)
    integers = integer_range(q.format)
    if integers is None or q.arithmetic.has_float_zeros or not isinstance(q.granularity, plain):
        return None
    return integers.centred() if q.affine else integers


def coded(q: Quantizer, x: Array, qparams: QParams) -> Coded:
    """The codes of ``x`` by a quantizer that has a `coded_range`.

    Raises:
        TypeError, ValueError: as `fake_quantize`.
    """
    integers = coded_range(q)
    if integers is None:
        raise ValueError(f"`q` must have integer codes and one scale for each tensor, axis or token, got {q}")
    x, scale, zero, seed = check_operands(q, x, qparams)
    noise = kernels.noise_of(q, seed, x.shape)

    def compute(subnormals: bool) -> Array:
        codes = kernels.codes(q, x, scale, zero, noise, subnormals=subnormals)
        return kernels.centred(q, codes, scale, zero)

    return Coded(kernels.by_scale(q, scale, compute, x, zero).astype(scale.dtype), scale, integers)
