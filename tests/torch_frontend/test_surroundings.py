"""torch_frontend under what programs switch on around it: autocast, a default dtype, batched gradients, tracing."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from samebits.core import QParams, ScaleRule, catalog
from samebits.core.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import choose_qparams, fake_quantize, fake_quantize_vjp, quantize
from samebits.torch_frontend.nn import QuantConv1d, QuantConv2d, QuantLinear, TensorQuantizer, quant_inference_mode
from samebits.torch_frontend.straight_through import round_ste, tensor_clamp
from samebits.torch_frontend.threefry import rounding_noise

Result = TypeVar("Result")
INT8 = catalog["int8_per_tensor"]
PLAIN = torch.float32
DRAWS = INT8.replace(rounding="stochastic")
RUNNING = INT8.replace(scale=ScaleRule(source="running_statistic"))
WINDOW = INT8.replace(scale=ScaleRule(source="running_statistic", statistic="percentile", window=4))
LEARNED = catalog["int8_learned_per_tensor"]


@pytest.fixture(params=["bfloat16", "float16", "float64"])
def other_default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """Another default dtype, while a test runs."""
    dtype = getattr(torch, request.param)
    torch.set_default_dtype(dtype)
    yield dtype
    torch.set_default_dtype(PLAIN)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """float32, normal, ties of a scale of 0.03 among them."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw, dtype=PLAIN)
    ties = (torch.randint(-150, 150, shape, generator=draw).to(PLAIN) + 0.5) * torch.tensor(0.03, dtype=PLAIN)
    return torch.where(torch.rand(shape, generator=draw, dtype=PLAIN) < 0.5, x, ties)


def as_by_default(compute: Callable[[], Result]) -> Result:
    """The result with float32 as default dtype."""
    other = torch.get_default_dtype()
    torch.set_default_dtype(PLAIN)
    try:
        return compute()
    finally:
        torch.set_default_dtype(other)


@pytest.mark.parametrize("name", catalog)
def test_the_default_dtype_changes_no_bit(name: str, other_default: torch.dtype) -> None:
    q, x = catalog[name], numbers(32, 128)
    qparams = as_by_default(lambda: choose_qparams(q, x))
    for compute in (
        lambda: choose_qparams(q, x).scale,
        lambda: quantize(q, x, qparams),
        lambda: fake_quantize(q, x),
        lambda: fake_quantize_vjp(q, x, qparams, x).scale,
    ):
        assert_same_bits(as_by_default(compute), compute(), call=f"{name}, default {other_default}")


def test_noise_is_that_of_float32(other_default: torch.dtype) -> None:
    assert_same_bits(as_by_default(lambda: rounding_noise(7, (4, 300_000))), rounding_noise(7, (4, 300_000)))
    x = numbers(8, 64)
    given = QParams(torch.tensor(0.03, dtype=PLAIN), seed=5)
    assert_same_bits(as_by_default(lambda: fake_quantize(DRAWS, x, given)), fake_quantize(DRAWS, x, given))


@pytest.mark.parametrize(
    "q", [RUNNING, WINDOW, LEARNED, LEARNED.replace(learned_bits=5.0)], ids=["mean", "window", "learned", "bits"]
)
def test_state_is_float32_whatever_the_default_is(q: object, other_default: torch.dtype) -> None:
    def trained() -> list[Tensor]:
        held = TensorQuantizer(q)
        results = [held(numbers(8, 64, seed=seed)).detach() for seed in range(3)]
        return [*results, *held.state_dict().values()]

    expected, got = as_by_default(trained), trained()
    for one, other in zip(expected, got, strict=True):
        assert_same_bits(one, other)
    loaded = TensorQuantizer(q)
    loaded.load_state_dict(as_by_default(lambda: trained_state(q)))
    assert all(t.dtype in (PLAIN, torch.int64) for t in loaded.state_dict().values())


def trained_state(q: object) -> dict[str, Tensor]:
    """The state after one tensor."""
    held = TensorQuantizer(q)
    held(numbers(8, 64))
    return held.state_dict()


def layers() -> dict[str, tuple[torch.nn.Module, Tensor]]:
    """Layers that contract codes, and what they are called with; sums of the long one leave the int8 product."""
    torch.manual_seed(1)
    return {
        "linear": (QuantLinear(48, 10, input_quant="int8_per_tensor"), numbers(6, 48)),
        "affine linear": (QuantLinear(48, 10, input_quant="uint8_affine_per_tensor"), numbers(6, 48)),
        "int16": (QuantLinear(48, 10, weight_quant="int16_per_tensor", input_quant="int16_per_tensor"), numbers(6, 48)),
        "long": (QuantLinear(2**15, 3, input_quant="int8_per_token"), numbers(2, 2**15)),
        "conv": (QuantConv2d(3, 5, 3, padding=1, input_quant="uint8_affine_per_tensor"), numbers(2, 3, 8, 8)),
        "float8": (
            QuantLinear(48, 10, weight_quant="float8_e4m3fn_per_channel", input_quant="float8_e4m3fn_per_tensor"),
            numbers(6, 48),
        ),
    }


def step(layer: torch.nn.Module, x: Tensor, *, autocast: bool, backward_too: bool = True) -> list[Tensor]:
    """Output and gradients."""
    given = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(given)
        if backward_too:
            y.square().sum().backward()
    if not backward_too:
        y.square().sum().backward()
    return [y.detach(), given.grad, layer.weight.grad]


