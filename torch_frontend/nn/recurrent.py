"""Recurrent layers over quantized operands: contractions of codes in every step, gates as torch computes them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.choice import check_count
from .. import matmul
from . import layer as shared
from .layer import Held, Operand, Quant, contracted, hold_each, operands, or_same

States = tuple[Tensor, ...]  # (layers * directions, batch, hidden): of outputs, and of the cells of an LSTM
Step = Callable[[Any, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]  # of gates and cell: state and cell


class QuantRNN(nn.Module):
    """``h = tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)``, or relu, over quantized ``x``, ``h`` and weights.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype: as
            ``torch.nn.RNN``.
        weight_quant: of each weight one of its own, under its name: ``weight_quant.weight_ih_l0``.
        input_quant: of what each layer reads, a whole sequence at once.
        hidden_quant: of the state, at every step, which is also the output: each is a tensor of training. Without first
            states they are zeros, and no tensor.
        fields: see the module. Biases are added as they are.
    """

    weight_quant: nn.ModuleDict | None
    input_quant: Held
    hidden_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        weight_quant: Quant = "int8_per_channel",
        input_quant: Quant = None,
        hidden_quant: Quant = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"`nonlinearity` must be 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        _describe(self, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        _make_parameters(self, 1, device, dtype)
        hold_recurrent(self, fields, weight=weight_quant, input=input_quant, hidden=hidden_quant)

    def forward(self, x: Tensor, h_0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sequences and first states as ``torch.nn.RNN``, with or without a batch: outputs and last states.

        Raises:
            TypeError: a packed sequence. ValueError: another shape.
        """
        output, (h_n,) = _run(self, x, () if h_0 is None else (h_0,), _rnn_step)
        return output, h_n


