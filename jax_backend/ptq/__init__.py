"""Post-training quantization of JAX models: trained floats in, integers out; the codes of `torch_frontend.ptq`.

Weights by configs (`quantize_`), scales of activations from data (`quantize`, `Calibration`), static quantization in
PyTorch's steps (`prepare`, calibrate, `convert`), dynamic quantization; weights that keep the outputs of their layers
(`gptq_`, `adaround_`), factors between layers (`smooth_`, `equalize_`), and biases that keep means (`correct_biases_`).
The fastest config for each layer, by measuring (`autoquant`).
"""

from ...core.observing import Observer as Observer
from ...core.observing import ObserverKind as ObserverKind
from ...core.observing import QConfig as QConfig
from ...core.observing import default_dynamic_qconfig as default_dynamic_qconfig
from ...core.observing import default_histogram_qconfig as default_histogram_qconfig
from ...core.observing import default_per_channel_qconfig as default_per_channel_qconfig
from ...core.observing import default_qat_qconfig as default_qat_qconfig
from ...core.observing import default_qconfig as default_qconfig
from .adaround import adaround as adaround
from .affine import choose_qparams_affine as choose_qparams_affine
from .affine import dequantize_affine as dequantize_affine
from .affine import quantize_affine as quantize_affine
from .autoquant import autoquant as autoquant
from .bias_correction import corrected_bias as corrected_bias
from .bias_correction import mean_update as mean_update
from .calibration import Calibration as Calibration
from .calibration import quantize as quantize
from .configs import model_size as model_size
from .configs import quantize_ as quantize_
from .dot_general import dot_general as dot_general
from .dynamic import quantize_dynamic as quantize_dynamic
from .equalization import equalization_factors as equalization_factors
from .equalizing import equalize_ as equalize_
from .export import export_stablehlo as export_stablehlo
from .export import load_stablehlo as load_stablehlo
from .files import load_quantized as load_quantized
from .files import read_quantized as read_quantized
from .files import save_quantized as save_quantized
from .files import write_quantized as write_quantized
from .freezing import freeze as freeze
from .freezing import quantization_map as quantization_map
from .freezing import requantize as requantize
from .gguf import block_codes as block_codes
from .gguf import block_values as block_values
from .gptq import gptq as gptq
from .gptq import hessian_update as hessian_update
from .models import adaround_ as adaround_
from .models import correct_biases_ as correct_biases_
from .models import gptq_ as gptq_
from .modules import QuantizedLinear as QuantizedLinear
from .observer_modules import ObserverModule as ObserverModule
from .packing import pack as pack
from .packing import unpack as unpack
from .qarray import QArray as QArray
from .qarray import array_of_codes as array_of_codes
from .qarray import quant_array as quant_array
from .qarray import shardings as shardings
from .smoothing import smooth_ as smooth_
from .smoothquant import smoothing_factors as smoothing_factors
from .static import DeQuantStub as DeQuantStub
from .static import QuantStub as QuantStub
from .static import calibrate_in_order as calibrate_in_order
from .static import convert as convert
from .static import prepare as prepare
from .static import prepare_qat as prepare_qat
from .static import quantize_prepared as quantize_prepared
