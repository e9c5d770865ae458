"""Post-training quantization of torch models: weights that keep the outputs of their layers."""

from .adaround import adaround as adaround
from .bias_correction import corrected_bias as corrected_bias
from .bias_correction import mean_update as mean_update
from .equalization import equalization_factors as equalization_factors
from .equalizing import equalize_ as equalize_
from .gptq import gptq as gptq
from .gptq import hessian_update as hessian_update
from .models import adaround_ as adaround_
from .models import correct_biases_ as correct_biases_
from .models import gptq_ as gptq_
from .smoothing import smooth_ as smooth_
from .smoothquant import smoothing_factors as smoothing_factors
