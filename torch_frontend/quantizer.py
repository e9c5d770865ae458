"""The five functions of the specification by torch's native operators, eager and compiled, differentiable.

Let ``s`` be the scale and ``z`` the zero point (0 when symmetric) of the block an element lies in, ``[lo, hi]`` the
format. Computed in float32 (float64 for float64 input; 16-bit input is widened first):

    code  = clamp(round(x / s) + z, lo, hi)        x / s is one correctly rounded division
    x_hat = (code - z) * s                         one correctly rounded multiplication

and ``x_hat`` is rounded once to the dtype of ``x``. ``+inf`` becomes hi, ``-inf`` lo. Only the default `Arithmetic`.

Shapes and dtypes as in `samebits.core.quantizer`. Values are checked where they can be looked at: in eager mode, on
ordinary tensors. In compiled code and under ``torch.func`` a block with NaN or an infinity gets a NaN scale, `quantize`
gives NaN the code of zero, and parameters are taken as they are.

Two routes compute the same operations: `eager`, in place over chunks that stay in cache, and `elementwise`, expressions
that a compiler fuses and ``torch.func`` transforms.
"""

from typing import Any

import torch
from torch import Tensor

from ..core import checks
from ..core.descriptions import Denominator, QParams, Quantizer, QuantizerGradients
from . import eager
from .arrays import broadcast_views, dtype_name, is_concrete, narrowed, numpy_of, records_gradient, wide_dtype, widened
from .blocks import expand_blocks
from .elementwise import codes_of, gradient_terms, one_zero, values_of
from .grid import decode, encode, limit_to_grid
from .scaling import affine_scale, restrict_scale, symmetric_scale
from .statistics import absmax, min_max
from .ste import block_sum, learned_scale_factor
from .zero_point import affine_zero_point


def choose_qparams(q: Quantizer, x: Tensor) -> QParams:
    """Scale (and zero point) of each block from its smallest and largest element; see `ScaleRule`.

    All-zero and empty blocks get the floor of the rule as scale. The result is a constant to autograd.

    Raises:
        TypeError: ``q`` is no Quantizer, ``x`` no floating-point tensor.
        ValueError: a shape the granularity does not divide, another arithmetic than the default; in eager mode, NaN or
            an infinity in ``x``.
    """
    _check(q, x)
    x = x.detach()
    if q.affine or q.scale.denominator is Denominator.LARGER:
        low, high = min_max(x, q.granularity)
    else:
        high = absmax(x, q.granularity)
        low = -high
    low, high = widened(low), widened(high)
    if is_concrete(x):
        checks.check_finite_statistic(bool((low.isfinite() & high.isfinite()).all()))
    scale = restrict_scale(q, affine_scale(q, low, high) if q.affine else symmetric_scale(q, low, high))
    return QParams(scale, affine_zero_point(q, low, scale) if q.affine else None)


def quantize(q: Quantizer, x: Tensor, qparams: QParams) -> Tensor:
    """Integer codes of ``x`` in the format's `storage` dtype. Not differentiable.

    Raises:
        TypeError, ValueError: as `fake_quantize`; in eager mode ValueError for NaN in ``x``: no integer stands for it.
    """
    _check(q, x, qparams)
    x, scale, zero = _detached(x, qparams)
    if is_concrete(x, scale, zero):
        return eager.codes(q, x, scale, zero, getattr(torch, q.format.storage))
    value, s, z = _views(q, x, scale, zero)
    codes = codes_of(q, value, s, z)[2]
    if not q.format.has_nan:
        of_zero = limit_to_grid(q, torch.zeros_like(codes)) if z is None else z
        codes = torch.where(codes.isnan(), of_zero, codes)
    return encode(q, codes).reshape(x.shape)


def dequantize(q: Quantizer, codes: Tensor, qparams: QParams, dtype: torch.dtype | None = None) -> Tensor:
    """Real values ``(code - z) * s`` of integer codes.

    Args:
        dtype: of the result; None for the dtype of the scale. The value is rounded to it once.
    Raises:
        TypeError: codes not in the format's storage dtype; wrong dtype of the parameters.
        ValueError: wrong shape of the parameters, or, in eager mode, wrong values.
    """
    checks.check_quantizer(q)
    checks.check_default_arithmetic(q, "torch_frontend")
    checks.check_codes(q, dtype_name(codes.dtype))
    out = qparams.scale.dtype if dtype is None else dtype
    checks.check_float("dtype", dtype_name(out))
    _check_qparams(q, tuple(codes.shape), None if dtype is None else dtype_name(out), qparams)
    zero = _wide(qparams.zero_point, qparams.scale)
    if is_concrete(codes, qparams.scale, zero) and not records_gradient(qparams.scale, zero):
        return eager.values(q, codes, qparams.scale, zero, out)
    value, s, z = _views(q, decode(q, codes, wide_dtype(out)), qparams.scale, zero)
    return narrowed((value if z is None else value - z) * s, out).reshape(codes.shape)


def fake_quantize(q: Quantizer, x: Tensor, qparams: QParams | None = None) -> Tensor:
    """``dequantize(quantize(x))`` in the dtype of ``x``, with NaN propagated; gradients as `fake_quantize_vjp`.

    Args:
        qparams: None to choose them from ``x`` (a constant to autograd).
    Raises:
        TypeError: ``q`` is no Quantizer, ``x`` no floating-point tensor, wrong dtype of scale or zero point, or a zero
            point missing or not wanted.
        ValueError: wrong shape of scale or zero point, another arithmetic than the default; in eager mode a scale that
            is no positive normal finite number, a zero point that is no integer of the format; and as `choose_qparams`
            when it chooses.
    """
    if qparams is None:
        qparams = choose_qparams(q, x)
    else:
        _check(q, x, qparams)
    scale, zero_point = qparams.scale, qparams.zero_point
    if is_concrete(x, scale, zero_point) and not records_gradient(x, scale, zero_point):
        return _forward(q, x, scale, zero_point)
    value: Tensor = _FakeQuantize.apply(x, scale, zero_point, q)  # type: ignore[no-untyped-call]
    return value


