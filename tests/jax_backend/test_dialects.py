"""Every dialect, arithmetic and scale rule in jax_backend, op by op and compiled, beside core on knife edges.

Op by op means `jax.disable_jit`: every operation is a program of its own, which quantizers share. Compiled programs end
with a product and a sum, so that a compiler has something to contract with. `design` chooses points of the lattice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import combinations, product
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import Arithmetic, PerAxis, QParams, Quantizer, catalog, dialects
from samebits.core.arithmetic import (
    ClampOrder,
    ComputeDtype,
    Division,
    NanRule,
    RangeRule,
    Threshold,
    ZeroPointDomain,
    ZeroPointOrder,
    ZeroPointRule,
    ZeroPointScale,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edges

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow and NaN are what is tested
Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NARROW = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))
# with one of the first, every operation heeds subnormals; with those behind only, XLA's own are used where they do
EXTREME, ORDINARY = (0.1, 7.77, 2.0**-126, 2.0**120, 0.3, 0.02), (0.1, 1.0, 3e-5, 0.73, 0.3, 0.02)
COLUMNS = 1400
SIGNED, UNSIGNED = catalog["int8_per_channel"], catalog["uint8_affine_per_tensor"].replace(granularity=PerAxis(0))
LATTICE: dict[str, Sequence[Any]] = {
    "compute_dtype": list(ComputeDtype),
    "division": list(Division),
    "zero_point_order": list(ZeroPointOrder),
    "zero_point_domain": list(ZeroPointDomain),
    "clamp_order": list(ClampOrder),
    "nan": list(NanRule),
    "fused_multiply_add": [False, True],
    "flush_subnormals": [False, True],
    "keep_negative_zero": [False, True],
    "rounding": ["ties_to_even", "toward_negative", "ties_to_away"],
}
RULES: dict[str, Sequence[Any]] = {
    "compute_dtype": list(ComputeDtype),
    "division": list(Division),
    "flush_subnormals": [False, True],
    "scale_dtype": [None, *ComputeDtype],
    "scale_division": list(Division),
    "range": list(RangeRule),
    "range_floor": [0.0, 1e-10],
    "empty_range": [0.0, 1.0],
    "replace_below": [0.0, 1e-3, *Threshold],
    "replacement": [None, 0.1],
    "zero_point_rule": list(ZeroPointRule),
    "zero_point_scale": list(ZeroPointScale),
    "zero_point_domain": list(ZeroPointDomain),
    "floor": [None, 0.0, 2.0**-10],
    "restriction": ["float", "power_of_two", "integer"],
    "denominator": ["hi", "half_range", "larger"],
}


def design(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Points of a lattice among which every pair of values of two fields occurs, few of them; always the same."""
    names, rng = list(choices), np.random.default_rng(0)
    missing = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i, j in product(*(range(len(choices[n])) for n in (a, b)))
    }
    points = []
    while missing:
        best: tuple[int, dict[str, int]] = (-1, {})
        for _ in range(40):
            point: dict[str, int] = {}
            for name in rng.permutation(names):
                gains = [
                    sum(pair in missing for other, k in point.items() for pair in _both(name, i, other, k, names))
                    for i in range(len(choices[name]))
                ]
                tops = np.flatnonzero(np.array(gains) == max(gains))
                point[name] = int(rng.choice(tops))
            best = max(best, (len(missing & _pairs(point, names)), point), key=lambda found: found[0])
        missing -= _pairs(best[1], names)
        points.append({name: choices[name][best[1][name]] for name in names})
    return points


def _both(a: str, i: int, b: str, j: int, names: list[str]) -> list[Any]:
    return [((a, i), (b, j))] if names.index(a) < names.index(b) else [((b, j), (a, i))]


def _pairs(point: Mapping[str, int], names: list[str]) -> set[Any]:
    return {((a, point[a]), (b, point[b])) for a, b in combinations(names, 2)}


def symmetric(fields_of: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields_of.items() if name != "zero_point"}


def dialect(name: str, affine: bool) -> Quantizer:
    return UNSIGNED.replace(**dialects[name]) if affine else SIGNED.replace(**symmetric(dialects[name]))


def case(q: Quantizer, dtype: np.dtype[Any], scales_of: Sequence[float]) -> tuple[Array, QParams]:
    """Knife edges of one scale in each row, and numbers beside zero; parameters with all kinds of zero points."""
    rng = np.random.default_rng(0)
    scales = np.array(scales_of, np.float64 if dtype == np.float64 else np.float32)[:, None]
    if q.scale.floor == 0 and scales_of is EXTREME:
        scales[4:, 0] = 0, 1e-40
    zeros = None
    if q.affine and q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER:
        zeros = rng.integers(q.format.lo, q.format.hi + 1, scales.shape).astype(np.int32)
        zeros[1] = q.format.lo
    elif q.affine:
        zeros = (scales * rng.uniform(-100, 100, scales.shape)).astype(scales.dtype)
        zeros[1] = 0
    rows = []
    for i, scale in enumerate(scales[:, 0]):
        edges = knife_edges(q, scale or 1, None if zeros is None else zeros[i, 0], dtype)
        tiny = (rng.standard_normal(40) * 1e-40).astype(dtype)
        rows.append(np.resize(np.concatenate([tiny, edges[::-1]]), COLUMNS))
    x = np.stack(rows)
    if scales_of is ORDINARY and (q.rounding == "toward_negative" or q.arithmetic.clamp_order == "before_rounding"):
        x = np.where(np.abs(x.astype(np.float64)) < 1e-15, np.zeros_like(x), x)  # else subnormals count
    return x, QParams(scales, zeros)


