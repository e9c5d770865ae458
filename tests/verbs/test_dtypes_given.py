"""Parameters in the dtypes that users bring: scales of 16 bits, zero points of any integer dtype; in every mode.

A parameter is widened exactly, so results are those of the widened one. Gradients have the dtype of what was given.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, QuantizerGradients, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.proofs.modes.execution import MODES

Array = NDArray[Any]
SYMMETRIC, AFFINE = catalog["int8_per_channel"], catalog["uint8_affine_per_channel"]
FLOAT_ZEROS = AFFINE.replace(zero_point_domain="float")
HALVES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
each_half = pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)

DATA = np.array([[0.1, -0.31, 2.0, 0.0], [-3.0, 1e-40, 7.7, np.nan], [1e5, -1e5, 2e5, 3e5]], np.float32)
G = np.array([[1.0, -2.0, 3.0, 4.0], [5.0, 1.0, 1.0, 2.0], [3.0, -7.0, 2.0, 40.0]], np.float32)
ZEROS = np.array([[3], [100]], np.int32)
SCALES = np.array([[0.03], [0.7], [1.1]], np.float32)
FIRST = (slice(2, 3), slice(None))  # whose codes are all clamped: sums of integers, exact in any order


def five(room: Any, q: core.Quantizer, x: Any, qparams: QParams, g: Any) -> tuple[Any, ...]:
    """What the functions give."""
    value, d = room.fake_quantize(q, x, qparams), room.fake_quantize_vjp(q, x, qparams, g)
    codes = room.quantize(q, x, qparams)
    return value, codes, room.dequantize(q, codes, qparams), d.x, d.scale, d.zero_point


def tools(mode: str) -> tuple[Any, Callable[[Array], Any], Callable[[Any], Any]]:
    """The room of a mode, what makes its arrays, and what makes a program of that mode."""
    given: Any = {"torch": to_torch, "jax": to_jax}.get(mode.split()[0], np.asarray)
    if mode == "torch compiled":
        torch._dynamo.reset()
        return torch_frontend, given, torch.compile(fullgraph=True)
    room: Any = {"numpy": core, "torch": torch_frontend, "jax": jax_backend}[mode.split()[0]]
    return room, given, jax.jit if mode == "jax jit" else lambda program: program


def run(mode: str, cases: list[tuple[Any, ...]]) -> list[Any]:
    """`five` of every case ``(q, x, scale, zero_point, g)``, in one program of a mode of `MODES`."""
    room, into, wrapped = tools(mode)
    descriptions = [case[0] for case in cases]

    def program(*arrays: Any) -> list[Any]:
        rows = zip(descriptions, *(arrays[i::4] for i in range(4)), strict=True)
        return [five(room, q, x, QParams(scale, zero), g) for q, x, scale, zero, g in rows]

    with jax.disable_jit(mode == "jax eager"):
        results = wrapped(program)(*(None if a is None else into(a) for case in cases for a in case[1:]))
    return [[None if r is None else to_numpy(r) for r in result] for result in results]


def finite(rows: Array) -> Array:
    """Those that hold no NaN."""
    return rows[[0, 2]]


@pytest.mark.parametrize("mode", MODES)
def test_scales_of_16_bits_are_the_float32_scales_of_the_same_value(mode: str) -> None:
    kinds = [(q, zero, half) for q, zero in ((SYMMETRIC, None), (AFFINE, ZEROS)) for half in HALVES.values()]
    x, g, scale = finite(DATA), finite(G), finite(SCALES)
    found = run(mode, [(q, x, scale.astype(half), zero, g) for q, zero, half in kinds])
    for (q, zero, half), got in zip(kinds, found, strict=True):
        (expected,) = run("numpy", [(q, x, scale.astype(half).astype(np.float32), zero, g)])
        assert_same_bits(tuple(expected[:4]), tuple(got[:4]), call=f"{mode} {q.format} {half}")
        assert got[2].dtype == np.float32  # dequantize: that of the scale, widened
        assert_same_bits(expected[4].astype(half)[1:], got[4][1:], call=f"{mode} d scale")
        assert got[5] is None or got[5].dtype == np.float32


@each_half
def test_gradients_of_autodiff_have_the_dtype_of_the_scale(half: np.dtype[Any]) -> None:
    x, g, scale = DATA[FIRST], G[FIRST], SCALES[2:].astype(half)
    want = core.fake_quantize_vjp(SYMMETRIC, x, QParams(scale), g)
    wide = core.fake_quantize_vjp(SYMMETRIC, x, QParams(scale.astype(np.float32)), g)
    assert want.scale.dtype == half
    assert wide.scale.astype(half) != wide.scale  # the rounding counts: 6112 has too many digits for 8 bits
    assert_same_bits(wide.scale.astype(half), want.scale)

    def in_torch(x: Any, s: Any) -> Any:
        return torch_frontend.fake_quantize(SYMMETRIC, x, QParams(s))

    for call in (in_torch, torch.compile(in_torch, fullgraph=True)):
        leaves = to_torch(x).requires_grad_(), to_torch(scale).requires_grad_()
        d = torch.autograd.grad(call(*leaves), leaves, to_torch(g))
        assert_same_bits((want.x, want.scale), (to_numpy(d[0]), to_numpy(d[1])))
    with torch.no_grad():
        assert_same_bits(
            to_numpy(in_torch(to_torch(x), to_torch(scale))), core.fake_quantize(SYMMETRIC, x, QParams(scale))
        )

    def in_jax(x: Any, s: Any) -> Any:
        return jax_backend.fake_quantize(SYMMETRIC, x, QParams(s))

    for wrapped in (in_jax, jax.jit(in_jax)):
        d = jax.vjp(wrapped, to_jax(x), to_jax(scale))[1](to_jax(g))
        assert_same_bits((want.x, want.scale), (np.asarray(d[0]), np.asarray(d[1])))


@pytest.mark.parametrize("mode", ["torch compiled", "jax jit"])
@each_half
def test_a_scale_that_the_same_program_rounds_is_rounded(mode: str, half: np.dtype[Any]) -> None:
    """Compilers drop a narrowing that is widened again."""
    q, x, s = catalog["int8_per_tensor"], np.linspace(-3, 3, 97, dtype=np.float32), np.float32(0.0301)
    want = core.fake_quantize(q, x, QParams(s.astype(half)))
    assert not np.array_equal(want, core.fake_quantize(q, x, QParams(s)))
    if mode == "jax jit":
        got = jax.jit(lambda x, s: jax_backend.fake_quantize(q, x, QParams((s * 1.0).astype(half))))(x, s)
    else:
        kind = getattr(torch, half.name)
        got = torch.compile(
            lambda x, s: torch_frontend.fake_quantize(q, x, QParams((s * 1.0).to(kind))), fullgraph=True
        )(to_torch(x), torch.tensor(s))
    assert_same_bits(want, to_numpy(got), inputs=x)


@pytest.mark.parametrize("mode", MODES)
def test_zero_points_of_any_integer_dtype(mode: str) -> None:
    x, g, scale = finite(DATA), finite(G), finite(SCALES)
    (expected,) = run("numpy", [(AFFINE, x, scale, ZEROS, g)])
    dtypes = [name for name in INTEGERS if not (name.endswith("64") and mode.startswith("jax"))]  # see the next test
    dtypes = ["uint8", "int16", "uint64"] if mode == "torch compiled" else dtypes  # compilation takes seconds
    found = run(mode, [(AFFINE, x, scale, ZEROS.astype(name), g) for name in dtypes])
    for name, got in zip(dtypes, found, strict=True):
        assert_same_bits(tuple(expected[:4]), tuple(got[:4]), call=f"{mode} {name}")


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("x64", [False, True])
def test_zero_points_of_64_bits_in_jax(dtype: str, x64: bool) -> None:
    """What has bits beyond 32 is refused, with and without 64-bit types: it is not cut to what fits."""
    x, one, q = DATA[0], np.float32(0.1), catalog["uint8_affine_per_tensor"]
    with jax.enable_x64(x64):
        got = jax_backend.fake_quantize(q, x, QParams(one, np.array(7, dtype)))
        assert_same_bits(core.fake_quantize(q, x, QParams(one, np.array(7, np.int32))), np.asarray(got))
        with pytest.raises(ValueError, match="zero_point` must hold integers"):
            jax_backend.fake_quantize(q, x, QParams(one, np.array(2**32 + 7, dtype)))


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_zero_points_of_4_bits(dtype: str) -> None:
    q = catalog["uint4_affine_per_group32"].replace(granularity=core.PerTensor())
    zero = np.array(5, getattr(ml_dtypes, dtype))
    want = core.fake_quantize(q, DATA[0], QParams(np.float32(0.1), np.int32(5)))
    assert_same_bits(want, core.fake_quantize(q, DATA[0], QParams(np.float32(0.1), zero)))
    for given in (zero, jnp.asarray(5, dtype)):
        assert_same_bits(want, np.asarray(jax_backend.fake_quantize(q, DATA[0], QParams(np.float32(0.1), given))))
    with pytest.raises(ValueError, match=r"must hold integers in \[0, 15\], got -3"):
        core.fake_quantize(q, DATA[0], QParams(np.float32(0.1), np.array(-3, ml_dtypes.int4)))


@pytest.mark.parametrize("mode", MODES)
def test_floating_point_zero_points_of_16_bits(mode: str) -> None:
    """With a float32 scale as with one of their own dtype; their gradient has their dtype."""
    x, g, zero = finite(DATA), finite(G), np.array([[0.3], [-1.7]], np.float32)
    halves = list(HALVES.values())[: 1 if mode == "torch compiled" else 2]  # compilation takes seconds
    kinds = [(half, s) for half in halves for s in (finite(SCALES), finite(SCALES).astype(half))]
    found = run(mode, [(FLOAT_ZEROS, x, scale, zero.astype(half), g) for half, scale in kinds])
    for (half, scale), got in zip(kinds, found, strict=True):
        wide = scale.astype(np.float32), zero.astype(half).astype(np.float32)
        (expected,) = run("numpy", [(FLOAT_ZEROS, x, *wide, g)])
        assert_same_bits(tuple(expected[:4]), tuple(got[:4]), call=mode)
        assert_same_bits(expected[5].astype(half)[1:], got[5][1:], call=f"{mode} d zero point")


@each_half
def test_layers_take_scales_of_16_bits(half: np.dtype[Any]) -> None:
    q, w_q = catalog["uint8_affine_per_tensor"], catalog["int8_per_channel"]
    x, w = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
    s, ws, z = np.float32(0.011).astype(half), np.array([[0.02], [0.03]]).astype(half), np.uint8(90)
    want = core.linear(q, x, QParams(s.astype(np.float32), np.int32(90)), w_q, w, QParams(ws.astype(np.float32)))
    assert_same_bits(want, core.linear(q, x, QParams(s, z), w_q, w, QParams(ws)))
    torch_args = QParams(to_torch(s), torch.tensor(90, dtype=torch.uint8)), QParams(to_torch(ws))
    leaf = to_torch(w).requires_grad_()
    scale = torch_args[1].scale.requires_grad_()
    got = torch_frontend.linear(q, to_torch(x), torch_args[0], w_q, leaf, torch_args[1])
    assert_same_bits(want, to_numpy(got))
    got.sum().backward()
    assert to_numpy(scale.grad).dtype == half
    assert_same_bits(want, np.asarray(jax_backend.linear(q, x, QParams(s, z), w_q, w, QParams(ws))))
    kernel, image = w.reshape(2, 1, 2, 2), x.reshape(1, 1, 3, 4)
    ws = ws.reshape(2, 1, 1, 1)
    want = core.conv(q, image, QParams(s.astype(np.float32), z), w_q, kernel, QParams(ws.astype(np.float32)))
    assert_same_bits(want, np.asarray(jax_backend.conv(q, image, QParams(s, z), w_q, kernel, QParams(ws))))
    assert_same_bits(want, core.conv(q, image, QParams(s, z), w_q, kernel, QParams(ws)))


def test_subnormal_float16_scales_are_normal_float32_scales() -> None:
    s, q = np.float16(2e-7), catalog["int8_per_tensor"]
    want = core.fake_quantize(q, DATA[0], QParams(np.float32(s)))
    assert_same_bits(want, core.fake_quantize(q, DATA[0], QParams(s)))
    assert_same_bits(want, to_numpy(torch_frontend.fake_quantize(q, to_torch(DATA[0]), QParams(to_torch(s)))))
    assert_same_bits(want, np.asarray(jax_backend.fake_quantize(q, DATA[0], QParams(s))))
    assert_same_bits(want, np.asarray(jax.jit(lambda s: jax_backend.fake_quantize(q, DATA[0], QParams(s)))(s)))
    for room, bad in ((core, HALVES["bfloat16"].type(1e-40)), (jax_backend, jnp.asarray(1e-40, jnp.bfloat16))):
        with pytest.raises(ValueError, match="must hold positive normal finite numbers"):
            room.fake_quantize(q, DATA[0], QParams(bad))


def test_a_gradient_of_an_integer_zero_point_is_float32() -> None:
    q, zero = catalog["uint8_affine_per_tensor"], np.array(3, np.int8)
    for half in HALVES.values():
        s = np.array(0.1).astype(half)
        rooms: list[QuantizerGradients] = [
            core.fake_quantize_vjp(q, DATA[0], QParams(s, zero), G[0]),
            torch_frontend.fake_quantize_vjp(
                q, to_torch(DATA[0]), QParams(to_torch(s), to_torch(zero)), to_torch(G[0])
            ),
            jax_backend.fake_quantize_vjp(q, DATA[0], QParams(s, zero), G[0]),
        ]
        assert [to_numpy(d.zero_point).dtype for d in rooms] == [np.float32] * 3


def test_the_largest_number_of_int8_may_be_infinite() -> None:
    """No hole: 127 times the rounded scale is more than the largest float32, in every mode."""
    q, x = catalog["int8_per_tensor"], np.array([np.finfo(np.float32).max, 1.0], np.float32)
    assert core.fake_quantize(q, x).tolist() == [np.inf, 0.0]
    for mode in MODES:
        qparams = core.choose_qparams(q, x)
        assert_same_bits(core.fake_quantize(q, x), run(mode, [(q, x, qparams.scale, None, x)])[0][0], call=mode)
    assert_same_bits(core.fake_quantize(q, x), to_numpy(torch_frontend.fake_quantize(q, to_torch(x))))
    assert_same_bits(core.fake_quantize(q, x), np.asarray(jax_backend.fake_quantize(q, to_jax(x))))
