"""Accuracy of quantization-aware training on the digits, beside float and beside a straight-through estimator by hand.

    python benchmarks/qat_accuracy.py --seeds 0 1 2 --weights 8 4 3 2 1 --activations 8 4

A small convolutional network with batch normalization, which is folded into the convolutions while it trains. All its
weights, per output channel, and the inputs of all its layers, per tensor, are quantized. Every network is trained from
scratch, in as many epochs as the float one, and in half of them from the float one of the same seed. In the last third
of the steps the statistics of batch normalization are at rest. Then it is folded for good, and must not change a bit of
the logits.

``samebits`` learns its scales (LSQ) after some steps of statistics; those of weights of one bit are the mean magnitude
at hand, unless ``--learn-one-bit``. ``by hand`` is what one writes without a library: ``x + (fq(x) - x).detach()``,
scales from the largest magnitude of each channel, and a running one of activations; one bit is the sign, times the mean
magnitude. Both are trained by the same recipe, on one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from samebits.core import BinaryFormat, IntegerFormat, PerAxis, Quantizer
from samebits.proofs.inputs.digits import accuracy, batches, held_out, images
from samebits.torch_frontend.nn import FoldedBatchNorm, QuantConv2d, QuantLinear

BATCH = 64
EPOCHS = {"scratch": 16, "float": 8}
PEAK = {"scratch": 1e-2, "float": 2e-3}  # learning rates
FROZEN = 1 / 3  # share of the steps, the last ones, in which the statistics of batch normalization are at rest
SCALE_RATE = 1e-2  # learning rate of scales relative to that of weights
STATISTICS = {"scratch": 1 / 2, "float": 1 / 8}  # share of the steps, after which scales are learned; one bit: 1 / 2
LayerOf = Callable[..., nn.Module]  # a linear layer or a convolution, by the arguments of torch


def learned(q: Quantizer, start: str, statistic: str = "extremes", *, one_bit: bool = False) -> Quantizer:
    """With a scale that is learned after some steps of statistics: folded weights change their size at first.

    With weights of one bit it takes long until the size of the activations settles, from a float network, too.
    """
    steps = int((STATISTICS["scratch"] if one_bit else STATISTICS[start]) * steps_of(start))
    return q.replace(source="statistic_then_learned", steps=steps, statistic=statistic, gradient="learned_scale")


def weight_quantizer(bits: int, start: str, learn_one_bit: bool) -> Quantizer:
    """Per output channel. One bit: the sign. Two bits begin where the square error is least."""
    if bits == 1:
        q = Quantizer(format=BinaryFormat(), granularity=PerAxis(0)).replace(statistic="absmean")
        q = learned(q, start, "absmean", one_bit=True) if learn_one_bit else q
        return q.replace(gradient="pass_through", floor=1e-3)
    q = Quantizer(format=IntegerFormat(bits, narrow=bits > 2), granularity=PerAxis(0))
    return learned(q, start, "mse" if bits == 2 else "extremes")


def input_quantizer(bits: int, start: str, *, one_bit: bool) -> Quantizer:
    """Per tensor; what layers get here is never negative."""
    return learned(Quantizer(format=IntegerFormat(bits, signed=False)), start, one_bit=one_bit)


def steps_of(start: str) -> int:
    """How many batches training has."""
    return EPOCHS[start] * (int((~held_out()).sum()) // BATCH)


class Straight:
    """Quantization by hand, with the gradient of the identity."""

    def __init__(self, weight_bits: int, input_bits: int) -> None:
        self.weight_bits, self.last = weight_bits, 2**input_bits - 1

    def weight(self, w: Tensor) -> Tensor:
        """The largest magnitude of a channel is the largest code; one bit: the sign."""
        size, others = w.detach().abs(), tuple(range(1, w.ndim))
        if self.weight_bits == 1:
            q = torch.where(w >= 0, 1.0, -1.0) * size.mean(others, keepdim=True)
        else:
            end = 2 ** (self.weight_bits - 1) - 1
            scale = (size.amax(others, keepdim=True) / end).clamp(min=1e-8)
            q = (w / scale).round().clamp(-end, end) * scale
        return w + (q - w).detach()

    def input(self, layer: Any, x: Tensor) -> Tensor:
        """By a running scale."""
        if layer.training:
            scale = x.detach().amax() / self.last
            layer.scale.copy_(torch.where(layer.scale > 0, 0.9 * layer.scale + 0.1 * scale, scale))
        q: Tensor = (x / layer.scale).round().clamp(0, self.last) * layer.scale
        return x + (q - x).detach()


class StraightConv(nn.Conv2d):
    """A convolution quantized by hand."""

    def __init__(self, by_hand: Straight, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.by_hand = by_hand
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """As torch's."""
        x = self.by_hand.input(self, x)
        return F.conv2d(x, self.by_hand.weight(self.weight), self.bias, self.stride, self.padding)


