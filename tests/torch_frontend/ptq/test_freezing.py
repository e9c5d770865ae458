"""Frozen models, and models made again from a state dict and a map: the same bits; what does not fit is refused."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samebits.core import catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.ptq import freeze, model_size, quantization_map, quantize, requantize

from .test_calibration import BATCHES, Attention, Network, calibrated


class Convolutions(nn.Module):
    """Convolutions and a linear layer behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv1d(4, 16, 3, padding=1), nn.Conv1d(16, 4, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(torch.tanh(self.one(x))))


def sequential() -> nn.Module:
    """Layers in a row."""
    return nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 4))


MODELS: list[Callable[[], nn.Module]] = [Network, Attention, Convolutions, sequential]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(1)
    made: nn.Module = request.param()
    calibrated(made)
    return made


def test_frozen_models_keep_their_bits(model: nn.Module) -> None:
    with torch.no_grad():
        before, size = model(BATCHES[0]), model_size(model)
        freeze(model)
        assert_same_bits(before, model(BATCHES[0]))
    assert all(p.dtype == torch.int8 for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1)
    assert model_size(model) < size


@pytest.mark.parametrize("frozen", [False, True])
def test_models_are_made_again(model: nn.Module, frozen: bool) -> None:
    if frozen:
        freeze(model)
    described = json.loads(json.dumps(quantization_map(model)))
    torch.manual_seed(2)
    plain = sequential() if isinstance(model, nn.Sequential) else type(model)()
    again = requantize(plain, model.state_dict(), described)
    with torch.no_grad():
        assert_same_bits(model(BATCHES[0]), again(BATCHES[0]))
    assert quantization_map(again) == described


def test_weights_alone_of_any_kind() -> None:
    torch.manual_seed(0)
    for name in ("int4_per_group32", "uint8_affine_per_channel", "float8_e4m3fn_per_channel"):
        model = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))
        quantize(model, weights=name, include=["0"])
        x = torch.randn(5, 32)
        with torch.no_grad():
            before = model(x)
            freeze(model)
            assert_same_bits(before, model(x))
            again = requantize(
                nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2)), model.state_dict(), quantization_map(model)
            )
            assert_same_bits(before, again(x))


def test_compiled() -> None:
    model = Network()
    calibrated(model)
    freeze(model)
    with torch.no_grad():
        y = model(BATCHES[0])
        compiled = torch.compile(model, fullgraph=True)(BATCHES[0])
    assert (compiled - y).abs().max() <= 1e-2  # sigmoid and log have other last bits in compiled code


def test_what_cannot_be_frozen_leaves_the_model() -> None:
    with pytest.raises(ValueError, match="must have layers whose weights are quantized"):
        freeze(Network())
    with pytest.raises(ValueError, match="must have layers whose weights are quantized"):
        quantization_map(Network())
    model = Network()
    quantize(model, weights=catalog["int8_learned_per_tensor"])
    with pytest.raises(ValueError, match="layer 'a': its weight must have a scale that follows from it alone"):
        freeze(model)
    assert model.a.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda m, s: m.pop("codes"), ValueError, "got no codes"),
        (lambda m, s: m["codes"].update(c=m["codes"]["a"]), ValueError, "a layer 'c', which the model does not have"),
        (lambda m, s: m["codes"].update(a="{}x"), ValueError, ""),
        (lambda m, s: s.pop("a.bias"), RuntimeError, "a.bias"),
        (lambda m, s: s.update({"a.weight": torch.zeros(3, 3, dtype=torch.int8)}), RuntimeError, "a.weight"),
    ],
)
def test_what_does_not_fit_leaves_the_model(
    spoil: Callable[[Any, Any], object], error: type[Exception], message: str
) -> None:
    model = Network()
    calibrated(model)
    freeze(model)
    described, state = copy.deepcopy(quantization_map(model)), dict(model.state_dict())
    spoil(described, state)
    plain = Network()
    before, modules = plain(BATCHES[0]), dict(plain.named_modules())
    with pytest.raises(error, match=message):
        requantize(plain, state, described)
    assert dict(plain.named_modules()) == modules
    assert torch.equal(plain(BATCHES[0]), before)
