"""What happens to each element in other arithmetics than the usual one: expressions, as in `elementwise`.

Every argument is in the working dtype (`operations.working_dtype`), scale and zero point broadcast against the value;
the zero point is None only where it would be the integer 0. Formulas stand in `samebits.core.quantizer`. Rounding and
clamping are done in float32 (float64), which is exact for numbers of 16 bits. What differs from core in method: codes
that may round after the clamp do (two operations less), zeros get their signs by bits, limits are numbers of Python.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.arithmetic import Arithmetic, ClampOrder, Division, NanRule, ZeroPointDomain, ZeroPointOrder
from ..core.descriptions import ON_QUOTIENT, Gradient, Quantizer
from ..core.directions import Rounding
from ..core.formats import CodebookFormat, FloatFormat, IntegerFormat, Specials, TernaryFormat
from . import grid
from .expressions import Terms, bits_of, carried, nearest, sign_of, signed_sum, where_passing
from .operations import add, divide, flush, multiply, multiply_add, reciprocal, round_to_dtype
from .ste import passing_mask

PLAIN = Arithmetic()
Limits = tuple[Tensor, Tensor] | None  # smallest and largest code, where they are not the format's


def codes_of(
    q: Quantizer, value: Tensor, s: Tensor, z: Tensor | None, noise: Tensor | None = None, limits: Limits = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``value / s``, what the clipping mask looks at, and the numbers of the format, with the zeros that they have."""
    quotient, unclamped, codes = _codes(q, value, s, z, noise, limits)
    if q.arithmetic.nan is NanRule.PROPAGATE or _clamps_nan(q, limits):
        return quotient, unclamped, codes
    if q.arithmetic.nan is NanRule.ZERO_POINT:
        instead = _codes(q, torch.zeros_like(value), s, z, noise, limits)[2]
    else:
        instead = _instead_of_nan(q, codes, limits)
    return quotient, unclamped, torch.where(codes != codes, instead, codes)


def values_of(q: Quantizer, codes: Tensor, s: Tensor, z: Tensor | None) -> Tensor:
    """``(code - z) * s``, ``(code - mid) * s + z`` or ``code * s - z``, in the working dtype."""
    a = q.arithmetic
    if z is None or a.zero_point_domain is ZeroPointDomain.INTEGER:
        centred = codes if z is None else add(codes, -z, a)
        if isinstance(q.format, FloatFormat | CodebookFormat):
            return multiply(centred, s, a)
        return product(centred, flush(s, a))  # integers times normal numbers: there is nothing to flush
    if a.zero_point_domain is ZeroPointDomain.SHIFT:
        return multiply_add(codes, s, -z, a)
    return multiply_add(_less_middle(q, codes), s, z, a)


def with_one_zero(values: Tensor) -> Tensor:
    """Values with +0 for -0."""
    wide = carried(values)
    bits = wide.view(bits_of(wide.dtype))
    return torch.where(wide == 0, 0, bits).view(wide.dtype).to(values.dtype)


def passing(q: Quantizer, quotient: Tensor, unclamped: Tensor, z: Tensor | None, limits: Limits = None) -> Tensor:
    """Where the gradient passes."""
    quotient, looked_at = carried(quotient), carried(unclamped)
    if q.gradient is Gradient.PASS_THROUGH or (limits is None and not _clamps_first(q)):
        if q.gradient in ON_QUOTIENT:  # compared with the ends as numbers of the dtype
            whole = isinstance(q.format, IntegerFormat)
            lo, hi = (bound_of(end, unclamped.dtype, whole=whole) for end in ends_of(q))
            clips = q.gradient is Gradient.LEARNED_CLIP
            outside = (quotient < 0) | (quotient >= hi) if clips else (quotient < lo) | (quotient > hi)
            return ~outside
        return passing_mask(q, quotient, looked_at)
    if not _clamps_first(q) and limits is not None:
        return ~((looked_at < limits[0]) | (looked_at > limits[1]))
    low, high = _ends(q, unclamped.dtype, _later(q, z), limits)
    return ~((looked_at < low) | (looked_at > high))


