"""Layers of many kinds in one compiled program, beside the same in eager mode."""

import torch
import torch._dynamo.config
from torch import Tensor, nn

from samebits.core import catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend.nn import (
    QuantConv1d,
    QuantConvTranspose1d,
    QuantHardTanh,
    QuantLinear,
    QuantRNN,
    QuantScaleBias,
    QuantScaledDotProductAttention,
)

RUNNING = catalog["uint8_affine_per_tensor"].replace(source="running_statistic")
STATE = catalog["uint8_per_tensor"].replace(source="constant", scale_value=1 / 64)


class Network(nn.Module):
    """Of layers that select and contract: attention sees one place, where its softmax is 1 in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = QuantConv1d(4, 6, 3, padding="same", padding_mode="circular", input_quant=RUNNING)
        self.up = QuantConvTranspose1d(6, 4, 3, stride=2, groups=2, output_padding=1, input_quant=RUNNING)
        self.norm = QuantScaleBias(4, input_quant="int8_per_tensor")
        self.rnn = QuantRNN(4, 3, nonlinearity="relu", batch_first=True, input_quant=RUNNING, hidden_quant=STATE)
        self.attention = QuantScaledDotProductAttention()
        self.act = QuantHardTanh("int8_per_tensor", source="running_statistic")
        self.head = QuantLinear(3, 2, bias_quant="int16_per_tensor", input_quant=RUNNING)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.norm(self.up(self.conv(x))).transpose(1, 2)[:, :3])
        out: Tensor = self.head(self.act(self.attention(y, y[:, :1], y[:, :1])))
        return out


def test_one_program_has_the_bits_of_eager_layers() -> None:
    """In evaluation, for two batch sizes, compiled once."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    network, batches = Network(), [torch.randn(n, 4, 5) for n in (3, 5)]
    network(batches[0])
    network.eval()
    program = torch.compile(network, fullgraph=True, dynamic=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for x in batches:
            assert_same_bits(network(x), program(x))
