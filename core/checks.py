"""Argument checks, once for all rooms: the same wrong input is refused with the same words everywhere.

They take what every framework can say of an array (its shape, the name of its dtype) or, for values, a NumPy array.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arithmetic import ZeroPointDomain
from .descriptions import ON_QUOTIENT, Quantizer
from .directions import Rounding
from .formats import IntegerFormat
from .granularity import qparams_shape
from .scales import Statistic

FLOATS = ("float32", "bfloat16", "float16", "float64")
HALVES = ("bfloat16", "float16")  # a scale of these is the float32 scale of the same value
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64))
SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022}
SUBNORMAL = 2.0**-1074


def check_quantizer(q: object) -> None:
    """TypeError unless ``q`` is a `Quantizer`."""
    if not isinstance(q, Quantizer):
        raise TypeError(f"`q` must be a Quantizer (see samebits.core.catalog), got {q!r}")


def keeps_subnormals() -> bool:
    """Whether this thread computes with subnormal numbers: processors can be told to take them for zero, per thread."""
    return SUBNORMAL * 1.0 != 0.0


def check_subnormals() -> None:
    """RuntimeError where this thread flushes subnormal numbers to zero. Not for code that a compiler traces."""
    if not keeps_subnormals():
        raise RuntimeError(
            "this thread flushes subnormal numbers to zero, which changes results: switch that off, with "
            "torch.set_flush_denormal(False) where torch.set_flush_denormal(True) did it"
        )


def check_float(name: str, dtype: str) -> None:
    """TypeError unless the dtype is one of `FLOATS`."""
    if dtype not in FLOATS:
        raise TypeError(f"`{name}` must have dtype {', '.join(FLOATS)}; got {dtype}")


def scale_dtype(dtype: str) -> str:
    """Dtype of the scale, and of all arithmetic, for arrays of this dtype: float64 for float64, else float32."""
    return "float64" if dtype == "float64" else "float32"


def widened_dtype(dtype: str) -> str:
    """Dtype in which a parameter of this dtype is computed with: float32 for 16 bits, exactly; else its own."""
    return "float32" if dtype in HALVES else dtype


def check_unmasked(name: str, value: object) -> None:
    """TypeError for a NumPy masked array: its mask would be lost."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` must not be a masked array, whose mask would be lost: give its filled() or its data")


def check_qparams(
    q: Quantizer,
    shape: Sequence[int],
    dtype: str | None,
    scale_shape: Sequence[int],
    scale_dtype_name: str,
    zero_point_shape: Sequence[int] | None,
    zero_point_dtype: str | None,
) -> None:
    """Whether parameters fit an array of this shape and dtype (None: any float): all that needs no values.

    Raises:
        TypeError: wrong dtype of scale or zero point, or a zero point missing or not wanted.
        ValueError: wrong shape of scale or zero point.
    """
    allowed = ("float32", "float64") if dtype is None else (scale_dtype(dtype),)
    if scale_dtype_name not in allowed and widened_dtype(scale_dtype_name) not in allowed:
        names = ", ".join((*allowed, *HALVES) if "float32" in allowed else allowed)
        raise TypeError(f"`qparams.scale` must have dtype {names}; got {scale_dtype_name}")
    want = qparams_shape(q.granularity, tuple(shape))
    if tuple(scale_shape) != want:
        raise ValueError(
            f"`qparams.scale` must have shape {want} ({q.granularity}, x of shape {tuple(shape)}), "
            f"got {tuple(scale_shape)}"
        )
    if q.affine != (zero_point_shape is not None):
        need = "an array (the quantizer is affine)" if q.affine else "None (the quantizer is symmetric)"
        got = None if zero_point_shape is None else "an array"
        raise TypeError(f"`qparams.zero_point` must be {need}, got {got}")
    if zero_point_shape is None:
        return
    if tuple(zero_point_shape) != want:
        raise ValueError(f"`qparams.zero_point` must have shape {want}, got {tuple(zero_point_shape)}")
    wide = widened_dtype(scale_dtype_name)
    if zero_point_dtype not in INTEGERS and widened_dtype(str(zero_point_dtype)) != wide:
        floats = (wide, *HALVES) if wide == "float32" else (wide,)
        raise TypeError(
            f"`qparams.zero_point` must have an integer dtype or {', '.join(floats)}; got {zero_point_dtype}"
        )


def check_fits_state(q: Quantizer, shape: Sequence[int], held: Sequence[int]) -> None:
    """ValueError unless an array has scales of the shape of those that a state holds."""
    want = qparams_shape(q.granularity, tuple(shape))
    if tuple(held) != want:
        raise ValueError(
            f"`x` must have scales of shape {tuple(held)}, as the state has, got {want} ({q.granularity}, x of shape "
            f"{tuple(shape)})"
        )


