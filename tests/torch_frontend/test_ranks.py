"""``DistributedDataParallel`` over gloo with two processes: this one and one that it starts, on halves of each batch.

The other process runs this file as a program; what it holds in the end it leaves in a file.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from samebits.core import PerAxis, catalog
from samebits.proofs.inputs.compare import assert_same_bits, same_bits
from samebits.torch_frontend import choose_qparams, components
from samebits.torch_frontend.nn import (
    FoldedBatchNorm,
    QuantConv2d,
    QuantIdentity,
    QuantLinear,
    QuantReLU,
    TensorQuantizer,
)
from samebits.torch_frontend.quant import Int8ActPerTensorFloatMSE
from samebits.torch_frontend.ranks import choose_over_ranks

SYMMETRIC, AFFINE = catalog["uint8_per_tensor"], catalog["uint8_affine_per_tensor"]
RUNS: dict[str, Any] = {"source": "running_statistic"}
LEARNED: dict[str, Any] = {"source": "learned", "gradient": "learned_scale"}
THEN_LEARNED: dict[str, Any] = {"source": "statistic_then_learned", "gradient": "learned_scale", "steps": 2}
OBSERVERS = {  # of the input; from the ends of each block, exactly those of the whole batch
    "symmetric": SYMMETRIC.replace(**RUNS),
    "affine": AFFINE.replace(**RUNS, momentum=None),
    "per axis": AFFINE.replace(**RUNS, granularity=PerAxis(-3)),
    "window": SYMMETRIC.replace(**RUNS, window=3, window_percentile=50.0),
    "batch in training": AFFINE.replace(**RUNS, batch_in_training=True),
    "power of two": SYMMETRIC.replace(**RUNS, restriction="power_of_two"),
    "learned": AFFINE.replace(**LEARNED),
    "percentile": SYMMETRIC.replace(**RUNS, statistic="percentile", percentile=90.0),
    "mse": AFFINE.replace(**RUNS, statistic="mse"),
}
COMPONENTS: dict[str, Callable[[], nn.Module]] = {  # of which the same is said
    "together": lambda: affine(components.RuntimeStatsScaling(components.AbsMinMax()), components.RuntimeZeroPoint()),
    "learned": lambda: affine(
        components.ParameterFromRuntimeStatsScaling(2, components.AbsMax()), components.ParameterZeroPoint(7.0)
    ),
    "alone": lambda: components.RuntimeStatsScaling(components.AbsMax()),
    "delayed": lambda: components.TernaryQuant(components.ParameterScaling(1.0), quant_delay_steps=2),
}
MEANS = ("percentile", "mse")
Results = dict[str, Any]


def affine(scaling: nn.Module, zero: nn.Module) -> nn.Module:
    """uint8 out of components."""
    parts = components.IntQuant(signed=False), scaling, components.IntScaling(False, False)
    return components.RescalingIntQuant(*parts, zero, components.BitWidthConst(8))


class Observers(nn.Module):
    """Each of the quantizers on the same input, and a parameter, without which there is nothing to distribute."""

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.ModuleDict({name: TensorQuantizer(q) for name, q in OBSERVERS.items()})
        self.made = nn.ModuleDict({name: make() for name, make in COMPONENTS.items()})
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        values = [held(x).sum() for held in self.held.values()]
        values += [made(x)[0].sum() for name, made in self.made.items() if name != "alone"]
        return self.factor * (torch.stack(values).sum() + self.made["alone"](x))


def network() -> nn.Sequential:
    """States of all kinds behind one another, a folded batch normalization, and noise."""
    torch.manual_seed(0)
    weight = catalog["int4_per_channel"].replace(**THEN_LEARNED)
    noisy = TensorQuantizer(catalog["int4_per_channel"].replace(**LEARNED, rounding="stochastic"), (5, 64), seed=3)
    return nn.Sequential(
        FoldedBatchNorm(
            QuantConv2d(2, 4, 3, 2, 1, weight_quant=weight, input_quant=AFFINE.replace(**RUNS)), nn.BatchNorm2d(4)
        ),
        QuantReLU(SYMMETRIC.replace(**LEARNED, delay=1)),
        QuantIdentity(Int8ActPerTensorFloatMSE),
        nn.Flatten(),
        QuantLinear(64, 5, weight_quant=noisy, input_quant=SYMMETRIC.replace(**THEN_LEARNED, statistic="percentile")),
    )


def small() -> nn.Sequential:
    """What is compiled."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), QuantLinear(128, 3, input_quant=AFFINE.replace(**RUNS)), QuantReLU(AFFINE.replace(**LEARNED))
    )


