"""`samebits.proofs.conformance`: functions of each library, the rule that each breaks, and functions that misbehave."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, catalog, dialects
from samebits.proofs import conformance
from samebits.proofs.conformance import conform, vectors
from samebits.proofs.conformance.calls import library_of
from samebits.proofs.conformance.conform import cases, odd_shapes

q = catalog["int8_per_tensor"]


def in_numpy(x: Any, scale: Any) -> Any:
    return np.clip(np.round(x / scale), -128, 127) * scale + np.float32(0)


def in_torch(x: Any, scale: Any) -> Any:
    return torch.clamp(torch.round(x / scale), -128, 127) * scale + 0.0


def by_reciprocal(x: Any, scale: Any) -> Any:
    return torch.clamp(torch.round(x * (1 / scale)), -128, 127) * scale + 0.0


def ours(name: str, x: Any, scale: Any, zero: Any = None) -> Any:
    return core.fake_quantize(catalog[name], x, QParams(scale, zero))


def test_the_room_is_called_as_its_function() -> None:
    assert conformance(in_numpy) == conform.conformance(in_numpy)
    assert vars(conformance)["vectors"] is vectors


GOOD: dict[str, tuple[Callable[..., Any], str, str]] = {
    "numpy": (in_numpy, "int8_per_tensor", "float32"),
    "numpy, float64": (in_numpy, "int8_per_channel", "float64"),
    "torch": (in_torch, "int8_per_tensor", "float32"),
    "torch, per channel": (in_torch, "int8_per_channel", "float32"),
    "torch, our room": (
        lambda x, s, z: torch_frontend.quantize(
            catalog["uint8_affine_per_channel"], torch.nan_to_num(x), QParams(s, z)
        ),
        "uint8_affine_per_channel",
        "bfloat16",
    ),
    "jax, jitted": (
        jax.jit(lambda x, s: jax_backend.fake_quantize(q, x, QParams(s))),
        "int8_per_tensor",
        "float16",
    ),
    "jax, float64": (
        jax.jit(lambda x, s: jax_backend.fake_quantize(q, x, QParams(s))),
        "int8_per_tensor",
        "float64",
    ),
    **{
        name: (partial(ours, name), name, "float32") for name in ("nvfp4", "float8_e4m3fn_per_block", "nf4_per_group64")
    },
    **{name: (partial(ours, name), name, "bfloat16") for name in ("uint4_affine_float_zero_per_group64", "mxint8")},
}


@pytest.mark.parametrize(("function", "like", "dtype"), GOOD.values(), ids=GOOD)
def test_a_function_with_our_bits_conforms(function: Callable[..., Any], like: str, dtype: str) -> None:
    library = "numpy" if isinstance(function, partial) else None
    report = conformance(function, like, dtype=dtype, library=library).check()
    assert report.same
    assert "samebits" in report.likeness.exactly
    compared = sum(finding.compared for finding in report.findings)
    assert compared > 500
    assert f"0 of {compared:,} {report.returns} differ" in str(report)


def test_what_dynamo_wraps_conforms() -> None:
    """Without inductor, whose compiling is slow and is looked at elsewhere."""
    report = conformance(torch.compile(in_torch, backend="eager"))
    assert report.check().library == "torch"


def reads(*lines: str) -> tuple[str, ...]:
    return lines


BAD: dict[str, tuple[Callable[..., Any], str, dict[str, Any], tuple[str, ...]]] = {
    "reciprocal": (
        by_reciprocal,
        "int8_per_tensor",
        {},
        reads(
            "by_reciprocal against int8_per_tensor in float32 (torch arrays): 189 of 10,514 values differ",
            "input      -1.55 = -0x1.8cccccp+0 (float32 bits 0xbfc66666)",
            "expected   -1.5 = -0x1.8p+0 (float32 bits 0xbfc00000)",
            "got        -1.6 = -0x1.99999ap+0 (float32 bits 0xbfcccccd)",
            "rule       reciprocal: x * (1 / scale), must be x / scale",
            "on these inputs: but for NaN the bits of torch_fake_quantize,",
        ),
    ),
    "direction": (
        lambda x, s: np.clip(np.trunc(x / s + np.copysign(np.float32(0.5), x)), -128, 127) * s + np.float32(0),
        "int8_per_channel",
        {},
        reads(
            "rule       rounding direction: ties_to_away by trunc(x / scale +- 1/2) in floating point, where 0.49999997"
        ),
    ),
    "clamp": (
        lambda x, s: np.clip(np.round(x / s), -127, 127) * s + np.float32(0),
        "int8_per_tensor",
        {},
        reads("rule       clamp: codes must end at -128 and 127"),
    ),
    "no clamp": (
        lambda x, s: np.round(x / s) * s + np.float32(0),
        "int8_per_tensor",
        {},
        reads("rule       clamp: numbers end at -128 and 127"),
    ),
    "order": (
        lambda x, s, z: torch.clamp(torch.round(x / s + z), 0, 255).sub(z) * s + 0.0,
        "uint8_affine_per_channel",
        {},
        reads("zero point 85 (int32 bits 0x00000055)", "rule       zero point before rounding: round(x / scale + zero"),
    ),
    "negative zero": (
        lambda x, s: torch.clamp(torch.round(x / s), -128, 127) * s,
        "int8_per_tensor",
        {},
        reads(
            "input      -0.0 = -0x0p+0 (float32 bits 0x80000000)",
            "got        -0.0 = -0x0p+0 (float32 bits 0x80000000)",
            "rule       negative zero: must be 0.0, since codes have one zero",
            "on these inputs: exactly the bits of onnx_float",
        ),
    ),
    "NaN": (
        lambda x, s: np.nan_to_num(in_numpy(x, s), nan=0.0),
        "int8_per_tensor",
        {},
        reads("input      nan = nan (float32 bits", "rule       NaN: must stay NaN", "exactly the bits of quanto,"),
    ),
    "subnormals": (
        jax.jit(lambda x, s: jnp.clip(jnp.round(x / s), -128, 127) * s),
        "int8_per_tensor",
        {"shapes": False},
        reads(
            "input      -5.877473e-39 = -0x1.000004p-127 (float32 bits 0x80400001)",
            "rule       subnormals: flushed to zero, must be kept",
            "rule       negative zero: must be 0.0, since codes have one zero",
            "but for subnormal numbers the bits of onnx_float",
        ),
    ),
    "eager JAX": (
        lambda x, s: jnp.clip(jnp.round(x / s), -128, 127) * s + 0.0,
        "int8_per_channel",
        {"shapes": False},
        reads(
            "rule       reciprocal: x * (1 / scale)", "rule       subnormals: flushed", "but for NaN the bits of aqt"
        ),
    ),
    "torch's own": (
        lambda x, s, z: torch.fake_quantize_per_tensor_affine(x, s, z, 0, 255),
        "uint8_affine_per_tensor",
        {},
        reads(
            "rule       reciprocal",
            "rule       NaN: must stay NaN",
            "exactly the bits of torch_fake_quantize, torch_fused",
        ),
    ),
    "codes": (
        lambda x, s: np.clip(np.floor(x / s + np.float32(0.5)), -128, 127),
        "int8_per_tensor",
        {"returns": "codes"},
        reads(
            "509 of 10,506 codes differ", "rule       rounding direction: ties_toward_positive, must be ties_to_even"
        ),
    ),
    "bfloat16 steps": (
        lambda x, s: torch.clamp(torch.round(x / s.to(x.dtype)), -128, 127) * s.to(x.dtype) + 0.0,
        "int8_per_tensor",
        {"dtype": "bfloat16"},
        reads("rule       dtype of the steps: input, must be widened"),
    ),
}


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("function", "like", "how", "lines"), BAD.values(), ids=BAD)
def test_what_is_broken_is_said(
    function: Callable[..., Any], like: str, how: dict[str, Any], lines: tuple[str, ...]
) -> None:
    report = conformance(function, like, **how)
    assert not report.same
    for line in lines:
        assert line in str(report)
    assert "rule       code: " not in str(report), "no rule was found"
    with pytest.raises(AssertionError) as refused:
        report.check()
    assert str(refused.value) == str(report)


def test_every_dialect_is_recognised_as_itself() -> None:
    small_affine = catalog["uint8_affine_per_tensor"].replace(bits=4)
    for name, changes in dialects.items():
        theirs = small_affine.replace(**changes)
        if theirs.arithmetic.zero_point_domain == "integer":

            def function(x: Any, s: Any, z: Any, theirs: core.Quantizer = theirs) -> Any:
                return core.fake_quantize(theirs, x, QParams(s, z))

            report = conformance(function, small_affine, library="numpy", shapes=False)
            assert name in report.likeness.exactly
            assert conformance(function, theirs, library="numpy", shapes=False).check().like == "the quantizer given"


calls: list[int] = []


def forgets(x: Any, scale: Any) -> Any:
    calls.append(1)
    return in_numpy(x, scale) + np.float32(len(calls) % 2)


def says(x: Any, scale: Any) -> Any:
    print("scale is", scale)
    return in_numpy(x, scale)


def overwrites(x: Any, scale: Any) -> Any:
    result = in_numpy(x, scale)
    x[...] = 0
    return result


def small(x: Any, scale: Any) -> Any:
    if x.size < 2:
        raise OverflowError(f"too small:\n{x.shape}")
    return in_numpy(x, scale)


def leaves(x: Any, scale: Any) -> Any:
    raise SystemExit(3)


MISBEHAVING: dict[str, tuple[Callable[..., Any], str, int]] = {  # the verdict, and in how many cases
    "raises": (small, "raised OverflowError: too small: ()", 3),
    "leaves": (leaves, "raised SystemExit: 3", 12),
    "shape": (lambda x, s: in_numpy(x, s).reshape(-1)[:1], "returned the wrong shape: (1,), must be (1311,)", 10),
    "dtype": (lambda x, s: in_numpy(x, s).astype(np.float64), "returned the wrong dtype: float64, values must be", 12),
    "nothing": (lambda x, s: None, "returned no array", 12),
    "text": (lambda x, s: np.array(["a"]), "returned the wrong dtype: <U1", 12),
    "arguments": (lambda x: x, "raised TypeError: ", 12),
    "not deterministic": (forgets, "is not deterministic: the same input gave another result the second time", 11),
    "prints": (says, "the same bits; prints to standard output: 'scale is ", 12),
    "writes to its inputs": (overwrites, "wrote to its inputs", 11),
}


@pytest.mark.parametrize(("function", "verdict", "count"), MISBEHAVING.values(), ids=MISBEHAVING)
def test_misbehaviour_is_a_verdict_and_the_run_goes_on(
    function: Callable[..., Any], verdict: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = conformance(function)
    assert len(report.findings) == 12
    assert sum(not finding.same for finding in report.findings) == count
    assert verdict in str(report)
    assert all("\n" not in finding.verdict for finding in report.findings)
    assert not report.same
    if "prints" not in verdict:
        assert "input      " in str(report)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"function": 3}, TypeError, "`function` must be callable, got 3"),
        ({"like": "int8_per_tensr"}, KeyError, "did you mean int8_per_tensor"),
        ({"like": 8}, TypeError, "`like` must be a name of the catalog or a Quantizer, got 8"),
        ({"dtype": "int8"}, ValueError, "`dtype` must be one of float32, bfloat16, float16, float64, got 'int8'"),
        ({"dtype": None}, ValueError, "`dtype` must be one of"),
        ({"library": "cupy"}, ValueError, "`library` must be one of numpy, torch, jax, got 'cupy'"),
        ({"spacing": -1}, ValueError, "`spacing` must be in 0..8388608 for float32, got -1"),
        ({"spacing": 129, "dtype": "bfloat16"}, ValueError, "`spacing` must be in 0..128 for bfloat16, got 129"),
        ({"returns": "both"}, ValueError, "`returns` must be one of values, codes, got 'both'"),
        ({"like": q.replace(rounding="stochastic")}, ValueError, "without drawing or learning, got 'stochastic'"),
    ],
)
def test_wrong_requests_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as refused:
        conformance(**{"function": in_numpy, **arguments})
    assert message in str(refused.value)


class Layer(torch.nn.Module):
    """A module, and what it calls."""

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return in_torch(x, scale)


def test_whose_arrays_a_function_takes() -> None:
    def calls_torch(x: Any, s: Any) -> Any:
        return in_torch(x, s)

    closed_over = in_torch
    for function, library in (
        (in_numpy, "numpy"),
        (abs, "numpy"),
        (lambda x, s: (x / s).round() * s, "numpy"),
        (in_torch, "torch"),
        (calls_torch, "torch"),
        (lambda x, s: closed_over(x, s), "torch"),
        (lambda x, s: [in_torch(y, s) for y in x], "torch"),
        (partial(in_torch, scale=1), "torch"),
        (torch.fake_quantize_per_tensor_affine, "torch"),
        (Layer(), "torch"),
        (Layer().forward, "torch"),
        (jnp.round, "jax"),
        (jax.jit(in_numpy), "jax"),
    ):
        assert library_of(function) == library
    with pytest.raises(ValueError, match="`library` must be given for a function that uses both torch and JAX"):
        library_of(lambda x, s: jnp.asarray(in_torch(x, s)))


def test_arrays_that_are_not_contiguous_arrive_so() -> None:
    seen: dict[str, set[bool]] = {"numpy": set(), "torch": set()}

    def function(x: Any, scale: Any) -> Any:
        plain = x.is_contiguous() if isinstance(x, torch.Tensor) else x.flags.c_contiguous
        seen["torch" if isinstance(x, torch.Tensor) else "numpy"].add(plain)
        return in_torch(x, scale) if isinstance(x, torch.Tensor) else in_numpy(x, scale)

    for library in seen:
        conformance(function, library=library).check()
    assert seen == {"numpy": {True, False}, "torch": {True, False}}


def test_cases_have_every_edge_and_odd_shapes() -> None:
    found = list(cases(q, np.dtype(np.float32)))
    assert {case.x.shape for case in found} == {(1311,), (), (0,), (1,), (4, 6)}
    assert not found[-1].x.flags.c_contiguous
    assert any(np.isnan(case.x).any() for case in found)
    for name in catalog:
        for _, shape in odd_shapes(catalog[name]):
            core.granularity.qparams_shape(catalog[name].granularity, shape)  # raises for a shape that is none
