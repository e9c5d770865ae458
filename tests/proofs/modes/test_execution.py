"""Tests of the execution modes: what goes in and out keeps every bit, and each mode runs what its name says."""

import os
import subprocess
import sys
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samebits import core
from samebits.core import QParams, catalog
from samebits.core.granularity import qparams_shape
from samebits.proofs.inputs import strategies
from samebits.proofs.inputs.bits import raw_bits
from samebits.proofs.inputs.compare import assert_same_bits, same_bits
from samebits.proofs.inputs.knife_edges import knife_edges, special_values
from samebits.proofs.inputs.strategies import DTYPES
from samebits.proofs.modes import execution, programs
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.proofs.modes.execution import MODES, implementation, run_all, unavailable
from samebits.proofs.modes.shapes import compiled_shape

FRAMEWORK_MODES = MODES[1:]
SHAPE = (32, 64)


def every_pattern(dtype: str) -> NDArray[Any]:
    """All numbers of a 16-bit dtype; of a wider one the special values and random bits."""
    kind = DTYPES[dtype]
    if kind.itemsize == 2:
        return np.arange(2**16, dtype=np.uint16).view(kind)
    bits = np.random.default_rng(0).integers(0, 2 ** (8 * kind.itemsize), 2**16, np.uint64, endpoint=False)
    return np.concatenate([special_values(kind), bits.astype(f"u{kind.itemsize}").view(kind)])


