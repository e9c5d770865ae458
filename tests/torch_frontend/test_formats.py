"""torch_frontend beside core for formats that are not of integers: all 16-bit inputs, eager, compiled, transformed."""

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from numpy.typing import NDArray
from torch import Tensor

from samebits import core, torch_frontend
from samebits.core import FloatFormat, IntegerFormat, PerAxis, PerTensor, QParams, Quantizer, TernaryFormat, catalog
from samebits.core.granularity import qparams_shape
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edge_array, special_values
from samebits.proofs.inputs.numbers import every_code
from samebits.proofs.modes.arrays import to_numpy, to_torch
from samebits.torch_frontend.arrays import CHUNK, WHOLE

from ..exact import DTYPES
from ..torch_beside_core import assert_same_functions, cotangent, gradient, in_torch

Array = NDArray[Any]
NAMES = [name for name, q in catalog.items() if not isinstance(q.format, IntegerFormat)]
SCALES = (2.0**-126, 1.5 * 2.0**-20, 0.1, 2.0**30, 3e38)  # of 16-bit inputs the last sees nothing but 0 and beyond
each_entry = pytest.mark.parametrize("name", NAMES)
ONE_OF_EACH = {catalog[name].format: name for name in NAMES}.values()  # the last of each, for all kinds of blocks
each_format = pytest.mark.parametrize("name", ONE_OF_EACH)

# Every kind of format, and those rules that no entry of the catalog has.
KINDS: dict[str, Quantizer] = {
    "binary": catalog["binary_per_channel"],
    "ternary": catalog["ternary_per_channel"].replace(threshold=0.7),
    "nf4": catalog["nf4_per_group64"],
    "e4m3fn": catalog["float8_e4m3fn_per_tensor"],
    "e4m3fn, NaN beyond": catalog["float8_e4m3fn_per_channel"].replace(saturate=False, rounding="toward_positive"),
    "e5m2, infinity beyond": catalog["float8_e5m2_per_tensor"].replace(saturate=False),
    "e5m2fnuz": catalog["float8_e5m2fnuz_per_tensor"].replace(rounding="ties_to_away"),
    "e2m1": catalog["float4_e2m1_per_tensor"].replace(gradient="pass_through"),
    "bfloat16": Quantizer(format=FloatFormat(8, 7), granularity=PerTensor()),
    "e2m0 of large numbers": Quantizer(format=FloatFormat(2, 0, bias=-5), granularity=PerTensor()),
}


def every_number(dtype: str) -> Array:
    return np.arange(2**16, dtype=np.uint16).view(DTYPES[dtype])


def with_scales(q: Quantizer, x: Array, scales: tuple[float, ...]) -> list[tuple[Array, QParams]]:
    """``x`` under every scale: one array each per tensor, else rows of one array."""
    kind = np.float64 if x.dtype == np.float64 else np.float32
    if q.granularity == PerTensor():
        return [(x, QParams(np.asarray(s, kind))) for s in scales]
    rows = np.stack([x] * len(scales))
    shape = qparams_shape(q.granularity, rows.shape)
    return [(rows, QParams(np.broadcast_to(np.array(scales, kind)[:, None], shape)))]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@each_format
def test_all_inputs_of_16_bits(name: str, dtype: str) -> None:
    for x, qparams in with_scales(catalog[name], every_number(dtype), SCALES):
        assert_same_functions(catalog[name], x, qparams)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_knife_edges_of_every_kind(kind: str, dtype: str) -> None:
    q = KINDS[kind]
    wide = np.float64 if dtype == "float64" else np.float32
    for scale in (0.1, 2.0**-126, 3e30) if q.format.bits < 16 else (0.1,):
        assert_same_functions(q, *knife_edge_array(q, QParams(np.full(1, scale, wide)), DTYPES[dtype]))


@pytest.mark.parametrize("threshold", [0.0, 0.05, 1 / 3, 1 - 2.0**-24])
def test_thresholds(threshold: float) -> None:
    q = Quantizer(format=TernaryFormat(threshold), granularity=PerAxis(0))
    for dtype in DTYPES:
        wide = np.float64 if dtype == "float64" else np.float32
        x, qparams = knife_edge_array(q, QParams(np.array([0.1, 1, 2.0**-126, 3e38], wide)), DTYPES[dtype])
        assert_same_functions(q, x, qparams)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@each_format
