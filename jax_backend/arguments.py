"""Arguments of the verbs, checked with the words of `core.checks`, as JAX arrays.

Values are looked at where they are at hand; while tracing they are not.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import checks
from ..core.descriptions import QParams, Quantizer
from ..core.directions import Rounding
from ..core.granularity import Shape
from .arrays import as_array, in_numpy, is_concrete, widen
from .operations import round_to_dtype
from .small_numbers import is_other

Array = jax.Array


def check_description(q: Quantizer) -> None:
    """TypeError unless ``q`` is a `Quantizer`."""
    checks.check_quantizer(q)


def check_array(q: Quantizer, x: object) -> Array:
    """``x``, if ``q`` can quantize arrays of its dtype and shape."""
    check_description(q)
    array = as_array("x", x)
    checks.check_float("x", array.dtype.name)
    q.granularity.block_size(array.shape)
    return array


def check_trained(q: Quantizer, x: object, axes: tuple[int, ...] | None, held: Array | None) -> None:
    """Whether a state with these scales (None or empty for none yet) can learn from ``x.transpose(axes)``."""
    array = as_array("x", x) if axes is None else as_array("x", x).transpose(axes)
    check_array(q, array)
    if held is not None and held.size:
        checks.check_fits_state(q, array.shape, held.shape)


def check_qparams(q: Quantizer, shape: Shape, dtype: str | None, qparams: QParams) -> tuple[Array, Array | None]:
    """Scale and zero point, 16-bit ones widened, if they fit an array of this shape and dtype (None: any float)."""
    scale = as_array("qparams.scale", qparams.scale)
    zero = None if qparams.zero_point is None else as_array("qparams.zero_point", qparams.zero_point)
    zero_shape, zero_dtype = (None, None) if zero is None else (zero.shape, zero.dtype.name)
    checks.check_qparams(q, shape, dtype, scale.shape, scale.dtype.name, zero_shape, zero_dtype)
    wider = _exactly if is_other(q) else widen
    scale = wider(scale)
    zero = zero if zero is None or not jnp.issubdtype(zero.dtype, jnp.floating) else wider(zero)
    if qparams.bit_width is not None:
        width = _as_given("qparams.bit_width", qparams.bit_width)
        checks.check_bit_width(q, width.shape, width.dtype.name, scale.dtype.name)
        if is_concrete(width):
            q = checks.at_width(q, float(width))
    if is_concrete(scale):
        checks.check_scale_values(np.asarray(scale), floored=q.scale.floor != 0, signed=q.scale.signed)
    if zero is not None and is_concrete(zero):
        checks.check_zero_point_values(q, np.asarray(zero))
    return scale, zero


def _exactly(parameter: Array) -> Array:
    """`widen`, also of subnormals."""
    return round_to_dtype(parameter, checks.widened_dtype(parameter.dtype.name))


def check_operands(q: Quantizer, x: object, qparams: QParams) -> tuple[Array, Array, Array | None, Array | None]:
    """``x``, scale, zero point and seed, if they fit each other and ``q``; the seed is None unless ``q`` draws.

    Where rounding is learned, its parameter (or None) stands in the place of the seed.
    """
    array = check_array(q, x)
    scale, zero = check_qparams(q, array.shape, array.dtype.name, qparams)
    if q.rounding is not Rounding.LEARNED:
        return array, scale, zero, _seed(q, qparams.seed)
    if qparams.rounding is None:
        return array, scale, zero, None
    v = as_array("qparams.rounding", qparams.rounding)
    checks.check_rounding(array.shape, scale.dtype.name, v.shape, v.dtype.name)
    return array, scale, zero, v


def ends(x: Array) -> tuple[int, int] | None:
    """The smallest and the largest number, None of none and while tracing."""
    if not x.size or not is_concrete(x):
        return None
    values = np.asarray(x)  # of a constant of a program the least would be traced
    return int(values.min()), int(values.max())


def _seed(q: Quantizer, seed: Any) -> Array | None:
    if q.rounding is not Rounding.STOCHASTIC:
        return None
    if isinstance(seed, int) and not isinstance(seed, bool):  # of any size
        checks.check_seed((), "int64", seed)
        return jnp.asarray(seed, np.uint32)
    given = _as_given("qparams.seed", 0 if seed is None else seed)
    known = is_concrete(given) and given.ndim == 0 and given.dtype.name in checks.INTEGERS
    checks.check_seed(given.shape, given.dtype.name, int(given) if known else None)
    return jnp.asarray(given.astype(np.uint32))


def _as_given(name: str, value: Any) -> Any:
    """An array of the dtype that was given, which `as_array` may not leave so: of JAX, else of NumPy."""
    return value if isinstance(value, jax.Array) else in_numpy(name, value)
