"""Recurrent cells over quantized operands, for ``nnx.RNN``: contractions of codes in every step, gates as JAX computes.

Biases are added as they are. The state of a cell is what it gave before it was quantized, with the parameters that
quantized it: so each step contracts the codes of the output of the one before, and training sees it once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.recurrent import RNNCellBase

from ...core.descriptions import QParams
from ...core.formats import BinaryFormat
from ...core.granularity import qparams_shape
from ..layers import Geometry
from .layer import Held, Operand, Quant, contracted, hold, operand, or_same, own_bias, promoted
from .linear import WEIGHT, QuantLinear

Array = jax.Array


class Hidden(NamedTuple):
    """The state of a recurrent cell.

    Attributes:
        value: of the output, before it was quantized.
        qparams: what quantized it.
        waits: whether nothing did, during a delay.
    """

    value: Array
    qparams: QParams
    waits: Array | None


class QuantSimpleCell(RNNCellBase):
    """``h = tanh(x @ w_i + h @ w_h + b)`` over quantized ``x``, ``h`` and weights, with the variables of flax.

    They are ``dense_i`` without a bias and ``dense_h`` with one, each a `QuantLinear`. It computes what
    `samebits.torch_frontend.nn.QuantRNN` does without a bias at its input.

    Args:
        in_features, hidden_features, rngs: as ``nnx.SimpleCell``.
        nonlinearity: ``tanh`` or ``relu``.
        weight_quant: of each kernel one of its own.
        input_quant: of what the cell reads, at every step.
        hidden_quant: of the state, at every step, which is also the output.
        keywords: see the module; ``dtype``, ``param_dtype``, ``kernel_init``, ``recurrent_kernel_init``, ``bias_init``.
    Raises:
        ValueError: another nonlinearity, or a binary state, which has no zero to begin with.
    """

    input_quant: Held
    hidden_quant: Held
    dense_i: QuantLinear
    dense_h: QuantLinear

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        nonlinearity: str = "tanh",
        *,
        weight_quant: Quant = "int8_per_channel",
        input_quant: Quant = None,
        hidden_quant: Quant = None,
        rngs: nnx.Rngs,
        **keywords: Any,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"`nonlinearity` must be 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity, self.in_features, self.hidden_features = nonlinearity, in_features, hidden_features
        rest = _make(self, 1, weight_quant, rngs, keywords)
        hold(self, rest, input=input_quant, hidden=hidden_quant)
        _check_hidden(self)

    def __call__(self, carry: Hidden, inputs: Array, use_running_average: bool | None = None) -> tuple[Hidden, Array]:
        """The state and ``(..., in)`` to the next one and the output, ``(..., hidden)``.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        gates = _gates(self, carry, inputs, use_running_average)
        h = jnp.tanh(gates) if self.nonlinearity == "tanh" else jax.nn.relu(gates)
        return _output(self, h, use_running_average)

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None) -> Hidden:
        """Zeros, for inputs of this shape; as ``nnx.SimpleCell``, whose other arguments have no part in it."""
        return _zeros(self, (*input_shape[:-1], self.hidden_features))

    @property
    def num_feature_axes(self) -> int:
        """1."""
        return 1


class QuantLSTMCell(RNNCellBase):
    """Long short-term memory over quantized operands, with the variables of ``nnx.OptimizedLSTMCell``.

    They are ``dense_i`` without a bias and ``dense_h`` with one, each a `QuantLinear`; gates are in the order i, f, g,
    o. It computes what `samebits.torch_frontend.nn.QuantLSTM` does without a bias at its input.

    Args:
        in_features, hidden_features, weight_quant, input_quant, hidden_quant, rngs, keywords: as `QuantSimpleCell`.
        cell_quant: of the cell, at every step.
    """

    input_quant: Held
    hidden_quant: Held
    dense_i: QuantLinear
    dense_h: QuantLinear
    cell_quant: Held

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        weight_quant: Quant = "int8_per_channel",
        input_quant: Quant = None,
        hidden_quant: Quant = None,
        cell_quant: Quant = None,
        rngs: nnx.Rngs,
        **keywords: Any,
    ) -> None:
        self.in_features, self.hidden_features = in_features, hidden_features
        rest = _make(self, 4, weight_quant, rngs, keywords)
        hold(self, rest, input=input_quant, hidden=hidden_quant, cell=cell_quant)
        _check_hidden(self)

    def __call__(
        self, carry: tuple[Array, Hidden], inputs: Array, use_running_average: bool | None = None
    ) -> tuple[tuple[Array, Hidden], Array]:
        """Cell and state, and ``(..., in)``, to the next ones and the output, ``(..., hidden)``.

        Args:
            use_running_average: as `TensorQuantizer`; None for what ``train()`` or ``eval()`` set.
        """
        cell, hidden = carry
        i, f, g, o = jnp.split(_gates(self, hidden, inputs, use_running_average), 4, axis=-1)
        new = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        new = or_same(self.cell_quant, new, use_running_average)
        hidden, y = _output(self, jax.nn.sigmoid(o) * jnp.tanh(new), use_running_average)
        return (new, hidden), y

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> tuple[Array, Hidden]:
        """Zeros, for inputs of this shape; as ``nnx.LSTMCell``, whose other arguments have no part in it."""
        hidden = _zeros(self, (*input_shape[:-1], self.hidden_features))
        return jnp.zeros_like(hidden.value), hidden

    @property
    def num_feature_axes(self) -> int:
        """1."""
        return 1


