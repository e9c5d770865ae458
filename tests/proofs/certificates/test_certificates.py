"""What a certificate rests on (the steps of the specification, thresholds, plans), and the file itself."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import PerTensor, QParams, Quantizer, Rounding, catalog, formats, quantize
from samebits.proofs.certificates import certify as certify_module
from samebits.proofs.certificates.cases import CASES, _runs_of
from samebits.proofs.certificates.certificate import (
    SECTIONS,
    CertificateError,
    check,
    conditions,
    describe_quantizer,
    load,
    quantizer_of,
    save,
    sealed,
)
from samebits.proofs.certificates.certify import certify, check_steps
from samebits.proofs.certificates.request import Request
from samebits.proofs.certificates.steps import (
    BY_QUOTIENT,
    exact_steps,
    plateau_of,
    same_steps,
    steps,
    thresholds,
)
from samebits.proofs.certificates.tiles import (
    BINADE,
    CHUNK,
    NARROW,
    boundary_plan,
    critical_scales,
    elementwise,
    rows_at_once,
    tiny_fields,
)
from samebits.proofs.inputs.bits import place

from .schema import DOCS, schema_validator

Array = NDArray[Any]
KEPT = sorted(path for path in DOCS.glob("*.json") if path.name != "schema.json")
INT4 = catalog["int4_per_channel"].replace(granularity=PerTensor())
UINT4 = catalog["uint4_affine_per_group32"].replace(granularity=PerTensor())
FAMILIES = {
    "int4": INT4,
    "int4 down": INT4.replace(rounding="toward_negative"),
    "int4 up": INT4.replace(rounding="toward_positive"),
    "binary": INT4.replace(format=formats.BinaryFormat()),
    "ternary": INT4.replace(format=formats.TernaryFormat()),
    "e2m1": INT4.replace(format=formats.FLOAT4_E2M1),
    "e4m3fn": INT4.replace(format=formats.FLOAT8_E4M3FN),
    "e5m2": INT4.replace(format=formats.FloatFormat(5, 2, saturate=False)),
    "fnuz": INT4.replace(format=formats.FLOAT8_E4M3FNUZ),
    "nf4": INT4.replace(format=formats.NF4),
}


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", BY_QUOTIENT)
@pytest.mark.parametrize("gradient", ["clipped", "pass_through"])
def test_steps_found_by_bisection_are_those_of_the_definition(rounding: Rounding, gradient: str) -> None:
    for name in ("int8_per_tensor", "uint8_per_tensor", "int2_per_channel"):
        check_steps(catalog[name].replace(rounding=rounding, gradient=gradient))
    check_steps(UINT4.replace(rounding=rounding, gradient=gradient))


@pytest.mark.parametrize("rounding", BY_QUOTIENT)
def test_masks_of_the_quotient_have_the_steps_of_their_definition(rounding: Rounding) -> None:
    """They lie at the ends themselves, wherever codes are rounded to."""
    for name in ("int8_per_tensor", "uint8_per_tensor", "int4_narrow_per_channel"):
        check_steps(catalog[name].replace(rounding=rounding, gradient="clipped_quotient"))
    q = catalog["uint8_per_tensor"].replace(rounding=rounding, gradient="learned_clip")
    check_steps(q)
    found = steps(q)
    begin, end = np.flatnonzero(found.passes[1:] != found.passes[:-1])
    assert (found.last[begin], found.last[end]) == (-(2.0**-149), 255 - 2.0**-16)


def test_steps_of_16_bits() -> None:
    q = catalog["int16_per_tensor"]
    assert len(steps(q).last) == 2**16 + 1
    check_steps(q)


def test_steps_of_another_rounding_are_other_steps() -> None:
    even, away = INT4, INT4.replace(rounding="ties_to_away")
    assert not same_steps(steps(even), exact_steps(away))
    assert not same_steps(steps(UINT4, 3), exact_steps(UINT4, 4))


def test_steps_are_checked_of_the_quantizer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its elementwise function does is evidence for it only if their steps are the same."""
    check_steps(INT4)
    monkeypatch.setattr(certify_module, "elementwise", lambda q: q.replace(rounding="toward_negative"))
    with pytest.raises(AssertionError, match="not those of its elementwise function"):
        check_steps(INT4)


