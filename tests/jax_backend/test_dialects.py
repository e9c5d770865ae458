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
import torch
from flax import nnx
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
from samebits.jax_backend.nn import QuantLinear
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edges, special_values

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow and NaN are what is tested
Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
NARROW = (np.dtype(np.float32), BFLOAT16, np.dtype(np.float16))
SCALES = np.array([0.1, 1.0, 7.77, 3e-5, 2.0**-126, 1e-30, 2.0**120], np.float32)
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
        ((a, i), (b, j)) for a, b in combinations(names, 2) for i, j in product(*(range(len(choices[n])) for n in (a, b)))
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


def case(q: Quantizer, dtype: np.dtype[Any], seed: int = 0) -> tuple[Array, QParams]:
    """Knife edges of one scale in each row, and numbers beside zero; parameters with all kinds of zero points."""
    rng = np.random.default_rng(seed)
    wide = np.float64 if dtype == np.float64 else np.float32
    scales = np.concatenate([SCALES, [0, 1e-40] if q.scale.floor == 0 else [0.3, 0.02]]).astype(wide)[:, None]
    zeros = None
    if q.affine and q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER:
        zeros = rng.integers(q.format.lo, q.format.hi + 1, scales.shape).astype(np.int32)
        zeros[1] = q.format.lo
    elif q.affine:
        zeros = (scales * rng.uniform(-100, 100, scales.shape)).astype(wide)
        zeros[1] = 0
    rows = []
    for i, scale in enumerate(scales[:, 0]):
        edges = knife_edges(q, scale or 1, None if zeros is None else zeros[i, 0], dtype)
        tiny = (rng.standard_normal(40) * 1e-40).astype(dtype)
        rows.append(np.resize(np.concatenate([tiny, edges[::-1]]), COLUMNS))
    return np.stack(rows), QParams(scales, zeros)


def of_jax(qparams: QParams) -> QParams:
    return QParams(*(None if p is None else jnp.asarray(p) for p in qparams[:2]))


def whole(q: Quantizer, x: Array) -> Array:
    """``x`` as `quantize` takes it."""
    if q.arithmetic.nan is not NanRule.PROPAGATE or q.format.has_nan:
        return x
    return np.where(np.isnan(x), np.ones_like(x), x)


def check_codes_and_values(q: Quantizer, dtype: np.dtype[Any], seed: int = 0) -> None:
    """The four functions that follow given parameters."""
    x, qparams = case(q, dtype, seed)
    given, numbers = of_jax(qparams), jnp.asarray(x)
    inputs = {"x": x, "scale": qparams.scale, "zero_point": qparams.zero_point}
    values = core.fake_quantize(q, x, qparams)
    assert_same_bits(values, jax_backend.fake_quantize(q, numbers, given), call=f"fake_quantize({q})", inputs=inputs)
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


def check_parameters(q: Quantizer, dtype: np.dtype[Any]) -> None:
    """`choose_qparams`. Zeros of either sign are the same zero point."""
    for granularity in (PerAxis(0), core.PerTensor()):
        chooser, x = q.replace(granularity=granularity), data(dtype)
        expected, got = core.choose_qparams(chooser, x), jax_backend.choose_qparams(chooser, jnp.asarray(x))
        assert_same_bits(expected.scale, got.scale, call=f"choose_qparams({chooser}).scale")
        if q.affine:
            zeros = (np.asarray(p.zero_point) + np.zeros((), p.zero_point.dtype) for p in (expected, got))
            assert_same_bits(*zeros, call=f"choose_qparams({chooser}).zero_point", inputs=expected.scale)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("name", dialects)
def test_dialects_op_by_op(name: str, affine: bool) -> None:
    q = dialect(name, affine)
    with jax.disable_jit():
        for dtype in NARROW:
            check_codes_and_values(q, dtype)
            check_parameters(q, dtype)


def points(choices: Mapping[str, Sequence[Any]], base: Quantizer) -> list[tuple[Quantizer, np.dtype[Any]]]:
    """A design, every dtype in turn."""
    found = []
    for i, point in enumerate(design(choices)):
        found.append((base.replace(**point), NARROW[i % 3]))
    return found


def test_designs_hold_every_pair_of_values() -> None:
    for choices in (LATTICE, RULES):
        made, names = design(choices), list(choices)
        seen = {(a, str(p[a]), b, str(p[b])) for p in made for a, b in combinations(names, 2)}
        assert len(seen) == sum(len(choices[a]) * len(choices[b]) for a, b in combinations(names, 2))
        assert len(made) < 40
    own = {f.name for f in fields(Arithmetic)}
    assert own <= set(LATTICE)
    assert set(core.scales.ONLY_IN_CORE) <= set(RULES)


@pytest.mark.parametrize("base", [SIGNED, UNSIGNED], ids=["symmetric", "affine"])
def test_points_of_the_lattice_op_by_op(base: Quantizer) -> None:
    with jax.disable_jit():
        for q, dtype in points(LATTICE, base):
            check_codes_and_values(q, dtype)


@pytest.mark.parametrize("base", [SIGNED, UNSIGNED], ids=["symmetric", "affine"])
def test_scale_rules_op_by_op(base: Quantizer) -> None:
    with jax.disable_jit():
        for q, dtype in points(RULES, base):
            check_parameters(q, dtype)
