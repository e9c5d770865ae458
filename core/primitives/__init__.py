"""Primitives: functions over arrays with one result for the same operands, in every mode and inside any program.

Here by definition, in NumPy; under the same names in `torch_frontend` and `jax_backend`.
"""

from .arithmetic import absolute as absolute
from .arithmetic import add as add
from .arithmetic import clamp as clamp
from .arithmetic import copysign as copysign
from .arithmetic import divide as divide
from .arithmetic import fused_multiply_add as fused_multiply_add
from .arithmetic import maximum as maximum
from .arithmetic import minimum as minimum
from .arithmetic import multiply as multiply
from .arithmetic import negative as negative
from .arithmetic import sign as sign
from .arithmetic import sqrt as sqrt
from .arithmetic import subtract as subtract
from .comparisons import equal as equal
from .comparisons import greater as greater
from .comparisons import greater_equal as greater_equal
from .comparisons import is_finite as is_finite
from .comparisons import is_nan as is_nan
from .comparisons import less as less
from .comparisons import less_equal as less_equal
from .comparisons import not_equal as not_equal
from .comparisons import where as where
from .exponents import exponent as exponent
from .exponents import scale_by_power as scale_by_power
from .exponents import significand as significand
from .functions import erf as erf
from .functions import exp as exp
from .functions import exp2 as exp2
from .functions import log as log
from .functions import log2 as log2
from .functions import power as power
from .functions import sigmoid as sigmoid
from .functions import tanh as tanh
from .reductions import absmax as absmax
from .reductions import amax as amax
from .reductions import amin as amin
from .reductions import mean as mean
from .reductions import percentile as percentile
from .reductions import sum as sum
from .roundings import cast as cast
from .roundings import ceil as ceil
from .roundings import floor as floor
from .roundings import round as round
from .roundings import to_format as to_format
from .roundings import trunc as trunc
from .tables import broadcast_to as broadcast_to
from .tables import random_bits as random_bits
from .tables import stop_gradient as stop_gradient
from .tables import straight_through as straight_through
from .tables import take as take
