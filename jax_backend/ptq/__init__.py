"""Post-training quantization of flax models and arrays: weights that keep the outputs of their layers."""

from .gptq import gptq as gptq
from .gptq_model import gptq_ as gptq_
