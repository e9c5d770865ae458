"""Programs of torch.export: the bits of the module, and a backward pass that raises instead of one that is wrong."""

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from samebits.core import QParams, Quantizer, ScaleRule, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import fake_quantize, quantize
from samebits.torch_frontend.learned_rounding import rounding_share
from samebits.torch_frontend.nn import QuantConv2d, QuantIdentity, QuantLinear, TensorQuantizer
from samebits.torch_frontend.straight_through import abs_binary_sign_grad, round_ste, tensor_clamp

INT8 = catalog["int8_per_tensor"]


class Applied(nn.Module):
    """A function of x and of a parameter, a scale or a bound."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.parameter, self.function = nn.Parameter(torch.tensor(0.03)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.parameter)


def settled(q: Quantizer) -> nn.Module:
    """A quantizer of activations that has seen a tensor, in evaluation."""
    held = TensorQuantizer(q)
    held(numbers(4, 12))
    return held.eval()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, ties of the scale 0.03 among them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw)
    ties = (torch.randint(-150, 150, shape, generator=draw) + 0.5) * torch.tensor(0.03)
    return torch.where(torch.rand(shape, generator=draw) < 0.5, x, ties)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: QuantLinear(12, 5, input_quant="uint8_affine_per_tensor"),
    "weights alone": lambda: QuantLinear(12, 5),
    "activations": lambda: QuantIdentity(),
    "float8": lambda: QuantIdentity("float8_e4m3fn_per_tensor"),
    "running": lambda: settled(INT8.replace(scale=ScaleRule(source="running_statistic"))),
    "learned": lambda: settled(catalog["int8_learned_per_tensor"]),
    "sigma": lambda: settled(INT8.replace(scale=ScaleRule(statistic="mean_sigma", learned_sigma=True))),
    "fake_quantize": lambda: Applied(lambda x, s: fake_quantize(INT8, x, QParams(s))),
    "stochastic": lambda: Applied(
        lambda x, s: fake_quantize(INT8.replace(rounding="stochastic"), x, QParams(s, seed=7))
    ),
    "round_ste": lambda: Applied(lambda x, s: round_ste(x / s)),
    "tensor_clamp": lambda: Applied(lambda x, s: tensor_clamp(x, -s, s)),
    "abs": lambda: Applied(lambda x, _: abs_binary_sign_grad(x)),
    "share": lambda: Applied(lambda x, _: rounding_share(INT8.learned_rounding, x)),
}


def in_a_file(program: ExportedProgram) -> ExportedProgram:
    """The same, stored and loaded."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


WAYS: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], ExportedProgram]] = {
    "plain": lambda m, x: export(m, x),
    "strict": lambda m, x: export(m, x, strict=True),
    "any number of rows": lambda m, x: export(m, x, dynamic_shapes=({0: Dim("rows", max=1000)},)),
    "stored": lambda m, x: in_a_file(export(m, x)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODULES)
def test_a_program_has_the_bits_of_the_module_and_no_gradients(name: str, way: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    if (name, way) == (
        "sigma",
        "any number of rows",
    ):  # sums in one fixed order need to know how many numbers there are
        with pytest.raises(Exception, match="marked rows as dynamic but your code specialized it"):
            WAYS[way](module, (numbers(4, 12),))
        return
    program = WAYS[way](module, (numbers(4, 12),)).module()
    x = numbers(9 if "rows" in way else 4, 12, seed=1) * 3  # another range than that of the example
    assert_same_bits(module(x), program(x))
    with pytest.raises(RuntimeError, match=r"train the module that was exported"):
        program(x.requires_grad_()).sum().backward()


@pytest.mark.parametrize("name", MODULES)
def test_what_is_exported_for_inference_needs_no_operator_of_ours(name: str) -> None:
    torch.manual_seed(0)
    module, x = MODULES[name](), numbers(4, 12, seed=1) * 3
    given = (numbers(4, 12),)
    with torch.no_grad():
        without = export(module, given)
    for program in (without, export(module, given).run_decompositions()):
        assert not [node for node in program.graph.nodes if "samebits" in str(node.target)]
        assert_same_bits(module(x), program.module()(x))


def test_a_convolution_and_codes() -> None:
    torch.manual_seed(0)
    conv = QuantConv2d(2, 3, 2, input_quant="uint8_affine_per_tensor")
    image = numbers(2, 2, 4, 3)
    program = export(conv, (image,)).module()
    assert_same_bits(conv(image * 3), program(image * 3))
    with pytest.raises(RuntimeError, match=r"train the module that was exported"):
        program(image).sum().backward()
    codes = Applied(lambda x, s: quantize(INT8, x, QParams(s.detach())))
    assert_same_bits(codes(image * 3), export(codes, (image,)).module()(image * 3))
