"""`proofs.divergence`: textbook code parts in the ways that are known, and ours does not."""

import json
import sys

import numpy as np
import pytest

from samebits.core import QParams, catalog, fake_quantize
from samebits.proofs.cli import commands as cli
from samebits.proofs.divergence import divergence
from samebits.proofs.divergence.divergence import (
    DTYPES,
    INPUTS,
    PAIRS,
    Divergence,
    Job,
    data,
    in_order,
    jobs,
    run,
    run_job,
)
from samebits.proofs.modes import execution


def found(target: str, scale: divergence.Scale, dtype: str, around: str) -> dict[tuple[str, str, str], Divergence]:
    """What came out of one program, by pair of modes and input."""
    return {(row.left, row.right, row.inputs): row for row in run_job(Job(target, scale, dtype, around))}


def test_inputs_are_as_many_and_of_the_dtype_and_hold_the_edges() -> None:
    for name, dtype in DTYPES.items():
        scale, b, inputs = data(name)
        assert tuple(inputs) == INPUTS
        assert all(
            x.shape == b.shape == (divergence.ELEMENTS,) and x.dtype == b.dtype == dtype for x in inputs.values()
        )
        assert np.frexp(float(scale))[0] != 0.5  # a power of two would hide what a reciprocal does
    assert np.float32(0.5) * data("float32")[0] in data("float32")[2]["knife edges"]


def test_torch_eager_runs_the_formula_in_the_text() -> None:
    scale, b, inputs = data("float32")
    got = run(Job("textbook", "scalar", "float32", "+ b"), "torch eager", inputs, scale, b)
    with np.errstate(all="ignore"):
        for name, x in inputs.items():
            expected = np.clip(np.round(x / scale), -128, 127) * scale + b
            assert np.array_equal(expected, got[name], equal_nan=True), name


def test_ours_is_the_specification_in_every_mode() -> None:
    scale, b, inputs = data("float32")
    q = catalog["int8_per_tensor"]
    for mode in ("torch eager", "jax eager", "jax jit"):
        got = run(Job("samebits", "constant", "float32", "alone"), mode, inputs, scale, b)
        for name, x in inputs.items():
            assert np.array_equal(fake_quantize(q, x, QParams(scale)), got[name], equal_nan=True), (mode, name)


def test_a_constant_scale_becomes_a_reciprocal_in_jax() -> None:
    rows = found("textbook", "constant", "float32", "alone")
    assert {row[:2] for row in rows} == set(PAIRS)
    edges = rows["torch eager", "jax eager", "knife edges"]
    assert 0.01 < edges.differing / edges.compared < 0.5
    assert edges.largest_codes == pytest.approx(1, abs=1e-4)
    assert edges.example is not None
    assert "float32 bits" in edges.example.x
    assert edges.example.left != edges.example.right
    assert rows["torch eager", "torch compiled", "knife edges"].differing == 0


def test_a_product_and_a_sum_are_contracted_by_jit() -> None:
    rows = found("textbook", "tensor", "float32", "+ b")
    assert rows["jax eager", "jax jit", "random"].differing > 1000
    assert rows["jax eager", "jax jit", "real"].differing > 1000
    example = rows["jax eager", "jax jit", "random"].example
    assert example is not None
    assert example.b is not None
    ours = found("samebits", "tensor", "float32", "+ b")
    assert all(row.differing == 0 and row.example is None for row in ours.values())


def test_bfloat16_steps_are_dropped_by_inductor() -> None:
    rows = found("textbook", "scalar", "bfloat16", "+ b")
    assert all(rows["torch eager", "torch compiled", name].differing > 1000 for name in INPUTS)
    ours = found("samebits", "scalar", "bfloat16", "+ b")
    assert all(row.differing == 0 for row in ours.values())


def test_a_mode_that_cannot_run_leaves_its_pairs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "unavailable", lambda mode: "no C++ compiler" if "compiled" in mode else None)
    rows = found("textbook", "scalar", "float32", "alone")
    assert {row[:2] for row in rows} == {("jax eager", "jax jit"), ("torch eager", "jax eager")}


def test_order_does_not_depend_on_which_job_ended_first() -> None:
    row = Divergence("textbook", "scalar", "float32", "alone", *PAIRS[0], "random", 1, 0, 0.0, 0, None)
    rows = [row, *(Divergence(t, s, d, a, *PAIRS[0], "random", 1, 0, 0.0, 0, None) for t, s, d, a in programs())]
    assert in_order(rows) == in_order(reversed(rows))
    assert (in_order(rows)[0].target, in_order(rows)[0].dtype) == ("textbook", "float32")


def programs() -> list[tuple[str, divergence.Scale, str, str]]:
    return [(job.target, job.scale, job.dtype, job.surroundings) for job in jobs()]


def test_every_program_is_a_job_once() -> None:
    assert len(programs()) == len(set(programs())) == 2 * 3 * 2 * 2


def test_the_command_prints_tables_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(divergence, "SCALES", ("constant",))
    monkeypatch.setattr(divergence, "DTYPES", {"float32": np.dtype(np.float32)})
    monkeypatch.setattr(divergence, "SURROUNDINGS", ("alone",))
    monkeypatch.setattr(execution, "unavailable", lambda mode: "no C++ compiler" if "compiled" in mode else None)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["samebits", *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return int(done.value.code or 0), capsys.readouterr().out

    code, out = call("diverge", "--workers", "0")
    assert code == 0
    assert "textbook: clamp(round(x / s), -128, 127) * s" in out
    assert "torch compiled was not run: no C++ compiler" in out
    assert "float32 bits" in out
    code, out = call("diverge", "samebits", "--workers", "0", "--json")
    whole = json.loads(out)
    assert code == 0
    assert set(whole) == {"command", "versions", "targets", "rows"}
    assert {row["differing"] for row in whole["rows"]} == {0}
    fields = set(Divergence.__dataclass_fields__)
    assert all(set(row) == fields for row in whole["rows"])


def test_a_difference_of_ours_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Divergence("samebits", "scalar", "float32", "alone", *PAIRS[0], "random", 9, 1, 1.0, 1, None)
    monkeypatch.setattr(divergence, "diverge", lambda names, device, workers: iter([(row,)]))
    monkeypatch.setattr(sys, "argv", ["samebits", "diverge"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 1
