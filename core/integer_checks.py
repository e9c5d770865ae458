"""Integer operations over 8-bit codes: what their arguments must be, so that no intermediate number overflows.

Nouns only. The bounds are those of the largest codes that a dtype has, whatever a tensor holds.
"""

from collections.abc import Sequence
from math import prod

from .choice import check_int
from .formats import IntegerFormat

CODES = {"int8": (-128, 127), "uint8": (0, 255)}
LARGEST = 2**31 - 1  # of int32
LARGEST_BIAS = 2**30
MULTIPLIERS, SHIFTS = (2**30, LARGEST), (23, 62)  # of `requantize`
SUM_OF_MULTIPLIERS = 2**23  # of `integer_add`: times 255 it is below 2**31
MOST_EXPONENTIAL_BITS = 22  # of `integer_softmax`: 255 times 2**22 is below 2**31
SPREAD = 256  # differences that two codes can have
FEATURES = 2**13  # of `integer_layer_norm`: with more, its squares leave int64
ROOT_BITS, WEIGHT_BITS = 10, 16  # after the point: of its root, and of its weights
LARGEST_NORM_WEIGHT = 2**28


def check_codes_dtype(name: str, dtype: str) -> tuple[int, int]:
    """The smallest and the largest code of a dtype. TypeError for another dtype than int8 and uint8."""
    if dtype not in CODES:
        raise TypeError(f"`{name}` must be codes of dtype int8 or uint8, got {dtype}")
    return CODES[dtype]


def check_int32(name: str, dtype: str) -> None:
    """TypeError for another dtype than int32."""
    if dtype != "int32":
        raise TypeError(f"`{name}` must have dtype int32, got {dtype}")


def check_zero(name: str, zero: int, dtype: str) -> int:
    """A zero point. TypeError for what is no int, ValueError for one outside the codes of the dtype."""
    check_int(name, zero)
    lo, hi = CODES[dtype]
    if not lo <= zero <= hi:
        raise ValueError(f"`{name}` must be in {lo}..{hi}, got {zero}")
    return zero


def check_format(format: IntegerFormat, zero_point: int) -> tuple[int, int]:
    """Smallest and largest code of what is computed, less the zero point, which is one of them.

    Raises:
        TypeError: more than 8 bits, or a zero point that is no int. ValueError: a zero point that is no code.
    """
    if not isinstance(format, IntegerFormat) or format.storage not in CODES:
        raise TypeError(f"`format` must be an IntegerFormat of at most 8 bits, got {format}")
    check_int("zero_point", zero_point)
    if not format.lo <= zero_point <= format.hi:
        raise ValueError(f"`zero_point` must be in {format.lo}..{format.hi}, got {zero_point}")
    return format.lo - zero_point, format.hi - zero_point


def check_matmul(a: Sequence[int], a_dtype: str, b: Sequence[int], b_dtype: str, a_zero: int, biased: bool) -> int:
    """The largest magnitude of ``sum (a - a_zero) * b``.

    Raises:
        TypeError: other dtypes than int8 and uint8, a zero point that is no int.
        ValueError: shapes that do not fit each other; a zero point outside the codes; or a contraction so long that a
            sum could leave int32 (2**30 where a bias is added), whose most terms are named.
    """
    lo, hi = check_codes_dtype("a", a_dtype)
    largest_b = max(map(abs, check_codes_dtype("b", b_dtype)))
    check_zero("a_zero", a_zero, a_dtype)
    if len(b) < 2 or not a or a[-1] != b[-1] or (len(b) > 2 and tuple(a[:-2]) != tuple(b[:-2])):
        raise ValueError(f"`a` must fit `b` of shape {tuple(b)} but for its rows, got shape {tuple(a)}")
    product = max(hi - a_zero, a_zero - lo) * largest_b
    most = (LARGEST_BIAS if biased else LARGEST) // product
    if a[-1] > most:
        raise ValueError(f"`a` must have at most {most} terms in a sum, to fit int32, got {a[-1]}")
    return a[-1] * product


def check_bias(shape: Sequence[int], dtype: str, b: Sequence[int], ends: tuple[int, int] | None) -> None:
    """TypeError unless a bias is int32; ValueError unless it is ``(out,)`` and within 2**30 (``ends``, where known)."""
    check_int32("bias", dtype)
    if tuple(shape) != (b[-2],):
        raise ValueError(f"`bias` must have shape {(b[-2],)}, got {tuple(shape)}")
    check_ends("bias", ends, (-LARGEST_BIAS, LARGEST_BIAS))


def check_ends(name: str, ends: tuple[int, int] | None, allowed: tuple[int, int]) -> None:
    """ValueError unless the smallest and the largest of some numbers, where they are known, are allowed."""
    for end in ends or ():
        if not allowed[0] <= end <= allowed[1]:
            raise ValueError(f"`{name}` must be in {allowed[0]}..{allowed[1]}, got {end}")


def check_multiplier(
    acc: Sequence[int], shape: Sequence[int], dtype: str, shift: Sequence[int], shift_dtype: str
) -> None:
    """Shapes and dtypes of `requantize`: a number, or one for each place of the last axis.

    Raises:
        TypeError: another dtype than int32. ValueError: another shape.
    """
    for name, of_name in (("multiplier", dtype), ("shift", shift_dtype)):
        check_int32(name, of_name)
    for name, of in (("multiplier", shape), ("shift", shift)):
        if tuple(of) not in ((), tuple(acc[-1:])):
            raise ValueError(f"`{name}` must have shape () or {tuple(acc[-1:])}, got {tuple(of)}")