def gradient_terms(
    q: Quantizer,
    value: Tensor,
    s: Tensor,
    z: Tensor | None,
    g: Tensor,
    wanted: Sequence[bool],
    noise: Tensor | None = None,
    limits: Limits = None,
) -> Terms:
    """Gradients of x (in the dtype of ``g``), scale and zero point before they are summed. See `Gradient`."""
    a = q.arithmetic
    quotient, unclamped, codes = codes_of(q, value, s, z, noise, limits)
    passes = passing(q, quotient, unclamped, z, limits)
    dx = where_passing(passes, g, carried(quotient)) if wanted[0] else None
    wide, d_scale, d_zero, nothing = as_operand(g, value.dtype), None, None, torch.zeros_like(quotient)
    if wanted[1]:
        steps = codes
        if z is not None and a.zero_point_domain is ZeroPointDomain.INTEGER:
            steps = add(codes, -z, a)
        elif z is not None and a.zero_point_domain is ZeroPointDomain.FLOAT:
            steps, quotient = _less_middle(q, codes), divide(add(value, -z, a), s, a)
        distance = add(steps, -torch.where(passes, quotient, nothing), a)
        d_scale = multiply(wide, distance, a)
        if q.gradient is Gradient.LEARNED_CLIP:
            d_scale = torch.where(passes, nothing, d_scale)
    if wanted[2]:
        if a.zero_point_domain is ZeroPointDomain.INTEGER:
            per_zero = -s
        else:
            per_zero = torch.full_like(s, 1.0 if a.zero_point_domain is ZeroPointDomain.FLOAT else -1.0)
        d_zero = torch.where(passes, nothing, multiply(wide, per_zero, a))
    return Terms(dx, d_scale, d_zero)


def clamped_ends(
    q: Quantizer, value: Tensor, s: Tensor, z: Tensor | None, g: Tensor, noise: Tensor | None, limits: Limits
) -> Tensor:
    """``g * s`` where a code was clamped to the largest, ``-g * s`` where to a smallest that moves, else 0."""
    quotient, unclamped, codes = codes_of(q, value, s, z, noise, limits)
    wide, nothing = as_operand(g, value.dtype), torch.zeros_like(value)
    hi = number_of(ends_of(q)[1], value.dtype) if limits is None else carried(round_to_dtype(limits[1], value.dtype))
    ends = torch.where(carried(codes) == hi, wide, -wide if q.format.lo else nothing)
    return torch.where(passing(q, quotient, unclamped, z, limits), nothing, multiply(ends, s, q.arithmetic))


