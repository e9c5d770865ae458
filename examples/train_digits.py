"""Train the digit classifier in float and write it to a safetensors file: weights, images and real activations.

    python examples/train_digits.py [--output FILE] [--epochs N] [--seed N]

The images are scikit-learn's digits (1,797 real handwritten digits of 8 x 8 pixels); every third is held out. The file
holds

    conv1.weight, conv1.bias, ...      float32, torch layout: conv (out, in, height, width), linear (out, in)
    conv1.input_quant.scale, ...       scale of an uint8 quantizer of the input of each layer, from the training images
    activations.input, .conv1, ...     64 of the held-out images, and the outputs of every layer for them
    images, labels                     all digits: pixels 0 to 16, uint8

and comes with samebits as ``proofs/data/digits.safetensors``. The same seed gives the same file on the same machine; on
another one the order of float sums may differ, and with it the last digits of the weights and more.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from tqdm import tqdm

from samebits.core import catalog, choose_qparams
from samebits.proofs.inputs.digits import DATA, LAYERS, Checkpoint, accuracy, batches, held_out, save_checkpoint

BATCH = 64


def float_network() -> torch.nn.ModuleDict:
    """The layers that have weights; between them stand ReLUs."""
    return torch.nn.ModuleDict(
        {
            "conv1": torch.nn.Conv2d(1, 16, 3, padding=1),
            "conv2": torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
            "linear": torch.nn.Linear(512, 10),
        }
    )


def layer_inputs_and_outputs(
    network: torch.nn.ModuleDict, x: torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What goes into each layer and what comes out of it."""
    steps = {}
    for name, layer in network.items():
        x = x.flatten(1) if name == "linear" else x
        y = layer(x)
        steps[name] = (x, y)
        x = torch.relu(y)
    return steps


def train(x: np.ndarray, y: np.ndarray, epochs: int, seed: int) -> torch.nn.ModuleDict:
    """The float classifier, trained with AdamW on a one-cycle learning rate."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the order of float sums, and with it the result, depends on the number of threads
    network = float_network()
    total = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=total)
    for images, labels in tqdm(
        batches(x, y, epochs, seed, BATCH), total=total, desc="training", unit="batch", disable=None
    ):
        logits = layer_inputs_and_outputs(network, torch.from_numpy(images))["linear"][1]
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network


def tensors_of(network: torch.nn.ModuleDict, pixels: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Everything that goes into the file."""
    x = torch.from_numpy(pixels[:, None].astype(np.float32) / 16)
    tensors = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    with torch.no_grad():
        training = layer_inputs_and_outputs(network, x[~held_out()])
        some = layer_inputs_and_outputs(network, x[held_out()][:64])
    for name in LAYERS:
        q = catalog["uint8_per_tensor"]
        tensors[f"{name}.input_quant.scale"] = choose_qparams(q, training[name][0].numpy()).scale
        tensors[f"activations.{name}"] = some[name][1].numpy()
    tensors["activations.input"] = some["conv1"][0].numpy()
    return tensors | {"images": pixels, "labels": labels}


def main() -> None:
    """Trains, reports the accuracy and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATA, help="default: the file that comes with samebits")
    parser.add_argument("--epochs", type=int, default=40, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    arguments = parser.parse_args()

    digits = load_digits()
    pixels, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    x = pixels[:, None].astype(np.float32) / 16
    network = train(x[~held_out()], labels[~held_out()].astype(np.int64), arguments.epochs, arguments.seed)
    with torch.no_grad():
        logits = layer_inputs_and_outputs(network, torch.from_numpy(x))["linear"][1].numpy()
    print(f"accuracy on {held_out().sum()} held-out digits: {accuracy(logits, labels):.2f} %")
    save_checkpoint(arguments.output, Checkpoint(tensors_of(network, pixels, labels)))
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
