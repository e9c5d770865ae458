"""`quant_inference_mode`: the bits of the model without it, in eager code; what is kept, and when it is made anew."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samebits import core
from samebits.core import QParams, ScaleRule, catalog
from samebits.core.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import QuantTensor, arrays, components, int8, packed, quant
from samebits.torch_frontend import nn as qnn
from samebits.torch_frontend.nn import quant_inference_mode
from samebits.torch_frontend.packed import PackedWeight

RUNNING = catalog["uint8_per_tensor"].replace(source="running_statistic")
LEARNED = catalog["int8_affine_per_tensor"].replace(source="learned")
DELAYED = RUNNING.replace(delay=1)
SHARED = qnn.TensorQuantizer("int8_per_channel", (6, 32))


class Largest(nn.Module):
    """A scale that is no component: of each tensor."""

    def forward(self, x: Tensor, threshold: Tensor) -> Tensor:
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32)).nan_to_num().clamp(-1e3, 1e3)
        return (wide.abs().sum() + 1) / threshold


def linear(**quant: Any) -> Callable[[], nn.Module]:
    return lambda: qnn.QuantLinear(32, 6, **quant)


def conv(*sizes: Any, channels: int = 32, kind: Any = qnn.QuantConv2d, **keywords: Any) -> Callable[[], nn.Module]:
    return lambda: kind(channels, 8, *sizes, **{"input_quant": "uint8_affine_per_tensor", **keywords})


LINEAR: dict[str, Callable[[], nn.Module]] = {
    "weights alone": linear(),
    "dynamic": linear(input_quant="int8_per_tensor"),
    "per token": linear(input_quant="int8_affine_per_token", weight_quant="uint8_affine_per_channel"),
    "static": linear(input_quant=RUNNING, output_quant=LEARNED),
    "delayed": linear(input_quant=DELAYED),
    "learned weight": linear(input_quant=LEARNED, weight_quant=catalog["int4_per_channel"].replace(source="learned")),
    "int16": linear(input_quant="int16_per_tensor", weight_quant="int16_per_tensor"),
    "groups": linear(input_quant="int8_per_token", weight_quant="int4_per_group32"),
    "float8": linear(input_quant="float8_e4m3fn_per_tensor", weight_quant="float8_e4m3fn_per_channel"),
    "binary": linear(input_quant="binary_per_tensor", weight_quant="ternary_per_channel"),
    "stochastic": linear(
        input_quant=catalog["int8_per_tensor"].replace(rounding="stochastic"),
        weight_quant=catalog["int8_per_channel"].replace(rounding="stochastic"),
    ),
    "learned bits": linear(
        input_quant=LEARNED, weight_quant=catalog["int8_per_channel"].replace(source="learned", learned_bits=4.0)
    ),
    "percentile": linear(input_quant=catalog["int8_per_tensor"].replace(scale=ScaleRule(statistic="percentile"))),
    "bias": linear(input_quant=RUNNING, bias_quant="int16_per_tensor"),
    "declared": linear(input_quant=Int8ActPerTensorFloat, weight_quant=Int8WeightPerChannelFloat),
    "components": linear(input_quant=quant.ShiftedUint8ActPerTensorFloat, weight_quant=quant.Int8WeightPerChannelFloat),
    "zero points of each tensor": linear(
        input_quant=quant.ShiftedUint8ActPerTensorFloat.let(zero_point_impl=components.StatsFromParameterZeroPoint)
    ),
    "somebody else's scale": linear(input_quant=quant.Int8ActPerTensorFloat.let(scaling_impl=Largest)),
    "scale and bias": lambda: qnn.QuantScaleBias(32, input_quant="int8_per_tensor"),
    "activations": lambda: nn.Sequential(qnn.QuantIdentity(RUNNING), qnn.QuantReLU("mxfp8_e4m3"), qnn.QuantSigmoid()),
    "shared": lambda: nn.Sequential(
        qnn.QuantLinear(32, 32, weight_quant=SHARED, input_quant="int8_per_tensor"),
        qnn.QuantLinear(32, 6, weight_quant=SHARED, input_quant="int8_per_tensor"),
    ),
}
CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "plain": conv(3),
    "weights alone": conv(3, input_quant=None),
    "strides and margins": conv((3, 2), (2, 1), (1, 2), input_quant=RUNNING),
    "zero points in margins": conv(3, padding=1),
    "same": conv(2, padding="same", input_quant="int8_per_tensor"),
    "one by one": conv(1, weight_quant="uint8_affine_per_channel"),
    "in groups": conv(3, groups=4),
    "dilated": conv(3, dilation=2),
    "few channels": conv(3, channels=3),
    "reflected": conv(3, padding=1, padding_mode="reflect"),
    "floats": conv(
        3,
        padding=1,
        padding_mode="circular",
        input_quant=catalog["int8_per_tensor"].replace(granularity=core.PerAxis(1)),
    ),
    "transposed": conv(3, 2, kind=qnn.QuantConvTranspose2d),
}


def settled(make: Callable[[], nn.Module], x: Tensor) -> nn.Module:
    """A module after two tensors of training, in evaluation."""
    torch.manual_seed(0)
    module = make().to(x.dtype)
    with torch.no_grad():
        module(x), module(x)
    return module.eval()


def spoiled(x: Tensor) -> Tensor:
    """With NaN, infinities and -0.0; of the first row or image a number each."""
    x = x.clone()
    for number in (torch.nan, torch.inf, -torch.inf, -0.0, 1e30):
        place = tuple(torch.randint(1 if k == 0 else 0, n, ()) for k, n in enumerate(x.shape))
        x[place] = number
    return x


def assert_same_in_the_mode(module: nn.Module, *inputs: Tensor, **mode: Any) -> None:
    for x in inputs:
        assert_same(module, x, **mode)


def assert_same(module: nn.Module, x: Tensor, **mode: Any) -> None:
    """The bits of the module, twice, or its error."""
    with torch.no_grad():
        try:
            want = module(x)
        except ValueError as error:
            with quant_inference_mode(module, **mode), pytest.raises(ValueError, match=str(error)[:20]):
                module(x)
            return
        with quant_inference_mode(module, **mode):
            for _ in range(2):
                assert_same_bits(want, module(x))
        assert_same_bits(want, module(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_have_the_bits_of_the_model(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    module = settled(LINEAR[name], x)
    one_axis = () if name in ("scale and bias", "activations") else (x[0], x.reshape(1, 7, 32).expand(2, 7, 32))
    assert_same_in_the_mode(module, x, x * 3, x[:1], x[:, ::2].repeat(1, 2), spoiled(x), x[:0], *one_axis)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_have_the_bits_of_the_model(name: str) -> None:
    x = torch.randn(2, 3 if name == "few channels" else 32, 6, 7, generator=torch.Generator().manual_seed(1))
    module = settled(CONVOLUTIONS[name], x)
    for given in (x, x * 3, x.to(memory_format=torch.channels_last), spoiled(x), x[0], x[:0]):
        assert_same(module, given)


def test_other_numbers_of_dimensions() -> None:
    for n, kind in ((1, qnn.QuantConv1d), (3, qnn.QuantConv3d)):
        x = torch.randn(2, 16, *(5, 4, 6)[:n])
        assert_same(settled(conv(2, channels=16, kind=kind, padding=1, input_quant=RUNNING), x), x)
    x = torch.arange(4)
    assert_same(qnn.QuantEmbedding(5, 3).eval(), x)


class First(nn.Module):
    """What a layer of sequences gives first."""

    def __init__(self, layer: nn.Module, times: int) -> None:
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x: Tensor) -> Any:
        return self.layer(*[x] * self.times)[0]


def test_recurrent_layers_and_attention() -> None:
    held = {"input_quant": RUNNING, "hidden_quant": "int8_per_tensor"}
    layers = {
        "lstm": lambda: First(qnn.QuantLSTM(32, 6, **held), 1),
        "rnn": lambda: First(qnn.QuantRNN(32, 6, num_layers=2, bidirectional=True, **held), 1),
        "attention": lambda: First(qnn.QuantMultiheadAttention(32, 4, input_quant="int8_per_tensor"), 3),
    }
    x = torch.randn(3, 2, 32)
    for make in layers.values():
        module = settled(make, x)
        assert_same_in_the_mode(module, x, x * 3, x[:1])
        with quant_inference_mode(module):
            module(x)
            kept: list[Any] = [getattr(m, "kept", None) for m in module.modules()]
            assert any(held is not None and held.weights for held in kept)


def test_tensors_with_codes_between_layers() -> None:
    x = torch.randn(5, 32)
    first, second = qnn.QuantReLU(RUNNING, return_quant_tensor=True), qnn.QuantLinear(32, 6, return_quant_tensor=True)
    module: Any = settled(lambda: nn.Sequential(first, second), x)
    with torch.no_grad():
        want = module(x)
        with quant_inference_mode(module):
            got = module(x)
    assert type(got) is type(want) is QuantTensor
    assert_same_bits(want.dequantize(), got.dequantize())
    assert_same_bits(want.int(), got.int())


def test_large_arrays_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(70, 32)
    modules = [settled(LINEAR[name], x) for name in ("dynamic", "per token", "static")]
    image = torch.randn(2, 32, 6, 7).to(memory_format=torch.channels_last)
    modules.append(settled(CONVOLUTIONS["strides and margins"], image))
    cut = arrays.pieces
    monkeypatch.setattr(int8, "WHOLE", 256)
    monkeypatch.setattr(int8, "pieces", lambda *tensors: cut(*tensors, size=64, whole=256))
    for module in modules:
        given = image if module is modules[-1] else x
        assert_same_in_the_mode(module, given, spoiled(given))


def test_without_int8_products_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 32)
    module: Any = settled(LINEAR["per token"], x)
    monkeypatch.setattr(int8, "saturates_nowhere", lambda: False)
    with quant_inference_mode(module), torch.no_grad():
        assert module.weight_quant.kept.weights[0].codes is None
    assert_same(module, x)


# --- what is kept -----------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [qnn.QuantLinear(16, 16, input_quant=RUNNING), qnn.QuantReLU(RUNNING), qnn.QuantLinear(16, 4)]
    return settled(lambda: nn.Sequential(*layers), torch.randn(5, 16))


def test_weights_are_quantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    pack = PackedWeight.__init__

    def counted(self: PackedWeight, q_x: Any, q_w: Any, weight: Tensor, qparams: QParams) -> None:
        made.append(weight)
        pack(self, q_x, q_w, weight, qparams)

    monkeypatch.setattr(packed.PackedWeight, "__init__", counted)
    module = network()
    with quant_inference_mode(module):
        for rows in (5, 1, 3):
            module(torch.randn(rows, 16))
        assert [id(w) for w in made] == [id(module[0].weight), id(module[2].weight)]
        assert not module(torch.randn(2, 16)).requires_grad


CHANGES: dict[str, Callable[[Any], object]] = {
    "written to": lambda m: m[0].weight.mul_(2),
    "its data": lambda m: setattr(m[2].weight, "data", m[2].weight.data * 2),
    "another parameter": lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight * 2)),
    "state of activations": lambda m: m[1].act_quant.scale.mul_(0.5),
    "loaded": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "assigned": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}, assign=True),
    "moved": lambda m: m.double().float(),
    "bias": lambda m: m[0].bias.add_(1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("error")
def test_eager_code_sees_changes(change: str) -> None:
    module, x = network(), torch.randn(5, 16)
    with torch.no_grad(), quant_inference_mode(module):
        before = module(x)
        CHANGES[change](module)
        after = module(x)
    with torch.no_grad():
        assert_same_bits(module(x), after)
    assert torch.equal(before, after) == (change == "moved")


def test_the_end_of_the_mode_says_what_changed_unseen() -> None:
    module = network()
    with pytest.warns(UserWarning, match=r"these quantizers .* 2\.weight_quant\."), quant_inference_mode(module):
        module[2].weight.mul_(2)


def test_the_end_of_the_mode_says_nothing_of_what_eager_code_looked_at(recwarn: pytest.WarningsRecorder) -> None:
    module: Any = LINEAR["declared"]()
    module(torch.randn(5, 32))
    module.eval()
    with quant_inference_mode(module):
        module.input_quant.tensor_quant.scale.mul_(2)
        module(torch.randn(5, 32))
    assert [str(warning.message) for warning in recwarn] == []


def test_training_and_gradients_are_as_without_the_mode() -> None:
    module, x = network(), torch.randn(5, 16)
    module(x).sum().backward()
    want = module[0].weight.grad.clone()
    module.zero_grad()
    with quant_inference_mode(module):
        module(x)
        with torch.enable_grad():
            module(x).sum().backward()
    assert_same_bits(want, module[0].weight.grad)
    other = copy.deepcopy(module).train()
    module.train()
    with quant_inference_mode(module), torch.no_grad():
        assert_same_bits(other(x), module(x))
        assert_same_bits(other[0].input_quant.scale, module[0].input_quant.scale)


def fail_in_the_mode(module: Any, x: Tensor, names: list[str], *, compiled: bool) -> None:
    """What is looked at meanwhile, and an error."""
    with quant_inference_mode(module, compile=compiled):
        assert list(module.state_dict()) == names
        if not compiled:
            want = module(x)
            for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
                other[0].weight.mul_(2)
                assert not torch.equal(want, other(x))
        with pytest.raises(RuntimeError, match="in quant_inference_mode already"):
            quant_inference_mode(module[0]).__enter__()
        raise ZeroDivisionError


def test_leaving_restores_everything() -> None:
    module, x = network(), torch.randn(5, 16)
    state = [(m, sorted(m.__dict__), getattr(m, "programs", None)) for m in module.modules()]
    names = list(module.state_dict())
    for compiled in (False, True):
        with pytest.raises(ZeroDivisionError):
            fail_in_the_mode(module, x, names, compiled=compiled)
        assert state == [(m, sorted(m.__dict__), getattr(m, "programs", None)) for m in module.modules()]
        assert torch.is_grad_enabled()
        assert module(x).requires_grad


def test_errors_come_when_a_layer_runs() -> None:
    unset = qnn.QuantLinear(
        4, 4, input_quant=RUNNING, weight_quant=catalog["int8_per_channel"].replace(source="learned")
    )
    with quant_inference_mode(unset.eval()), pytest.raises(RuntimeError, match="is not set: run a batch in training"):
        unset(torch.ones(1, 4))
    layer = qnn.QuantLinear(4, 4, input_quant="int8_per_tensor").eval()
    with quant_inference_mode(layer):
        for x, error, message in (
            (torch.ones(2, 3), ValueError, r"`x` must fit `w` of shape \(4, 4\), got shape \(2, 3\)"),
            (torch.ones(2, 4).double(), TypeError, "`w` must have the dtype of `x`"),
            (torch.full((2, 4), torch.inf), ValueError, "finite"),
            (torch.ones(2, 4, dtype=torch.int32), TypeError, "`x` must have dtype float32"),
        ):
            with pytest.raises(error, match=message):
                layer(x)


def test_what_layers_share_is_made_anew_for_all_of_them() -> None:
    first = qnn.QuantLinear(32, 6, weight_quant=Int8WeightPerChannelFloat)
    second = qnn.QuantLinear(32, 6, weight_quant=first.weight_quant)
    both, x = nn.ModuleList([first, second]).eval(), torch.randn(5, 32)
    with quant_inference_mode(both):
        for change in (lambda: second.weight.mul_(7), lambda: second.weight.mul_(3), lambda: replace(second)):
            change()
            found = first(x)
            assert_same_bits(copy.deepcopy(both)[0](x), found)  # of which nothing is kept


def replace(layer: Any) -> None:
    layer.weight = nn.Parameter(layer.weight * 2)


def test_proxies_made_again_or_disabled() -> None:
    layer: Any = LINEAR["declared"]()
    x = torch.randn(5, 32)
    layer(x)
    layer.eval()
    with torch.no_grad(), quant_inference_mode(layer):
        layer(x)
        layer.weight_quant.disable_quant = True
        disabled = layer(x)
        layer.weight_quant.disable_quant = False
        layer.weight.mul_(2)
        layer.weight_quant.init_tensor_quant()
        again = layer(x)
        inner, layer.weight_quant.tensor_quant = (
            layer.weight_quant.tensor_quant,
            qnn.TensorQuantizer("int2_per_channel"),
        )
        other = layer(x)
        layer.weight_quant.tensor_quant = inner
        assert_same_bits(again, layer(x))
        assert not torch.equal(again, other)
    with torch.no_grad():
        assert_same_bits(again, layer(x))
        layer.weight_quant.disable_quant = True
        layer.weight.mul_(0.5)
        assert_same_bits(disabled, layer(x))
