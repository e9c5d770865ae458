"""Activation recomputation: a model trains as without it, whatever a backward pass computes again."""

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from samebits.core import Quantizer, ScaleRule, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.nn import QuantConv2d, QuantLinear, QuantReLU, TensorQuantizer
from samebits.torch_frontend.recomputation import _REGIONS

Function = Callable[[Tensor], Tensor]
INT8 = catalog["int8_per_tensor"]
AFFINE = catalog["uint8_affine_per_tensor"]


def source(name: str, q: Quantizer = INT8, **rule: Any) -> Quantizer:
    """The quantizer with scales from another source."""
    return q.replace(scale=ScaleRule(source=name, **rule))


RUNS = "running_statistic"
QUANTIZERS: dict[str, Quantizer] = {
    "statistic": INT8,
    "mean": source(RUNS),
    "exponential mean": source(RUNS, momentum=0.3),
    "window": source(RUNS, statistic="percentile", window=3),
    "affine": source(RUNS, AFFINE),
    "float zero": source(RUNS, AFFINE).replace(zero_point_domain="float"),
    "batch in training": source(RUNS, momentum=0.3, batch_in_training=True),
    "learned": source("learned"),
    "then learned": source("statistic_then_learned", steps=3).replace(gradient="learned_scale"),
    "affine then learned": source("statistic_then_learned", AFFINE, steps=3),
    "then learned, batch": source("statistic_then_learned", steps=3, batch_in_training=True),
    "logarithm": source("statistic_then_learned", steps=3, restriction="log_float"),
    "delay": source(RUNS).replace(delay=2),
    "stochastic": INT8.replace(rounding="stochastic"),
    "all at once": source("statistic_then_learned", AFFINE, steps=3).replace(rounding="stochastic", delay=2),
}
REENTRANT, PLAIN = partial(checkpoint, use_reentrant=True), partial(checkpoint, use_reentrant=False)
WAYS = {"reentrant": REENTRANT, "plain": PLAIN}


def straight(function: Function, x: Tensor) -> Tensor:
    """Without a checkpoint."""
    return function(x)


class Model(nn.Module):
    """Layers with quantizers of one kind. A forward pass runs its part once or twice."""

    def __init__(self, q: Quantizer) -> None:
        super().__init__()
        torch.manual_seed(3)
        quants = [TensorQuantizer(q, seed=seed) for seed in range(5)]
        self.first = QuantLinear(6, 6, weight_quant=quants[0], input_quant=quants[1])
        self.act = QuantReLU(quants[2])
        self.second = QuantLinear(6, 6, input_quant=quants[3])
        self.between = quants[4]

    def part(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.between(self.first(x * 1.5))).sin())

    def forward(self, x: Tensor, way: Callable[..., Tensor], times: int = 2) -> Tensor:
        for _ in range(times):
            x = way(self.part, x) + x
        return x


def batches(count: int) -> list[Tensor]:
    """Numbers of different sizes, so that no two scales are the same."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(5, 6, generator=draw) * (1 + k) for k in range(count)]


def trained(q: Quantizer, run: Callable[[Model, Tensor], Tensor], accumulate: int = 1) -> list[Tensor]:
    """Outputs, gradients and states of a model along six tensors, ``accumulate`` of them to each backward pass."""
    model = Model(q)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    seen, given = [], []
    for k, x in enumerate(batches(6)):
        given.append(x.requires_grad_())
        seen.append(run(model, x))
        if k % accumulate == accumulate - 1:
            torch.stack([y.square().sum() for y in seen[-accumulate:]]).sum().backward()
            seen += [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
            seen += [t.clone() for t in model.state_dict().values()]
            optimizer.step()
            optimizer.zero_grad()
    return [t.detach() for t in (*seen, *(x.grad for x in given if x.grad is not None))]


def assert_all_same(expected: list[Tensor], got: list[Tensor]) -> None:
    """Bit for bit."""
    for one, other in zip(expected, got, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_training_is_that_without_checkpoints(name: str, way: str, times: int) -> None:
    """Two calls to a backward pass: of one forward pass, or of two whose gradients are added."""
    q, accumulate = QUANTIZERS[name], 3 - times
    expected = trained(q, lambda model, x: model(x, straight, times), accumulate)
    assert_all_same(expected, trained(q, lambda model, x: model(x, WAYS[way], times), accumulate))


def nested(outer: Callable[..., Tensor], inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One checkpoint around two others; what runs before, between and behind them is repeated once, they twice."""

    def way(function: Function, x: Tensor) -> Tensor:
        return outer(lambda x: inner(function, inner(function, x.cos()) * 2), x)

    return way


