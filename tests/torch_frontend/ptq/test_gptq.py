"""GPTQ in torch: the codes of core, and models layer by layer."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samebits.core import PerGroup, catalog
from samebits.core.configs import DynamicActivation
from samebits.core.gptq import gptq as core_gptq
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import choose_qparams, fake_quantize
from samebits.torch_frontend.ptq import QuantWeight, gptq, gptq_, load_quantized, save_quantized
from samebits.torch_frontend.ptq.gptq import hessian_update, inverse_factor, output_error
from samebits.torch_frontend.ptq.storing import dense

from ...core.test_gptq import QUANTIZERS, REFUSED, SETTINGS
from ...layerwise_inputs import layer, statistics


class Block(nn.Module):
    """Three layers that see the same input, one behind them, two more, and one that is never called."""

    def __init__(self, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop, self.unused = nn.Dropout(0.5), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        x = x + self.out(torch.softmax(self.q(h) @ self.k(h).mT, -1) @ self.v(h))
        return x + self.down(self.drop(torch.relu(self.up(x))))


LAYERS = ("q", "k", "v", "out", "up", "down")
BITS4 = "int4_per_channel"


@pytest.fixture
def model() -> Block:
    torch.manual_seed(0)
    return Block()


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.eye(16) + 0.3 * torch.randn(16, 16, generator=generator)
    return [torch.randn(4, 10, 16, generator=generator) @ mixing for _ in range(3)]


def test_codes_are_those_of_core() -> None:
    """Promised where no value lies within the last bits of a factor of a boundary: here, none of over 70,000 does."""
    compared = 0
    for rows, columns in ((12, 24), (20, 48)):
        w, x = layer(rows, columns, seed=columns)
        hessian = statistics(x)
        for q in QUANTIZERS.values():
            for settings in (*SETTINGS, {"blocksize": 20}):
                if q.scale.two_level and settings.get("group_scales") == "updated":
                    continue
                expected = core_gptq(q, w, hessian, **settings)
                codes, qparams, w_hat, losses = gptq(q, torch.tensor(w), torch.tensor(hessian), **settings)
                assert_same_bits(expected[0], codes)
                assert_same_bits(expected[1].scale, qparams.scale)
                if q.affine:
                    assert_same_bits(expected[1].zero_point, qparams.zero_point)
                assert_same_bits(expected[2], w_hat)
                np.testing.assert_allclose(losses.numpy(), expected[3], rtol=1e-9, atol=1e-12)
                compared += codes.numel()
    assert compared > 70_000


def test_codes_of_recorded_inputs_are_those_of_core() -> None:
    w, x = layer(12, 24)
    hessian, n = torch.zeros(24, 24, dtype=torch.float64), 0
    for piece in torch.tensor(x).split(150):
        hessian, n = hessian_update(hessian, n, piece)
    assert n == len(x)
    np.testing.assert_allclose(hessian.numpy(), statistics(x), rtol=1e-13, atol=1e-13)
    expected = core_gptq(QUANTIZERS["per group"], w, statistics(x))
    assert_same_bits(expected[0], gptq(QUANTIZERS["per group"], torch.tensor(w), hessian)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_rounded_to_float32(dtype: torch.dtype) -> None:
    w, x = layer(12, 24)
    given, hessian = torch.tensor(w).to(dtype), torch.tensor(statistics(x))
    for one, other in zip(
        gptq(QUANTIZERS["per group"], given, hessian),
        gptq(QUANTIZERS["per group"], given.float(), hessian),
        strict=True,
    ):
        assert_same_bits(getattr(one, "scale", one), getattr(other, "scale", other))


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED)
def test_bad_input_is_refused_as_in_core(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    w, x = layer(8, 16)
    given = {"q": QUANTIZERS["per channel"], "w": w, "hessian": statistics(x), **changes}
    given |= {name: torch.tensor(given[name]) for name in ("w", "hessian")}
    with pytest.raises(error, match=re.escape(words)):
        gptq(**given)


def test_factor_is_that_of_the_inverse() -> None:
    hessian = torch.tensor(statistics(layer(1, 24)[1]))
    u = inverse_factor(hessian)
    diagonal = torch.where(hessian.diagonal() == 0, 1.0, hessian.diagonal())
    damped = hessian - hessian.diagonal().diag() + torch.diag(diagonal + 0.01 * diagonal.mean())
    torch.testing.assert_close(u.T @ u @ damped, torch.eye(24, dtype=torch.float64), rtol=0, atol=1e-12)


# --- models -----------------------------------------------------------------------------------------------------------


def sequential(model: Block, batches: list[Tensor]) -> dict[str, Tensor]:
    """The weights, by a model that is run whole for each layer, with all inputs kept."""
    model, found = copy.deepcopy(model).eval(), {}
    for name in LAYERS:
        linear, seen = model.get_submodule(name), list[Tensor]()
        handle = linear.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for batch in batches:
                model(batch)
        handle.remove()
        hessian, _ = hessian_update(torch.zeros(2 * (linear.in_features,)).double(), 0, torch.cat(seen).flatten(0, -2))
        found[name] = gptq(catalog[BITS4], linear.weight.detach(), hessian)[2]
        linear.weight.data = found[name]
    return found


def test_layers_see_what_quantized_ones_before_them_give(model: Block, batches: list[Tensor]) -> None:
    expected = sequential(model, batches)
    plain = copy.deepcopy(model)
    report = gptq_(model, BITS4, batches)
    for name, w_hat in expected.items():
        assert_same_bits(w_hat, dense(model.get_submodule(name)))
    assert [one.name for one in report.layers] == list(LAYERS)
    assert report.skipped == {"unused": "no batch reaches it"}
    assert torch.equal(model.unused.weight, plain.unused.weight)
    assert all(one.method == "gptq" and one.after < 0.95 * one.before and one.rows == 120 for one in report.layers)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_layer_is_never_worse_than_rounding_to_nearest(model: Block, batches: list[Tensor]) -> None:
    """With so much damping that GPTQ is nothing but rounding to nearest, or by scales that do not fit."""
    for q, settings in ((BITS4, {"percdamp": 1e9}), ("int8_per_channel", {}), (BITS4, {"act_order": True})):
        changed = copy.deepcopy(model)
        for one in gptq_(changed, q, batches, **settings).layers:
            assert one.after <= one.before
            assert (one.method == "nearest") == (one.after == one.before)
            if one.method == "nearest":
                w = model.get_submodule(one.name).weight.detach()
                assert_same_bits(fake_quantize(catalog[q], w), dense(changed.get_submodule(one.name)))


def test_where_gptq_is_worse_the_layer_is_rounded_to_nearest() -> None:
    """It takes the best step for each column alone: for single rows of 8 columns, now and then a worse way."""
    q, worse = catalog[BITS4], 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x, w = torch.randn(4, 8, generator=generator), torch.randn(1, 8, generator=generator)
        linear = nn.Linear(8, 1, bias=False)
        linear.weight.data = w.clone()
        hessian, _ = hessian_update(torch.zeros(8, 8).double(), 0, x)
        by_gptq = output_error(w, gptq(q, w, hessian)[2], hessian)
        nearest = output_error(w, fake_quantize(q, w, choose_qparams(q, w)), hessian)
        (report,) = gptq_(linear, q, [x]).layers
        assert (report.before, report.after) == (nearest, min(nearest, by_gptq))
        if by_gptq > nearest:
            worse += 1
            assert report.method == "nearest"
            assert_same_bits(fake_quantize(q, w), dense(linear))
    assert worse >= 3


def test_passes_end_with_what_they_look_for(model: Block, batches: list[Tensor]) -> None:
    calls = dict.fromkeys((*LAYERS, "norm"), 0)
    for name in calls:
        model.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1}), always_call=False
        )
    gptq_(model, BITS4, batches)
    # one batch for the order, then 4 stages of 3 batches: q k v, out, up, down
    assert calls == {"norm": 13, "q": 10, "k": 10, "v": 10, "out": 7, "up": 4, "down": 1}


def test_modes_and_gradients_stay(model: Block, batches: list[Tensor]) -> None:
    model.train()
    model.norm.eval()
    gptq_(model, BITS4, batches, lambda layer, name: name == "up")
    assert model.training
    assert model.drop.training
    assert not model.norm.training
    assert isinstance(model.up.weight, QuantWeight)
    assert model.down.weight.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("form", [lambda x: [x], lambda x: (x,), lambda x: {"x": x}])
def test_batches_may_be_arguments_or_keywords(
    form: Callable[[Tensor], Any], model: Block, batches: list[Tensor]
) -> None:
    expected = copy.deepcopy(model)
    gptq_(expected, BITS4, batches)
    gptq_(model, BITS4, [form(x) for x in batches])
    assert torch.equal(model.down.weight, expected.down.weight)


def test_stages_can_be_watched(model: Block, batches: list[Tensor]) -> None:
    seen = []

    def progress(stages: Any) -> Iterator[Any]:
        for stage in stages:
            seen.append(list(stage))
            yield stage

    gptq_(model, BITS4, batches, progress=progress)
    assert seen == [["q", "k", "v"], ["out"], ["up"], ["down"]]


def test_a_layer_that_is_called_twice_sees_both_inputs() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 6)
    x = torch.randn(50, 6)
    hessian, n = torch.zeros(6, 6).double(), 0
    with torch.no_grad():
        for seen in (x, linear(x)):
            hessian, n = hessian_update(hessian, n, seen)
    expected = gptq(catalog[BITS4], linear.weight.detach(), hessian)[2]
    (report,) = gptq_(nn.Sequential(linear, linear), BITS4, [x]).layers
    assert report.rows == 100
    assert_same_bits(expected, dense(linear))


def with_nan(batches: list[Tensor]) -> list[Tensor]:
    batches[1][0, 0, 0] = torch.nan
    return batches


class Breaks:
    """Batches of which the second run through fails."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches, self.runs = batches, 0

    def __iter__(self) -> Iterator[Tensor]:
        self.runs += 1
        yield from self.batches
        if self.runs > 3:
            raise RuntimeError("the disk is full")


