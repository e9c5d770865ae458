"""Forward mode: the derivative along a tangent has the bits of the terms that the reverse mode sums."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from samebits.core import QParams, Quantizer, ScaleRule, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import choose_qparams, fake_quantize, fake_quantize_vjp
from samebits.torch_frontend.learned_rounding import rounding_share, rounding_slope
from samebits.torch_frontend.nn import QuantConv2d, QuantLinear, TensorQuantizer
from samebits.torch_frontend.straight_through import (
    abs_binary_sign_grad,
    abs_binary_sign_grad_vjp,
    round_ste,
    tensor_clamp,
    tensor_clamp_vjp,
)

INT8 = catalog["int8_per_tensor"]
AFFINE = catalog["uint8_affine_per_tensor"]
VARIANTS: dict[str, Quantizer] = {
    **catalog,
    "learned scale": catalog["int8_learned_per_tensor"],
    "pass through": INT8.replace(gradient="pass_through"),
    "learned clip": catalog["uint8_per_tensor"].replace(gradient="learned_clip"),
    "signed": INT8.replace(scale=ScaleRule(statistic="signed_absmax")),
}
SPECIALS = [0.0, -0.0, 1e-45, -1e-40, float("inf"), float("-inf"), float("nan"), 3e38, -3e38]
Function = Callable[..., Tensor]


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def data(dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers beyond every range, and special values."""
    x = numbers(32, 128) * 2
    x[0, : len(SPECIALS)] = torch.tensor(SPECIALS)
    return x.to(dtype)


def dual(function: Function, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """`torch.func.jvp` by `torch.autograd.forward_ad`."""
    with forward_ad.dual_level():
        y, t = forward_ad.unpack_dual(function(*map(forward_ad.make_dual, primals, tangents)))
        return y, torch.zeros_like(y) if t is None else t


WAYS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"func": torch.func.jvp, "dual": dual}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_along_x_it_is_the_gradient_of_x(name: str, dtype: torch.dtype, way: str) -> None:
    q, x, t = VARIANTS[name], data(dtype), numbers(32, 128, seed=1, dtype=dtype)
    qparams = choose_qparams(q, x.nan_to_num(posinf=2, neginf=-2).clamp(-2, 2))
    y, along = WAYS[way](lambda x: fake_quantize(q, x, qparams), (x,), (t,))
    assert_same_bits(fake_quantize(q, x, qparams), y)
    assert_same_bits(fake_quantize_vjp(q, x, qparams, t).x, along)


def unit(x: Tensor, place: tuple[int, ...]) -> Tensor:
    """1 there, 0 elsewhere: a gradient that leaves one term of each sum."""
    g = torch.zeros_like(x)
    g[place] = 1
    return g


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", VARIANTS)
def test_along_a_parameter_it_is_its_slope(name: str, way: str) -> None:
    """Tangents that are powers of two times the slopes of single elements, found by the reverse mode."""
    q, x = VARIANTS[name], numbers(32, 128) * 2
    if "overflow" in name:  # to infinity, where slopes are infinite
        x = x.clamp(-2, 2)
    qparams = choose_qparams(q, x.clamp(-2, 2))
    scale, zero = qparams.scale, qparams.zero_point
    y, along_scale = WAYS[way](lambda s: fake_quantize(q, x, QParams(s, zero)), (scale,), (torch.ones_like(scale),))
    assert_same_bits(fake_quantize(q, x, qparams), y)
    places = [(0, 0), (3, 5), (31, 127), tuple((x.abs() == x.abs().max()).nonzero()[0].tolist())]
    for place in places:
        d = fake_quantize_vjp(q, x, qparams, unit(x, place))
        assert torch.allclose(d.scale.sum(), along_scale[place], rtol=3e-7, atol=0)
    if q.gradient != "learned_scale":  # whose factor multiplies a tangent before, and a sum after
        for place in places:
            assert fake_quantize_vjp(q, x, qparams, unit(x, place)).scale.sum() == along_scale[place]
    if zero is not None:
        given = zero.to(scale.dtype)
        _, along_zero = WAYS[way](lambda z: fake_quantize(q, x, QParams(scale, z)), (given,), (torch.ones_like(given),))
        for place in places:
            assert fake_quantize_vjp(q, x, qparams, unit(x, place)).zero_point.sum() == along_zero[place]


