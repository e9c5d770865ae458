"""Contractions of 8-bit codes with the quantization of the left side in them: x is read as floats, once."""

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas

from ...core.contraction import accumulator_bound, contracts_codes
from ...core.descriptions import Quantizer
from ...core.formats import IntegerFormat
from .integers import clamped_codes
from .quantizer import fits, options

Array = jax.Array
ROWS, OUTPUTS, INPUTS = 32, 128, 128  # of a tile
BYTE = 8


def fits_products(q_x: Quantizer, x: Array, q_w: Quantizer, codes: Array) -> bool:
    """Whether the kernel computes these sums.

    Both of integers of 8 bits at most, whose sums fit int32; ``x`` as `quantizer.fits` says, and per tensor or token.
    """
    if not (contracts_codes(q_x, q_w, per_token=True) and fits(q_x, x) and codes.size):
        return False
    formats = q_x.format, q_w.format
    small = all(isinstance(f, IntegerFormat) and f.hi - f.lo < 2**BYTE for f in formats)
    return small and accumulator_bound(q_x, q_w, codes.shape[1]) < 2**31


@partial(jax.jit, static_argnames=("platform", "q_x", "q_w", "interpret"))
def sums(
    platform: str,
    q_x: Quantizer,
    q_w: Quantizer,
    x: Array,
    x_scale: Array,
    x_zero: Array | None,
    codes: Array,
    w_zero: Array | None,
    *,
    interpret: bool = False,
) -> Array:
    """``sum (code_x - z_x) * (code_w - z_w)``, correctly rounded to float32; NaN where a row of ``x`` has NaN.

    Args:
        x: ``(..., in)``; its scale and zero point are 0-d or ``(..., 1)``.
        codes: ``(out, in)``, of 8 bits at most; their zero point is 0-d, ``(out, 1)`` or None.
    Returns:
        ``(..., out)``.
    """
    *lead, inputs = x.shape
    rows, outputs = prod(lead), codes.shape[0]
    signed = codes.astype(np.int32) - _offset(q_w)
    left = _padded(x.reshape(rows, inputs), ROWS, INPUTS)
    height = len(left)
    of_x = (jnp.broadcast_to(p, (rows, 1)) for p in (x_scale.reshape(-1, 1), _integers(x_zero)))
    scale, zero = (jnp.pad(p, ((0, height - rows), (0, 0)), constant_values=1) for p in of_x)
    w = _padded(signed.astype(np.int8), OUTPUTS, INPUTS)
    centre = jnp.pad(jnp.broadcast_to(_offset(q_w) - _integers(w_zero), (outputs, 1)), ((0, len(w) - outputs), (0, 0)))
    by_row = pallas.BlockSpec((ROWS, 1), lambda i, j: (i, 0))
    found = pallas.pallas_call(
        partial(_kernel, q_x),
        grid=(height // ROWS, len(w) // OUTPUTS),
        in_specs=[
            pallas.BlockSpec((ROWS, left.shape[1]), lambda i, j: (i, 0)),
            by_row,
            by_row,
            pallas.BlockSpec((OUTPUTS, left.shape[1]), lambda i, j: (j, 0)),
            pallas.BlockSpec((1, OUTPUTS), lambda i, j: (0, j)),
        ],
        out_specs=pallas.BlockSpec((ROWS, OUTPUTS), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((height, len(w)), np.float32),  # type: ignore[no-untyped-call]
        **options(platform, interpret),
    )(left, scale, zero, w, centre.T)
    acc: Array = found[:rows, :outputs].reshape(*lead, outputs)
    return acc


def _kernel(q: Quantizer, x_ref: Any, scale_ref: Any, zero_ref: Any, w_ref: Any, centre_ref: Any, out_ref: Any) -> None:
    """One tile of sums.

    Codes are shifted into int8, ``x = code - o`` with ``c_x = o - z``, and likewise ``w`` with ``c_w``; then the sum is
    ``sum x w + c_w sum x + c_x sum w + n c_x c_w``. What wraps around on the way comes back. Padding of ``x`` has the
    code of zero, so that what it meets does not matter.
    """
    scale, zero, centre = scale_ref[...], zero_ref[...], centre_ref[...]
    shape = (ROWS, INPUTS)
    across = (((1,), (1,)), ((), ()))

    def more(step: Array, totals: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        total, of_x, of_w, nans = totals
        place = pallas.ds(step * INPUTS, INPUTS)
        x, w = x_ref[:, place].astype(np.float32), w_ref[:, place]
        code = clamped_codes(q, x, jnp.broadcast_to(scale, shape), jnp.broadcast_to(zero, shape)) - _offset(q)
        total += lax.dot_general(code.astype(np.int8), w, across, preferred_element_type=np.int32)
        of_x += jnp.sum(code, axis=1, keepdims=True)
        of_w += jnp.sum(w.astype(np.int32), axis=1)[None, :]
        return total, of_x, of_w, jnp.maximum(nans, jnp.max((x != x).astype(np.int32), axis=1, keepdims=True))

    def nothing(*shape: int) -> Array:
        return jnp.zeros(shape, np.int32)

    first = nothing(ROWS, OUTPUTS), nothing(ROWS, 1), nothing(1, OUTPUTS), nothing(ROWS, 1)
    total, of_x, of_w, nans = lax.fori_loop(0, x_ref.shape[1] // INPUTS, more, first)
    centre_x = _offset(q) - zero
    total += centre * of_x + centre_x * of_w + np.int32(x_ref.shape[1]) * (centre_x * centre)
    out_ref[...] = jnp.where(nans > 0, np.float32(np.nan), total.astype(np.float32))


def _offset(q: Quantizer) -> int:
    """What codes are moved by to fit int8."""
    return 2 ** (BYTE - 1) if q.format.hi >= 2 ** (BYTE - 1) else 0


def _integers(zero: Array | None) -> Array:
    return jnp.zeros((1, 1), np.int32) if zero is None else zero.astype(np.int32).reshape(-1, 1)


def _padded(a: Array, *multiples: int) -> Array:
    return jnp.pad(a, [(0, -n % m) for n, m in zip(a.shape, multiples, strict=True)])
