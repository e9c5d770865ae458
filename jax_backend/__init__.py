"""The quantizers of `samebits.core` for JAX: the same bits, op by op and under `jax.jit`, with gradients."""

from ..core.requirements import require

require("jax_backend")

from .integer_arithmetic import integer_add as integer_add
from .integer_arithmetic import integer_matmul as integer_matmul
from .integer_arithmetic import lookup as lookup
from .integer_arithmetic import requantize as requantize
from .integer_pooling import integer_average_pool as integer_average_pool
from .integer_pooling import integer_max_pool as integer_max_pool
from .matmul import batched_matmul as batched_matmul
from .matmul import contraction_bound as contraction_bound
from .matmul import conv as conv
from .matmul import conv_transpose as conv_transpose
from .matmul import linear as linear
from .norms import integer_layer_norm as integer_layer_norm
from .norms import integer_rms_norm as integer_rms_norm
from .quantizer import choose_qparams as choose_qparams
from .quantizer import dequantize as dequantize
from .quantizer import fake_quantize as fake_quantize
from .quantizer import fake_quantize_vjp as fake_quantize_vjp
from .quantizer import quantize as quantize
from .softmax import integer_softmax as integer_softmax
