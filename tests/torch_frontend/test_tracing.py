"""Programs that other tracers make: right for other values than those traced with, or refused by name."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from samebits.core import QParams, ScaleRule, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import choose_qparams, fake_quantize, quantize
from samebits.torch_frontend.nn import QuantLinear, TensorQuantizer
from samebits.torch_frontend.straight_through import round_ste

INT8 = catalog["int8_per_tensor"]
AFFINE = catalog["uint8_affine_per_tensor"]


def layer() -> torch.nn.Module:
    """A linear layer over codes."""
    torch.manual_seed(0)
    return QuantLinear(12, 5, input_quant="uint8_affine_per_tensor")


LAYER = layer()
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "fake_quantize": lambda x: fake_quantize(INT8, x),
    "quantize": lambda x: quantize(AFFINE, x, choose_qparams(AFFINE, x)),
    "layer": LAYER,
    "round_ste": lambda x: round_ste(x),
    "stochastic": lambda x: fake_quantize(
        INT8.replace(rounding="stochastic"), x, QParams(x.abs().amax() / 127, seed=3)
    ),
}


def numbers(size: float) -> Tensor:
    """The same normal numbers, of another size."""
    return torch.randn(4, 12, generator=torch.Generator().manual_seed(1)) * size


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_keeps_scales_as_values(name: str, mode: str) -> None:
    program = make_fx(FUNCTIONS[name], tracing_mode=mode, _allow_non_fake_inputs=True)(numbers(1.0))
    assert_same_bits(FUNCTIONS[name](numbers(3.0)), program(numbers(3.0)))


def test_make_fx_of_gradients_keeps_scales_as_values() -> None:
    for transform in (lambda loss: torch.func.grad(loss, (0, 1)), lambda loss: torch.func.jacfwd(loss, (0, 1))):
        gradients = transform(lambda x, s: (fake_quantize(INT8, x, QParams(s)) * x.detach().sin()).sum())
        program = make_fx(gradients)(numbers(1.0), torch.tensor(0.03))
        given = numbers(3.0), torch.tensor(0.01)
        for one, other in zip(gradients(*given), program(*given), strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_symbolic_trace_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"torch.fx.symbolic_trace knows no shapes .* or use torch.export"):
        torch.fx.symbolic_trace(FUNCTIONS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fake_tensors_give_shapes_and_dtypes(name: str) -> None:
    expected = FUNCTIONS[name](numbers(1.0))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    outside = FUNCTIONS[name](mode.from_tensor(numbers(1.0)))
    with mode:
        inside = FUNCTIONS[name](torch.empty(4, 12))
    for fake in (inside, outside):
        assert isinstance(fake, FakeTensor)
        assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("source", ["running_statistic", "learned", "statistic_then_learned"])
def test_fake_tensors_set_no_state(source: str) -> None:
    q = INT8.replace(scale=ScaleRule(source=source))
    held, fresh = TensorQuantizer(q), TensorQuantizer(q)
    with FakeTensorMode(allow_non_fake_inputs=True):
        held(torch.empty(4, 12))
    for size in (1.0, 2.0):
        assert_same_bits(fresh(numbers(size)).detach(), held(numbers(size)).detach())
