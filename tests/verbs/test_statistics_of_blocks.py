"""Statistics other than the extremes: what they are, and the same bits in all modes.

Expected values: the exact sum (`math.fsum`, fractions), integer square roots, sorting, and the laws.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerAxis, PerBlock, PerGroup, QParams, Quantizer, Statistic, TernaryFormat, catalog
from samebits.core import statistics as core_statistics
from samebits.core import sums as core_sums
from samebits.jax_backend import statistics as jax_statistics
from samebits.jax_backend import sums as jax_sums
from samebits.jax_backend.tensor_quantizer import TensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.proofs.modes.execution import implementation
from samebits.torch_frontend import statistics as torch_statistics
from samebits.torch_frontend import sums as torch_sums

from .. import law_cases

Array = NDArray[Any]

_TENSOR, _CHANNEL = catalog["int8_per_tensor"], catalog["int8_per_channel"]
_AFFINE, _GROUPS = catalog["uint8_affine_per_tensor"], catalog["uint4_affine_per_group32"]
QUANTIZERS: dict[str, Quantizer] = {
    "percentile": _CHANNEL.replace(statistic="percentile", percentile=90.0),
    "percentile_affine": _GROUPS.replace(statistic="percentile", percentile=93.0, low_percentile=11.0),
    "absmean": _TENSOR.replace(statistic="absmean", format=TernaryFormat()),
    "absmean_integer": catalog["int8_per_block"].replace(statistic="absmean", restriction="integer_nearest"),
    "mean_sigma": _CHANNEL.replace(statistic="mean_sigma", sigma=2.3, granularity=PerAxis(1)),
    "mean_sigma_affine": _GROUPS.replace(statistic="mean_sigma", sigma=1.7, zero_point_rounding="toward_negative"),
    "l1": catalog["int4_per_group32"].replace(statistic="l1", restriction="power_of_two"),
    "l2": catalog["mxfp4_e2m1"].replace(statistic="l2"),
    "rms": catalog["float8_e4m3fn_per_block"].replace(statistic="rms"),
    "signed_absmax": _CHANNEL.replace(statistic="signed_absmax", denominator="lo"),
    "signed_absmax_of_columns": _CHANNEL.replace(statistic="signed_absmax", granularity=PerAxis(1), floor=1e-3),
    "mse": catalog["int2_per_channel"].replace(statistic="mse", granularity=PerGroup(32)),
    "mse_affine": _AFFINE.replace(statistic="mse", search_steps=5, bits=2, restriction="integer"),
    "mse_minifloat": catalog["float4_e2m1_per_channel"].replace(statistic="mse", search_steps=7),
    "hqo": catalog["int4_per_channel"].replace(statistic="hqo", bits=3),
    "hqo_slowly": _TENSOR.replace(statistic="hqo", search_norm=0.5, search_beta=3.0, search_kappa=1.5, signed=False),
    "extremes_toward_positive": _GROUPS.replace(zero_point_rounding="toward_positive"),
    "extremes_dpu": _AFFINE.replace(zero_point_rounding="dpu", restriction="integer"),
}
SUMS = ("absmean", "mean_sigma", "l1", "l2", "rms")
COMPILED = ("signed_absmax", "percentile", "percentile_affine", "mean_sigma_affine", "l2", "mse_affine", "hqo")
DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)


def arrays(dtype: Any) -> Iterator[Array]:
    """Ordinary numbers; rows from subnormal to the largest; every magnitude in one row; all equal; zeros; ends."""
    random = np.random.default_rng(5)
    normal = random.standard_normal((32, 96))
    info = ml_dtypes.finfo(dtype)
    with np.errstate(all="ignore"):
        for exponents in ((32, 1), (32, 96)):
            powers = np.exp2(random.integers(info.minexp - 20, info.maxexp, exponents).astype(float))
            x = (normal * powers).astype(dtype)
            yield np.where(np.isfinite(x), x, np.zeros_like(x))
    mixed = normal.astype(dtype)
    mixed[1], mixed[2], mixed[3] = -0.0, 0.1, -float(info.max)
    mixed[4], mixed[5], mixed[6:12, ::7] = float(info.smallest_subnormal), -float(info.smallest_subnormal), 0
    yield mixed
    yield np.abs(mixed[:, ::-1])


def expected(q: Quantizer, x: Array) -> QParams:
    return core.choose_qparams(q, x)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_torch_eager_has_the_bits_of_the_specification(name: str) -> None:
    for dtype in (*DTYPES, np.float64):
        for x in arrays(dtype):
            got = torch_frontend.choose_qparams(QUANTIZERS[name], to_torch(x))
            assert_same_bits(expected(QUANTIZERS[name], x), got, call=name)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_jax_jitted_has_the_bits_of_the_specification(name: str) -> None:
    for dtype in DTYPES if name == "percentile_affine" else DTYPES[:1]:  # every dtype is a compilation
        for x in arrays(dtype):
            got = jax_backend.choose_qparams(QUANTIZERS[name], to_jax(x))
            assert_same_bits(expected(QUANTIZERS[name], x), got, call=name)


@pytest.mark.parametrize("name", ["percentile_affine", "mse_affine", "mean_sigma_affine", "hqo"])
def test_jax_eager_has_the_bits_of_the_specification(name: str) -> None:
    q = QUANTIZERS[name].replace(search_steps=2)
    x = next(arrays(np.float32))[:8, :32]
    with jax.disable_jit():
        got = jax_backend.choose_qparams(q, to_jax(x))
    assert_same_bits(expected(q, x), got, call=name)


def test_torch_compiled_has_the_bits_of_the_specification() -> None:
    """Several quantizers and what follows them in one program."""

    def program(x: torch.Tensor) -> list[Any]:
        chosen = [torch_frontend.choose_qparams(QUANTIZERS[name], x * 1.5) for name in COMPILED]
        return [tuple(c)[:2] for c in chosen]

    compiled = torch.compile(program, fullgraph=True)
    for x in arrays(ml_dtypes.bfloat16):
        x = (x / 4).astype(ml_dtypes.bfloat16)  # so that nothing overflows
        product = to_numpy(to_torch(x) * 1.5)
        for name, got in zip(COMPILED, compiled(to_torch(x)), strict=True):
            assert_same_bits(tuple(expected(QUANTIZERS[name], product))[:2], got, call=name)
    nan = to_torch(np.where(np.arange(32 * 96).reshape(32, 96) == 40, np.nan, x.astype(float)).astype(x.dtype))
    first = compiled(nan)[0][0]
    assert first.isnan().flatten().tolist() == [True] + [False] * 31


def test_jax_programs_have_the_bits_of_the_specification() -> None:
    """Quantizers inside a larger program, whose products must not be merged with theirs."""
    names = ("mean_sigma", "l2", "mse_affine", "hqo")

    @jax.jit
    def program(x: Any) -> list[Any]:
        y = x * jnp.float32(1.5)
        chosen = [jax_backend.choose_qparams(QUANTIZERS[name], y) for name in names]
        return [(c.scale, c.zero_point, c.scale * 3 + 1) for c in chosen]

    x = list(arrays(np.float32))[1] / 4
    product = to_numpy(to_torch(x) * 1.5)
    product = np.where(np.abs(product) < 2.0**-126, np.float32(0), product)  # XLA writes subnormals as zeros
    x = np.where(np.abs(x) < 2.0**-126, np.float32(0), x)
    for name, got in zip(names, program(to_jax(x)), strict=True):
        want = expected(QUANTIZERS[name], product)
        assert_same_bits(tuple(want)[:2], got[:2], call=name)


LAWS_OF_SCALES = [law for law in LAWS if "chosen" in law or "scale" in law or "block" in law]
TRIED = [(name, law) for name, q in QUANTIZERS.items() for law in LAWS_OF_SCALES if applies(law, q)]


@pytest.mark.parametrize(("name", "law"), TRIED)
def test_laws(name: str, law: str) -> None:
    q = QUANTIZERS[name]
    for dtype in ("float32", "bfloat16"):
        for x, qparams, g in law_cases.cases_of(q.replace(restriction="float"), dtype):
            LAWS[law](implementation("numpy"), q, x, qparams, g)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 100, 1000, 4097])
def test_sums_lie_within_their_bound(dtype: Any, n: int) -> None:
    random = np.random.default_rng(n)
    u, depth = Fraction(1, 2 ** (24 if dtype == np.float32 else 53)), (n - 1).bit_length()
    for _ in range(20):
        v = (random.standard_normal(n) * np.exp2(random.integers(-30, 30, n))).astype(dtype)
        exact = sum(map(Fraction, v.tolist()))
        bound = ((1 + u) ** depth - 1) * sum(abs(Fraction(value)) for value in v.tolist())
        for room, to in ((core_sums, np.asarray), (torch_sums, to_torch), (jax_sums, to_jax)):
            if dtype == np.float64 and room is jax_sums:
                continue
            got = to_numpy(room.ordered_sum(to(v)))
            assert got.dtype == dtype
            assert abs(Fraction(float(got)) - exact) <= bound
    assert float(core_sums.ordered_sum(np.zeros((0,), dtype))) == 0


def test_statistics_are_what_their_names_say() -> None:
    """Against exact sums: within ``log2(n)`` roundings of the sum, and a few of what follows."""
    x = np.random.default_rng(2).standard_normal(3001).astype(np.float32)
    size = np.abs(x.astype(np.float64))
    total, squares = math.fsum(size), math.fsum(size**2)
    mean = total / len(x)
    deviation = math.sqrt(math.fsum((size - mean) ** 2) / (len(x) - 1))
    wanted = {
        "absmean": mean,
        "mean_sigma": mean + 2.5 * deviation,
        "l1": total,
        "l2": math.sqrt(squares),
        "rms": math.sqrt(squares / len(x)),
        "percentile": np.sort(size)[math.floor(0.01 * 99 * len(x) + 0.5) - 1],
    }
    for statistic, value in wanted.items():
        q = _TENSOR.replace(statistic=statistic, sigma=2.5, percentile=99, denominator="lo")  # 128: divides exactly
        assert abs(float(core.choose_qparams(q, x).scale) * 128 / value - 1) <= 17 * 2.0**-24, statistic
    signed = x.astype(np.float64) + 0.25
    q = _AFFINE.replace(statistic="mean_sigma", sigma=2.5, bits=8)
    got = core.choose_qparams(q, signed)
    mean = math.fsum(signed) / len(x)
    deviation = math.sqrt(math.fsum((signed - mean) ** 2) / (len(x) - 1))
    assert math.isclose(float(got.scale), 5 * deviation / 255, rel_tol=1e-14)
    assert int(got.zero_point) == -round((mean - 2.5 * deviation) / float(got.scale))


def test_the_search_finds_the_least_error() -> None:
    """An outlier among many small numbers: the exact errors of all candidates, in fractions."""
    x = np.append(np.random.default_rng(3).standard_normal(200), 12.0).astype(np.float32)
    q = _TENSOR.replace(bits=3, statistic="mse")
    errors = {}
    for k in range(1, 21):
        scale = np.float32(np.float32(12) * np.float32(k / 20)) / np.float32(3)
        values = core.fake_quantize(q, x, QParams(np.asarray(scale)))
        errors[float(scale)] = sum(
            (Fraction(a) - Fraction(b)) ** 2 for a, b in zip(values.tolist(), x.tolist(), strict=True)
        )
    best = min(errors, key=lambda scale: errors[scale])
    assert best < 4
    assert float(core.choose_qparams(q, x).scale) == best


def test_of_equal_errors_the_first_counts() -> None:
    """-1 is -8 times 1/8 and -7 times 1/7 without error, by the candidates 7/8 and 8/8."""
    q = _TENSOR.replace(statistic="mse", bits=4, search_steps=8)
    x = np.asarray([-1, -1, 0], np.float32)
    assert np.array_equal(core.fake_quantize(q.replace(statistic="extremes"), x), x)
    for room, to in ((core, np.asarray), (torch_frontend, to_torch), (jax_backend, to_jax)):
        assert float(room.choose_qparams(q, to(x)).scale) == 0.125


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_square_roots_are_correctly_rounded(dtype: Any) -> None:
    """Squares, their neighbours, and numbers whose root lies next to a midpoint, against integer square roots."""
    info = np.finfo(dtype)
    bits = info.nmant + 1
    random = np.random.default_rng(9)
    whole = random.integers(2 ** (bits - 1), 2**bits, 300).tolist()
    near = [(2 * r + 1) ** 2 >> (bits + 1) for r in whole]  # roots next to midpoints
    exact = [math.isqrt(r) ** 2 for r in whole]
    values = np.asarray([*near, *exact, *whole, 1, 2, 3, 4], dtype)
    values = np.concatenate([values, np.nextafter(values, dtype(0)), np.nextafter(values, dtype(np.inf))])
    x = np.concatenate([np.ldexp(values, random.integers(-60, 60, values.shape)), np.zeros(1, dtype)]).astype(dtype)
    x = np.append(x, [info.smallest_normal, info.max]).astype(dtype)

    def rounded(value: float) -> float:
        scaled = Fraction(value) * 4 ** (600 + bits)
        return float(np.asarray(Fraction(math.isqrt(int(scaled)) * 2 + 1, 2 ** (601 + bits)), dtype)) if value else 0.0

    want = np.asarray([rounded(v) for v in x.tolist()], dtype)
    assert_same_bits(want, core_sums.square_root(x))
    assert_same_bits(want, torch_sums.square_root(to_torch(x)), inputs=x)
    if dtype == np.float32:
        assert_same_bits(want, jax_sums.square_root(to_jax(x)), inputs=x)
        assert_same_bits(want, jax.jit(jax_sums.square_root)(to_jax(x)), inputs=x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_nth_smallest_is_that_of_a_sorted_array(dtype: Any) -> None:
    info = ml_dtypes.finfo(dtype)
    special = [0, -0.0, 1, -1, 1, float(info.smallest_subnormal), -float(info.smallest_subnormal), float(info.max)]
    x = np.asarray([special, special[::-1], [*special[4:], *special[:4]]], dtype)
    for n in range(1, 9):
        want = np.sort(x.astype(np.float64), -1)[:, n - 1]
        for room, to in ((core_statistics, np.asarray), (torch_statistics, to_torch), (jax_statistics, to_jax)):
            got = to_numpy(room.nth_smallest(to(x), n))
            assert got.dtype == dtype
            assert np.array_equal(got.astype(np.float64), want), (room, n)


@pytest.mark.parametrize("statistic", Statistic)
def test_data_that_is_not_finite_is_refused(statistic: Statistic) -> None:
    q = _CHANNEL.replace(statistic=statistic)
    for value in (np.nan, np.inf, -np.inf):
        x = np.ones((3, 40), np.float32)
        x[1, 7] = value
        for room, to in ((core, np.asarray), (torch_frontend, to_torch), (jax_backend, to_jax)):
            with pytest.raises(ValueError, match="must be finite"):
                room.choose_qparams(q, to(x))
    scale = jax.jit(lambda a: jax_backend.choose_qparams(q, a).scale)(to_jax(x))
    assert np.isnan(np.asarray(scale)).ravel().tolist() == [False, True, False]


@pytest.mark.parametrize("statistic", Statistic)
def test_empty_and_single_elements(statistic: Statistic) -> None:
    for q in (_TENSOR.replace(statistic=statistic), _TENSOR.replace(statistic=statistic, granularity=PerAxis(0))):
        shapes = [(0,), (3, 0), (0, 3), (1,)] if isinstance(q.granularity, PerAxis) else [(0,), (), (1,), (1, 1)]
        for shape in shapes:
            x = np.full(shape, -3, np.float32)
            want = core.choose_qparams(q, x)
            if x.size:
                spread = {"mse": float(want.scale.ravel()[0]) * 127}.get(statistic, 3.0)
                apart = 2.0**-22 if statistic == "hqo" else 0  # which takes what the rounding of 3 / 127 lost
                assert abs(float(want.scale.ravel()[0]) / float(np.float32(spread) / np.float32(127)) - 1) <= apart
            elif want.scale.size:
                assert float(want.scale.ravel()[0]) == 2.0**-126
            assert_same_bits(want, torch_frontend.choose_qparams(q, to_torch(x)))
            if shape in ((3, 0), ()):  # every shape is a compilation
                assert_same_bits(want, jax_backend.choose_qparams(q, to_jax(x)))


@pytest.mark.parametrize(("direction", "zero"), [("toward_negative", 1), ("toward_positive", 0), ("ties_to_even", 0)])
def test_zero_points_of_the_least_numbers(direction: str, zero: int) -> None:
    """A quotient far below the smallest subnormal number is still told from 0 where the direction tells."""
    q = _AFFINE.replace(zero_point_rounding=direction, floor=2.0**20)
    for least in (-(2.0**-149), -(2.0**-120)):
        x = np.asarray([least, 1.0], np.float32)
        for room, to in ((core, np.asarray), (torch_frontend, to_torch), (jax_backend, to_jax)):
            got = room.choose_qparams(q, to(x)).zero_point
            rounded_to_zero = least * 2.0**-20 >= -(2.0**-150)
            assert int(got) == (0 if rounded_to_zero else zero), (room, least)


def test_layouts_in_memory_do_not_matter() -> None:
    x = next(arrays(np.float32))
    for name in ("mean_sigma", "mse", "percentile_affine"):
        want = expected(QUANTIZERS[name], x)
        turned = to_torch(np.ascontiguousarray(x.T)).T
        assert not turned.is_contiguous()
        assert_same_bits(want, torch_frontend.choose_qparams(QUANTIZERS[name], turned))
        assert_same_bits(want, core.choose_qparams(QUANTIZERS[name], np.asfortranarray(x)))
    q = _CHANNEL.replace(statistic="rms", granularity=PerAxis(0))
    axes = (1, 0)
    want = expected(q, x)
    got = TensorQuantizer(q).qparams(to_jax(np.ascontiguousarray(x.T)), axes=axes)
    assert_same_bits(want.scale, got.scale)
    q = q.replace(granularity=core.PerTensor())
    got = TensorQuantizer(q).qparams(to_jax(np.ascontiguousarray(x.T)), axes=axes)
    assert_same_bits(expected(q, x).scale, got.scale)


def test_functions_that_transform_keep_the_bits() -> None:
    x = np.stack([a[:, :64] for a in arrays(np.float32)])
    for name in ("percentile_affine", "mean_sigma", "mse_affine", "hqo"):
        q = QUANTIZERS[name].replace(search_steps=3)
        want = [expected(q, a) for a in x]
        scales = np.stack([w.scale for w in want])
        got = torch.func.vmap(lambda a, q=q: torch_frontend.choose_qparams(q, a).scale)(to_torch(x))
        assert_same_bits(scales, got, call=name)
        got = jax.vmap(lambda a, q=q: jax_backend.choose_qparams(q, a).scale)(to_jax(x))
        assert_same_bits(scales, got, call=name)


def test_fake_quantize_uses_the_statistic_as_a_constant() -> None:
    x = list(arrays(np.float32))[2]
    q = QUANTIZERS["absmean"].replace(granularity=PerBlock((16, 32)))
    want = core.fake_quantize(q, x)
    assert not np.array_equal(want, core.fake_quantize(q.replace(statistic="extremes"), x))
    leaf = to_torch(x).requires_grad_()
    got = torch_frontend.fake_quantize(q, leaf)
    assert_same_bits(want, got)
    got.backward(torch.ones_like(got))
    qparams = core.choose_qparams(q, x)
    dx = core.fake_quantize_vjp(q, x, qparams, np.ones_like(x)).x
    assert leaf.grad is not None
    assert_same_bits(dx, leaf.grad)
    assert_same_bits(want, jax_backend.fake_quantize(q, to_jax(x)))
    assert_same_bits(dx, jax.grad(lambda a: jax_backend.fake_quantize(q, a).sum())(to_jax(x)))


def test_stochastic_and_learned_rounding_search_with_nearest() -> None:
    x = list(arrays(np.float32))[2]
    q = QUANTIZERS["mse"]
    want = expected(q, x)
    for room, to in ((core, np.asarray), (torch_frontend, to_torch), (jax_backend, to_jax)):
        assert_same_bits(want, room.choose_qparams(q.replace(rounding="stochastic"), to(x)))
        assert_same_bits(want, room.choose_qparams(q.replace(rounding="learned"), to(x)))
    assert not np.array_equal(want.scale, core.choose_qparams(q.replace(rounding="toward_zero"), x).scale)
