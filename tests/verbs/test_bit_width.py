"""Bit widths as numbers of a program: the five functions and their gradients in all rooms, and layers that learn one.

By definition a quantizer at width b is the quantizer whose format has b bits, but for the dtype of its codes.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch._dynamo.testing
from flax import nnx
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import IntegerFormat, PerGroup, QParams, Quantizer, catalog
from samebits.core import bit_width as core_width
from samebits.core.formats import FLOAT8_E4M3FN
from samebits.jax_backend import bit_width as jax_width
from samebits.jax_backend import interop
from samebits.jax_backend import nn as flax_nn
from samebits.jax_backend.tensor_quantizer import TensorQuantizer as JaxTensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.torch_frontend import bit_width as torch_width
from samebits.torch_frontend import nn as torch_nn
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

from ..exact import DTYPES

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN is meant

Array = NDArray[Any]
WIDTHS = np.array([2, 2.5, 3, 3.5, 5.49, 7, 8], np.float32)
WHOLE = (2, 2, 3, 4, 5, 7, 8)  # ties to even
QUANTIZERS = {
    "signed": catalog["int8_per_tensor"],
    "narrow": Quantizer(format=IntegerFormat(8, narrow=True), gradient="learned_scale"),
    "unsigned": Quantizer(format=IntegerFormat(8, signed=False), gradient="pass_through"),
    "affine": Quantizer(format=IntegerFormat(8), zero_point="min_max", gradient="learned_scale"),
    "groups": catalog["int8_per_tensor"].replace(granularity=PerGroup(4), gradient="learned_scale"),
}
each = pytest.mark.parametrize("name", QUANTIZERS)


def case(name: str, dtype: str = "float32") -> tuple[Quantizer, Array, QParams, Array]:
    """A quantizer, special values, ties and data with codes on both sides of every range; parameters; a cotangent."""
    q, random = QUANTIZERS[name], np.random.default_rng(0)
    x = (random.standard_normal((4, 16)) * 30).astype(np.float32)
    x[0] = [np.nan, np.inf, -np.inf, -0.0, 0.0, 0.25, 0.75, 1.75, -2.0, -2.25, 3.75, 63.75, -64, -64.5, 2.0**-149, 1e30]
    shape = (4, 4) if name == "groups" else ()
    zero = np.full(shape, 1, np.int32) if q.affine else None
    g = random.standard_normal(x.shape).astype(np.float32)
    g[0, :3] = [1, -0.0, 2]
    return q, x.astype(DTYPES[dtype]), QParams(np.full(shape, 0.5, np.float32), zero), g.astype(DTYPES[dtype])


def at(qparams: QParams, convert: Any, width: Any) -> QParams:
    return QParams(*(None if p is None else convert(p) for p in qparams[:2]), width)


@each
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_are_those_of_a_format_of_that_width(name: str, dtype: str) -> None:
    """Numbers at hand, traced by torch.func, op by op in JAX and jitted: one program for all widths."""
    q, x, qparams, _ = case(name, dtype)
    finite = np.nan_to_num(x.astype(np.float32), nan=0).astype(x.dtype)
    t, mine = to_torch(x), at(qparams, to_torch, None)
    run = jax.jit(jax_backend.fake_quantize, static_argnums=0)
    code = jax.jit(jax_backend.quantize, static_argnums=0)
    traced = torch.func.vmap(lambda b: torch_frontend.fake_quantize(q, t, mine._replace(bit_width=b)))(
        torch.from_numpy(WIDTHS)
    )
    codes = torch.func.vmap(lambda b: torch_frontend.quantize(q, to_torch(finite), mine._replace(bit_width=b)))(
        torch.from_numpy(WIDTHS)
    )
    for n, (width, whole) in enumerate(zip(WIDTHS, WHOLE, strict=True)):
        narrow = q.replace(bits=whole)
        want, wanted_codes = core.fake_quantize(narrow, x, qparams), core.quantize(narrow, finite, qparams)
        wanted_codes = wanted_codes.astype(q.format.storage)
        for given in (np.asarray(width), np.asarray(whole, np.int32)):
            here = qparams._replace(bit_width=given)
            assert_same_bits(want, core.fake_quantize(q, x, here))
            assert_same_bits(wanted_codes, core.quantize(q, finite, here))
            tensor, array = torch.from_numpy(given.copy()), jnp.asarray(given)
            assert_same_bits(want, torch_frontend.fake_quantize(q, t, at(qparams, to_torch, tensor)))
            assert_same_bits(wanted_codes, torch_frontend.quantize(q, to_torch(finite), at(qparams, to_torch, tensor)))
            assert_same_bits(want, run(q, to_jax(x), at(qparams, to_jax, array)))
            assert_same_bits(wanted_codes, code(q, to_jax(finite), at(qparams, to_jax, array)))
        back = core.dequantize(q, wanted_codes, here, x.dtype)
        assert_same_bits(
            back, torch_frontend.dequantize(q, to_torch(wanted_codes), at(qparams, to_torch, tensor), t.dtype)
        )
        assert_same_bits(back, jax_backend.dequantize(q, to_jax(wanted_codes), at(qparams, to_jax, array), x.dtype))
        assert_same_bits(want, traced[n])
        assert_same_bits(wanted_codes, codes[n])
    with jax.disable_jit():
        assert_same_bits(want, jax_backend.fake_quantize(q, to_jax(x), at(qparams, to_jax, jnp.asarray(width))))


def gradients(q: Quantizer, x: Array, qparams: QParams, width: float, g: Array) -> Iterator[Any]:
    """In torch by autograd, at hand and traced; in JAX jitted."""
    b = torch.tensor(width)

    def loss(x: Any, scale: Any, zero: Any, b: Any) -> Any:
        return (torch_frontend.fake_quantize(q, x, QParams(scale, zero, b)).float() * to_torch(g).float()).sum()

    zero = None if qparams.zero_point is None else to_torch(qparams.zero_point).float()
    leaves = [to_torch(x), to_torch(qparams.scale), zero, b]
    wanted = tuple(n for n, leaf in enumerate(leaves) if leaf is not None)
    held = [None if leaf is None else leaf.clone().requires_grad_() for leaf in leaves]
    loss(*held).backward()
    yield [leaf.grad for leaf in held if leaf is not None]
    yield torch.func.grad(loss, argnums=wanted)(*leaves)
    vjp = jax.jit(jax_backend.fake_quantize_vjp, static_argnums=0)
    yield [d for d in vjp(q, to_jax(x), at(qparams, to_jax, jnp.float32(width)), to_jax(g)) if d is not None]


@each
@pytest.mark.parametrize("width", [2.5, 4.0, 8.0])
def test_gradients_follow_the_formula(name: str, width: float) -> None:
    """x bit for bit; sums within the bound of float32 sums by rows: 3 rows of 64 at most, and one product."""
    q, x, qparams, g = case(name)
    with np.errstate(all="ignore"):
        x = np.where(np.isfinite(x), x, np.float32(3))
    whole, here = round(width), qparams._replace(bit_width=np.float32(width))
    want = core.fake_quantize_vjp(q, x, here, g)
    plain = core.fake_quantize_vjp(q.replace(bits=whole), x, qparams, g)
    for a, b in zip(want[:3], plain[:3], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_same_bits(a, b)
    format = q.replace(bits=whole).format
    assert isinstance(format, IntegerFormat)
    r = np.rint(x.astype(np.float64) / 0.5) + (0 if qparams.zero_point is None else 1)
    slope = 2.0 ** (whole - format.signed) * np.log(2)
    by_hand = (
        0.5
        * slope
        * ((g * (r > format.hi)).sum(dtype=np.float64) - format.signed * (g * (r < format.lo)).sum(dtype=np.float64))
    )
    size = 0.5 * slope * np.abs(g).sum()
    assert abs(float(want.bit_width) - (0 if q.gradient == "pass_through" else by_hand)) <= 2.0**-22 * size
    assert (want.bit_width != 0) == (q.gradient != "pass_through")
    for found in gradients(q, x, qparams, width, g):
        d = [np.asarray(v) for v in found]
        assert_same_bits(want.x, d[0])
        np.testing.assert_allclose(d[1], want.scale, rtol=1e-4, atol=1e-4)
        if qparams.zero_point is not None:
            np.testing.assert_allclose(d[2], want.zero_point, rtol=1e-4, atol=1e-4)
        assert abs(float(d[-1]) - float(want.bit_width)) <= 192 * 2.0**-24 * size


@pytest.mark.parametrize("value", [-100.0, 100.0, 1.0, 3.75])
@each
def test_gradients_of_one_element_have_the_same_bits_everywhere(name: str, value: float) -> None:
    """No sum, so nothing may differ."""
    q, _, qparams, _ = case(name)
    q = q.replace(granularity=core.PerTensor())
    qparams = QParams(np.float32(0.3), None if qparams.zero_point is None else np.int32(1))
    x, g = np.full((1,), value, np.float32), np.full((1,), 0.7, np.float32)
    for width in (2.0, 3.5, 8.0):
        want = core.fake_quantize_vjp(q, x, qparams._replace(bit_width=np.float32(width)), g)
        for found in gradients(q, x, qparams, width, g):
            for a, b in zip([d for d in want if d is not None], found, strict=True):
                assert_same_bits(a, b)


def test_ranges_and_slopes_are_the_same_in_every_room() -> None:
    for signed, narrow in ((True, False), (True, True), (False, False), (False, True)):
        q = Quantizer(format=IntegerFormat(16, signed, narrow))
        for bits in range(2 if signed or narrow else 1, 17):
            format = IntegerFormat(bits, signed, narrow)
            for width in (np.asarray(bits, np.float32), np.asarray(bits, np.int32)):
                assert int(core_width.whole_width(width)) == bits
                for f in ("code_range", "range_slopes"):
                    want = getattr(core_width, f)(q, width)
                    mine = getattr(torch_width, f)(q, torch.from_numpy(width.copy()))
                    ours = getattr(jax_width, f)(q, jnp.asarray(width))
                    for w, a, b in zip(want, mine, ours, strict=True):
                        assert float(w) == float(a) == float(b)
                    if f == "code_range":
                        assert (int(want[0]), int(want[1])) == (format.lo, format.hi)


def test_compiled_code_takes_any_width_without_compiling_anew() -> None:
    torch._dynamo.reset()
    q, x, qparams, g = case("affine")
    scale, zero = to_torch(qparams.scale), to_torch(qparams.zero_point).float()

    def run(x: Any, b: Any) -> Any:
        return torch_frontend.fake_quantize(q, x, QParams(scale, zero, b))

    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    program = torch.compile(run, backend=counter, fullgraph=True)
    for width in (8.0, 2.5, 5.0):
        leaf, b = to_torch(x).requires_grad_(), torch.tensor(width, requires_grad=True)
        y = program(leaf, b)
        here = qparams._replace(bit_width=np.float32(width))
        assert_same_bits(core.fake_quantize(q, x, here), y.detach())
        y.backward(to_torch(g))
        want = core.fake_quantize_vjp(q, x, here, g)
        assert_same_bits(want.x, leaf.grad)
    assert counter.frame_count == 1


# --- layers -----------------------------------------------------------------------------------------------------------

LEARNS = catalog["uint8_affine_per_tensor"].replace(
    source="learned", gradient="learned_scale", learned_bits=6.0, scale_value=0.05, zero_point_value=7
)


def test_layers_learn_a_width_in_both_frameworks() -> None:
    first, second = TensorQuantizer(LEARNS), JaxTensorQuantizer(LEARNS)
    x = (np.random.default_rng(0).standard_normal((8, 4)) * 3).astype(np.float32)
    widths = []
    for width in (6.0, 5.4, 2.5, 0.3, 9.0):
        with torch.no_grad():
            first.bit_width.fill_(width)  # type: ignore[union-attr]
        interop.load_state_dict(second, {k: v.numpy() for k, v in first.state_dict().items()})
        used = float(np.clip(np.rint(np.float32(width)), 1, 8))
        zero = np.clip(7, 0, 2**used - 1).astype(np.int32)
        want = core.fake_quantize(LEARNS, x, QParams(np.float32(0.05), zero, np.float32(used)))
        first.zero_grad()
        y = first(to_torch(x))
        assert_same_bits(want, y.detach())
        assert_same_bits(want, second(to_jax(x)))
        y.sum().backward()
        (_, grads) = nnx.value_and_grad(lambda m: m(to_jax(x)).sum())(second)
        slope = float(first.bit_width.grad)  # type: ignore[union-attr]
        assert float(grads["bit_width"][...]) == pytest.approx(slope, rel=1e-5)
        assert slope != 0 or used == 8
        widths.append(used)
    assert widths == [6, 5, 2, 1, 8]
    assert isinstance(first.bit_width, torch.nn.Parameter)
    assert isinstance(second.bit_width, nnx.Param)


def test_linear_layers_contract_values_where_a_width_is_learned() -> None:
    q_x, x = LEARNS, np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    layer = torch_nn.QuantLinear(4, 3, weight_quant="int8_per_channel", input_quant=q_x)
    ours = flax_nn.QuantLinear(4, 3, weight_quant="int8_per_channel", input_quant=q_x, rngs=nnx.Rngs(0))
    interop.load_state_dict(ours, {k: v.detach().numpy() for k, v in layer.state_dict().items()})
    x_hat = core.fake_quantize(q_x, x, QParams(np.float32(0.05), np.int32(7), np.float32(6)))
    w_hat = core.fake_quantize(catalog["int8_per_channel"], layer.weight.detach().numpy())
    want = x_hat @ w_hat.T + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(to_torch(x)).detach(), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(to_jax(x)), want, rtol=1e-5, atol=1e-5)


# --- refused ----------------------------------------------------------------------------------------------------------

BAD: list[tuple[Any, type[Exception], str]] = [
    (np.float32(1.4), ValueError, r"`qparams.bit_width` must be in \[2, 8\] \(int8\), got 1\.4"),
    (np.float32(8.6), ValueError, r"`qparams.bit_width` must be in \[2, 8\]"),
    (np.float32("nan"), ValueError, r"must be in \[2, 8\] \(int8\), got nan"),
    (np.ones(1, np.float32), ValueError, r"`qparams.bit_width` must be 0-d, got shape \(1,\)"),
    (np.float16(4), TypeError, "`qparams.bit_width` must be an integer or have dtype float32, got float16"),
]


@pytest.mark.parametrize(("width", "error", "message"), BAD)
def test_widths_that_are_none(width: Any, error: type[Exception], message: str) -> None:
    q, x = catalog["int8_per_tensor"], np.ones(3, np.float32)
    for room, convert in (
        (core, np.asarray),
        (torch_frontend, lambda a: torch.from_numpy(np.array(a))),
        (jax_backend, jnp.asarray),
    ):
        qparams = QParams(convert(np.float32(1)), None, convert(np.asarray(width)))
        with pytest.raises(error, match=message):
            room.fake_quantize(q, convert(x), qparams)


def test_what_has_no_width_of_its_own() -> None:
    for room, convert in (
        (core, np.asarray),
        (torch_frontend, lambda a: torch.from_numpy(np.array(a))),
        (jax_backend, jnp.asarray),
    ):
        x, one = convert(np.ones((2, 2), np.float32)), convert(np.float32(1))
        with pytest.raises(TypeError, match=r"`qparams.bit_width` must be None for .*: only integers have one"):
            room.fake_quantize(Quantizer(format=FLOAT8_E4M3FN), x, QParams(one, None, convert(np.float32(4))))
        q = catalog["int8_per_tensor"]
        with pytest.raises(ValueError, match=r"`x_qparams.bit_width` must be None in a layer"):
            room.linear(q, x, QParams(one, None, convert(np.float32(4))), q, x, QParams(one))
        affine = catalog["uint8_affine_per_tensor"]
        with pytest.raises(ValueError, match=r"`qparams.zero_point` must hold integers in \[0, 15\], got 16"):
            room.fake_quantize(affine, x, QParams(one, convert(np.int32(16)), convert(np.float32(4))))
    for bits in (0.5, 9, float("nan")):
        with pytest.raises(ValueError, match=r"`learned_bits` must be None, or in \[1, bits\] of an integer format"):
            catalog["int8_per_tensor"].replace(source="learned", learned_bits=bits)
    with pytest.raises(ValueError, match="`delay` must be 0 and `learned_bits` None where rounding is learned"):
        catalog["int8_per_tensor"].replace(rounding="learned", delay=1)
    with pytest.raises(ValueError, match="`learned_bits` must be None for the gradient 'clipped_quotient', got 4"):
        catalog["int8_per_tensor"].replace(source="learned", learned_bits=4, gradient="clipped_quotient")
    with pytest.raises(ValueError, match="`learned_bits` must be None for 'statistic' scales, got 4"):
        catalog["int8_per_tensor"].replace(learned_bits=4)
