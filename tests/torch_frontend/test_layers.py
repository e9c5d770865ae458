"""Linear and convolution layers of torch_frontend beside core, as functions, with their gradients."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from samebits import core, torch_frontend
from samebits.core import QParams, Quantizer, catalog
from samebits.core.contraction import contracts_codes
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch
from samebits.torch_frontend import int8

from ..exact import DTYPES

Array = NDArray[Any]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


INPUTS = ("int8_per_tensor", "uint8_per_tensor", "uint8_affine_per_tensor", "int8_affine_per_token", "int16_per_tensor")
WEIGHTS = ("int8_per_channel", "int4_per_channel", "uint8_affine_per_channel", "int16_per_tensor", "int2_per_channel")


def in_torch(qparams: QParams) -> QParams:
    return QParams(*(None if p is None else to_torch(np.array(p)) for p in qparams[:2]))


def operands(names: tuple[str, str], shapes: tuple[Any, Any], dtype: str, special: bool) -> tuple[Any, ...]:
    """Quantizers, arrays, parameters and a bias; with ``special`` NaN, infinities and -0.0 in both arrays."""
    rng, kind = np.random.default_rng(0), DTYPES[dtype]
    q_x, q_w = (catalog[name] for name in names)
    x, w = (rng.standard_normal(shape).astype(kind) for shape in shapes)
    x_qparams, w_qparams = core.choose_qparams(q_x, x), core.choose_qparams(q_w, w)
    if special:
        for array in (x, w):
            flat = array.reshape(-1)
            places = rng.permutation(flat.size)[:4]
            flat[places] = np.array([np.nan, np.inf, -np.inf, -0.0])[: places.size]
        x.reshape(-1)[-1:] = 0.5  # one row at least stays a number
    bias = rng.standard_normal(len(w)).astype(np.asarray(x_qparams.scale).dtype)
    bias[:1] = -0.0
    return q_x, x, x_qparams, q_w, w, w_qparams, bias


def assert_same_layer(name: str, operands: tuple[Any, ...], *geometry: Any, call: str = "") -> None:
    """A layer with and without its bias, against core."""
    q_x, x, x_qparams, q_w, w, w_qparams, bias = operands
    for b in (None, bias):
        with np.errstate(all="ignore"):
            want = getattr(core, name)(q_x, x, x_qparams, q_w, w, w_qparams, b, *geometry)
        parts = to_torch(x), in_torch(x_qparams), to_torch(w), in_torch(w_qparams), None if b is None else to_torch(b)
        t, t_qparams, v, v_qparams, c = parts
        got = getattr(torch_frontend, name)(q_x, t, t_qparams, q_w, v, v_qparams, c, *geometry)
        assert_same_bits(want, got, call=f"{name} {q_x} {q_w} {call}")


# --- values -----------------------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("w_name", WEIGHTS)
@pytest.mark.parametrize("x_name", INPUTS)
def test_linear(x_name: str, w_name: str, dtype: str) -> None:
    for (lead, k, out), special in itertools.product(
        [((7,), 64, 5), ((2, 3), 1500, 4), ((), 33, 4), ((0,), 8, 3), ((3,), 0, 3), ((4,), 1, 3)], (False, True)
    ):
        assert_same_layer(
            "linear", operands((x_name, w_name), ((*lead, k), (out, k)), dtype, special), call=str((lead, k))
        )


@each_dtype
@pytest.mark.parametrize("w_name", WEIGHTS)
@pytest.mark.parametrize("x_name", INPUTS[:3])
def test_conv(x_name: str, w_name: str, dtype: str) -> None:
    cases = [((2, 3, 8, 9), (5, 3, 3, 3), (1, 1), (1, 1)), ((1, 130, 5, 4), (4, 130, 3, 1), (2, 1), (0, 2))]
    for x_shape, w_shape, stride, padding in cases:
        for special in (False, True):
            case = operands((x_name, w_name), (x_shape, w_shape), dtype, special)
            assert_same_layer("conv", case, stride, padding, call=str(w_shape))


def test_long_contractions_are_exact_on_every_way() -> None:
    """Largest codes everywhere: 2**24 is passed, and parts, int8 products and float64 have to agree with integers."""
    for name, k in (("int8_per_tensor", 3000), ("uint8_affine_per_tensor", 3000), ("int16_per_tensor", 700)):
        q = catalog[name]
        x = np.where(np.arange(4 * k).reshape(4, k) % 7 < 6, 1e9, -1e9).astype(np.float32)
        zero = np.array(q.format.lo, np.int32) if q.affine else None
        qparams, w_qparams = QParams(np.array(0.1, np.float32), zero), QParams(np.full((4, 1), 0.1, np.float32))
        q_w = catalog["int8_per_channel"]
        assert_same_layer("linear", (q, x, qparams, q_w, x, w_qparams, np.zeros(4, np.float32)), call=f"k={k}")
        image, kernel = x.reshape(4, k, 1, 1), x.reshape(4, k, 1, 1)
        w_qparams = QParams(np.full((4, 1, 1, 1), 0.1, np.float32))
        assert_same_layer("conv", (q, image, qparams, q_w, kernel, w_qparams, np.zeros(4, np.float32)), call=f"k={k}")


def test_without_int8_products_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(int8.saturates_nowhere(), bool)
    for usable in (True, False):
        monkeypatch.setattr(int8, "saturates_nowhere", lambda usable=usable: usable)
        for names in itertools.product(INPUTS[:4], WEIGHTS[:3]):
            assert_same_layer("linear", operands(names, ((9, 300), (6, 300)), "float32", False), call=str(usable))


def test_scales_that_vary_along_the_contraction_keep_the_bound() -> None:
    names = ("int8_per_tensor", "int4_per_group32")
    q_x, x, x_qparams, q_w, w, w_qparams, bias = operands(names, ((9, 256), (6, 256)), "float32", False)
    x_hat, w_hat = core.fake_quantize(q_x, x, x_qparams), core.fake_quantize(q_w, w, w_qparams)
    sum64 = x_hat.astype(np.float64) @ w_hat.astype(np.float64).T + bias
    parts = [to_torch(a) for a in (x, w, bias)]
    got = torch_frontend.linear(q_x, parts[0], in_torch(x_qparams), q_w, parts[1], in_torch(w_qparams), parts[2])
    bound = torch_frontend.contraction_bound(to_torch(x_hat), to_torch(w_hat), parts[2])
    torch.testing.assert_close(bound, to_torch(core.contraction_bound(x_hat, w_hat, bias)))
    assert np.all(np.abs(to_numpy(got) - sum64) <= to_numpy(bound))


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Tensor, Tensor, QParams], Any]]] = {
    "axes of w": (ValueError, "`w` must have 2 axes", lambda x, w, p: (x, p, w[0])),
    "features": (
        ValueError,
        r"`x` must fit `w` of shape \(4, 8\), got shape \(3, 7\)",
        lambda x, w, p: (x[:, 1:], p, w),
    ),
    "dtypes": (TypeError, "`w` must have the dtype of `x`, float32, got float16", lambda x, w, p: (x, p, w.half())),
    "bias": (ValueError, r"`bias` must have shape \(4,\), got \(3,\)", lambda x, w, p: (x, p, w, torch.zeros(3))),
    "scale": (ValueError, "positive normal finite", lambda x, w, p: (x, QParams(p.scale * 0), w)),
    "NumPy": (TypeError, "`x` must be a torch.Tensor", lambda x, w, p: (x.numpy(), p, w)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_linear_refuses(case: str) -> None:
    error, message, arguments = REFUSED[case]
    q_x, q_w, p = catalog["int8_per_tensor"], catalog["int8_per_channel"], QParams(torch.tensor(0.1))
    x, given, w, *bias = arguments(torch.ones(3, 8), torch.ones(4, 8), p)
    with pytest.raises(error, match=message):
        torch_frontend.linear(q_x, x, given, q_w, w, QParams(torch.full((4, 1), 0.1)), *bias)


# --- gradients --------------------------------------------------------------------------------------------------------


def leaves_of(names: tuple[str, str], shapes: tuple[Any, Any]) -> tuple[Quantizer, Quantizer, list[Tensor | None]]:
    """x, its scale and zero point, w and its own, bias; all that are floating point want a gradient."""
    torch.manual_seed(0)
    q_x, q_w = (catalog[name].replace(gradient="learned_scale") for name in names)
    tensors: list[Tensor | None] = []
    for q, shape in ((q_x, shapes[0]), (q_w, shapes[1])):
        x = torch.randn(shape)
        chosen = torch_frontend.choose_qparams(q, x)
        zero = None if chosen.zero_point is None else chosen.zero_point.float()
        tensors += [x, chosen.scale * 0.8, zero]
    tensors.append(torch.randn(shapes[1][0]))
    return q_x, q_w, [t if t is None else t.requires_grad_() for t in tensors]


@pytest.mark.parametrize(
    "names", [INPUTS[:1] + WEIGHTS[:1], INPUTS[2:3] + WEIGHTS[2:3], ("int8_per_token", "int4_per_group32")]
)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_gradients_are_those_of_dequantized_operands(kind: str, names: tuple[str, str]) -> None:
    shapes = ((2, 3, 64), (10, 64)) if kind == "linear" else ((2, 5, 8, 32), (6, 5, 3, 32))
    if kind == "conv" and "token" in names[0]:
        names = ("int8_per_tensor", names[1])
    q_x, q_w, leaves = leaves_of(names, shapes)
    x, x_scale, x_zero, w, w_scale, w_zero, bias = leaves
    geometry = () if kind == "linear" else ((2, 1), (1, 0))
    got = getattr(torch_frontend, kind)(
        q_x, x, QParams(x_scale, x_zero), q_w, w, QParams(w_scale, w_zero), bias, *geometry
    )
    x_hat = torch_frontend.fake_quantize(q_x, x, QParams(x_scale, x_zero))
    want = getattr(F, {"conv": "conv2d"}.get(kind, kind))(
        x_hat, torch_frontend.fake_quantize(q_w, w, QParams(w_scale, w_zero)), bias, *geometry
    )
    torch.testing.assert_close(got, want)
    wanted = [t for t in leaves if t is not None]
    g = torch.randn(got.shape)
    for d, expected in zip(*(torch.autograd.grad(y, wanted, g) for y in (got, want)), strict=True):
        torch.testing.assert_close(d, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_gradients_of_16_bit_layers_come_in_16_bits() -> None:
    q_x, q_w = catalog["int8_per_tensor"], catalog["int8_per_channel"]
    x, w = torch.randn(4, 32).bfloat16().requires_grad_(), torch.randn(3, 32).bfloat16().requires_grad_()
    x_qparams, w_qparams = torch_frontend.choose_qparams(q_x, x), torch_frontend.choose_qparams(q_w, w)
    bias = torch.randn(3, requires_grad=True)
    y = torch_frontend.linear(q_x, x, x_qparams, q_w, w, w_qparams, bias)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, w.grad.dtype, bias.grad.dtype) == (torch.bfloat16,) * 3 + (torch.float32,)  # type: ignore[union-attr]


def test_layers_under_torch_func() -> None:
    q_x, q_w = catalog["int8_affine_per_token"], catalog["int8_per_channel"]
    xs, w = torch.randn(4, 6, 32), torch.randn(5, 32)
    w_qparams = torch_frontend.choose_qparams(q_w, w)

    def layer(x: Tensor) -> Tensor:
        return torch_frontend.linear(q_x, x, torch_frontend.choose_qparams(q_x, x), q_w, w, w_qparams)

    assert_same_bits(torch.stack([layer(x) for x in xs]), torch.func.vmap(layer)(xs))
    slope = torch.func.grad(lambda x: layer(x).square().sum())
    torch.testing.assert_close(torch.func.vmap(slope)(xs), torch.stack([slope(x) for x in xs]))
    assert_same_bits(xs.new_zeros(5, 32), torch.func.grad(lambda w: layer(xs[0]).sum() + 0 * w.sum())(w) * 0)


# --- modules ----------------------------------------------------------------------------------------------------------


def test_contractions_of_the_tests_are_what_they_say() -> None:
    """The pairs above meet both branches."""
    per_token = [contracts_codes(catalog[a], catalog[b], per_token=True) for a, b in itertools.product(INPUTS, WEIGHTS)]
    assert all(per_token)
    assert not contracts_codes(catalog["int8_per_tensor"], catalog["int4_per_group32"], per_token=True)
