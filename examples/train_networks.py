"""Train two float networks, of which `samebits.proofs.networks` makes integer ones, and write them to a file.

    python examples/train_networks.py [--output FILE] [--epochs N] [--seed N]

    mlp           64 pixels -> fc1 (64) -> ReLU -> fc2 (32) -> ReLU -> fc3 (10)
    transformer   8 tokens, the rows of the image with their place -> embed (32) -> self-attention of 4 heads, residual,
                  layer norm -> up (64) -> GELU -> down (32), residual, layer norm -> mean of the tokens -> head (10)

The images are those of `samebits.proofs.inputs.digits`; every third is held out. The file holds the weights in torch's
layout, ``<network>.<layer>.weight`` and ``.bias``, and for every place between layers the largest magnitude that the
training images have there, ``<network>.<place>.peak``, all float32. It comes with samebits as
``proofs/inputs/data/networks.safetensors``. The same seed gives the same file on the same machine; on another one the
order of float sums may differ, and with it the last digits of the weights and more.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear
from tqdm import tqdm

from samebits.proofs.inputs.digits import accuracy, batches, held_out, images
from samebits.proofs.networks.parameters import DATA, HEADS, SHAPES

Weights = dict[str, Tensor]
Peaks = dict[str, float]
BATCH = 64


def start(name: str) -> Weights:
    """Random weights of a network; those of a norm begin at 1."""
    weights = {}
    for layer, (out, *inputs) in SHAPES[name].items():
        spread = 1 / inputs[0] ** 0.5 if inputs else 0
        weights[f"{layer}.weight"] = torch.randn(out, *inputs) * spread + (not inputs)
        weights[f"{layer}.bias"] = torch.zeros(out)
    return {key: tensor.requires_grad_() for key, tensor in weights.items()}


def mlp(w: Weights, x: Tensor, peaks: Peaks) -> Tensor:
    """Images ``(n, 1, 8, 8)`` to logits; notes the largest magnitude at each place."""
    x = x.flatten(1)
    for layer in ("fc1", "fc2"):
        x = seen(peaks, layer, linear(x, w[f"{layer}.weight"], w[f"{layer}.bias"]).relu())
    return linear(x, w["fc3.weight"], w["fc3.bias"])


def transformer(w: Weights, x: Tensor, peaks: Peaks) -> Tensor:
    """Images ``(n, 1, 8, 8)`` to logits; notes the largest magnitude at each place."""
    n, width = len(x), SHAPES["transformer"]["embed"][0]

    def layer(name: str, given: Tensor) -> Tensor:
        return seen(peaks, name, linear(given, w[f"{name}.weight"], w[f"{name}.bias"]))

    def norm(name: str, given: Tensor) -> Tensor:
        return seen(peaks, name, layer_norm(given, (width,), w[f"{name}.weight"], w[f"{name}.bias"]))

    def heads(given: Tensor) -> Tensor:
        return given.reshape(n, 8, HEADS, -1).swapaxes(1, 2)

    h = layer("embed", torch.cat([x[:, 0], torch.eye(8).expand(n, 8, 8)], 2))
    q, k, v = (heads(layer(name, h)) for name in ("query", "key", "value"))
    scores = seen(peaks, "scores", q @ k.swapaxes(2, 3) / (width // HEADS) ** 0.5)
    mixed = seen(peaks, "mixed", (scores.softmax(-1) @ v).swapaxes(1, 2).reshape(n, 8, width))
    h = norm("norm1", seen(peaks, "residual1", h + layer("out", mixed)))
    inner = seen(peaks, "gelu", gelu(layer("up", h)))
    h = norm("norm2", seen(peaks, "residual2", h + layer("down", inner)))
    return linear(h.mean(1), w["head.weight"], w["head.bias"])


NETWORKS: dict[str, Callable[[Weights, Tensor, Peaks], Tensor]] = {"mlp": mlp, "transformer": transformer}


def seen(peaks: Peaks, place: str, x: Tensor) -> Tensor:
    """``x``, whose largest magnitude is noted."""
    peaks[place] = max(peaks.get(place, 0.0), float(x.detach().abs().max()))
    return x


def train(name: str, x: np.ndarray, y: np.ndarray, epochs: int, seed: int) -> Weights:
    """A float network, trained with AdamW on a one-cycle learning rate."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the order of float sums, and with it the result, depends on the number of threads
    weights, network = start(name), NETWORKS[name]
    total = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=total)
    for pictures, labels in tqdm(
        batches(x, y, epochs, seed, BATCH), total=total, desc=name, unit="batch", disable=None
    ):
        loss = cross_entropy(network(weights, torch.from_numpy(pictures), {}), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return {key: tensor.detach() for key, tensor in weights.items()}


def main() -> None:
    """Trains both, prints their accuracy on the held-out digits, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATA)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    x, y = images()
    kept: dict[str, np.ndarray] = {}
    for name, network in NETWORKS.items():
        weights, peaks = train(name, x[~held_out()], y[~held_out()], options.epochs, options.seed), Peaks()
        with torch.no_grad():
            network(weights, torch.from_numpy(x[~held_out()]), peaks)
            logits = network(weights, torch.from_numpy(x), {}).numpy()
        print(f"{name}: accuracy on 599 held-out digits: {accuracy(logits, y):.2f} %")
        kept |= {f"{name}.{key}": tensor.numpy() for key, tensor in weights.items()}
        kept |= {f"{name}.{place}.peak": np.array(peak, np.float32) for place, peak in peaks.items()}
    save_file(kept, options.output)


if __name__ == "__main__":
    main()
