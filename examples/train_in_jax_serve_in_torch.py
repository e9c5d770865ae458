"""Trained in JAX, served in torch: a quantized digit classifier, converted in one call; every logit has the same bits.

    python examples/train_in_jax_serve_in_torch.py [--epochs N]

Trains flax layers with optax from random weights, 4 bits for weights and 8 for the input of every layer; converts the
model to torch; runs all 1,797 digits, JAX compiled, torch eager and compiled. Exit code 1 if a bit of a logit
differs.
"""

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx
from tqdm import tqdm

from samebits.core import catalog
from samebits.jax_backend import interop
from samebits.jax_backend.nn import QuantConv, QuantLinear
from samebits.proofs import differences
from samebits.proofs.inputs.digits import accuracy, batches, held_out, images

INPUT = catalog["uint8_per_tensor"].replace(source="running_statistic")  # its scale is learned from batches, then kept
BATCH, RATE = 64, 1e-2


def network() -> nnx.Module:
    """``(batch, 8, 8, 1)`` to ``(batch, 10)``; `interop.Flatten` takes pixels in the order of torch."""
    rngs = nnx.Rngs(0)
    quant: dict[str, Any] = {"weight_quant": "int4_per_channel", "input_quant": INPUT, "rngs": rngs}
    return nnx.Sequential(
        QuantConv(1, 16, (3, 3), padding=1, **quant),
        nnx.relu,
        QuantConv(16, 32, (3, 3), strides=2, padding=1, **quant),
        nnx.relu,
        interop.Flatten(),
        nnx.Dropout(0.1, rngs=rngs),
        QuantLinear(512, 10, **quant),
    )


def train(model: nnx.Module, epochs: int) -> None:
    """On the digits that are not held out."""
    x, y = (array[~held_out()] for array in images())
    total = epochs * (len(x) // BATCH)
    rate = optax.cosine_onecycle_schedule(total, RATE)
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: nnx.Optimizer[Any], x: jax.Array, y: jax.Array) -> None:
        def loss(model: Any) -> jax.Array:
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(x), y))

        optimizer.update(model, nnx.grad(loss)(model))

    model.train()  # type: ignore[no-untyped-call]
    for pixels, labels in tqdm(batches(x, y, epochs, 0, BATCH), total=total, unit="batch", leave=False, disable=None):
        step(model, optimizer, jnp.asarray(pixels.transpose(0, 2, 3, 1)), jnp.asarray(labels, jnp.int32))
    model.eval()  # type: ignore[no-untyped-call]


def main() -> int:
    """Runs what the arguments ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="default %(default)s")
    parser.add_argument("--eager", action="store_true", help="leave out the compiled run, which takes longest")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the model is too small for more
    model: Any = network()
    train(model, arguments.epochs)

    served = interop.to_torch(model)  # weights, scales and mode come along; images have channels first

    x, labels = images()
    trained = np.asarray(nnx.jit(model)(x.transpose(0, 2, 3, 1)))
    print(f"trained in JAX: {accuracy(trained, labels):.2f} % of the held-out digits")
    differing = 0
    for mode in ("eager",) if arguments.eager else ("eager", "compiled"):
        forward: Any = torch.compile(served) if mode == "compiled" else served
        with torch.inference_mode():
            found = differences(trained, forward(torch.from_numpy(x)))
        print(f"served in torch, {mode}: {found.differing} of {trained.size:,} logits differ")
        differing += found.differing
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
