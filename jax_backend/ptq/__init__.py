"""Post-training quantization of flax models and arrays: weights that keep the outputs of their layers."""

from .adaround import adaround as adaround
from .gptq import gptq as gptq
from .models import adaround_ as adaround_
from .models import correct_biases_ as correct_biases_
from .models import gptq_ as gptq_
