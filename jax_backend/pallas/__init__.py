"""Kernels in Pallas: fused fake quantization, and contractions of 8-bit codes that quantize one side on the way.

They have the bits of the functions beside them that are written in lax, by arithmetic on integers alone, so that it
does not matter how a device divides. `fake_quantize`, and products of `samebits.jax_backend.ptq` with stored codes,
take them in programs for CUDA (compiled by Triton) and TPU where they can (`fits`, `fits_products`). On CPU and
elsewhere the lax kernels stay, and everywhere if the environment variable ``SAMEBITS_PALLAS`` is 0 when a function is
compiled. With ``interpret=True`` these run anywhere, slowly.
"""

from .matmul import fits_products as fits_products
from .matmul import sums as sums
from .quantizer import fake_quantize as fake_quantize
from .quantizer import fake_quantized as fake_quantized
from .quantizer import fits as fits
