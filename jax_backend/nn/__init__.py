"""Quantized layers as flax nnx modules.

A layer quantizes what it contracts: linear layers and convolutions with both quantizers contract integer codes where
`samebits.core.contraction` allows it, exactly, and so give the same bits everywhere; with ``weight_quant`` alone they
contract floats. For gradients, codes are computed anew rather than kept. Activations between layers are floating-point
arrays. Arguments ``*_quant`` take a catalog name, a `Quantizer`, a `TensorQuantizer` (then shared), an `Injector` that
declares a `Quantizer` (`proxies`), or None for no quantization. Further keywords ``<role>_<field>`` (``weight_bits=4``,
``input_source="learned"``) replace single fields of the quantizer, its format, scale rule, arithmetic or learned
rounding, or attributes of a declaration; in activations also without the prefix. ``bias_quant`` takes symmetric
integers, whose scale is that of the input times that of the weight; both must be quantized. Scales are kept as
`TensorQuantizer` says.

Layers with parameters also take ``use_bias``, ``dtype``, ``param_dtype``, ``kernel_init``, ``bias_init``,
``kernel_metadata`` and ``bias_metadata``, as those of flax, and refuse what would change what is computed.

Kernels and images are laid out as in flax, channels last. They are quantized as `samebits.core` lays them out, output
channels of a weight and channels of an image first, so a quantizer means the same as in torch. The property ``weight``
is the kernel in that layout.
"""

from ..prototype_quantizer import PrototypeQuantizer as PrototypeQuantizer
from ..tensor_quantizer import TensorQuantizer as TensorQuantizer
from .activation import QuantGELU as QuantGELU
from .activation import QuantHardTanh as QuantHardTanh
from .activation import QuantIdentity as QuantIdentity
from .activation import QuantReLU as QuantReLU
from .activation import QuantSigmoid as QuantSigmoid
from .activation import QuantSiLU as QuantSiLU
from .activation import QuantTanh as QuantTanh
from .attention import QuantMultiHeadAttention as QuantMultiHeadAttention
from .conv import QuantConv as QuantConv
from .conv_transpose import QuantConvTranspose as QuantConvTranspose
from .elementwise import QuantCat as QuantCat
from .elementwise import QuantEltwiseAdd as QuantEltwiseAdd
from .embedding import QuantEmbed as QuantEmbed
from .linear import QuantLinear as QuantLinear
from .model import quantize_model as quantize_model
from .pooling import QuantAdaptiveAvgPool as QuantAdaptiveAvgPool
from .pooling import QuantAvgPool as QuantAvgPool
from .pooling import QuantMaxPool as QuantMaxPool
from .recurrent import QuantLSTMCell as QuantLSTMCell
from .recurrent import QuantSimpleCell as QuantSimpleCell
