"""Trained in torch, served in JAX: a quantized digit classifier, converted in one call; every logit has the same bits.

    python examples/train_in_torch_serve_in_jax.py [--epochs N]

Trains from random weights, 4 bits for weights and 8 for the input of every layer; converts the
model to flax; runs both on all 1,797 digits, torch eager and JAX compiled. Exit code 1 if a logit differs in any bit.
"""

import argparse
import sys

import torch
from flax import nnx
from torch import nn
from tqdm import tqdm

from samebits.core import catalog
from samebits.jax_backend import interop
from samebits.proofs import differences
from samebits.proofs.inputs.digits import accuracy, batches, held_out, images
from samebits.torch_frontend.nn import QuantConv2d, QuantLinear

INPUT = catalog["uint8_per_tensor"].replace(source="running_statistic")  # its scale is learned from batches, then kept
BATCH, RATE = 64, 1e-2


def network() -> nn.Module:
    """``(batch, 1, 8, 8)`` to ``(batch, 10)``, of ordinary and of quantized layers."""
    return nn.Sequential(
        QuantConv2d(1, 16, 3, padding=1, weight_quant="int4_per_channel", input_quant=INPUT),
        nn.ReLU(),
        QuantConv2d(16, 32, 3, stride=2, padding=1, weight_quant="int4_per_channel", input_quant=INPUT),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        QuantLinear(512, 10, weight_quant="int4_per_channel", input_quant=INPUT),
    )


def train(model: nn.Module, epochs: int) -> None:
    """On the digits that are not held out."""
    x, y = (array[~held_out()] for array in images())
    total = epochs * (len(x) // BATCH)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total)
    model.train()
    for pixels, labels in tqdm(batches(x, y, epochs, 0, BATCH), total=total, unit="batch", leave=False, disable=None):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(pixels)), torch.from_numpy(labels)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.eval()


def main() -> int:
    """Runs what the arguments ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="default %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small for more
    torch.manual_seed(0)
    model = network()
    train(model, arguments.epochs)

    served = nnx.jit(interop.to_flax(model))  # weights, scales and mode come along; images have channels last

    x, labels = images()
    with torch.no_grad():
        trained = model(torch.from_numpy(x)).numpy()
    logits = served(x.transpose(0, 2, 3, 1))
    print(f"trained in torch: {accuracy(trained, labels):.2f} % of the held-out digits")
    found = differences(trained, logits)
    print(f"served in JAX: {found.differing} of {trained.size:,} logits differ")
    return 1 if found.differing else 0


if __name__ == "__main__":
    sys.exit(main())
