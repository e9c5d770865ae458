"""What happens to each element, as expressions that a compiler fuses and ``torch.func`` transforms.

Every argument is in the wide dtype (float32 or float64), the scale ``s`` and the zero point ``z`` (None when symmetric)
broadcast against the value. Where ``z`` is the value of the middle code (`Arithmetic.has_float_zeros`), the value of
code 0 is subtracted from ``x``, and ``z`` added to the product; each of these operations is rounded.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.descriptions import Gradient, Quantizer
from ..core.formats import IntegerFormat
from .arrays import widened
from .grid import limit_to_grid, round_to_grid
from .ste import passing_mask
from .zero_point import middle_code


class Terms(NamedTuple):
    """Gradient of x, and the terms whose sums over blocks are those of scale and zero point; None if not wanted."""

    x: Tensor | None
    scale: Tensor | None
    zero_point: Tensor | None


def codes_of(
    q: Quantizer,
    value: Tensor,
    s: Tensor,
    z: Tensor | None,
    noise: Tensor | None = None,
    limits: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``value / s``, what the clipping mask looks at, and the numbers of the format (0 of either sign: `one_zero`).

    With floating-point zero points ``(value - (z - mid * s)) / s`` in the place of the first.

    Args:
        noise: of stochastic rounding, shape of ``value``.
        limits: smallest and largest code, 0-d, where they are not the format's.
    """
    if z is not None and q.arithmetic.has_float_zeros:
        value, z = value - value_of_code_0(q, s, z), None
    quotient = value / s
    if q.nearest_integers:  # rounded after the clamp, whose limits are integers: the same codes
        clamped = quotient.clamp(q.format.lo, q.format.hi) if limits is None else _limited(quotient, limits)
        return quotient, quotient.round(), _nearest(clamped)
    rounded = round_to_grid(q, quotient, noise)
    unclamped = rounded if z is None else rounded + z
    return quotient, unclamped, limit_to_grid(q, unclamped) if limits is None else _limited(unclamped, limits)


def value_of_code_0(q: Quantizer, s: Tensor, z: Tensor) -> Tensor:
    """What code 0 stands for where the middle code stands for ``z``: ``z - mid * s``."""
    return z - s * middle_code(q) if middle_code(q) else z


def centred(q: Quantizer, codes: Tensor, z: Tensor | None) -> Tensor:
    """``code - z``, or ``code - mid`` with floating-point zero points. Exact; +0 where it is zero."""
    if z is not None and q.arithmetic.has_float_zeros:
        codes = one_zero(q, codes)
        return codes - middle_code(q) if middle_code(q) else codes
    return one_zero(q, codes) if z is None else codes - z


def _limited(unclamped: Tensor, limits: tuple[Tensor, Tensor]) -> Tensor:
    return torch.minimum(torch.maximum(unclamped, limits[0]), limits[1])


def _nearest(x: Tensor) -> Tensor:
    """The nearest integer, halves to even, +0 for either zero: adding and subtracting a large even number.

    One operation less than rounding and then `one_zero`. ``x`` is a code's size at most. As of rounding, its gradient
    is 0.
    """
    large = 1.5 * 2.0**52 if x.dtype == torch.float64 else 1.5 * 2.0**23
    return (x.detach() + large) - large


def passing(q: Quantizer, quotient: Tensor, unclamped: Tensor, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Where the gradient passes; ``limits`` as `codes_of`."""
    if q.gradient is Gradient.PASS_THROUGH or limits is None:
        return passing_mask(q, quotient, unclamped)
    return ~((unclamped < limits[0]) | (unclamped > limits[1]))


def one_zero(q: Quantizer, codes: Tensor) -> Tensor:
    """Integers with +0 for -0: adding and subtracting a large number, which no compiler simplifies.

    Adding 0.0 would do, were it not that inductor compiles with ``-fno-signed-zeros``. Numbers of the other formats
    come from `grid` with the zeros that they have.
    """
    if q.nearest_integers or q.relaxed or not isinstance(q.format, IntegerFormat):
        return codes  # of nearest integers `codes_of` made one zero, and what is relaxed has had something added: no -0
    return _nearest(codes)


def values_of(q: Quantizer, codes: Tensor, s: Tensor, z: Tensor | None) -> Tensor:
    """``(code - z) * s``, or ``(code - mid) * s + z``; -0.0 only in formats that have it."""
    if q.nearest_integers:  # as below, without functions that compiled code would be guarded by
        return codes * s
    product = centred(q, codes, z) * s
    return product + z if z is not None and q.arithmetic.has_float_zeros else product


def gradient_terms(
    q: Quantizer,
    value: Tensor,
    s: Tensor,
    z: Tensor | None,
    g: Tensor,
    wanted: Sequence[bool],
    noise: Tensor | None = None,
    limits: tuple[Tensor, Tensor] | None = None,
) -> Terms:
    """Gradients of x, scale and zero point before they are summed; ``g`` in the dtype of x. See `Gradient`."""
    quotient, unclamped, codes = codes_of(q, value, s, z, noise, limits)
    passes = passing(q, quotient, unclamped, limits)
    dx = _where(passes, g, quotient) if wanted[0] else None
    wide, d_scale, d_zero = widened(g), None, None
    if wanted[1]:
        steps = codes if z is None else centred(q, codes, z)
        if z is not None and q.arithmetic.has_float_zeros:
            quotient = (value - z) / s
        d_scale = wide * (steps - torch.where(passes, quotient, torch.zeros_like(quotient)))
        if q.gradient is Gradient.LEARNED_CLIP:
            d_scale = torch.where(passes, torch.zeros_like(d_scale), d_scale)
    if wanted[2]:
        per_zero = wide if q.arithmetic.has_float_zeros else wide * -s
        d_zero = torch.where(passes, torch.zeros_like(wide), per_zero)
    return Terms(dx, d_scale, d_zero)


def _where(passes: Tensor, g: Tensor, like: Tensor) -> Tensor:
    """``g`` where the gradient passes, else +0.0.

    Compiled, the mask is handed on to the backward pass. Inductor writes truth values one after the other, in thirty
    times as long as small integers; and unless those become bits before they meet ``g``, it hands on truth values.
    """
    if not torch.compiler.is_compiling():
        return torch.where(passes, g, torch.zeros_like(g))
    mask = torch.where(passes, torch.ones_like(like), torch.zeros_like(like)).to(torch.uint8)
    wide = g.to(like.dtype)
    integer = torch.int64 if wide.dtype == torch.float64 else torch.int32
    return (wide.view(integer) & -mask.to(integer)).view(wide.dtype).to(g.dtype)
