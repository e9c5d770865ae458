"""AdaRound and bias correction of torch models."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samebits.core import catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import choose_qparams, fake_quantize, quantize
from samebits.torch_frontend.ptq import adaround_, correct_biases_, gptq_
from samebits.torch_frontend.ptq.storing import dense

from .test_gptq import BITS4, LAYERS, Block


@pytest.fixture
def model() -> Block:
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 10, 16, generator=generator) + 0.5 for _ in range(3)]


def test_adaround_of_a_model(model: Block, batches: list[Tensor]) -> None:
    plain = copy.deepcopy(model)
    report = adaround_(model, BITS4, batches, steps=100)
    assert [one.name for one in report.layers] == list(LAYERS)
    assert report.skipped == {"unused": "no batch reaches it"}
    q = catalog[BITS4]
    for one in report.layers:
        assert one.method == "adaround"
        assert one.after < one.before
        w, w_hat = (dense(m.get_submodule(one.name)) for m in (plain, model))
        qparams = choose_qparams(q, w)
        codes = quantize(q, w_hat, qparams)
        assert_same_bits(fake_quantize(q, w_hat, qparams), w_hat)  # numbers of that scale
        assert (codes - quantize(q, w, qparams)).abs().max() == 1


def test_adaround_refuses_before_it_begins(model: Block, batches: list[Tensor]) -> None:
    for settings, words in (({"steps": 0}, "'q': `steps` must be at least 1"), ({"batches": []}, "calibration never")):
        state = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=re.escape(words)):
            adaround_(**{"model": model, "q": BITS4, "batches": batches, **settings})
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_means_of_outputs_are_kept(model: Block, batches: list[Tensor]) -> None:
    model.up.bias = None
    quantized = copy.deepcopy(model)
    gptq_(quantized, BITS4, batches)
    before = copy.deepcopy(quantized)
    report = correct_biases_(quantized, model, batches)
    assert [one.name for one in report.layers] == list(LAYERS)
    assert report.skipped == {"unused": "no batch reaches it"}
    seen: dict[str, list[Tensor]] = {name: [] for name in LAYERS}
    for name in LAYERS:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, n=name: seen[n].append(args[0].flatten(0, -2))
        )
    for x in batches:
        model(x)
    for one in report.layers:
        x = torch.cat(seen[one.name]).detach()
        means = [m.get_submodule(one.name)(x).mean(0).detach() for m in (model, before, quantized)]
        assert float((means[1] - means[0]).square().sum()) == pytest.approx(one.before, rel=1e-3)
        assert (means[2] - means[0]).abs().max() < 1e-5 < 0.1 * (means[1] - means[0]).abs().max()
        assert one.after < 1e-6 * one.before
        assert_same_bits(
            before.get_submodule(one.name).weight.detach(), quantized.get_submodule(one.name).weight.detach()
        )


@pytest.mark.parametrize(
    ("other", "settings", "words"),
    [
        (Block(), {"batches": []}, "calibration never run"),
        (nn.Sequential(nn.Linear(16, 16)), {}, "`float_model` must have a layer 'q' with a weight of (16, 16)"),
        (Block(32), {}, "`float_model` must have a layer 'q' with a weight of (16, 16)"),
        (Block(), {"filter_fn": lambda m, n: False}, "chooses no layer"),
        (Block(), {"batches": [torch.full((1, 2, 16), torch.nan)]}, "'q': `mean` must be finite"),
    ],
)
def test_a_correction_that_fails_leaves_the_model(
    other: nn.Module, settings: dict[str, Any], words: str, model: Block, batches: list[Tensor]
) -> None:
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(words)):
        correct_biases_(**{"model": model, "float_model": other, "batches": batches, **settings})
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
