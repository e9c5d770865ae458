"""Laws that any quantizer must satisfy, as plain functions over an `Implementation`.

Each takes an implementation, a quantizer, an array, parameters that fit it and an incoming gradient, and raises
AssertionError when the promise in its docstring is broken, with the call, the inputs and both results. Whatever the
array holds is welcome: laws about finite numbers look at those only, laws about NaN put some in.

``LAWS`` holds them by name. Some are promised for certain quantizers only; `applies` tells. For your own functions:

    mine = Implementation("mine", choose_qparams, quantize, dequantize, fake_quantize, fake_quantize_vjp)
    for name, law in LAWS.items():
        if applies(name, q):
            law(mine, q, x, qparams, g)
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from ...core.arithmetic import Arithmetic
from ...core.descriptions import Gradient, QParams, Quantizer
from ...core.directions import Rounding
from ...core.formats import BinaryFormat, CodebookFormat, FloatFormat, IntegerFormat
from ...core.granularity import PerTensor
from ...core.scales import Denominator, Restriction, Statistic
from ..inputs.numbers import DIRECTED, numbers
from ..modes.execution import Implementation
from . import codes, gradients, parameters, specials

Law = Callable[[Implementation, Quantizer, NDArray[Any], QParams, NDArray[Any]], None]
Condition = Callable[[Quantizer], bool]


def _always(q: Quantizer) -> bool:
    return True


def _nearest(q: Quantizer) -> bool:
    return q.rounding not in DIRECTED


def _determined(q: Quantizer) -> bool:
    """By the number alone, not by its place."""
    return q.rounding is not Rounding.STOCHASTIC


def _odd(q: Quantizer) -> bool:
    """Of binary numbers zero is among the positive ones, and the midpoints of a codebook belong to the number below."""
    directions = (Rounding.TIES_TO_EVEN, Rounding.TIES_TO_AWAY, Rounding.TOWARD_ZERO, Rounding.STOCHASTIC)
    signed = q.format.signed if isinstance(q.format, IntegerFormat) else True
    listed = isinstance(q.format, BinaryFormat | CodebookFormat)
    return not q.affine and signed and not listed and q.rounding in directions


def _many_blocks(q: Quantizer) -> bool:
    """And nothing that all have in common."""
    return not isinstance(q.granularity, PerTensor) and not q.scale.two_level


def _affine(q: Quantizer) -> bool:
    return q.affine


def _holds_zero(q: Quantizer) -> bool:
    """Binary numbers have none, codebooks need not."""
    return q.affine or 0 in numbers(q.format)


def _one_zero(q: Quantizer) -> bool:
    return _holds_zero(q) and not q.format.negative_zero


def _two_zeros(q: Quantizer) -> bool:
    return q.format.negative_zero


def _nan_code(q: Quantizer) -> bool:
    return q.format.has_nan


def _no_nan_code(q: Quantizer) -> bool:
    return not q.format.has_nan


def _even_neighbours(q: Quantizer) -> bool:
    """Powers of two alone, without a significand, are neither even nor odd."""
    return _determined(q) and not (isinstance(q.format, FloatFormat) and q.format.mantissa_bits == 0)


def _of_data(q: Quantizer) -> bool:
    """Its scales, and not given."""
    return q.scale.scale_value is None


def _covers(q: Quantizer) -> bool:
    """Floor and even exponents and quantized scales clamp on purpose, and so do statistics other than the extremes.

    (L1 and L2, which are no less than absmax but for rounding, are told by `chosen_scale_is_the_statistic`.)

    A scale that has been a logarithm may be smaller by its rounding.

    Of formats that end below 2 the largest data would need the power of two after the last. Denominators other than the
    end and the larger end are about integers: they may leave numbers out at one end of a codebook,
    and the edge lies beyond the end on purpose.
    """
    clamping = (Restriction.POWER_OF_TWO_FLOOR, Restriction.POWER_OF_TWO_EVEN, Restriction.QUANTIZED)
    below = (*clamping, Restriction.INTEGER_NEAREST, Restriction.LOG_FLOAT)
    if q.scale.restriction in below or q.scale.statistic is not Statistic.EXTREMES or not _of_data(q):
        return False
    if q.scale.restriction is not Restriction.FLOAT and q.format.hi < 2:
        return False
    if q.scale.denominator in (Denominator.EDGE, Denominator.NEXT) and not isinstance(q.format, IntegerFormat):
        return False
    return not isinstance(q.format, CodebookFormat) or q.scale.denominator in (Denominator.HI, Denominator.LARGER)


def _clipped(q: Quantizer) -> bool:
    """By its code. Where it begins to be clipped is drawn, too, with stochastic rounding."""
    return q.gradient in (Gradient.CLIPPED, Gradient.LEARNED_SCALE) and _determined(q)


_TABLE: Mapping[str, tuple[Law, Condition]] = {
    "equals_specification": (codes.equals_specification, _always),
    "inputs_are_kept": (codes.inputs_are_kept, _always),
    "codes_lie_in_range": (codes.codes_lie_in_range, _always),
    "fake_is_dequantize_of_quantize": (codes.fake_is_dequantize_of_quantize, _always),
    "fake_quantize_is_idempotent": (codes.fake_quantize_is_idempotent, _nearest),
    "grid_points_keep_their_codes": (codes.grid_points_keep_their_codes, _nearest),
    "values_are_rounded_products": (codes.values_are_rounded_products, _always),
    "halves_round_in_the_named_direction": (codes.halves_round_in_the_named_direction, _even_neighbours),
    "error_is_bounded": (codes.error_is_bounded, _always),
    "quantize_is_monotone": (codes.quantize_is_monotone, _determined),
    "quantize_is_odd": (codes.quantize_is_odd, _odd),
    "powers_of_two_cancel": (codes.powers_of_two_cancel, _always),
    "zero_stays_zero": (specials.zero_stays_zero, _holds_zero),
    "zero_code_has_one_sign": (specials.zero_code_has_one_sign, _one_zero),
    "values_keep_the_sign": (specials.values_keep_the_sign, _two_zeros),
    "nan_propagates": (specials.nan_propagates, _always),
    "quantize_has_no_code_for_nan": (specials.quantize_has_no_code_for_nan, _no_nan_code),
    "nan_has_one_code": (specials.nan_has_one_code, _nan_code),
    "infinities_go_to_the_ends": (specials.infinities_go_to_the_ends, _always),
    "order_within_a_block_is_indifferent": (specials.order_within_a_block_is_indifferent, _determined),
    "blocks_do_not_touch": (specials.blocks_do_not_touch, _many_blocks),
    "gradient_is_g_or_zero": (gradients.gradient_is_g_or_zero, _always),
    "gradient_passes_inside_only": (gradients.gradient_passes_inside_only, _clipped),
    "scale_gradient_is_the_sum": (gradients.scale_gradient_is_the_sum, _always),
    "zero_point_gradient_is_the_sum": (gradients.zero_point_gradient_is_the_sum, _affine),
    "chosen_parameters_are_allowed": (parameters.chosen_parameters_are_allowed, _always),
    "chosen_scale_is_the_statistic": (parameters.chosen_scale_is_the_statistic, _always),
    "chosen_range_covers_the_data": (parameters.chosen_range_covers_the_data, _covers),
    "nothing_has_the_smallest_scale": (parameters.nothing_has_the_smallest_scale, _of_data),
    "infinite_data_has_no_scale": (parameters.infinite_data_has_no_scale, _of_data),
}

OF_REAL_ZEROS = (
    "inputs_are_kept",
    "codes_lie_in_range",
    "quantize_is_monotone",
    "quantize_has_no_code_for_nan",
    "order_within_a_block_is_indifferent",
    "blocks_do_not_touch",
    "gradient_is_g_or_zero",
    "chosen_scale_is_the_statistic",
    "infinite_data_has_no_scale",
)
"""Laws of floating-point zero points: those that need neither 0.0 to be the value of a code, nor ``x_hat`` a product of
one rounding, nor sums and differences to stay finite (``z - mid * s`` may overflow)."""

LAWS: Mapping[str, Law] = MappingProxyType({name: law for name, (law, _) in _TABLE.items()})


def applies(name: str, q: Quantizer) -> bool:
    """Whether the law of this name is promised for this quantizer.

    Of arithmetics other than the default only equality with the specification is; with floating-point zero points also
    `OF_REAL_ZEROS`. KeyError for a name that is no law.
    """
    if q.arithmetic != Arithmetic() and name != "equals_specification":
        return q.affine and q.arithmetic.has_float_zeros and name in OF_REAL_ZEROS and _TABLE[name][1](q)
    return _TABLE[name][1](q)
