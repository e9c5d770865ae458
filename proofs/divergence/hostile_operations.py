"""What `hostile` knows of single operations: which are exact on every device, and what becomes of the others."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..inputs.bits import is_float
from .graph import Operation

Array = NDArray[Any]
ULPS = 4


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# As frameworks call them: in torch without what follows the point, in JAX without "lax.".
SHAPES = _names("view _unsafe_view detach alias expand reshape broadcast_in_dim squeeze unsqueeze clone")
BITS = _names("view.dtype bitcast_convert_type")
CONTRACTIONS = _names("dot_general mm bmm addmm linear convolution conv_general_dilated")
ELEMENTARY = _names(
    """reciprocal rsqrt sqrt cbrt exp exp2 expm1 log log2 log10 log1p pow tanh sigmoid logistic erf erfc erf_inv gelu
    sin cos tan atan2 silu softplus integer_pow"""
)
SUMS = _names("sum mean cumsum prod reduce_sum reduce_prod cumprod reduce_window_sum")
# Selections, comparisons, bits, places: a result is an operand, an integer, or a number that floats hold.
EXACT = _names(
    """where select_n eq ne lt le gt ge logical_and logical_or logical_not isnan isinf isfinite is_finite sign copysign
    ceil trunc nextafter amax amin max min maximum minimum clamp clamp_min clamp_max argmax argmin any all reduce_max
    reduce_min reduce_and reduce_or cummax cat concatenate stack slice select index gather embedding index_select
    permute transpose t movedim rev flip pad constant_pad_nd copy copy_ lift_fresh_copy masked_fill scatter split
    split_with_sizes unbind sort full full_like ones ones_like zeros zeros_like new_zeros empty iota arange
    dynamic_slice dynamic_update_slice stop_gradient optimization_barrier chosen_branch unfold scalar_tensor as_strided
    bucketize searchsorted kthvalue topk"""
)


def is_one_of(name: str, names: Iterable[str]) -> bool:
    """Whether an operation is called one of these, however its framework writes that."""
    short = name.removeprefix("aten.").removeprefix("lax.").removeprefix("prims.")
    return short in names or (not short.endswith(".dtype") and short.split(".")[0] in names)


def moved(found: Array, seed: int) -> Array:
    """float32 or float64 off by one unit to `ULPS`, one way or the other: which, no two places have in common.

    Zeros, infinities and NaN are what they were.
    """
    found = np.asarray(found)
    wide = found.dtype == np.float64
    integer, top = (np.int64, 0x7FF << 52) if wide else (np.int32, 0xFF << 23)
    size = np.abs(found).view(integer)
    rng = np.random.default_rng(seed)
    draw = (rng.integers(1, ULPS + 1, found.shape) * rng.choice([-1, 1], found.shape)).astype(integer)
    near = np.clip(size, ULPS, top - ULPS) + draw  # what is nearer to the ends than that, is moved from there
    result = np.copysign(near.astype(integer).view(found.dtype), found)
    return np.where(np.isfinite(found) & (found != 0), result, found)


def elementary(operation: Operation, operands: Sequence[Array], index: int) -> Array:
    """The function, off by some units; a root of float64 is rounded once on all devices."""
    found = operation.native(*operands)
    if found.dtype == np.float64 and is_one_of(operation.name, ("sqrt",)):
        return found
    return moved(found.astype(np.float32) if found.dtype.itemsize < 4 else found, index).astype(found.dtype)


def summed(operation: Operation, operands: Sequence[Array], index: int) -> Array:
    """A sum, off by some units where the order of its additions decides."""
    found, x = operation.native(*operands), operands[0]
    if not is_one_of(operation.name, ("sum", "reduce_sum", "cumsum")) or not is_float(x.dtype):
        exact = np.zeros(found.shape, bool)
    else:
        bits = 53 if found.dtype == np.float64 else 24
        sizes = np.abs(np.where(np.isfinite(x), x, np.zeros_like(x)))
        exact = operation.native(sizes).astype(np.float64) <= 2.0**bits * _unit(sizes)
    wide = found.astype(np.float32) if found.dtype.itemsize < 4 else found
    return np.where(exact, wide, moved(wide, index)).astype(found.dtype)


def _unit(sizes: Array) -> float:
    """The largest power of two of which all these are multiples."""
    mantissa, exponent = np.frexp(sizes[sizes > 0].astype(np.float64))
    if not mantissa.size:
        return 1.0
    whole = (mantissa * 2.0**53).astype(np.int64)
    return float(np.ldexp((whole & -whole).astype(np.float64), exponent - 53).min())


def other_zero(found: Array, operands: Sequence[Array]) -> Array:
    """Zeros with the other sign, where that is one of an operand."""
    signs = np.broadcast_arrays(found, *operands)
    either = np.zeros(found.shape, bool)
    for operand in signs[1:]:
        either |= (operand == 0) & (np.signbit(operand) != np.signbit(found))
    return np.where((found == 0) & either, -found, found)


def flushed(x: Array) -> Array:
    """Subnormal numbers as zeros of their sign."""
    return np.where(np.abs(x) < np.finfo(x.dtype).smallest_normal, np.copysign(np.zeros_like(x), x), x)


def half_away(x: Array) -> Array:
    """The nearest integer, the one further from zero of two."""
    return np.where(np.abs(x - np.trunc(x)) == 0.5, np.trunc(x) + np.sign(x), np.rint(x)).astype(x.dtype)


def contracted(operation: Operation, operands: Sequence[Array], taken: frozenset[str]) -> Array:
    """Contractions whose operands lose bits, and convolutions whose results do."""
    single = [o.dtype == np.float32 for o in operands]
    if "tensor cores" in taken:
        operands = [of_8_bits(o) if one else o for o, one in zip(operands, single, strict=True)]
    found = operation.native(*operands)
    if "conv" in operation.name and found.dtype == np.float32 and "transforms" in taken:
        draw = np.random.default_rng(0).uniform(-3, 3, found.shape)
        found = (found + draw).astype(np.float32)
    return found


def of_8_bits(x: Array) -> Array:
    """Rounded to the significand of bfloat16, which has fewer bits than that of TensorFloat-32."""
    bits = x.view(np.int32)
    near = ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF).view(np.float32)
    return np.where(np.isfinite(x), near, x)
