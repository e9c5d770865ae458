"""`proofs.check` and what it stands on: reading checkpoints, cutting tensors into pieces, counting differences."""

from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from samebits.core import PerTensor, QParams, Quantizer, Statistic, catalog, choose_qparams, dialects
from samebits.core.blocks import expand_blocks
from samebits.core.granularity import PerBlock, PerGroup, qparams_shape
from samebits.proofs.check.check import DTYPES, Row, check, plan, quantizer_of
from samebits.proofs.check.pieces import (
    BREADTH,
    Piece,
    as_matrix,
    chosen_parameters,
    edge_rows,
    pack,
    piece_shape,
    tensor_rows,
)
from samebits.proofs.check.tally import FUNCTIONS, ROWS, sum_bound, tally
from samebits.proofs.inputs.checkpoint import CheckpointError, mapped_values, stored_tensors
from samebits.proofs.inputs.compare import same_bits
from samebits.proofs.modes import execution
from samebits.proofs.modes.constants import CASES
from samebits.proofs.modes.workers import run_jobs

from ...planted import FORMULAS, codes_by, plant

Array = NDArray[Any]
SHAPES = [(), (7,), (16, 1, 3, 3), (40, 600), (3, 12000), (130, 33)]


def tensor(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), np.float32)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small file with everything there is: three kinds of floats, integers, no elements, a scalar."""
    tensors = {
        "weight": tensor((8, 3, 3)),
        "half": tensor((5, 40), 1).astype(np.float16),
        "brain": tensor((70,), 2).astype(ml_dtypes.bfloat16),
        "labels": np.arange(4),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": tensor((), 3),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"about": "a test"})
    return tmp_path / "model.safetensors"


# --- reading a checkpoint --------------------------------------------------------------------------------------------


def test_tensors_are_read_as_they_were_written(checkpoint: Path) -> None:
    stored = {t.name: t for t in stored_tensors(checkpoint)}
    assert set(stored) == {"weight", "half", "brain", "labels", "empty", "scalar"}
    assert same_bits(tensor((8, 3, 3)), mapped_values(checkpoint, stored["weight"]))
    assert same_bits(tensor((5, 40), 1).astype(np.float16), mapped_values(checkpoint, stored["half"]))
    assert same_bits(tensor((70,), 2).astype(ml_dtypes.bfloat16), mapped_values(checkpoint, stored["brain"]))
    assert same_bits(tensor((), 3), mapped_values(checkpoint, stored["scalar"]))


def test_what_cannot_be_quantized_says_why(checkpoint: Path) -> None:
    skipped = {t.name: t.skipped for t in stored_tensors(checkpoint) if t.skipped}
    assert skipped == {"labels": "dtype I64 is not floating point", "empty": "it has no elements"}
    labels = next(t for t in stored_tensors(checkpoint) if t.name == "labels")
    with pytest.raises(CheckpointError, match=r"labels.*not floating point"):
        mapped_values(checkpoint, labels)


def _truncated(raw: bytes) -> bytes:
    return raw[:-20]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": _truncated,
    "truncated header": lambda raw: raw[:40],
    "header length": lambda raw: b"\xff" * 8 + raw[8:],
    "no JSON": lambda raw: raw[:8] + b"x" + raw[9:],
    "no such dtype": lambda raw: raw.replace(b"F32", b"X32", 1),
    "more bytes than the header says": lambda raw: raw + b"0",
    "noise": lambda raw: b"\xfe\xed\xfa\xce" + raw,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_refused_in_one_line(checkpoint: Path, damage: Callable[[bytes], bytes]) -> None:
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model.safetensors: truncated or corrupt safetensors file: .") as caught:
        stored_tensors(checkpoint)
    assert "\n" not in str(caught.value)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        stored_tensors(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a directory"):
        stored_tensors(tmp_path)


def test_a_file_without_floats_is_nothing_to_check(tmp_path: Path) -> None:
    save_file({"labels": np.arange(3)}, tmp_path / "labels.safetensors")
    with pytest.raises(CheckpointError, match="no floating-point tensor"):
        check(tmp_path / "labels.safetensors")


# --- pieces ----------------------------------------------------------------------------------------------------------


def filled(q: Quantizer, values: Array) -> Array:
    """The matrix of a tensor with zeros up to multiples of groups and blocks; independent of the code under test."""
    matrix = as_matrix(values)
    tile = q.granularity.shape if isinstance(q.granularity, PerBlock) else (1, 1)
    tile = (1, q.granularity.size) if isinstance(q.granularity, PerGroup) else tile
    return np.pad(matrix, [(0, -n % m) for n, m in zip(matrix.shape, tile, strict=True)])


# (Scales in two levels have a part that comes from the whole array: there each piece is an array of its own.)
@pytest.mark.parametrize("name", [name for name, q in catalog.items() if not q.scale.two_level])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_element_is_in_a_piece_once_and_has_the_scale_of_its_tensor(name: str, shape: tuple[int, ...]) -> None:
    q, values = catalog[name], tensor(shape)
    whole = filled(q, values)
    scales = expand_blocks(choose_qparams(q, whole).scale, q.granularity, whole.shape)
    rows, columns = as_matrix(values).shape
    expected = sorted(zip(values.reshape(-1).tolist(), scales[:rows, :columns].reshape(-1).tolist(), strict=True))
    got: list[tuple[float, float]] = []
    for piece in pack(q, tensor_rows(q, values, np.float32, "t")):
        assert piece.x.shape == piece_shape(q.granularity) == (128, 256)
        own = expand_blocks(choose_qparams(q, piece.x).scale, q.granularity, piece.x.shape)
        got += zip(piece.x[piece.real].tolist(), own[piece.real].tolist(), strict=True)
        assert {piece.sources[block] for block in np.unique(piece.block[piece.real])} == {"t"}
    if q.scale.statistic is Statistic.EXTREMES:  # a row repeats these; by any other, a piece is a tensor of its own
        assert sorted(got) == expected
    else:
        assert sorted(x for x, _ in got) == [x for x, _ in expected]


@pytest.mark.parametrize("name", catalog)
def test_blocks_of_a_piece_are_those_of_the_granularity(name: str) -> None:
    q = catalog[name]
    piece = next(pack(q, tensor_rows(q, tensor((70, 300)), np.float32, "t")))
    numbers = np.arange(np.prod(qparams_shape(q.granularity, piece.x.shape), dtype=int))
    own = numbers.reshape(qparams_shape(q.granularity, piece.x.shape))
    assert np.array_equal(expand_blocks(own, q.granularity, piece.x.shape), piece.block)


@pytest.mark.parametrize("name", ["int8_per_tensor", "int8_per_channel", "uint4_affine_per_group32", "int8_per_block"])
def test_blocks_with_nan_or_infinity_get_the_parameters_of_their_finite_elements(name: str) -> None:
    q, values = catalog[name], tensor((3, 500))
    clean = values.copy()
    values[1, 7], values[2, 3] = np.inf, np.nan
    clean[1, 7], clean[2, 3] = 0, 0
    rows = list(tensor_rows(q, values, np.float32, "t"))
    given = [part for part in rows if part.scale is not None]
    assert sum(int(part.real.sum()) for part in rows) == values.size
    assert sum(int((~np.isfinite(part.values)).sum()) for part in given) == 2
    assert all(np.isfinite(part.values).all() for part in rows if part.scale is None)
    whole = filled(q, clean)
    allowed = set(choose_qparams(q, whole).scale.reshape(-1).tolist())
    for part in rows:
        assert set(chosen_parameters(q, part)[0].tolist()) <= allowed


def test_knife_edges_keep_their_scale() -> None:
    for name, q in catalog.items():
        zero = 3 if q.affine else None
        pieces = list(pack(q, [edge_rows(q, np.float32(0.1), zero, np.float32, "t")]))
        assert sum(int(piece.real.sum()) for piece in pieces) > 4 * 2**q.format.bits, name
        for piece in pieces:
            assert piece.qparams is not None
            assert np.all(np.asarray(piece.qparams.scale) == np.float32(0.1))
            assert (piece.qparams.zero_point is None) == (zero is None)
            assert np.asarray(piece.qparams.scale).shape == qparams_shape(q.granularity, piece.x.shape)


# --- counting --------------------------------------------------------------------------------------------------------


def one_piece(q: Quantizer) -> tuple[Piece, Array, execution.Results]:
    piece = next(pack(q, tensor_rows(q, tensor((70, 200)), np.float32, "t")))
    g = np.random.default_rng(1).standard_normal(piece.x.shape).astype(np.float32)
    return piece, g, execution.run_all("numpy", q, piece.x, g)


def altered(results: execution.Results, name: str, change: Callable[[Array], Array]) -> execution.Results:
    """The results with one of them changed."""
    first, _, second = name.partition(".")
    if not second:
        return results._replace(**{first: change(getattr(results, first))})
    inner = getattr(results, first)
    return results._replace(**{first: inner._replace(**{second: change(getattr(inner, second))})})


def test_the_specification_agrees_with_itself() -> None:
    q = catalog["uint8_affine_per_channel"]
    piece, g, expected = one_piece(q)
    found = tally(q, piece, g, expected, expected)
    blocks = len(np.unique(piece.block[piece.real]))
    assert found.same
    assert found.compared == 5 * piece.real.sum() + 2 * blocks
    assert found.sums == 2 * blocks


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_wrong_result_is_found_and_named(name: str) -> None:
    q = catalog["uint8_affine_per_channel"]
    piece, g, expected = one_piece(q)

    def one_off(array: Array) -> Array:
        wrong = array.copy()
        wrong[5, 0] = wrong[5, 0] + 1
        return wrong

    found = tally(q, piece, g, expected, altered(expected, name, one_off))
    assert (found.differing, found.outside) == ((0, 1) if name.startswith("gradients.") and name[-1] != "x" else (1, 0))
    assert found.parts == ((FUNCTIONS[name], 1),)
    assert found.example is not None
    assert found.example.function == FUNCTIONS[name]
    assert found.example.tensor == "t"
    assert found.example.got != found.example.expected


def test_filling_is_not_counted() -> None:
    q = catalog["int8_per_tensor"]
    piece = next(pack(q, tensor_rows(q, tensor((7,)), np.float32, "t")))
    g = np.ones_like(piece.x)
    expected = execution.run_all("numpy", q, piece.x, g)
    other = altered(expected, "codes", lambda codes: np.where(piece.real, codes, codes + 1).astype(codes.dtype))
    assert tally(q, piece, g, expected, other).same
    assert tally(q, piece, g, expected, expected).compared == 5 * 7 + 1


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a.astype(np.float64), lambda a: None])
def test_results_of_another_shape_or_dtype_or_none_differ(change: Callable[[Array], Any]) -> None:
    q = catalog["int8_per_channel"]
    piece, g, expected = one_piece(q)
    for name in ("fake", "gradients.x", "gradients.scale", "qparams.scale"):
        assert not tally(q, piece, g, expected, altered(expected, name, change)).same, name


@pytest.mark.parametrize("name", ["fake", "codes", "gradients.x", "gradients.scale", "qparams.scale"])
def test_the_other_side_does_not_decide_how_much_was_compared(name: str) -> None:
    q = catalog["int8_per_channel"]
    piece, g, expected = one_piece(q)
    changes = (lambda a: a[:-1], lambda a: np.concatenate([a, a, a]), lambda a: a[:0], lambda a: None)
    found = [tally(q, piece, g, expected, altered(expected, name, change)) for change in changes]
    assert len({(t.compared, t.sums, t.differing, t.outside) for t in found}) == 1
    whole = reduce(getattr, name.split("."), expected)
    assert found[0].differing + found[0].outside == np.size(whole)


def test_the_bound_of_a_sum_admits_orders_and_nothing_more() -> None:
    q = catalog["int8_per_channel"].replace(granularity=PerTensor())
    piece, g, _ = one_piece(q)
    given = QParams(np.float32(0.01))  # most elements are clamped, so terms are large
    piece = Piece(piece.x, piece.real, piece.block, piece.sources, given)
    expected = execution.run_all("numpy", q, piece.x, g, given)
    bound = float(sum_bound(q, piece, g, expected, "gradients.scale")[0])
    codes, x = expected.codes.astype(np.float32), piece.x
    passes = np.asarray(expected.gradients.x) != 0
    terms = g * (codes - np.where(passes, x / np.float32(0.01), np.float32(0)))
    rows = terms.reshape(-1, 64).sum(1, dtype=np.float32).reshape(-1, 64).sum(1, dtype=np.float32)
    in_rows = np.add.reduce(rows, dtype=np.float32)
    exact = float(expected.gradients.scale)
    assert 0 < bound < 1e-4 * np.abs(terms).sum()
    assert abs(float(in_rows) - exact) <= bound
    for wrong in (exact + 1.01 * bound, exact - 1.01 * bound):
        off = altered(expected, "gradients.scale", lambda _, w=wrong: np.float32(w))  # type: ignore[misc]
        assert tally(q, piece, g, expected, off).outside == 1


# --- jobs in processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_every_job_is_done_once(workers: int) -> None:
    assert sorted(run_jobs(abs, [-1, -2, -3], workers)) == [1, 2, 3]
    assert list(run_jobs(abs, [], workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_job_comes_out(workers: int) -> None:
    with pytest.raises(TypeError, match="bad operand type"):
        list(run_jobs(abs, ["a", -1, -2, -3], workers))


# --- the whole -------------------------------------------------------------------------------------------------------


def rows_by_mode(rows: tuple[Row, ...]) -> Iterator[tuple[str, Row]]:
    return ((row.mode, row) for row in rows)


def test_all_modes_agree_and_say_how_much_was_compared(checkpoint: Path) -> None:
    result = check(checkpoint, quantizers=["int8_per_channel"], dtypes=["float32"])
    rows = dict(rows_by_mode(result.rows))
    assert set(rows) == set(execution.MODES) - {"numpy"}
    assert result.same
    assert len({row.tally.sums for row in rows.values()}) == 1
    alone = [rows[mode].tally.compared for mode in ("torch eager", "jax jit")]  # the others have no gradient alone
    assert alone[1] - alone[0] == len(CASES) * ROWS * BREADTH  # and constants of a program
    assert rows["jax eager"].tally.compared == rows["torch compiled"].tally.compared
    elements = 8 * 9 + 5 * 40 + 70 + 1
    assert rows["torch compiled"].tally.compared > 4 * elements
    assert alone[0] - rows["torch compiled"].tally.compared > elements
    assert {t.name for t in result.tensors if t.skipped} == {"labels", "empty"}


@pytest.mark.parametrize("mode", ["torch eager", "jax eager"])
def test_reciprocal_for_division_is_found_and_shown(
    checkpoint: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    formula, _ = FORMULAS["reciprocal for division"]
    plant(monkeypatch, *codes_by(formula, mode))
    result = check(checkpoint, quantizers=["int8_per_tensor"], modes=["torch eager", "jax eager"], dtypes=["float32"])
    rows = dict(rows_by_mode(result.rows))
    assert not result.same
    assert {name for name, row in rows.items() if not row.tally.same} == {mode}
    found = rows[mode].tally
    assert 0 < found.differing < 0.5 * found.compared
    assert found.example is not None
    assert found.example.x is not None
    assert "float32 bits" in found.example.x
    assert found.example.expected != found.example.got
    assert found.example.dtype == "float32"
    assert all(abs(distance) == pytest.approx(1, abs=1e-4) for _, distance in found.points)
    assert found.points


def test_a_mode_that_cannot_run_says_why_and_the_rest_goes_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(mode: str) -> str | None:
        return "no C++ compiler" if mode == "torch compiled" else None

    monkeypatch.setattr(execution, "unavailable", unavailable)
    wanted = {"quantizers": ["int2_per_channel"], "dtypes": ["float32"], "modes": ["torch compiled", "torch eager"]}
    result = check(checkpoint, **wanted)
    rows = dict(rows_by_mode(result.rows))
    assert rows["torch compiled"].missing == "no C++ compiler"
    assert rows["torch compiled"].tally.compared == 0
    assert rows["torch eager"].tally.compared > 0
    assert result.same


def test_unknown_names_give_the_nearest() -> None:
    for wanted, near in (
        ({"quantizers": ["int8_per_chanel"]}, "int8_per_channel"),
        ({"modes": ["jax jat"]}, "jax jit"),
        ({"dtypes": ["float23"]}, "float32"),
    ):
        with pytest.raises(KeyError, match=f"unknown .*did you mean .*{near}"):
            check(None, **wanted)
    assert set(DTYPES) == {"float32", "bfloat16", "float16", "float64"}


def test_a_dialect_takes_the_entries_that_can_have_it(checkpoint: Path) -> None:
    assert set(plan(checkpoint, dialect="torchao").quantizers) == set(catalog)
    affine = set(plan(checkpoint, dialect="quanto_affine").quantizers)
    assert {"int8_per_tensor", "uint4_affine_per_group32"} < affine
    assert affine.isdisjoint({"mxint8", "float8_e4m3fn_per_tensor", "nf4_per_group64"})
    assert quantizer_of("int8_per_tensor", "qwix") == catalog["int8_per_tensor"].replace(**dialects["qwix"])
    with pytest.raises(ValueError, match="float8_e4m3fn_per_tensor cannot have the dialect quanto_affine"):
        plan(checkpoint, ["float8_e4m3fn_per_tensor"], dialect="quanto_affine")
    with pytest.raises(KeyError, match="unknown dialect 'torch'"):
        plan(checkpoint, dialect="torch")


def test_a_dialect_is_checked_in_every_mode_that_computes_it(checkpoint: Path) -> None:
    modes = ("torch eager", "jax eager")
    result = check(checkpoint, quantizers=["int4_per_group32"], modes=modes, dtypes=["float32"], dialect="torchao")
    assert result.dialect == "torchao"
    assert result.same
    for row in result.rows:
        assert not row.missing
        assert row.tally.compared > 1000
