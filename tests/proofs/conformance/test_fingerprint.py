"""Fingerprints: what they find of functions with known arithmetic, of wrong ones, and that bad targets are verdicts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import (
    QParams,
    Quantizer,
    catalog,
    choose_qparams,
    dialects,
    fake_quantize,
    fake_quantize_vjp,
    quantize,
)
from samebits.proofs import fingerprint as offered
from samebits.proofs.conformance.asking import keys
from samebits.proofs.conformance.fingerprint import fingerprint
from samebits.proofs.conformance.questions import splitting
from samebits.proofs.conformance.targets import Kind, Target
from samebits.proofs.conformance.verdicts import as_data

Array = NDArray[Any]
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]


def run_of(q: Quantizer) -> Callable[..., Array]:
    return lambda x, qparams: fake_quantize(q, x, qparams)


def test_the_specification_is_recognised_with_its_evidence() -> None:
    verdict = offered(Target("ours", run_of(INT8), INT8))
    assert verdict.recognised
    assert not verdict.unexplained
    assert verdict.fields["division"] == "divide"
    assert verdict.fields["rounding"] == "ties_to_even"
    assert verdict.undetermined == {
        "compute_dtype": ("widened", "input"),  # of float32 the same
        "zero_point_order": ("after_rounding", "before_rounding"),  # there is none
    }
    assert verdict.dialects == ("samebits",)
    assert verdict.asked * 50 <= verdict.exhaustive
    by_value = {(e.field, e.value): e.evidence for e in verdict.excluded}
    assert {("division", "reciprocal"), ("rounding", "dpu"), ("compute_dtype", "float64")} <= set(by_value)
    away = by_value["rounding", "ties_to_away"]
    value, scale = float(away.x.split()[0]), float(away.block.split()[1])
    assert np.float32(value) / np.float32(scale) % 1 == 0.5, "the input that decides is half way"
    assert away.got != away.expected
    data = as_data(verdict)
    assert data["recognised"]
    assert data["smallest_unexplained"] is None


@pytest.mark.parametrize("name", ["torch_fake_quantize", "torch_quantize", "onnx", "qwix", "torchao", "brevitas"])
def test_dialects_are_recognised_as_themselves(name: str) -> None:
    q = UINT8.replace(**dialects[name])
    verdict = fingerprint(Target(name, run_of(q), UINT8))
    assert verdict.recognised
    assert name in verdict.dialects
    assert "samebits" not in verdict.dialects


SCALE_RULES = {
    "int8_per_tensor": ["torchao", "quanto", "aqt", "brevitas", "torchao_2024", "qwix_bfloat16", "compressed_tensors"],
    "uint8_affine_per_tensor": [
        "torch_dynamic",
        "torch_fake_quantize",
        "onnx",
        "brevitas",
        "compressed_tensors",
        "litert",
    ],
}


@pytest.mark.parametrize(("name", "dialect"), [(name, d) for name, own in SCALE_RULES.items() for d in own])
def test_scale_rules_are_found_of_targets_that_choose(name: str, dialect: str) -> None:
    q = catalog[name].replace(**dict(dialects[dialect], nan="lowest"))

    def chosen(x: Array, qparams: QParams | None) -> Any:
        own = choose_qparams(q, x)
        return quantize(q, x, own), own

    verdict = fingerprint(Target(dialect, chosen, q, kind=Kind.CODES, chooses=True))
    assert verdict.recognised, verdict.smallest
    assert dialect in verdict.dialects


def test_negative_scales_are_asked_about() -> None:
    q = catalog["int4_per_group32"].replace(statistic="signed_absmax", denominator="lo", nan="lowest")

    def chosen(x: Array, qparams: QParams | None) -> Any:
        own = choose_qparams(q, x)
        return quantize(q, x, own), own

    verdict = fingerprint(Target("signed peak", chosen, q, kind=Kind.CODES, chooses=True))
    assert verdict.recognised, verdict.smallest
    assert (verdict.fields["statistic"], verdict.fields["denominator"]) == ("signed_absmax", "lo or next")


def test_the_scale_of_values_is_seen_in_them() -> None:
    q = INT8.replace(denominator="half_range", restriction="power_of_two")
    verdict = fingerprint(Target("values", lambda x, qparams: fake_quantize(q, x), INT8, chooses=True))
    assert verdict.recognised, verdict.smallest
    assert verdict.fields["restriction"] == "power_of_two"
    assert "half_range" in verdict.fields["denominator"]


# Formats whose smallest number is not 1, and a codebook: what the specification chooses, as a target that gives values
OF_VALUES = {
    "mxfp4_e2m1_even": {"restriction": "power_of_two_even"},
    "mxfp6_e2m3": {"restriction": "power_of_two_floor"},
    "float8_e4m3fn_per_tensor": {"restriction": "float", "rounding": "ties_to_even"},
    "nvfp4": {"restriction": "quantized", "two_level": "True"},
    "nf4_per_group64": {"restriction": "float", "division": "divide"},
}


@pytest.mark.parametrize("name", OF_VALUES)
def test_the_scale_of_floats_is_seen_in_their_values(name: str) -> None:
    """Their smallest positive value is half a step, or less: it is no scale."""
    q = catalog[name]
    verdict = fingerprint(Target(name, lambda x, qparams: fake_quantize(q, x), q, chooses=True))
    assert verdict.recognised, verdict.smallest
    assert {field: verdict.fields[field] for field in OF_VALUES[name]} == OF_VALUES[name]


def off_by_one_above_ten(x: Array, qparams: QParams) -> Array:
    """Ours, but for an inverted rounding of the codes beyond 100."""
    codes = x / qparams.scale
    return np.asarray(np.clip(np.where(codes > 100, np.floor(codes), np.rint(codes)), -128, 127) * qparams.scale)


def test_none_of_the_candidates_is_said_with_the_residual_and_the_smallest_input() -> None:
    verdict = fingerprint(Target("floors above 100", off_by_one_above_ten, INT8))
    assert not verdict.recognised
    assert 0 < verdict.residual < 0.2
    assert verdict.smallest is not None
    assert verdict.fields["division"] == "divide", "the nearest"
    assert verdict.words.startswith("none of the candidates: ")
    value, scale = float(verdict.smallest.x.split()[0]), float(verdict.smallest.block.split()[1])
    assert value / scale > 99


def test_a_half_added_before_the_floor_is_no_rounding() -> None:
    """0.49999997 + 0.5 is 1 in float32: no candidate is told by that input, so it is asked for itself."""
    verdict = fingerprint(
        Target("half up", lambda x, p: np.clip(np.floor(x / p.scale + np.float32(0.5)), -128, 127) * p.scale, INT8)
    )
    assert not verdict.recognised
    assert verdict.fields["rounding"] == "ties_toward_positive", "the nearest"
    assert verdict.smallest is not None
    quotient = np.float32(verdict.smallest.x.split()[0]) / np.float32(verdict.smallest.block.split()[1])
    assert quotient == np.nextafter(np.float32(0.5), np.float32(0))


def test_gradient_masks_are_found() -> None:
    for gradient, order, words in (
        ("clipped", "after_rounding", "clipped (clamp after_rounding)"),
        ("pass_through", "after_rounding", "pass_through"),
        (
            "clipped",
            "before_rounding",
            "clipped (clamp before_rounding) or clipped_quotient",
        ),
    ):
        q = INT8.replace(gradient=gradient, clamp_order=order)
        verdict = fingerprint(
            Target("masked", run_of(q), INT8, gradient=lambda x, p, g, q=q: fake_quantize_vjp(q, x, p, g).x)
        )
        assert words in verdict.conduct["gradient"]
    nothing = Target("rounded", run_of(INT8), INT8, gradient=lambda x, p, g: np.zeros_like(x))
    assert fingerprint(nothing).conduct["gradient"] == "zero everywhere"


def drawing() -> Callable[..., Array]:
    rng = np.random.default_rng(0)
    return lambda x, qparams: fake_quantize(INT8, x, qparams) * (1 + rng.integers(0, 2, x.shape)).astype(x.dtype)


def raises(x: Array, qparams: QParams) -> Array:
    raise RuntimeError("no kernel\nfor this")


def prints(x: Array, qparams: QParams) -> Array:
    print("hello")
    return x


def by_place(x: Array, qparams: QParams) -> Array:
    """Rounds the last elements, which no vector of eight holds, another way."""
    even = fake_quantize(INT8, x, qparams)
    return np.where(
        np.arange(x.size) < x.size // 3, even, fake_quantize(INT8.replace(rounding="ties_to_away"), x, qparams)
    )


BAD: dict[str, tuple[Callable[..., Any], str, str]] = {
    "raises": (raises, "values", "raises RuntimeError: no kernel for this"),
    "shape": (lambda x, qparams: x[:-1], "values", "returns shape"),
    "dtype": (lambda x, qparams: x.astype(np.float64), "values", "returns dtype float64 for float32"),
    "no codes": (lambda x, qparams: x, "codes", "returns dtype float32 where codes are integers"),
    "nothing": (lambda x, qparams: None, "values", "returns shape ()"),
    "drawn": (drawing(), "values", "is not deterministic"),
    "prints": (prints, "values", "prints to standard output: 'hello"),
    "by place": (by_place, "values", "depends on the place in the array"),
}


@pytest.mark.parametrize(("function", "kind", "fault"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_a_target_is_its_verdict(
    function: Callable[..., Any], kind: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = fingerprint(Target("bad", function, INT8, kind=Kind(kind)))
    assert not verdict.recognised
    assert verdict.fault.startswith(fault)
    assert verdict.fault_at
    assert verdict.words.startswith(fault)
    assert capsys.readouterr().out == ""


def test_a_target_that_refuses_special_values_is_asked_on() -> None:
    def finite_alone(x: Array, qparams: QParams) -> Array:
        if not np.isfinite(x).all():
            raise ValueError("finite numbers only")
        return fake_quantize(INT8, x, qparams)

    verdict = fingerprint(Target("finite", finite_alone, INT8))
    assert not verdict.fault
    assert verdict.conduct["NaN"] == verdict.conduct["+inf"] == "an exception"
    assert verdict.fields["division"] == "divide"


def test_questions_that_split() -> None:
    table = np.array([[1, 1, 5, 7], [1, 2, 5, 7], [1, 2, 6, 7]])
    assert sorted(splitting(table, 9)) == [1, 2]
    assert splitting(table, 1) in ([1], [2])
    assert splitting(table[:1], 9) == splitting(table[:, :1], 9) == []


def test_keys_see_bits() -> None:
    x = np.array([0.0, -0.0, np.nan, -np.nan, 1.5], np.float32)
    assert len(set(keys(x).tolist())) == 4
    assert len(set(keys(x, signed_zero=False).tolist())) == 3