def batches() -> list[Tensor]:
    """Whole ones, whose halves have other ranges."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(8, 2, 8, 8, generator=draw) * torch.arange(1 + k, 9 + k).reshape(8, 1, 1, 1) for k in range(5)]


def train(model: Any, part: Callable[[Tensor], Tensor]) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for x in batches():
        optimizer.zero_grad()
        model(part(x)).square().mean().backward()
        optimizer.step()


def work(rank: int) -> Results:
    """What one of the two processes does, and holds in the end."""

    def part(x: Tensor) -> Tensor:
        return x.chunk(2)[rank]

    found: Results = {}
    model = Observers()
    train(DistributedDataParallel(model), part)
    found["observers"] = model.state_dict()
    alone = TensorQuantizer(
        OBSERVERS["affine"]
    )  # not within the model: of this process alone, and it waits for no other
    if rank == 0:
        alone(batches()[0])
    for name, module in {"network": network(), "eager": small(), "compiled": small()}.items():
        run = torch.compile(module, fullgraph=True, backend="aot_eager") if name == "compiled" else module
        train(DistributedDataParallel(run, broadcast_buffers=name != "network"), part)
        found[name] = module.state_dict()
    found["evaluation"] = module.eval()(batches()[0]).detach()
    late = DistributedDataParallel(
        nn.Sequential(nn.Linear(8, 8), QuantReLU(SYMMETRIC.replace(**LEARNED, granularity=PerAxis(1))))
    )
    found["late shape"] = message_of(lambda: late(part(batches()[0])))
    broken = part(batches()[0]).clone()
    broken.view(-1)[0] = torch.nan if rank else 1.0
    found["nan"] = message_of(lambda: DistributedDataParallel(Observers())(broken))
    return found


def message_of(call: Callable[[], object]) -> str:
    """Of the error that a call raises."""
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "no error"


@contextmanager
def group(rank: int, folder: Path) -> Iterator[None]:
    """As one of two processes that meet in a file."""
    place = f"file://{folder / 'store'}"
    distributed.init_process_group("gloo", place, timedelta(seconds=120), rank=rank, world_size=2)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """What both processes hold."""
    folder = tmp_path_factory.mktemp("ranks")
    other = subprocess.Popen([sys.executable, __file__, str(folder)])
    try:
        with group(0, folder):
            own = work(0)
        assert other.wait(timeout=120) == 0
    finally:
        other.kill()
    return own, torch.load(folder / "results")


def test_all_ranks_hold_the_same_bits(results: tuple[Results, Results]) -> None:
    for name in ("observers", "network", "eager", "compiled"):
        one, two = (found[name] for found in results)
        assert one.keys() == two.keys()
        for key in one:
            assert_same_bits(one[key], two[key], call=f"{name}, {key}")
    assert_same_bits(*(found["evaluation"] for found in results))


def test_states_from_the_ends_are_those_of_the_whole_batch(results: tuple[Results, Results]) -> None:
    state = results[0]["observers"]
    for name, q in OBSERVERS.items():
        if name in (*MEANS, "learned"):
            continue
        whole = TensorQuantizer(q)
        for x in batches():
            whole(x)
        for key, want in whole.state_dict().items():
            assert_same_bits(want, state[f"held.{name}.{key}"], call=f"{name}, {key}")


def test_states_of_components_are_those_of_the_whole_batch(results: tuple[Results, Results]) -> None:
    """Those that no gradient moves."""
    state = results[0]["observers"]
    for name in ("together", "alone"):
        whole = COMPONENTS[name]()
        for x in batches():
            whole(x)
        for key, want in whole.state_dict().items():
            assert_same_bits(want, state[f"made.{name}.{key}"], call=f"{name}, {key}")


def test_other_statistics_are_the_mean_over_the_ranks(results: tuple[Results, Results]) -> None:
    for name in MEANS:
        q = OBSERVERS[name].replace(source="statistic")
        expected = TensorQuantizer(OBSERVERS[name])
        for x in batches():
            parts = [choose_qparams(q, half) for half in x.chunk(2)]
            means = [
                torch.stack([p.float() for p in pair]).mean(0)
                for pair in zip(*(p[: 1 + q.affine] for p in parts), strict=True)
            ]
            for key, mean in zip(("scale", "zero_point"), means, strict=False):
                held = getattr(expected, key)
                held.copy_(mean if held.isnan() else held * 0.9 + mean * (1 - 0.9))
        for key, want in expected.state_dict().items():
            assert_same_bits(want, results[0]["observers"][f"held.{name}.{key}"], call=f"{name}, {key}")


def test_compiled_code_learns_what_eager_code_does(results: tuple[Results, Results]) -> None:
    for key, want in results[0]["eager"].items():
        assert_same_bits(want, results[0]["compiled"][key], call=key)


def test_the_whole_model_has_learned(results: tuple[Results, Results]) -> None:
    fresh = network().state_dict()
    for key, state in results[0]["network"].items():
        assert not same_bits(fresh[key], state), key


def test_what_is_refused_is_refused_on_every_rank(results: tuple[Results, Results]) -> None:
    for found in results:
        assert "run a batch in training mode before it wraps the module" in found["late shape"]
        assert "`x` must be finite to choose a scale from it" in found["nan"]


def test_without_processes_nothing_is_exchanged() -> None:
    """And no operator stands in a program."""
    x = batches()[0]
    assert not distributed.is_initialized()
    for q in (AFFINE, OBSERVERS["percentile"]):
        for one, other in zip(choose_qparams(q, x)[: 1 + q.affine], choose_over_ranks(q, x), strict=False):
            assert_same_bits(one, other)
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph.code)
        return graph

    torch.compile(TensorQuantizer(OBSERVERS["affine"]), fullgraph=True, backend=backend)(x)
    assert "over_ranks" not in graphs[0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    with group(1, place):
        torch.save(work(1), place / "results")
