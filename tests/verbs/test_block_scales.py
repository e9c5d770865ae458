"""Scales with a shared exponent (MX) and scales in a floating-point format (NVFP4): by fractions, in both frontends."""

import math
from fractions import Fraction
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import jax_backend, torch_frontend
from samebits.core import PerGroup, Quantizer, ScaleRule, choose_qparams
from samebits.core.formats import (
    FLOAT4_E2M1,
    FLOAT6_E2M3,
    FLOAT6_E3M2,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    Format,
    IntegerFormat,
    significand_bits,
)
from samebits.core.scales import SHARED_EXPONENT, Restriction
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch

Array = NDArray[Any]
FORMATS = [FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT6_E3M2, FLOAT6_E2M3, FLOAT4_E2M1, IntegerFormat(8)]
DTYPES = [np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)]
LEVELS = ScaleRule(restriction="quantized", scale_format=FLOAT8_E4M3FN)
RULES = [ScaleRule(restriction=r) for r in (Restriction.POWER_OF_TWO, *SHARED_EXPONENT)]
RULES += [LEVELS, ScaleRule(restriction="quantized", scale_format=FLOAT8_E4M3FN, two_level=True)]


def rule_name(rule: ScaleRule) -> str:
    return f"{rule.restriction}{' in two levels' if rule.two_level else ''}"


def quantizer(fmt: Format, rule: ScaleRule, size: int = 16) -> Quantizer:
    return Quantizer(format=fmt, granularity=PerGroup(size), scale=rule)


def magnitudes(fmt: Format, dtype: np.dtype[Any]) -> Array:
    """Where a rule decides: powers of two, these times the largest number and times what rounds up to 2; and 0."""
    powers = np.exp2(np.concatenate([np.arange(-126.0, -116), np.arange(-20.0, 20), np.arange(110.0, 128)]))
    carry = 2 - 2.0 ** -(significand_bits(fmt) + 1)
    with np.errstate(over="ignore"):
        at = np.concatenate([powers * c for c in (1.0, carry, float(fmt.hi), float(fmt.hi) / 2**7)]).astype(dtype)
        around = np.concatenate([at, np.nextafter(at, np.zeros_like(at)), np.nextafter(at, np.full_like(at, np.inf))])
    subnormal = (np.arange(40) * float(ml_dtypes.finfo(dtype).smallest_subnormal)).astype(dtype)
    return np.concatenate([around[np.isfinite(around.astype(np.float32))], subnormal])


def blocks(fmt: Format, dtype: np.dtype[Any]) -> Array:
    """One block of 16 for each of `magnitudes`, which is its largest."""
    largest = magnitudes(fmt, dtype)
    x = np.resize(np.array([0, 0.5, -0.25, 1], dtype), (len(largest), 16)) * largest[:, None]
    x[::2] *= -1
    return x.astype(dtype)


def by_fractions(q: Quantizer, magnitude: float) -> float:
    """The shared exponent by comparison of exact numbers with powers of two."""

    def floor_log2(value: Fraction) -> int:
        exponent = value.numerator.bit_length() - value.denominator.bit_length()
        return exponent if Fraction(2) ** exponent <= value else exponent - 1

    if magnitude == 0:
        return 2.0**-126
    value, divisor, step = Fraction(magnitude), Fraction(q.format.hi), Fraction(2)
    if q.scale.restriction is Restriction.POWER_OF_TWO:
        value, divisor = Fraction(float(np.float32(magnitude) / np.float32(q.format.hi))), Fraction(1)
    exponent = floor_log2(value) if value else -1000
    if q.scale.restriction in (Restriction.POWER_OF_TWO, Restriction.POWER_OF_TWO_CEIL) and value > step**exponent:
        exponent += 1
    if q.scale.restriction is Restriction.POWER_OF_TWO_EVEN:
        grid = step ** (exponent - significand_bits(q.format))
        exponent = floor_log2(math.floor(value / grid + Fraction(1, 2)) * grid)
    return 2.0 ** min(max(exponent - floor_log2(divisor), -126), 127)