@pytest.mark.parametrize("way", WAYS)
def test_along_width_rounding_and_sigma(way: str) -> None:
    x, scale = numbers(8, 16), torch.tensor(0.03)
    _, along = WAYS[way](
        lambda b: fake_quantize(INT8, x, QParams(scale, bit_width=b)), (torch.tensor(5.0),), (torch.tensor(1.0),)
    )
    d = fake_quantize_vjp(INT8, x, QParams(scale, bit_width=torch.tensor(5.0)), torch.ones_like(x))
    assert torch.allclose(along.double().sum().float(), d.bit_width)
    assert along.count_nonzero() > 10
    soft = INT8.replace(rounding="learned")
    v, t = numbers(8, 16, seed=2), numbers(8, 16, seed=3)
    _, along = WAYS[way](lambda v: fake_quantize(soft, x, QParams(scale, rounding=v)), (v,), (t,))
    assert_same_bits(fake_quantize_vjp(soft, x, QParams(scale, rounding=v), t).rounding, along)
    _, along = WAYS[way](lambda v: rounding_share(soft.learned_rounding, v), (v,), (t,))
    assert_same_bits(t * rounding_slope(soft.learned_rounding, v), along)


@pytest.mark.parametrize("way", WAYS)
def test_straight_through_rules(way: str) -> None:
    x, t = data(), numbers(32, 128, seed=1)
    assert_same_bits(t, WAYS[way](round_ste, (x,), (t,))[1])
    assert_same_bits(abs_binary_sign_grad_vjp(x, t), WAYS[way](abs_binary_sign_grad, (x,), (t,))[1])
    lo, hi = -numbers(32, 128, seed=2).abs(), numbers(32, 128, seed=3)
    parts = tensor_clamp_vjp(x, lo, hi, torch.ones_like(x))
    tangents = [numbers(32, 128, seed=seed) for seed in (4, 5, 6)]
    want = torch.zeros_like(x)
    for part, tangent in zip(parts, tangents, strict=True):
        want = torch.where(part == 1, tangent, want)
    assert_same_bits(want, WAYS[way](tensor_clamp, (x, lo, hi), tuple(tangents))[1])


def test_along_all_at_once_the_terms_are_added_in_order() -> None:
    x, scale, zero = numbers(8, 16) * 3, torch.tensor(0.02), torch.tensor(100.0)
    t = (numbers(8, 16, seed=1), torch.tensor(0.7), torch.tensor(-0.3))

    def function(x: Tensor, s: Tensor, z: Tensor) -> Tensor:
        return fake_quantize(AFFINE, x, QParams(s, z))

    one_by_one = [
        torch.func.jvp(function, (x, scale, zero), tuple(t[k] if k == j else torch.zeros_like(t[k]) for k in range(3)))[
            1
        ]
        for j in range(3)
    ]
    assert_same_bits((one_by_one[0] + one_by_one[1]) + one_by_one[2], torch.func.jvp(function, (x, scale, zero), t)[1])


