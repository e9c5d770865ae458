"""Attention over quantized operands: both products contract codes, the softmax between them is what JAX computes."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ...core.contraction import contracts_matrices
from ...core.keywords import by_role
from ..layers import Geometry
from ..matmul import batched_matmul
from ..tensor_quantizer import either
from .layer import Held, Operand, Quant, contracted, hold, operand, or_same, own_bias, promoted, split, waiting

Array = jax.Array
WEIGHT = (1, 0)  # (in, out) to (out, in)
OF_FLAX = (
    "num_kv_heads",
    "in_kv_features",
    "dtype",
    "param_dtype",
    "broadcast_dropout",
    "dropout_rate",
    "deterministic",
    "kernel_init",
    "out_kernel_init",
    "bias_init",
    "out_bias_init",
    "use_bias",
    "normalize_qk",
    "keep_rngs",
    "kernel_metadata",
    "out_kernel_metadata",
    "bias_metadata",
    "out_bias_metadata",
)


class QuantProjection(nnx.Module):
    """A projection of attention, with the variables of the ``nnx.LinearGeneral`` that it is made of.

    Args:
        linear: its kernel is ``(*in, *out)``, its bias ``out``.
        weight_quant, bias_quant, input_quant, output_quant, fields: see `samebits.jax_backend.nn`. The weight is
            ``(out, in)``, both as one axis.
    """

    weight_quant: Held
    bias_quant: Held
    input_quant: Held
    output_quant: Held

    def __init__(
        self,
        linear: nnx.LinearGeneral,
        *,
        weight_quant: Quant = "int8_per_channel",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        output_quant: Quant = None,
        **fields: Any,
    ) -> None:
        self.kernel, self.bias = nnx.data(linear.kernel), nnx.data(linear.bias)
        self.dtype, self.promote_dtype = linear.dtype, linear.promote_dtype
        self.out_shape = tuple(linear.out_features)
        self.kernel_axes = len(linear.in_features) + len(self.out_shape)
        self.in_features = math.prod(linear.in_features)
        hold(self, fields, weight=weight_quant, bias=bias_quant, input=input_quant, output=output_quant)

    @property
    def weight(self) -> Array:
        """The kernel as its quantizer sees it, ``(out, in)``."""
        return self._flat().transpose(WEIGHT)

    def step(self, x: Array, frozen: bool | None) -> Operand:
        """One step of the quantizer of the input."""
        return operand(self.input_quant, promoted(self, x, WEIGHT, self._flat())[0], frozen)

    def __call__(self, x: Operand, frozen: bool | None) -> Array:
        """``(..., in)`` to ``(..., *out)``."""
        w = operand(self.weight_quant, promoted(self, x.value, WEIGHT, self._flat())[1], frozen, WEIGHT)
        y = or_same(self.output_quant, contracted(self, x, w, own_bias(self, frozen), Geometry(0)), frozen)
        return y.reshape(*y.shape[:-1], *self.out_shape)

    def _flat(self) -> Array:
        return self.kernel[...].reshape(self.in_features, -1)


def hold_attention(layer: Any, fields: Mapping[str, Any], **quant: Any) -> None:
    """`hold` of what attention quantizes itself, and of its projections, which become `QuantProjection`.

    Args:
        layer: with the variables of ``nnx.MultiHeadAttention``.
        fields: keywords for single fields of quantizers; ``quant``: the argument ``<role>_quant`` of each role.
    """
    given = by_role(type(layer).__name__, fields, quant)

    def keywords(**roles: str) -> dict[str, Any]:
        return {f"{to}_{name}": value for role, to in roles.items() for name, value in given[role].items()}

    weight, bias, context, output = (quant.pop(role) for role in ("weight", "bias", "context", "output"))
    hold(layer, keywords(**{role: role for role in quant}), **quant)
    parts: Any = {"weight_quant": weight, "bias_quant": bias, **keywords(weight="weight", bias="bias")}
    for name in ("query", "key", "value"):
        setattr(layer, name, QuantProjection(getattr(layer, name), input_quant=layer.input_quant, **parts))
    of_out: Any = {"input_quant": context, "output_quant": output, **keywords(context="input", output="output")}
    layer.out = QuantProjection(layer.out, **parts, **of_out)


class QuantMultiHeadAttention(nnx.MultiHeadAttention):
    """Attention in several heads over quantized operands, with the variables of ``nnx.MultiHeadAttention``.

    ``softmax(query @ key.T / sqrt(head size))`` over what may be seen; a place that sees nothing takes nothing, where
    flax lets it see everything.

    Args:
        num_heads, in_features, qkv_features, out_features, rngs: as ``nnx.MultiHeadAttention``; and so, by name, are
            ``num_kv_heads``, ``in_kv_features``, ``dtype``, ``param_dtype``, ``broadcast_dropout``, ``dropout_rate``,
            ``deterministic``, ``use_bias``, ``normalize_qk``, ``keep_rngs``, initializers and metadata.
        weight_quant, bias_quant: of the projections ``query``, ``key``, ``value`` and ``out``, one for each.
        input_quant: of what comes in: of queries, keys and values, each once if they are one array.
        query_quant, key_quant, value_quant: of the operands, split into heads; codes are contracted where there is one
            scale for each. attention_quant: of the weights that the softmax gives, after dropout.
        softmax_quant: of what goes into it, before the mask.
        context_quant: of what goes into ``out``. output_quant: of what comes out.
        fields: see the module.
    """

    query_quant: Held
    key_quant: Held
    value_quant: Held
    attention_quant: Held
    softmax_quant: Held
    input_quant: Held

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        qkv_features: int | None = None,
        out_features: int | None = None,
        *,
        weight_quant: Quant = "int8_per_channel",
        bias_quant: Quant = None,
        input_quant: Quant = None,
        query_quant: Quant = None,
        key_quant: Quant = None,
        value_quant: Quant = None,
        attention_quant: Quant = None,
        softmax_quant: Quant = None,
        context_quant: Quant = None,
        output_quant: Quant = None,
        rngs: nnx.Rngs,
        **keywords: Any,
    ) -> None:
        options, fields = split(keywords, OF_FLAX)
        super().__init__(num_heads, in_features, qkv_features, out_features, rngs=rngs, **options)
        inner = {"query": query_quant, "key": key_quant, "value": value_quant}
        inner |= {"attention": attention_quant, "softmax": softmax_quant, "input": input_quant}
        of_parts = {"weight": weight_quant, "bias": bias_quant, "context": context_quant, "output": output_quant}
        hold_attention(self, fields, **inner, **of_parts)

    def __call__(  # type: ignore[override]  # decoding step by step is not offered
        self,
        inputs_q: Array,
        inputs_k: Array | None = None,
        inputs_v: Array | None = None,
        *,
        mask: Array | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        sow_weights: bool = False,
        is_causal: bool = False,
        use_running_average: bool | None = None,
    ) -> Array:
        """Arguments and result as ``nnx.MultiHeadAttention``; sowed are the weights after dropout, quantized.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        Raises:
            ValueError: values without keys; dropout without ``deterministic`` or without keys for it.
        """
        if inputs_k is None and inputs_v is not None:
            raise ValueError("`inputs_k` must be given where `inputs_v` is")
        frozen = use_running_average
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        of_query = self.query.step(inputs_q, frozen)  # type: ignore[attr-defined]
        of_key = of_query if inputs_k is inputs_q else self.key.step(inputs_k, frozen)  # type: ignore[attr-defined]
        of_value = of_key if inputs_v is inputs_k else of_query if inputs_v is inputs_q else None
        of_value = self.value.step(inputs_v, frozen) if of_value is None else of_value  # type: ignore[attr-defined]
        query, key, value = self.query(of_query, frozen), self.key(of_key, frozen), self.value(of_value, frozen)
        if self.query_ln is not None and self.key_ln is not None:
            query, key = self.query_ln(query), self.key_ln(key)
        weights, context = self._attend(query, key, value, mask, is_causal, self._dropout(deterministic, rngs), frozen)
        if sow_weights:
            self.sow(nnx.Intermediate, "attention_weights", weights)
        context = context.reshape(*context.shape[:-2], math.prod(context.shape[-2:]))  # -1 is unknown where it is empty
        y: Array = self.out(self.out.step(context, frozen), frozen)  # type: ignore[attr-defined]
        return y

    def _attend(
        self, query: Array, key: Array, value: Array, mask: Any, causal: bool, dropout: Any, frozen: bool | None
    ) -> tuple[Array, Array]:
        """Quantized weights, and the context ``(..., length, heads, head size)``."""
        repeats = query.shape[-2] // key.shape[-2]
        key, value = (jnp.repeat(t, repeats, -2) if repeats > 1 else t for t in (key, value))
        q, k, v = (t.swapaxes(-3, -2) for t in (query, key, value))
        scores = _product(operand(self.query_quant, q, frozen), operand(self.key_quant, k, frozen))
        scores = or_same(self.softmax_quant, scores * (1 / math.sqrt(q.shape[-1])), frozen)
        seen = None if mask is None else mask.astype(bool)
        if causal:
            below = jnp.tril(jnp.ones(scores.shape[-2:], bool))
            seen = below if seen is None else seen & below
        if seen is not None:
            scores = jnp.where(seen, scores, -jnp.inf)
        weights = jax.nn.softmax(scores)
        if seen is not None:
            weights = jnp.where(jnp.any(jnp.broadcast_to(seen, scores.shape), -1, keepdims=True), weights, 0)
        if dropout is not None:
            weights = self._dropped(weights, dropout)
        a, b = operand(self.attention_quant, weights, frozen), operand(self.value_quant, v, frozen)
        context = _product(a, b._replace(value=b.value.swapaxes(-2, -1)))
        return a.quantized(), context.swapaxes(-3, -2)

    def _dropout(self, deterministic: bool | None, rngs: Any) -> Any:
        """The key of dropout; None for none."""
        rngs = self.rngs if rngs is None else rngs.dropout if isinstance(rngs, nnx.Rngs) else rngs
        if self.dropout_rate <= 0:
            return None
        off = self.deterministic if deterministic is None else deterministic
        if off is None:
            raise ValueError("`deterministic` must be given, to the layer or to the call, where there is dropout")
        if not off and rngs is None:
            raise ValueError("`rngs` must be given to the call where there is dropout and `keep_rngs` is False")
        return None if off else rngs()

    def _dropped(self, weights: Array, dropout: Any) -> Array:
        shape = (1,) * (weights.ndim - 2) + weights.shape[-2:] if self.broadcast_dropout else weights.shape
        keep = jax.random.bernoulli(dropout, 1 - self.dropout_rate, shape)
        return weights * (keep.astype(weights.dtype) / jnp.asarray(1 - self.dropout_rate, weights.dtype))


def _product(x: Operand, w: Operand) -> Array:
    """``x @ w.T`` of each matrix of a batch, ``(..., rows, in)`` and ``(..., outputs, in)``."""

    def values() -> Array:
        a, b = x.quantized(), w.quantized().swapaxes(-2, -1)
        return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)

    def codes() -> Array:
        return batched_matmul(x.held.quantizer, x.value, x.qparams, w.held.quantizer, w.value, w.qparams)

    if x.held is None or w.held is None or not contracts_matrices(x.held.quantizer, w.held.quantizer):
        return values()
    waits = waiting(x, w)
    return codes() if waits is None else either(waits, values, codes)
