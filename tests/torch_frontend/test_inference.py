"""`quant_inference_mode`: the bits of the model without it, in eager code; what is kept, and when it is made anew."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samebits import core
from samebits.core import QParams, ScaleRule, catalog
from samebits.core.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_torch
from samebits.torch_frontend import int8, matmul, packed
from samebits.torch_frontend import nn as qnn
from samebits.torch_frontend.nn import quant_inference_mode
from samebits.torch_frontend.packed import PackedWeight

RUNNING = catalog["uint8_per_tensor"].replace(source="running_statistic")
LEARNED = catalog["int8_affine_per_tensor"].replace(source="learned")
DELAYED = RUNNING.replace(delay=1)
SHARED = qnn.TensorQuantizer("int8_per_channel", (6, 32))


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
    "learned bits": linear(input_quant=LEARNED, weight_quant=catalog["int8_per_channel"].replace(source="learned", learned_bits=4.0)),
    "percentile": linear(input_quant=catalog["int8_per_tensor"].replace(scale=ScaleRule(statistic="percentile"))),
    "bias": linear(input_quant=RUNNING, bias_quant="int16_per_tensor"),
    "declared": linear(input_quant=Int8ActPerTensorFloat, weight_quant=Int8WeightPerChannelFloat),
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
    "same": conv(2, padding="same", input_quant="int8_per_tensor"),
    "one by one": conv(1, weight_quant="uint8_affine_per_channel"),
    "in groups": conv(3, groups=4),
    "dilated": conv(3, dilation=2),
    "few channels": conv(3, channels=3),
    "reflected": conv(3, padding=1, padding_mode="reflect"),
    "floats": conv(3, padding=1, padding_mode="circular", input_quant=catalog["int8_per_tensor"].replace(granularity=core.PerAxis(1))),
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


def test_large_arrays_are_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(70, 32)
    modules = [settled(LINEAR[name], x) for name in ("dynamic", "per token", "static")]
    image = torch.randn(2, 32, 6, 7).to(memory_format=torch.channels_last)
    modules.append(settled(CONVOLUTIONS["strides and margins"], image))
    cut = int8.pieces
    monkeypatch.setattr(int8, "WHOLE", 256)
    monkeypatch.setattr(int8, "pieces", lambda *tensors: cut(*tensors, size=64, whole=256))
    for module in modules:
        given = image if module is modules[-1] else x
        assert_same_in_the_mode(module, given, spoiled(given))


def test_without_int8_products_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 32)
    module = settled(LINEAR["per token"], x)
    monkeypatch.setattr(int8, "saturates_nowhere", lambda: False)
    with quant_inference_mode(module), torch.no_grad():
        assert module.weight_quant.kept.weights[0].codes is None
    assert_same(module, x)


# --- knife edges ------------------------------------------------------------------------------------------------------


def product(name: str, x: Any, zero: int | None, w_name: str, w: Any, w_zero: int | None, bias: Any = None) -> Tensor:
    """`core.linear` of codes at scales of 1, with which a packed weight is compared."""
    q_x, q_w, one = catalog[name], catalog[w_name], np.float32(1)
    p, r = QParams(one, None if zero is None else np.int32(zero)), QParams(np.ones((len(w), 1), np.float32))
    r = r if w_zero is None else r._replace(zero_point=np.full((len(w), 1), w_zero, np.int32))
    want = core.linear(q_x, x, p, q_w, w, r, bias)
    given = [QParams(*(None if v is None else to_torch(np.asarray(v)) for v in qparams[:2])) for qparams in (p, r)]
    held = PackedWeight(q_x, q_w, to_torch(w), given[1])
    assert held.codes is not None
    got = matmul.linear(q_x, to_torch(x), given[0], q_w, held, given[1], None if bias is None else to_torch(bias))
    assert_same_bits(want, got, call=f"{name} {w_name} {x.shape}")
    return got


def test_accumulators_around_2_to_the_24_are_rounded_once() -> None:
    """127 * 127 * n and one odd unit more or less: float32 has even numbers alone from 2**24 on, ties go to even."""
    n = 2**24 // (127 * 127)
    for more in range(-3, 4):
        x = np.full((3, n + 3), 127, np.float32)
        w = np.full((2, n + 3), 127, np.float32)
        rest = 2**24 + more - 127 * 127 * n
        w[:, n:], x[:, n] = 0, 127
        w[:, n], w[:, n + 1] = divmod(rest, 127)
        x[:, n + 1] = 1
        w[1] = -w[1]
        y = product("int8_per_tensor", x, None, "int8_per_channel", w, None)
        assert y[0, 0] == np.float32(2**24 + more) and y[0, 1] == -np.float32(2**24 + more)


def test_the_largest_sums_fit_int32() -> None:
    n = 2**15 - 1
    for zero, sign in ((0, 1), (255, -1)):
        x, w = np.full((2, n), 255.0 if zero == 0 else -255.0, np.float32), np.full((3, n), 255.0, np.float32)
        y = product("uint8_affine_per_tensor", x, zero, "uint8_affine_per_channel", w, 0)
        assert y[0, 0] == np.float32(sign * 255 * 255 * n)


def test_products_of_scales_below_the_smallest_number() -> None:
    q_x, q_w = catalog["int8_per_tensor"], catalog["int8_per_channel"]
    x, w = np.eye(4, dtype=np.float32) * 2.0**-70, np.full((3, 4), 2.0**-60, np.float32)
    p, r = core.choose_qparams(q_x, x), core.choose_qparams(q_w, w)
    want = core.linear(q_x, x, p, q_w, w, r)
    p, r = (QParams(to_torch(np.asarray(v.scale))) for v in (p, r))
    assert_same_bits(want, matmul.linear(q_x, to_torch(x), p, q_w, PackedWeight(q_x, q_w, to_torch(w), r), r))


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


def test_leaving_restores_everything() -> None:
    module, x = network(), torch.randn(5, 16)
    state = [(m, sorted(m.__dict__), getattr(m, "programs", None)) for m in module.modules()]
    names = list(module.state_dict())
    for compiled in (False, True):
        with pytest.raises(ZeroDivisionError), quant_inference_mode(module, compile=compiled):
            assert list(module.state_dict()) == names
            with torch.no_grad():
                want = module(x) if not compiled else None
            twin, stored = copy.deepcopy(module), pickle.loads(pickle.dumps(module)) if not compiled else None
            for other in (twin, stored):
                if other is not None and want is not None:
                    other[0].weight.mul_(2)
                    assert not torch.equal(want, other(x))
            with pytest.raises(RuntimeError, match="in quant_inference_mode already"):
                quant_inference_mode(module[0]).__enter__()
            raise ZeroDivisionError
        assert state == [(m, sorted(m.__dict__), getattr(m, "programs", None)) for m in module.modules()]
        assert torch.is_grad_enabled() and module(x).requires_grad


def test_errors_come_when_a_layer_runs() -> None:
    unset = qnn.QuantLinear(4, 4, input_quant=RUNNING, weight_quant=catalog["int8_per_channel"].replace(source="learned"))
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
    with torch.no_grad():
        assert_same_bits(again, layer(x))
        layer.weight_quant.disable_quant = True
        layer.weight.mul_(0.5)
        assert_same_bits(disabled, layer(x))