@pytest.mark.parametrize("q", [INT8, AFFINE, catalog["int8_per_channel"], INT8.replace(rounding="stochastic")], ids=str)
def test_jacobians_of_both_modes(q: Quantizer) -> None:
    x = numbers(2, 6) * 2
    qparams = choose_qparams(q, x.clamp(-2, 2))._replace(seed=3 if q.rounding == "stochastic" else None)

    def function(x: Tensor, s: Tensor) -> Tensor:
        return fake_quantize(q, x, qparams._replace(scale=s))

    forward, reverse = (mode(function, (0, 1))(x, qparams.scale) for mode in (torch.func.jacfwd, torch.func.jacrev))
    assert_same_bits(reverse[0], forward[0])
    assert torch.allclose(reverse[1], forward[1], rtol=1e-6)
    hessians = [
        outer(torch.func.jacrev(lambda x, s: function(x, s).sin().sum(), (0, 1)), (0, 1))(x, qparams.scale)
        for outer in (torch.func.jacfwd, torch.func.jacrev)
    ]
    for one, other in zip(*(sum(h, ()) for h in hessians), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    given = torch.func.hessian(lambda x: function(x, qparams.scale).sin().sum())(x)
    assert_same_bits(hessians[0][0][0], given)


@pytest.mark.parametrize("way", WAYS)
def test_layers(way: str) -> None:
    """Against the transpose: <g, J t> = <J^T g, t>, in float64, where sums of floats are all that differs."""
    torch.manual_seed(0)
    linear = QuantLinear(6, 4, input_quant="uint8_affine_per_tensor", dtype=torch.float64)
    conv = QuantConv2d(2, 3, 2, input_quant="int8_per_tensor", dtype=torch.float64)
    learned = QuantLinear(6, 4, weight_quant="int8_learned_per_tensor", input_quant=AFFINE, dtype=torch.float64)
    floats = QuantLinear(32, 4, weight_quant="int4_per_group32", input_quant="mxint8", dtype=torch.float64)
    for layer, x in (
        (linear, numbers(5, 6)),
        (conv, numbers(2, 2, 4, 3)),
        (learned, numbers(5, 6)),
        (floats, numbers(3, 32)),
    ):
        layer(x.double())
        names, parameters = zip(*((n, p.detach()) for n, p in layer.named_parameters()), strict=True)

        def function(
            x: Tensor, *values: Tensor, layer: torch.nn.Module = layer, names: tuple[str, ...] = names
        ) -> Tensor:
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

        primals = (x.double(), *parameters)
        for chosen in (range(len(primals)), *([k] for k in range(len(primals)))):
            t = tuple(torch.randn_like(p) if k in chosen else torch.zeros_like(p) for k, p in enumerate(primals))
            y, along = WAYS[way](function, primals, t)
            assert_same_bits(layer(x.double()).detach(), y.detach())
            g = torch.randn_like(y)
            back = torch.func.vjp(function, *primals)[1](g)
            want = sum((a.double() * b.double()).sum() for a, b in zip(back, t, strict=True))
            assert torch.allclose((g * along).sum(), want, rtol=1e-5), layer


@pytest.mark.parametrize("way", WAYS)
def test_a_quantizer_with_state(way: str) -> None:
    learned = INT8.replace(scale=ScaleRule(source="learned"))
    for q in (
        learned,
        learned.replace(scale=ScaleRule(source="learned", restriction="log_float")),
        INT8.replace(scale=ScaleRule(statistic="mean_sigma", learned_sigma=True)),
    ):
        held, x = TensorQuantizer(q), numbers(4, 8)
        held(x)
        ((name, parameter),) = held.named_parameters()

        def function(p: Tensor, held: TensorQuantizer = held, name: str = name, x: Tensor = x) -> Tensor:
            return torch.func.functional_call(held, {name: p}, (x,))

        p = parameter.detach()
        y, along = WAYS[way](function, (p,), (torch.ones_like(p),))
        assert_same_bits(held(x).detach(), y)
        slopes = torch.func.jacrev(function)(p)
        assert torch.allclose(slopes.reshape(along.shape), along, rtol=1e-6)
        assert along.count_nonzero()


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_compiled_it_is_right_or_refused(way: str, gradients: bool) -> None:
    x, t, scale = numbers(4, 8), numbers(4, 8, seed=1), torch.tensor(0.03)

    def along(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return WAYS[way](lambda x: fake_quantize(INT8, x, QParams(scale)), (x,), (t,))

    expected = along(x, t)
    with torch.set_grad_enabled(gradients):
        torch._dynamo.reset()
        for one, other in zip(expected, torch.compile(along, backend="aot_eager")(x, t), strict=True):
            assert_same_bits(one, other)
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"torch\.compile around torch\.func"):
            torch.compile(along, backend="aot_eager", fullgraph=True)(x, t)
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: fake_quantize(INT8, x, QParams(scale)), backend="aot_eager")
        for one, other in zip(expected, WAYS[way](compiled, (x,), (t,)), strict=True):
            assert_same_bits(one, other)
