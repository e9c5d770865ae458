"""Other systems' arithmetics and scale rules in the frontends: the bits of core, which the oracles compare with them.

Every dialect in every dtype on knife edges and special values; then the lattice of all fields, of which each pair of
values occurs; then compiled, one program for a few, inside a larger one. Expected is always mode "numpy".
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core
from samebits.core import PerTensor, PerToken, QParams, Quantizer, catalog, dialects
from samebits.core.arithmetic import (
    Arithmetic,
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
from samebits.core.scales import OF_OTHERS, Denominator, Restriction, Statistic
from samebits.proofs import assert_same_bits
from samebits.proofs.check.pieces import Piece
from samebits.proofs.check.tally import sum_bound
from samebits.proofs.inputs.knife_edges import knife_edges
from samebits.proofs.inputs.ranges import knife_edge_ranges
from samebits.proofs.modes import execution
from samebits.torch_frontend import fake_quantize, operations
from samebits.torch_frontend.nn import QuantLinear
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

from ..exact import DTYPES
from ..oracle_inputs import blocks

Array = NDArray[Any]

EAGER = ("torch eager",)  # modes in which every case runs
COMPILED = ("torch compiled",)  # modes in which a few do
ENTRIES = ("int8_per_tensor", "uint8_affine_per_tensor", "float8_e4m3fn_per_tensor")
SCALES = (0.7, 0.1, 1 / 3)

FIELDS: Mapping[str, Sequence[Any]] = {
    "compute_dtype": tuple(ComputeDtype),
    "division": tuple(Division),
    "zero_point_order": tuple(ZeroPointOrder),
    "zero_point_domain": tuple(ZeroPointDomain),
    "clamp_order": tuple(ClampOrder),
    "nan": tuple(NanRule),
    "fused_multiply_add": (False, True),
    "flush_subnormals": (False, True),
    "keep_negative_zero": (False, True),
}
AROUND: Mapping[str, Sequence[Any]] = {
    "entry": (*ENTRIES, "int8_affine_per_token", "ternary_per_channel", "nf4_per_group64", "float8_e5m2_per_tensor"),
    "dtype": tuple(DTYPES),
    "floor": (None, 0.0),
    "rounding": ("ties_to_even", "toward_negative", "ties_to_away", "stochastic"),
    "gradient": ("clipped", "pass_through", "clipped_quotient", "learned_scale"),
    "scale": (0.7, 2.0**-126, 3e38, 0.0),
}
RULES: Mapping[str, Sequence[Any]] = {
    "scale_dtype": (None, *ComputeDtype),
    "scale_division": tuple(Division),
    "range": tuple(RangeRule),
    "range_floor": (0.0, 1e-10, 0.3),
    "empty_range": (0.0, 1.0),
    "replace_below": (0.0, *Threshold, 2.0**-149, 0.01),
    "replacement": (None, 1.0, 0.1),
    "zero_point_rule": tuple(ZeroPointRule),
    "zero_point_scale": tuple(ZeroPointScale),
}
AROUND_RULES: Mapping[str, Sequence[Any]] = {
    "entry": ("int8_per_tensor", "uint8_affine_per_tensor", "uint4_affine_per_group32", "float8_e4m3fn_per_tensor"),
    "dtype": tuple(DTYPES),
    "floor": (None, 0.0, 2.0**-23),
    "denominator": tuple(Denominator),
    "compute_dtype": tuple(ComputeDtype),
    "zero_point_domain": tuple(ZeroPointDomain),
    "fused_multiply_add": (False, True),
    "flush_subnormals": (False, True),
    "statistic": (Statistic.EXTREMES, Statistic.PERCENTILE, Statistic.RMS),
    "restriction": (Restriction.FLOAT, Restriction.POWER_OF_TWO, Restriction.POWER_OF_TWO_EVEN, Restriction.QUANTIZED),
    "zero_point_rounding": ("ties_to_even", "toward_zero"),
}


def test_the_lattices_have_every_field() -> None:
    assert set(FIELDS) == {field.name for field in dataclasses.fields(Arithmetic)}
    assert set(RULES) == set(OF_OTHERS)


def covering(fields: Mapping[str, Sequence[Any]], candidates: int = 30) -> list[dict[str, Any]]:
    """Rows in which each pair of values of two fields occurs: of random rows, always the one with most new pairs."""
    rng, names = np.random.default_rng(0), list(fields)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(len(fields[names[a]]))
        for j in range(len(fields[names[b]]))
    }
    rows = []
    while missing:
        a, i, b, j = min(missing)
        drawn = [[int(rng.integers(len(fields[name]))) for name in names] for _ in range(candidates)]
        for row in drawn:
            row[a], row[b] = i, j
        pairs = [{(p, row[p], q, row[q]) for p, q in itertools.combinations(range(len(names)), 2)} for row in drawn]
        best = max(range(candidates), key=lambda k: len(pairs[k] & missing))
        missing -= pairs[best]
        rows.append({name: fields[name][k] for name, k in zip(names, drawn[best], strict=True)})
    return rows


def in_dialect(entry: str, dialect: str) -> Quantizer | None:
    """The entry, narrow where the other system is; None where it has no such quantizer."""
    narrow = {"narrow": True} if dialect == "aqt" and hasattr(catalog[entry].format, "narrow") else {}
    try:
        return catalog[entry].replace(**dialects[dialect], **narrow)
    except ValueError:
        return None


def parameters(q: Quantizer, scale: float, dtype: np.dtype[Any]) -> QParams:
    wide = np.float64 if dtype == np.float64 else np.float32
    s = np.asarray(scale, wide)
    if not q.affine:
        return QParams(s)
    if q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER:
        return QParams(s, np.asarray(min(7, q.format.hi), np.int32))
    return QParams(s, np.asarray(0.3 * scale, wide))


@np.errstate(all="ignore")
def inputs(q: Quantizer, qparams: QParams, dtype: np.dtype[Any]) -> Array:
    return knife_edges(q, max(float(qparams.scale), 2.0**-126), qparams.zero_point, dtype)


@np.errstate(all="ignore")
def compare(mode: str, q: Quantizer, x: Array, qparams: QParams) -> None:
    """All five functions; the gradients of parameters within the bound of a sum."""
    g = np.random.default_rng(0).standard_normal(x.shape).astype(x.dtype)
    expected, got = (execution.run_all(m, q, x, g, qparams) for m in ("numpy", mode))
    for name in ("codes", "values", "fake"):
        assert_same_bits(getattr(expected, name), getattr(got, name), call=f"{mode}, {name} of {q}", inputs=x)
    assert_same_bits(expected.gradients.x, got.gradients.x, call=f"{mode}, gradient of x of {q}", inputs=x)
    block = np.zeros(x.shape, np.int64)
    piece = Piece(x, np.ones(x.shape, np.bool_), block, ("knife edges",), qparams)
    for name in ("gradients.scale", "gradients.zero_point")[: 1 + q.affine]:
        want, have = (np.asarray(getattr(r.gradients, name[10:]), np.float64).reshape(-1) for r in (expected, got))
        near = np.abs(want - have) <= sum_bound(q, piece, g, expected, name)
        assert (near | (want == have) | (np.isnan(want) & np.isnan(have))).all(), (
            f"{mode}, {name} of {q}: {want} {have}"
        )


@pytest.mark.parametrize("mode", EAGER)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dialect", dialects)
def test_a_dialect_has_the_bits_of_core(dialect: str, dtype: str, mode: str) -> None:
    kind = DTYPES[dtype]
    for q in filter(None, (in_dialect(entry, dialect) for entry in ENTRIES)):
        for scale in SCALES[: 1 if q.arithmetic.fused_multiply_add else None]:  # core's fractions are slow
            qparams = parameters(q, scale, kind)
            compare(mode, q, inputs(q, qparams, kind), qparams)


@pytest.mark.parametrize("mode", EAGER)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dialect", dialects)
def test_a_dialect_chooses_the_parameters_of_core(dialect: str, dtype: str, mode: str) -> None:
    choose = execution.implementation(mode).choose_qparams
    for entry in ("int8_per_tensor", "uint8_affine_per_tensor"):
        q = in_dialect(entry, dialect)
        if q is not None:
            same_parameters(choose, q.replace(granularity=PerToken()), DTYPES[dtype])


@np.errstate(all="ignore")
def same_parameters(choose: Any, q: Quantizer, dtype: np.dtype[Any]) -> None:
    for x in data(q, dtype):
        expected, got = core.choose_qparams(q, x), choose(q, x)
        assert_same_bits(expected.scale, got.scale, call=f"scale of {q}")
        if q.affine:
            assert_same_bits(expected.zero_point, got.zero_point, call=f"zero point of {q}")


@np.errstate(all="ignore")
def data(q: Quantizer, dtype: np.dtype[Any]) -> Iterator[Array]:
    """Blocks in one array, as rows: data of many kinds, and ranges at which parameters are decided."""
    yield np.concatenate(_blocks(dtype))
    yield np.tile(knife_edge_ranges(q, dtype, 40), (1, 2))


@cache
def _blocks(dtype: np.dtype[Any]) -> tuple[Array, ...]:
    return tuple(blocks(dtype))


@pytest.mark.parametrize("mode", EAGER)
def test_every_pair_of_fields_has_the_bits_of_core(mode: str) -> None:
    for row in covering(FIELDS | AROUND):
        entry, dtype, scale = row.pop("entry"), DTYPES[row.pop("dtype")], row.pop("scale")
        q = catalog[entry].replace(granularity=PerTensor())
        for name, value in row.items():
            try:
                q = q.replace(**{name: value})
            except ValueError:  # no rounding or gradient of this format
                assert name in ("rounding", "gradient")
        if scale == 0 and q.scale.floor is None:
            scale = 0.1
        qparams = parameters(q, scale, dtype)
        compare(mode, q, inputs(q, qparams, dtype), qparams)


@pytest.mark.parametrize("mode", EAGER)
def test_every_pair_of_scale_rules_has_the_bits_of_core(mode: str) -> None:
    choose = execution.implementation(mode).choose_qparams
    for row in covering(RULES | AROUND_RULES):
        entry, dtype = row.pop("entry"), DTYPES[row.pop("dtype")]
        q = catalog[entry].replace(granularity=PerToken())
        for name, value in row.items():
            more = {"scale_format": catalog["nvfp4"].scale.scale_format} if value is Restriction.QUANTIZED else {}
            try:
                q = q.replace(**{name: value}, **more)
            except ValueError:  # rules that exclude each other
                assert name in ("denominator", "statistic", "restriction")
        same_parameters(choose, q, dtype)


@pytest.mark.parametrize("mode", EAGER)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("statistic", [Statistic.MSE, Statistic.HQO])
def test_searches_in_other_arithmetics(statistic: Statistic, dtype: str, mode: str) -> None:
    x = np.random.default_rng(0).standard_normal((4, 32)).astype(DTYPES[dtype])
    for dialect in ("torchao", "qwix", "torch_dynamic"):
        q = in_dialect("int4_per_group32", dialect)
        assert q is not None
        q = q.replace(statistic=statistic)
        expected, got = core.choose_qparams(q, x), execution.implementation(mode).choose_qparams(q, x)
        assert_same_bits(expected.scale, got.scale, call=f"{q}")


FAULTS: Mapping[str, tuple[str, str, str, Any]] = {  # dialect; module and function of the room; what it becomes
    "division for a reciprocal": ("torch_fake_quantize", "arithmetics", "divide", operations.true_divide),
    "a product rounded": (
        "torch_quantize",
        "arithmetics",
        "multiply_add",
        lambda a, b, c, _: operations.multiply_add(a, b, c, Arithmetic()),
    ),
    "subnormals kept": ("aqt", "operations", "flush", lambda x, _: x),
    "one zero": ("brevitas", "arithmetics", "_limited", lambda q, u, *_: u.clamp(q.format.lo, q.format.hi) + 0.0),
    "rounded once": ("torchao", "routes", "working_dtype", lambda a, dtype: torch.float32),
    "another code for NaN": ("onnx", "arithmetics", "_instead_of_nan", lambda q, codes, _: codes.new_zeros(())),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dialect, module, name, instead = FAULTS[fault]
    monkeypatch.setattr(import_module(f"samebits.torch_frontend.{module}"), name, instead)
    dtype = DTYPES["bfloat16" if dialect == "torchao" else "float32"]
    q = in_dialect("int8_per_tensor" if dialect in ("aqt", "brevitas", "onnx") else "uint8_affine_per_tensor", dialect)
    assert q is not None
    qparams = parameters(q, 2.0**126 if dialect == "aqt" else 0.7, dtype)
    q = q.replace(rounding="toward_positive") if dialect == "aqt" else q  # where a subnormal number is not nothing
    with pytest.raises(AssertionError, match="elements differ"):
        compare("torch eager", q, inputs(q, qparams, dtype), qparams)


@pytest.mark.parametrize("mode", COMPILED)
@np.errstate(all="ignore")
def test_compiled_dialects_have_the_bits_of_core(mode: str) -> None:
    """What compilers change: reciprocals, sums of products, signs of zeros, subnormal numbers, roundings to bfloat16.

    With gradients, and the other dialects: `samebits check --dialect`.
    """
    dtype = DTYPES["bfloat16"]
    for dialect, entry in (("brevitas", "uint8_affine_per_tensor"), ("aqt", "int8_per_tensor")):
        q = in_dialect(entry, dialect)
        assert q is not None
        qparams = parameters(q, 0.1, dtype)
        x = np.resize(inputs(q, qparams, dtype), 2048)
        got = execution.implementation(mode).fake_quantize(q, x, qparams)
        assert_same_bits(core.fake_quantize(q, x, qparams), got, call=f"{mode}, {q}", inputs=x)


@np.errstate(all="ignore")
def test_inside_larger_compiled_programs() -> None:
    """``fake_quantize(q, x) * w + b`` sees rounded values; scales come as tensors, 100 of them in one array.

    Of torch's fake quantization that of the installed torch.
    """
    rng, dtype = np.random.default_rng(0), np.dtype(np.float32)
    scales = (10.0 ** rng.uniform(-4, 2, 100)).astype(dtype)
    for dialect, count in (("torch_fake_quantize", 100), ("torch_quantize", 8)):
        q = in_dialect("uint8_affine_per_channel", dialect)
        assert q is not None
        q = q if count == 100 else q.replace(bits=4)  # another one through the same code: its numbers stay constants
        scale = scales[:count, None]
        x = np.stack([np.resize(_finite(knife_edges(q, s, 7, dtype)), 1400) for s in scale[:, 0]])
        zero = np.full((count, 1), 7, np.int32)
        w, b = (rng.standard_normal(x.shape).astype(dtype) for _ in range(2))
        program = torch.compile(_within(q), fullgraph=True)
        got = program(*map(torch.from_numpy, (x, scale, zero, w, b)))
        inner = core.fake_quantize(q, x, QParams(scale, zero))
        if dialect == "torch_fake_quantize":
            parts = torch.from_numpy(scale[:, 0].copy()), torch.from_numpy(zero[:, 0].copy())
            inner = torch.fake_quantize_per_channel_affine(torch.from_numpy(x), *parts, 0, 0, 255).numpy()
        assert_same_bits(inner * w + b, got, call=dialect, inputs=x)


def _finite(x: Array) -> Array:
    """Without what that operator overflows at; see `tests/oracles/test_differences.py`."""
    return x[np.abs(x) < 1e10]


def _within(q: Quantizer) -> Any:
    return lambda x, scale, zero, w, b: fake_quantize(q, x, QParams(scale, zero)) * w + b


@pytest.mark.parametrize("dialect", dialects)
def test_layers_and_states_have_the_bits_of_core(dialect: str) -> None:
    q_w, q_x = in_dialect("int8_per_channel", dialect), in_dialect("uint8_affine_per_tensor", dialect)
    assert q_w is not None
    assert q_x is not None
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 64)).astype(np.float32), rng.standard_normal((8, 64)).astype(np.float32)
    layer = QuantLinear(64, 8, bias=False, weight_quant=q_w, input_quant=q_x)
    layer.weight.data = torch.from_numpy(w)
    y = layer(torch.from_numpy(x).requires_grad_())
    expected = core.linear(q_x, x, core.choose_qparams(q_x, x), q_w, w, core.choose_qparams(q_w, w))
    if q_w.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER:
        assert_same_bits(expected, y, call=dialect)
    else:  # floats, in any order: both lie within the bound of an exact sum
        bound = core.contraction_bound(core.fake_quantize(q_x, x), core.fake_quantize(q_w, w))
        assert (np.abs(expected.astype(np.float64) - y.detach().numpy()) <= 2 * bound).all()
    y.sum().backward()
    assert layer.weight.grad is not None
    held = TensorQuantizer(q_x.replace(source="running_statistic", momentum=0.0))
    for batch in (x, 2 * x):
        value = held(torch.from_numpy(batch))
    chosen = core.choose_qparams(q_x, 2 * x)
    if chosen.scale.dtype == np.float32 and q_x.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER:
        assert_same_bits(core.fake_quantize(q_x, 2 * x, chosen), value, call=dialect)
