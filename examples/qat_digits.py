"""Quantization-aware training of the digit classifier, in torch or in flax; one checkpoint that both load.

    python examples/qat_digits.py --framework torch                 trains, and writes digits_qat.safetensors
    python examples/qat_digits.py --framework jax --checkpoint digits_qat.safetensors      the same logits
    python examples/qat_digits.py --framework jax --all             all eight ways to train, as one table

Weights are quantized to 8 or 4 bits per output channel (--weights), the input of every layer to 8 bits per tensor.
Scales come from statistics (of the weights at hand; a running one of the inputs), or are learned with the gradient of
LSQ (--scale). Training starts from the float weights that come with samebits, or from scratch (--from-scratch): then
the network is first trained with scales from statistics, quantized from the first step on; the stage that follows is
the same for both.

What is printed in the end comes from the checkpoint, not from the network in memory: the accuracy on the held-out
digits, and the SHA-256 of the logits of all 1,797 digits, eager and compiled. Exit code 1 if these differ.
"""

import argparse
import hashlib
import importlib
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from samebits.core import Quantizer, catalog
from samebits.proofs.inputs.digits import (
    LAYERS,
    Checkpoint,
    accuracy,
    batches,
    held_out,
    images,
    load_checkpoint,
    logits,
    save_checkpoint,
)

Array = NDArray[Any]
Tensors = dict[str, Array]


class Quantizers(NamedTuple):
    """Those of all weights, and of the input of every layer."""

    weight: Quantizer
    input: Quantizer


BATCH = 64
FROM_SCRATCH = (40, 1e-2)  # epochs, peak learning rate
FINAL_STAGE = (10, 3e-3)  # of the stage that all share; --epochs
SCALE_RATE = 1e-3  # learning rate of scales relative to that of weights, which are some hundred times larger
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.1
MODES = {"torch": ("torch eager", "torch compiled"), "jax": ("jax eager", "jax jit")}
FASTER = {"torch": "torch eager", "jax": "jax jit"}  # where every mode is used once


def random_weights(seed: int) -> Tensors:
    """Where training from scratch starts, in both frameworks: uniform in +-1 / sqrt(inputs of a neuron)."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for layer, shape in LAYERS.items():
        limit = np.prod(shape[1:]) ** -0.5
        tensors[f"{layer}.weight"] = draw.uniform(-limit, limit, shape).astype(np.float32)
        tensors[f"{layer}.bias"] = draw.uniform(-limit, limit, shape[:1]).astype(np.float32)
    return tensors


def train(framework: str, bits: int, scale: str, *, from_scratch: bool, seed: int, epochs: int) -> Checkpoint:
    """The classifier, trained as the module says.

    Args:
        framework: "torch" or "jax"; ``bits``: of the weights, 8 or 4; ``scale``: "statistic" or "learned".
        epochs: of the final stage.
    """
    stage = torch_stage if framework == "torch" else jax_stage
    names = {"weight_quant": f"int{bits}_per_channel", "input_quant": "uint8_per_tensor"}
    q_w, q_x = (catalog[name] for name in names.values())
    statistics = Quantizers(q_w, q_x.replace(source="running_statistic"))
    learned = Quantizers(*(q.replace(source="learned", gradient="learned_scale") for q in (q_w, q_x)))
    tensors = random_weights(seed) if from_scratch else dict(load_checkpoint().tensors)
    if from_scratch:
        tensors = stage(tensors, statistics, *FROM_SCRATCH, seed)
    tensors = stage(tensors, statistics if scale == "statistic" else learned, epochs, FINAL_STAGE[1], seed + 1)
    return Checkpoint(tensors, **names)


def training_data(epochs: int, seed: int) -> tuple[Iterator[tuple[Array, Array]], int]:
    """Batches, shown as a progress bar, and how many of them there are."""
    x, y = (array[~held_out()] for array in images())
    total = epochs * (len(x) // BATCH)
    return tqdm(batches(x, y, epochs, seed, BATCH), total=total, unit="batch", leave=False, disable=None), total


def torch_stage(tensors: Tensors, quantizers: Quantizers, epochs: int, peak: float, seed: int) -> Tensors:
    """Trains from the given tensors and returns them as they are then."""
    import torch

    from samebits.proofs.inputs import digits_torch

    torch.set_num_threads(1)  # the order of float sums, and with it the result, depends on the number of threads
    network = digits_torch.classifier(*quantizers)
    digits_torch.load_tensors(network, tensors)
    scales = [p for name, p in network.named_parameters() if name.endswith("scale")]
    others = [p for name, p in network.named_parameters() if not name.endswith("scale")]
    groups = [{"params": others, "weight_decay": WEIGHT_DECAY}, {"params": scales, "weight_decay": 0.0}]
    data, total = training_data(epochs, seed)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [peak, peak * SCALE_RATE], total, cycle_momentum=False)
    network.train()
    for x, y in data:
        loss = torch.nn.functional.cross_entropy(
            network(torch.from_numpy(x)), torch.from_numpy(y), label_smoothing=LABEL_SMOOTHING
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return digits_torch.tensors_of(network)


def jax_stage(tensors: Tensors, quantizers: Quantizers, epochs: int, peak: float, seed: int) -> Tensors:
    """As `torch_stage`, in flax and optax."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from samebits.proofs.inputs import digits_jax

    network = digits_jax.classifier(*quantizers)
    digits_jax.load_tensors(network, tensors)
    data, total = training_data(epochs, seed)

    def adamw(peak: float, weight_decay: float) -> optax.GradientTransformation:
        rate = optax.cosine_onecycle_schedule(total, peak, pct_start=0.3, div_factor=25, final_div_factor=1e4)
        return optax.adamw(rate, weight_decay=weight_decay)

    def kinds(parameters: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "scale" if "scale" in jax.tree_util.keystr(path) else "other", parameters
        )

    groups = {"other": adamw(peak, WEIGHT_DECAY), "scale": adamw(peak * SCALE_RATE, 0.0)}
    optimizer = nnx.Optimizer(network, optax.multi_transform(groups, kinds), wrt=nnx.Param)

    @nnx.jit
    def step(network: digits_jax.Classifier, optimizer: nnx.Optimizer[Any], x: jax.Array, y: jax.Array) -> None:
        def loss(network: digits_jax.Classifier) -> jax.Array:
            targets = optax.smooth_labels(jax.nn.one_hot(y, 10), LABEL_SMOOTHING)
            return jnp.mean(optax.softmax_cross_entropy(network(x), targets))

        optimizer.update(network, nnx.grad(loss)(network))

    network.train()  # type: ignore[no-untyped-call]
    for x, y in data:
        step(network, optimizer, jnp.asarray(x), jnp.asarray(y, jnp.int32))
    return digits_jax.tensors_of(network)


