"""PyTorch: the verbs of the specification by native operators, eager and compiled, differentiable; layers on top."""

from .quantizer import choose_qparams as choose_qparams
from .quantizer import dequantize as dequantize
from .quantizer import fake_quantize as fake_quantize
from .quantizer import fake_quantize_vjp as fake_quantize_vjp
from .quantizer import quantize as quantize
