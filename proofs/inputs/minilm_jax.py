"""The sentence encoder of `minilm` as plain flax nnx modules, with attributes named as in the checkpoint."""

import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ...core.requirements import explaining
from ...jax_backend.interop import load_state_dict
from ..modes.arrays import to_jax, to_numpy
from .minilm import Batch, Shape

with explaining(__name__):
    import jax
    import jax.numpy as jnp
    from flax import nnx

Array = NDArray[Any]


class Embeddings(nnx.Module):
    """Words and places, normalised."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.word_embeddings = nnx.Embed(shape.vocabulary, shape.hidden, rngs=rngs)
        self.position_embeddings = nnx.Embed(shape.positions, shape.hidden, rngs=rngs)
        self.token_type_embeddings = nnx.Embed(2, shape.hidden, rngs=rngs)
        self.LayerNorm = _norm(shape, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        places = self.position_embeddings.embedding[...][: ids.shape[1]]
        kind = self.token_type_embeddings.embedding[...][0]
        y: jax.Array = self.LayerNorm(self.word_embeddings(ids) + kind + places)
        return y


class SelfAttention(nnx.Module):
    """Scaled dot products of queries and keys, and the values that they weigh."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.heads = shape.heads
        self.query = nnx.Linear(shape.hidden, shape.hidden, rngs=rngs)
        self.key = nnx.Linear(shape.hidden, shape.hidden, rngs=rngs)
        self.value = nnx.Linear(shape.hidden, shape.hidden, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        rows, length, hidden = x.shape
        parts = (layer(x) for layer in (self.query, self.key, self.value))
        q, k, v = (part.reshape(rows, length, self.heads, -1).swapaxes(1, 2) for part in parts)
        scores = q @ k.swapaxes(-2, -1) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask[:, None, None, :], scores, -jnp.inf), axis=-1)
        return (weights @ v).swapaxes(1, 2).reshape(rows, length, hidden)


class Output(nnx.Module):
    """A linear layer, added to what came before it, normalised."""

    def __init__(self, inputs: int, shape: Shape, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(inputs, shape.hidden, rngs=rngs)
        self.LayerNorm = _norm(shape, rngs)

    def __call__(self, x: jax.Array, before: jax.Array) -> jax.Array:
        y: jax.Array = self.LayerNorm(self.dense(x) + before)
        return y


class Attention(nnx.Module):
    """Attention with its output layer."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.self = SelfAttention(shape, rngs)
        self.output = Output(shape.hidden, shape, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        return self.output(self.self(x, mask), x)


class Intermediate(nnx.Module):
    """The wide layer, with the exact GELU."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(shape.hidden, shape.intermediate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(self.dense(x), approximate=False)


class Layer(nnx.Module):
    """One block."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.attention = Attention(shape, rngs)
        self.intermediate = Intermediate(shape, rngs)
        self.output = Output(shape.intermediate, shape, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Blocks(nnx.Module):
    """All of them; they are counted under this name in the checkpoint."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.layer = nnx.List([Layer(shape, rngs) for _ in range(shape.layers)])

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Encoder(nnx.Module):
    """``(rows, length)`` ids and mask to ``(rows, hidden)`` embeddings of length 1."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.embeddings = Embeddings(shape, rngs)
        self.encoder = Blocks(shape, rngs)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.encoder(self.embeddings(ids), mask)
        weights = mask[..., None].astype(x.dtype)
        mean = (x * weights).sum(1) / weights.sum(1)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def _norm(shape: Shape, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # With `use_fast_variance` flax takes E[x**2] - E[x]**2, which cancels
    return nnx.LayerNorm(shape.hidden, epsilon=shape.epsilon, use_fast_variance=False, rngs=rngs)


def encoder(shape: Shape, tensors: Mapping[str, Array]) -> Encoder:
    """The encoder with these weights, in evaluation mode."""
    network = Encoder(shape, nnx.Rngs(0))
    load_state_dict(network, tensors)
    network.eval()  # type: ignore[no-untyped-call]
    return network


def embed(network: nnx.Module, batch: Batch, *, compiled: bool = True) -> Array:
    """Embeddings of a batch as NumPy array; op by op unless compiled."""
    run = nnx.jit(lambda network, ids, mask: network(ids, mask))
    with jax.disable_jit(not compiled):
        return to_numpy(run(network, to_jax(batch.ids.astype("int32")), to_jax(batch.mask)))
