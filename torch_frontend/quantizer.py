"""The five functions of the specification by torch's native operators, eager and compiled, differentiable.

Let ``s`` be the scale and ``z`` the zero point (0 when symmetric) of the block an element lies in, ``[lo, hi]`` the
format. Computed in float32 (float64 for float64 input; 16-bit input is widened first):

    code  = clamp(round(x / s) + z, lo, hi)        x / s is one correctly rounded division
    x_hat = (code - z) * s                         one correctly rounded multiplication

and ``x_hat`` is rounded once to the dtype of ``x``. ``+inf`` becomes hi, ``-inf`` lo. `q.arithmetic` changes any of
this, see `arithmetics`, and `q.scale` how scales are chosen, see `scale_rules`. With floating-point zero points
(`ZeroPointDomain.FLOAT`) ``z`` is the value of the middle code, mid = (lo + hi + 1) // 2, every operation rounded:

    code  = clamp(round((x - (z - mid * s)) / s), lo, hi)
    x_hat = (code - mid) * s + z

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
from ..core.arithmetic import NanRule
from ..core.descriptions import QParams, Quantizer, QuantizerGradients
from ..core.directions import Rounding
from ..core.granularity import qparams_shape
from ..core.scales import SEARCHED, Denominator, Statistic
from . import eager, routes
from .arguments import beside, check_array, check_operands, check_qparams, check_tensor
from .arithmetics import as_operand, ends_of, with_one_zero
from .arrays import apply, apply_plainly, dtype_name, is_concrete, narrowed, records_gradient, wide_dtype, widened
from .blocks import expand_blocks, split_blocks
from .eager_scales import scale_of_absmax, takes_absmax
from .elementwise import codes_of, values_of
from .grid import encode, limit_to_grid
from .half_quadratic import half_quadratic_range
from .operations import round_to_dtype, working_dtype
from .ranges import average_range, percentile_range, searched_range
from .scale_rules import data_range, flushed, given_parameters, parameters_of_range, scale_dtypes, widened_range
from .scaling import affine_scale, restrict_scale, symmetric_scale
from .statistics import absmax, min_max, positive_peak
from .zero_point import affine_zero_point, float_zero_point


def choose_qparams(q: Quantizer, x: Tensor) -> QParams:
    """Scale (and zero point) of each block from its smallest and largest element, or another `Statistic`.

    All-zero and empty blocks get the floor of the rule as scale. A rule with a `scale_value` gives that for any ``x``.
    The result is a constant to autograd.

    Raises:
        TypeError: ``q`` is no Quantizer, ``x`` no floating-point tensor.
        ValueError: a shape the granularity does not divide; in eager mode, NaN or an infinity in ``x`` where it
            matters.
    """
    check_array(q, x)
    if q.scale.scale_value is not None and not q.is_usual:
        return given_parameters(q, x)
    if q.scale.scale_value is not None:
        given = torch.empty(qparams_shape(q.granularity, tuple(x.shape)), dtype=wide_dtype(x.dtype), device=x.device)
        scale = restrict_scale(q, torch.full_like(given, q.scale.scale_value))
        kind = given.dtype if q.arithmetic.has_float_zeros else torch.int32
        return QParams(scale, torch.full_like(given, q.scale.zero_point_value, dtype=kind) if q.affine else None)
    x = x.detach()
    if is_concrete(x) and x.numel() and takes_absmax(q):
        return QParams(scale_of_absmax(q, x))
    low, high = _range(q, x) if q.is_usual else _range_in(q, x, scale_dtypes(q, x.dtype)[0])
    if is_concrete(x):
        checks.check_finite_statistic(bool((low.isfinite() & high.isfinite()).all()))
    found = _searched(q, x, low, high) if q.scale.statistic in SEARCHED else (low, high)
    chosen = _parameters(q, x.dtype, *found)
    if q.scale.signed:
        chosen = QParams(torch.where(positive_peak(x, q.granularity), -chosen.scale, chosen.scale))
    return chosen


def quantize(q: Quantizer, x: Tensor, qparams: QParams) -> Tensor:
    """Integer codes of ``x`` in the format's `storage` dtype. Not differentiable.

    Raises:
        TypeError, ValueError: as `fake_quantize`; in eager mode ValueError for NaN in ``x`` (under
            `NanRule.PROPAGATE`): no integer stands for it.
    """
    qparams = check_operands(q, x, qparams)
    q = q.decided
    x, scale, zero = _detached(x, qparams)
    seed = routes.seed_of(q, x, qparams)
    width = None if qparams.bit_width is None else qparams.bit_width.detach()
    refuses = q.arithmetic.nan is NanRule.PROPAGATE and not q.format.has_nan
    if is_concrete(x, scale, zero, seed, width):
        if seed is None and not q.scale.signed and q.usual:
            narrow = q if width is None else checks.at_width(q, width.item())
            return eager.codes(narrow, x, scale, zero, getattr(torch, q.format.storage))
        checks.check_no_nan(refuses and bool(x.isnan().any()))
    if refuses and (not q.usual or (zero is not None and q.arithmetic.has_float_zeros)):
        x = torch.where(x != x, torch.zeros_like(x), x)
    value, _, z = routes.views(q, x, scale, zero)
    codes = routes.codes(q, x, scale, zero, seed, width).reshape(value.shape)
    if not q.format.has_nan:
        if not q.usual:
            of_zero = torch.full_like(codes, min(max(0.0, ends_of(q)[0]), ends_of(q)[1]))
        elif z is None or q.arithmetic.has_float_zeros:
            of_zero = limit_to_grid(q, torch.zeros_like(codes))
        else:
            of_zero = z
        codes = torch.where(codes != codes, of_zero, codes)
    return encode(q, codes).reshape(x.shape)


def dequantize(q: Quantizer, codes: Tensor, qparams: QParams, dtype: torch.dtype | None = None) -> Tensor:
    """Real values ``(code - z) * s`` of integer codes.

    Args:
        dtype: of the result; None for the dtype of the scale (float32 for one of 16 bits). Rounded to it once.
    Raises:
        TypeError: codes not in the format's storage dtype; wrong dtype of the parameters.
        ValueError: wrong shape of the parameters, or, in eager mode, wrong values.
    """
    checks.check_quantizer(q)
    check_tensor("codes", codes)
    checks.check_codes(q, dtype_name(codes.dtype))
    if dtype is not None:
        checks.check_float("dtype", dtype_name(dtype))
    qparams = check_qparams(q, tuple(codes.shape), None if dtype is None else dtype_name(dtype), qparams)
    qparams = qparams if codes.is_cpu else beside(codes, qparams)
    out = qparams.scale.dtype if dtype is None else dtype
    return routes.values(q, codes, qparams.scale, qparams.zero_point, out)


def fake_quantize(q: Quantizer, x: Tensor, qparams: QParams | None = None) -> Tensor:
    """``dequantize(quantize(x))`` in the dtype of ``x``, with NaN propagated; gradients as `fake_quantize_vjp`.

    In forward mode the derivative is the sum of the same terms, each with its tangent in the place of ``g`` and before
    it is summed over blocks: see "Forward mode" in docs/semantics.md.

    Args:
        qparams: None to choose them from ``x`` (a constant to autograd).
    Raises:
        TypeError: ``q`` is no Quantizer, ``x`` no floating-point tensor, wrong dtype of scale or zero point, or a zero
            point missing or not wanted.
        ValueError: wrong shape of scale or zero point; in eager mode a scale that is no positive normal finite number,
            a zero point that is no integer of the format (NaN, where it is no code); and as `choose_qparams` when it
            chooses.
    """
    qparams = choose_qparams(q, x) if qparams is None else check_operands(q, x, qparams)
    scale, zero_point, seed = qparams.scale, qparams.zero_point, routes.seed_of(q, x, qparams)
    width = qparams.bit_width
    if is_concrete(x, scale, zero_point, seed, width):
        if not records_gradient(x, scale, zero_point, seed, width):
            if seed is None and width is None and not q.scale.signed and q.usual:
                return eager.fake_quantize(q, x, scale, routes.wide(zero_point, scale))
            return routes.forward(q, x, scale, zero_point, seed, width)
        if seed is None and width is None and not q.scale.signed and q.usual:
            return apply_plainly(_FakeQuantizeEagerly, x, scale, zero_point, q)
        return apply_plainly(_FakeQuantize, x, scale, zero_point, width, seed, q)
    return apply(_FakeQuantize, x, scale, zero_point, width, seed, q)


def fake_quantize_vjp(q: Quantizer, x: Tensor, qparams: QParams, g: Tensor) -> QuantizerGradients:
    """Gradients of ``sum(g * fake_quantize(q, x, qparams))`` as `q.gradient` defines them; see `Gradient`.

    ``x``: elementwise, ``g`` where the code was not clamped (NaN is not clamped), else +0.0; everywhere for
    `PASS_THROUGH`. ``scale`` and ``zero_point``: float32 terms (float64 for float64 ``x``), every operation rounded,
    summed over each block in float64 (error at most ``n * 2**-53 * sum(|terms|)``), rounded once. Shapes and dtypes
    of the parameters; float32 (or float64) for integers, and for 16 bits the one in float32 rounded once more.
    ``bit_width``, where there is one: summed so over the whole array, times one number; float32 (or float64).
    ``rounding``, if given: ``g * s * h'(v)`` where the code was not clamped, else +0.0.

    Args:
        g: incoming gradient, shape and dtype of ``x``.
    Raises:
        TypeError, ValueError: as `fake_quantize`, and when ``g`` has another shape or dtype than ``x``.
    """
    given, qparams = qparams, check_operands(q, x, qparams)
    check_tensor("g", g)
    checks.check_cotangent(tuple(x.shape), dtype_name(x.dtype), tuple(g.shape), dtype_name(g.dtype))
    seed = routes.seed_of(q, x, qparams)
    wanted, width = (True, True, q.affine, qparams.bit_width is not None), qparams.bit_width
    d = routes.gradients(q, x, qparams.scale, qparams.zero_point, g, wanted, seed, width)
    d = d._replace(scale=narrowed(d.scale, given.scale.dtype))
    if q.affine and given.zero_point.is_floating_point():
        d = d._replace(zero_point=narrowed(d.zero_point, given.zero_point.dtype))
    if q.rounding is not Rounding.LEARNED or qparams.rounding is None:
        return d
    return d._replace(rounding=routes.rounding_gradient(q, x, qparams.scale, qparams.zero_point, g, qparams.rounding))


def codes_and_zero_points(q: Quantizer, x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
    """Codes in the wide dtype (NaN where `fake_quantize` propagates it), and the zero point of every element.

    Raises:
        TypeError, ValueError: as `fake_quantize`.
    """
    qparams = check_operands(q, x, qparams)
    q = q.decided
    x, scale, zero = _detached(x, qparams)
    width = None if qparams.bit_width is None else qparams.bit_width.detach()
    codes = routes.codes(q, x, scale, zero, routes.seed_of(q, x, qparams), width)
    zeros = torch.zeros_like(scale) if zero is None else zero
    return codes, expand_blocks(zeros, q.granularity, tuple(x.shape))


class _FakeQuantize(torch.autograd.Function):
    """The straight-through estimator around `fake_quantize`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        bit_width: Tensor | None,
        seed: Tensor | None,
        q: Quantizer,
    ) -> Tensor:
        return routes.forward(q, x, scale, zero_point, seed, bit_width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)  # zeros times infinite slopes would be NaN
        *tensors, ctx.q = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 6
        x, scale, zero_point, width, seed = ctx.saved_tensors
        d = routes.gradients(ctx.q, x, scale, zero_point, g, ctx.needs_input_grad[:4], seed, width)
        d_seed = None
        if ctx.needs_input_grad[4]:  # that of learned rounding
            d_seed = routes.rounding_gradient(ctx.q, x, scale, zero_point, g, seed)
        return *d[:4], d_seed, None

    @staticmethod
    def tangent(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, scale, zero_point, width, seed = ctx.saved_tensors
        return routes.tangent(ctx.q, x, scale, zero_point, tangents[:5], seed, width)


class _FakeQuantizeEagerly(torch.autograd.Function):
    """The same around `eager.fake_quantize`, which tells cheaply whether the backward pass has to look for NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor | None, q: Quantizer) -> Tensor:
        ctx.q = q
        ctx.save_for_backward(x, scale, zero_point)
        value, ctx.may_be_nan = eager.fake_quantize_and_nan(
            q, x, scale, routes.wide(zero_point, scale), scale.numel() == 1 and ctx.needs_input_grad[0]
        )
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, zero_point = ctx.saved_tensors
        wanted = (*ctx.needs_input_grad[:3], False)
        d = routes.gradients(ctx.q, x, scale, zero_point, g, wanted, may_be_nan=ctx.may_be_nan)
        return d.x, d.scale, d.zero_point, None


def _range(q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The range that the scale of each block comes from, in the wide dtype."""
    if q.scale.statistic in (Statistic.EXTREMES, Statistic.SIGNED_ABSMAX, *SEARCHED):
        if q.affine or q.scale.denominator is Denominator.LARGER:
            low, high = min_max(x, q.granularity)
        else:
            high = absmax(x, q.granularity)
            low = -high
        return widened(low), widened(high)
    low, high = (percentile_range if q.scale.statistic is Statistic.PERCENTILE else average_range)(q, widened(x))
    return (low.clamp(max=0), high.clamp(min=0)) if q.affine else (low, high)


def _range_in(q: Quantizer, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`_range_of_others`, in a dtype: of extremes the ends alone are widened to it, and not all of ``x``."""
    widens = dtype.itemsize > x.element_size() and not q.arithmetic.flush_subnormals
    if widens and q.scale.statistic is Statistic.EXTREMES:
        low, high = _range_of_others(q, x)
        return low.to(dtype), high.to(dtype)
    return _range_of_others(q, flushed(q, x, dtype))


def _range_of_others(q: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """That of other rules and arithmetics, in the dtype of ``x``: the one in which it is to be computed."""
    if q.scale.statistic in (Statistic.EXTREMES, Statistic.SIGNED_ABSMAX, *SEARCHED):
        if q.affine:
            return data_range(q, x)
        if q.scale.denominator is Denominator.LARGER:
            return min_max(x, q.granularity)
        high = absmax(x, q.granularity)
        return -high, high
    statistic = percentile_range if q.scale.statistic is Statistic.PERCENTILE else average_range
    low, high = (round_to_dtype(end, x.dtype) for end in statistic(q, widened(x)))
    # zeros among percentiles may have either sign
    return widened_range(q, with_one_zero(low), high) if q.affine else (low, high)


def _parameters(
    q: Quantizer, dtype: torch.dtype, low: Tensor, high: Tensor, lower_end: Tensor | None = None
) -> QParams:
    """Scale and zero point of ranges, for arrays of a dtype; the zero point from ``lower_end``, where there is one."""
    if not q.is_usual:
        return parameters_of_range(q, dtype, low, high, lower_end)
    scale = restrict_scale(q, affine_scale(q, low, high) if q.affine else symmetric_scale(q, low, high))
    zero_point = float_zero_point if q.arithmetic.has_float_zeros else affine_zero_point
    return QParams(scale, zero_point(q, low if lower_end is None else lower_end, scale) if q.affine else None)


def _searched(q: Quantizer, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    """The range that a search finds; rounding that draws or learns counts as rounding to nearest there."""
    if not q.deterministic:
        q = q.replace(rounding=Rounding.TIES_TO_EVEN)
    wide = widened(x)
    work = wide.dtype if q.usual else working_dtype(q.arithmetic, x.dtype)
    values = split_blocks(wide if q.usual else as_operand(x, work), q.granularity)

    def attempt(low: Tensor, high: Tensor, lower_end: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        scale, zero, *_ = _parameters(q, x.dtype, low, high, lower_end)
        s, z = routes.in_blocks(q, scale, zero, work)
        codes = codes_of(q, values, s, z)[2]
        return scale, codes.to(wide.dtype), round_to_dtype(values_of(q, codes, s, z), wide.dtype)

    if q.scale.statistic is Statistic.HQO:
        return half_quadratic_range(q, wide, low, high, attempt)
    return searched_range(q, wide, low, high, lambda low, high: attempt(low, high)[2])


def _detached(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x``, scale and zero point without their history, the parameters in the wide dtype."""
    zero = qparams.zero_point
    return x.detach(), qparams.scale.detach(), routes.wide(None if zero is None else zero.detach(), qparams.scale)
