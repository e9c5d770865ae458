"""What happens to each element, as expressions that a compiler fuses and ``torch.func`` transforms.

Every argument is in the wide dtype (float32 or float64), the scale ``s`` and the zero point ``z`` (None when symmetric)
broadcast against the value. Where ``z`` is the value of the middle code (`Arithmetic.has_float_zeros`), the value of
code 0 is subtracted from ``x``, and ``z`` added to the product; each of these operations is rounded. Other arithmetics
(not `Quantizer.usual`) are those of `arithmetics`, in their working dtype.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.descriptions import Gradient, Quantizer
from ..core.formats import CodebookFormat, IntegerFormat
from . import arithmetics, devices
from .arrays import widened
from .expressions import Terms, nearest, where_passing
from .grid import limit_to_grid, round_to_grid
from .ste import passing_mask
from .zero_point import middle_code


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
    if q.nearest_integers:  # rounded after the clamp, whose limits are integers: the same codes
        quotient = value / s if value.is_cpu else devices.quotient(value, s)
        clamped = quotient.clamp(q.format.lo, q.format.hi) if limits is None else _limited(quotient, limits)
        return quotient, quotient.round(), nearest(clamped)
    if not q.usual:
        return arithmetics.codes_of(q, value, s, z, noise, limits)
    if z is not None and q.arithmetic.has_float_zeros:
        value, z = value - value_of_code_0(q, s, z), None
    quotient = devices.quotient(value, s)
    rounded = round_to_grid(q, quotient, noise)
    unclamped = rounded if z is None else rounded + z
    return quotient, unclamped, limit_to_grid(q, unclamped) if limits is None else _limited(unclamped, limits)


def value_of_code_0(q: Quantizer, s: Tensor, z: Tensor) -> Tensor:
    """What code 0 stands for where the middle code stands for ``z``: ``z - mid * s``."""
    return z - devices.product(s, float(middle_code(q))) if middle_code(q) else z


def centred(q: Quantizer, codes: Tensor, z: Tensor | None) -> Tensor:
    """``code - z``, or ``code - mid`` with floating-point zero points. Exact; +0 where it is zero."""
    if z is not None and q.arithmetic.has_float_zeros:
        codes = one_zero(q, codes)
        return codes - middle_code(q) if middle_code(q) else codes
    return one_zero(q, codes) if z is None else codes - z


def _limited(unclamped: Tensor, limits: tuple[Tensor, Tensor]) -> Tensor:
    return torch.minimum(torch.maximum(unclamped, limits[0]), limits[1])


def passing(
    q: Quantizer,
    quotient: Tensor,
    unclamped: Tensor,
    limits: tuple[Tensor, Tensor] | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Where the gradient passes; ``limits`` as `codes_of`. The zero point counts in other arithmetics alone."""
    if not q.usual:
        return arithmetics.passing(q, quotient, unclamped, z, limits)
    if q.gradient is Gradient.PASS_THROUGH or limits is None:
        return passing_mask(q, quotient, unclamped)
    return ~((unclamped < limits[0]) | (unclamped > limits[1]))


def one_zero(q: Quantizer, codes: Tensor) -> Tensor:
    """Integers with +0 for -0: adding and subtracting a large number, which no compiler simplifies.

    Adding 0.0 would do, were it not that inductor compiles with ``-fno-signed-zeros``. Numbers of the other formats
    come from `grid` with the zeros that they have.
    """
    if not q.usual or q.nearest_integers or q.relaxed or not isinstance(q.format, IntegerFormat):
        return codes  # those of `codes_of` have the zeros that they are to have
    return nearest(codes)


def values_of(q: Quantizer, codes: Tensor, s: Tensor, z: Tensor | None) -> Tensor:
    """``(code - z) * s``, or ``(code - mid) * s + z``; -0.0 only in formats that have it."""
    if q.nearest_integers:  # as below, without functions that compiled code would be guarded by
        return codes * s if codes.is_cpu else devices.product_of_codes(codes, s)
    if not q.usual:
        return arithmetics.values_of(q, codes, s, z)
    multiply = devices.product if isinstance(q.format, CodebookFormat) or q.relaxed else devices.product_of_codes
    product = multiply(centred(q, codes, z), s)
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
    if not q.usual:
        return arithmetics.gradient_terms(q, value, s, z, g, wanted, noise, limits)
    quotient, unclamped, codes = codes_of(q, value, s, z, noise, limits)
    passes = passing(q, quotient, unclamped, limits)
    dx = where_passing(passes, g, quotient) if wanted[0] else None
    wide, d_scale, d_zero = widened(g), None, None
    if wanted[1]:
        steps = codes if z is None else centred(q, codes, z)
        if z is not None and q.arithmetic.has_float_zeros:
            quotient = devices.quotient(value - z, s)
        d_scale = wide * (steps - torch.where(passes, quotient, torch.zeros_like(quotient)))
        if q.gradient is Gradient.LEARNED_CLIP:
            d_scale = torch.where(passes, torch.zeros_like(d_scale), d_scale)
    if wanted[2]:
        per_zero = wide if q.arithmetic.has_float_zeros else wide * -s
        d_zero = torch.where(passes, torch.zeros_like(wide), per_zero)
    return Terms(dx, d_scale, d_zero)
