"""SmoothQuant and equalization of torch models: what they compute stays, what is quantized gets better."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samebits.core import catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import fake_quantize
from samebits.torch_frontend.ptq import equalize_, smooth_

from .test_gptq import Block

PAIRS = [("norm", ["q", "k", "v"]), ("up", ["down"])]


class Normalised(nn.Module):
    """A norm after the sum, as BERT has it: what it gives is read by layers, and added later."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return h + self.outer(F.gelu(self.inner(h)))


@pytest.fixture
def model() -> Block:
    torch.manual_seed(0)
    block = Block().eval()
    with torch.no_grad():  # columns that stick out, as in large language models
        block.norm.weight[3], block.norm.weight[7] = 40.0, -30.0
        block.norm.bias.normal_()
        block.up.weight[5] *= 20
    return block


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 10, 16, generator=generator) for _ in range(3)]


def quantized_error(model: Block, name: str, batches: list[Tensor]) -> float:
    """Squared error of a layer's outputs with int8 inputs per token and weights per channel."""
    seen: list[Tensor] = []
    layer = model.get_submodule(name)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    x, w = torch.cat(seen).flatten(0, -2), layer.weight.detach()
    y = fake_quantize(catalog["int8_per_token"], x) @ fake_quantize(catalog["int8_per_channel"], w).T
    return float((y - x @ w.T).double().square().sum()) / len(x)


@pytest.mark.parametrize("alpha", [0.5, "search"])
def test_outliers_move_into_weights(alpha: float | str, model: Block, batches: list[Tensor]) -> None:
    plain, before = copy.deepcopy(model), [model(x).detach() for x in batches]
    report = smooth_(model, batches, alpha)
    assert [one.name for one in report.layers] == ["norm -> q, k, v", "up -> down"]
    assert report.skipped == {
        "out": "its input comes from matmul",
        "up": "its input comes from a sum",
        "unused": "nothing calls it",
    }
    for one, readers in zip(report.layers, ("qkv", ("down",)), strict=True):
        for error, subject in ((one.before, plain), (one.after, model)):
            assert error == pytest.approx(sum(quantized_error(subject, n, batches) for n in readers), rel=1e-3)
    assert report.layers[0].after < 0.2 * report.layers[0].before
    assert report.layers[0].rows == 120
    for x, y in zip(batches, before, strict=True):  # weights are rounded once more, sums move by that
        assert (model(x) - y).abs().max() <= 64 * 2.0**-24 * y.abs().max()


def test_a_search_is_never_worse(model: Block, batches: list[Tensor]) -> None:
    report = smooth_(copy.deepcopy(model), batches, "search")
    for alpha in (0.0, 0.3, 0.5, 1.0):
        for one, other in zip(report.layers, smooth_(copy.deepcopy(model), batches, alpha).layers, strict=True):
            assert one.after <= min(one.before, other.after)
    kept = smooth_(model, batches, "search", alphas=())
    assert {one.method for one in kept.layers} == {"as it was"}


def test_pairs_that_are_given(model: Block, batches: list[Tensor]) -> None:
    traced = copy.deepcopy(model)
    smooth_(traced, batches)
    smooth_(model, batches, pairs=PAIRS)
    for (name, one), other in zip(model.named_parameters(), traced.parameters(), strict=True):
        assert_same_bits(one.detach(), other.detach())
        assert one.requires_grad, name


def test_what_others_read_is_left(batches: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="no layer can be smoothed: 'inner': what 'norm' gives is also read by a sum"):
        smooth_(Normalised(), batches)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4)), r"its input comes from '1' \(GELU\)"),
        (
            (nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 4)),
            "'0', which its input comes from, has no w",
        ),
        ((nn.LayerNorm(16), *[nn.Linear(16, 16)] * 2), "it is called more than once"),
        ((nn.Linear(16, 4),), "its input comes from the argument 'input'"),
    ],
)
def test_what_cannot_be_smoothed_is_said(layers: tuple[nn.Module, ...], reason: str, batches: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=reason):
        smooth_(nn.Sequential(*layers), batches)


def test_norms_and_relu_between(batches: list[Tensor]) -> None:
    torch.manual_seed(2)
    between = [nn.RMSNorm(16), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16)]
    model = nn.Sequential(*between, nn.LeakyReLU(), nn.Linear(16, 3)).eval()
    y = model(batches[0])
    assert [one.name for one in smooth_(model, batches).layers] == ["0 -> 1", "1 -> 4", "4 -> 6"]
    torch.testing.assert_close(model(batches[0]), y, rtol=0, atol=float(y.detach().abs().max()) * 2.0**-18)


