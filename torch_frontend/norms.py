"""Layer norm and RMS norm over 8-bit codes, in integers of 64 bits: exact moments, an exact root, one division.

Over the last axis, of n features, with ``c`` the codes:

    layer norm    D_i = n * c_i - sum c             W = n * sum c**2 - (sum c)**2 + epsilon
    RMS norm      D_i = n * (c_i - x_zero)          W = n * sum (c - x_zero)**2 + epsilon

    R   = floor(sqrt(2**20 * W))                    0 becomes 1
    y_i = clamp(zero_point + round((2**10 * D_i * weight_i + R * bias_i) / (2**16 * R)))

``W / n**2`` is the variance (the mean square), and ``D / sqrt(W)`` the normalised number; R is exact, and ``round`` is
to nearest, ties to even, once, of the exact quotient. Weight and bias are numbers in steps of 2**-16 output codes
(`core.integer_tables.norm_weights`). A row of equal codes has D = 0 and gives the bias. At most 2**13 features: then
every number is below 2**63. How far it is from the exact norm: `core.norms`.

Here the root is a float64 one, put right by comparing squares of integers; and ``W`` of a layer norm is
``sum D**2 / n``, which is whole.
"""

import torch
from torch import Tensor

from ..core import integer_checks as checks
from ..core.formats import IntegerFormat
from .arguments import check_codes, check_tensor, ends
from .arrays import dtype_name
from .integer_arithmetic import INT8


def integer_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: int = 0, zero_point: int = 0, format: IntegerFormat = INT8
) -> Tensor:
    """Layer norm over the last axis; see the module. Scale and zero point of ``x`` do not matter.

    Args:
        x: codes ``(..., n)``, int8 or uint8, 1 to 2**13 features.
        weight, bias: int32 ``(n,)``, at most 2**28 in magnitude.
        epsilon: 0 to 2**40, what is added to W.
        zero_point, format: of the result, at most 8 bits.
    Returns:
        Codes of the shape of ``x``, in the storage dtype of ``format``.
    Raises:
        TypeError: other dtypes. ValueError: other shapes, more features, or numbers outside these ranges.
    """
    _check(x, weight, bias)
    n = x.shape[-1]
    centred = n * x.long() - x.sum(-1, keepdim=True, dtype=torch.int64)
    squares = (centred * centred).sum(-1, keepdim=True) // n
    return _affine(centred, squares, weight, bias, epsilon, zero_point, format)


def integer_rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: int = 0,
    x_zero: int = 0,
    zero_point: int = 0,
    format: IntegerFormat = INT8,
) -> Tensor:
    """RMS norm over the last axis; see the module. Arguments and errors as `integer_layer_norm`.

    Args:
        x_zero: zero point of ``x``.
    """
    _check(x, weight, bias)
    c = x.long() - checks.check_zero("x_zero", x_zero, dtype_name(x.dtype))
    squares = (c * c).sum(-1, keepdim=True) * x.shape[-1]
    return _affine(c * x.shape[-1], squares, weight, bias, epsilon, zero_point, format)


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Whether the tensors of a norm fit each other."""
    check_codes("x", x)
    for name, of in (("weight", weight), ("bias", bias)):
        check_tensor(name, of)
    checks.check_norm(
        tuple(x.shape),
        dtype_name(x.dtype),
        tuple(weight.shape),
        dtype_name(weight.dtype),
        tuple(bias.shape),
        dtype_name(bias.dtype),
    )
    for name, of in (("weight", weight), ("bias", bias)):
        checks.check_ends(name, ends(of), (-checks.LARGEST_NORM_WEIGHT, checks.LARGEST_NORM_WEIGHT))


def _affine(
    centred: Tensor, squares: Tensor, weight: Tensor, bias: Tensor, epsilon: int, zero_point: int, format: IntegerFormat
) -> Tensor:
    """What both norms do with ``D`` and ``W``."""
    checks.check_epsilon(epsilon)
    lo, hi = checks.check_format(format, zero_point)
    root = _root((squares + epsilon) << (2 * checks.ROOT_BITS)).clamp(min=1)
    numerator, denominator = (centred << checks.ROOT_BITS) * weight + root * bias, root << checks.WEIGHT_BITS
    whole = torch.div(numerator, denominator, rounding_mode="floor")
    twice = 2 * (numerator - whole * denominator) - denominator
    y = whole + ((twice > 0) | ((twice == 0) & ((whole & 1) == 1)))
    return (y.clamp(lo, hi) + zero_point).to(getattr(torch, format.storage))


def _root(x: Tensor) -> Tensor:
    """``floor(sqrt(x))`` of integers below 2**63: a rounded one is at most 1 away."""
    near = x.double().sqrt().long()
    near = near - (near * near > x).long()
    return near + ((near + 1) * (near + 1) <= x).long()
