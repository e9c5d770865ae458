"""One network for the digits, quantized by a prototype, trained by the same loop in torch and in flax.

    pixels -> linear (64 to 64) -> ReLU -> linear (64 to 10) -> logits

A prototype of weights quantizes both weights; one of activations what comes out of the ReLU. First weights, batches and
the optimizer are the same: cross-entropy, and gradient descent with momentum. Quantized values have the same bits in
both; sums of products have the order of their framework, so that losses part in the last digits, and by whole steps of
quantization later.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samebits.proofs.inputs.digits import accuracy, batches, held_out, images
from samebits.proofs.prototypes.decorator import Prototype

Array = NDArray[Any]

OF_ACTIVATIONS = ("pact", "lsq_plus", "per_token", "mxfp4_gradients")
SHAPES = ((64, 64), (10, 64))
RATE, MOMENTUM = 0.05, 0.9


class Training(NamedTuple):
    """Loss of every batch, and the accuracy in percent on digits that were held out."""

    losses: Array
    accuracy: float


def train(prototype: Prototype | None, framework: str, epochs: int = 10, seed: int = 0) -> Training:
    """The network, trained.

    Args:
        prototype: None for the network in float32.
        framework: "torch" or "jax".
    """
    return {"torch": _in_torch, "jax": _in_jax}[framework](prototype, epochs, seed)


def first_weights(seed: int) -> list[Array]:
    """Uniform in +-1 / sqrt(inputs of a neuron)."""
    draw = np.random.default_rng(seed)
    return [draw.uniform(-(n**-0.5), n**-0.5, (m, n)).astype(np.float32) for m, n in SHAPES]


def shown(epochs: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Batches of digits that are not held out: pixels as rows, and labels."""
    x, y = (array[~held_out()] for array in images())
    for few, labels in batches(x, y, epochs, seed):
        yield few.reshape(len(few), -1), labels.astype(np.int32)


def pixels() -> Array:
    """Those of all digits."""
    x, _ = images()
    return x.reshape(len(x), -1)


def quantizers(prototype: Prototype | None, seed: int) -> tuple[Any, Any, Array]:
    """What quantizes weights, what quantizes activations, and the first activations."""
    x, _ = next(shown(1, seed))
    hidden = np.maximum(x @ first_weights(seed)[0].T, 0)
    if prototype is None or prototype.name in OF_ACTIVATIONS:
        return None, prototype, hidden
    return prototype, None, hidden


def _in_torch(prototype: Prototype | None, epochs: int, seed: int) -> Training:
    import torch

    from samebits.torch_frontend.nn import QuantLinear

    of_weights, of_activations, hidden = quantizers(prototype, seed)
    first, second = (QuantLinear(n, m, weight_quant=of_weights) for m, n in SHAPES)
    act = torch.nn.Identity() if of_activations is None else of_activations.torch_module(torch.from_numpy(hidden))
    network = torch.nn.Sequential(first, torch.nn.ReLU(), act, second)
    for layer, weight in zip((first, second), first_weights(seed), strict=True):
        layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.zeros(len(weight))
        if of_weights is not None:
            layer.weight_quant = of_weights.torch_module(layer.weight)
    optimizer, losses = torch.optim.SGD(network.parameters(), RATE, MOMENTUM), []
    for x, y in shown(epochs, seed):
        loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(x)), torch.from_numpy(y).long())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(pixels())).numpy()
    return Training(np.asarray(losses), accuracy(logits, images()[1]))


def _in_jax(prototype: Prototype | None, epochs: int, seed: int) -> Training:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from samebits.jax_backend.nn import QuantLinear

    of_weights, of_activations, hidden = quantizers(prototype, seed)
    layers = [QuantLinear(n, m, weight_quant=of_weights, rngs=nnx.Rngs(0)) for m, n in SHAPES]
    for layer, weight in zip(layers, first_weights(seed), strict=True):
        layer.kernel.set_value(jnp.asarray(weight.T))
        if of_weights is not None:
            layer.weight_quant = of_weights.flax_module(jnp.asarray(weight))
    between = [nnx.relu] if of_activations is None else [nnx.relu, of_activations.flax_module(jnp.asarray(hidden))]
    network = nnx.Sequential(layers[0], *between, layers[1])
    optimizer = nnx.Optimizer(network, optax.sgd(RATE, MOMENTUM), wrt=nnx.Param)

    @nnx.jit
    def step(network: nnx.Sequential, optimizer: nnx.Optimizer[Any], x: jax.Array, y: jax.Array) -> jax.Array:
        def loss(network: nnx.Sequential) -> jax.Array:
            mean: jax.Array = optax.softmax_cross_entropy_with_integer_labels(network(x), y).mean()
            return mean

        value: jax.Array
        value, gradients = nnx.value_and_grad(loss)(network)
        optimizer.update(network, gradients)
        return value

    losses = [float(step(network, optimizer, jnp.asarray(x), jnp.asarray(y))) for x, y in shown(epochs, seed)]
    network.eval()  # type: ignore[no-untyped-call]
    logits = np.asarray(nnx.jit(lambda network, x: network(x))(network, pixels()))
    return Training(np.asarray(losses), accuracy(logits, images()[1]))
