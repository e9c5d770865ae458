"""GGUF: the codes and scales of blocks of 32 numbers; see `samebits.core.gguf`. By bits and exact operations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.directions import Rounding
from ...core.gguf_files import BLOCK, NUMBERS, check_blocks, check_layout
from ..arrays import as_array, bit_pattern, from_pattern, is_concrete
from ..ieee_any import add_any, divide_any, multiply_any
from ..operations import round_to_dtype
from ..rounding import round_to_integer

Array = jax.Array
FLOAT32 = np.dtype(np.float32)
BIAS, MANTISSA = 127, 23


def block_codes(layout: str, x: Array) -> tuple[Array, Array]:
    """Codes and scales of numbers, as GGUF's tools choose them.

    Args, Returns:
        As `samebits.core.gguf.block_codes`.
    Raises:
        TypeError: no float array. ValueError: another layout or length; where values are known, NaN, infinities, scales
            that float16 does not hold.
    """
    x = as_array("x", x)
    check_blocks(layout, x.shape)
    rows = round_to_dtype(x, FLOAT32).reshape(-1, BLOCK)
    if is_concrete(x) and not bool(jnp.isfinite(rows).all()):
        raise ValueError("`x` must be finite, got NaN or infinities")
    sizes = bit_pattern(rows) & 0x7FFFFFFF  # as integers they have the order of the magnitudes
    peak = jnp.take_along_axis(rows, jnp.argmax(sizes, 1, keepdims=True), 1)
    codes, d = {"Q8_0": _q8_0, "Q4_0": _q4_0, "MXFP4": _mxfp4}[layout](rows, peak)
    scale = d if layout == "MXFP4" else round_to_dtype(round_to_dtype(d, np.dtype(np.float16)), FLOAT32)
    if is_concrete(x) and not bool(jnp.isfinite(scale).all()):
        raise ValueError(f"`x` must have scales that float16 holds, got {float(jnp.abs(d).max())}")
    dtype = jnp.int8 if layout == "Q8_0" else jnp.uint8
    return codes.astype(dtype).reshape(x.shape), scale.reshape(*x.shape[:-1], x.shape[-1] // BLOCK)


def block_values(layout: str, codes: Array, scale: Array) -> Array:
    """The numbers that codes and scales of `block_codes` stand for, float32. ValueError for another layout."""
    check_layout(layout)
    if layout == "MXFP4":
        half = np.array(NUMBERS, np.float32) / 2
        numbers = jnp.asarray(np.concatenate([half, -half]))[codes]
    else:
        numbers = codes.astype(jnp.float32) - (8 if layout == "Q4_0" else 0)
    return multiply_any(numbers, jnp.repeat(scale, BLOCK, -1))


def _times_reciprocal(rows: Array, d: Array) -> Array:
    inverse = divide_any(jnp.ones_like(d), d)
    return multiply_any(rows, jnp.broadcast_to(jnp.where(jnp.isfinite(inverse), inverse, 0), rows.shape))


def _q8_0(rows: Array, peak: Array) -> tuple[Array, Array]:
    d = divide_any(from_pattern(bit_pattern(peak) & 0x7FFFFFFF, jnp.float32), jnp.full_like(peak, 127))
    return round_to_integer(_times_reciprocal(rows, d), Rounding.TIES_TO_AWAY), d


def _q4_0(rows: Array, peak: Array) -> tuple[Array, Array]:
    d = divide_any(peak, jnp.full_like(peak, -8))
    shifted = add_any(_times_reciprocal(rows, d), jnp.full_like(rows, 8.5))
    return jnp.minimum(jnp.floor(shifted), 15), d


def _mxfp4(rows: Array, peak: Array) -> tuple[Array, Array]:
    pattern = bit_pattern(peak) & 0x7FFFFFFF
    up = ((1 << MANTISSA) - (pattern & ((1 << MANTISSA) - 1))) <= jnp.asarray(_reach())[pattern >> MANTISSA]
    place = (pattern >> MANTISSA) + up.astype(pattern.dtype) - BIAS - 2
    small = place < -BIAS
    exponent = jnp.maximum(place, -BIAS)
    half = _power(exponent - 1)
    numbers = jnp.asarray([*NUMBERS, *(-number for number in NUMBERS)], jnp.float32)

    def better(code: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        candidate = multiply_any(half, jnp.broadcast_to(numbers[code], half.shape))
        error = bit_pattern(add_any(jnp.broadcast_to(candidate, rows.shape), -rows)) & 0x7FFFFFFF
        return jnp.where(error < best[1], code, best[0]), jnp.minimum(error, best[1])

    first = jnp.zeros(rows.shape, jnp.int32), bit_pattern(rows) & 0x7FFFFFFF
    codes, _ = lax.fori_loop(jnp.int32(1), jnp.int32(16), better, first)
    return jnp.where(small, 0, codes), _power(exponent)


def _reach() -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """By the exponent field of a number below ``2**k``: within how many last bits of it its logarithm rounds to k.

    ``2**k - n * 2**(k - 24)`` has the logarithm ``k - n * 2**-24 / ln 2``, and float32 has steps of ``2**(j - 23)``
    below k, for ``j = floor(log2(k - 1))``, of a negative k ``floor(log2(-k))``: so n is at most ``2**j * ln 2``.
    """
    reach = []
    for field in range(256):
        k = field - BIAS + 1
        j = (k - 1).bit_length() - 1 if k > 0 else (-k).bit_length() - 1
        reach.append(int(2.0**j * np.log(2.0)) if k else 0)
    return np.array(reach, np.int32)


def _power(exponent: Array) -> Array:
    """``2**exponent``, of -128 to 127, float32."""
    normal = (exponent + BIAS) << MANTISSA
    subnormal = 1 << (exponent + BIAS + MANTISSA - 1)
    return from_pattern(jnp.where(exponent > -BIAS, normal, subnormal), jnp.float32)
