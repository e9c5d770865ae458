"""Post-training quantization of JAX models: trained floats in, integers out; the codes of `torch_frontend.ptq`.

Static quantization of flax models in the steps of PyTorch (`prepare`, calibrate, `convert`), training with it, dynamic
quantization, and the observers behind them.
"""

from ...core.observing import Observer as Observer
from ...core.observing import ObserverKind as ObserverKind
from ...core.observing import QConfig as QConfig
from ...core.observing import default_dynamic_qconfig as default_dynamic_qconfig
from ...core.observing import default_histogram_qconfig as default_histogram_qconfig
from ...core.observing import default_per_channel_qconfig as default_per_channel_qconfig
from ...core.observing import default_qat_qconfig as default_qat_qconfig
from ...core.observing import default_qconfig as default_qconfig
from .dynamic import quantize_dynamic as quantize_dynamic
from .observer_modules import ObserverModule as ObserverModule
from .static import DeQuantStub as DeQuantStub
from .static import QuantStub as QuantStub
from .static import calibrate_in_order as calibrate_in_order
from .static import convert as convert
from .static import prepare as prepare
from .static import prepare_qat as prepare_qat
from .static import quantize_prepared as quantize_prepared