def test_steps_as_numbers() -> None:
    """int2, ties to even, zero point 0: codes -2..1, the mask one step further on each side."""
    found = steps(catalog["int2_per_channel"])
    assert found.last.tolist() == [-2.5 - 2**-22, -1.5, -0.5 - 2**-24, 0.5, 1.5 - 2**-23]
    assert found.codes.tolist() == [-2, -2, -1, 0, 1, 1]
    assert found.passes.tolist() == [False, True, True, True, True, False]
    assert found.zeros == (3, 3)


def test_formats_with_two_zeros_have_a_step_between_them() -> None:
    found = steps(FAMILIES["e2m1"])
    minus, plus = found.zeros
    assert plus == minus + 1
    assert np.signbit(found.units[[minus, plus]]).tolist() == [True, False]
    before, after = thresholds(found, np.array([0.3], np.float32))
    assert np.signbit([before[0, minus], after[0, minus]]).tolist() == [True, False]
    assert before[0, minus] == after[0, minus] == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_thresholds_are_exact(name: str) -> None:
    """In fractions: the input before a step is at most the tie times the scale, the one after it beyond."""
    found = steps(FAMILIES[name])
    some = slice(None, None, max(1, len(found.last) // 12))
    bits = np.array([BINADE, BINADE + 3, 0x3F800001, 0x3FB504F3, 0x3FFFFFFF, 0x4B000007, 0x7F7FFFFF], np.uint32)
    for s, before, after in zip(bits.view(np.float32), *thresholds(found, bits.view(np.float32)), strict=True):
        for last, middle, stays, x, y in zip(
            found.last[some], found.middles[some], found.tie_stays[some], before[some], after[some], strict=True
        ):
            assert place(y) == place(x) + 1
            if middle == 0:
                assert (place(x), place(last)) == (-1, -1)
                continue
            tie = Fraction(float(middle)) * Fraction(float(s))
            assert np.isneginf(x) or Fraction(float(x)) < tie or (Fraction(float(x)) == tie and stays)
            assert np.isposinf(y) or Fraction(float(y)) > tie or (Fraction(float(y)) == tie and not stays)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [0.3, 2.0**-126, 1.9999999 * 2.0**-126, 3e38, 1e-20])
def test_plateaus_are_what_the_specification_says(name: str, scale: float) -> None:
    """At any scale, of inputs around the thresholds and far from them."""
    q, s = FAMILIES[name], np.float32(scale)
    found = steps(q)
    before, after = thresholds(found, s.reshape(1))
    drawn = np.random.default_rng(0).integers(0, 2**32, 4096, np.uint32).view(np.float32)
    x = np.concatenate([before[0], after[0], drawn[~np.isnan(drawn)], np.array([-0.0, 0.0], np.float32)])
    codes = quantize(q, x, QParams(np.asarray(s)))
    np.testing.assert_array_equal(codes, found.codes[plateau_of(found, s, x)])


@pytest.mark.parametrize("name", FAMILIES)
def test_plateaus_of_consecutive_bits(name: str) -> None:
    found, s = steps(FAMILIES[name]), np.float32(0.3)
    before = place(thresholds(found, s.reshape(1))[0][0])
    for first, stride in ((0, 511 * 2048), (2**31 - 5, 1), (0x3D000000, 7777), (0xBD000000, 7777), (0x7F7FFF00, 1)):
        bits = first + stride * np.arange(4096, dtype=np.int64)
        bits = bits[bits < 2**32]
        x = bits.astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(np.repeat(*_runs_of(bits, before)), plateau_of(found, s, x))
        nan = plateau_of(found, s, x) > len(found.last)
        np.testing.assert_array_equal(nan, np.isnan(x))


@pytest.mark.parametrize("name", ["uint2_affine_per_group32", "uint4_affine_per_group32"])
def test_every_input_of_a_zero_point_has_the_answer_of_its_plateau(name: str) -> None:
    """Also where scales are so large that steps share the largest number and the infinity."""
    q = catalog[name]
    for z in (q.format.lo, q.format.hi):
        found = steps(q, z)
        (tile,) = (t for p in boundary_plan(q) for t in p.tiles if t.kind == "zero point" and t.zero_point == z)
        codes, units, _ = found.answers
        cases = list(CASES[tile.kind](elementwise(q), found, tile))
        assert {int(b) for case in cases for b in case.s.view(np.uint32).ravel()} >= set(critical_scales(found))
        for case in cases:
            for row in range(0, len(case.x), 37):
                plateaus = plateau_of(found, case.s[row, 0], case.x[row])
                np.testing.assert_array_equal(np.broadcast_to(case.codes, case.x.shape)[row], codes[plateaus])
                with np.errstate(over="ignore"):
                    np.testing.assert_array_equal(case.values[row], units[plateaus] * case.s[row, 0])


def test_narrow_tiles_have_no_more_rows_than_they_have_memory_for() -> None:
    """Neither the inputs of an array nor its scales are more than memory is reckoned for."""
    for inputs in (1, 2, NARROW, NARROW + 1, 520, 70_000):
        rows = rows_at_once(inputs)
        assert CHUNK // 2 < rows * max(inputs, NARROW) <= CHUNK
    assert rows_at_once(CHUNK + 1) == 1


def test_critical_scales_hold_the_ends() -> None:
    scales = np.array(critical_scales(steps(INT4)), np.uint32).view(np.float32)
    assert scales.min() == 2.0**-126
    assert scales.max() == np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        beyond = np.isinf(scales * np.float32(8))
    assert beyond.any()
    assert not beyond.all()


def test_steps_beside_zero_are_followed_until_their_inputs_are_normal() -> None:
    """toward_positive has one: at scales of 2**24 and more its inputs are 2**-126 and more."""
    q = INT4.replace(rounding="toward_positive")
    found = steps(q)
    beside = int(np.flatnonzero(np.abs(found.middles) < 2.0**-100)[0])
    last = max(tiny_fields()) + 1
    _, after = thresholds(found, np.array([last << 23, 126 << 23], np.uint32).view(np.float32))
    assert after[0, beside] >= 2.0**-126
    assert after[1, beside] == 2.0**-149


def test_the_source_is_part_of_the_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = conditions()["source"]
    assert conditions()["source"] == before
    monkeypatch.setattr("samebits.proofs.modes.source.ROOMS", ("core", "jax_backend"))
    assert conditions()["source"] != before


@pytest.mark.parametrize("name", FAMILIES)
def test_subnormal_inputs_are_met_at_all_significands(name: str) -> None:
    """Wherever inputs beside a step are subnormal at the least scale of a binade; a step beside zero apart."""
    found = steps(FAMILIES[name])
    tiles = next(part.tiles for part in boundary_plan(FAMILIES[name]) if part.name == "extremes")
    ordinary = np.abs(found.middles) >= 2.0**-100
    binades = 0
    for field in range(1, 255):
        before, after = thresholds(found, np.array([field << 23], np.uint32).view(np.float32))
        size = np.minimum(np.abs(before[0]), np.abs(after[0]))
        tiny = np.flatnonzero((size < 2.0**-126) & ordinary)
        binades += bool(tiny.size)
        of_field = [tile for tile in tiles if tile.steps and tile.first >> 23 == field]
        for step in tiny:
            own = [tile for tile in of_field if tile.steps and tile.steps[0] <= step < tile.steps[1]]
            assert sum(tile.count for tile in own) == BINADE
    assert binades == {"e5m2": 17, "fnuz": 11, "e4m3fn": 10, "e2m1": 2, "nf4": 5, "binary": 0}.get(name, 1)


@pytest.mark.parametrize("q", [UINT4, catalog["uint2_affine_per_group32"], catalog["int8_affine_per_token"]])
def test_the_ends_of_the_range_need_what_any_zero_point_needs(q: Quantizer) -> None:
    """All quotients and numbers, every significand with both ends, every zero point at 8 scales of each binade."""
    lo, hi = q.format.lo, q.format.hi
    ends = [steps(q, lo), steps(q, hi)]
    for z in range(lo, hi + 1):
        found = steps(q, z)
        for field in ("last", "units"):
            assert set(getattr(found, field)) <= set(getattr(ends[0], field)) | set(getattr(ends[1], field))
    parts = {part.name: part.tiles for part in boundary_plan(q)}
    for z in (lo, hi):
        of_end = sum(tile.count for tile in parts["significands"] if tile.zero_point == z)
        assert of_end == (BINADE if hi - lo < 16 else BINADE // 2)
    assert {tile.zero_point for tile in parts["zero points"]} == set(range(lo, hi + 1))


def test_rounding_that_draws_numbers_has_no_steps() -> None:
    for rounding in set(Rounding) - set(BY_QUOTIENT):
        with pytest.raises(ValueError, match="depends on more than the quotient"):
            steps(INT4.replace(rounding=rounding))


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate() -> dict[str, Any]:
    scales = tuple(float(np.float32(s)) for s in (0.1, 3.0))
    return certify(
        Request("int4_per_channel", catalog["int4_per_channel"], ("numpy",), "exhaustive", scales, "float16")
    )


@pytest.fixture
def changed(certificate: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """A file of the certificate with something done to it; sealed again when asked."""

    def make(change: Callable[[Any], None], *, seal: bool = False) -> Path:
        copy = json.loads(json.dumps(certificate))
        change(copy)
        if seal:
            copy = sealed(copy)
        path = tmp_path / "c.json"
        path.write_text(json.dumps(copy))
        return path

    return make


def test_a_file_is_read_back(certificate: dict[str, Any], tmp_path: Path) -> None:
    save(certificate, tmp_path / "c.json")
    found, request = load(tmp_path / "c.json")
    assert found == certificate
    assert isinstance(request, Request)
    assert request.q == catalog["int4_per_channel"]
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize("section", SECTIONS)
def test_a_changed_section_is_named(changed: Callable[..., Path], section: str) -> None:
    def change(c: Any) -> None:
        c[section] = {**c[section], "more": 1} if isinstance(c[section], dict) else [*c[section], "more"]

    with pytest.raises(CertificateError, match=f"c.json: section `{section}` was changed"):
        load(changed(change))
    with pytest.raises(CertificateError, match=f"section `{section}` is missing"):
        load(changed(lambda c: c.pop(section)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["tiles"]["inputs"].pop(), r"section `tiles` must hold \{'inputs': 2\}, got \{'inputs': 1\}"),
        (lambda c: c["request"].update(scales=["0x1p-1"]), r"section `tiles` must hold \{'inputs': 1\}"),
        (lambda c: c["request"].update(engine="boundary"), "section `tiles` must hold"),
        (lambda c: c["request"].update(scales=["half"]), "make no request"),
        (lambda c: c["domain"][0].update(claim="everything"), "section `domain` is not that of this quantizer"),
        (lambda c: c["assumptions"].pop(), "section `assumptions` is not that"),
        (lambda c: c["statement"].update(says="all is well"), "section `statement` is not that of"),
        (lambda c: c["quantizer"].update(rounding="up"), "make no request: `rounding` must be one of"),
        (lambda c: c["quantizer"]["format"].update(kind="Format"), "make no request"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(changed: Callable[..., Path], change: Any, message: str) -> None:
    """Even with seals that fit."""
    with pytest.raises(CertificateError, match=message):
        load(changed(change, seal=True))


def test_a_truncated_file_is_refused(certificate: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    save(certificate, path)
    text = path.read_text()
    for end in range(0, len(text) - 2, 97):
        path.write_text(text[:end])
        with pytest.raises(CertificateError, match="is truncated"):
            load(path)


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "samebits certificate 0"}', "null"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(CertificateError, match="`schema` must be 'samebits certificate 2'"):
        load(path)


def test_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text("weights: none, 1 2 3 and more text")
    with pytest.raises(CertificateError, match="is no JSON"):
        load(path)


@pytest.mark.parametrize("name", catalog)
def test_quantizers_are_written_and_read(name: str) -> None:
    assert quantizer_of(json.loads(json.dumps(describe_quantizer(catalog[name])))) == catalog[name]


def test_families_are_written_and_read() -> None:
    for q in FAMILIES.values():
        assert quantizer_of(json.loads(json.dumps(describe_quantizer(q)))) == q


def test_the_schema_describes_the_file(certificate: dict[str, Any]) -> None:
    validator = schema_validator()
    validator.validate(certificate)
    for key in certificate:
        assert list(validator.iter_errors({k: v for k, v in certificate.items() if k != key}))
    for wrong in ({"schema": "x"}, {"tiles": {"inputs": ["zz"]}}, {"more": 1}):
        assert list(validator.iter_errors(certificate | wrong))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_certificates_hold_together(path: Path) -> None:
    certificate, request = load(path)
    schema_validator().validate(certificate)
    check(certificate)
    assert certificate["statement"]["result"] == "complete"
    name = request.name.partition(",")[0]
    q: Quantizer = catalog[name]
    assert isinstance(request, Request)
    assert request.q.replace(rounding=q.rounding) == q
