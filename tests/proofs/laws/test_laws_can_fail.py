"""Every law can fail: wrong implementations, each with the laws that must reject it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits import core
from samebits.core import Quantizer, catalog
from samebits.core.granularity import PerAxis
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.execution import Implementation

from ...law_cases import cases_of
from .wrong_implementations import (
    RIGHT,
    by_position,
    chooses_from_anything,
    clipped,
    coarse,
    flushed,
    half_away,
    mask_by_values,
    middle,
    narrow_product,
    remembers,
    shared_statistic,
    swaps_two_codes,
    with_codes,
    with_gradients,
    with_qparams,
    with_values,
    wraps,
    writes_to_x,
)

Array = NDArray[Any]
INT8, INT4, AFFINE = catalog["int8_per_channel"], catalog["int4_per_channel"], catalog["uint8_affine_per_channel"]
FLOAT8 = catalog["float8_e4m3fn_per_channel"]
GIVEN = AFFINE.replace(source="constant", scale_value=0.03, zero_point_value=7)
WRONG: dict[str, tuple[Implementation, Quantizer, tuple[str, ...]]] = {
    "multiplies by the reciprocal": (
        with_codes(lambda q, x, s, z: clipped(q, np.rint(x * (np.float32(1) / s)) + z)),
        INT8,
        ("error_is_bounded", "equals_specification"),
    ),
    "rounds half away from zero": (
        with_codes(lambda q, x, s, z: clipped(q, half_away(x / s) + z)),
        INT8,
        ("halves_round_in_the_named_direction",),
    ),
    "rounds half up": (
        with_codes(lambda q, x, s, z: clipped(q, np.floor(x / s + np.float32(0.5)) + z)),
        INT8,
        ("halves_round_in_the_named_direction", "quantize_is_odd"),
    ),
    "a given scale that follows the data": (
        with_qparams(
            lambda c, q, x: core.choose_qparams(q.replace(source="statistic", scale_value=None, zero_point_value=0), x)
        ),
        GIVEN,
        ("chosen_scale_is_the_statistic",),
    ),
    "another zero point than the given one": (
        with_qparams(lambda c, q, x: c._replace(zero_point=c.zero_point + 1)),
        GIVEN,
        ("chosen_scale_is_the_statistic",),
    ),
    "truncates": (
        with_codes(lambda q, x, s, z: clipped(q, np.trunc(x / s) + z)),
        INT8,
        ("error_is_bounded", "halves_round_in_the_named_direction"),
    ),
    "adds the zero point before rounding": (
        with_codes(lambda q, x, s, z: clipped(q, np.rint(x / s + z))),
        AFFINE,
        ("halves_round_in_the_named_direction",),
    ),
    "does not clamp": (
        with_codes(wraps),
        INT4,
        ("codes_lie_in_range", "error_is_bounded", "quantize_is_monotone", "infinities_go_to_the_ends"),
    ),
    "clamps one code too early": (
        with_codes(lambda q, x, s, z: np.clip(np.rint(x / s) + z, q.format.lo, q.format.hi - 1)),
        INT8,
        ("infinities_go_to_the_ends", "grid_points_keep_their_codes", "error_is_bounded"),
    ),
    "clamps one code too late": (
        with_codes(lambda q, x, s, z: np.clip(np.rint(x / s) + z, q.format.lo - 1, q.format.hi)),
        INT4,
        ("codes_lie_in_range",),
    ),
    "adds an epsilon to the scale": (
        with_codes(lambda q, x, s, z: clipped(q, np.rint(x / (s + np.float32(1e-8))) + z)),
        INT8,
        ("powers_of_two_cancel", "error_is_bounded"),
    ),
    "flushes subnormals": (
        with_codes(lambda q, x, s, z: clipped(q, np.rint(flushed(x) / s) + z)),
        INT8,
        ("error_is_bounded",),
    ),
    "swaps two codes": (with_codes(swaps_two_codes), INT8, ("quantize_is_monotone", "grid_points_keep_their_codes")),
    "codes of another dtype": (
        replace(RIGHT, quantize=lambda q, x, p: core.quantize(q, x, p).astype(np.int32)),
        INT8,
        ("codes_lie_in_range",),
    ),
    "has a code for NaN": (
        replace(RIGHT, quantize=lambda q, x, p: core.quantize(q, np.nan_to_num(x, nan=1.0), p)),
        INT8,
        ("quantize_has_no_code_for_nan",),
    ),
    "gives NaN the code of infinity, compiled": (
        replace(
            RIGHT,
            refuses=False,
            quantize=lambda q, x, p: core.quantize(q, np.nan_to_num(x, nan=np.inf), p),
        ),
        INT8,
        ("quantize_has_no_code_for_nan",),
    ),
    "loses NaN": (with_values(lambda x, y: np.where(np.isnan(x), np.zeros_like(y), y)), INT8, ("nan_propagates",)),
    "loses the sign of zero": (
        with_values(lambda x, y: np.where(y == 0, np.abs(y), y)),
        FLOAT8,
        ("values_keep_the_sign",),
    ),
    "gives NaN the code of a number": (
        replace(RIGHT, quantize=lambda q, x, p: core.quantize(q, np.nan_to_num(x, nan=1.0), p)),
        FLOAT8,
        ("nan_has_one_code",),
    ),
    "makes NaN of infinities": (
        with_values(lambda x, y: np.where(np.isinf(x), np.full_like(y, np.nan), y)),
        INT8,
        ("infinities_go_to_the_ends", "nan_propagates"),
    ),
    "keeps the sign of zero": (
        with_values(lambda x, y: np.where(y == 0, np.copysign(y, x), y)),
        INT8,
        ("zero_code_has_one_sign", "zero_stays_zero", "fake_is_dequantize_of_quantize"),
    ),
    "has no zero": (
        with_codes(lambda q, x, s, z: clipped(q, np.where(x / s < 0.5, np.floor(x / s), np.rint(x / s)) + z)),
        INT8,
        ("error_is_bounded", "fake_quantize_is_idempotent"),
    ),
    "fakes by another route": (
        with_values(lambda x, y: np.where(np.isfinite(x), y * np.asarray(1 + 2.0**-7, y.dtype), y)),
        INT8,
        ("fake_is_dequantize_of_quantize", "fake_quantize_is_idempotent"),
    ),
    "dequantizes to the middle of a step": (
        replace(RIGHT, dequantize=lambda q, c, p, dtype=None: middle(q, c, p, dtype)),
        INT8,
        ("values_are_rounded_products", "grid_points_keep_their_codes", "fake_is_dequantize_of_quantize"),
    ),
    "multiplies in the narrow dtype": (
        replace(RIGHT, dequantize=lambda q, c, p, dtype=None: narrow_product(q, c, p, dtype)),
        INT8,
        ("values_are_rounded_products",),
    ),
    "writes to its input": (replace(RIGHT, quantize=writes_to_x), INT8, ("inputs_are_kept",)),
    "remembers earlier calls": (replace(RIGHT, quantize=remembers), INT8, ("inputs_are_kept",)),
    "treats the last elements of a row differently": (
        replace(RIGHT, quantize=by_position),
        INT8,
        ("order_within_a_block_is_indifferent", "error_is_bounded"),
    ),
    "passes every gradient": (
        with_gradients(lambda d, q, x, p, g: d._replace(x=g)),
        INT8,
        ("gradient_passes_inside_only",),
    ),
    "masks by the value, not the code": (with_gradients(mask_by_values), INT8, ("gradient_passes_inside_only",)),
    "drops the gradient of NaN": (
        with_gradients(lambda d, q, x, p, g: d._replace(x=np.where(np.isnan(x), np.zeros_like(g), d.x))),
        INT8,
        ("gradient_passes_inside_only",),
    ),
    "masks with -0": (
        with_gradients(lambda d, q, x, p, g: d._replace(x=d.x * np.where(d.x == 0, -1, 1).astype(g.dtype))),
        INT8,
        ("gradient_is_g_or_zero",),
    ),
    "halves gradients": (with_gradients(lambda d, q, x, p, g: d._replace(x=d.x / 2)), INT8, ("gradient_is_g_or_zero",)),
    "clips although it should pass through": (
        with_gradients(lambda d, q, x, p, g: core.fake_quantize_vjp(q.replace(gradient="clipped"), x, p, g)),
        INT8.replace(gradient="pass_through"),
        ("gradient_is_g_or_zero",),
    ),
    "has the wrong sign in d scale": (
        with_gradients(lambda d, q, x, p, g: d._replace(scale=-d.scale)),
        INT8,
        ("scale_gradient_is_the_sum",),
    ),
    "sums d scale in bfloat16": (
        with_gradients(lambda d, q, x, p, g: d._replace(scale=coarse(d.scale))),
        INT8,
        ("scale_gradient_is_the_sum",),
    ),
    "forgets the factor of LSQ": (
        with_gradients(lambda d, q, x, p, g: core.fake_quantize_vjp(q.replace(gradient="clipped"), x, p, g)),
        INT8.replace(gradient="learned_scale"),
        ("scale_gradient_is_the_sum",),
    ),
    "forgets s in d zero_point": (
        with_gradients(lambda d, q, x, p, g: d._replace(zero_point=d.zero_point / p.scale)),
        AFFINE,
        ("zero_point_gradient_is_the_sum",),
    ),
    "chooses a scale one place too large": (
        with_qparams(lambda c, q, x: c._replace(scale=np.nextafter(c.scale, np.float32(np.inf)))),
        INT8,
        ("chosen_scale_is_the_statistic", "equals_specification"),
    ),
    "divides by the whole range": (
        with_qparams(lambda c, q, x: c._replace(scale=np.maximum(c.scale / 2, np.finfo(np.float32).smallest_normal))),
        INT8,
        ("chosen_range_covers_the_data", "chosen_scale_is_the_statistic"),
    ),
    "has the epsilon of float32 as floor": (
        with_qparams(lambda c, q, x: c._replace(scale=np.maximum(c.scale, np.finfo(np.float32).eps))),
        INT8,
        ("nothing_has_the_smallest_scale",),
    ),
    "has no floor": (
        with_qparams(lambda c, q, x: c._replace(scale=np.where(c.scale > 2.0**-126, c.scale, np.float32(0)))),
        INT8,
        ("nothing_has_the_smallest_scale",),
    ),
    "chooses scales in float64": (
        with_qparams(lambda c, q, x: c._replace(scale=c.scale.astype(np.float64))),
        INT8,
        ("chosen_parameters_are_allowed",),
    ),
    "rounds scales down to powers of two": (
        with_qparams(lambda c, q, x: c._replace(scale=np.maximum(c.scale / 2, np.float32(2.0**-126)))),
        catalog["int8_power_of_two_per_tensor"].replace(granularity=PerAxis(0)),
        ("chosen_range_covers_the_data", "chosen_scale_is_the_statistic"),
    ),
    "takes one statistic for all blocks": (
        with_qparams(shared_statistic),
        INT8,
        ("chosen_scale_is_the_statistic", "blocks_do_not_touch"),
    ),
    "chooses a scale for infinite data": (
        replace(RIGHT, choose_qparams=chooses_from_anything),
        INT8,
        ("infinite_data_has_no_scale",),
    ),
    "chooses a scale for infinite data, compiled": (
        replace(RIGHT, choose_qparams=chooses_from_anything, refuses=False),
        INT8,
        ("infinite_data_has_no_scale",),
    ),
    "has the zero point of a shifted range": (
        with_qparams(lambda c, q, x: c._replace(zero_point=np.minimum(c.zero_point + 1, q.format.hi))),
        AFFINE,
        ("chosen_scale_is_the_statistic",),
    ),
}


def broken(f: Implementation, q: Quantizer, law: str) -> bool:
    """Whether the law rejects the implementation on some case."""
    for dtype in ("float32", "bfloat16", "float16"):
        for case in cases_of(q, dtype):
            try:
                LAWS[law](f, q, *(value.copy() if isinstance(value, np.ndarray) else value for value in case))
            except AssertionError:
                return True
    return False


@pytest.mark.parametrize(("fault", "law"), [(fault, law) for fault, (_, _, laws) in WRONG.items() for law in laws])
def test_wrong_implementations_are_rejected(fault: str, law: str) -> None:
    f, q, _ = WRONG[fault]
    assert applies(law, q)
    assert not broken(RIGHT, q, law)
    assert broken(f, q, law)


def test_every_law_can_fail() -> None:
    assert {law for _, _, laws in WRONG.values() for law in laws} == set(LAWS)


def test_a_broken_law_says_who_where_and_what() -> None:
    f, q, _ = WRONG["rounds half away from zero"]
    x, qparams, g = cases_of(q, "float32")[0]
    with pytest.raises(AssertionError) as caught:
        LAWS["halves_round_in_the_named_direction"](f, q, x, qparams, g)
    message = str(caught.value)
    assert "wrong, int8 per axis 0, ties_to_even, clipped: quantize at scale 1" in message
    assert "x         -0.5 = -0x1p-1 (float32 bits 0xbf000000)" in message
    assert "expected  0 (int8 bits 0x00)" in message
    assert "got       -1 (int8 bits 0xff)" in message