@pytest.mark.parametrize(
    ("change", "settings", "error", "words"),
    [
        (lambda b: [], {}, ValueError, "`batches` is empty: calibration never run"),
        (lambda b: iter(b), {}, TypeError, "`batches` must be a list, a DataLoader or another iterable"),
        (lambda b: b[0], {}, TypeError, "`batches` must be"),
        (with_nan, {}, ValueError, "'q': its recorded inputs have NaN or an infinity"),
        (lambda b: [x[:0] for x in b], {}, ValueError, "'q': calibration never run: its inputs have no rows"),
        (Breaks, {}, RuntimeError, "the disk is full"),
        (lambda b: b, {"filter_fn": lambda m, n: n == "none"}, ValueError, "chooses no layer; layers of kind Linear"),
        (lambda b: b, {"filter_fn": lambda m, n: n == "unused"}, ValueError, "calibration never run: no batch reaches"),
        (lambda b: b, {"q": catalog[BITS4].replace(granularity=PerGroup(32))}, ValueError, "'q': the length of axis"),
        (lambda b: b, {"q": "int4_per_nothing"}, KeyError, "int4_per_nothing"),
        (lambda b: b, {"q": 4}, TypeError, "`q` must be a Quantizer"),
        (lambda b: b, {"blocksize": 0}, ValueError, "`blocksize` must be at least 1, got 0"),
        (lambda b: b, {"percdamp": -1.0}, ValueError, "`percdamp` must be finite"),
        (lambda b: [b[0][:1, :3]], {"percdamp": 0.0}, ValueError, "'q': `hessian` is not positive definite"),
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
    before, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=re.escape(words)):
        gptq_(model, **{"q": BITS4, "batches": change(batches), **settings})
    assert all(model.get_parameter(name) is parameter for name, parameter in before.items())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training


def test_configs_say_how_codes_are_kept(model: Block, batches: list[Tensor], tmp_path: Path) -> None:
    plain = copy.deepcopy(model)
    gptq_(plain, BITS4, batches)
    config = DynamicActivation("int8_affine_per_token", BITS4, layout="packed")
    gptq_(model, config, batches)
    up: Any = model.up.weight
    assert (up.act_quant, up.code_layout) == (config.activation, "packed")
    assert 2 * up.codes.numel() == up.numel()
    assert_same_bits(up.dequantize(), dense(plain.up))
    save_quantized(model, tmp_path / "model.safetensors")
    other = Block().eval()
    load_quantized(other, tmp_path / "model.safetensors")
    assert_same_bits(other(batches[0]).detach(), model.eval()(batches[0]).detach())
