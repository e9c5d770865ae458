"""The sentence encoder of `minilm` as plain torch modules. Names in its ``state_dict`` are those of the checkpoint."""

import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from ...core.requirements import explaining
from ..modes.arrays import to_numpy, to_torch
from .minilm import Batch, Shape

with explaining(__name__):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

Array = NDArray[Any]


class Embeddings(nn.Module):
    """Words and places, normalised."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocabulary, shape.hidden)
        self.position_embeddings = nn.Embedding(shape.positions, shape.hidden)
        self.token_type_embeddings = nn.Embedding(2, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, shape.epsilon)

    def forward(self, ids: Tensor) -> Tensor:
        """``(rows, length)`` to ``(rows, length, hidden)``."""
        places = self.position_embeddings.weight[: ids.shape[1]]
        y: Tensor = self.LayerNorm(self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + places)
        return y


class SelfAttention(nn.Module):
    """Scaled dot products of queries and keys, and the values that they weigh."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.hidden, shape.hidden)
        self.key = nn.Linear(shape.hidden, shape.hidden)
        self.value = nn.Linear(shape.hidden, shape.hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``(rows, length, hidden)`` to the same."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        y: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return y


class Output(nn.Module):
    """A linear layer, added to what came before it, normalised."""

    def __init__(self, inputs: int, shape: Shape) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, shape.epsilon)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """``(rows, length, inputs)``, and what it is added to, ``(rows, length, hidden)``."""
        y: Tensor = self.LayerNorm(self.dense(x) + before)
        return y


class Attention(nn.Module):
    """Attention with its output layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self = SelfAttention(shape)
        self.output = Output(shape.hidden, shape)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``(rows, length, hidden)`` to the same."""
        y: Tensor = self.output(self.self(x, mask), x)
        return y


class Intermediate(nn.Module):
    """The wide layer, with the exact GELU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.hidden, shape.intermediate)

    def forward(self, x: Tensor) -> Tensor:
        """``(rows, length, hidden)`` to ``(rows, length, intermediate)``."""
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """One block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.intermediate = Intermediate(shape)
        self.output = Output(shape.intermediate, shape)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``(rows, length, hidden)`` to the same."""
        x = self.attention(x, mask)
        y: Tensor = self.output(self.intermediate(x), x)
        return y


class Blocks(nn.Module):
    """All of them; they are counted under this name in the checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(shape) for _ in range(shape.layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``(rows, length, hidden)`` to the same."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Encoder(nn.Module):
    """``(rows, length)`` ids and mask to ``(rows, hidden)`` embeddings of length 1."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.encoder = Blocks(shape)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Of a batch."""
        x = self.encoder(self.embeddings(ids), mask)
        weights = mask[..., None].to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=-1)


def encoder(shape: Shape, tensors: Mapping[str, Array]) -> Encoder:
    """The encoder with these weights, in evaluation mode."""
    network = Encoder(shape)
    network.load_state_dict({name: to_torch(tensor) for name, tensor in tensors.items()})
    return network.eval()


def embed(network: nn.Module, batch: Batch) -> Array:
    """Embeddings of a batch as NumPy array."""
    with torch.inference_mode():
        return to_numpy(network(to_torch(batch.ids), to_torch(batch.mask)))