@pytest.mark.parametrize("rule", RULES[:4], ids=rule_name)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_shared_exponents_by_fractions(fmt: Format, rule: ScaleRule) -> None:
    q = quantizer(fmt, rule, 1)
    x = magnitudes(fmt, DTYPES[0])
    expected = np.array([by_fractions(q, float(value)) for value in x], np.float32)
    assert_same_bits(expected, choose_qparams(q, x).scale, inputs=x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=rule_name)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_frontends_choose_the_same_scales(fmt: Format, rule: ScaleRule, dtype: np.dtype[Any]) -> None:
    q = quantizer(fmt, rule)
    whole = blocks(fmt, dtype)
    jitted = jax.jit(lambda x: jax_backend.choose_qparams(q, x).scale)
    tiny = np.abs(whole.astype(np.float32)).max(1, keepdims=True) < 1e-30
    for x in (whole, np.where(tiny, whole, np.zeros_like(whole)), np.zeros_like(whole)):  # each a tensor of its own
        expected = choose_qparams(q, x).scale
        assert_same_bits(expected, to_numpy(torch_frontend.choose_qparams(q, to_torch(x)).scale), call="torch")
        assert_same_bits(expected, to_numpy(jitted(to_jax(x))), call="jax jit")


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_few_blocks_or_none(rule: ScaleRule) -> None:
    q = quantizer(FLOAT4_E2M1, rule)
    for x in (blocks(FLOAT4_E2M1, DTYPES[0])[:3], np.zeros((0, 16), np.float32)):
        expected = choose_qparams(q, x).scale
        assert_same_bits(expected, to_numpy(torch_frontend.choose_qparams(q, to_torch(x)).scale), call="torch")
        with jax.disable_jit():
            assert_same_bits(expected, to_numpy(jax_backend.choose_qparams(q, to_jax(x)).scale), call="jax eager")


@pytest.mark.parametrize("rule", RULES[1:], ids=rule_name)
def test_compiled_torch_chooses_the_same_scales(rule: ScaleRule) -> None:
    q = quantizer(FLOAT4_E2M1, rule)
    x = blocks(FLOAT4_E2M1, DTYPES[0])
    compiled = torch.compile(lambda x: torch_frontend.choose_qparams(q, x).scale, fullgraph=True)
    assert_same_bits(choose_qparams(q, x).scale, to_numpy(compiled(to_torch(x))))


@pytest.mark.parametrize("rule", RULES, ids=rule_name)
def test_a_block_that_is_not_finite_has_no_scale(rule: ScaleRule) -> None:
    q = quantizer(FLOAT4_E2M1, rule)
    for bad in (np.nan, np.inf):
        x = np.ones((3, 16), np.float32)
        x[1, 5] = bad
        for room, convert in ((choose_qparams, np.asarray), (torch_frontend.choose_qparams, to_torch)):
            with pytest.raises(ValueError, match="finite"):
                room(q, convert(x))
        scale = to_numpy(jax.jit(lambda x: jax_backend.choose_qparams(q, x).scale)(to_jax(x)))
        assert np.isnan(scale).tolist() == [[rule.two_level], [True], [rule.two_level]]


def test_a_quantized_scale_is_a_multiple_of_one_number() -> None:
    """Source: the definition of NVFP4: block scales in e4m3, one float32 for the tensor."""
    q = quantizer(FLOAT4_E2M1, RULES[-1])
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    tensor = np.abs(x).max() / np.float32(448 * 6)
    levels = (choose_qparams(q, x).scale / tensor).astype(np.float64)
    nearest = levels.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    assert np.abs(levels / nearest - 1).max() < 2.0**-22
    assert levels.max() == pytest.approx(448, rel=1e-6)


def test_rules_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="`scale_format` must be a FloatFormat"):
        ScaleRule(restriction="quantized")
    with pytest.raises(ValueError, match="`scale_format` must be"):
        ScaleRule(scale_format=FLOAT8_E4M3FN)
    with pytest.raises(ValueError, match="`two_level` must be False"):
        ScaleRule(two_level=True)
    for changes in ({"zero_point": "min_max"}, {"denominator": "larger"}):
        with pytest.raises(ValueError, match="`restriction` must be"):
            quantizer(IntegerFormat(8), RULES[1]).replace(**changes)
