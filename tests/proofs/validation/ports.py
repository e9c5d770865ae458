"""Small models in torch and their ports to JAX, right or with one planted mistake."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import Tensor, nn
from torch.nn import functional as F

from samebits.jax_backend.interop import load_state_dict, state_dict

WORDS, HIDDEN, HEADS, WIDE, PLACES, EPSILON = 32, 16, 2, 24, 12, 1e-5
Mistakes = frozenset[str]
RIGHT: Mistakes = frozenset()
EPSILONS = frozenset(("epsilon", "other epsilon"))


class TorchBlock(nn.Module):
    """Attention with turned queries and keys, a norm, a wide layer, a norm."""

    def __init__(self, interleaved: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN, EPSILON), nn.LayerNorm(HIDDEN, EPSILON)
        self.up, self.down = nn.Linear(HIDDEN, WIDE), nn.Linear(WIDE, HIDDEN)
        self.interleaved = interleaved

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (f(x).view(rows, length, HEADS, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        q, k = self.turned(q), self.turned(k)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
        x = self.norm1(x + self.out((weights @ v).transpose(1, 2).flatten(2)))
        y: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return y

    def turned(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[-2])[:, None] / 100 ** (torch.arange(half) / half)
        if self.interleaved:
            angle = angle.repeat_interleave(2, -1)
            other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        else:
            angle = torch.cat([angle, angle], -1)
            other = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * angle.cos() + other * angle.sin()


class TorchEncoder(nn.Module):
    """Ids and a mask to a mean."""

    def __init__(self, interleaved: bool = False) -> None:
        super().__init__()
        self.words, self.places, self.types = (
            nn.Embedding(WORDS, HIDDEN),
            nn.Embedding(PLACES, HIDDEN),
            nn.Embedding(2, HIDDEN),
        )
        self.norm = nn.LayerNorm(HIDDEN, EPSILON)
        self.block = TorchBlock(interleaved)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places.weight[: ids.shape[1]] + self.types.weight[0]
        x = self.block(self.norm(x), mask)
        counted = mask[..., None].to(x.dtype)
        return (x * counted).sum(1) / counted.sum(1)


class JaxNorm(nnx.Module):
    """A layer norm with room for mistakes."""

    def __init__(self, mistakes: Mistakes, rngs: nnx.Rngs) -> None:
        self.weight, self.bias = nnx.Param(jnp.ones(HIDDEN)), nnx.Param(jnp.zeros(HIDDEN))
        self.mistakes = mistakes

    def __call__(self, x: jax.Array) -> jax.Array:
        weight, bias = self.weight[...], self.bias[...]
        if "scale and bias" in self.mistakes:
            weight, bias = bias, weight
        d = x - x.mean(-1, keepdims=True)
        var = (d * d).sum(-1, keepdims=True) / (HIDDEN - ("unbiased" in self.mistakes))
        epsilon = 1e-12 if "epsilon" in self.mistakes else 1e-6 if "other epsilon" in self.mistakes else EPSILON
        return d * jax.lax.rsqrt(var + epsilon) * weight + bias


class JaxBlock(nnx.Module):
    """The port of `TorchBlock`."""

    def __init__(self, mistakes: Mistakes, rngs: nnx.Rngs, interleaved: bool = False) -> None:
        self.query, self.key, self.value, self.out = (nnx.Linear(HIDDEN, HIDDEN, rngs=rngs) for _ in range(4))
        self.norm1, self.norm2 = JaxNorm(mistakes - EPSILONS, rngs), JaxNorm(RIGHT, rngs)
        self.up, self.down = nnx.Linear(HIDDEN, WIDE, rngs=rngs), nnx.Linear(WIDE, HIDDEN, rngs=rngs)
        self.mistakes, self.interleaved = mistakes, interleaved != ("rotary" in mistakes)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        m = self.mistakes
        rows, length, _ = x.shape
        if "pre-norm" in m:
            return self.mlp(x + self.attention(self.norm1(x), mask, rows, length))
        return self.mlp(self.norm1(x + self.attention(x, mask, rows, length)))

    def attention(self, x: jax.Array, mask: jax.Array, rows: int, length: int) -> jax.Array:
        m = self.mistakes
        parts = [f(x) for f in (self.query, self.key, self.value)]
        if "head order" in m:
            q, k, v = (part.reshape(rows, length, -1, HEADS).swapaxes(2, 3).swapaxes(1, 2) for part in parts)
        else:
            q, k, v = (part.reshape(rows, length, HEADS, -1).swapaxes(1, 2) for part in parts)
        q, k = self.turned(q), self.turned(k)
        scores = q @ k.swapaxes(-1, -2) / (1.0 if "no 1/sqrt(d)" in m else math.sqrt(q.shape[-1]))
        seen = mask if "mask polarity" not in m else ~mask
        if "no mask" not in m:
            scores = jnp.where(seen[:, None, None, :], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-2 if "softmax axis" in m else -1)
        y = weights @ v
        return self.out((y if "merge" in m else y.swapaxes(1, 2)).reshape(rows, length, HIDDEN))

    def mlp(self, x: jax.Array) -> jax.Array:
        wide = self.up(x)
        m = self.mistakes
        wide = jax.nn.relu(wide) if "relu" in m else jax.nn.gelu(wide, approximate="tanh gelu" in m)
        return self.norm2(self.down(wide) if "no residual" in m else x + self.down(wide))

    def turned(self, x: jax.Array) -> jax.Array:
        half = x.shape[-1] // 2
        angle = jnp.arange(x.shape[-2])[:, None] / 100 ** (jnp.arange(half) / half)
        if self.interleaved:
            angle = jnp.repeat(angle, 2, -1)
            other = jnp.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
        else:
            angle = jnp.concatenate([angle, angle], -1)
            other = jnp.concatenate([-x[..., half:], x[..., :half]], -1)
        return x * jnp.cos(angle) + other * jnp.sin(angle)


class JaxEncoder(nnx.Module):
    """The port of `TorchEncoder`."""

    def __init__(self, mistakes: Mistakes, rngs: nnx.Rngs, interleaved: bool = False) -> None:
        self.words, self.places, self.types = (nnx.Embed(n, HIDDEN, rngs=rngs) for n in (WORDS, PLACES, 2))
        self.norm = JaxNorm(mistakes & EPSILONS, rngs)
        self.block = JaxBlock(mistakes, rngs, interleaved)
        self.mistakes = mistakes

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        begin = int("off by one" in self.mistakes)
        x = self.words(ids) + self.places.embedding[...][begin : begin + ids.shape[1]]
        x = x + self.types.embedding[...][int("token type" in self.mistakes)]
        x = self.block(self.norm(x), mask)
        counted = (
            jnp.ones_like(mask[..., None], x.dtype) if "pooling" in self.mistakes else mask[..., None].astype(x.dtype)
        )
        return (x * counted).sum(1) / counted.sum(1)


class TorchImages(nn.Module):
    """A convolution with stride, statistics, means of windows, a layer over all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.norm(self.conv(x))), 2)
        y: Tensor = self.head(x.flatten(1))
        return y


