"""Tables of vectors that are quantized."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers import Geometry, contract
from .given import CodedWeight
from .layer import Held, Quant, hold, or_same, split

Array = jax.Array
OF_FLAX = ("dtype", "param_dtype", "embedding_init", "embedding_metadata")


class QuantEmbed(nnx.Embed):
    """Rows of a quantized table.

    Args:
        num_embeddings, features, rngs: as ``nnx.Embed``.
        weight_quant, output_quant, keywords: see the module; further keywords of ``nnx.Embed`` are ``dtype``,
            ``param_dtype``, ``embedding_init``, ``embedding_metadata``. The weight is ``(num_embeddings, features)``; a
            quantizer per axis 0 has one scale for each row.
    """

    weight_quant: Held
    output_quant: Held

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        weight_quant: Quant = "int8_per_channel",
        output_quant: Quant = None,
        rngs: nnx.Rngs,
        **keywords: Any,
    ) -> None:
        options, fields = split(keywords, OF_FLAX)
        super().__init__(num_embeddings, features, rngs=rngs, **options)
        hold(self, fields, weight=weight_quant, output=output_quant)

    @property
    def weight(self) -> Array:
        """The table."""
        return self.embedding[...]

    def __call__(self, x: Array, use_running_average: bool | None = None) -> Array:
        """Integers of any shape to that shape and ``features``, in the dtype of ``nnx.Embed``.

        Negative integers count from the end, and rows that are not there are NaN.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        Raises:
            ValueError: ``x`` holds no integers.
        """
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"`x` must hold integers, got {x.dtype.name}")
        (table,) = self.promote_dtype((self._values(),), dtype=self.dtype, inexact=False)
        table = or_same(self.weight_quant, table, use_running_average)
        return or_same(self.output_quant, jnp.take(table, x, axis=0), use_running_average)

    def attend(self, query: Array, use_running_average: bool | None = None) -> Array:
        """``query @ table.T`` over the quantized table: ``(..., features)`` to ``(..., num_embeddings)``.

        Of floats, whose bits `contraction_bound` bounds; ``output_quant`` is for rows and has no part in it.

        Args:
            use_running_average: as for rows.
        Raises:
            ValueError: another number of features.
        """
        if query.ndim == 0 or query.shape[-1] != self.features:
            raise ValueError(f"`query` must have {self.features} features on its last axis, got shape {query.shape}")
        query, table = self.promote_dtype((query, self._values()), dtype=self.dtype)
        return contract(Geometry(1), query, or_same(self.weight_quant, table, use_running_average), None)

    def _values(self) -> Array:
        """The table, of numbers also where it is kept as codes."""
        held, table = self.weight_quant, self.embedding[...]
        return held.values(table, (0, 1)) if isinstance(held, CodedWeight) else table
