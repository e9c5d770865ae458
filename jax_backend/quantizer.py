"""The five functions for JAX arrays: lax operations on bit patterns and barriers, differentiable.

Let ``s`` be the scale and ``z`` the zero point (0 when symmetric) of the block an element lies in, ``[lo, hi]`` the
format. Computed in float32 (float64 for float64 input; 16-bit input is widened first):

    code  = clamp(round(x / s) + z, lo, hi)        x / s is one correctly rounded division
    x_hat = (code - z) * s                         one correctly rounded multiplication

and ``x_hat`` is rounded once to the dtype of ``x``. ``+inf`` becomes hi, ``-inf`` lo. No result is -0.0, but where the
format has one. For formats other than integers `grid` stands for clamping and rounding. With floating-point zero points
(`ZeroPointDomain.FLOAT`) ``z`` is the value of the middle code, mid = (lo + hi + 1) // 2, and every operation rounded:

    code  = clamp(round((x - (z - mid * s)) / s), lo, hi)
    x_hat = (code - mid) * s + z

Every other `q.arithmetic` is computed, too, and every rule of `q.scale` (`arithmetics`, `scale_rules`). These are the
bits of `samebits.core`, op by op and under `jax.jit` (``q`` is a static argument), alone or inside a larger program.

What only values can tell (scales that are no positive normal numbers, zero points that are no codes, NaN for
`quantize`, data without a finite range) is refused where the values are at hand. While tracing they are not: then a
block that is not finite gets a NaN scale, `quantize` gives NaN the code of zero, and other wrong values give results
without meaning.

The functions compile themselves; `kernels.by_scale` says where subnormal ``x`` may be read as zero, as XLA does.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ..core import checks
from ..core.arithmetic import NanRule
from ..core.descriptions import QParams, Quantizer, QuantizerGradients
from ..core.directions import Rounding
from ..core.formats import CodebookFormat, FloatFormat, IntegerFormat
from ..core.granularity import qparams_shape
from ..core.scales import SEARCHED, Denominator, Statistic
from . import arithmetics, kernels
from .arguments import check_array, check_description, check_operands, check_qparams
from .arithmetics import encoded
from .arrays import as_array, is_concrete, narrow, widen
from .derivatives import Tangents, differentiable
from .gradients import bit_width_gradient, gradients, rounding_gradient
from .grid import decode, encode
from .half_quadratic import half_quadratic_range
from .operations import round_to_dtype, working_dtype
from .parameters import choose_by_rule, is_other_rule
from .platforms import fake_quantized
from .ranges import average_range, percentile_range, searched_range
from .scale_rules import given_parameters
from .scaling import affine_scale, restrict_scale, symmetric_scale
from .sharding import EVERYWHERE, laid_out_by, like_first, spec_of, spec_of_qparams
from .signs import with_positive_scales, with_signs
from .small_numbers import is_other
from .statistics import absmax, min_max, positive_peak
from .tangents import Moves, tangent
from .zero_point import affine_zero_point, float_zero_point

Array = jax.Array


def choose_qparams(q: Quantizer, x: Array) -> QParams:
    """Scale (and zero point) of each block from its smallest and largest element, or another `Statistic`.

    All-zero and empty blocks get the floor of the rule as scale. A rule with a `scale_value` gives that for any ``x``.
    Constant in the gradient.

    Raises:
        TypeError: ``q`` is no Quantizer, ``x`` no floating-point array.
        ValueError: a shape the granularity does not divide, NaN or an infinity in ``x`` where it matters (where values
            are at hand; else NaN is the scale).
    """
    x = check_array(q, x)
    if is_other_rule(q) and q.scale.scale_value is not None:
        return given_parameters(q, x)
    if q.scale.scale_value is not None:
        shape, dtype = qparams_shape(q.granularity, x.shape), checks.scale_dtype(x.dtype.name)
        kind = dtype if q.arithmetic.has_float_zeros else np.int32
        zero = jnp.full(shape, q.scale.zero_point_value, kind) if q.affine else None
        return QParams(restrict_scale(q, jnp.full(shape, q.scale.scale_value, dtype)), zero)
    scale, zero_point, finite = _choose(q, x)
    if is_concrete(finite):
        checks.check_finite_statistic(bool(finite))
    return QParams(scale, zero_point)


def quantize(q: Quantizer, x: Array, qparams: QParams) -> Array:
    """Integer codes of ``x``, in the format's storage dtype.

    Raises:
        TypeError, ValueError: as `fake_quantize`; and ValueError for NaN in ``x`` where values are at hand. Elsewhere
            NaN becomes the code of 0.0. Formats with a code for NaN use that. Under another `NanRule` than
            ``propagate`` it becomes what that says.
    """
    x, scale, zero_point, seed = check_operands(q, x, qparams)
    q = q.decided
    if is_concrete(x) and not q.format.has_nan and q.arithmetic.nan is NanRule.PROPAGATE:
        has_nan = _has_nan(x)
        checks.check_no_nan(is_concrete(has_nan) and bool(has_nan))
    codes: Array = _quantize(q, x, scale, zero_point, seed, _width(qparams))
    return codes


def dequantize(q: Quantizer, codes: Array, qparams: QParams, dtype: DTypeLike | None = None) -> Array:
    """Real values ``(code - z) * s`` of integer codes.

    Args:
        dtype: of the result; None for the dtype of the scale (float32 for one of 16 bits). Rounded to it once.
    Raises:
        TypeError: codes not in the format's storage dtype; wrong dtype of the parameters.
        ValueError: wrong shape or values of the parameters.
    """
    check_description(q)
    codes = as_array("codes", codes)
    checks.check_codes(q, codes.dtype.name)
    if dtype is not None:
        checks.check_float("dtype", jnp.dtype(dtype).name)
    scale, zero_point = check_qparams(q, codes.shape, None if dtype is None else jnp.dtype(dtype).name, qparams)
    out = jnp.dtype(scale.dtype if dtype is None else jnp.dtype(dtype).name)
    value: Array = _dequantize((q, out), codes, scale, zero_point)
    return value


def fake_quantize(q: Quantizer, x: Array, qparams: QParams | None = None) -> Array:
    """``dequantize(quantize(x))`` in the dtype of ``x``, with NaN propagated (or as `q.arithmetic.nan` says).

    Differentiable in ``x`` and the parameters, in both modes; the gradients are those of `fake_quantize_vjp`.

    Args:
        qparams: None to choose them from ``x``; they are constants in the gradient then.
    Raises:
        TypeError: ``q`` is no Quantizer, ``x`` no floating-point array, wrong dtype of scale or zero point, or a zero
            point missing or not wanted.
        ValueError: wrong shape of scale or zero point; a scale that is no positive normal finite number; a zero point
            that is no integer of the format, or NaN where it is no code (both where values are at hand); as
            `choose_qparams` when it chooses.
    """
    qparams = choose_qparams(q, x) if qparams is None else qparams
    value: Array = _fake_quantize(q, *check_operands(q, x, qparams), _width(qparams))
    return value


def fake_quantize_vjp(q: Quantizer, x: Array, qparams: QParams, g: Array) -> QuantizerGradients:
    """Gradients of ``sum(g * fake_quantize(q, x, qparams))`` as `q.gradient` defines them; see `Gradient`.

    ``x``: elementwise, ``g`` where the code was not clamped (NaN is not clamped), else +0.0; everywhere for
    `PASS_THROUGH`. ``scale`` and ``zero_point``: float32 terms (float64 for float64 ``x``), summed as `ste.block_sum`
    states. Shapes and dtypes of the parameters; float32 (or float64) for integers, and for 16 bits the one in float32
    rounded once more. ``bit_width``, where there is one: summed so over the whole array, times one number; float32 (or
    float64). ``rounding``, if given: ``g * s * h'(v)`` where the code was not clamped, else +0.0.

    Args:
        g: incoming gradient, shape and dtype of ``x``.
    Raises:
        TypeError, ValueError: as `fake_quantize`, and when ``g`` has another shape or dtype than ``x``.
    """
    x, scale, zero_point, seed = check_operands(q, x, qparams)
    g = as_array("g", g)
    checks.check_cotangent(x.shape, x.dtype.name, g.shape, g.dtype.name)
    d = QuantizerGradients(*_gradients(q, x, scale, zero_point, g, seed, _width(qparams)))
    d = d._replace(scale=narrow(d.scale, as_array("qparams.scale", qparams.scale).dtype))
    if q.affine and jnp.issubdtype(
        zero_dtype := as_array("qparams.zero_point", qparams.zero_point).dtype, jnp.floating
    ):
        d = d._replace(zero_point=narrow(d.zero_point, zero_dtype))
    if q.rounding is not Rounding.LEARNED or seed is None:
        return d
    return d._replace(rounding=_rounding_gradient(q, x, scale, zero_point, g, seed))


def codes_and_zero_points(q: Quantizer, x: Array, qparams: QParams) -> tuple[Array, Array]:
    """Codes in the working dtype (NaN where `fake_quantize` propagates it), and the zero point of every element.

    Raises:
        TypeError, ValueError: as `fake_quantize`.
    """
    result: tuple[Array, Array] = _codes_and_zero_points(q.decided, *check_operands(q, x, qparams), _width(qparams))
    return result


def _width(qparams: QParams) -> Array | None:
    """The bit width as an array, None for the format's own."""
    return None if qparams.bit_width is None else as_array("qparams.bit_width", qparams.bit_width)


