"""Compiled formulas are short: inductor writes what is used several times out again, so roundings multiply."""

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func  # type: ignore[import-untyped]
from torch._dynamo.backends.common import aot_autograd

from samebits.core import formula as p
from samebits.core.operations import round_to_dtype
from samebits.proofs import assert_same_bits, prototype
from samebits.torch_frontend.arithmetics import number_of

DTYPES = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype("f4"),
}


@prototype
def int8(x: Any, *, scale: Any = p.learned(0.1), bits: int = 8) -> Any:
    n = 2.0 ** (bits - 1)
    return p.clamp(p.round(x / scale), -n, n - 1) * scale


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_rounded_as_core_rounds_them(dtype: torch.dtype) -> None:
    """At ties, at the ends of subnormal and of all numbers, and anywhere."""
    random = np.random.default_rng(0)
    halves = np.arange(256, 512) + 0.5
    ends = [
        65504.0,
        65520.0,
        3.39617752923046e38,
        3.4028235677973366e38,
        2.0**-24,
        2.0**-25,
        2.0**-133,
        2.0**-150,
        5e-324,
    ]
    numbers = np.array([*halves, *halves * (1 + 2**-40), *halves * (1 - 2**-40), *ends, math.inf, 0.0])
    numbers = np.concatenate(
        [numbers, numbers / 4099, random.standard_normal(300) * 10.0 ** random.integers(-45, 39, 300)]
    )
    numbers = np.concatenate([numbers, -numbers])
    with np.errstate(all="ignore"):
        expected = round_to_dtype(numbers, DTYPES[dtype]).astype(np.float64)
    assert_same_bits(expected, np.array([number_of(float(v), dtype) for v in numbers]))
    assert math.isnan(number_of(math.nan, dtype))


def sizes(call: Callable[..., Any], *operands: torch.Tensor) -> list[int]:
    """How many nodes the graphs forward and backward have."""
    found: list[int] = []

    def kept(graph: Any, _: Any) -> Any:
        found.append(len(graph.graph.nodes))
        return make_boxed_func(graph)

    compiled = torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=kept, bw_compiler=kept))
    y = compiled(*operands)
    y.backward(torch.ones_like(y))
    return found


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 8), (torch.bfloat16, 90), (torch.float16, 130)])
def test_graphs_are_short(dtype: torch.dtype, most: int) -> None:
    """Of four primitives: each rounds once, none what another made."""
    x = torch.ones(4, dtype=dtype, requires_grad=True)
    scale = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    assert sizes(lambda x, scale: int8.torch(x, scale=scale), x, scale)[0] <= most


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_that_vary_between_calls_of_a_program(dtype: torch.dtype) -> None:
    """Dynamo knows them no more: then they are rounded when the program runs."""
    x = torch.arange(-12, 12).to(dtype) / 7
    compiled = torch.compile(lambda x, bits: int8.torch(x, bits=bits), fullgraph=True, backend="aot_eager")
    for bits in (2, 3, 4):
        assert_same_bits(int8.torch(x, bits=bits), compiled(x, bits))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_comes_in_is_rounded_first(dtype: torch.dtype) -> None:
    """What inductor computed before a formula, in the same program, it holds unrounded."""
    random = np.random.default_rng(0)
    a, b = (torch.from_numpy(random.standard_normal((64, 32)).astype(np.float32)).to(dtype) for _ in range(2))
    assert_same_bits(int8.torch(a * b), torch.compile(lambda a, b: int8.torch(a * b), fullgraph=True)(a, b))