def of_jax(qparams: QParams) -> QParams:
    return QParams(*(None if p is None else jnp.asarray(p) for p in qparams[:2]))


def whole(q: Quantizer, x: Array) -> Array:
    """``x`` as `quantize` takes it."""
    if q.arithmetic.nan is not NanRule.PROPAGATE or q.format.has_nan:
        return x
    return np.where(np.isnan(x), np.ones_like(x), x)


def check_codes_and_values(q: Quantizer, dtype: np.dtype[Any], *, values_only: bool = False) -> None:
    """The four functions that follow given parameters; or `fake_quantize`, which holds most of what they do."""
    for scales_of in (EXTREME, ORDINARY):
        _check(q, dtype, *case(q, dtype, scales_of), values_only)


def _check(q: Quantizer, dtype: np.dtype[Any], x: Array, qparams: QParams, values_only: bool) -> None:
    given, numbers = of_jax(qparams), jnp.asarray(x)
    inputs = {"x": x, "scale": qparams.scale, "zero_point": qparams.zero_point}
    values = core.fake_quantize(q, x, qparams)
    assert_same_bits(values, jax_backend.fake_quantize(q, numbers, given), call=f"fake_quantize({q})", inputs=inputs)
    if values_only:
        return
    codes = core.quantize(q, whole(q, x), qparams)
    found = jax_backend.quantize(q, jnp.asarray(whole(q, x)), given)
    assert_same_bits(codes, found, call=f"quantize({q})", inputs=inputs)
    values = core.dequantize(q, codes, qparams, dtype)
    assert_same_bits(values, jax_backend.dequantize(q, found, given, dtype), call=f"dequantize({q})", inputs=codes)
    g = np.resize(np.linspace(-2, 2, 37), x.shape).astype(dtype)
    d = core.fake_quantize_vjp(q, x, qparams, g)
    got = jax_backend.fake_quantize_vjp(q, numbers, given, jnp.asarray(g))
    assert_same_bits(d.x, got.x, call=f"fake_quantize_vjp({q})", inputs=inputs)


def data(dtype: np.dtype[Any]) -> Array:
    """Blocks of all kinds: of both signs, of one, of one number, empty of anything but zeros, of subnormals."""
    rng = np.random.default_rng(2)
    normal = rng.standard_normal((4, 32)) * np.array([[1.0], [1e-5], [1e-12], [100.0]])
    signed = rng.uniform(1, 2, (4, 32)) * np.array([[1.0], [-1.0], [1e-9], [-300.0]])
    ends = np.stack([np.zeros(32), np.full(32, 0.75), np.full(32, -1e-3), rng.standard_normal(32) * 1e-41])
    wide = rng.standard_normal((4, 32)) * 2.0 ** np.array([[-60.0], [-30.0], [9.0], [14.0]])
    return np.concatenate([normal, signed, ends, wide]).astype(dtype)


def check_parameters(q: Quantizer, dtype: np.dtype[Any], granularities: Sequence[Any] = (PerAxis(0),)) -> None:
    """`choose_qparams`. Zeros of either sign are the same zero point."""
    for granularity in granularities:
        chooser, x = q.replace(granularity=granularity), data(dtype)
        expected, got = core.choose_qparams(chooser, x), jax_backend.choose_qparams(chooser, jnp.asarray(x))
        assert_same_bits(expected.scale, got.scale, call=f"choose_qparams({chooser}).scale")
        if q.affine:
            zeros = (np.asarray(p.zero_point) + np.zeros((), p.zero_point.dtype) for p in (expected, got))
            assert_same_bits(*zeros, call=f"choose_qparams({chooser}).zero_point", inputs=expected.scale)


