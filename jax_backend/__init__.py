"""The quantizers of `samebits.core` for JAX: the same bits, op by op and under `jax.jit`, with gradients."""

from ..core.requirements import require

require("jax_backend")

from .matmul import batched_matmul as batched_matmul
from .matmul import contraction_bound as contraction_bound
from .matmul import conv as conv
from .matmul import conv_transpose as conv_transpose
from .matmul import linear as linear
from .quantizer import choose_qparams as choose_qparams
from .quantizer import dequantize as dequantize
from .quantizer import fake_quantize as fake_quantize
from .quantizer import fake_quantize_vjp as fake_quantize_vjp
from .quantizer import quantize as quantize
