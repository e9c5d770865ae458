"""What every verb here needs of JAX arrays: bit patterns, exact widening and narrowing, a division XLA leaves alone.

XLA on CPU reads subnormal operands as zero and writes subnormal results as zero, turns ``x / s`` with a scalar or
broadcast ``s`` into ``x * (1 / s)``, merges ``(a / b) / s`` into ``a / (b * s)``, and contracts ``a * b + c`` to a
fused multiply-add. Bit patterns see subnormals; selects and barriers stop the rest.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from ..core import checks
from ..core.granularity import Granularity, PerTensor, Shape, qparams_shape
from . import platforms


class Layout(NamedTuple):
    """Bit patterns of a binary floating-point dtype, as NumPy scalars of the integer dtype of the same width."""

    integer: Any  # signed integer dtype of the same width
    sign: Any  # pattern of -0.0
    exponent: Any  # pattern of +inf: all exponent bits
    one: Any  # pattern of 1.0
    smallest: Any  # the smallest normal number, of the dtype itself
    min_exponent: int  # its exponent: -126 for float32
    mantissa: int  # stored bits of the significand: 23 for float32


def layout(dtype: Any) -> Layout:
    """The `Layout` of float32, bfloat16, float16 or float64."""
    info = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    integer = np.dtype(f"int{info.bits}").type
    exponent = ((1 << info.nexp) - 1) << info.nmant
    one = ((1 << (info.nexp - 1)) - 1) << info.nmant
    sign = -(1 << (info.bits - 1))
    smallest = np.dtype(dtype).type(info.smallest_normal)
    return Layout(integer, integer(sign), integer(exponent), integer(one), smallest, int(info.minexp), int(info.nmant))


def is_concrete(*arrays: Any) -> bool:
    """Whether the values of all arrays are at hand: false while tracing (`jit`, `vmap`, `grad`)."""
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def as_array(name: str, x: Any) -> jax.Array:
    """``x`` as a JAX array of its own dtype; as a NumPy array, if JAX has no such dtype: whoever asks refuses that.

    Raises:
        TypeError: a masked array, or what NumPy does not read; float64 while ``jax_enable_x64`` is off: JAX would round
            it to float32. ValueError: integers of 64 bits, that are of fewer while it is off, and lose bits by that.
    """
    if isinstance(x, jax.Array):
        return x
    array = in_numpy(name, x)
    kept = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))
    if array.dtype == np.float64 and kept != np.float64:
        raise TypeError(f"`{name}` must not be float64 unless jax_enable_x64 is set (JAX would round it to float32)")
    if array.dtype.kind in "iu" and (array.astype(kept) != array).any():
        raise ValueError(f"`{name}` must hold integers of {kept.name} unless jax_enable_x64 is set")
    try:
        return jnp.asarray(array)
    except TypeError:  # of objects, text and the like
        return array  # type: ignore[return-value]


def in_numpy(name: str, x: Any) -> NDArray[Any]:
    """What is no JAX array as one of NumPy, in the byte order of the machine.

    Raises:
        TypeError: a masked array, or what NumPy does not read.
    """
    checks.check_unmasked(name, x)
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise TypeError(f"`{name}` must be what NumPy reads as an array, got {type(x).__name__}: {reason}") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def bit_pattern(x: jax.Array) -> jax.Array:
    """The bits of floating-point ``x`` as signed integers of the same width."""
    return lax.bitcast_convert_type(x, layout(x.dtype).integer)


def from_pattern(bits: jax.Array, dtype: Any) -> jax.Array:
    """The floating-point numbers with these bits."""
    return lax.bitcast_convert_type(bits, dtype)


def constant_pattern(value: float | tuple[float, ...], dtype: Any) -> Any:
    """The bits of numbers rounded to ``dtype``, in NumPy."""
    return np.asarray(value, dtype).view(layout(dtype).integer)[()]


def magnitude(x: jax.Array) -> jax.Array:
    """The bits of ``abs(x)``, integers in the order of the magnitudes; infinity, then NaN are the largest.

    Not to be compared with 0: where ``x`` is used as a float too, LLVM makes ``x == 0.0`` of that, which is true of
    subnormals. `ordered` may be compared with anything.
    """
    size: jax.Array = bit_pattern(x) & ~layout(x.dtype).sign
    return size


def ordered(x: jax.Array) -> jax.Array:
    """Integers in the order of the numbers, -1 for -0.0 and 0 for +0.0; NaN lies beyond the infinities."""
    form, bits = layout(x.dtype), bit_pattern(x)
    place: jax.Array = bits ^ ((bits >> (8 * bits.dtype.itemsize - 1)) & ~form.sign)
    return place


def constant_ordered(value: float | tuple[float, ...], dtype: Any) -> Any:
    """`ordered` of numbers rounded to ``dtype``, in NumPy."""
    patterns = constant_pattern(value, dtype)
    return np.where(patterns < 0, patterns ^ ~layout(dtype).sign, patterns)


def is_subnormal_or_zero(x: jax.Array) -> jax.Array:
    """True where the exponent bits are all zero."""
    return jnp.equal(bit_pattern(x) & layout(x.dtype).exponent, 0)


def scaled_subnormal(x: jax.Array) -> jax.Array:
    """``x * 2**126`` (by the dtype's smallest exponent) where ``x`` is subnormal or zero, exact; elsewhere no meaning.

    ``1.m * 2**0 - 1`` is ``0.m`` for the mantissa bits ``m`` that a subnormal has: no operand is subnormal.
    """
    form, bits = layout(x.dtype), bit_pattern(x)
    signed_one = from_pattern((bits & form.sign) | form.one, x.dtype)
    return from_pattern(bits | form.one, x.dtype) - signed_one


def with_sign_of(value: jax.Array, x: jax.Array) -> jax.Array:
    """``value`` (not negative, or already of the sign of ``x``) with the sign bit of ``x``."""
    return from_pattern(bit_pattern(value) | (bit_pattern(x) & layout(x.dtype).sign), x.dtype)


def barrier(x: jax.Array) -> jax.Array:
    """``x``, of which the compiler's algebra knows nothing.

    For scalars, small arrays and what is stored anyway: from jax 0.11 on, what lies behind a barrier is an array in
    memory. `veiled` is for others.
    """
    return lax.optimization_barrier(x)  # type: ignore[no-untyped-call, no-any-return]


def veiled(x: jax.Array, other: jax.Array) -> jax.Array:
    """``x``, which the compiler's algebra must take for one of two, ``x`` or ``other``; no array of its own.

    A select whose condition is False everywhere, since no place is below a 0 behind a barrier: to XLA the result is no
    constant, no quotient (unless both are the same array), and no broadcast: one condition for all places would be
    moved in front of the broadcasts of ``x`` and ``other``. LLVM, which rewrites no division, may see through it.

    Args:
        other: same shape and dtype as ``x``.
    """
    places = lax.iota(np.uint32, math.prod(x.shape)).reshape(x.shape)
    return jnp.where(places < barrier(jnp.uint32(0)), other, x)


def widen(x: jax.Array) -> jax.Array:
    """``x`` in the dtype all arithmetic happens in: float64 for float64, else float32. Exact.

    Behind a barrier, so that a narrowing cast before it is not merged with this widening one.
    """
    if x.dtype == checks.scale_dtype(x.dtype.name):
        return x
    if not platforms.rounds_once():
        from .devices import widened  # which needs this module

        return widened(x)
    return lax.convert_element_type(barrier(x), checks.scale_dtype(x.dtype.name))


def widen_exactly(x: jax.Array, dtype: Any) -> jax.Array:
    """float32 ``x`` in float32 or float64, subnormals included."""
    if x.dtype == dtype:
        return x
    small = with_sign_of(scaled_subnormal(x), x)  # zeros keep theirs
    scaled_up = lax.convert_element_type(barrier(jnp.where(is_subnormal_or_zero(x), small, x)), dtype)
    return jnp.where(is_subnormal_or_zero(x), scaled_up * _power(layout(x.dtype).min_exponent, dtype), scaled_up)


def with_float64(*dtypes: Any) -> AbstractContextManager[Any]:
    """In which numbers of these dtypes exist: float64 ones do not where ``jax_enable_x64`` is not set."""
    needed = any(np.dtype(dtype) == np.float64 for dtype in dtypes)
    return jax.enable_x64(True) if needed else nullcontext()


def narrow(x: jax.Array, dtype: Any) -> jax.Array:
    """``x`` rounded once, to nearest even, to ``dtype``; behind a barrier, so that a widening after it keeps that."""
    if x.dtype != dtype and not platforms.rounds_once():
        from .operations import round_to_dtype  # which needs this module

        return round_to_dtype(x, dtype)
    return x if x.dtype == dtype else barrier(lax.convert_element_type(x, dtype))


def divide(x: jax.Array, s: jax.Array, *, subnormals: bool = True) -> jax.Array:
    """``x / s``, one correctly rounded division; quotients below the smallest normal number may come out as zero.

    Args:
        x: float32 or float64; ``s``: same dtype, broadcasts against ``x``. Positive normal numbers, if ``subnormals``;
            else any but subnormal ones.
        subnormals: False where the caller knows that subnormal ``x`` may be read as zero; saves the decoding.
    """
    divisor = jnp.broadcast_to(s, x.shape)
    if not platforms.rounds_once():
        from .ieee_any import divide_any  # which needs this module

        return divide_any(x, divisor)
    if not is_concrete(x, s, divisor):  # op by op there is nothing to be kept apart
        x, divisor = veiled(x, divisor), veiled(divisor, x)
    if not subnormals:
        return x / divisor
    tiny = is_subnormal_or_zero(x)
    scaled_x = with_sign_of(scaled_subnormal(x), x)  # zeros keep theirs
    return jnp.where(tiny, scaled_x, x) / jnp.where(tiny, _scaled_up(divisor), divisor)


def tiny_quotient(x: jax.Array, s: jax.Array, quotient: jax.Array) -> jax.Array:
    """``quotient``, with the smallest normal number for every zero that a correctly rounded ``x / s`` would not be.

    The rounded quotient is nonzero when ``|x| > s * 2**-150`` (half the smallest subnormal); both sides times 2**75 are
    normal wherever the comparison is close. Directed rounding needs to know, other directions do not.
    """
    form, small = layout(x.dtype), is_subnormal_or_zero(x)
    half_smallest = form.mantissa + 1 - form.min_exponent  # 150
    up, down = half_smallest // 2, half_smallest - half_smallest // 2
    factor = jnp.where(small, _power(up + form.min_exponent, x.dtype), _power(up, x.dtype))
    size = jnp.abs(jnp.where(small, scaled_subnormal(x), x)) * factor
    lost = (quotient == 0) & (size > s * _power(-down, x.dtype))
    return jnp.where(lost, with_sign_of(jnp.asarray(form.smallest), x), quotient)


def vanishing(s: jax.Array) -> jax.Array:
    """`magnitude` of the largest ``x`` whose correctly rounded quotient ``x / s`` is zero; of any ``x`` for NaN.

    That is the largest number of at most ``s * 2**-150`` (half the smallest subnormal, a tie that goes to zero). As a
    pattern it counts smallest subnormals: ``s / 2`` without its fraction; from 2**24 upwards the numbers are normal
    and it is that of ``s`` with 150 less in its exponent.

    Args:
        s: float32 or float64, positive normal numbers.
    """
    form = layout(s.dtype)
    lower = bit_pattern(s) - (form.integer(form.mantissa + 1 - form.min_exponent) << form.mantissa)
    bound = jnp.where(s < _power(form.mantissa + 1, s.dtype), (s * _power(-1, s.dtype)).astype(form.integer), lower)
    return jnp.where(jnp.isnan(s), ~form.sign, bound)


def add(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a + b``, correctly rounded, also where operands or the sum are subnormal.

    Small operands are added 2**64 times as large (for float32), where nothing is subnormal. A sum that ends below the
    smallest normal number is exact, since all such numbers are multiples of the smallest subnormal.
    """
    form = layout(a.dtype)
    up = 1 - form.min_exponent // 2  # 64
    limit = _power(4 - up, a.dtype)
    total = scaled(a, up) + scaled(b, up)
    steps = jnp.abs(total) * _power(form.mantissa - form.min_exponent - up, a.dtype)  # of the smallest subnormal
    subnormal = with_sign_of(from_pattern(steps.astype(form.integer), a.dtype), total)
    below = jnp.abs(total) < _power(form.min_exponent + up, a.dtype)
    small = jnp.where(below, subnormal, total * _power(-up, a.dtype))
    return jnp.where((jnp.abs(a) < limit) & (jnp.abs(b) < limit), small, a + b)


def product(code: jax.Array, scale: jax.Array, *, signed_zero: bool = False) -> jax.Array:
    """``code * scale`` rounded, +0.0 for zero codes of either sign, NaN for NaN; not to be fused with what follows.

    With ``signed_zero`` zero codes keep their sign.

    The select keeps compilers from contracting the product into a multiply-add; its other arm is not a constant,
    because LLVM moves an addition into a select with a constant arm. (``code - code`` becomes one where LLVM knows that
    the code comes from an integer.) Of a constant ``code`` the select is folded away: then the other factor goes first.
    """
    return jnp.where(code == 0, code if signed_zero else jnp.abs(code), code * scale)


def short_product(code: jax.Array, scale: jax.Array, *, signed_zero: bool = False) -> jax.Array:
    """As `product`, for codes whose last bit is 0, such as integers of at most 17 bits, or that are NaN: cheaper.

    Compilers do not know that it is 0. As a number of its own, +0.0 (with ``signed_zero`` -0.0), it is added: they may
    contract the product with that addition, which changes no bit but the sign of a zero, and with no other. Of constant
    ``code`` they do know it; so a bit of ``scale``, which is 0 too, is added to it. Where both are constants, so is the
    product, and nothing is contracted.
    """
    last = (bit_pattern(code) & 1) | jnp.equal(bit_pattern(scale), 0).astype(layout(scale.dtype).integer)
    return code * scale + from_pattern(last | layout(code.dtype).sign if signed_zero else last, code.dtype)


def multiple(number: int, scale: jax.Array) -> jax.Array:
    """``number * scale`` rounded, NaN for NaN; not to be fused with what follows, as in `product`.

    Its select asks the scale: compilers know what a constant is, and drop a select that asks that.
    """
    return jnp.where(scale > 0, scale * layout(scale.dtype).smallest.dtype.type(number), scale)


def hidden_zero(s: jax.Array) -> jax.Array:
    """+0.0 for every positive (or NaN) ``s``, which compilers cannot know.

    For the other arm of a select whose one arm is an array: with a constant zero there LLVM loads the array under a
    mask, which takes twice as long on some processors.
    """
    return from_pattern(jnp.equal(bit_pattern(s), 0).astype(layout(s.dtype).integer), s.dtype)


def _power(exponent: int, dtype: Any) -> Any:
    return np.dtype(dtype).type(2.0**exponent)


def _scaled_up(s: jax.Array) -> jax.Array:
    """``s * 2**126``, or 2**127 from 1 upwards, where the quotient of a subnormal is no normal number anyway.

    NaN stays NaN.
    """
    power = -layout(s.dtype).min_exponent
    return jnp.where(s >= 1, _power(power + 1, s.dtype), s * _power(power, s.dtype))


def scaled(x: jax.Array, up: int) -> jax.Array:
    """``x * 2**up``, exact unless it overflows."""
    below = layout(x.dtype).min_exponent
    subnormal = scaled_subnormal(x) * _power(up + below, x.dtype)
    return jnp.where(is_subnormal_or_zero(x), subnormal, x * _power(up, x.dtype))


def by_blocks(x: jax.Array, granularity: Granularity) -> tuple[jax.Array, Shape]:
    """``x`` with the axes of a block apart from those that count blocks, and which they are. Nothing moves in memory.

    Reduced over these axes, it reshapes to `granularity.qparams_shape`. Axes of length 1 are left out: XLA reduces
    faster without them.
    """
    if isinstance(granularity, PerTensor):
        return x.reshape(-1), (0,)
    pairs = zip(qparams_shape(granularity, x.shape), granularity.block_size(x.shape), strict=True)
    axes = [(n, inside) for pair in pairs for n, inside in zip(pair, (False, True), strict=True) if n != 1]
    return x.reshape([n for n, _ in axes]), tuple(axis for axis, (_, inside) in enumerate(axes) if inside)