def is_scale(value: float, dtype: str) -> bool:
    """Whether a number is positive, normal and finite in this dtype; one number costs less than arrays do."""
    return SMALLEST_NORMAL[dtype] <= value < inf


def check_scale_values(scale: NDArray[Any], floored: bool = True, signed: bool = False) -> None:
    """ValueError unless every scale is a positive normal finite number; the message shows the first that is not.

    Args:
        floored: False where the scale rule has no floor (0.0): then zero and subnormal numbers are scales, too.
        signed: whether they may be negative.
    """
    smallest, size = np.finfo(scale.dtype).smallest_normal if floored else 0, np.abs(scale) if signed else scale
    good = (size >= smallest) & (size <= np.finfo(scale.dtype).max)
    if not good.all():
        index = tuple(int(i) for i in np.argwhere(~np.atleast_1d(good))[0]) if scale.ndim else ()
        value = scale[index]
        kind = ("normal" if signed else "positive normal") if floored else "finite" if signed else "non-negative"
        raise ValueError(f"`qparams.scale` must hold {kind} finite numbers, got {value!s} at index {index}")


def check_zero_point_values(q: Quantizer, zero_point: NDArray[Any]) -> None:
    """ValueError unless every zero point is an integer in the format's range; in other domains, no NaN."""
    if q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        if np.isnan(zero_point).any():
            raise ValueError("`qparams.zero_point` must hold numbers, got nan")
        return
    lo, hi = q.format.lo, q.format.hi
    number = zero_point
    if number.dtype.kind not in "iu":  # NumPy compares these, and not all others, such as int4
        number = number.astype(np.float64)
    good = (number >= lo) & (number <= hi) & (number == np.trunc(number))
    if not good.all():
        value = zero_point[~good].flat[0] if zero_point.ndim else zero_point
        raise ValueError(f"`qparams.zero_point` must hold integers in [{lo}, {hi}], got {value!s}")


def check_seed(shape: Sequence[int], dtype: str, value: int | None) -> None:
    """Whether ``qparams.seed`` is an integer in [0, 2**32).

    Args:
        dtype: "int64" for a Python int.
        value: None where it is not known.
    Raises:
        TypeError: no integer (a bool is none). ValueError: not 0-d, or out of range.
    """
    if dtype not in INTEGERS:
        raise TypeError(f"`qparams.seed` must be an integer, got dtype {dtype}")
    if tuple(shape) != ():
        raise ValueError(f"`qparams.seed` must be 0-d, got shape {tuple(shape)}")
    if value is not None and not 0 <= value < 2**32:
        raise ValueError(f"`qparams.seed` must be in [0, 2**32), got {value}")


def check_rounding(shape: Sequence[int], scale_dtype_name: str, v_shape: Sequence[int], v_dtype: str) -> None:
    """Whether ``qparams.rounding`` fits an array of this shape. ValueError for the shape, TypeError for the dtype."""
    if tuple(v_shape) != tuple(shape):
        raise ValueError(f"`qparams.rounding` must have the shape of x, {tuple(shape)}, got {tuple(v_shape)}")
    wide = widened_dtype(scale_dtype_name)
    if v_dtype != wide:
        raise TypeError(f"`qparams.rounding` must have the dtype of the scale, {wide}, got {v_dtype}")


def at_width(q: Quantizer, bit_width: float) -> Quantizer:
    """The quantizer with the width of its format replaced by ``bit_width``, rounded to nearest even.

    Raises:
        ValueError: a width that is not within 1 (2 where that would leave no positive code) and the format's own.
    """
    least, most = widths(q)
    whole = round(bit_width) if isfinite(bit_width) else 0
    if not least <= whole <= most:
        raise ValueError(f"`qparams.bit_width` must be in [{least}, {most}] ({q.format}), got {bit_width:g}")
    return _narrowed(q, whole)


def widths(q: Quantizer) -> tuple[int, int]:
    """Least width that leaves a positive code, and the format's own. TypeError for other formats than integers."""
    format = _integers(q)
    return (2 if format.signed or format.narrow else 1), format.bits


def _integers(q: Quantizer) -> IntegerFormat:
    if not isinstance(q.format, IntegerFormat):
        raise TypeError(f"`qparams.bit_width` must be None for {q.format}: only integers have one")
    return q.format


@lru_cache(maxsize=4096)
def _narrowed(q: Quantizer, bits: int) -> Quantizer:
    format, first = replace(_integers(q), bits=bits), q.scale.zero_point_value
    value = min(max(first, format.lo), format.hi) if q.affine else first  # where a layer begins; no function needs it
    start = None if q.learned_bits is None else min(q.learned_bits, bits)
    return q.replace(format=format, learned_bits=start, scale=replace(q.scale, zero_point_value=value))


