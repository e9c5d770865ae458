"""Training loops: optimizers, copies, several devices, checkpoints of a run, mixed precision."""

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import replicate

from samebits.core import PerAxis, catalog
from samebits.proofs.inputs.compare import assert_same_bits, same_bits
from samebits.torch_frontend.nn import (
    FoldedBatchNorm,
    QuantConv2d,
    QuantIdentity,
    QuantLinear,
    QuantReLU,
    TensorQuantizer,
)

INT4, UINT8, AFFINE = catalog["int4_per_channel"], catalog["uint8_per_tensor"], catalog["uint8_affine_per_tensor"]
LEARNED: dict[str, Any] = {"source": "learned", "gradient": "learned_scale"}
THEN_LEARNED: dict[str, Any] = {"source": "statistic_then_learned", "gradient": "learned_scale", "steps": 4}
RUNS: dict[str, Any] = {"source": "running_statistic"}
STEPS = 7


def network() -> nn.Sequential:
    """Every kind of state: learned at once, later, after a delay; averages and a window; noise; batch statistics."""
    torch.manual_seed(0)
    conv = QuantConv2d(1, 4, 3, 2, 1, weight_quant=INT4.replace(**THEN_LEARNED), input_quant=AFFINE.replace(**RUNS))
    stochastic = TensorQuantizer(INT4.replace(**LEARNED, rounding="stochastic"), (6, 64), seed=3)
    window = UINT8.replace(**RUNS, window=3, window_percentile=50.0)
    return nn.Sequential(
        FoldedBatchNorm(conv, nn.BatchNorm2d(4)),
        QuantReLU(UINT8.replace(**LEARNED, granularity=PerAxis(1))),
        nn.Flatten(),
        QuantLinear(64, 6, weight_quant=stochastic, input_quant=window.replace(delay=3)),
        QuantReLU(UINT8.replace(**THEN_LEARNED, delay=2, restriction="log_float")),
        QuantLinear(6, 5, weight_quant=INT4.replace(**LEARNED), input_quant=AFFINE.replace(**RUNS, momentum=None)),
    )


