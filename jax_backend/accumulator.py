"""Integers that fit an accumulator: weights whose sums cannot overflow (A2Q), and codes cut to fewer bits.

Formulas and sources stand in `samebits.core.accumulator`, of which these have the bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core import checks
from ..core.choice import choice
from ..core.contraction import check_truncation
from ..core.directions import Rounding
from ..core.formats import IntegerFormat
from .arrays import divide, product
from .clamp import clamp
from .rounding import round_to_integer
from .sums import ordered_sum

MARGIN = 1 + 2.0**-19


def accumulator_scale(w: jax.Array, scale: jax.Array, bound: float) -> jax.Array:
    """The scale by which the codes of each channel have at most ``bound`` as the sum of their magnitudes.

    Not differentiable.

    Raises:
        TypeError: ``w`` is not float32. ValueError: a bound that is not positive.
    """
    checks.check_weight(w.dtype.name, bound)
    sizes = jnp.abs(lax.stop_gradient(w)).reshape(len(w), -1)
    norm = ordered_sum(jnp.where(sizes < 2.0**-100, 0, sizes))
    least = product(divide(norm, jnp.float32(bound), subnormals=False), jnp.float32(MARGIN))
    return jnp.maximum(scale, least.reshape(scale.shape))


def truncate(
    codes: jax.Array, source: IntegerFormat, target: IntegerFormat, rounding: Rounding | str = Rounding.TOWARD_NEGATIVE
) -> jax.Array:
    """Codes of one integer format as codes of a narrower one: ``clamp(round(code / t))``, ``t = 2**(bits dropped)``.

    They stand for the same values with the scale ``s * t`` and the zero point ``z / t``. Every step is exact.

    Raises:
        TypeError: codes of another dtype. ValueError: formats of different signs, or a wider target.
    """
    direction = choice("rounding", rounding, Rounding)
    step = check_truncation(codes.dtype.name, source, target, direction)
    rounded = round_to_integer(codes.astype(np.float32) * np.float32(1 / step), direction)
    return clamp(rounded, target.lo, target.hi).astype(target.storage)
