"""Flax modules for layers of torch that flax computes otherwise or not at all; what `to_flax` makes of them."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Array = jax.Array
NDIMS_OF_ROWS = 2


class Sequential(nnx.Sequential):
    """``nnx.Sequential`` whose parts have names in a ``state_dict``, as those of a torch ``Sequential`` may have.

    Args:
        fns: as ``nnx.Sequential``.
        names: one for each of them.
    Raises:
        ValueError: another number of names.
    """

    def __init__(self, *fns: Any, names: Sequence[str]) -> None:
        if len(names) != len(fns):
            raise ValueError(f"`names` must be {len(fns)}, one for each part, got {len(names)}")
        super().__init__(*fns)
        self.names = tuple(names)


class Flatten(nnx.Module):
    """Flattens axes as ``torch.nn.Flatten`` does; of images with channels last too, in the order of torch.

    Args:
        start_dim, end_dim: the axes, counted as torch counts them.
        channels_last: whether arrays of three axes and more are images ``(batch, ..., channels)`` of what torch has as
            ``(batch, channels, ...)``. Then the axes are all from 1 or from 2 on; from 2 on channels stay last.
    Raises:
        ValueError: other axes of images.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1, *, channels_last: bool = True) -> None:
        if channels_last and (start_dim not in (1, 2) or end_dim != -1):
            raise ValueError(
                "`start_dim` must be 1 or 2 and `end_dim` -1 for images with channels last, "
                f"got {start_dim} and {end_dim}"
            )
        self.start_dim, self.end_dim, self.channels_last = start_dim, end_dim, channels_last

    def __call__(self, x: Array) -> Array:
        """Any shape with these axes; same dtype."""
        if self.channels_last and x.ndim > NDIMS_OF_ROWS:
            if self.start_dim == 1:
                return jnp.moveaxis(x, -1, 1).reshape(len(x), math.prod(x.shape[1:]))
            return x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
        if x.ndim == 0:
            return x.reshape(1)
        first, last = self.start_dim % x.ndim, self.end_dim % x.ndim
        return x.reshape(*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])


class Embed(nnx.Embed):
    """``nnx.Embed`` with a row that no gradient reaches, as ``torch.nn.Embedding`` with ``padding_idx``.

    Args:
        num_embeddings, features, options: as ``nnx.Embed``.
        padding_idx: the row.
    """

    def __init__(self, num_embeddings: int, features: int, *, padding_idx: int, **options: Any) -> None:
        super().__init__(num_embeddings, features, **options)
        self.padding_idx = padding_idx

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """Integers of any shape to rows of the table, one for each."""
        rows = super().__call__(inputs, out_sharding)
        return jnp.where((inputs == self.padding_idx)[..., None], lax.stop_gradient(rows), rows)


class BatchNorm(nnx.BatchNorm):
    """``nnx.BatchNorm`` that learns as ``torch.nn.BatchNorm1d`` does.

    The running variance is that of n - 1, where flax keeps that of n; the number of batches is counted.

    Args:
        num_features, options: as ``nnx.BatchNorm``.
        rate: weight of a new batch in the running statistics, torch's ``momentum``, which is 1 minus that of flax; None
            for the mean of all batches.
        axes: number of the axes of an image that torch's layer is for, 0 where it is ``(batch, features)`` alone; one
            or several. Arrays are ``(batch, ..., features)``.
    """

    def __init__(
        self, num_features: int, *, rate: float | None = 0.1, axes: tuple[int, ...] = (0, 1, 2, 3), **options: Any
    ) -> None:
        momentum = 0.0 if rate is None else 1 - rate
        super().__init__(num_features, momentum=momentum, use_fast_variance=False, **options)
        self.rate, self.axes = rate, axes
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.uint32))

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        """``(batch, ..., features)``; same shape.

        Raises:
            ValueError: another number of axes; a mask; one value for each feature, in training.
        """
        if x.ndim - 2 not in self.axes:
            allowed = " or ".join(str(axes + 2) for axes in self.axes)
            raise ValueError(f"`x` must have {allowed} axes, got shape {x.shape}")
        if mask is not None:
            raise ValueError("`mask` must be None: batch normalization of torch has none")
        frozen = self.use_running_average if use_running_average is None else use_running_average
        if frozen:
            y: Array = super().__call__(x, True)
            return y
        count, others = math.prod(x.shape[:-1]), tuple(range(x.ndim - 1))
        if count < 2:
            raise ValueError(f"`x` must have more than one value for each feature in training, got shape {x.shape}")
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = wide.mean(others, keepdims=True)
        squares = jnp.square(wide - mean).sum(others, keepdims=True)
        self._learn(*(lax.stop_gradient(v.reshape(-1)) for v in (mean, squares / (count - 1))))
        y = (wide - mean) * lax.rsqrt(squares / count + self.epsilon)
        for parameter, combine in ((self.scale, jnp.multiply), (self.bias, jnp.add)):
            if parameter is not None:
                y = combine(y, parameter[...].astype(y.dtype).reshape(mean.shape))
        return y.astype(jnp.promote_types(x.dtype, self.param_dtype) if self.dtype is None else self.dtype)

    def _learn(self, mean: Array, variance: Array) -> None:
        batches = self.num_batches_tracked[...] + 1
        rate: Any = 1 / batches.astype(jnp.float32) if self.rate is None else self.rate
        for state, new in ((self.mean, mean), (self.var, variance)):
            state.set_value(((1 - rate) * state[...] + rate * new).astype(state[...].dtype))
        self.num_batches_tracked.set_value(batches)
