"""Batch normalization folded into the layer before it: torch's own beside it, and the bits after training."""

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samebits.core import catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch
from samebits.torch_frontend.nn import FoldedBatchNorm, QuantConv2d, QuantLinear, TensorQuantizer

LEARNED = catalog["int4_per_channel"].replace(source="statistic_then_learned", steps=2, gradient="learned_scale")
RUNNING = catalog["uint8_affine_per_tensor"].replace(source="running_statistic")
FLOAT: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(5, 6), nn.BatchNorm1d, (9, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d, (5, 4, 8)),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d, (5, 4, 8, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d, (5, 4, 4, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 6, 2), nn.BatchNorm3d, (4, 2, 3, 4, 3)),
}
KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "mean": {"momentum": None, "eps": 1e-3},
    "not affine": {"affine": False},
}


def filled(bn: Any) -> Any:
    """Parameters and statistics that are not the first ones; a negative factor among them."""
    with torch.no_grad():
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.1, 3)
        if bn.affine:
            bn.weight.uniform_(-1, 1)
            bn.bias.normal_()
    return bn


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FLOAT)
def test_float_layers_are_those_of_torch(name: str, kind: str) -> None:
    """Along three batches, values, gradients, and statistics; then in evaluation."""
    torch.manual_seed(0)
    layer, norm, shape = FLOAT[name]
    whole = nn.Sequential(layer(), filled(norm(6, **KINDS[kind])))
    folded = FoldedBatchNorm(*copy.deepcopy(whole))
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    for _ in range(3):
        x = torch.randn(shape)
        want, got = whole(x), folded(x)
        close(got, want)
        g = torch.randn_like(want)
        for y, module in ((want, whole), (got, folded)):
            module.zero_grad()
            y.backward(g)
        for p, other in zip(whole.parameters(), folded.parameters(), strict=True):
            close(other.grad, p.grad)
    for state, other in zip(whole.buffers(), folded.buffers(), strict=True):
        close(other, state)
    close(folded.eval()(x), whole.eval()(x))
    close(folded.folded()(x), whole(x))


def trained(layer: nn.Module, norm: nn.Module, *shape: int, steps: int = 4) -> FoldedBatchNorm:
    """A layer after some steps."""
    module = FoldedBatchNorm(layer, norm)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(shape)).sin().sum().backward()
        optimizer.step()
    return module


def quantized(bias: bool = True) -> dict[str, FoldedBatchNorm]:
    """Trained layers that contract codes, and one that contracts floats."""
    torch.manual_seed(0)
    both: dict[str, Any] = {"weight_quant": LEARNED, "input_quant": RUNNING, "bias": bias}
    return {
        "conv": trained(QuantConv2d(2, 5, 3, **both), filled(nn.BatchNorm2d(5)), 4, 2, 6, 6),
        "linear": trained(QuantLinear(12, 5, **both), filled(nn.BatchNorm1d(5)), 8, 12),
        "weight only": trained(QuantLinear(12, 5, weight_quant=LEARNED, bias=bias), filled(nn.BatchNorm1d(5)), 8, 12),
    }


INPUTS = {"conv": (7, 2, 6, 6), "linear": (7, 12), "weight only": (7, 12)}


@pytest.mark.parametrize("name", INPUTS)
def test_evaluation_has_the_bits_of_the_folded_layer(name: str) -> None:
    """Its weight is that of NumPy, every operation rounded; in training with statistics at rest the same bits, too."""
    for bias in (True, False):
        module, x = quantized(bias)[name].eval(), torch.randn(INPUTS[name])
        bn = {key: to_numpy(t) for key, t in module.bn.state_dict().items()}
        f = bn["weight"] / np.sqrt(bn["running_var"] + np.float32(module.bn.eps))
        before = to_numpy(module.layer.bias) if bias else np.zeros(5, np.float32)
        folded = module.folded()
        weight = to_numpy(module.layer.weight)
        assert_same_bits(weight * f.reshape(-1, *(1,) * (weight.ndim - 1)), folded.weight)
        assert_same_bits(bn["bias"] + (before - bn["running_mean"]) * f, folded.bias)
        assert (module.layer.bias is not None) == bias
        want = module(x)
        assert_same_bits(want, folded(x))
        settled = module.train()
        settled.bn.eval()
        settled.layer.eval()
        assert_same_bits(want, settled(x))


def test_compiled_evaluation_has_the_bits_of_eager_code() -> None:
    torch._dynamo.reset()
    layers = {name: layer.eval() for name, layer in quantized().items()}
    xs = {name: torch.randn(INPUTS[name]) for name in layers}
    del layers["weight only"]  # floats are contracted in another order

    @torch.compile(fullgraph=True)
    def program(xs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: layer(xs[name]) for name, layer in layers.items()}

    with torch.no_grad():
        for name, y in program(xs).items():
            assert_same_bits(layers[name](xs[name]), y)


