"""Arguments of the functions as NumPy arrays in the byte order of the machine, checked with the words of `checks`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .descriptions import QParams, Quantizer
from .directions import Rounding
from .granularity import Shape

Array = NDArray[Any]


def as_array(name: str, x: Any) -> Array:
    """``x`` as an array: whatever NumPy reads as one, such as lists, numbers, memory views and CPU tensors.

    Raises:
        TypeError: a masked array, or what NumPy does not read; the message names the argument.
    """
    checks.check_unmasked(name, x)
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(f"`{name}` must be what NumPy reads as an array, got {type(x).__name__}: {reason}") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def check_array(q: Quantizer, x: Any) -> Array:
    """``x``, if ``q`` can quantize arrays of its dtype and shape."""
    checks.check_subnormals()
    checks.check_quantizer(q)
    array = as_array("x", x)
    checks.check_float("x", array.dtype.name)
    q.granularity.block_size(array.shape)
    return array


def check_operands(q: Quantizer, x: Any, qparams: QParams) -> tuple[Array, QParams]:
    """``x`` and its parameters, if they fit each other and ``q``; see `check_qparams`."""
    array = check_array(q, x)
    return array, check_qparams(q, array.shape, array.dtype.name, qparams)


def check_qparams(q: Quantizer, shape: Shape, dtype: str | None, qparams: QParams) -> QParams:
    """Parameters as arrays, those of 16 bits widened, if they fit an array of this shape and dtype (None: any float).

    The seed only where rounding is stochastic, and the parameter of rounding only where that is learned.
    """
    scale = as_array("qparams.scale", qparams.scale)
    zero = _array_or_none("qparams.zero_point", qparams.zero_point)
    zero_shape, zero_dtype = (None, None) if zero is None else (zero.shape, zero.dtype.name)
    checks.check_qparams(q, shape, dtype, scale.shape, scale.dtype.name, zero_shape, zero_dtype)
    scale = widened(scale)
    checks.check_scale_values(scale, floored=q.scale.floor != 0, signed=q.scale.signed)
    width = _array_or_none("qparams.bit_width", qparams.bit_width)
    if width is not None:
        checks.check_bit_width(q, width.shape, width.dtype.name, scale.dtype.name)
    if zero is not None:
        checks.check_zero_point_values(q if width is None else checks.at_width(q, float(width)), zero)
    seed = v = None
    if q.rounding is Rounding.STOCHASTIC:
        seed = check_seed(qparams.seed)
    if q.rounding is Rounding.LEARNED and qparams.rounding is not None:
        v = as_array("qparams.rounding", qparams.rounding)
        checks.check_rounding(shape, scale.dtype.name, v.shape, v.dtype.name)
    return QParams(scale, zero, width, seed, v)


def check_seed(seed: Any) -> int:
    """The seed as a number, 0 for None."""
    if isinstance(seed, int) and not isinstance(seed, bool):  # of any size
        checks.check_seed((), "int64", seed)
        return seed
    given = as_array("qparams.seed", 0 if seed is None else seed)
    known = given.ndim == 0 and given.dtype.name in checks.INTEGERS
    checks.check_seed(given.shape, given.dtype.name, int(given) if known else None)
    return int(given)


def widened(parameter: Array) -> Array:
    """A scale or zero point of 16 bits in float32, which holds each of them exactly; others as they are."""
    return parameter.astype(checks.widened_dtype(parameter.dtype.name))


def ends(x: Array) -> tuple[int, int] | None:
    """The smallest and the largest of integers, None of none."""
    return (int(x.min()), int(x.max())) if x.size else None


def _array_or_none(name: str, x: Any) -> Array | None:
    return None if x is None else as_array(name, x)