@pytest.mark.parametrize(("name", "dtype"), list(zip(dialects, NARROW[:2] * len(dialects), strict=False)), ids=str)
def test_dialects_op_by_op(name: str, dtype: np.dtype[Any]) -> None:
    """One dtype each; `test_all_dialects_op_by_op` takes every one, and symmetric quantizers."""
    with jax.disable_jit():
        check_codes_and_values(dialect(name, True), dtype)
        check_parameters(dialect(name, True), dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("name", dialects)
def test_all_dialects_op_by_op(name: str, affine: bool) -> None:
    q = dialect(name, affine)
    with jax.disable_jit():
        for dtype in NARROW:
            check_codes_and_values(q, dtype)
            check_parameters(q, dtype, (PerAxis(0), core.PerTensor()))


def points(choices: Mapping[str, Sequence[Any]], base: Quantizer) -> list[tuple[Quantizer, np.dtype[Any]]]:
    """A design, float32 and bfloat16 in turn."""
    return [(base.replace(**point), NARROW[i % 2]) for i, point in enumerate(design(choices))]


def test_designs_hold_every_pair_of_values() -> None:
    for choices in (LATTICE, RULES):
        made, names = design(choices), list(choices)
        seen = {(a, str(p[a]), b, str(p[b])) for p in made for a, b in combinations(names, 2)}
        assert len(seen) == sum(len(choices[a]) * len(choices[b]) for a, b in combinations(names, 2))
        assert len(made) < 40
    own = {f.name for f in fields(Arithmetic)}
    assert own <= set(LATTICE)
    assert set(core.scales.OF_OTHERS) <= set(RULES)


@pytest.mark.thorough
def test_points_of_the_lattice_op_by_op() -> None:
    with jax.disable_jit():
        for q, dtype in points(LATTICE, UNSIGNED):
            check_codes_and_values(q, dtype, values_only=True)


@pytest.mark.thorough
def test_scale_rules_op_by_op() -> None:
    with jax.disable_jit():
        for q, dtype in points(RULES, UNSIGNED):
            check_parameters(q, dtype)


@pytest.mark.thorough
def test_points_of_the_lattice_of_symmetric_quantizers_op_by_op() -> None:
    with jax.disable_jit():
        for q, dtype in [*points(LATTICE, SIGNED), *points(LATTICE, UNSIGNED)]:
            check_codes_and_values(q, dtype)
        for q, dtype in points(RULES, SIGNED):
            check_parameters(q, dtype, (PerAxis(0), core.PerTensor()))


# dialects of which compiled programs are looked at here; all of them, in every dtype, with the long tests
COMPILED = [
    ("torch_fake_quantize", True, np.dtype(np.float32)),
    ("torch_quantize", True, np.dtype(np.float32)),
    ("quanto_affine", True, BFLOAT16),
]
ALL_COMPILED = [(name, affine, dtype) for name in dialects for affine in (False, True) for dtype in NARROW]


def check_compiled(q: Quantizer, dtype: np.dtype[Any]) -> None:
    """Inside a larger program, which adds what could be contracted with the last product: with scales, with constants.

    And with extreme scales.
    """
    x, qparams = case(q, dtype, ORDINARY)
    given, last = of_jax(qparams), np.resize(np.linspace(-3, 3, 40), x.shape).astype(dtype)

    @jax.jit
    def program(x: Any, scale: Any, zero: Any, last: Any) -> Any:
        values = jax_backend.fake_quantize(q, x, QParams(scale, zero))
        return values, values + last, jax_backend.fake_quantize(q, x, given) + last

    extreme, parameters = case(q, dtype, EXTREME)
    found = program(jnp.asarray(extreme), *of_jax(parameters)[:2], jnp.asarray(last))[0]
    assert_same_bits(core.fake_quantize(q, extreme, parameters), found, call=f"jit fake_quantize({q})", inputs=extreme)
    values = core.fake_quantize(q, x, qparams)
    total = np.asarray(values + last)
    numbers = jnp.asarray(x)
    found, added, of_constants = program(numbers, given.scale, given.zero_point, jnp.asarray(last))
    inputs = {"x": x, "scale": qparams.scale, "zero_point": qparams.zero_point}
    assert_same_bits(values, found, call=f"jit fake_quantize({q})", inputs=inputs)
    assert_same_bits(total, added, call=f"jit fake_quantize({q}) + last", inputs=inputs)
    assert_same_bits(total, of_constants, call=f"jit fake_quantize({q}) of constants + last", inputs=inputs)


@pytest.mark.parametrize(("name", "affine", "dtype"), COMPILED, ids=str)
def test_dialects_compiled(name: str, affine: bool, dtype: np.dtype[Any]) -> None:
    check_compiled(dialect(name, affine), dtype)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "affine", "dtype"), ALL_COMPILED, ids=str)
def test_all_dialects_compiled(name: str, affine: bool, dtype: np.dtype[Any]) -> None:
    q = dialect(name, affine)
    check_compiled(q, dtype)
    check_codes_and_values(q, dtype)
    check_parameters(q, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("base", [SIGNED, UNSIGNED, catalog["float8_e4m3fn_per_channel"]], ids=["s", "a", "float8"])
def test_points_of_the_lattice_compiled(base: Quantizer) -> None:
    for q, dtype in points(LATTICE, base):
        check_compiled(q, dtype)
        check_codes_and_values(q, dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["torch_fake_quantize", "torch_quantize", "brevitas", "torch_dynamic"])
def test_float64(name: str) -> None:
    with jax.enable_x64(True), jax.disable_jit():
        check_codes_and_values(dialect(name, True), np.dtype(np.float64))
        check_parameters(dialect(name, True), np.dtype(np.float64))
