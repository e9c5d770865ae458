"""Planted faults: all must be found by comparison with the specification, and by a law that does not know it.

One that survives fails, and so does one whose place no longer exists: then the faults have to follow the code.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, Quantizer
from samebits.proofs.inputs.compare import same_bits
from samebits.proofs.inputs.knife_edges import knife_edges
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.proofs.modes.execution import implementation

from ...exact import DTYPES
from ...examine import QPARAMS, cases, found, parameters_found
from ...planted import COMPILED, Fault, code_faults, plant, value_faults
from ...planted_sums import gradient_faults, parameter_faults

FAULTS = [*code_faults(), *value_faults(), *parameter_faults(), *gradient_faults()]

SETTINGS = sorted({(f.route, f.q, f.dtype) for f in FAULTS}, key=str)


@pytest.mark.parametrize(
    ("route", "q", "dtype"), SETTINGS, ids=[f"{r}-{d}-{i}" for i, (r, _, d) in enumerate(SETTINGS)]
)
def test_nothing_is_found_without_a_fault(route: str, q: Quantizer, dtype: str) -> None:
    assert cases(q, dtype)
    assert found(route, q, dtype) == set()


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{f.route}: {f.name}" for f in FAULTS])
def test_planted_fault_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, make in fault.plants:
        plant(monkeypatch, target, make)
    look = parameters_found if fault.breaks <= set(QPARAMS) else found
    assert fault.breaks <= look(fault.route, fault.q, fault.dtype)


# Which law, of those that know nothing of the specification's code, finds a fault. (No law looks at the gradient of x
# alone, which eager torch computes in another way than together with the others: `samebits check` does.)
LAW_THAT_FINDS = {
    "reciprocal for division": "scale_gradient_is_the_sum",
    "halves away from zero": "halves_round_in_the_named_direction",
    "floor(x + 1/2)": "quantize_is_odd",
    "truncation": "grid_points_keep_their_codes",
    "cast before the clamp": "quantize_is_monotone",
    "one code too many": "fake_is_dequantize_of_quantize",
    "one code too few": "grid_points_keep_their_codes",
    "narrow range ignored": "codes_lie_in_range",
    "infinity to lo": "infinities_go_to_the_ends",
    "NaN to zero": "nan_propagates",
    "NaN to hi": "quantize_has_no_code_for_nan",
    "subnormals flushed": "powers_of_two_cancel",
    "quotient in bfloat16": "error_is_bounded",
    "quotient in float16": "error_is_bounded",
    "zero point before rounding": "fake_quantize_is_idempotent",
    "zero point after the clamp": "chosen_range_covers_the_data",
    "zero point left out": "zero_stays_zero",
    "negative zero kept": "zero_code_has_one_sign",
    "bfloat16 reached through float16": "fake_is_dequantize_of_quantize",
    "groups interleaved": "order_within_a_block_is_indifferent",
    "scales along the other axis": "blocks_do_not_touch",
    "negative elements ignored": "chosen_range_covers_the_data",
    "positive elements ignored": "infinite_data_has_no_scale",
    "shortcut of a tensor: one step too high": "chosen_scale_is_the_statistic",
    "shortcut of a tensor: positive elements ignored": "chosen_range_covers_the_data",
    "shortcut of channels: scale in bfloat16": "chosen_scale_is_the_statistic",
    "shortcut of channels: floor missing": "chosen_parameters_are_allowed",
    "range not widened to zero": "chosen_range_covers_the_data",
    "absmax / 127.5": "chosen_scale_is_the_statistic",
    "absmax / 128": "chosen_range_covers_the_data",
    "absmax * (1 / 127)": "chosen_scale_is_the_statistic",
    "scale in bfloat16": "chosen_scale_is_the_statistic",
    "range / 256": "chosen_scale_is_the_statistic",
    "overflow of the range": "chosen_parameters_are_allowed",
    "floor raised to 2**-7": "nothing_has_the_smallest_scale",
    "floor missing": "chosen_parameters_are_allowed",
    "power of two by log2": "chosen_scale_is_the_statistic",
    "power of two downwards": "chosen_range_covers_the_data",
    "zero point truncated": "chosen_scale_is_the_statistic",
    "zero point one too high": "chosen_range_covers_the_data",
    "zero point in the direction of the codes": "chosen_scale_is_the_statistic",
    "zero point by halves away": "chosen_scale_is_the_statistic",
    "mask without its bounds": "gradient_passes_inside_only",
    "mask one code too wide": "gradient_passes_inside_only",
    "mask of the upper bound alone": "gradient_passes_inside_only",
    "mask that stops NaN": "gradient_passes_inside_only",
    "mask of a wide range": "gradient_passes_inside_only",
    "mask of codes not rounded": "gradient_passes_inside_only",
    "factor of the learned scale missing": "scale_gradient_is_the_sum",
    "factor counts all elements": "scale_gradient_is_the_sum",
    "factor of 2**bits": "scale_gradient_is_the_sum",
    "pass-through ignored": "gradient_is_g_or_zero",
    "clipping ignored": "gradient_passes_inside_only",
    "masked gradient is g * 0": "gradient_is_g_or_zero",
    "gradient of the zero point with the wrong sign": "zero_point_gradient_is_the_sum",
    "gradient of the scale with the wrong sign": "scale_gradient_is_the_sum",
    "sum over the next block": "scale_gradient_is_the_sum",
}
EAGER = [f for f in FAULTS if f.route == "torch eager" and "interval" not in f.name]


def law_holds(fault: Fault) -> bool:
    name = LAW_THAT_FINDS[fault.name]
    assert applies(name, fault.q)
    for case, _ in cases(fault.q, fault.dtype):
        qparams = core.choose_qparams(fault.q, case.x) if case.qparams is None else case.qparams
        try:
            LAWS[name](implementation(fault.route), fault.q, case.x, qparams, case.g)
        except AssertionError:
            return False
    return True


@pytest.mark.parametrize("fault", EAGER, ids=[f.name for f in EAGER])
def test_a_law_finds_it(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    assert law_holds(fault)
    for target, make in fault.plants:
        plant(monkeypatch, target, make)
    assert not law_holds(fault)


def compiled_program(fault: Fault, scale: np.float32) -> Callable[..., Any]:
    """``fake_quantize(x)`` and ``fake_quantize(x) + b`` in one program, the scale a constant of it."""
    if fault.route == "jax jit":
        given: Any = QParams(jnp.asarray(scale))
        room: Any = jax_backend
    else:
        given, room = QParams(torch.tensor(scale)), torch_frontend

    def program(x: Any, b: Any) -> Any:
        fake = room.fake_quantize(fault.q, x, given)
        return fake, fake + b

    if fault.route == "jax jit":
        return lambda x, b: jax.jit(program)(to_jax(x), to_jax(b))
    whole = torch.compile(program, fullgraph=True)
    return lambda x, b: whole(to_torch(x), to_torch(b))


@pytest.mark.parametrize("fault", COMPILED, ids=[f"{f.route}: {f.name}" for f in COMPILED])
def test_fault_of_compiled_code_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = np.float32(0.1)
    x = knife_edges(fault.q, scale, None, DTYPES[fault.dtype])
    x = x[np.isfinite(x) & (np.abs(x) < 1e4)]
    b = np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype)
    expected = core.fake_quantize(fault.q, x, QParams(scale))
    answers = dict(zip(("fake", "sum"), (expected, expected + b), strict=True))
    for faulty in (False, True):
        q = fault.q.replace(floor=2.0**-100 if faulty else None)  # changes no bits either
        for target, make in fault.plants if faulty else ():
            plant(monkeypatch, target, make)
        got = dict(zip(("fake", "sum"), compiled_program(replace(fault, q=q), scale)(x, b), strict=True))
        wrong = {name for name, value in answers.items() if not same_bits(value, got[name])}
        assert (fault.breaks <= wrong) if faulty else not wrong