@partial(jax.jit, static_argnums=0)
@laid_out_by(lambda q, x: (spec_of_qparams(q, x), spec_of_qparams(q, x) if q.affine else None, EVERYWHERE))
def _choose(q: Quantizer, x: Array) -> tuple[Array, Array | None, Array]:
    """Scale, zero point, and whether all of ``x`` is finite."""
    if is_other_rule(q):
        return choose_by_rule(q, lax.stop_gradient(x))
    work = widen(lax.stop_gradient(x))
    low, high = _range(q, work)
    finite = jnp.all(jnp.isfinite(low) & jnp.isfinite(high))
    found = _searched(q, work, low, high) if q.scale.statistic in SEARCHED else (low, high)
    scale, zero_point = _parameters(q, *found)
    if q.scale.signed:
        scale = jnp.where(positive_peak(x, q.granularity), -scale, scale)
    return scale, zero_point, finite


def _range(q: Quantizer, x: Array) -> tuple[Array, Array]:
    """The range that the scale of each block comes from."""
    if q.scale.statistic in (Statistic.EXTREMES, Statistic.SIGNED_ABSMAX, *SEARCHED):
        if q.affine or q.scale.denominator is Denominator.LARGER:
            return min_max(x, q.granularity)
        high = absmax(x, q.granularity)
        return -high, high
    low, high = (percentile_range if q.scale.statistic is Statistic.PERCENTILE else average_range)(q, x)
    if not q.affine:
        return low, high
    zero = jnp.zeros_like(low)  # subnormals are told from it by their sign bits
    return jnp.where(jnp.signbit(low) | jnp.isnan(low), low, zero), jnp.where(jnp.signbit(high), zero, high)