@pytest.mark.parametrize("backward_too", [True, False])
@pytest.mark.parametrize("name", layers())
def test_contractions_of_quantized_operands_are_not_autocast(name: str, backward_too: bool) -> None:
    layer, x = layers()[name]
    expected = step(layer, x, autocast=False, backward_too=backward_too)
    for one, other in zip(expected, step(layer, x, autocast=True, backward_too=backward_too), strict=True):
        assert_same_bits(one, other, call=name)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_compiled_contractions_are_not_autocast(name: str) -> None:
    layer, x = layers()[name]
    expected = step(layer, x, autocast=False)
    compiled = torch.compile(layer, fullgraph=True)
    given = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(given)
    y.square().sum().backward()
    assert_same_bits(expected[0], y, call=name)
    for one, other in zip(expected[1:], (given.grad, layer.weight.grad), strict=True):
        assert other is not None
        assert torch.linalg.norm(one - other) < 2e-6 * torch.linalg.norm(one), "sums of floats, but not of bfloat16"


@pytest.mark.parametrize("name", ["linear", "affine linear", "conv"])
def test_16_bit_activations_meet_float32_weights_under_autocast(name: str) -> None:
    """As the same numbers in float32, with the output rounded once; refused without autocast, as by float layers."""
    layer, x = layers()[name]
    short = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(short)
    assert_same_bits(layer(short.float()).bfloat16(), y)
    with pytest.raises(TypeError, match="dtype of `x`"):
        layer(short)


def test_gradient_scaling_trains_as_without_it() -> None:
    """A power of two changes no bit of a gradient: `GradScaler` with autocast takes the step of plain float32."""
    stepped = []
    for scaled in (False, True):
        layer, x = layers()["linear"]
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=scaled):
            loss = layer(x).square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        stepped.append(layer.weight.detach())
    assert_same_bits(*stepped)


@pytest.mark.parametrize("name", [*catalog])
def test_batched_gradients_are_gradients_one_by_one(name: str) -> None:
    q = catalog[name]
    x = numbers(32, 128).requires_grad_()
    qparams = choose_qparams(q, x)
    inputs = [x, qparams.scale.requires_grad_()]
    y = fake_quantize(q, x, qparams)
    cotangents = numbers(3, *y.shape, seed=1)
    one_by_one = [torch.autograd.grad(y, inputs, g, retain_graph=True) for g in cotangents]
    together = torch.autograd.grad(y, inputs, cotangents, is_grads_batched=True)
    for expected, got in zip(zip(*one_by_one, strict=True), together, strict=True):
        assert_same_bits(torch.stack(expected), got)


def test_a_vectorized_jacobian_is_the_jacobian() -> None:
    layer, x = layers()["linear"]
    conv, image = layers()["conv"]
    functions = [
        (layer, x[:2]),
        (conv, image[:1, :, :4, :4]),
        (lambda x: fake_quantize(DRAWS, x, QParams(torch.tensor(0.03), seed=3)), x[:2]),
        (round_ste, x[:2]),
        (lambda x: tensor_clamp(x, -1.0, 1.0), x[:2]),
    ]
    for function, given in functions:
        slow = torch.autograd.functional.jacobian(function, given)
        assert_same_bits(slow, torch.autograd.functional.jacobian(function, given, vectorize=True))


def test_a_trace_is_refused() -> None:
    layer, x = layers()["linear"]
    for function in (
        layer,
        round_ste,
        lambda x: fake_quantize(INT8, x),
        lambda x: quantize(INT8, x, choose_qparams(INT8, x)),
    ):
        with pytest.raises(RuntimeError, match=r"torch.jit.trace would keep .* use torch.export"):
            torch.jit.trace(function, x)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fake_quantize": lambda x, s: (fake_quantize(INT8, x, QParams(s)) * torch.arange(16.0)).sum(),
    "straight through": lambda x, s: (round_ste(x) * tensor_clamp(x, -1.0, 1.0) * s).sum(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    "transform",
    [
        lambda loss: torch.func.grad(loss, (0, 1)),
        lambda loss: torch.func.jacrev(loss, (0, 1)),
        lambda loss: per_row(loss),
    ],
    ids=["grad", "jacrev", "vmap of grad"],
)
def test_compiled_transforms_are_right_or_refused(name: str, transform: Callable[..., Callable[..., object]]) -> None:
    """Dynamo would differentiate the forward pass: with ``fullgraph`` an error, else it leaves this to eager code."""
    function, given = transform(LOSSES[name]), (numbers(8, 16), torch.tensor(0.03))
    expected = function(*given)
    torch._dynamo.reset()
    for one, other in zip(expected, torch.compile(function)(*given), strict=True):  # type: ignore[call-overload]
        assert_same_bits(one, other)
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"torch\.compile around torch\.func"):
        torch.compile(function, fullgraph=True)(*given)


def per_row(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., object]:
    """The gradients of every row by itself."""
    return torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None))


def test_a_compiled_vmap_without_gradients_is_a_loop() -> None:
    x = numbers(4, 32)
    expected = torch.stack([fake_quantize(INT8, row) for row in x])
    with torch.no_grad():
        assert_same_bits(
            expected, torch.compile(torch.func.vmap(lambda row: fake_quantize(INT8, row)), fullgraph=True)(x)
        )


def test_layers_compute_shapes_on_the_device_meta() -> None:
    x = torch.ones(2, 4, 9, device="meta")
    convolution = QuantConv1d(4, 8, 3, weight_quant=Int8WeightPerChannelFloat, input_quant=Int8ActPerTensorFloat)
    model = torch.nn.Sequential(convolution, QuantLinear(7, 3, input_quant="int8_affine_per_token")).to("meta")
    y = model(x)
    y.sum().backward()
    assert y.shape == (2, 8, 3)
    with quant_inference_mode(model.eval()):
        assert model(x).shape == (2, 8, 3)