class JaxImages(nnx.Module):
    """Its port, with channels last inside."""

    def __init__(self, mistakes: Mistakes, rngs: nnx.Rngs) -> None:
        padding: Any = "SAME" if "padding" in mistakes else ((1, 1), (1, 1))
        self.conv = nnx.Conv(3, 6, (3, 3), strides=2, padding=padding, rngs=rngs)
        self.norm = nnx.BatchNorm(6, use_running_average="batch statistics" not in mistakes, rngs=rngs)
        self.head = nnx.Linear(24, 5, rngs=rngs)
        self.mistakes = mistakes

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv(x)))
        x = nnx.max_pool(x, (2, 2), (2, 2)) if "max pooling" in self.mistakes else nnx.avg_pool(x, (2, 2), (2, 2))
        return self.head((x if "flatten" in self.mistakes else x.transpose(0, 3, 1, 2)).reshape(len(x), -1))


def encoders(mistakes: Mistakes = RIGHT, interleaved: bool = False) -> tuple[TorchEncoder, JaxEncoder]:
    """The model and its port, of the same weights but for mistakes of these."""
    model, port = TorchEncoder(interleaved).eval(), JaxEncoder(mistakes, nnx.Rngs(0), interleaved)
    draw(model)
    load(model, port)
    block = port.block
    if "transposed" in mistakes:
        block.out.kernel[...] = block.out.kernel[...].T
    if "no bias" in mistakes:
        block.up.bias[...] = 0 * block.up.bias[...]
    if "bfloat16" in mistakes:
        block.down.kernel[...] = block.down.kernel[...].astype(jnp.bfloat16).astype(jnp.float32)
    for name in ("kernel", "bias") if "other weights" in mistakes else ():
        held = getattr(block.key, name)[...]
        getattr(block.key, name)[...] = getattr(block.query, name)[...]
        getattr(block.query, name)[...] = held
    return model, port


def images(mistakes: Mistakes = RIGHT) -> tuple[TorchImages, JaxImages]:
    """The other model and its port."""
    model, port = TorchImages().eval(), JaxImages(mistakes, nnx.Rngs(0))
    draw(model)
    load(model, port)
    return model, port


def draw(model: nn.Module) -> None:
    """Weights and statistics that are all different."""
    rng = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            spread = rng.uniform(0.5, 2, tensor.shape) if name.endswith("var") else rng.normal(0, 0.4, tensor.shape)
            spread = (
                spread * 0.02 if name.startswith(("words", "places", "types")) else spread
            )  # an epsilon can be seen
            spread = spread + 1 if "norm" in name and name.endswith("weight") else spread
            tensor.copy_(torch.from_numpy(spread.astype(np.float32)))


def load(model: nn.Module, port: nnx.Module) -> None:
    """The weights of the model for the port."""
    wanted = state_dict(port)
    load_state_dict(port, {name: tensor.numpy() for name, tensor in model.state_dict().items() if name in wanted})


def sentences() -> dict[str, np.ndarray[Any, Any]]:
    """Ids and mask of three rows of unequal length."""
    rng = np.random.default_rng(1)
    mask = np.arange(7) < np.array([7, 4, 5])[:, None]
    return {"ids": np.where(mask, rng.integers(1, WORDS, mask.shape), 0), "mask": mask}


def pictures() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images with channels first, and the same with channels last."""
    x = np.random.default_rng(2).normal(size=(4, 3, 8, 8)).astype(np.float32)
    return x, np.ascontiguousarray(x.transpose(0, 2, 3, 1))
