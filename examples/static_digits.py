"""The digit classifier quantized after training, in PyTorch's steps: prepare, calibrate, convert; in torch and in flax.

    python examples/static_digits.py [--observer min_max|histogram|mse] [--images N]

Takes the float weights that come with samebits. Calibrates on N images, one layer after the other, in both frameworks;
converts; and prints what each of them holds and how many of the held-out digits it gets right. Exit code 1 if codes,
scales, zero points or logits of the two differ in any bit.
"""

import argparse
import sys
from typing import Any

import numpy as np
import torch
from flax import nnx
from rich.console import Console
from rich.table import Table

from samebits.jax_backend import interop
from samebits.jax_backend import ptq as in_jax
from samebits.proofs import differences
from samebits.proofs.inputs.digits import accuracy, held_out, images, load_checkpoint
from samebits.torch_frontend import ptq as in_torch
from samebits.torch_frontend.ptq import Observer, ObserverKind, QConfig, default_per_channel_qconfig

WEIGHT = default_per_channel_qconfig.weight
ACTIVATION = default_per_channel_qconfig.activation.quantizer
OBSERVERS = {
    "min_max": Observer(ObserverKind.MIN_MAX, ACTIVATION),
    "histogram": Observer(ObserverKind.HISTOGRAM, ACTIVATION),
    "mse": Observer(ObserverKind.MIN_MAX, ACTIVATION.replace(statistic="mse")),
}


class TorchDigits(torch.nn.Module):
    """The classifier of ordinary torch layers."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = in_torch.QuantStub(), in_torch.DeQuantStub()
        self.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.linear = torch.nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, 1, 8, 8)`` to ``(batch, 10)``."""
        x = torch.relu(self.conv2(torch.relu(self.conv1(self.quant(x)))))
        y: torch.Tensor = self.dequant(self.linear(x.flatten(1)))
        return y


class FlaxDigits(nnx.Module):
    """The same of ordinary flax layers, channels last."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.quant, self.dequant = in_jax.QuantStub(), in_jax.DeQuantStub()
        self.conv1 = nnx.Conv(1, 16, (3, 3), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, padding=1, rngs=rngs)
        self.linear = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """``(batch, 1, 8, 8)`` to ``(batch, 10)``."""
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(self.quant(x.transpose(0, 2, 3, 1))))))
        return self.dequant(self.linear(x.transpose(0, 3, 1, 2).reshape(len(x), -1)))


def main() -> int:
    """Runs what the arguments ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observer", choices=tuple(OBSERVERS), default="histogram", help="default %(default)s")
    parser.add_argument("--images", type=int, default=256, help="to calibrate on, default %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small for more
    qconfig = QConfig(OBSERVERS[arguments.observer], WEIGHT)
    names = ("conv1", "conv2", "linear")
    floats = {
        n: v
        for n, v in load_checkpoint().tensors.items()
        if n.endswith((".weight", ".bias")) and n.split(".")[0] in names
    }
    model, flax_model = TorchDigits().eval(), FlaxDigits()
    model.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in floats.items()})
    interop.load_state_dict(flax_model, floats)
    x, labels = images()
    batches = np.array_split(x[~held_out()][: arguments.images], max(arguments.images // 64, 1))

    prepared: Any = in_torch.prepare(model, qconfig)
    in_torch.calibrate_in_order(prepared, map(torch.from_numpy, batches))
    converted: Any = in_torch.convert(prepared)
    flax_prepared: Any = in_jax.prepare(flax_model, qconfig)
    in_jax.calibrate_in_order(flax_prepared, map(np.asarray, batches))
    flax_converted: Any = in_jax.convert(flax_prepared)

    mine, theirs = converted.state_dict(), interop.state_dict(flax_converted)
    shown = Table("layer", "input scale", "zero", "codes of the weight", "differing")
    differing = 0
    for name in names:
        layer = getattr(converted, name)
        wrong = sum(differences(mine[key], theirs[key]).differing for key in theirs if key.startswith(name))
        scale, zero = layer.input_quant.scale.item(), layer.input_quant.zero_point.item()
        kind = f"{layer.weight.numel():,} {str(layer.weight.dtype).removeprefix('torch.')}"
        shown.add_row(name, f"{scale:.6f}", str(zero), kind, str(wrong))
        differing += wrong
    with torch.no_grad():
        logits = {
            "float": model(torch.from_numpy(x)),
            "prepared": prepared(torch.from_numpy(x)),
            "converted": converted(torch.from_numpy(x)),
            "converted, flax": nnx.jit(flax_converted)(x),
        }
    accuracies = Table("model", "accuracy", "logits that differ from converted")
    for name, of_model in logits.items():
        wrong = differences(logits["converted"], of_model).differing
        accuracies.add_row(name, f"{accuracy(np.asarray(of_model), labels):.2f} %", f"{wrong:,}")
        differing += 0 if name == "float" else wrong
    console = Console()
    console.print(
        f"{ACTIVATION.format} inputs by '{arguments.observer}', {WEIGHT.quantizer.format} weights per channel"
    )
    console.print(shown)
    console.print(accuracies)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
