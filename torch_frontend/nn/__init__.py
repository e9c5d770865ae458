"""Quantized layers as torch modules.

A layer quantizes what it contracts: linear layers and convolutions with both quantizers contract integer codes where
`samebits.core.contraction` allows it, exactly, and so give the same bits everywhere; with ``weight_quant`` alone they
contract floats. Activations between layers are floating-point tensors. Arguments ``*_quant`` take a catalog name, a
`Quantizer`, a `TensorQuantizer` (then shared), or None for no quantization. Further keywords ``<role>_<field>``
(``weight_bits=4``, ``input_source="learned"``) replace single fields of the quantizer, its format, scale rule,
arithmetic or learned rounding; in activations also without the prefix. ``bias_quant`` takes symmetric integers,
whose scale is that of the input times that of the weight; both must be quantized. Scales are kept as `TensorQuantizer`
says, under names like ``input_quant.scale`` in a ``state_dict``.

Under ``torch.autocast`` a layer that contracts codes computes as without it, and gives the dtype of ``x``, which may
then be of 16 bits while the weight is float32; one that contracts floats is cast as its float layer.
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
from .attention import QuantMultiheadAttention as QuantMultiheadAttention
from .attention import QuantScaledDotProductAttention as QuantScaledDotProductAttention
from .batch_norm import FoldedBatchNorm as FoldedBatchNorm
from .conv import QuantConv1d as QuantConv1d
from .conv import QuantConv2d as QuantConv2d
from .conv import QuantConv3d as QuantConv3d
from .conv_transpose import QuantConvTranspose1d as QuantConvTranspose1d
from .conv_transpose import QuantConvTranspose2d as QuantConvTranspose2d
from .conv_transpose import QuantConvTranspose3d as QuantConvTranspose3d
from .elementwise import QuantCat as QuantCat
from .elementwise import QuantEltwiseAdd as QuantEltwiseAdd
from .embedding import QuantEmbedding as QuantEmbedding
from .inference import quant_inference_mode as quant_inference_mode
from .linear import QuantLinear as QuantLinear
from .model import quantize_model as quantize_model
from .normalisation import QuantScaleBias as QuantScaleBias
from .normalisation import batch_norm_to_scale_bias as batch_norm_to_scale_bias
from .normalisation import merge_batch_norm as merge_batch_norm
from .pooling import QuantAdaptiveAvgPool2d as QuantAdaptiveAvgPool2d
from .pooling import QuantAvgPool2d as QuantAvgPool2d
from .pooling import QuantMaxPool1d as QuantMaxPool1d
from .pooling import QuantMaxPool2d as QuantMaxPool2d
from .proxies_of_given_scales import BiasQuantProxy as BiasQuantProxy
from .proxies_of_given_scales import BiasQuantProxyFromInjector as BiasQuantProxyFromInjector
from .proxies_of_given_scales import ClampQuantProxy as ClampQuantProxy
from .proxies_of_given_scales import ClampQuantProxyFromInjector as ClampQuantProxyFromInjector
from .proxies_of_given_scales import TruncQuantProxy as TruncQuantProxy
from .proxies_of_given_scales import TruncQuantProxyFromInjector as TruncQuantProxyFromInjector
from .proxy import ActQuantProxy as ActQuantProxy
from .proxy import ActQuantProxyFromInjector as ActQuantProxyFromInjector
from .proxy import QuantProxy as QuantProxy
from .proxy import WeightQuantProxy as WeightQuantProxy
from .proxy import WeightQuantProxyFromInjector as WeightQuantProxyFromInjector
from .recurrent import QuantLSTM as QuantLSTM
from .recurrent import QuantRNN as QuantRNN
from .upsample import QuantUpsample as QuantUpsample
from .upsample import QuantUpsamplingBilinear2d as QuantUpsamplingBilinear2d
from .upsample import QuantUpsamplingNearest2d as QuantUpsamplingNearest2d