@pytest.mark.parametrize("inner", WAYS)
@pytest.mark.parametrize("outer", WAYS)
@pytest.mark.parametrize("name", ["mean", "all at once", "affine then learned"])
def test_checkpoints_within_checkpoints(name: str, outer: str, inner: str) -> None:
    q = QUANTIZERS[name]
    expected = trained(q, lambda model, x: model(x, nested(straight, straight), 1))
    assert_all_same(expected, trained(q, lambda model, x: model(x, nested(WAYS[outer], WAYS[inner]), 1)))


def kept_on_cpu(function: Function) -> Function:
    """With other hooks for saved tensors."""

    def kept(x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            return function(x)

    return kept


@pytest.mark.parametrize(
    "way",
    [
        partial(checkpoint, use_reentrant=False, early_stop=False),
        partial(checkpoint, use_reentrant=False, preserve_rng_state=False),
        partial(
            checkpoint,
            use_reentrant=False,
            context_fn=partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default]),
        ),
        lambda function, x: torch.utils.checkpoint.checkpoint_sequential([function], 1, x, use_reentrant=False),
        lambda function, x: kept_on_cpu(partial(PLAIN, function))(x),
        lambda function, x: PLAIN(kept_on_cpu(function), x),
    ],
    ids=["no early stop", "own random state", "selective", "sequential", "saved around", "saved within"],
)
@pytest.mark.parametrize("name", ["mean", "all at once"])
def test_other_ways_to_checkpoint(name: str, way: Callable[..., Tensor]) -> None:
    q = QUANTIZERS[name]
    expected = trained(q, lambda model, x: model(x, straight))
    assert_all_same(expected, trained(q, lambda model, x: model(x, way)))


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_that_is_kept_is_repeated_twice(way: str) -> None:
    found = []
    for run in (straight, WAYS[way]):
        model, (x, other, *_) = Model(QUANTIZERS["all at once"]), batches(3)
        y = model(x.requires_grad_(), run)
        model(other, run)  # another step before the backward passes
        for factor in (1.0, 2.0):
            (y.sum() * factor).backward(retain_graph=True)
        found.append([x.grad, *(t.clone() for t in model.state_dict().values())])
    assert_all_same(*found)


def with_gradients_inside(q: Quantizer, inner: Callable[..., Tensor], outer: Callable[..., Tensor]) -> list[Tensor]:
    """Outputs, gradients and states of a checkpoint within which a backward pass runs, along three tensors."""
    held = TensorQuantizer(q, seed=1)

    def part(x: Tensor) -> Tensor:
        first = inner(lambda x: held(x.sin()).cos(), x)
        (g,) = torch.autograd.grad(first.sum(), x, retain_graph=True)
        return held(held(x * 3 + g).exp()).sin()

    found: list[Tensor] = []
    for x in batches(3):
        y = outer(part, x.requires_grad_())
        y.sum().backward()
        assert x.grad is not None
        found += [y.detach(), x.grad, *(t.clone() for t in held.state_dict().values())]
    return found


@pytest.mark.parametrize("name", ["mean", "stochastic"])
def test_a_backward_pass_within_a_checkpoint(name: str) -> None:
    """What is repeated there is repeated again with the whole, and the calls behind it still use what was theirs."""
    q = QUANTIZERS[name]
    assert_all_same(with_gradients_inside(q, straight, straight), with_gradients_inside(q, PLAIN, PLAIN))