class Dynamic(Block):
    """What torch.fx cannot trace."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() < 1e9 else x


def nan(batches: list[Tensor]) -> list[Tensor]:
    return [batches[0], batches[1].clone().fill_(torch.nan)]


@pytest.mark.parametrize(
    ("change", "settings", "error", "words"),
    [
        (lambda b: [], {}, ValueError, "`batches` is empty: calibration never run"),
        (iter, {}, TypeError, "`batches` must be a list"),
        (nan, {}, ValueError, "what 'norm' gives has NaN or an infinity"),
        (lambda b: b, {"alpha": 2.0}, ValueError, "`alpha` must be in [0, 1], got 2.0"),
        (lambda b: b, {"alpha": "best"}, TypeError, "`alpha` must be a number, got 'best'"),
        (lambda b: b, {"pairs": [("norm", "q")]}, TypeError, "`pairs` must be of the form"),
        (lambda b: b, {"pairs": [("norm", [])]}, ValueError, "no pair empty"),
        (lambda b: b, {"pairs": [("norm", ["q"]), ("up", ["q"])]}, ValueError, "every reader must be in one pair"),
        (lambda b: b, {"pairs": [("norm", ["none"])]}, ValueError, "'none' must be a layer with a weight, of kind"),
        (lambda b: b, {"pairs": [("drop", ["q"])]}, ValueError, "'drop' must be a layer with a weight"),
        (lambda b: b, {"pairs": [("norm", ["down"])]}, ValueError, "the same channels, got [16, 32]"),
        (lambda b: b, {"pairs": [("norm", ["q", "k"])]}, ValueError, "`pairs` must not change what the model computes"),
        (lambda b: b, {"pairs": [("norm", ["unused"])]}, ValueError, "calibration never run: no batch reaches"),
        (lambda b: b, {"pairs": []}, ValueError, "no layer can be smoothed"),
        (lambda b: b, {"act_quant": 8}, TypeError, "`act_quant` must be a Quantizer"),
        (lambda b: b, {"weight_quant": "int9"}, KeyError, "int9"),
    ],
)
def test_a_call_that_fails_leaves_the_model(
    change: Callable[[list[Tensor]], Any],
    settings: dict[str, Any],
    error: type[Exception],
    words: str,
    model: Block,
    batches: list[Tensor],
) -> None:
    before = {name: (one, one.detach().clone()) for name, one in model.named_parameters()}
    with pytest.raises(error, match=re.escape(words)):
        smooth_(model, change(batches), **settings)
    for name, one in model.named_parameters():
        assert one is before[name][0]
        assert torch.equal(one, before[name][1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_cannot_be_traced_needs_pairs(batches: list[Tensor]) -> None:
    model = Dynamic()
    with pytest.raises(ValueError, match=r"`pairs` must be given, since torch.fx cannot trace the model: \w+"):
        smooth_(model, batches)
    assert len(smooth_(model, batches, pairs=PAIRS).layers) == 2


# --- equalization -----------------------------------------------------------------------------------------------------


def uneven() -> Iterator[tuple[nn.Sequential, Tensor, list[str], dict[str, str]]]:
    """Models with channels of very different ranges, an input, names of pairs, and what has none."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU())
    conv.extend([nn.Conv2d(6, 6, 1, groups=6), nn.Flatten(), nn.Linear(6 * 36, 4)])
    of_conv = {"0": "its input comes from the argument 'input'", "5": "it has groups"}
    yield conv, torch.randn(2, 3, 18, 18), ["0 -> 3"], of_conv | {"7": "its input comes from '6' (Flatten)"}
    dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 4))
    yield dense, torch.randn(50, 8), ["0 -> 2", "2 -> 4"], {"0": "its input comes from the argument 'input'"}


@pytest.mark.parametrize("case", [0, 1], ids=["convolutions", "linear"])
def test_ranges_become_equal(case: int) -> None:
    model, x, names, skipped = list(uneven())[case]
    first = model[0].weight
    with torch.no_grad():
        first.mul_(torch.exp(2 * torch.randn(len(first))).view(-1, *(1 for _ in first.shape[1:])))
    y, weights = model(x).detach(), [p.detach().clone() for p in model.parameters()]
    report = equalize_(model)
    assert [one.name for one in report.layers] == names
    assert report.skipped == skipped
    for one in report.layers:
        producer, reader = (model.get_submodule(name).weight.detach() for name in one.name.split(" -> "))
        rows, columns = producer.abs().flatten(1).amax(1), reader.abs().transpose(0, 1).flatten(1).amax(1)
        torch.testing.assert_close(rows, columns, rtol=0.02, atol=0)
        assert one.after == pytest.approx(float(rows.max() / rows.min()), rel=0.02)
    assert report.layers[0].after < 0.5 * report.layers[0].before
    assert (model(x) - y).abs().max() <= 64 * 2.0**-24 * y.abs().max()
    assert any((p != w).any() for p, w in zip(model.parameters(), weights, strict=True))


def test_equalization_lowers_the_error_of_one_scale_for_all() -> None:
    model, x, _, _ = list(uneven())[1]
    with torch.no_grad():
        model[0].weight[::4] *= 50
    errors = []
    for _ in range(2):
        quantized = copy.deepcopy(model)
        for layer in (quantized[0], quantized[2], quantized[4]):
            layer.weight.data = fake_quantize(catalog["int8_per_tensor"], layer.weight.detach())
        off = (quantized(x) - model(x)).detach()
        errors.append(float(off.square().mean() / model(x).detach().square().mean()))
        equalize_(model)
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("model", "settings", "error", "words"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)), {}, ValueError, "no layer can be equalized: '0'"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), {"sweeps": 0}, ValueError, "`sweeps` must be at"),
        (nn.Sequential(nn.ReLU()), {}, ValueError, "the model has no such layers"),
        (nn.Sequential(nn.Linear(4, 4)), {"pairs": [("0", ["1"])]}, ValueError, "'1' must be a layer with a weight"),
    ],
)
def test_what_cannot_be_equalized_is_said(
    model: nn.Module, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        equalize_(model, **settings)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight.data[0, 0] = torch.inf
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="ranges must be finite"):
        equalize_(model)
    assert torch.equal(model[0].weight, before)
