"""torch_frontend in larger programs: compiled, under torch.func, vmapped, on fake tensors."""

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from numpy.typing import NDArray
from torch import Tensor

from samebits import core, torch_frontend
from samebits.core import (
    QParams,
    catalog,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..exact import DTYPES
from ..torch_beside_core import cotangent, in_torch

Array = NDArray[Any]


SYMMETRIC = catalog["int8_per_tensor"]
AFFINE = catalog["uint8_affine_per_channel"]
COMPILED = ("int8_per_tensor", "uint8_affine_per_channel")
MOST_GUARDS = 100  # of int8 per tensor; once there were 134
LEARNED = SYMMETRIC.replace(rounding="ties_to_away", gradient="learned_scale")


def larger_program(
    leaves: tuple[Tensor, ...], v: Tensor, w: Tensor, given: dict[str, QParams], scale: Tensor, number: Tensor
) -> dict[str, Tensor]:
    """The five functions of some quantizers, alone, before and after other operations; ``number`` is x less NaN.

    Each leaf reaches one result with its gradient: to sum gradients, were it with zero, would lose -0.0.
    """
    room, results = torch_frontend, {"learned": torch_frontend.fake_quantize(LEARNED, leaves[-1], QParams(scale))}
    for name, x in zip(COMPILED, leaves, strict=False):
        q, parameters = catalog[name], given[name]
        results[name] = y = room.fake_quantize(q, x, parameters)
        results[f"{name}, then added to"] = y.detach() + w
        results[f"{name} of a product"] = room.fake_quantize(q, v * w, parameters)
        results[f"{name}, codes of a product"] = codes = room.quantize(q, v * w, parameters)
        results[f"{name}, codes"] = room.quantize(q, number, parameters)
        results[f"{name}, codes dequantized, then added to"] = room.dequantize(q, codes, parameters, x.dtype) + w
        results[f"{name} of a sum, then multiplied"] = room.fake_quantize(q, v + w) * w
        results[f"{name}, gradient at a product"] = room.fake_quantize_vjp(q, v * w, parameters, w).x
    return results


def arguments(dtype: str, rows: int, seed: int) -> tuple[Any, ...]:
    """Half of x are ties, a few special values; the rest is normal."""
    rng, kind = np.random.default_rng(seed), DTYPES[dtype]
    x, v, w = rng.standard_normal((3, rows, 96))
    x = np.where(rng.random((rows, 96)) < 0.5, (rng.integers(-150, 150, x.shape) + 0.5) * 0.03, x).astype(kind)
    given = {name: in_torch(core.choose_qparams(catalog[name], x)) for name in COMPILED}
    x[:3, :26] = special_values(kind)
    t = to_torch(x)
    leaves = tuple(t.clone().requires_grad_() for _ in range(len(COMPILED) + 1))
    number = torch.where(t.isnan(), torch.zeros_like(t), t)
    return leaves, to_torch(v.astype(kind)), to_torch(w.astype(kind)), given, torch.tensor(0.03 + seed), number


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_inside_a_larger_program_without_recompiling(dtype: str) -> None:
    """Values and sizes change; the program is compiled once. Gradients, too, are those of eager mode."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    program = torch.compile(larger_program, backend=counter, fullgraph=True, dynamic=True)
    for seed, rows in ((0, 64), (1, 64), (2, 32)):
        leaves, *rest = arguments(dtype, rows, seed)
        expected, got = larger_program(leaves, *rest), program(leaves, *rest)
        x = to_numpy(leaves[0])
        for name, want in expected.items():
            assert_same_bits(want, got[name], call=f"compiled {name}", inputs=x)
        names, g = ["learned", *COMPILED], to_torch(cotangent(x))
        both = (torch.autograd.grad([r[name] for name in names], leaves, [g] * len(names)) for r in (expected, got))
        for name, want, d in zip(names, *both, strict=True):
            assert_same_bits(want, d, call=f"compiled gradient of {name}", inputs=x)
    assert counter.frame_count == 1


def test_a_compiled_call_is_guarded_by_little() -> None:
    """Guards are evaluated before every call. Each function and constant of a module that is traced makes some."""
    torch._dynamo.reset()
    counts: list[int] = []

    def all_of_them(guards: Any) -> list[bool]:
        counts.append(len(guards))
        return [True] * len(guards)

    def program(x: Tensor, scale: Tensor) -> Tensor:
        return torch_frontend.fake_quantize(SYMMETRIC, x, QParams(scale))

    compiled = torch.compile(program, fullgraph=True, options={"guard_filter_fn": all_of_them})
    x, scale = torch.linspace(-3, 3, 64), torch.tensor(0.03)
    assert_same_bits(program(x, scale), compiled(x, scale))
    assert counts[-1] <= MOST_GUARDS


def test_compiled_code_gives_nan_where_eager_code_raises() -> None:
    @torch.compile(fullgraph=True, dynamic=True)
    def program(x: Tensor) -> tuple[Tensor, ...]:
        q, token = catalog["uint8_affine_per_tensor"], catalog["int8_affine_per_token"]
        given = QParams(torch.tensor(0.1), torch.tensor(7, dtype=torch.int32))
        chosen = torch_frontend.choose_qparams(token, x)
        return torch_frontend.quantize(q, x, given), chosen.scale, torch_frontend.fake_quantize(token, x)

    x = torch.tensor([[1.0, torch.nan, -1.0], [1.0, 2.0, 3.0], [torch.inf, 0.0, 1.0]])
    codes, scale, y = program(x)
    assert codes.tolist() == [[17, 7, 0], [17, 27, 37], [255, 7, 17]]
    assert scale.isnan().flatten().tolist() == [True, False, True]
    assert_same_bits(torch_frontend.fake_quantize(catalog["int8_affine_per_token"], x[1:2]), y[1:2])
    assert y[[0, 2]].isnan().all()
    for q in (SYMMETRIC, catalog["int8_affine_per_token"]):
        with pytest.raises(ValueError, match="`x` must be finite"):
            torch_frontend.choose_qparams(q, x)


def test_compiled_gradients_of_parameters() -> None:
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True)
    def program(x: Tensor, scale: Tensor, zero: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
        y = torch_frontend.fake_quantize(AFFINE, x, QParams(scale, zero))
        return y, torch_frontend.fake_quantize(LEARNED, x, QParams(learned))

    for rows in (8, 5):
        x, g = torch.randn(rows, 300).bfloat16(), torch.randn(rows, 300).bfloat16()
        leaves = [torch.full((rows, 1), 0.01), torch.full((rows, 1), 100.0), torch.tensor(0.011)]
        results = []
        for function in (program, program._torchdynamo_orig_callable):  # type: ignore[attr-defined]
            wanted = [leaf.clone().requires_grad_() for leaf in leaves]
            results.append(torch.autograd.grad(function(x, *wanted), wanted, (g, g)))
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=2.0**-20, atol=0)


# --- torch.func -------------------------------------------------------------------------------------------------------


def test_vmap_is_a_loop() -> None:
    xs, scales = torch.randn(5, 8, 32), torch.rand(5) + 0.01
    names = ("float8_e4m3fnuz_per_tensor", "ternary_per_channel", "binary_per_tensor", "float8_e5m2_per_tensor")
    for q in (SYMMETRIC, AFFINE, catalog["uint4_affine_per_group32"], *(catalog[name] for name in names)):
        for function in (
            lambda x, q=q: torch_frontend.fake_quantize(q, x),
            lambda x, q=q: torch_frontend.choose_qparams(q, x).scale,
            lambda x, q=q: torch_frontend.quantize(q, x, torch_frontend.choose_qparams(q, x)),
        ):
            assert_same_bits(torch.stack([function(x) for x in xs]), torch.func.vmap(function)(xs))
            assert_same_bits(torch.stack([function(x) for x in xs]), torch.func.vmap(function, 1)(xs.movedim(0, 1)))

    def scaled(x: Tensor, s: Tensor) -> Tensor:
        return torch_frontend.fake_quantize(SYMMETRIC, x, QParams(s))

    assert_same_bits(
        torch.stack([scaled(x, s) for x, s in zip(xs, scales, strict=True)]), torch.func.vmap(scaled)(xs, scales)
    )
    assert_same_bits(torch.stack([scaled(xs[0], s) for s in scales]), torch.func.vmap(scaled, (None, 0))(xs[0], scales))


def test_grad_of_torch_func_is_that_of_autograd() -> None:
    q = AFFINE.replace(gradient="learned_scale")
    x, g = torch.randn(4, 8, 32), torch.randn(4, 8, 32)
    zero = torch.full((8, 1), 100.0)
    scale = torch.full((8, 1), 0.01)

    def loss(x: Tensor, scale: Tensor, zero: Tensor, g: Tensor) -> Tensor:
        return (torch_frontend.fake_quantize(q, x, QParams(scale, zero)) * g).sum()

    leaves = [x[0].clone().requires_grad_(), scale.clone().requires_grad_(), zero.clone().requires_grad_()]
    want = torch.autograd.grad(loss(*leaves, g[0]), leaves)
    assert_same_bits(want, torch.func.grad(loss, (0, 1, 2))(x[0], scale, zero, g[0]))
    batched = torch.func.vmap(torch.func.grad(loss, (0, 1, 2)), (0, None, None, 0))(x, scale, zero, g)
    assert_same_bits(want, tuple(d[0] for d in batched))
    per_sample = torch.func.grad(lambda s: torch.func.vmap(loss, (0, None, None, 0))(x, s, zero, g).sum())(scale)
    torch.testing.assert_close(per_sample, batched[1].sum(0))


def test_fake_and_meta_tensors_have_shapes_only() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(4, 64)
        assert torch_frontend.fake_quantize(AFFINE, x).shape == (4, 64)
        assert torch_frontend.quantize(AFFINE, x, torch_frontend.choose_qparams(AFFINE, x)).dtype == torch.uint8
    assert torch_frontend.fake_quantize(SYMMETRIC, torch.empty(3, device="meta")).is_meta


# --- what is refused --------------------------------------------------------------------------------------------------


def test_statistics_have_the_same_bits_for_other_shapes() -> None:
    """Other numbers of rows run in the same program; other lengths of blocks compile anew, since sums have an order."""
    quantizers = [
        catalog["uint8_affine_per_channel"].replace(statistic="mean_sigma", sigma=1.7),
        catalog["int8_per_channel"].replace(statistic="signed_absmax", denominator="lo"),
    ]
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    program = torch.compile(
        lambda x: [tuple(torch_frontend.choose_qparams(q, x))[:2] for q in quantizers],
        backend=counter,
        fullgraph=True,
        dynamic=True,
    )
    random, programs = np.random.default_rng(2), []
    for shape in ((7, 8), (13, 8), (40, 8), (32, 5), (3, 5)):  # an axis as long as another would be taken for it
        x = (random.standard_normal(shape) * np.exp2(random.integers(-140, 100, (shape[0], 1)))).astype(np.float32)
        for q, got in zip(quantizers, program(to_torch(x)), strict=True):
            assert_same_bits(tuple(core.choose_qparams(q, x))[:2], got, call=f"{q}, {shape}")
        programs.append(counter.frame_count)
    assert programs == [1, 1, 1, 2, 2]