class QuantLSTM(nn.Module):
    """Long short-term memory over quantized operands, with the equations of ``torch.nn.LSTM``.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype: as
            ``torch.nn.LSTM``; there are no projections.
        weight_quant, input_quant, hidden_quant, fields: as `QuantRNN`.
        cell_quant: of the cell, at every step.
    """

    weight_quant: nn.ModuleDict | None
    input_quant: Held
    hidden_quant: Held
    cell_quant: Held
    load_state_dict = shared.load_state_dict

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        weight_quant: Quant = "int8_per_channel",
        input_quant: Quant = None,
        hidden_quant: Quant = None,
        cell_quant: Quant = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **fields: Any,
    ) -> None:
        super().__init__()
        _describe(self, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        _make_parameters(self, 4, device, dtype)
        quant = {"weight": weight_quant, "input": input_quant, "hidden": hidden_quant, "cell": cell_quant}
        hold_recurrent(self, fields, **quant)

    def forward(self, x: Tensor, states: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Sequences and first states as ``torch.nn.LSTM``, with or without a batch: outputs and last states.

        Raises:
            TypeError: a packed sequence. ValueError: another shape.
        """
        output, (h_n, c_n) = _run(self, x, () if states is None else tuple(states), _lstm_step)
        return output, (h_n, c_n)


def hold_recurrent(layer: Any, fields: Mapping[str, Any], **quant: Any) -> None:
    """`hold_each` of the weights of a recurrent layer. ValueError for projections, which are none of them."""
    if getattr(layer, "proj_size", 0):
        raise ValueError(f"`proj_size` must be 0, got {layer.proj_size}")
    weights = [name for name, _ in layer.named_parameters(recurse=False) if name.startswith("weight")]
    hold_each(layer, weights, fields, **quant)
    for name in ("_flat_weights", "_flat_weight_refs", "_flat_weights_names", "_all_weights"):
        vars(layer).pop(name, None)  # of a layer of torch, which keeps parameters twice


def _describe(
    layer: Any,
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
) -> None:
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
        check_count(name, value, 1)
        setattr(layer, name, value)
    if not 0 <= dropout <= 1:
        raise ValueError(f"`dropout` must be in [0, 1], got {dropout!r}")
    layer.bias, layer.batch_first, layer.dropout, layer.bidirectional = bias, batch_first, dropout, bidirectional


def _make_parameters(layer: Any, gates: int, device: Any, dtype: Any) -> None:
    """Those of torch's layers, which torch's compiler takes no layers of: same names, shapes and first values."""
    rows, bound = gates * layer.hidden_size, layer.hidden_size**-0.5
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    for depth in range(layer.num_layers):
        width = layer.hidden_size * len(directions) if depth else layer.input_size
        for suffix in directions:
            shapes: list[tuple[str, tuple[int, ...]]] = [
                ("weight_ih", (rows, width)),
                ("weight_hh", (rows, layer.hidden_size)),
            ]
            shapes += [("bias_ih", (rows,)), ("bias_hh", (rows,))] if layer.bias else []
            for name, shape in shapes:
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound))
                layer.register_parameter(f"{name}_l{depth}{suffix}", parameter)


def _rnn_step(layer: Any, gates: Tensor, cell: Tensor | None) -> tuple[Tensor, None]:
    return torch.tanh(gates) if layer.nonlinearity == "tanh" else torch.relu(gates), None


def _lstm_step(layer: Any, gates: Tensor, cell: Tensor | None) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, 1)
    new = torch.sigmoid(i) * torch.tanh(g)
    new = or_same(layer.cell_quant, new if cell is None else torch.sigmoid(f) * cell + new)
    return torch.sigmoid(o) * torch.tanh(new), new


def _run(layer: Any, x: Tensor, first: States, step: Step) -> tuple[Tensor, States]:
    """All layers and directions: outputs, and the last states of each."""
    name, directions = type(layer).__name__, 2 if layer.bidirectional else 1
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: `x` must be a tensor, got {type(x).__name__}")
    if x.ndim not in (2, 3) or x.shape[-1] != layer.input_size:
        raise ValueError(f"{name}: `x` must be sequences of {layer.input_size} features, got shape {tuple(x.shape)}")
    single = x.ndim == 2
    x = x.unsqueeze(1) if single else x.transpose(0, 1) if layer.batch_first else x
    if len(x) == 0:
        raise ValueError(f"{name}: `x` must have a step at least, got none")
    shape = (layer.num_layers * directions, x.shape[1], layer.hidden_size)
    first = tuple(state.unsqueeze(1) if single else state for state in first)
    for state in first:
        if state.shape != shape:
            raise ValueError(f"{name}: first states must have shape {shape}, got {tuple(state.shape)}")
    last: list[States] = []
    for depth in range(layer.num_layers):
        x = F.dropout(x, layer.dropout, layer.training) if depth and layer.dropout else x
        (read,) = operands((layer.input_quant, x))
        outputs = []
        for suffix in ("", "_reverse")[:directions]:
            at = tuple(state[len(last)] for state in first)
            y, at = _direction(layer, read, at, f"l{depth}{suffix}", step)
            outputs.append(y)
            last.append(at)
        x = torch.cat(outputs, 2) if directions > 1 else outputs[0]
    x = x.squeeze(1) if single else x.transpose(0, 1) if layer.batch_first else x
    states = tuple(torch.stack(each) for each in zip(*last, strict=True))
    return x, tuple(state.squeeze(1) for state in states) if single else states


def _direction(layer: Any, read: Operand, first: States, name: str, step: Step) -> tuple[Tensor, States]:
    """One layer in one direction: what it reads is contracted at once, its state step by step."""
    w_ih, w_hh = operands(*(_weight(layer, f"weight_{kind}_{name}") for kind in ("ih", "hh")))
    b_ih, b_hh = (getattr(layer, f"bias_{kind}_{name}") if layer.bias else None for kind in ("ih", "hh"))
    from_input = contracted(read, w_ih, b_ih, None, F.linear, matmul.linear)
    (state,) = operands((layer.hidden_quant, first[0])) if first else (None,)
    cell = first[1] if len(first) > 1 else None
    outputs, reverse = [], name.endswith("reverse")
    for gates in reversed(from_input.unbind()) if reverse else from_input.unbind():
        if state is not None:
            gates = gates + contracted(state, w_hh, b_hh, None, F.linear, matmul.linear)
        elif b_hh is not None:
            gates = gates + b_hh
        h, cell = step(layer, gates, cell)
        (state,) = operands((layer.hidden_quant, h))
        outputs.append(state.quantized())
    y = torch.stack(outputs[::-1] if reverse else outputs)
    return y, (outputs[-1],) if cell is None else (outputs[-1], cell)


def _weight(layer: Any, name: str) -> tuple[Held, Tensor]:
    """A weight and its quantizer."""
    return None if layer.weight_quant is None else layer.weight_quant[name], getattr(layer, name)