def _parameters(q: Quantizer, low: Array, high: Array, lower_end: Array | None = None) -> tuple[Array, Array | None]:
    """Scale and zero point of ranges; the zero point from ``lower_end``, where there is one."""
    scale = restrict_scale(q, affine_scale(q, low, high) if q.affine else symmetric_scale(q, low, high))
    zero_point = float_zero_point if q.arithmetic.has_float_zeros else affine_zero_point
    return scale, zero_point(q, low if lower_end is None else lower_end, scale) if q.affine else None


def _searched(q: Quantizer, x: Array, low: Array, high: Array) -> tuple[Array, ...]:
    """The range that a search finds; rounding that draws or learns counts as rounding to nearest there."""
    if not q.deterministic:
        q = q.replace(rounding=Rounding.TIES_TO_EVEN)

    def fake(low: Array, high: Array) -> Array:
        return _fake_quantize(q, x, *_parameters(q, low, high), None, None)  # type: ignore[no-any-return]

    def attempt(low: Array, high: Array, lower_end: Array | None = None) -> tuple[Array, Array, Array]:
        scale, zero = _parameters(q, low, high, lower_end)
        codes, _ = _codes_and_zero_points(q, x, scale, zero, None, None)
        return scale, codes, _fake_quantize(q, x, scale, zero, None, None)

    if q.scale.statistic is Statistic.HQO:
        return half_quadratic_range(q, x, low, high, attempt)
    return searched_range(q, x, low, high, fake)


