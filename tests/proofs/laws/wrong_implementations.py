"""Wrong implementations, and what makes them: the specification with one thing changed."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samebits import core
from samebits.core import QParams, Quantizer, QuantizerGradients
from samebits.core.blocks import expand_blocks
from samebits.proofs.modes.execution import Implementation, implementation

Array = NDArray[Any]
RIGHT = implementation("numpy")


def spread(q: Quantizer, x: Array, qparams: QParams) -> tuple[Array, Array]:
    """Scale and zero point of every element, float32."""
    zero = np.zeros_like(qparams.scale) if qparams.zero_point is None else qparams.zero_point.astype(np.float32)
    scale, zero = (expand_blocks(np.asarray(p), q.granularity, x.shape) for p in (qparams.scale, zero))
    return scale, zero


def with_codes(formula: Callable[[Quantizer, Array, Array, Array], Array]) -> Implementation:
    """The specification, but codes by a formula of (q, x in float32, s, z); `fake_quantize` follows."""

    def quantize(q: Quantizer, x: Array, qparams: QParams) -> Array:
        if np.isnan(x).any():
            raise ValueError("NaN")
        with np.errstate(all="ignore"):
            codes = formula(q, x.astype(np.float32), *spread(q, x, qparams))
            return np.asarray(codes).astype(np.int64).astype(q.format.storage)

    def fake_quantize(q: Quantizer, x: Array, qparams: QParams | None = None) -> Array:
        used = core.choose_qparams(q, x) if qparams is None else qparams
        number = np.where(np.isnan(x), np.zeros_like(x), x)
        values = core.dequantize(q, quantize(q, number, used), used, x.dtype)
        return np.where(np.isnan(x), x, values)

    return replace(RIGHT, name="wrong", quantize=quantize, fake_quantize=fake_quantize)


def clipped(q: Quantizer, codes: Array) -> Array:
    return np.clip(codes, q.format.lo, q.format.hi)


def with_values(change: Callable[[Array, Array], Array]) -> Implementation:
    """The specification, but `fake_quantize` changed: a function of (x, x_hat)."""
    return replace(
        RIGHT, name="wrong", fake_quantize=lambda q, x, p=None: change(x, core.fake_quantize(q, x, p)).astype(x.dtype)
    )


def with_gradients(change: Callable[..., QuantizerGradients]) -> Implementation:
    """The specification, but gradients changed: a function of (gradients, q, x, qparams, g)."""
    return replace(
        RIGHT,
        name="wrong",
        fake_quantize_vjp=lambda q, x, p, g: change(core.fake_quantize_vjp(q, x, p, g), q, x, p, g),
    )


def with_qparams(change: Callable[[QParams, Quantizer, Array], QParams]) -> Implementation:
    """The specification, but chosen parameters changed: a function of (qparams, q, x)."""

    def choose_qparams(q: Quantizer, x: Array) -> QParams:
        return change(core.choose_qparams(q, x), q, x)

    def fake_quantize(q: Quantizer, x: Array, qparams: QParams | None = None) -> Array:
        return core.fake_quantize(q, x, choose_qparams(q, x) if qparams is None else qparams)

    return replace(RIGHT, name="wrong", choose_qparams=choose_qparams, fake_quantize=fake_quantize)


def wraps(q: Quantizer, x: Array, s: Array, z: Array) -> Array:
    """No clamp: codes beyond the range, and casts that wrap."""
    return np.where(np.isfinite(x), np.clip(np.rint(x / s) + z, -(2.0**40), 2.0**40), 0)


def half_away(x: Array) -> Array:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def flushed(x: Array) -> Array:
    return np.where(np.abs(x) < np.finfo(np.float32).smallest_normal, 0, x)


def swaps_two_codes(q: Quantizer, x: Array, s: Array, z: Array) -> Array:
    codes = clipped(q, np.rint(x / s) + z)
    return np.where(codes == 1, 2, np.where(codes == 2, 1, codes))


def writes_to_x(q: Quantizer, x: Array, qparams: QParams) -> Array:
    codes = core.quantize(q, x, qparams)
    x *= 2
    return codes


def remembers(q: Quantizer, x: Array, qparams: QParams) -> Array:
    codes = core.quantize(q, x, qparams)
    codes.reshape(-1)[:1] = q.format.hi if next(CALLS) % 2 else q.format.lo
    return codes


CALLS = count()


def by_position(q: Quantizer, x: Array, qparams: QParams) -> Array:
    """A last element that is treated differently, as in a vector loop whose remainder is another program."""
    codes = core.quantize(q, x, qparams)
    rest = core.quantize(q.replace(rounding="toward_negative"), x, qparams)
    codes[..., -3:] = rest[..., -3:]
    return codes


def shared_statistic(chosen: QParams, q: Quantizer, x: Array) -> QParams:
    return chosen._replace(scale=np.full_like(chosen.scale, chosen.scale.max(initial=2.0**-126)))


def chooses_from_anything(q: Quantizer, x: Array) -> QParams:
    return core.choose_qparams(q, np.nan_to_num(x.astype(np.float32)).astype(x.dtype))


def mask_by_values(d: QuantizerGradients, q: Quantizer, x: Array, p: QParams, g: Array) -> QuantizerGradients:
    """The mask of ``torch.clamp`` on x itself: an element in the last half step is outside."""
    s, z = spread(q, x, p)
    inside = (x.astype(np.float32) / s + z >= q.format.lo) & (x.astype(np.float32) / s + z <= q.format.hi)
    return d._replace(x=np.where(inside | np.isnan(x), g, np.zeros_like(g)))


def middle(q: Quantizer, codes: Array, qparams: QParams, dtype: Any) -> Array:
    half = np.asarray(expand_blocks(np.asarray(qparams.scale) / 2, q.granularity, codes.shape))
    values = core.dequantize(q, codes, qparams) + half
    return values.astype(values.dtype if dtype is None else dtype)


def narrow_product(q: Quantizer, codes: Array, qparams: QParams, dtype: Any) -> Array:
    out = np.dtype(qparams.scale.dtype if dtype is None else dtype)
    scale = expand_blocks(np.asarray(qparams.scale), q.granularity, codes.shape)
    with np.errstate(all="ignore"):
        return np.asarray(codes.astype(out) * scale.astype(out))


def coarse(x: Array) -> Array:
    return np.asarray((x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))