def test_every_code_has_its_value(name: str, dtype: str) -> None:
    """Infinities, NaN and -0.0 among them; bits above those of a code mean nothing in either."""
    q = catalog[name]
    codes = every_code(q, (3, 64 * 9))
    for scale in (1.0, 0.1, 2.0**-126):
        ((_, qparams),) = with_scales(q.replace(granularity=PerAxis(0)), codes[0].astype(DTYPES[dtype]), (scale,) * 3)
        shape = qparams_shape(q.granularity, codes.shape)
        given = QParams(np.full(shape, scale, qparams.scale.dtype))
        want = core.dequantize(q, codes, given, DTYPES[dtype])
        for part in (codes, codes[:, :64]):  # looked up in a table, or not
            one = QParams(np.full(qparams_shape(q.granularity, part.shape), scale, qparams.scale.dtype))
            got = torch_frontend.dequantize(q, to_torch(part), in_torch(one), getattr(torch, dtype))
            assert_same_bits(want[:, : part.shape[1]], got, inputs=part)


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_several_chunks(kind: str) -> None:
    """Special values stand at the seams and in the middle; some chunks hold no NaN, and take another way."""
    q = KINDS[kind].replace(granularity=PerAxis(0))
    x = np.random.default_rng(0).standard_normal((2, WHOLE // 2 + 320)).astype(np.float32)
    qparams = core.choose_qparams(q, x)
    x[0, CHUNK - 12 : CHUNK + 14] = special_values(np.float32)
    assert_same_functions(q, x, qparams)
    whole = q.replace(granularity=PerTensor())
    flat = x.reshape(-1)[: WHOLE + 77]
    assert_same_functions(whole, flat, QParams(qparams.scale.reshape(-1)[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_transposed_and_strided(kind: str) -> None:
    q = KINDS[kind].replace(granularity=PerTensor())
    base = torch.randn(6, 8, 9, 4)
    given = QParams(torch.tensor(0.3))
    layouts = (
        base.transpose(0, 2),
        base.to(memory_format=torch.channels_last),
        base[::2, :, ::3],
        base[:1].expand(6, 8, 9, 4),
    )
    for t in layouts:
        x, g = t.numpy(), cotangent(t.numpy())
        scale = QParams(np.float32(0.3))
        assert_same_bits(core.fake_quantize(q, x, scale), torch_frontend.fake_quantize(q, t, given))
        assert_same_bits(core.quantize(q, x, scale), torch_frontend.quantize(q, t, given))
        assert_same_bits(core.fake_quantize_vjp(q, x, scale, g).x, gradient(q, t, given, to_torch(g)))
        codes = torch_frontend.quantize(q, t, given)
        assert_same_bits(core.dequantize(q, to_numpy(codes), scale), torch_frontend.dequantize(q, codes, given))


@pytest.mark.parametrize("rule", ["clipped", "pass_through", "learned_scale"])
@each_entry
def test_gradients_of_scales_are_within_the_stated_bound(name: str, rule: str) -> None:
    q, rng = catalog[name].replace(gradient=rule), np.random.default_rng(0)
    x, g = rng.standard_normal((2, 64, 128)).astype(np.float32)
    chosen = core.choose_qparams(q, x).scale
    saturates = not isinstance(q.format, FloatFormat) or q.format.saturate  # else such sums are NaN
    qparams = QParams(chosen * np.float32(0.7 if saturates else 1.0))  # so that some are clamped
    want = core.fake_quantize_vjp(q, x, qparams, g).scale
    scale = to_torch(qparams.scale).requires_grad_()
    torch_frontend.fake_quantize(q, to_torch(x), QParams(scale)).backward(to_torch(g))
    got = to_numpy(scale.grad)
    sizes = core.ste.block_sum(np.abs(g).astype(np.float64), q.granularity) * 2 * max(q.format.hi, 1)
    bound = x.size / chosen.size * 2.0**-53 * sizes + 2 * np.spacing(np.abs(want))
    assert np.all(np.abs(got.astype(np.float64) - want) <= bound)
    assert np.any(want != 0)


# --- compiled ---------------------------------------------------------------------------------------------------------

# The laws run every kind in programs of its own; these are with what compilers fuse with them.
COMPILED = {
    "float32": ("nf4", "e4m3fn"),
    "bfloat16": ("ternary", "e4m3fn, NaN beyond"),
    "float16": ("e5m2fnuz", "e2m1"),
}


def larger_program(leaves: dict[str, Tensor], v: Tensor, w: Tensor, given: dict[str, QParams]) -> dict[str, Tensor]:
    """The five functions, alone, and before and after other operations. Each leaf reaches one result."""
    room = torch_frontend
    results: dict[str, Tensor] = {}
    for kind, x in leaves.items():
        q, parameters = KINDS[kind], given[kind]
        number = x.detach() if q.format.has_nan else torch.where(x.isnan(), torch.zeros_like(x), x).detach()
        results[kind] = y = room.fake_quantize(q, x, parameters)
        results[f"{kind}, then added to"] = y.detach() + w
        results[f"{kind} of a product"] = room.fake_quantize(q, v * w, parameters)
        results[f"{kind}, codes"] = codes = room.quantize(q, number, parameters)
        results[f"{kind}, codes dequantized, then added to"] = room.dequantize(q, codes, parameters, x.dtype) + w
        results[f"{kind}, gradient at a product"] = room.fake_quantize_vjp(q, v * w, parameters, w).x
    return results


def arguments(dtype: str, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor, dict[str, QParams]]:
    """All numbers of a 16-bit dtype, knife edges of float32, in random order."""
    rng, dt, shape = np.random.default_rng(seed), DTYPES[dtype], (48 if seed == 2 else 40, 2048)
    v, w = (to_torch(a.astype(dt)) for a in rng.standard_normal((2, *shape)))
    scale = np.array([0.1, 2.0**-126, 3e4][seed], np.float32)
    leaves, given = {}, {}
    for kind in COMPILED[dtype]:
        q = KINDS[kind]
        whole = q.replace(granularity=PerTensor())
        x = every_number(dtype) if dt.itemsize == 2 else knife_edge_array(whole, QParams(scale), dt)[0]
        leaves[kind] = to_torch(rng.permutation(np.resize(x, shape).reshape(-1)).reshape(shape)).requires_grad_()
        given[kind] = QParams(to_torch(np.full(qparams_shape(q.granularity, shape), scale, np.float32)))
    return leaves, v, w, given


@pytest.mark.parametrize(
    "dtype", [d if d == "bfloat16" else pytest.param(d, marks=pytest.mark.thorough) for d in COMPILED]
)
def test_compiled_inside_a_larger_program_without_recompiling(dtype: str) -> None:
    """Values and sizes change; the program is compiled once. Gradients, too, are those of eager mode."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    program = torch.compile(larger_program, backend=counter, fullgraph=True, dynamic=True)
    for seed in (0, 1, 2):
        leaves, v, w, given = arguments(dtype, seed)
        expected, got = larger_program(leaves, v, w, given), program(leaves, v, w, given)
        for name, want in expected.items():
            inputs = to_numpy(leaves.get(name.removesuffix(", codes"), v))
            assert_same_bits(want, got[name], call=f"compiled {name}", inputs=inputs)
        g = to_torch(cotangent(to_numpy(v)))
        both = ([r[kind] for kind in leaves] for r in (expected, got))
        grads = (torch.autograd.grad(y, list(leaves.values()), [g] * len(y)) for y in both)
        for kind, want, found in zip(leaves, *grads, strict=True):
            assert_same_bits(want, found, call=f"compiled gradient of {kind}", inputs=to_numpy(leaves[kind]))
    assert counter.frame_count == 1


def test_compiled_code_gives_nan_a_code() -> None:
    """Its own in formats that have it; else that of zero, or of the number that zero becomes."""

    @torch.compile(fullgraph=True)
    def program(x: Tensor) -> list[Tensor]:
        return [torch_frontend.quantize(catalog[name], x, QParams(torch.tensor(0.5))) for name in names]

    names = ("float8_e4m3fn_per_tensor", "float8_e4m3fnuz_per_tensor", "ternary_per_tensor", "binary_per_tensor")
    x = torch.tensor([torch.nan, -0.0, -1.0])
    assert [codes.tolist() for codes in program(x)] == [[0x7F, 0x80, 0xC0], [0x80, 0, 0xC8], [0, 0, -1], [1, 1, -1]]
    for name in names[2:]:
        with pytest.raises(ValueError, match="`x` must not hold NaN"):
            torch_frontend.quantize(catalog[name], x, QParams(torch.tensor(0.5)))