def fake_quantize_vjp(q: Quantizer, x: Tensor, qparams: QParams, g: Tensor) -> QuantizerGradients:
    """Gradients of ``sum(g * fake_quantize(q, x, qparams))`` as `q.gradient` defines them; see `Gradient`.

    ``x``: elementwise, ``g`` where the code was not clamped (NaN is not clamped), else +0.0; everywhere for
    `PASS_THROUGH`. ``scale`` and ``zero_point``: float32 terms (float64 for float64 ``x``), every operation rounded,
    summed over each block in float64 (error at most ``n * 2**-53 * sum(|terms|)``), rounded once. Shape and dtype of
    the scale.

    Args:
        g: incoming gradient, shape and dtype of ``x``.
    Raises:
        TypeError, ValueError: as `fake_quantize`, and when ``g`` has another shape or dtype than ``x``.
    """
    _check(q, x, qparams)
    checks.check_cotangent(tuple(x.shape), dtype_name(x.dtype), tuple(g.shape), dtype_name(g.dtype))
    return _gradients(q, x, qparams.scale, qparams.zero_point, g, (True, True, q.affine))


def codes_and_zero_points(q: Quantizer, x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
    """Codes in the wide dtype (NaN where `fake_quantize` propagates it), and the zero point of every element.

    Raises:
        TypeError, ValueError: as `fake_quantize`.
    """
    _check(q, x, qparams)
    x, scale, zero = _detached(x, qparams)
    if is_concrete(x, scale, zero):
        codes = eager.codes(q, x, scale, zero, scale.dtype)
    else:
        codes = one_zero(q, codes_of(q, *_views(q, x, scale, zero))[2]).reshape(x.shape)
    zeros = torch.zeros_like(scale) if zero is None else zero
    return codes, expand_blocks(zeros, q.granularity, tuple(x.shape))


class _FakeQuantize(torch.autograd.Function):
    """The straight-through estimator around `fake_quantize`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, zero_point: Tensor | None, q: Quantizer) -> Tensor:
        return _forward(q, x, scale, zero_point)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, scale, zero_point, ctx.q = inputs
        ctx.save_for_backward(x, scale, zero_point)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        d = _gradients(ctx.q, x, scale, zero_point, g, ctx.needs_input_grad[:3])
        return d.x, d.scale, d.zero_point, None


def _forward(q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    zero = _wide(zero_point, scale)
    if is_concrete(x, scale, zero):
        return eager.fake_quantize(q, x, scale, zero)
    value, s, z = _views(q, x, scale, zero)
    return narrowed(values_of(q, codes_of(q, value, s, z)[2], s, z), x.dtype).reshape(x.shape)


def _gradients(
    q: Quantizer, x: Tensor, scale: Tensor, zero_point: Tensor | None, g: Tensor, wanted: tuple[bool, bool, bool]
) -> QuantizerGradients:
    """Those of the gradients of x, scale and zero point that are wanted, else None."""
    zero = _wide(zero_point, scale)
    if is_concrete(x, scale, zero, g) and not records_gradient(x, scale, zero, g):
        dx, *sums = eager.gradients(q, x, scale, zero, g, wanted)
    else:
        value, s, z = _views(q, x, scale, zero)
        dx, *terms = gradient_terms(q, value, s, z, g.reshape(value.shape), wanted)
        dx = None if dx is None else dx.reshape(x.shape)
        sums = [None if t is None else block_sum(t.reshape(x.shape), q.granularity) for t in terms]
    factor = learned_scale_factor(q, x.numel() // max(1, scale.numel()))
    return QuantizerGradients(dx, *(None if t is None else t.to(scale.dtype) * factor for t in sums))


def _check(q: Quantizer, x: Tensor, qparams: QParams | None = None) -> None:
    checks.check_quantizer(q)
    checks.check_default_arithmetic(q, "torch_frontend")
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a torch.Tensor, got {type(x).__name__}")
    checks.check_float("x", dtype_name(x.dtype))
    if qparams is None:
        q.granularity.block_size(tuple(x.shape))
    else:
        _check_qparams(q, tuple(x.shape), dtype_name(x.dtype), qparams)


def _check_qparams(q: Quantizer, shape: tuple[int, ...], dtype: str | None, qparams: QParams) -> None:
    scale, zero = qparams.scale, qparams.zero_point
    zero_shape, zero_dtype = (None, None) if zero is None else (tuple(zero.shape), dtype_name(zero.dtype))
    checks.check_qparams(q, shape, dtype, tuple(scale.shape), dtype_name(scale.dtype), zero_shape, zero_dtype)
    if is_concrete(scale, zero):
        checks.check_scale_values(numpy_of(scale))
        if zero is not None:
            checks.check_zero_point_values(q, numpy_of(zero))


def _detached(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x``, scale and zero point without their history, the parameters in the wide dtype."""
    zero = qparams.zero_point
    return x.detach(), qparams.scale.detach(), _wide(None if zero is None else zero.detach(), qparams.scale)


def _wide(zero_point: Tensor | None, scale: Tensor) -> Tensor | None:
    return None if zero_point is None else zero_point.to(scale.dtype)


def _views(q: Quantizer, x: Tensor, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x``, widened, and its parameters in shapes that broadcast."""
    array, own = broadcast_views(q.granularity, tuple(x.shape))
    return widened(x).reshape(array), scale.reshape(own), None if zero is None else zero.reshape(own)
