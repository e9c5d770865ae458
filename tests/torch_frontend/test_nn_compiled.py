"""Layers of many kinds in compiled programs, beside the same in eager mode."""

import pytest
import torch
import torch._dynamo.config
from torch import Tensor, nn

from samebits.core import catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.nn import QuantConv1d, QuantConvTranspose1d, QuantRNN, QuantScaledDotProductAttention

RUNNING = catalog["uint8_affine_per_tensor"].replace(source="running_statistic")
STATE = catalog["uint8_per_tensor"].replace(source="constant", scale_value=1 / 64)


class Contractions(nn.Module):
    """A convolution and attention, which sees one place, where its softmax is 1 in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = QuantConv1d(4, 6, 3, padding="same", padding_mode="circular", input_quant=RUNNING)
        roles = ("query_quant", "key_quant", "value_quant", "attention_quant")
        self.attention = QuantScaledDotProductAttention(**dict.fromkeys(roles, STATE))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        out: Tensor = self.attention(y, y[:, :1], y[:, :1])
        return out


class Steps(nn.Module):
    """A transposed convolution, of whose outputs two are read step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.up = QuantConvTranspose1d(4, 4, 3, stride=2, groups=2, output_padding=1, input_quant=RUNNING)
        self.rnn = QuantRNN(4, 3, nonlinearity="relu", batch_first=True, input_quant=RUNNING, hidden_quant=STATE)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.up(x).transpose(1, 2)[:, :2])
        out: Tensor = y
        return out


@pytest.mark.parametrize("kind", [Contractions, pytest.param(Steps, marks=pytest.mark.thorough)])
def test_programs_have_the_bits_of_eager_layers(kind: type[nn.Module]) -> None:
    """In evaluation, for two batch sizes, compiled once."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    network, batches = kind(), [torch.randn(n, 4, 5) for n in (3, 5)]
    network(batches[0])
    network.eval()
    program = torch.compile(network, fullgraph=True, dynamic=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for x in batches:
            assert_same_bits(network(x), program(x))