def float_logits(framework: str) -> Array:
    """Logits of all digits from the float weights, nothing quantized."""
    room = importlib.import_module(f"samebits.proofs.inputs.digits_{framework}")
    network = room.classifier(None, None)
    room.load_tensors(network, load_checkpoint().tensors)
    return np.asarray(room.inference(network, FASTER[framework])(images()[0]))


def show_checkpoint(framework: str, checkpoint: Checkpoint, console: Console) -> bool:
    """Prints accuracy and digest of a checkpoint; whether eager and compiled logits are the same bits."""
    labels = images()[1]
    reference = accuracy(float_logits(framework), labels)
    shown = Table("mode", "accuracy", "difference")
    shown.add_row(f"{framework}, float", f"{reference:.2f} %", "")
    digests = []
    for mode in MODES[framework]:
        result = logits(mode, 256, checkpoint)
        reached = accuracy(result, labels)
        shown.add_row(mode, f"{reached:.2f} %", f"{reached - reference:+.2f}")
        digests.append((mode, hashlib.sha256(result.tobytes()).hexdigest()))
    console.print(f"weights {checkpoint.weight_quant}, inputs {checkpoint.input_quant}")
    console.print(shown)
    for mode, digest in digests:
        print(f"{digest}  logits, {mode}")
    return len({digest for _, digest in digests}) == 1


def show_all(framework: str, seed: int, epochs: int, console: Console) -> None:
    """Trains in all eight ways and prints the accuracies."""
    labels = images()[1]
    reference = accuracy(float_logits(framework), labels)
    shown = Table("weights", "scales", "from", "accuracy", "difference", "seconds")
    for bits, scale, from_scratch in itertools.product((8, 4), ("statistic", "learned"), (False, True)):
        start = time.perf_counter()
        checkpoint = train(framework, bits, scale, from_scratch=from_scratch, seed=seed, epochs=epochs)
        seconds = time.perf_counter() - start
        reached = accuracy(logits(FASTER[framework], 256, checkpoint), labels)
        shown.add_row(
            f"{bits} bits",
            scale,
            "scratch" if from_scratch else "float",
            f"{reached:.2f} %",
            f"{reached - reference:+.2f}",
            f"{seconds:.0f}",
        )
    console.print(f"{framework}, float: {reference:.2f} %")
    console.print(shown)


def main() -> int:
    """Runs what the arguments ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", choices=("torch", "jax"), required=True)
    parser.add_argument(
        "--weights", type=int, choices=(8, 4), default=8, help="bits of the weights, default %(default)s"
    )
    parser.add_argument("--scale", choices=("statistic", "learned"), default="statistic", help="default %(default)s")
    parser.add_argument("--from-scratch", action="store_true", help="start from random weights")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--epochs", type=int, default=FINAL_STAGE[0], help="of the final stage, default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("digits_qat.safetensors"), help="default %(default)s")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--checkpoint", type=Path, help="evaluate this checkpoint instead of training one")
    instead.add_argument("--all", action="store_true", help="train in all eight ways; writes nothing")
    arguments = parser.parse_args()
    if not arguments.output.parent.is_dir():
        parser.error(f"--output: no directory {arguments.output.parent}")
    console = Console()
    if arguments.all:
        show_all(arguments.framework, arguments.seed, arguments.epochs, console)
        return 0
    if arguments.checkpoint is None:
        how = {"from_scratch": arguments.from_scratch, "seed": arguments.seed, "epochs": arguments.epochs}
        save_checkpoint(arguments.output, train(arguments.framework, arguments.weights, arguments.scale, **how))
        console.print(f"wrote {arguments.output}")
    try:
        checkpoint = load_checkpoint(arguments.checkpoint or arguments.output)
    except ValueError as error:
        parser.error(str(error))
    return 0 if show_checkpoint(arguments.framework, checkpoint, console) else 1


if __name__ == "__main__":
    sys.exit(main())