def test_a_checkpoint_that_is_repeated_before_it_has_run_is_refused() -> None:
    """Without early stop torch repeats the whole, and with it calls that have not been made."""
    with pytest.raises(RuntimeError, match="what to use here is unknown"):
        with_gradients_inside(QUANTIZERS["mean"], PLAIN, partial(PLAIN, early_stop=False))


def test_another_forward_pass_within_a_backward_pass_is_refused() -> None:
    x, other = batches(2)
    for name, changes in (("mean", True), ("stochastic", True), ("statistic", False), ("learned", False)):
        held = TensorQuantizer(QUANTIZERS[name])
        held(x)
        y = x.clone().requires_grad_().sin()
        y.register_hook(lambda g, held=held: held(other) * g)
        if changes:
            with pytest.raises(RuntimeError, match=r"not to repeat what torch.utils.checkpoint ran before"):
                y.sum().backward(retain_graph=True)
            held.eval()
        y.sum().backward()


def test_what_calls_used_is_forgotten_with_the_graph() -> None:
    model, (x, *_) = Model(QUANTIZERS["mean"]), batches(1)
    before = len(_REGIONS)
    outputs = [model(x.requires_grad_(), way) for way in WAYS.values()]
    assert len(_REGIONS) == before + 4
    torch.stack(outputs).sum().backward()
    del outputs
    gc.collect()
    assert len(_REGIONS) == before


def test_two_tensors_before_a_backward_pass_keep_their_zero_points() -> None:
    held, (x, other, *_) = TensorQuantizer(QUANTIZERS["float zero"]), batches(2)
    (held(x.requires_grad_()) + held(other.requires_grad_())).sum().backward()


@pytest.mark.parametrize("name", ["mean", "all at once"])
def test_one_quantizer_of_both_operands(name: str) -> None:
    found = []
    for way in (straight, *WAYS.values()):
        held = TensorQuantizer(QUANTIZERS[name], seed=2)
        torch.manual_seed(0)
        layer = QuantConv2d(2, 3, 2, weight_quant=held, input_quant=held)
        for x in batches(3):
            image = x[:4].reshape(1, 2, 3, 4).requires_grad_()
            y = way(layer, image)
            y.sum().backward()
            found.append([y, image.grad, layer.weight.grad, *(t.clone() for t in held.state_dict().values())])
    for k, results in enumerate(found):
        assert_all_same([t.detach() for t in found[k % 3]], [t.detach() for t in results])


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_in_compiled_code(way: str) -> None:
    q = QUANTIZERS["mean"]
    expected, (x, *_) = Model(q), batches(1)
    expected(x, straight)
    model = Model(q)
    model(x, straight)
    compiled = torch.compile(model, backend="aot_eager_decomp_partition")
    for given in batches(3):
        given.requires_grad_()
        want, got = expected(given, straight), compiled(given, WAYS[way])
        assert_same_bits(want, got)
        want.sum().backward()
        got.sum().backward()
        assert_all_same([*expected.state_dict().values()], [*model.state_dict().values()])


@pytest.mark.parametrize("way", WAYS)
def test_compiled_code_in_a_checkpoint_is_right_or_refused(way: str) -> None:
    x, *others = batches(3)
    for name, changes in (("mean", True), ("stochastic", True), ("statistic", False)):
        torch._dynamo.reset()
        held, alone = (TensorQuantizer(QUANTIZERS[name], seed=1) for _ in range(2))
        compiled = torch.compile(held, fullgraph=True, backend="aot_eager_decomp_partition")
        for given in (x, *others):
            y = WAYS[way](lambda t, run=compiled: run(t.sin()).sin(), given.requires_grad_())
            assert_same_bits(alone(given.sin()).sin(), y)
            if changes:
                with pytest.raises(RuntimeError, match="compile the checkpoint together with what is in it"):
                    y.sum().backward()
            else:
                y.sum().backward()
        assert_all_same([*alone.state_dict().values()], [*held.state_dict().values()])