def test_training_is_one_graph() -> None:
    """Run by the operators of eager code, which add in the same order."""
    torch._dynamo.reset()
    module = quantized()["conv"]
    module.zero_grad()
    twin, compiled = copy.deepcopy(module), torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(INPUTS["conv"])
        for run in (compiled, twin):
            run(x).sin().sum().backward()
    for one, other in zip(twin.state_dict().values(), module.state_dict().values(), strict=True):
        assert_same_bits(one, other)
    for p, q in zip(twin.parameters(), module.parameters(), strict=True):
        assert p.grad is not None
        assert_same_bits(p.grad, q.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    for name, layer in quantized().items():
        module, x = layer.to(dtype), torch.randn(INPUTS[name], dtype=dtype)
        before = module.bn.running_var.clone()
        assert module(x).dtype == dtype
        assert not torch.equal(before, module.bn.running_var)
        assert_same_bits(module.eval()(x), module.folded()(x))


def test_a_factor_of_zero_learns_and_leaves_the_statistics() -> None:
    """As zero is where residual branches begin. Without the exception every result would be NaN."""
    module, x = (
        FoldedBatchNorm(QuantLinear(12, 3, input_quant="int8_per_tensor"), nn.BatchNorm1d(3)),
        torch.randn(9, 12),
    )
    with torch.no_grad():
        module.bn.weight[1] = 0
    y = module(x)
    assert torch.equal(y[:, 1], torch.zeros(9))
    (y * torch.randn_like(y)).sum().backward()
    grads = [p.grad for p in module.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
    assert module.bn.weight.grad[1] != 0
    assert (module.bn.running_mean[1], module.bn.running_var[1]) == (0, 1)
    assert module.bn.running_var[0] != 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_repeated_forward_pass_is_no_step(reentrant: bool) -> None:
    results = []
    for run in (lambda f, x: f(x), partial(checkpoint, use_reentrant=reentrant)):
        torch.manual_seed(0)
        module, x = quantized()["linear"], torch.randn(8, 12, requires_grad=True)
        for _ in range(2):
            y = run(lambda x, m=module: m(x).sin(), x)
            y.sum().backward()
        results.append([y.detach(), x.grad, *module.state_dict().values(), *(p.grad for p in module.parameters())])
    for one, other in zip(*results, strict=True):
        assert_same_bits(one, other)


def test_states_load_and_copy() -> None:
    module, x = quantized()["conv"], torch.randn(INPUTS["conv"])
    fresh = FoldedBatchNorm(QuantConv2d(2, 5, 3, weight_quant=LEARNED, input_quant=RUNNING), nn.BatchNorm2d(5))
    fresh.load_state_dict(module.state_dict())
    copied = copy.deepcopy(module)
    for other in (fresh, copied):
        assert_same_bits(copy.deepcopy(module).eval()(x), copy.deepcopy(other).eval()(x))
    assert {name.split(".")[0] for name in module.state_dict()} == {"layer", "bn"}


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "`layer` must be a linear layer or a convolution, got ReLU", (nn.ReLU(), nn.BatchNorm1d(2))),
        (TypeError, "`bn` must be a BatchNorm1d, .* got LayerNorm", (nn.Linear(3, 2), nn.LayerNorm(2))),
        (TypeError, "got SyncBatchNorm", (nn.Linear(3, 2), nn.SyncBatchNorm(2))),
        (ValueError, "`bn` must have the 2 channels of `layer`, got 3", (nn.Linear(3, 2), nn.BatchNorm1d(3))),
        (
            ValueError,
            "running statistics, got track_running_stats=False",
            (nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)),
        ),
        (
            ValueError,
            "`output_quant` of `layer` must be None",
            (QuantLinear(3, 2, output_quant=TensorQuantizer(RUNNING)), nn.BatchNorm1d(2)),
        ),
    ],
)
def test_it_refuses(error: type[Exception], message: str, arguments: tuple[Any, Any]) -> None:
    with pytest.raises(error, match=message):
        FoldedBatchNorm(*arguments)


def test_training_refuses_what_has_no_statistics() -> None:
    """A batch of one row, or none; nothing has learned from it then."""
    linear = FoldedBatchNorm(QuantLinear(5, 3, input_quant=RUNNING), nn.BatchNorm1d(3))
    conv = FoldedBatchNorm(QuantConv2d(2, 3, 2, input_quant=RUNNING), nn.BatchNorm2d(3))
    for module, shape in (
        (linear, (1, 5)),
        (linear, (5,)),
        (conv, (2, 5, 5)),
        (conv, (1, 2, 1, 1)),
        (conv, (0, 2, 5, 5)),
    ):
        before = copy.deepcopy(module.state_dict())
        with pytest.raises(ValueError, match="training needs a batch with more than one value per channel"):
            module(torch.ones(shape))
        for one, other in zip(before.values(), module.state_dict().values(), strict=True):
            assert_same_bits(one, other)
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 1, 1\)"):
        conv(torch.ones(1, 2, 2, 2))
    assert conv.bn.num_batches_tracked == 0
    conv.bn = nn.SyncBatchNorm(3)
    with pytest.raises(TypeError, match="got SyncBatchNorm"):
        conv(torch.ones(4, 2, 3, 3))


def test_the_first_weights_are_those_of_a_float_network() -> None:
    """A float checkpoint goes in by the names of its layers."""
    source = nn.Sequential(nn.Conv2d(2, 4, 3), filled(nn.BatchNorm2d(4)))
    module = FoldedBatchNorm(QuantConv2d(2, 4, 3, weight_quant=None), nn.BatchNorm2d(4))
    module.layer.load_state_dict(source[0].state_dict())
    module.bn.load_state_dict(source[1].state_dict())
    x = torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(module.eval()(x), source.eval()(x))
    assert_same_bits(to_torch(to_numpy(source[0].weight)), module.layer.weight)