def batches(count: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Images and labels; no two batches have the same range."""
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(12, 1, 8, 8, generator=draw) * (1 + k), torch.randint(5, (12,), generator=draw))
        for k in range(count)
    ]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return loss.detach()


def assert_same_states(model: nn.Module, other: nn.Module) -> None:
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert_same_bits(one, two, call=name)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adam, fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
}


# --- optimizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_made_before_the_first_batch_trains_what_that_sets(name: str) -> None:
    """Also a scale whose shape the first batch tells: parameters stay the objects that the optimizer was given."""
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    given = {name: p for name, p in model.named_parameters() if name.endswith("scale")}
    assert len(given) == 5
    assert given["1.act_quant.scale"].numel() == 0
    data = batches()
    model(data[0][0])  # sets
    first = {name: p.detach().clone() for name, p in given.items()}
    assert first["1.act_quant.scale"].shape == (1, 4, 1, 1)
    for batch in data:
        step(model, optimizer, batch)
    for key, p in model.named_parameters():
        if key in given:
            assert p is given[key]
            assert bool(p.isfinite().all())
            assert not same_bits(first[key], p.detach()), key


def test_an_optimizer_does_not_move_a_scale_that_is_a_statistic_still() -> None:
    """It is the average of the statistics then: the gradient is zero, and so is the step, without weight decay."""
    held = TensorQuantizer(UINT8.replace(**THEN_LEARNED))
    twin = TensorQuantizer(UINT8.replace(**RUNS))
    optimizer = torch.optim.Adam(held.parameters(), 0.1)
    for k, (x, _) in enumerate(batches()):
        optimizer.zero_grad()
        held(x.requires_grad_()).square().sum().backward()
        twin(x)
        optimizer.step()
        assert same_bits(held.scale, twin.scale) == (k < 4)


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_a_deep_copy_goes_on_by_itself(steps: int) -> None:
    data, model = batches(), network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for batch in data[:steps]:
        step(model, optimizer, batch)
    held = copy.deepcopy((model, optimizer))
    before = copy.deepcopy(model.state_dict())
    losses = [step(*held, batch) for batch in data[steps:]]
    for one, other in zip(before.values(), model.state_dict().values(), strict=True):
        assert_same_bits(one, other)
    for loss, batch in zip(losses, data[steps:], strict=True):
        assert_same_bits(loss, step(model, optimizer, batch))
    assert_same_states(model, held[0])


@pytest.fixture
def on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `replicate` copy on the CPU, as it does between devices: the first ones are views of the originals."""

    class Copies(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
            ctx.tensors = len(tensors)
            return (*(t.view_as(t) for t in tensors), *(t.clone() for _ in range(count - 1) for t in tensors))

        @staticmethod
        def backward(ctx: Any, *g: Tensor) -> tuple[Tensor | None, ...]:
            n = ctx.tensors
            return (None, *(torch.stack(g[i::n]).sum(0) for i in range(n)))

    def copies(tensors: list[Tensor], devices: list[int], detach: bool) -> list[list[Tensor]]:
        if detach:
            return [[*tensors], *([t.clone() for t in tensors] for _ in devices[1:])]
        flat = Copies.apply(len(devices), *tensors)
        return [[*flat[k * len(tensors) : (k + 1) * len(tensors)]] for k in range(len(devices))]

    module = replicate.__globals__ if callable(replicate) else vars(replicate)
    monkeypatch.setitem(module, "_broadcast_coalesced_reshape", copies)


@pytest.mark.usefixtures("on_one_device")
def test_copies_on_several_devices_compute_and_train_as_the_original() -> None:
    """As ``DataParallel`` copies: of the state, what the first device learns stays, and the others start from it."""
    data, model = batches(), network()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for batch in data[:4]:
        with pytest.raises(RuntimeError, match=r"before it wraps the module, or use DistributedDataParallel"):
            copies_of(model)[1](batch[0])
        step(model, optimizer, batch)
    twin = copy.deepcopy(model)
    for x, labels in data[4:]:
        model.zero_grad()
        twin.zero_grad()
        starts = [copy.deepcopy(twin), twin]
        outputs = [m(part) for m, part in zip(copies_of(model), x.chunk(2), strict=True)]
        wanted = [m(part) for m, part in zip((twin, starts[0]), x.chunk(2), strict=True)]
        for y, want in zip(outputs, wanted, strict=True):
            assert_same_bits(want, y)
        F.cross_entropy(torch.cat(outputs), labels).backward()
        F.cross_entropy(torch.cat(wanted), labels).backward()
        for p, own, other in zip(model.parameters(), twin.parameters(), starts[0].parameters(), strict=True):
            parts: list[Any] = [own.grad, other.grad]
            assert_same_bits(torch.stack(parts).sum(0), p.grad)
        for module in (model, twin):
            with torch.no_grad():
                for p, source in zip(module.parameters(), model.parameters(), strict=True):
                    p.sub_(0.01 * source.grad)
        assert_same_states(twin, model)


def copies_of(model: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = torch.nn.parallel.replicate(model, [0, 1])
    return found


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(name: str) -> None:
    """Interrupted after every step: before the first, in the delay, while a scale is a statistic still, behind."""
    data, model = batches(), network()
    optimizer = OPTIMIZERS[name](model.parameters())
    stored = []
    for batch in (None, *data):
        if batch is not None:
            step(model, optimizer, batch)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        stored.append(file.getvalue())
    for done in range(STEPS):
        again = network()
        other = OPTIMIZERS[name](again.parameters())
        state = torch.load(io.BytesIO(stored[done]))
        again.load_state_dict(state["model"])
        other.load_state_dict(state["optimizer"])
        for batch in data[done:]:
            step(again, other, batch)
        assert_same_states(model, again)
        for one, two in zip(optimizer.state.values(), other.state.values(), strict=True):
            for key in one:
                assert_same_bits(torch.as_tensor(one[key]), torch.as_tensor(two[key]), call=key)


# --- mixed precision --------------------------------------------------------------------------------------------------


def over_codes() -> nn.Sequential:
    """Both operands of every contraction are quantized."""
    torch.manual_seed(0)
    quant: dict[str, Any] = {"weight_quant": INT4.replace(**LEARNED), "input_quant": AFFINE.replace(**RUNS)}
    return nn.Sequential(
        FoldedBatchNorm(QuantConv2d(1, 4, 3, 2, 1, **quant), nn.BatchNorm2d(4)),
        QuantReLU(UINT8.replace(**LEARNED)),
        nn.Flatten(),
        QuantLinear(64, 5, **quant),
    )


def mixed(model: nn.Module, enabled: bool) -> Iterator[Tensor]:
    """Losses of a loop with autocast and `GradScaler`."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3, enabled=enabled)
    for x, labels in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = F.cross_entropy(model(x), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        yield loss.detach()


def test_autocast_and_gradient_scaling_change_no_bit_of_contractions_of_codes() -> None:
    plain, other = over_codes(), over_codes()
    for one, two in zip(mixed(plain, False), mixed(other, True), strict=True):
        assert_same_bits(one, two)
    assert_same_states(plain, other)


def test_all_states_train_under_autocast_and_stay_in_float32() -> None:
    model = network()
    model.append(nn.Linear(5, 5)).append(QuantIdentity("int8_per_token"))
    before = copy.deepcopy(model.state_dict())
    losses = [*mixed(model, True)]
    assert bool(torch.stack(losses).isfinite().all())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(batches()[0][0]).dtype == torch.bfloat16
    for key, state in model.state_dict().items():
        assert state.dtype in (torch.float32, torch.int64)
        assert not same_bits(before[key], state), key
    again = network()
    again.append(nn.Linear(5, 5)).append(QuantIdentity("int8_per_token"))
    again.load_state_dict(before)
    assert losses == [*mixed(again, True)]


def test_a_step_that_gradient_scaling_skips_leaves_parameters_and_counts_a_tensor() -> None:
    """Infinite gradients: the optimizer does nothing; statistics have learned from the forward pass all the same."""
    model, (x, labels) = over_codes(), batches()[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(x)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = copy.deepcopy(model.state_dict())
    scaler.scale(F.cross_entropy(model(x * 3 + 1), labels) * 1e4).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**126
    parameters = dict(model.named_parameters())
    for key, state in model.state_dict().items():
        if not key.endswith("zero_point"):  # behind a ReLU that is 0
            assert same_bits(before[key], state) == (key in parameters), key
