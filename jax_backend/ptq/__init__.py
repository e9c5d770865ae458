"""Post-training quantization: flows that take a trained float model and give a quantized one."""

from .calibration import Calibration as Calibration
from .calibration import quantize as quantize
