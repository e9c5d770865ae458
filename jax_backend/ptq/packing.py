"""Codes of less than 8 bits in as few bytes as they need; see `samebits.core.packing`. By bits, unpacked and packed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.bytes_of_codes import check_packable, check_packed, packed_length
from ..arrays import as_array

Array = jax.Array


def pack(codes: Array, bits: int) -> Array:
    """Bytes of codes, along the last axis.

    Args:
        codes: int8 or uint8 ``(..., n)``, each fits ``bits`` bits; ``bits``: 1 to 8.
    Returns:
        uint8 ``(..., ceil(n * bits / 8))``.
    Raises:
        TypeError, ValueError: another dtype or width, no axis, or, where it is no tracer, a code that needs more bits.
    """
    codes = as_array("codes", codes)
    check_packable(codes.dtype.name, codes.ndim, bits)
    if not isinstance(codes, jax.core.Tracer) and codes.size:
        least, most = int(codes.min()), int(codes.max())
        low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if codes.dtype == np.int8 else (0, 1 << bits)
        if least < low or most >= high:
            raise ValueError(f"`codes` must fit {bits} bits, got codes from {least} to {most}")
    packed: Array = _pack(bits, codes)
    return packed


@partial(jax.jit, static_argnums=0)
def _pack(bits: int, codes: Array) -> Array:
    n = codes.shape[-1]
    length = packed_length(n, bits)
    if 0 in (*codes.shape[:-1], length):
        return jnp.zeros((*codes.shape[:-1], length), np.uint8)
    digits = lax.bitcast_convert_type(codes, np.uint8)
    each = jnp.unpackbits(digits[..., None], axis=-1)[..., 8 - bits :].reshape(*codes.shape[:-1], n * bits)
    return jnp.packbits(each, axis=-1)


def unpack(packed: Array, bits: int, length: int, signed: bool) -> Array:
    """Codes of bytes, along the last axis: int8 if ``signed``, else uint8, ``(..., length)``.

    Args:
        packed: uint8, as `pack` gives it for ``length`` codes.
    Raises:
        TypeError, ValueError: another dtype or width, or bytes for another number of codes.
    """
    packed = as_array("packed", packed)
    check_packed(packed.dtype.name, packed.shape, bits, length)
    codes: Array = _unpack((bits, length, signed), packed)
    return codes


@partial(jax.jit, static_argnums=0)
def _unpack(described: tuple[int, int, bool], packed: Array) -> Array:
    bits, length, signed = described
    dtype = np.int8 if signed else np.uint8
    if 0 in (*packed.shape[:-1], length):
        return jnp.zeros((*packed.shape[:-1], length), dtype)
    each = jnp.unpackbits(packed, axis=-1, count=length * bits).reshape(*packed.shape[:-1], length, bits)
    if signed:  # the highest bit once more in front, up to 8
        each = jnp.concatenate([jnp.broadcast_to(each[..., :1], (*each.shape[:-1], 8 - bits)), each], -1)
    else:
        each = jnp.pad(each, [*[(0, 0)] * (each.ndim - 1), (8 - bits, 0)])
    return lax.bitcast_convert_type(jnp.packbits(each, axis=-1)[..., 0], dtype)