def products(q: Quantizer, g: Tensor, s: Tensor, slope: Tensor) -> Tensor:
    """``fl(fl(g * s) * slope)``."""
    wide = as_operand(g, s.dtype)
    return multiply(multiply(wide, s, q.arithmetic), round_to_dtype(slope, s.dtype), q.arithmetic)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a * b``, rounded once; subnormal numbers stay."""
    return multiply(a, b, PLAIN)


def as_operand(x: Tensor, work: torch.dtype) -> Tensor:
    """A tensor from outside in the working dtype: what compilers left unrounded is rounded to its own dtype first."""
    if x.element_size() == 2 and torch.compiler.is_compiling():
        x = round_to_dtype(x.to(torch.float32), x.dtype)
    return round_to_dtype(x, work)


def number_of(value: float, dtype: torch.dtype) -> float:
    """A number of Python rounded to nearest even to a dtype."""
    if value == 0 or not math.isfinite(value):
        return float(value)
    digits, least, most = _LAYOUT[dtype]
    quantum = max(math.frexp(value)[1], least + 1) - digits
    size = abs(math.ldexp(round(math.ldexp(value, -quantum)), quantum))
    return math.copysign(size if size < 2.0**most * 2 else math.inf, value)


def bound_of(value: float, dtype: torch.dtype, *, whole: bool = False) -> float:
    """The number that NumPy compares an array of a dtype with: of bfloat16, but for integers, float32."""
    return number_of(value, torch.float32 if dtype == torch.bfloat16 and not whole else dtype)


def ends_of(q: Quantizer) -> tuple[float, float]:
    """Smallest and largest number of the format, as constants of a program."""
    return float(q.ends[0]), float(q.ends[1])


def middle_of(q: Quantizer) -> float:
    """`zero_point.middle_code`, as a constant of a program."""
    lo, hi = ends_of(q)
    return float(math.floor((lo + hi + 1) / 2))


_LAYOUT = {  # bits of the significand, smallest and largest exponent
    torch.bfloat16: (8, -126, 127),
    torch.float16: (11, -14, 15),
    torch.float32: (24, -126, 127),
    torch.float64: (53, -1022, 1023),
}


def _codes(
    q: Quantizer, value: Tensor, s: Tensor, z: Tensor | None, noise: Tensor | None, limits: Limits
) -> tuple[Tensor, Tensor, Tensor]:
    """`codes_of`, NaN where there is one."""
    quotient, shifted = _quotients(q, value, s, z)
    later = _later(q, z)
    if q.arithmetic.clamp_order is ClampOrder.BEFORE_ROUNDING:
        codes = _rounded(q, _limited(q, shifted, later, limits), noise)
        return quotient, shifted, _with_zeros(q, _plus(q, codes, later))
    if _rounds_late(q, value.dtype) and later is None:
        return quotient, shifted.round(), nearest(_limited(q, shifted, None, limits))
    unclamped = _plus(q, _rounded(q, shifted, noise), later)
    codes = _limited(q, unclamped, None, limits)
    return quotient, unclamped, _with_zeros(q, codes) if later is None else codes  # no -0 comes of adding 0


def _quotients(q: Quantizer, value: Tensor, s: Tensor, z: Tensor | None) -> tuple[Tensor, Tensor]:
    """``value / s``, of a value less that of code 0 in other domains; and with the zero point, if that comes first."""
    a = q.arithmetic
    if z is not None and a.zero_point_domain is ZeroPointDomain.FLOAT:
        low = multiply_add(s, torch.full_like(s, -middle_of(q) + 0.0), z, a)
        value, z = _add(q, value, -low), None
    elif z is not None and a.zero_point_domain is ZeroPointDomain.SHIFT:
        value, z = _add(q, value, z), None
    quotient = divide(value, s, a)
    if a.zero_point_order is ZeroPointOrder.AFTER_ROUNDING:
        return quotient, quotient
    if z is not None and a.division is Division.RECIPROCAL:
        return quotient, multiply_add(value, reciprocal(s, a), z, a)
    if z is not None:
        return quotient, _add(q, quotient, z)
    if not (a.keep_negative_zero or q.format.negative_zero):
        return quotient, quotient
    positive = with_one_zero(quotient)  # as 0 is added
    if a.fused_multiply_add and a.division is Division.RECIPROCAL:  # a product that vanishes is none
        lost = (flush(value, a) != 0) & (reciprocal(s, a) != 0)
        positive = torch.where(lost, quotient, positive)
    return quotient, positive


def _later(q: Quantizer, z: Tensor | None) -> Tensor | None:
    """The zero point, where it is added to rounded codes."""
    after = q.arithmetic.zero_point_order is ZeroPointOrder.AFTER_ROUNDING
    return z if after and q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER else None


def _plus(q: Quantizer, rounded: Tensor, later: Tensor | None) -> Tensor:
    """Rounded codes and what is added to them: of affine quantizers at least 0, which makes +0 of -0."""
    if later is not None:
        return add(rounded, later, q.arithmetic)
    adds = q.affine and q.arithmetic.zero_point_order is ZeroPointOrder.AFTER_ROUNDING
    return with_one_zero(rounded) if adds and q.arithmetic.keep_negative_zero else rounded


def _add(q: Quantizer, a: Tensor, b: Tensor) -> Tensor:
    """`add`, of zeros whose signs count where a format has both."""
    total = add(a, b, q.arithmetic)
    compiled = torch.compiler.is_compiling() and q.format.negative_zero and not q.arithmetic.keep_negative_zero
    return signed_sum(a, b, total) if compiled else total


def _rounds_late(q: Quantizer, work: torch.dtype) -> bool:
    """Whether rounding after the clamp gives the same codes: integers, to nearest even, of one zero."""
    nearest_even = q.rounding is Rounding.TIES_TO_EVEN and isinstance(q.format, IntegerFormat)
    return nearest_even and work.itemsize > 2 and not q.arithmetic.keep_negative_zero


def _rounded(q: Quantizer, u: Tensor, noise: Tensor | None) -> Tensor:
    """`grid.round_to_grid`; what soft rounding adds to is no integer, and rounded once more."""
    return round_to_dtype(grid.round_to_grid(q, carried(u), noise), u.dtype)


def _limited(q: Quantizer, u: Tensor, later: Tensor | None, limits: Limits) -> Tensor:
    """The number of the format for ``u``, less a zero point that is added later. -0 stays what it is."""
    wide = carried(u)
    if not isinstance(q.format, IntegerFormat):
        return _on_grid(q, wide, u.dtype)
    low, high = _ends(q, u.dtype, later, limits)
    if _clamps_nan(q, limits) and not isinstance(low, Tensor) and not isinstance(high, Tensor):
        if q.arithmetic.nan is NanRule.LOWEST:
            limited = torch.where(wide > low, wide, low).clamp(max=high)
        else:
            limited = torch.where(wide < high, wide, high).clamp(min=low)
    elif isinstance(low, Tensor) or isinstance(high, Tensor):
        limited = torch.minimum(torch.maximum(wide, _tensor(low, wide)), _tensor(high, wide))
    else:
        limited = wide.clamp(low, high)
    if q.arithmetic.keep_negative_zero:  # which no limit is, and no limit changes
        integer, sign = bits_of(wide.dtype), sign_of(wide.dtype)
        bits = torch.where(limited == 0, 0, limited.view(integer))
        limited = torch.where(wide.view(integer) == sign, sign, bits).view(wide.dtype)
    return limited.to(u.dtype)


def _clamps_nan(q: Quantizer, limits: Limits) -> bool:
    """Whether the clamp makes of NaN what the rule says: the comparison that does costs no more than one that does not.

    Compiled code alone: a select costs eager code as much as ten operations. The limits are numbers of Python then.
    """
    if limits is not None or q.arithmetic.nan not in (NanRule.LOWEST, NanRule.HIGHEST):
        return False
    last = q.arithmetic.clamp_order is ClampOrder.AFTER_ROUNDING and isinstance(q.format, IntegerFormat)
    return last and torch.compiler.is_compiling()


def _on_grid(q: Quantizer, wide: Tensor, dtype: torch.dtype) -> Tensor:
    """`grid.limit_to_grid`, but bounds and numbers are those of the dtype."""
    match q.format:
        case FloatFormat() if dtype.itemsize == 2 and not q.format.saturate and q.format.specials is not Specials.NONE:
            beyond = wide.abs() > bound_of(ends_of(q)[1], dtype)
            instead = torch.inf if q.format.specials is Specials.IEEE else torch.nan
            number = torch.where(beyond, torch.copysign(torch.full_like(wide, instead), wide), wide)
        case TernaryFormat() if dtype.itemsize == 2:
            outside = wide.abs() > number_of(float(q.format.decimal), dtype)
            number = torch.where(wide != wide, wide, torch.where(outside, wide.sign(), 0.0))
        case _:
            number = grid.limit_to_grid(q, wide)
    return round_to_dtype(number, dtype)


def _ends(
    q: Quantizer, dtype: torch.dtype, later: Tensor | None, limits: Limits
) -> tuple[float | Tensor, float | Tensor]:
    """Limits of the clamp: the format's, inwards to a number of the dtype, less the zero point that is added later."""
    low: float | Tensor
    high: float | Tensor
    if limits is None:
        low, high = (_inwards(end, dtype) for end in ends_of(q))
    else:
        low, high = (_inwards_of(limit, dtype) for limit in limits)
    if later is None:
        return low, high
    wide = carried(later)
    return tuple(carried(round_to_dtype(limit - wide, dtype)) for limit in (low, high))  # type: ignore[return-value]