def _make(layer: Any, gates: int, weight_quant: Quant, rngs: nnx.Rngs, keywords: dict[str, Any]) -> dict[str, Any]:
    """Both contractions of a cell; returns the keywords that are not for them."""
    ours = {name: value for name, value in keywords.items() if name.startswith("weight_")}
    options = {name: keywords[name] for name in ("dtype", "param_dtype") if name in keywords}
    own = ("kernel_init", "recurrent_kernel_init", "bias_init")
    inits = {name: keywords[name] for name in own if name in keywords}
    outputs = gates * layer.hidden_features
    of_kernel = {"kernel_init": inits["kernel_init"]} if "kernel_init" in inits else {}
    recurrent: Any = {"kernel_init": inits.get("recurrent_kernel_init", nnx.initializers.orthogonal())}
    recurrent |= {"bias_init": inits["bias_init"]} if "bias_init" in inits else {}
    both: Any = {"weight_quant": weight_quant, "rngs": rngs, **options, **ours}
    layer.dense_i = QuantLinear(layer.in_features, outputs, use_bias=False, **both, **of_kernel)
    layer.dense_h = QuantLinear(layer.hidden_features, outputs, **both, **recurrent)
    return {name: value for name, value in keywords.items() if name not in {*ours, *options, *inits}}


def _check_hidden(layer: Any) -> None:
    q = None if layer.hidden_quant is None else layer.hidden_quant.quantizer
    if q is not None and isinstance(q.format, BinaryFormat):
        raise ValueError(f"{type(layer).__name__}, `hidden_quant`: must have a zero, which states begin with, got {q}")


def _zeros(layer: Any, shape: tuple[int, ...]) -> Hidden:
    """The state before the first step: zeros, whatever quantizes them."""
    x = jnp.zeros(shape, layer.dense_h.dtype or layer.dense_h.param_dtype)
    held = layer.hidden_quant
    if held is None:
        return Hidden(x, QParams(None), None)
    q, wide = held.quantizer, np.float64 if x.dtype == np.float64 else np.float32
    blocks = qparams_shape(q.granularity, shape)
    kind = wide if q.arithmetic.has_float_zeros else np.int32
    width = getattr(held, "bit_width", None)
    qparams = QParams(
        jnp.ones(blocks, wide),
        jnp.zeros(blocks, kind) if q.affine else None,
        bit_width=None if width is None else jnp.asarray(q.learned_bits, wide),
        seed=None if getattr(held, "step", None) is None else jnp.zeros((), np.uint32),
    )
    return Hidden(x, qparams, jnp.zeros((), bool) if q.delay else None)


def _gates(layer: Any, hidden: Hidden, inputs: Array, frozen: bool | None) -> Array:
    """Both contractions, added."""
    dense_i, dense_h = layer.dense_i, layer.dense_h
    x, w_i = promoted(dense_i, inputs, WEIGHT)
    h, w_h = promoted(dense_h, hidden.value, WEIGHT)
    read = operand(layer.input_quant, x, frozen)
    state = Operand(h, layer.hidden_quant, hidden.qparams, hidden.waits)
    from_input = contracted(dense_i, read, operand(dense_i.weight_quant, w_i, frozen, WEIGHT), None, Geometry(0))
    w = operand(dense_h.weight_quant, w_h, frozen, WEIGHT)
    return from_input + contracted(dense_h, state, w, own_bias(dense_h, frozen), Geometry(0))


def _output(layer: Any, h: Array, frozen: bool | None) -> tuple[Hidden, Array]:
    """The next state, and what is given."""
    one = operand(layer.hidden_quant, h, frozen)
    return Hidden(one.value, one.qparams, one.waits), one.quantized()