def exact_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Stricter than `same_bits`: payloads of NaN count too."""
    return a.dtype == b.dtype and a.shape == b.shape and bool((raw_bits(a) == raw_bits(b)).all())


def ordinary(dtype: str, shape: tuple[int, ...] = SHAPE) -> tuple[NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng(3)
    x, g = generator.standard_normal((2, *shape)).astype(DTYPES[dtype])
    return x, g


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_keeps_every_bit(dtype: str) -> None:
    x = every_pattern(dtype)
    assert exact_bits(to_numpy(to_torch(x)), x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_jax_keeps_every_bit(dtype: str) -> None:
    x = every_pattern(dtype)
    assert exact_bits(to_numpy(to_jax(x)), x)


def test_jax_takes_float64_only_when_it_can_hold_it() -> None:
    x = every_pattern("float64")
    with pytest.raises(TypeError, match="needs 64-bit types"):
        to_jax(x)
    with jax.enable_x64(True):
        assert exact_bits(to_numpy(to_jax(x)), x)


@pytest.mark.parametrize("convert", [to_torch, to_jax])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "uint8", "int16", "int32", "bool"])
def test_any_layout_is_taken(convert: Any, dtype: str) -> None:
    kind = DTYPES.get(dtype, np.dtype(dtype) if dtype not in DTYPES else None)
    x = (np.arange(24).reshape(4, 6) % 2).astype(kind)
    frozen = x.copy()
    frozen.flags.writeable = False
    for array in (x, x[::-1, ::-2], x.T, frozen, x[:0], x[0, 0], np.asarray(x[1, 1]), x[:, None]):
        assert exact_bits(to_numpy(convert(array)), np.asarray(array))


def test_torch_shares_memory_where_it_can() -> None:
    x = np.zeros(3, ml_dtypes.bfloat16)
    to_torch(x)[1] = 1
    assert x.tolist() == [0, 1, 0]


def test_numpy_keeps_subnormals_after_jax_has_run() -> None:
    jax.jit(lambda x: x * 2)(np.float32(1e-40)).block_until_ready()
    assert np.float32(1e-40) * np.float32(2) > 0
    assert np.multiply(np.full(64, 1e-40, np.float32), np.float32(2)).min() > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["int8_per_channel", "uint8_affine_per_tensor"])
@pytest.mark.parametrize("mode", [mode for mode in FRAMEWORK_MODES if mode != "torch compiled"])
def test_functions_answer_as_the_specification(mode: str, name: str, dtype: str) -> None:
    check_functions(mode, name, dtype)


@pytest.mark.parametrize(("name", "dtype"), [("uint8_affine_per_tensor", "bfloat16")])
def test_compiled_functions_answer_as_the_specification(name: str, dtype: str) -> None:
    check_functions("torch compiled", name, dtype)


def check_functions(mode: str, name: str, dtype: str) -> None:
    """Each of the five functions by itself, on ordinary numbers."""
    q, (x, g), kind = catalog[name], ordinary(dtype), DTYPES[dtype]
    f, law = implementation(mode), implementation("numpy")
    chosen = law.choose_qparams(q, x)
    codes = law.quantize(q, x, chosen)
    assert f.name == mode
    assert_same_bits(chosen, f.choose_qparams(q, x))
    assert_same_bits(codes, f.quantize(q, x, chosen))
    assert_same_bits(law.dequantize(q, codes, chosen), f.dequantize(q, codes, chosen))
    assert_same_bits(law.dequantize(q, codes, chosen, kind), f.dequantize(q, codes, chosen, kind))
    assert_same_bits(law.fake_quantize(q, x, chosen), f.fake_quantize(q, x, chosen))
    assert_same_bits(law.fake_quantize(q, x), f.fake_quantize(q, x))
    expected, got = law.fake_quantize_vjp(q, x, chosen, g), f.fake_quantize_vjp(q, x, chosen, g)
    assert_same_bits(expected.x, got.x)
    for one, other in zip(expected[1:], got[1:], strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-3)  # sums; laws hold them to their bound


@pytest.mark.parametrize("given_qparams", [False, True], ids=["chosen", "given"])
@pytest.mark.parametrize("name", ["int8_per_tensor", "uint4_affine_per_group32"])
@pytest.mark.parametrize("mode", MODES)
def test_run_all_is_the_five_functions(mode: str, name: str, given_qparams: bool) -> None:
    q, (x, g) = catalog[name], ordinary("float32")
    chosen = core.choose_qparams(q, x)
    qparams = QParams(*(None if p is None else np.roll(p, 1) for p in chosen)) if given_qparams else None
    used = chosen if qparams is None else qparams
    got = run_all(mode, q, x, g, qparams)
    codes = core.quantize(q, x, used)
    values = core.dequantize(q, codes, used, x.dtype)
    assert_same_bits((used, codes, values, values), got[:4])
    assert_same_bits(core.fake_quantize_vjp(q, x, used, g).x, got.gradients.x)
    assert (got.gradients.zero_point is None) == (not q.affine)
    assert got.gradients.scale.shape == used.scale.shape


@pytest.mark.parametrize("mode", MODES)
def test_nan_has_the_code_of_zero(mode: str) -> None:
    q, (x, g) = catalog["uint4_affine_per_group32"], ordinary("float32")
    chosen = core.choose_qparams(q, x)
    x[::3] = np.nan
    got = run_all(mode, q, x, g, chosen)
    zeros = np.broadcast_to(np.repeat(chosen.zero_point, 32, 1), x.shape)
    assert_same_bits(np.where(np.isnan(x), zeros, got.codes).astype(q.format.storage), got.codes)
    assert np.isnan(got.fake[::3]).all()
    assert not np.isnan(got.values).any()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode in execution.REFUSES])
def test_modes_that_can_refuse_do(mode: str) -> None:
    q, (x, g) = catalog["int8_per_tensor"], ordinary("float32")
    x[0, 0] = np.inf
    with pytest.raises(ValueError, match="must be finite"):
        run_all(mode, q, x, g)
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        implementation(mode).quantize(q, x, QParams(np.float32(1)))
    assert implementation(mode).refuses


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in execution.REFUSES])
def test_modes_that_cannot_refuse_answer(mode: str) -> None:
    q, (x, g) = catalog["int8_per_tensor"], ordinary("float32")
    x[0, 0] = np.inf
    assert np.isnan(run_all(mode, q, x, g).qparams.scale)
    assert not implementation(mode).refuses


@pytest.mark.parametrize("mode", ["jax eager", "jax jit"])
def test_float64_in_jax_without_leaving_a_setting_behind(mode: str) -> None:
    q, (x, g) = catalog["int8_affine_per_token"], ordinary("float64")
    expected, got = run_all("numpy", q, x, g), run_all(mode, q, x, g)
    assert_same_bits(expected[:4], got[:4])
    assert_same_bits(expected.gradients.x, got.gradients.x)
    assert got.qparams.scale.dtype == np.float64
    assert jax.numpy.zeros(1, float).dtype == np.float32


def test_compiling_once_serves_all_values_and_two_compilations_all_shapes() -> None:
    q = catalog["int8_per_channel"].replace(bits=5)  # no other test compiles it
    x, g = ordinary("float32", (24, 40))
    limit = torch._dynamo.config.recompile_limit

    def compiled() -> int:
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    before = compiled()
    for factor in (1, 3, 1e-30):
        y = x * np.float32(factor)
        assert_same_bits(run_all("numpy", q, y, g)[:4], run_all("torch compiled", q, y, g)[:4])
    assert compiled() == before + 1
    for shape in ((24, 56), (11, 40), (3, 5, 7), (70,) * 2):
        y, h = ordinary("float32", shape)
        assert_same_bits(run_all("numpy", q, y, h)[:4], run_all("torch compiled", q, y, h)[:4])
    assert compiled() <= before + 3  # once more with symbolic sizes, and with more than 4096 elements
    assert torch._dynamo.config.recompile_limit == limit


@settings(max_examples=100)
@given(st.data())
def test_compiled_shapes_mean_the_same(data: st.DataObject) -> None:
    q = data.draw(strategies.quantizers())
    x, qparams, _ = data.draw(strategies.cases(q))
    shape = compiled_shape(q.granularity, x.shape)
    inner = qparams_shape(q.granularity, shape)
    moved = QParams(*(None if p is None else p.reshape(inner) for p in qparams))
    expected = core.fake_quantize(q, x, qparams).reshape(shape)
    assert_same_bits(expected, core.fake_quantize(q, x.reshape(shape), moved))


def test_compiled_shapes_have_one_rank() -> None:
    for q in catalog.values():
        ranks = {len(compiled_shape(q.granularity, shape)) for shape in ((2, 32, 128), (2, 3, 32, 128), (32, 128))}
        assert len(ranks) == 1


@pytest.mark.parametrize("call", [unavailable, implementation, lambda mode: run_all(mode, *[None] * 3)])
def test_unknown_modes_are_named(call: Any) -> None:
    with pytest.raises(ValueError, match=r"`mode` must be .* 'numpy', .*'jax jit', .*'jax gpu jit'; got 'tensorflow'"):
        call("tensorflow")


def test_every_mode_is_available_here() -> None:
    assert {mode: unavailable(mode) for mode in MODES} == dict.fromkeys(MODES)


def test_a_missing_compiler_is_said_in_one_line() -> None:
    code = "from samebits.proofs.modes.execution import unavailable; print(unavailable('torch compiled'))"
    environment = {**os.environ, "CXX": "/nowhere/c++"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "no C++ compiler" in done.stdout


def test_frameworks_are_imported_when_they_are_used() -> None:
    code = (
        "import sys; from samebits.proofs.inputs import compare, knife_edges; "
        "from samebits.proofs.laws import catalog_of_laws; from samebits.proofs.modes import execution; "
        "print([m for m in ('torch', 'jax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_modes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name runs what it says: a wrong division planted in one room shows in the modes of that room only."""
    q, edges = catalog["int8_per_tensor"], knife_edges(catalog["int8_per_tensor"], 0.1, None, np.float32)
    qparams = QParams(np.float32(0.1))
    from samebits import jax_backend, torch_frontend

    for room, modes in ((torch_frontend, ["torch eager"]), (jax_backend, ["jax eager"])):
        real = room.fake_quantize
        monkeypatch.setattr(room, "fake_quantize", lambda q, x, p=None, real=real: real(q, x, p) * 2)
        for mode in MODES[:2] + MODES[3:4]:
            same = same_bits(
                core.fake_quantize(q, edges, qparams), implementation(mode).fake_quantize(q, edges, qparams)
            )
            assert same == (mode not in modes)
        monkeypatch.undo()
        programs.torch_program.cache_clear()
        programs.jax_program.cache_clear()
