"""Argument checks of tensors: core's, with what torch can say of a tensor. Values are checked only where concrete."""

import numpy as np
import torch
from torch import Tensor
from torch.fx import Proxy

from ..core import checks, integer_checks
from ..core.descriptions import QParams, Quantizer
from ..core.directions import Rounding
from .arrays import dtype_name, is_concrete, numpy_of
from .states import widened_state


def check_array(q: Quantizer, x: Tensor) -> None:
    """Whether ``x`` is an array that ``q`` accepts.

    Raises:
        TypeError, ValueError: as `samebits.core.fake_quantize`.
    """
    checks.check_quantizer(q)
    check_tensor("x", x)
    checks.check_float("x", dtype_name(x.dtype))
    q.granularity.block_size(tuple(x.shape))


def check_operands(q: Quantizer, x: Tensor, qparams: QParams) -> QParams:
    """The parameters as `check_qparams` gives them, if they and ``x`` fit each other and ``q``."""
    # as `check_array`, which is not called: a compiled call is guarded by every function that it traces
    checks.check_quantizer(q)
    check_tensor("x", x)
    checks.check_float("x", dtype_name(x.dtype))
    qparams = check_qparams(q, tuple(x.shape), dtype_name(x.dtype), qparams)
    return qparams if x.is_cpu else beside(x, qparams)


def beside(x: Tensor, qparams: QParams) -> QParams:
    """Parameters on the device of ``x``, unless that computes nothing.

    Eager CUDA would multiply by the reciprocal of a scale in main memory.
    """
    if x.is_meta or qparams.scale.device == x.device:
        return qparams
    zero = None if qparams.zero_point is None else qparams.zero_point.to(x.device)
    return qparams._replace(scale=qparams.scale.to(x.device), zero_point=zero)


def check_qparams(q: Quantizer, shape: tuple[int, ...], dtype: str | None, qparams: QParams) -> QParams:
    """Parameters as tensors, those of 16 bits widened, if they fit an array of this shape and dtype (None: any float).

    The gradient of what was widened goes on to what was given.
    """
    scale, zero = qparams.scale, qparams.zero_point
    check_tensor("qparams.scale", scale)
    if zero is not None:
        check_tensor("qparams.zero_point", zero)
    zero_shape, zero_dtype = (None, None) if zero is None else (tuple(zero.shape), dtype_name(zero.dtype))
    checks.check_qparams(q, shape, dtype, tuple(scale.shape), dtype_name(scale.dtype), zero_shape, zero_dtype)
    if scale.element_size() == 2 or (zero is not None and zero.is_floating_point() and zero.element_size() == 2):
        scale, zero = widened_state(scale), None if zero is None else widened_state(zero)
        qparams = qparams._replace(scale=scale, zero_point=zero)
    if qparams.bit_width is not None:
        width = _integer("qparams.bit_width", qparams.bit_width)
        qparams = qparams._replace(bit_width=width)
        checks.check_bit_width(q, tuple(width.shape), dtype_name(width.dtype), dtype_name(scale.dtype))
        if is_concrete(width):
            q = checks.at_width(q, width.item())
    if is_concrete(scale, zero):
        if scale.numel() != 1 or not checks.is_scale(scale.item(), dtype_name(scale.dtype)):
            checks.check_scale_values(numpy_of(scale), floored=q.scale.floor != 0, signed=q.scale.signed)
        if zero is not None:
            checks.check_zero_point_values(q, numpy_of(zero))
    if q.deterministic:
        return qparams
    if q.rounding is Rounding.STOCHASTIC and qparams.seed is not None:
        return qparams._replace(seed=_checked_seed(qparams.seed))
    if q.rounding is Rounding.LEARNED and qparams.rounding is not None:
        v = qparams.rounding
        check_tensor("qparams.rounding", v)
        checks.check_rounding(shape, dtype_name(scale.dtype), tuple(v.shape), dtype_name(v.dtype))
    return qparams


def _checked_seed(seed: object) -> int | Tensor:
    if isinstance(seed, int) and not isinstance(seed, bool):  # of any size
        checks.check_seed((), "int64", seed)
        return seed
    given = _integer("qparams.seed", seed)
    known = given.ndim == 0 and is_concrete(given) and dtype_name(given.dtype) in checks.INTEGERS
    checks.check_seed(tuple(given.shape), dtype_name(given.dtype), int(numpy_of(given)) if known else None)
    return given


def _integer(name: str, value: object) -> Tensor:
    """What is to be an integer, as a tensor: numbers of Python, and numbers and arrays of NumPy too."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return torch.tensor(min(max(value, -(2**63)), 2**63 - 1))
    checks.check_unmasked(name, value)
    if isinstance(value, bool | np.ndarray | np.generic):
        if torch.compiler.is_compiling():  # where numbers of NumPy are traced as arrays
            return torch.as_tensor(value)
        array = np.asarray(value)
        if array.dtype.kind in "biuf" and array.dtype != np.longdouble:
            return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    raise TypeError(f"`{name}` must be an integer or a torch.Tensor, got {type(value).__name__}")


def check_tensor(name: str, value: object) -> None:
    """TypeError unless ``value`` is a tensor with strides: no sparse or nested one."""
    if not isinstance(value, Tensor):
        if isinstance(value, Proxy):
            raise TypeError(
                f"`{name}` must be a torch.Tensor, got a Proxy: torch.fx.symbolic_trace knows no shapes and dtypes; "
                "wrap the function (torch.fx.wrap), make the module a leaf (Tracer.is_leaf_module), or use torch.export"
            )
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
    if not torch.compiler.is_compiling() and (value.layout is not torch.strided or value.is_nested):
        kind = "nested" if value.is_nested else str(value.layout)
        raise TypeError(f"`{name}` must be a dense (strided) torch.Tensor, got a tensor of layout {kind}")


def check_codes(name: str, codes: Tensor) -> int:
    """The smallest code of the dtype. TypeError for what is no tensor of int8 or uint8."""
    check_tensor(name, codes)
    return integer_checks.check_codes_dtype(name, dtype_name(codes.dtype))[0]


def ends(x: Tensor) -> tuple[int, int] | None:
    """The smallest and the largest number, None of none and where they are not at hand."""
    if not is_concrete(x) or not x.numel():
        return None
    low, high = torch.aminmax(x)
    return int(low), int(high)