@jax.jit
def _has_nan(x: Array) -> Array:
    return jnp.any(jnp.isnan(x))


@partial(jax.jit, static_argnums=0)
@laid_out_by(like_first)
def _quantize(
    q: Quantizer, x: Array, scale: Array, zero_point: Array | None, seed: Array | None, bit_width: Array | None
) -> Array:
    if q.scale.signed:
        x, scale = with_positive_scales(q, x, scale)
    other = is_other(q)
    if q.arithmetic.has_float_zeros or (other and q.arithmetic.nan is NanRule.PROPAGATE and not q.format.has_nan):
        x = jnp.where(jnp.isnan(x), jnp.zeros_like(x), x)

    def compute(subnormals: bool) -> Array:
        noise = kernels.noise_of(q, seed, x.shape)
        codes = kernels.codes(q, x, scale, zero_point, noise, subnormals=subnormals, bit_width=bit_width)
        if other:
            return encoded(q, codes)
        if not q.format.has_nan:
            codes = jnp.where(jnp.isnan(codes), kernels.code_of_zero(q, zero_point, scale, x.shape), codes)
        return encode(q, codes)

    return kernels.by_scale(q, scale, compute, x, zero_point)


@partial(jax.jit, static_argnums=0)
@laid_out_by(like_first)
def _dequantize(description: tuple[Quantizer, Any], codes: Array, scale: Array, zero_point: Array | None) -> Array:
    q, dtype = description
    if q.scale.signed:
        return with_signs(q, _values(q, codes, jnp.abs(scale), zero_point, dtype), scale)
    return _values(q, codes, scale, zero_point, dtype)


def _values(q: Quantizer, codes: Array, scale: Array, zero_point: Array | None, dtype: Any) -> Array:
    """Values of codes, for positive scales."""
    work = jnp.dtype(checks.scale_dtype(jnp.dtype(dtype).name))
    numbers, scale = decode(q, codes, work), scale.astype(work)
    if is_other(q):

        def compute(subnormals: bool) -> Array:
            exact = round_to_dtype(numbers, working_dtype(q.arithmetic, jnp.dtype(dtype)))
            return kernels.values(q, exact, scale, zero_point, dtype, subnormals=subnormals)

        return kernels.by_scale(q, scale, compute, None, zero_point, dtype)
    if isinstance(q.format, FloatFormat | CodebookFormat) or q.arithmetic.has_float_zeros:
        return kernels.by_scale(
            q, scale, lambda subnormals: kernels.values(q, numbers, scale, zero_point, dtype, subnormals=subnormals)
        )
    return kernels.values(q, numbers, scale, zero_point, dtype, subnormals=False)


@partial(jax.jit, static_argnums=0)
@laid_out_by(lambda q, x, *_: (spec_of(x), spec_of(x)))
def _codes_and_zero_points(
    q: Quantizer, x: Array, scale: Array, zero_point: Array | None, seed: Array | None, bit_width: Array | None
) -> tuple[Array, Array]:
    if q.scale.signed:
        x, scale = with_positive_scales(q, x, scale)

    def compute(subnormals: bool) -> Array:
        noise = kernels.noise_of(q, seed, x.shape)
        codes = kernels.codes(q, x, scale, zero_point, noise, subnormals=subnormals, bit_width=bit_width)
        return round_to_dtype(codes, scale.dtype) if is_other(q) else codes

    codes = kernels.by_scale(q, scale, compute, x, zero_point)
    if is_other(q):
        integers = isinstance(q.format, IntegerFormat) and not q.arithmetic.keep_negative_zero
        codes = jnp.where(codes == 0, 0, codes) if integers else codes
        return codes, arithmetics.zero_points(q, zero_point, scale, x.dtype, x.shape)
    codes = jnp.where(codes == 0, 0, codes) if isinstance(q.format, IntegerFormat) else codes
    return codes, kernels.zero_points(q, zero_point, scale, x.shape)


