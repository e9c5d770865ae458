"""The installed torchao beside the affine primitives, the configs and quantize_, bit for bit in its dialect."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchao import quantization as torchao
from torchao.quantization import quant_primitives as primitives
from torchao.quantization.quant_primitives import MappingType

from samebits.core import configs as of
from samebits.core.affine import for_choosing, for_codes
from samebits.jax_backend.ptq import affine as in_jax
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy
from samebits.torch_frontend.ptq import (
    QuantWeight,
    choose_qparams_affine,
    dequantize_affine,
    quantize_,
    quantize_affine,
)
from samebits.torch_frontend.ptq.quant_weight import codes_of

from ..ptq_cases import rows, weight

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
SHAPE = (6, 32)
BLOCKS = [(6, 32), (1, 32), (1, 8), (3, 1), (2, 4)]
UINT4: Any = vars(torch)["uint4"]  # which stubs do not know
TARGETS: list[Any] = [
    (torch.int8, None, None),
    (torch.int8, -127, 127),
    (torch.int8, -8, 7),
    (torch.uint8, None, None),
    (torch.uint8, 0, 15),
    (torch.uint8, 3, 18),
    (UINT4, None, None),
]
NARROW = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
PLAIN: dict[str, Any] = {"dialect": "torchao"}
FLOAT: dict[str, Any] = {"dialect": "torchao", "zero_point_domain": "float"}


def values(dtype: torch.dtype) -> Tensor:
    x = torch.from_numpy(np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32) * 3)
    x[0], x[1], x[2] = 0, x[1].abs(), -x[2].abs()
    x[3] = torch.linspace(-127, 127, 32).round() / 2
    return x.to(dtype)


def cases() -> Iterator[tuple[tuple[int, ...], Any, Any]]:
    for block in BLOCKS:
        for mapping in MappingType:
            for target in TARGETS:
                if mapping is not MappingType.SYMMETRIC_NO_CLIPPING_ERR or target[0] is torch.int8:
                    yield block, mapping, target


@NARROW
def test_integer_zero_points(dtype: torch.dtype) -> None:
    x = values(dtype)
    for block, mapping, target in cases():
        call = f"{block} {mapping} {target}"
        scale, zero = primitives.choose_qparams_affine(x, mapping, block, *target, zero_point_dtype=torch.int32)
        mine = choose_qparams_affine(x, mapping, block, *target, **PLAIN)
        assert_same_bits(scale, mine[0], call=call)
        assert_same_bits(zero, mine[1], call=call)
        codes = primitives.quantize_affine(x, block, scale, zero, *target)
        assert_same_bits(codes, quantize_affine(x, block, scale, zero, *target, **PLAIN), call=call)
        for out in {torch.float32, dtype}:
            want = primitives.dequantize_affine(codes, block, scale, zero, *target, output_dtype=out)
            got = dequantize_affine(codes, block, scale, zero, *target, out, **PLAIN)
            assert_same_bits(want, got, call=call)


@NARROW
def test_other_zero_points(dtype: torch.dtype) -> None:
    x, asymmetric = values(dtype), MappingType.ASYMMETRIC
    for block in BLOCKS:
        target = (torch.uint8, 0, 15)
        scale, zero = primitives._choose_qparams_affine_tinygemm(x, asymmetric, block, *target)
        mine = choose_qparams_affine(x, asymmetric, block, *target, preserve_zero=False, **FLOAT)
        assert_same_bits(scale, mine[0])
        assert_same_bits(zero, mine[1])
        codes = primitives._quantize_affine_tinygemm(x, block, scale, zero, *target)
        assert_same_bits(codes, quantize_affine(x, block, scale, zero, *target, **FLOAT))
        want = primitives._dequantize_affine_tinygemm(codes, block, scale, zero, *target, output_dtype=dtype)
        assert_same_bits(want, dequantize_affine(codes, block, scale, zero, *target, output_dtype=dtype, **FLOAT))

        scale, zero = primitives._choose_qparams_affine_dont_preserve_zero(x, asymmetric, block, torch.uint8)
        mine = choose_qparams_affine(x, asymmetric, block, torch.uint8, preserve_zero=False, **PLAIN)
        assert_same_bits(scale, mine[0])
        assert_same_bits(zero, mine[1])

        scale, _ = primitives.choose_qparams_affine(x, MappingType.SYMMETRIC, block, torch.int8, keepdim=True)
        none = {**PLAIN, "zero_point_domain": "none"}
        mine = choose_qparams_affine(x, "symmetric", block, torch.int8, keepdim=True, **none)
        assert_same_bits(scale, mine[0])
        assert mine[1] is None
        codes = primitives._quantize_affine_no_zero_point(x, block, scale, None, torch.int8)
        assert_same_bits(codes, quantize_affine(x, block, scale, None, torch.int8, **none))


@pytest.mark.parametrize(
    ("mapping", "target", "domain", "dialect"),
    [
        ("asymmetric", (torch.uint8, 3, 18), "int", "torchao"),
        ("asymmetric", (UINT4, None, None), "float", None),
        ("symmetric", (torch.uint8, None, None), "int", None),
        ("symmetric", (torch.int8, -127, 127), "none", "torchao"),
    ],
)
def test_jax_computes_the_same(mapping: str, target: Any, domain: str, dialect: str | None) -> None:
    x, block = values(torch.bfloat16), (1, 8)
    how: dict[str, Any] = {"zero_point_domain": domain, "dialect": dialect}
    named = (str(target[0]).removeprefix("torch."), *target[1:])
    scale, zero = choose_qparams_affine(x, mapping, block, *target, **how)
    mine = in_jax.choose_qparams_affine(to_jax(to_numpy(x)), mapping, block, *named, **how)
    assert_same_bits(scale, mine[0])
    assert (zero is None) == (mine[1] is None)
    if zero is not None:
        assert_same_bits(zero, mine[1])
    codes = quantize_affine(x, block, scale, zero, *target, **how)
    assert_same_bits(codes, in_jax.quantize_affine(to_jax(to_numpy(x)), block, *mine, *named, **how))
    got = in_jax.dequantize_affine(to_jax(to_numpy(codes)), block, *mine, *named, jnp.bfloat16, **how)
    assert_same_bits(dequantize_affine(codes, block, scale, zero, *target, torch.bfloat16, **how), got)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("linear", (1, 8), "int8", None, None, None, "int", True, None), "`mapping_type` must be one of"),
        (("symmetric", (1, 8), "int8", None, None, None, "bits", True, None), "`zero_point_domain` must be one of"),
        (("symmetric", (8,), "int8", None, None, None, "int", True, None), "`block_size` must have one size for each"),
        (("symmetric", (1, 7), "int8", None, None, None, "int", True, None), "block shape"),
        (("symmetric", (1, 8), "int16", None, None, None, "int", True, None), "int1 to int8 or uint1 to uint8"),
        (("symmetric", (1, 8), "int8", -9, 7, None, "int", True, None), "must be 2\\*\\*bits - 1"),
        (("symmetric", (1, 8), "int8", -200, 7, None, "int", True, None), "ascending and in"),
        (("symmetric", (1, 8), "int8", None, None, None, "float", True, None), "'asymmetric' for zero points"),
        (("asymmetric", (1, 8), "int8", None, None, None, "none", True, None), "must be symmetric"),
        (("symmetric_no_clipping_err", (1, 8), "uint8", None, None, None, "int", True, None), "must be below 0"),
        (("asymmetric", (1, 8), "uint8", 3, 18, None, "float", True, None), "`quant_min` must begin a range"),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        for_choosing(SHAPE, *arguments).quantizer.granularity.block_size(SHAPE)
    with pytest.raises(KeyError, match="unknown dialect"):
        for_codes(SHAPE, (1, 8), "int8", None, None, "int", "torcha")
    with pytest.raises(TypeError, match="`zero_point` must be an array in the domain 'int'"):
        quantize_affine(torch.zeros(SHAPE), (1, 8), torch.ones(6, 4), None, torch.int8)
    with pytest.raises(TypeError, match="`input` must have dtype uint8, got int8"):
        dequantize_affine(torch.zeros(SHAPE, dtype=torch.int8), (1, 8), torch.ones(6, 4), torch.zeros(6, 4), UINT4)


def linears() -> Any:
    made = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Sequential(nn.Linear(24, 24)), nn.Linear(24, 8)).eval()
    with torch.no_grad():
        made[0].weight.copy_(torch.from_numpy(weight()))
    return made


@pytest.mark.parametrize(
    ("theirs", "mine"),
    [
        (torchao.Int8WeightOnlyConfig(), of.int8_weight_only(dialect="torchao")),
        (torchao.Int8DynamicActivationInt8WeightConfig(), of.int8_dynamic_activation_int8_weight("torchao")),
    ],
)
def test_configs_give_the_codes_of_torchao(theirs: Any, mine: of.Config) -> None:
    """But for rows of zeros, and such as are nearly: theirs have the scale 2**-23, ours the smallest normal number."""
    a, b = linears(), linears()
    b.load_state_dict(a.state_dict())
    torchao.quantize_(a, theirs)
    quantize_(b, mine)
    for i in (0, 3):
        there, here = a[i].weight, b[i].weight
        assert_same_bits(there.qdata, codes_of(here))
        assert_same_bits(there.scale[1:], here.scale[1:])
        assert_same_bits(there.dequantize(), here.dequantize())
    assert_same_bits(a[0].weight.scale[0], torch.full((1,), 2.0**-23))
    if mine.act_quant is not None:  # they multiply by one scale, then by the other: two roundings
        x = torch.from_numpy(rows())
        assert torch.allclose(a[0](x), b[0](x), rtol=1e-6, atol=1e-6)


def test_filters_and_names_are_those_of_torchao() -> None:
    for takes in (None, lambda module, name: name in ("0", "2.0"), lambda module, name: isinstance(module, nn.Linear)):
        a, b = linears(), linears()
        torchao.quantize_(a, torchao.Int8WeightOnlyConfig(), takes)
        quantize_(b, of.int8_weight_only(), takes)
        assert _changed(a) == _changed(b)
    for names in ({"0": None, r"re:2\.[0-9]": 8}, {"_default": 8, "2.0": None}, {"re:[03]": 8, "3": None}):
        a, b = linears(), linears()
        config = {name: torchao.Int8WeightOnlyConfig() if bits else None for name, bits in names.items()}
        torchao.quantize_(a, torchao.FqnToConfig(config), filter_fn=None)
        quantize_(b, of.ModuleConfigs({name: of.int8_weight_only() if bits else None for name, bits in names.items()}))
        assert _changed(a) == _changed(b), names


def _changed(model: nn.Module) -> list[str]:
    kinds = (nn.Parameter, Tensor)
    changed = [name for name, p in model.named_parameters() if type(p) not in kinds]
    assert all(isinstance(p, QuantWeight) or "Int8" in type(p).__name__ for p in map(model.get_parameter, changed))
    return changed