def check_bit_width(q: Quantizer, shape: Sequence[int], dtype: str, scale_dtype_name: str) -> None:
    """Whether ``qparams.bit_width`` is one number, as far as that needs no values.

    Raises:
        TypeError: a format without a width, or neither an integer nor of the scale's dtype.
        ValueError: not 0-d, or zero points that are no codes.
    """
    widths(q)
    wide = widened_dtype(scale_dtype_name)
    if dtype not in INTEGERS and dtype != wide:
        raise TypeError(f"`qparams.bit_width` must be an integer or have dtype {wide}, got {dtype}")
    if tuple(shape) != ():
        raise ValueError(f"`qparams.bit_width` must be 0-d, got shape {tuple(shape)}")
    if q.rounding is Rounding.LEARNED:
        raise ValueError("`qparams.bit_width` must be None where rounding is learned")
    if q.gradient in ON_QUOTIENT:
        raise ValueError(f"`qparams.bit_width` must be None for the gradient '{q.gradient}'")
    if q.scale.signed:
        raise ValueError("`qparams.bit_width` must be None where scales may be negative")
    if q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        raise ValueError(f"`qparams.bit_width` must be None for zero points of domain {q.arithmetic.zero_point_domain}")


def check_no_bit_width(name: str, bit_width: object) -> None:
    """ValueError for a layer over operands of a width of their own: it contracts codes of the format's."""
    if bit_width is not None:
        raise ValueError(f"`{name}.bit_width` must be None in a layer; contract what fake_quantize gives instead")


def check_sigma(q: Quantizer, x_dtype: str, shape: tuple[int, ...], dtype: str) -> None:
    """Sigma for an array: a number, of a symmetric quantizer by mean and sigma.

    Raises:
        TypeError: neither float32 nor the dtype of the scale. ValueError: not 0-d, or another quantizer.
    """
    if q.affine or q.scale.statistic is not Statistic.MEAN_SIGMA:
        got = f"'{q.scale.statistic}'{' of an affine one' if q.affine else ''}"
        raise ValueError(f"`q.scale.statistic` must be 'mean_sigma' of a symmetric quantizer, got {got}")
    if shape != ():
        raise ValueError(f"`sigma` must be 0-d, got shape {shape}")
    if dtype not in ("float32", scale_dtype(x_dtype)):
        raise TypeError(f"`sigma` must have dtype float32 or that of the scale, {scale_dtype(x_dtype)}, got {dtype}")


def check_d_scale(q: Quantizer, x_shape: tuple[int, ...], x_dtype: str, shape: tuple[int, ...], dtype: str) -> None:
    """ValueError, TypeError for a gradient of another shape or dtype than the scale of an array."""
    if shape != qparams_shape(q.granularity, x_shape):
        wanted = qparams_shape(q.granularity, x_shape)
        raise ValueError(f"`d_scale` must have the shape of the scale, {wanted}, got {shape}")
    if dtype != scale_dtype(x_dtype):
        raise TypeError(f"`d_scale` must have the dtype of the scale, {scale_dtype(x_dtype)}, got {dtype}")


def check_finite_statistic(finite: bool) -> None:
    """ValueError when the data that a scale is chosen from holds NaN or an infinity."""
    if not finite:
        raise ValueError("`x` must be finite to choose a scale from it, got NaN or an infinity")


def check_no_nan(has_nan: bool) -> None:
    """ValueError when `quantize` meets NaN: no integer code stands for it."""
    if has_nan:
        raise ValueError("`x` must not hold NaN for quantize (no code stands for it); fake_quantize propagates NaN")


def check_codes(q: Quantizer, dtype: str) -> None:
    """TypeError unless codes come in the format's storage dtype."""
    if dtype != q.format.storage:
        raise TypeError(f"`codes` of {q.format} must have dtype {q.format.storage}, got {dtype}")


def check_cotangent(shape: Sequence[int], dtype: str, g_shape: Sequence[int], g_dtype: str) -> None:
    """The incoming gradient has the shape and dtype of x. ValueError for the shape, TypeError for the dtype."""
    if tuple(shape) != tuple(g_shape):
        raise ValueError(f"`g` must have the shape of x, {tuple(shape)}, got {tuple(g_shape)}")
    if dtype != g_dtype:
        raise TypeError(f"`g` must have the dtype of x, {dtype}, got {g_dtype}")


def check_interval(lo: float, hi: float) -> None:
    """ValueError unless ``lo <= hi``; neither is NaN."""
    if not lo <= hi:
        raise ValueError(f"`lo` must be at most `hi`, got {lo!r} and {hi!r}")


def check_positive(name: str, value: float) -> None:
    """ValueError unless ``value > 0``."""
    if not value > 0:
        raise ValueError(f"`{name}` must be positive, got {value!r}")


def check_weight(dtype: str, bound: float) -> None:
    """TypeError unless a weight is float32, ValueError unless the bound of its norm is positive."""
    if dtype != "float32":
        raise TypeError(f"`w` must have dtype float32, got {dtype}")
    check_positive("bound", bound)
