"""Operands as constants of a program: the specification's bits, and a fold that is found."""

from typing import Any

import jax
import numpy as np
import pytest
import torch

from samebits import core, torch_frontend
from samebits.core import QParams, catalog
from samebits.jax_backend.arrays import bit_pattern, from_pattern
from samebits.proofs.check.check import check
from samebits.proofs.check.pieces import pack, tensor_rows
from samebits.proofs.check.tally import tally_of_constants
from samebits.proofs.inputs.compare import assert_same_bits, differences
from samebits.proofs.modes.constants import CASES, with_constants

from ...planted import plant

NAMES = ("int8_per_tensor", "int16_per_tensor", "uint8_affine_per_channel", "int4_per_group32", "mxfp4_e2m1")


def operands(name: str) -> tuple[Any, Any, QParams]:
    x, b = np.random.default_rng(0).standard_normal((2, 8, 256)).astype(np.float32)
    return x, b, core.choose_qparams(catalog[name], x)


@pytest.mark.parametrize("name", [name for name in NAMES if name in catalog])
def test_constants_have_the_bits_of_arguments(name: str) -> None:
    x, b, qparams = operands(name)
    want = with_constants("numpy", catalog[name], x, b, qparams)
    got = with_constants("jax jit", catalog[name], x, b, qparams)
    assert set(want) == set(got) == set(CASES)
    for case, value in want.items():
        assert_same_bits(value, got[case], call=f"{name}: {case}", inputs=x)


def unguarded(_: Any) -> Any:
    """A product whose guard is the last bit of the code: nothing where the code is a constant."""

    def short_product(code: jax.Array, scale: jax.Array, *, signed_zero: bool = False) -> jax.Array:
        return code * scale + from_pattern(bit_pattern(code) & 1, code.dtype)

    return short_product


def test_a_fold_of_constant_codes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `with_constants`, and by what `samebits check` makes of it; as arguments the same codes agree."""
    q = catalog["int8_per_tensor"]
    x, b, qparams = operands("int8_per_tensor")
    plant(monkeypatch, "jax_backend.arrays.short_product", unguarded)
    jax.clear_caches()
    want, got = (with_constants(mode, q, x, b, qparams) for mode in ("numpy", "jax jit"))
    wrong = {name for name in want if not differences(want[name], got[name]).same}
    assert wrong == {"dequantize of constant codes"}
    piece = next(pack(q, tensor_rows(q, np.tile(x, (16, 1)), np.dtype(np.float32), "x")))
    found = tally_of_constants("jax jit", q, piece, np.tile(b, (16, 1)))
    assert dict(found.parts).keys() == wrong
    assert found.differing > 100
    assert found.example is not None
    assert found.example.function == "dequantize of constant codes"
    result = check(quantizers=["int8_per_tensor"], modes=["numpy", "jax jit"], dtypes=["float32"])
    assert not result.same
    assert {part for row in result.rows for part, _ in row.tally.parts} == wrong
    monkeypatch.undo()
    jax.clear_caches()


def test_other_modes_are_refused() -> None:
    x, b, qparams = operands("int8_per_tensor")
    with pytest.raises(ValueError, match="`mode` must be 'numpy' or one of 'jax jit'"):
        with_constants("torch compiled", catalog["int8_per_tensor"], x, b, qparams)


@pytest.mark.parametrize("name", ["int8_per_tensor", "uint4_affine_per_group32"])
def test_torch_takes_what_is_closed_over_as_inputs(name: str) -> None:
    q = catalog[name]
    x, b, qparams = operands(name)
    codes = torch.from_numpy(core.quantize(q, x, qparams))
    fixed = QParams(*(None if p is None else torch.from_numpy(np.array(p)) for p in qparams[:2]))
    known = torch.from_numpy(x)

    @torch.compile(fullgraph=True)
    def program(b: torch.Tensor) -> Any:
        return torch_frontend.dequantize(q, codes, fixed) + b, torch_frontend.fake_quantize(q, known, fixed) + b

    with np.errstate(all="ignore"):
        wants = core.dequantize(q, codes.numpy(), qparams) + b, core.fake_quantize(q, x, qparams) + b
    for want, got in zip(wants, program(torch.from_numpy(b)), strict=True):
        assert_same_bits(want, got, call=name, inputs=x)
