"""Factors between two layers, folded into the weights of both; see `samebits.core.folding`."""

from torch import Tensor

from ...core.layerwise import check_factors
from ..arrays import wide_dtype


def divide_rows(p: Tensor, factors: Tensor) -> Tensor:
    """A weight or bias whose first axis is what the layer gives, each row divided by its factor.

    Args:
        p: any floating-point dtype, ``(n, ...)``; divided in float64 for float64, else in float32, and rounded once
            more to 16 bits.
        factors: float32, ``(n,)``, positive and finite.
    Returns:
        Shape and dtype of ``p``.
    Raises:
        ValueError: factors that do not fit, or are not positive and finite.
    """
    check_factors(tuple(factors.shape), tuple(p.shape[:1]), _positive(factors))
    return (p.detach().to(wide_dtype(p.dtype)) / factors.view(-1, *(1 for _ in p.shape[1:]))).to(p.dtype)


def multiply_columns(w: Tensor, factors: Tensor) -> Tensor:
    """A weight whose second axis is what the layer takes, each column times its factor; else as `divide_rows`."""
    check_factors(tuple(factors.shape), tuple(w.shape[1:2]), _positive(factors))
    return (w.detach().to(wide_dtype(w.dtype)) * factors.view(-1, *(1 for _ in w.shape[2:]))).to(w.dtype)


def _positive(factors: Tensor) -> bool:
    return bool(((factors > 0) & factors.isfinite()).all())
