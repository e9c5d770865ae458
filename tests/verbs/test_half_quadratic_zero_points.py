"""The search for floating-point zero points (HQQ): the bits of core in every mode, its laws, and planted faults.

Expected values: core, whose search is compared with other systems in `oracles/test_half_quadratic.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerAxis, PerBlock, PerGroup, PerTensor, QParams, Quantizer, catalog
from samebits.jax_backend import half_quadratic as in_jax
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.proofs.modes.execution import implementation
from samebits.torch_frontend import half_quadratic as in_torch

from .. import law_cases

Array = NDArray[Any]
BASE = catalog["uint4_affine_float_zero_per_group64"].replace(statistic="hqo", granularity=PerGroup(8))
SLOWLY = BASE.replace(bits=3, signed=True, search_norm=0.5, search_beta=3.0, search_kappa=1.5, search_steps=9)
QUANTIZERS: dict[str, Quantizer] = {
    "groups": BASE,
    "slowly": SLOWLY,
    "single elements": BASE.replace(granularity=PerGroup(1)),
    "blocks, halves up, powers of two": SLOWLY.replace(
        granularity=PerBlock((2, 24)), rounding="toward_positive", restriction="power_of_two"
    ),
    "tensor, large floor": BASE.replace(granularity=PerTensor(), floor=0.3, bits=2, signed=True, search_steps=3),
    "columns": BASE.replace(granularity=PerAxis(1), bits=8, narrow=True, search_beta=0.01),
    "floor beyond the units": BASE.replace(floor=4.0, bits=2, search_steps=3),
}


def blocks(dtype: Any) -> Array:
    """Of 24 columns: ordinary rows, one-sided, nearly so, equal, zeros, outliers, subnormal to largest, mixed."""
    random, info = np.random.default_rng(11), ml_dtypes.finfo(dtype)
    x = random.standard_normal((64, 24))
    x[4:8] = np.abs(x[4:8])
    x[8:12] = -np.abs(x[8:12]) - 3
    x[12], x[13], x[14, ::3], x[15] = 0.1, -0.1, 0, -0.0
    x[16:24] = random.standard_cauchy((8, 24))
    x[24:40] *= np.exp2(random.integers(info.minexp - 12, info.minexp + 12, (16, 1)).astype(float))
    x[40:48] *= np.exp2(random.integers(info.maxexp - 6, info.maxexp - 2, (8, 1)).astype(float))
    x[48:56] *= np.exp2(random.integers(info.minexp, info.maxexp - 3, (8, 24)).astype(float))
    x[56], x[57, ::2], x[58], x[58, 3::8] = float(info.smallest_subnormal), 0, float(info.max), -float(info.max)
    return x.astype(dtype)


def moved(q: Quantizer, x: Array) -> float:
    """Of which part of the blocks the search changed the zero point."""
    first, found = core.choose_qparams(q.replace(statistic="extremes"), x), core.choose_qparams(q, x)
    assert_same_bits(first.scale, found.scale)
    return float(np.mean(first.zero_point != found.zero_point))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_torch_eager_has_the_bits_of_the_specification(name: str) -> None:
    q = QUANTIZERS[name]
    for dtype in (np.float32, ml_dtypes.bfloat16, np.float16, np.float64):
        x = blocks(dtype)
        assert_same_bits(core.choose_qparams(q, x), torch_frontend.choose_qparams(q, to_torch(x)), call=name)
    assert moved(q, x) > (0.2 if q.granularity == PerGroup(8) and q.scale.floor is None else -1)


@pytest.mark.parametrize("name", [n for n in QUANTIZERS if n not in ("slowly", "single elements", "columns")])
def test_jax_jitted_has_the_bits_of_the_specification(name: str) -> None:
    dtypes = (np.float32, ml_dtypes.bfloat16, np.float64) if name == "groups" else (np.float32,)
    for dtype in dtypes:  # every dtype is a compilation
        x = blocks(dtype)
        with jax.enable_x64(dtype == np.float64):
            got = jax_backend.choose_qparams(QUANTIZERS[name], to_jax(x))
            assert_same_bits(core.choose_qparams(QUANTIZERS[name], x), got, call=name)


def test_jax_eager_has_the_bits_of_the_specification() -> None:
    q, x = SLOWLY.replace(search_steps=2), np.ascontiguousarray(blocks(np.float32)[3:59:5, :8])
    with jax.disable_jit():
        assert_same_bits(core.choose_qparams(q, x), jax_backend.choose_qparams(q, to_jax(x)))


def test_compiled_torch_has_the_bits_of_the_specification() -> None:
    """Behind an operation on 16-bit numbers. A group with NaN or an infinity has no scale, and disturbs no other."""
    q = SLOWLY
    program = torch.compile(lambda x: torch_frontend.choose_qparams(q, x * 1.5)[:2], fullgraph=True)
    usual = (blocks(ml_dtypes.bfloat16) / 4).astype(ml_dtypes.bfloat16)  # so that nothing overflows
    odd = usual.copy()
    odd[0, 1], odd[1, 9], odd[2, 23], odd[3, :] = np.nan, np.inf, -np.inf, np.nan
    holes = ~np.isfinite(odd.astype(np.float32)).reshape(64, 3, 8).all(-1)
    for x, without in ((usual, np.zeros_like(holes)), (odd, holes)):
        product = to_numpy(to_torch(usual) * 1.5)
        want = core.choose_qparams(q, product)
        scale, zero = map(to_numpy, program(to_torch(x)))
        assert np.isnan(scale[without]).all()
        assert_same_bits(np.where(without, 0, want.scale), np.where(without, 0, scale))
        assert_same_bits(np.where(without, 0, want.zero_point), np.where(without, 0, zero))


def test_compiled_torch_takes_one_scale_of_the_whole_tensor_and_another_floor() -> None:
    """Of one function for two rules: what differs in them stays a constant to the compiler."""
    x = np.ascontiguousarray(blocks(np.float32)[3:59:5, :8])
    base = core.catalog["int8_per_tensor"].replace(statistic="hqo", search_steps=2)

    def program(q: Quantizer, x: Any) -> Any:
        return torch_frontend.choose_qparams(q, x).scale

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    for q in (base.replace(floor=2.0**-30), base.replace(floor=2.0**-31)):
        assert_same_bits(core.choose_qparams(q, x).scale, compiled(q, to_torch(x)))


def test_inside_a_jax_program_products_stay_rounded() -> None:
    q, x = QUANTIZERS["single elements"], blocks(np.float32)
    x = np.where(np.abs(x) < 2.0**-120, np.float32(0), x / 4)  # XLA would write zeros for subnormal products

    @jax.jit
    def program(x: Any) -> Any:
        chosen = [jax_backend.choose_qparams(p, x * jnp.float32(1.5)) for p in (q, BASE)]
        return [(c.scale, c.zero_point, c.zero_point * 3 + 1) for c in chosen]

    for p, got in zip((q, BASE), program(to_jax(x)), strict=True):
        assert_same_bits(core.choose_qparams(p, x * np.float32(1.5))[:2], got[:2])
    odd = np.where(np.arange(24) == 9, np.float32(np.nan), x)
    assert np.isnan(program(to_jax(odd))[1][0]).tolist() == [[False, True, False]] * len(x)


@pytest.mark.parametrize("room", [core, torch_frontend, jax_backend])
def test_data_that_is_not_finite_is_refused_and_none_is_no_matter(room: ModuleType) -> None:
    to = {core: np.asarray, torch_frontend: to_torch, jax_backend: to_jax}[room]
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="must be finite"):
            room.choose_qparams(BASE, to(np.full((2, 8), value, np.float32)))
    for shape in ((0, 8), (3, 0)):
        x = np.zeros(shape, np.float32)
        assert_same_bits(core.choose_qparams(BASE, x), room.choose_qparams(BASE, to(x)))


def test_zeros_have_the_floor_and_code_0() -> None:
    for q, value in ((BASE, 8 * 2.0**-126), (SLOWLY, 0.0)):
        chosen = core.choose_qparams(q, np.full((1, 8), -0.0, np.float32))
        assert chosen.zero_point is not None
        assert (float(chosen.scale[0, 0]), float(chosen.zero_point[0, 0])) == (2.0**-126, value)


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [BASE.replace(granularity=PerGroup(32)), SLOWLY.replace(granularity=PerAxis(0))])
def test_laws(q: Quantizer) -> None:
    names = [name for name in LAWS if applies(name, q)]
    assert "chosen_scale_is_the_statistic" in names
    for dtype in ("float32", "bfloat16"):
        for case in law_cases.cases_of(q, dtype):
            for name in names:
                LAWS[name](implementation("numpy"), q, *case)


@pytest.mark.parametrize("statistic", ["extremes", "hqo"])
def test_the_law_of_the_statistic_sees_other_parameters(statistic: str) -> None:
    q, ours = BASE.replace(statistic=statistic, granularity=PerGroup(32)), implementation("numpy")
    law, case = LAWS["chosen_scale_is_the_statistic"], law_cases.cases_of(q, "float32")[1]
    law(ours, q, *case)
    changes: dict[str, Callable[[QParams], QParams]] = {
        "zero": lambda p: p._replace(zero_point=p.zero_point + p.scale * np.float32(0.4)),
        "scale": lambda p: p._replace(scale=p.scale * np.float32(1.01)),
    }
    for change in changes.values():

        def choose(q: Quantizer, x: Array, change: Callable[[QParams], QParams] = change) -> QParams:
            return change(core.choose_qparams(q, x))

        wrong = replace(ours, choose_qparams=choose)
        with np.errstate(all="ignore"), pytest.raises(AssertionError):
            law(wrong, q, *case)


# --- faults ----------------------------------------------------------------------------------------------------------


def _faults(room: ModuleType) -> dict[str, tuple[str, Callable[..., Any]]]:
    """Functions of a search, each with one fault."""
    mean, outliers, search = room._mean_rest, room.outliers, room.half_quadratic_range

    def late(q: Quantizer, x: Any, low: Any, high: Any, attempt: Callable[..., Any]) -> Any:
        before = [low]

        def judged(low: Any, high: Any, candidate: Any) -> Any:
            scale, codes, _ = attempt(low, high, candidate)
            old, before[0] = before[0], candidate
            return scale, codes, attempt(low, high, old)[2]

        return search(q, x, low, high, judged)

    return {
        "": ("_mean_rest", mean),
        "the mean of the other sign": ("_mean_rest", lambda y, codes, scale, unit: -mean(y, codes, scale, unit)),
        "the scale in other units": ("_mean_rest", lambda y, codes, s, unit: mean(y, codes, s, unit + unit)),
        "the power of the unit": ("outliers", lambda q, e, unit, b: outliers(q, e, unit / unit, b)),
        "judged by the zero point before": ("half_quadratic_range", late),
    }


@pytest.mark.parametrize("name", [*_faults(in_torch)])
def test_faults_in_torch_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = blocks(np.float32)
    function, wrong = _faults(in_torch)[name]
    monkeypatch.setattr(in_torch, function, wrong)
    monkeypatch.setattr("samebits.torch_frontend.quantizer.half_quadratic_range", in_torch.half_quadratic_range)
    _judge(name, lambda: torch_frontend.choose_qparams(BASE, to_torch(x)), x)


@pytest.mark.parametrize("name", ["the mean of the other sign", "the power of the unit"])
def test_faults_in_jax_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = blocks(np.float32)
    q = BASE.replace(search_steps=len(name))  # for which no program has been compiled
    function, wrong = _faults(in_jax)[name]
    monkeypatch.setattr(in_jax, function, wrong)
    _judge(name, lambda: jax_backend.choose_qparams(q, to_jax(x)), x, q)


def _judge(name: str, choose: Callable[[], QParams], x: Array, q: Quantizer = BASE) -> None:
    if not name:
        assert_same_bits(core.choose_qparams(q, x), choose())
        return
    with pytest.raises(AssertionError, match="differ"):
        assert_same_bits(core.choose_qparams(q, x), choose())
