"""PyTorch: the verbs of the specification by native operators, eager and compiled, differentiable; layers on top."""

from ..core.requirements import require

require("torch_frontend")

from .matmul import batched_matmul as batched_matmul
from .matmul import contraction_bound as contraction_bound
from .matmul import conv as conv
from .matmul import conv_transpose as conv_transpose
from .matmul import linear as linear
from .quant_tensor import QuantTensor as QuantTensor
from .quantized import quant_tensor as quant_tensor
from .quantized import quantized_tensor as quantized_tensor
from .quantizer import choose_qparams as choose_qparams
from .quantizer import dequantize as dequantize
from .quantizer import fake_quantize as fake_quantize
from .quantizer import fake_quantize_vjp as fake_quantize_vjp
from .quantizer import quantize as quantize