class StraightLinear(nn.Linear):
    """A linear layer quantized by hand."""

    def __init__(self, by_hand: Straight, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.by_hand = by_hand
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """As torch's."""
        return F.linear(self.by_hand.input(self, x), self.by_hand.weight(self.weight), self.bias)


def network(conv: LayerOf, linear: LayerOf) -> nn.Sequential:
    """Two convolutions with batch normalization, and a linear layer."""
    return nn.Sequential(
        FoldedBatchNorm(conv(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)),
        nn.ReLU(),
        FoldedBatchNorm(conv(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)),
        nn.ReLU(),
        nn.Flatten(),
        linear(256, 10),
    )


def layers(kind: str, weight_bits: int, input_bits: int, start: str, learn_one_bit: bool) -> tuple[LayerOf, LayerOf]:
    """Convolution and linear layer of a competitor."""
    if kind == "float":
        return nn.Conv2d, nn.Linear
    if kind == "by hand":
        by_hand = Straight(weight_bits, input_bits)
        return partial(StraightConv, by_hand), partial(StraightLinear, by_hand)
    quant: dict[str, Any] = {"weight_quant": weight_quantizer(weight_bits, start, learn_one_bit)}
    quant["input_quant"] = input_quantizer(input_bits, start, one_bit=weight_bits == 1)
    return partial(QuantConv2d, **quant), partial(QuantLinear, **quant)


def train(model: nn.Module, start: str, seed: int) -> None:
    """The recipe of all competitors."""
    x, y = (array[~held_out()] for array in images())
    scales = [p for name, p in model.named_parameters() if name.endswith("scale")]
    others = [p for name, p in model.named_parameters() if not name.endswith("scale")]
    groups = [{"params": others, "weight_decay": 1e-2}] + [{"params": scales, "weight_decay": 0.0}] * bool(scales)
    rates = [PEAK[start], PEAK[start] * SCALE_RATE][: len(groups)]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps_of(start), cycle_momentum=False)
    model.train()
    for step, (pixels, labels) in enumerate(batches(x, y, EPOCHS[start], seed, BATCH)):
        if step == int((1 - FROZEN) * steps_of(start)):
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        optimizer.zero_grad()
        outputs = model(torch.from_numpy(pixels))
        F.cross_entropy(outputs, torch.from_numpy(labels), label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


@torch.no_grad()
def evaluate(model: nn.Sequential) -> float:
    """Accuracy on the digits that were held out, in percent. AssertionError if folding for good changes a bit."""
    x, labels = images()
    logits = model.eval()(torch.from_numpy(x))
    folded = nn.Sequential(*(m.folded() if isinstance(m, FoldedBatchNorm) else m for m in model))
    if not torch.equal(logits, folded(torch.from_numpy(x))):
        raise AssertionError("the folded network gives other logits")
    return accuracy(np.asarray(logits), labels)


def trained(
    kind: str, bits: tuple[int, int], start: str, seed: int, state: dict[str, Tensor], learn_one_bit: bool = False
) -> nn.Sequential:
    """A network of a kind; ``state`` is that of a float network, which it starts from unless from scratch."""
    torch.manual_seed(seed)
    model = network(*layers(kind, *bits, start, learn_one_bit))
    if start == "float":
        model.load_state_dict(state, strict=False)
    train(model, start, seed)
    return model


def shown(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"


def main() -> None:
    """Trains all networks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--weights", type=int, nargs="+", default=[8, 4, 3, 2, 1], help="bits, default 8 4 3 2 1")
    parser.add_argument("--activations", type=int, nargs="+", default=[8, 4], help="bits, default 8 4")
    parser.add_argument("--learn-one-bit", action="store_true", help="learn scales of one bit, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console, begin = Console(width=100), time.process_time()
    pairs = [(w, a) for a in arguments.activations for w in arguments.weights]
    plain: list[float] = []
    found: dict[tuple[tuple[int, int], str, str], list[float]] = {
        (pair, kind, start): [] for pair in pairs for kind in ("samebits", "by hand") for start in EPOCHS
    }
    with tqdm(total=len(arguments.seeds) * (1 + len(found)), leave=False, disable=None) as bar:
        for seed in arguments.seeds:
            model = trained("float", (0, 0), "scratch", seed, {})
            plain.append(evaluate(model))
            bar.update()
            for (bits, kind, start), results in found.items():
                state, learn = model.state_dict(), arguments.learn_one_bit
                results.append(evaluate(trained(kind, bits, start, seed, state, learn)))
                bar.update()
    console.print(f"float: {shown(plain)} (seeds {arguments.seeds}; {time.process_time() - begin:.0f} s of one core)")
    print("| weights / activations | samebits, from scratch | by hand | samebits, from float | by hand |")
    print("|---|---|---|---|---|")
    for bits in pairs:
        cells = [shown(found[bits, kind, start]) for start in EPOCHS for kind in ("samebits", "by hand")]
        print(f"| {bits[0]} / {bits[1]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