def _inwards(limit: float, dtype: torch.dtype) -> float:
    """The number of the dtype next to ``limit`` in the direction of 0."""
    digits, _, most = _LAYOUT[dtype]
    if limit == 0:
        return 0.0
    quantum = math.frexp(limit)[1] - digits
    inward = math.ldexp(math.trunc(math.ldexp(limit, -quantum)), quantum)
    largest = (2.0 - 2.0 ** (1 - digits)) * 2.0**most
    return min(max(inward, -largest), largest)


def _inwards_of(limit: Tensor, dtype: torch.dtype) -> Tensor:
    """The same of an integer in a tensor: by dropping bits."""
    if dtype.itemsize > 2:
        return limit
    dropped = {torch.bfloat16: 16, torch.float16: 13}[dtype]
    inward: Tensor = (limit.to(torch.float32).view(torch.int32) & -(1 << dropped)).view(torch.float32)
    return inward.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)


def _tensor(limit: float | Tensor, like: Tensor) -> Tensor:
    return limit.to(like.dtype) if isinstance(limit, Tensor) else torch.full((), limit, dtype=like.dtype)


def _with_zeros(q: Quantizer, codes: Tensor) -> Tensor:
    """Codes with one zero, unless there are two."""
    if q.arithmetic.keep_negative_zero or q.format.negative_zero:
        return codes
    if isinstance(q.format, IntegerFormat) and not q.relaxed:
        return nearest(carried(codes)).to(codes.dtype)
    return with_one_zero(codes)


def _instead_of_nan(q: Quantizer, codes: Tensor, limits: Limits) -> Tensor:
    """The code that the rule has for NaN, 0-d."""
    rule, (lo, hi) = q.arithmetic.nan, ends_of(q)
    if limits is None:
        number = lo if rule is NanRule.LOWEST else hi if rule is NanRule.HIGHEST else min(max(0.0, lo), hi)
        return torch.full((), number_of(number, codes.dtype), dtype=codes.dtype, device=codes.device)
    low, high = limits
    end = low if rule is NanRule.LOWEST else high if rule is NanRule.HIGHEST else torch.zeros_like(low).clamp(low, high)
    return round_to_dtype(end, codes.dtype)


def _clamps_first(q: Quantizer) -> bool:
    """Whether codes are clamped before they are rounded, and the zero point comes after that."""
    after = q.arithmetic.zero_point_order is ZeroPointOrder.AFTER_ROUNDING
    return after and q.arithmetic.clamp_order is ClampOrder.BEFORE_ROUNDING


def _less_middle(q: Quantizer, codes: Tensor) -> Tensor:
    return add(codes, torch.full_like(codes, -middle_of(q) + 0.0), q.arithmetic)
