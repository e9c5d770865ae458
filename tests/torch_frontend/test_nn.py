"""Modules of torch_frontend: the functions with state, trained, stored, moved and compiled."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from samebits import core, torch_frontend
from samebits.core import PerAxis, PerToken, QParams, catalog
from samebits.proofs.inputs.compare import assert_same_bits, same_bits
from samebits.proofs.modes.arrays import to_torch
from samebits.torch_frontend.nn import QuantConv2d, QuantIdentity, QuantLinear, QuantReLU
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

Array = NDArray[Any]

RUNNING = catalog["uint8_per_tensor"].replace(source="running_statistic")
LEARNED = catalog["int4_per_channel"].replace(source="learned", gradient="learned_scale")
LEARNED_AFFINE = catalog["uint8_affine_per_tensor"].replace(source="learned", gradient="learned_scale")


def network() -> nn.Sequential:
    """Every kind of state in one network."""
    torch.manual_seed(0)
    return nn.Sequential(
        QuantConv2d(1, 8, 3, 2, 1, weight_quant=LEARNED, input_quant=RUNNING),
        QuantReLU(LEARNED_AFFINE.replace(granularity=PerAxis(1))),
        nn.Flatten(),
        QuantLinear(8 * 16, 12, weight_quant="int8_per_channel", input_quant=LEARNED_AFFINE, output_quant=RUNNING),
        QuantIdentity(catalog["int8_affine_per_token"]),
        QuantLinear(12, 10, weight_quant="int4_per_channel"),
    )


def trained(steps: int = 3) -> nn.Sequential:
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.rand(16, 1, 8, 8)).square().mean().backward()
        optimizer.step()
    return module


def test_modules_compute_the_functions() -> None:
    x, image = torch.randn(4, 32), torch.randn(2, 3, 8, 8)
    q_x, q_w = catalog["uint8_affine_per_tensor"], catalog["int8_per_channel"]
    layer = QuantLinear(32, 5, weight_quant="int8_per_channel", input_quant="uint8_affine_per_tensor")
    parts = (
        q_x,
        x,
        torch_frontend.choose_qparams(q_x, x),
        q_w,
        layer.weight,
        torch_frontend.choose_qparams(q_w, layer.weight),
    )
    assert_same_bits(torch_frontend.linear(*parts, layer.bias), layer(x))
    conv = QuantConv2d(3, 5, (3, 2), (2, 1), (1, 0), bias=False, input_quant=q_x)
    parts = (
        q_x,
        image,
        torch_frontend.choose_qparams(q_x, image),
        q_w,
        conv.weight,
        torch_frontend.choose_qparams(q_w, conv.weight),
    )
    assert_same_bits(torch_frontend.conv(*parts, None, (2, 1), (1, 0)), conv(image))
    weight_only = QuantLinear(32, 5, weight_quant="int4_per_group32")
    w_hat = torch_frontend.fake_quantize(catalog["int4_per_group32"], weight_only.weight)
    assert_same_bits(F.linear(x, w_hat, weight_only.bias), weight_only(x))
    plain = QuantConv2d(3, 5, 3, weight_quant=None)
    assert_same_bits(F.conv2d(image, plain.weight, plain.bias), plain(image))
    q = catalog["int8_per_tensor"]
    assert_same_bits(torch_frontend.fake_quantize(q, x), QuantIdentity()(x))
    assert_same_bits(torch_frontend.fake_quantize(catalog["uint8_per_tensor"], F.relu(x)), QuantReLU()(x))
    assert QuantIdentity(None)(x) is x
    assert_same_bits(F.relu(x), QuantReLU(None)(x))
    rounded = QuantLinear(32, 5, input_quant=q, output_quant=q)
    inside = QuantLinear(32, 5, input_quant=q)
    inside.load_state_dict(rounded.state_dict())
    assert_same_bits(torch_frontend.fake_quantize(q, inside(x)), rounded(x))


def test_running_statistic() -> None:
    """The first scale is copied, later ones averaged while training, none in evaluation."""
    quantizer = TensorQuantizer(RUNNING.replace(momentum=0.75))
    batches = [torch.tensor([0.0, peak]) for peak in (255.0, 510.0, 127.5)]
    want = [1.0, 0.75 * 1 + 0.25 * 2, 0.75 * 1.25 + 0.25 * 0.5]
    for x, scale in zip(batches, want, strict=True):
        assert_same_bits(torch_frontend.fake_quantize(RUNNING, x, QParams(torch.tensor(scale))), quantizer(x))
        assert quantizer.scale is not None
        assert quantizer.scale.item() == scale
    quantizer.eval()
    quantizer(torch.tensor([1e9]))
    assert quantizer.scale is not None
    assert quantizer.scale.item() == want[-1]
    affine = TensorQuantizer(catalog["uint8_affine_per_tensor"].replace(source="running_statistic", momentum=0.5))
    affine(torch.tensor([-1.0, 254.0]))
    affine(torch.tensor([-2.0, 253.0]))
    assert (affine.scale, affine.zero_point) == (torch.tensor(1.0), torch.tensor(1.5))
    used = affine.eval().qparams(torch.zeros(1))
    assert used.zero_point == 2  # 1.5, a tie, to even


def test_a_power_of_two_stays_one_while_its_average_moves() -> None:
    quantizer = TensorQuantizer(catalog["int8_power_of_two_per_tensor"].replace(source="running_statistic"))
    quantizer(torch.tensor([127.0]))
    quantizer(torch.tensor([4 * 127.0]))
    assert quantizer.scale is not None
    torch.testing.assert_close(quantizer.scale, torch.tensor(1.3))
    assert quantizer.eval().qparams(torch.zeros(1)).scale == 2


def test_two_forwards_before_one_backward() -> None:
    """The running scale moves between them; each backward pass still sees its own."""
    quantizer, x = TensorQuantizer(RUNNING), torch.rand(8, requires_grad=True)
    first, second = quantizer(x), quantizer(x * 3)
    (first.sum() + second.sum()).backward()
    assert x.grad is not None


def test_learned_scale_starts_at_the_statistic_and_learns() -> None:
    layer = QuantLinear(64, 4, weight_quant=LEARNED, input_quant=LEARNED_AFFINE)
    assert layer.weight_quant is not None
    assert layer.input_quant is not None
    first = torch.randn(8, 64)
    layer(first)
    assert_same_bits(torch_frontend.choose_qparams(LEARNED, layer.weight).scale, layer.weight_quant.scale)
    chosen = torch_frontend.choose_qparams(LEARNED_AFFINE, first)
    assert_same_bits(chosen.scale, layer.input_quant.scale)
    assert_same_bits(chosen.zero_point.float(), layer.input_quant.zero_point)
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"weight", "bias", "weight_quant.scale", "input_quant.scale", "input_quant.zero_point"}
    layer(10 * torch.randn(8, 64)).square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in layer.parameters())
    before = [p.detach().clone() for p in layer.parameters()]
    torch.optim.SGD(layer.parameters(), 1.0).step()
    assert not any(same_bits(a, b) for a, b in zip(before, layer.parameters(), strict=True))


def test_a_learned_scale_that_left_its_domain_is_raised_to_the_floor_and_can_come_back() -> None:
    quantizer = TensorQuantizer(LEARNED.replace(granularity=core.PerTensor(), floor=0.25))
    quantizer(torch.ones(3))
    with torch.no_grad():
        assert quantizer.scale is not None
        quantizer.scale.fill_(-1.0)
    y = quantizer(torch.full((3,), 10.0))
    assert y.tolist() == [0.25 * 7] * 3
    y.sum().backward()
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad > 0


def test_state_reloads_exactly(tmp_path: Path) -> None:
    """Through a state_dict, pickle and safetensors, into fresh modules, also where a shape is not known before."""
    module, x = trained().eval(), torch.rand(5, 1, 8, 8)
    want = module(x)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    save_file(module.state_dict(), tmp_path / "state.safetensors")
    stored = load_file(tmp_path / "state.safetensors")
    assert stored["1.act_quant.scale"].shape == (1, 8, 1, 1)
    for state in (module.state_dict(), torch.load(buffer), stored):
        for assign in (False, True):
            fresh = network()
            fresh.load_state_dict(state, assign=assign)
            assert_same_bits(want, fresh.eval()(x))
    assert_same_bits(want, copy.deepcopy(module)(x))
    smaller = {k: v for k, v in module.state_dict().items() if k != "0.input_quant.scale"}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"0.input_quant.scale\""):
        network().load_state_dict(smaller)
    other = QuantLinear(3, 2, weight_quant=LEARNED)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight_quant\.scale"):
        other.load_state_dict(
            QuantLinear(3, 4, weight_quant=LEARNED).state_dict() | dict(other.named_parameters(recurse=False))
        )


def test_float_weights_load_and_scales_start_anew() -> None:
    source, layer = nn.Linear(64, 4), QuantLinear(64, 4, weight_quant=LEARNED, input_quant=RUNNING)
    missing = layer.load_state_dict(source.state_dict(), strict=False)
    assert missing.missing_keys == ["weight_quant.scale", "input_quant.scale"]
    layer(torch.rand(2, 64))
    assert layer.weight_quant is not None
    assert_same_bits(torch_frontend.choose_qparams(LEARNED, source.weight).scale, layer.weight_quant.scale)


def test_an_unset_scale_in_evaluation_says_what_to_do() -> None:
    for q in (RUNNING, LEARNED_AFFINE):
        quantizer = TensorQuantizer(q).eval()
        with pytest.raises(RuntimeError, match=r"not set: run a batch in training mode .* or load a state_dict"):
            quantizer(torch.ones(3))
        unset = TensorQuantizer(q)
        unset.load_state_dict(quantizer.state_dict())
        with pytest.raises(RuntimeError, match="not set"):
            unset.eval()(torch.ones(3))


def test_scales_stay_in_float32_when_modules_move_to_16_bits() -> None:
    module, x = trained().eval(), torch.rand(5, 1, 8, 8)
    before = {k: v.clone() for k, v in module.state_dict().items() if "quant" in k}
    half = module.bfloat16()
    assert all(same_bits(before[k], v) for k, v in half.state_dict().items() if "quant" in k)
    assert half[0].weight.dtype == torch.bfloat16
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert module.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (
            KeyError,
            "QuantLinear, `weight_quant`: unknown quantizer 'int8'; did you mean",
            lambda: QuantLinear(3, 2, weight_quant="int8"),
        ),
        (
            TypeError,
            "QuantIdentity, `act_quant`: must be a catalog name or a Quantizer, a declaration .* or None; got 8",
            lambda: QuantIdentity(8),
        ),
        (ValueError, "`stride` must be an int, or one for each of 2", lambda: QuantConv2d(1, 1, 3, stride=(1, 1, 1))),
        (ValueError, "Invalid padding string 'some'", lambda: QuantConv2d(1, 1, 3, padding="some")),
        (
            ValueError,
            "must be per tensor or per axis, got per token",
            lambda: QuantReLU(RUNNING.replace(granularity=PerToken())),
        ),
    ],
)
def test_modules_refuse(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        call()


def test_shared_quantizers_share_their_state() -> None:
    shared = TensorQuantizer(RUNNING)
    module = nn.Sequential(QuantIdentity(shared), QuantReLU(shared))
    module(torch.rand(9))
    assert module[0].act_quant is module[1].act_quant is shared


def test_compiled_modules_have_the_bits_of_eager_ones_and_their_state() -> None:
    """Training, from the unset state on, then evaluation at another batch size."""
    torch._dynamo.reset()
    x = torch.rand(16, 64)
    fresh = nn.Sequential(
        QuantLinear(64, 12, weight_quant=LEARNED, input_quant=RUNNING),
        QuantReLU(LEARNED_AFFINE),
        QuantLinear(12, 10, weight_quant="int8_per_channel", output_quant=RUNNING),
    )
    fresh_twin = copy.deepcopy(fresh)
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    program = torch.compile(fresh, backend=counter, fullgraph=True, dynamic=True)
    for batch in (x, torch.rand(16, 64), torch.rand(7, 64)):
        got, want = program(batch), fresh_twin(batch)
        assert_same_bits(want, got)
        for y in (got, want):
            y.square().mean().backward()
    assert counter.frame_count == 2  # one more after the first batch has set the state
    for (name, p), p_twin in zip(fresh.named_parameters(), fresh_twin.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, p_twin.grad, rtol=1e-4, atol=1e-6, msg=name)
    for buffer, buffer_twin in zip(fresh.buffers(), fresh_twin.buffers(), strict=True):
        assert_same_bits(buffer_twin, buffer)


def test_the_digit_classifier_is_the_specification_bit_for_bit() -> None:
    """Real weights, real images, batch sizes 1 and 256."""
    from samebits.proofs.inputs import digits

    checkpoint = digits.load_checkpoint()
    q_x = catalog[checkpoint.input_quant].replace(source="running_statistic")
    module = nn.ModuleDict(
        {
            "conv1": QuantConv2d(1, 16, 3, 1, 1, weight_quant=checkpoint.weight_quant, input_quant=q_x),
            "conv2": QuantConv2d(16, 32, 3, 2, 1, weight_quant=checkpoint.weight_quant, input_quant=q_x),
            "linear": QuantLinear(512, 10, weight_quant=checkpoint.weight_quant, input_quant=q_x),
        }
    ).eval()
    module.load_state_dict({name: to_torch(np.array(value)) for name, value in checkpoint.tensors.items()})

    def logits(x: Tensor) -> Tensor:
        y = torch.relu(module["conv2"](torch.relu(module["conv1"](x))))
        value: Tensor = module["linear"](y.flatten(1))
        return value

    want, x = digits.logits("numpy", 256), to_torch(digits.images()[0])
    with torch.no_grad():
        assert_same_bits(want, torch.cat([logits(part) for part in x.split(256)]))
        assert_same_bits(want[:50], torch.cat([logits(part) for part in x[:50].split(1)]))
    assert digits.accuracy(want, digits.images()[1]) > 95