@partial(jax.jit, static_argnums=0)
@laid_out_by(like_first)
def _fake_quantized(q: Quantizer, *operands: Array | None) -> Array:
    return fake_quantized(q, partial(_by_lax, q), *operands)


def _by_lax(
    q: Quantizer, x: Array, scale: Array, zero_point: Array | None, seed: Array | None, bit_width: Array | None
) -> Array:
    """`fake_quantize` without checks, by the kernels that every platform has."""
    given = scale
    if q.scale.signed:
        x, scale = with_positive_scales(q, x, scale)

    def compute(subnormals: bool) -> Array:
        noise = kernels.noise_of(q, seed, x.shape)
        codes = kernels.codes(q, x, scale, zero_point, noise, subnormals=subnormals, bit_width=bit_width)
        return kernels.values(q, codes, scale, zero_point, x.dtype, subnormals=subnormals)

    value = kernels.by_scale(q, scale, compute, x, zero_point)
    return with_signs(q, value, given) if q.scale.signed else value


@partial(jax.jit, static_argnums=0)
@laid_out_by(lambda q, operands, _: spec_of(operands[0]))
def _tangent(q: Quantizer, operands: tuple[Array | None, ...], tangents: Tangents) -> Array:
    x, scale, zero_point, seed, bit_width = operands
    if x is None or scale is None:
        raise TypeError("`x` and `qparams.scale` must be arrays, got None")
    moves = Moves(*tangents)
    if q.scale.signed:  # as in `_gradients`
        x, scale = with_positive_scales(q, x, scale)
    v = seed if q.rounding is Rounding.LEARNED else None
    return tangent(q, x, scale, zero_point, moves, lambda: kernels.noise_of(q, seed, x.shape), bit_width, v)


def _gradient(q: Quantizer, operands: Any, g: Array) -> tuple[Any, ...]:
    x, scale, zero_point, seed, bit_width = operands
    dx, d_scale, d_zero, d_width = _gradients(q, x, scale, zero_point, g, seed, bit_width)
    learned = q.rounding is Rounding.LEARNED and seed is not None
    return dx, d_scale, d_zero, _rounding_gradient(q, x, scale, zero_point, g, seed) if learned else None, d_width


_fake_quantize = differentiable(_fake_quantized, _tangent, _gradient)


@partial(jax.jit, static_argnums=0)
@laid_out_by(
    lambda q, x, scale, zero_point, g, seed, bit_width: (
        spec_of(x),
        spec_of(scale),
        spec_of(scale) if q.affine else None,
        None if bit_width is None else EVERYWHERE,
    )
)
def _gradients(
    q: Quantizer,
    x: Array,
    scale: Array,
    zero_point: Array | None,
    g: Array,
    seed: Array | None,
    bit_width: Array | None,
) -> tuple[Array, Array, Array | None, Array | None]:
    if q.scale.signed:  # the signs cancel in d(code * s) / dx and / ds
        x, scale = with_positive_scales(q, x, scale)

    def noise() -> Array | None:
        return kernels.noise_of(q, seed, x.shape)

    d = gradients(q, x, scale, zero_point, g, noise, bit_width)
    return *d, None if bit_width is None else bit_width_gradient(q, x, scale, zero_point, g, noise, bit_width)


@partial(jax.jit, static_argnums=0)
@laid_out_by(like_first)
def _rounding_gradient(q: Quantizer, x: Array, scale: Array, zero_point: Array | None, g: Array, v: Array) -> Array:
    return rounding_gradient(q, x, scale, zero_point, g, v)