def check_addition(multipliers: tuple[int, int], shift: int) -> None:
    """TypeError, ValueError for multipliers or a shift with which `integer_add` could leave int32."""
    if not isinstance(multipliers, Sequence) or len(multipliers) != 2:
        raise ValueError(f"`multipliers` must be two, of `a` and of `b`, got {multipliers!r}")
    for one in multipliers:
        check_int("multipliers", one)
    check_int("shift", shift)
    if min(multipliers) < 1 or sum(multipliers) > SUM_OF_MULTIPLIERS:
        raise ValueError(f"`multipliers` must be positive, of a sum of at most 2**23, got {multipliers}")
    if not 0 <= shift <= 30:
        raise ValueError(f"`shift` must be in 0..30, got {shift}")


def check_same_shape(a: Sequence[int], b: Sequence[int]) -> None:
    """ValueError unless both shapes are the same."""
    if tuple(a) != tuple(b):
        raise ValueError(f"`b` must have the shape of `a`, {tuple(a)}, got {tuple(b)}")


def check_table(shape: Sequence[int]) -> None:
    """ValueError unless a table has an entry for each code of 8 bits."""
    if tuple(shape) != (SPREAD,):
        raise ValueError(f"`table` must have shape ({SPREAD},), an entry for each code, got {tuple(shape)}")


def check_pool(shape: Sequence[int], dtype: str, size: Sequence[int]) -> list[int]:
    """How many windows fit along each axis behind the second.

    Raises:
        TypeError: other dtypes than int8 and uint8, lengths that are no ints.
        ValueError: another number of lengths than axes; one below 1 or longer than its axis; more than 2**23 places.
    """
    check_codes_dtype("codes", dtype)
    if len(shape) < 3 or not isinstance(size, Sequence) or len(size) != len(shape) - 2:
        raise ValueError(f"`size` must have a length for each axis of {tuple(shape)} but two, got {size!r}")
    for length, of in zip(size, shape[2:], strict=True):
        check_int("size", length)
        if not 1 <= length <= of:
            raise ValueError(f"`size` must be in 1..{of} for an axis of {of}, got {length}")
    if prod(size) > SUM_OF_MULTIPLIERS:
        raise ValueError(f"`size` must have at most 2**23 places, for their sum to fit int32, got {prod(size)}")
    return [of // length for length, of in zip(size, shape[2:], strict=True)]


def check_softmax(shape: Sequence[int], dtype: str, table: Sequence[int], table_dtype: str, bits: int) -> None:
    """Whether rows of this shape can be summed in int32.

    Raises:
        TypeError: codes that are not int8 or uint8, a table that is not int32.
        ValueError: another table than of 256; bits outside 8..22; no axis; or more positions than fit, which are named.
    """
    check_codes_dtype("x", dtype)
    check_int32("exponentials", table_dtype)
    if tuple(table) != (SPREAD,):
        raise ValueError(f"`exponentials` must have shape ({SPREAD},), got {tuple(table)}")
    check_int("bits", bits)
    if not 8 <= bits <= MOST_EXPONENTIAL_BITS:
        raise ValueError(f"`bits` must be in 8..{MOST_EXPONENTIAL_BITS}, got {bits}")
    if not shape or shape[-1] > LARGEST >> bits:
        got = shape[-1] if shape else "no axis"
        raise ValueError(
            f"`x` must have at most {LARGEST >> bits} positions for exponentials of {bits} bits, got {got}"
        )


def check_mask(shape: Sequence[int], mask: Sequence[int], dtype: str) -> None:
    """TypeError unless a mask is bool, ValueError unless it broadcasts to the shape."""
    if dtype != "bool":
        raise TypeError(f"`mask` must have dtype bool, got {dtype}")
    own = tuple(mask)
    behind = tuple(shape)[len(shape) - len(own) :] if len(own) <= len(shape) else ()
    if len(own) > len(shape) or any(n not in (1, of) for n, of in zip(own, behind, strict=True)):
        raise ValueError(f"`mask` must broadcast to the shape of `x`, {tuple(shape)}, got {own}")


def check_norm(
    shape: Sequence[int], dtype: str, weight: Sequence[int], weight_dtype: str, bias: Sequence[int], bias_dtype: str
) -> None:
    """Whether a norm over the last axis stays in int64.

    Raises:
        TypeError: codes that are not int8 or uint8, weights that are not int32.
        ValueError: weights of another shape; or no features or more than 2**13.
    """
    check_codes_dtype("x", dtype)
    if not shape or not 1 <= shape[-1] <= FEATURES:
        got = shape[-1] if shape else "no axis"
        raise ValueError(f"`x` must have 1..{FEATURES} features, for their squares to fit int64, got {got}")
    for name, of, of_name in (("weight", weight, weight_dtype), ("bias", bias, bias_dtype)):
        check_int32(name, of_name)
        if tuple(of) != (shape[-1],):
            raise ValueError(f"`{name}` must have shape {(shape[-1],)}, got {tuple(of)}")


def check_epsilon(epsilon: int) -> None:
    """TypeError for what is no int, ValueError for one outside 0..2**40."""
    check_int("epsilon", epsilon)
    if not 0 <= epsilon <= 2**40:
        raise ValueError(f"`epsilon` must be in 0..2**40, got {epsilon}")
