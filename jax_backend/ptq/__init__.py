"""Post-training quantization: flows that take a trained float model and give a quantized one."""

from .affine import choose_qparams_affine as choose_qparams_affine
from .affine import dequantize_affine as dequantize_affine
from .affine import quantize_affine as quantize_affine
from .calibration import Calibration as Calibration
from .calibration import quantize as quantize
from .configs import model_size as model_size
from .configs import quantize_ as quantize_
from .files import load_quantized as load_quantized
from .files import read_quantized as read_quantized
from .files import save_quantized as save_quantized
from .modules import QuantizedLinear as QuantizedLinear
from .packing import pack as pack
from .packing import unpack as unpack
from .qarray import QArray as QArray
from .qarray import array_of_codes as array_of_codes
from .qarray import quant_array as quant_array
