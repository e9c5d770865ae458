"""Argument checks of tensors: core's, with what torch can say of a tensor. Values are checked only where concrete."""

from torch import Tensor
from torch.fx import Proxy

from ..core import checks
from ..core.descriptions import QParams, Quantizer
from ..core.directions import Rounding
from .arrays import dtype_name, is_concrete, numpy_of


def check_array(q: Quantizer, x: Tensor, qparams: QParams | None = None) -> None:
    """Whether ``x`` is an array that ``q`` accepts, and its parameters, if given, fit it.

    Raises:
        TypeError, ValueError: as `samebits.core.fake_quantize`; ValueError for another arithmetic than the default.
    """
    checks.check_quantizer(q)
    checks.check_default_arithmetic(q, "torch_frontend")
    check_tensor("x", x)
    checks.check_float("x", dtype_name(x.dtype))
    if qparams is None:
        q.granularity.block_size(tuple(x.shape))
    else:
        check_parameters(q, tuple(x.shape), dtype_name(x.dtype), qparams)


def check_parameters(q: Quantizer, shape: tuple[int, ...], dtype: str | None, qparams: QParams) -> None:
    """Whether parameters fit an array of this shape and dtype (None: any float)."""
    scale, zero = qparams.scale, qparams.zero_point
    check_tensor("qparams.scale", scale)
    if zero is not None:
        check_tensor("qparams.zero_point", zero)
    zero_shape, zero_dtype = (None, None) if zero is None else (tuple(zero.shape), dtype_name(zero.dtype))
    checks.check_qparams(q, shape, dtype, tuple(scale.shape), dtype_name(scale.dtype), zero_shape, zero_dtype)
    width = qparams.bit_width
    if width is not None:
        check_tensor("qparams.bit_width", width)
        checks.check_bit_width(q, tuple(width.shape), dtype_name(width.dtype), dtype_name(scale.dtype))
        if is_concrete(width):
            q = checks.at_width(q, width.item())
    if is_concrete(scale, zero):
        if scale.numel() != 1 or not checks.is_scale(scale.item(), dtype_name(scale.dtype)):
            checks.check_scale_values(numpy_of(scale), signed=q.scale.signed)
        if zero is not None:
            checks.check_zero_point_values(q, numpy_of(zero))
    if q.deterministic:
        return
    if q.rounding is Rounding.STOCHASTIC and qparams.seed is not None:
        _check_seed(qparams.seed)
    if q.rounding is Rounding.LEARNED and qparams.rounding is not None:
        v = qparams.rounding
        check_tensor("qparams.rounding", v)
        checks.check_rounding(shape, dtype_name(scale.dtype), tuple(v.shape), dtype_name(v.dtype))


def _check_seed(seed: object) -> None:
    if isinstance(seed, Tensor):
        known = seed.ndim == 0 and is_concrete(seed) and not seed.is_floating_point()
        checks.check_seed(tuple(seed.shape), dtype_name(seed.dtype), int(seed) if known else None)
    elif isinstance(seed, int):
        checks.check_seed((), "int64", seed)
    else:
        raise TypeError(f"`qparams.seed` must be an int or a torch.Tensor, got {type(seed).__name__}")


def check_tensor(name: str, value: object) -> None:
    """TypeError unless ``value`` is a tensor."""
    if not isinstance(value, Tensor):
        if isinstance(value, Proxy):
            raise TypeError(
                f"`{name}` must be a torch.Tensor, got a Proxy: torch.fx.symbolic_trace knows no shapes and dtypes; "
                "wrap the function (torch.fx.wrap), make the module a leaf (Tracer.is_leaf_module), or use torch.export"
            )
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
