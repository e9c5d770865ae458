"""Quantized layers as flax nnx modules.

A layer quantizes what it contracts: `QuantLinear` and `QuantConv` with both quantizers contract integer codes where
`samebits.core.contraction` allows it, exactly, and so give the same bits everywhere; with ``weight_quant`` alone they
contract floats. For gradients, codes are computed anew rather than kept. Activations between layers are floating-point
arrays. Arguments ``*_quant`` take a catalog name, a `Quantizer`, a `TensorQuantizer` (then shared), or None for no
quantization. Scales are kept as `TensorQuantizer` says.

Kernels and images are laid out as in flax, channels last. They are quantized as `samebits.core` lays them out, output
channels of a weight and channels of an image first, so a quantizer means the same as in torch.
"""

from ..tensor_quantizer import TensorQuantizer as TensorQuantizer
from .activation import QuantIdentity as QuantIdentity
from .activation import QuantReLU as QuantReLU
from .conv import QuantConv as QuantConv
from .linear import QuantLinear as QuantLinear
