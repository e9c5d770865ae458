"""GPTQ with JAX: a loop over the columns of a block, compiled once for all blocks of that size.

Formulas, shapes and the source stand in `samebits.core.gptq`. Everything is computed in float64, which is on inside
these functions alone; matrices of statistics and losses are float64 arrays, which other functions of JAX round to
float32 where ``jax_enable_x64`` is not set. What each column is quantized from is kept, so that all codes are found at
the end, at once.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from ...core import checks
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerAxis
from ...core.layerwise import GroupScales, check_damping, check_gptq, check_hessian, check_rows, indefinite
from ..arrays import as_array, with_float64
from ..quantizer import choose_qparams, fake_quantize, quantize

Array = jax.Array
Wide = Array | NDArray[Any]  # float64: JAX makes none where `jax_enable_x64` is not set


def hessian_update(hessian: Wide, n: int, x: Array) -> tuple[Array, int]:
    """``2/n * sum x x^T`` over the n rows so far, and over those of ``x`` too.

    Args:
        hessian: float64 of JAX or NumPy, ``(in, in)``; zeros to begin with.
        n: rows so far.
        x: ``(rows, in)``, any floating-point dtype.
    Returns:
        The new matrix, and the new n. The argument stays as it is.
    Raises:
        TypeError: ``x`` is no floating-point array. ValueError: another shape, or a negative ``n``.
    """
    with with_float64(np.float64):
        x = as_array("x", x)
        checks.check_float("x", x.dtype.name)
        check_rows(x.shape, len(hessian), n)
        total = n + len(x)
        if not len(x):
            return jnp.asarray(hessian, np.float64), n
        kept, added = np.float64(n / total), np.float64(2 / total)
        return _added(jnp.asarray(hessian, np.float64), x, kept, added), total


def output_error(w: Array, w_hat: Array, hessian: Wide) -> float:
    """Mean over the recorded rows of the squared error of the outputs, summed over outputs; see `core.gptq`.

    Args:
        w, w_hat: ``(out, in)``, any floating-point dtype. ``hessian``: float64, as `hessian_update` gives it.
    """
    with with_float64(np.float64):
        off = jnp.asarray(w).astype(np.float64) - jnp.asarray(w_hat).astype(np.float64)
        return float(jnp.vdot(off @ jnp.asarray(hessian, np.float64), off) / 2)


def inverse_factor(hessian: Wide, percdamp: float = 0.01) -> Array:
    """U, upper triangular, with ``U^T U`` the inverse of the damped matrix, in which unused columns have a 1.

    Raises:
        ValueError: values that are not finite, named; a matrix that is not positive definite even so.
    """
    check_damping(percdamp)
    with with_float64(np.float64):
        hessian = jnp.asarray(hessian, np.float64)
        check_hessian(hessian.shape, len(hessian), bool(jnp.isfinite(hessian).all()))
        factor: Array = _factor(hessian, np.float64(percdamp))
        if not bool(jnp.isfinite(factor).all()):
            raise indefinite(percdamp)
        return factor


def gptq(
    q: Quantizer,
    w: Array,
    hessian: Wide,
    blocksize: int = 128,
    percdamp: float = 0.01,
    act_order: bool = False,
    group_scales: str | None = None,
) -> tuple[Array, QParams, Array, Array]:
    """Codes of a weight that keep the outputs of its layer; see `core.gptq`. Not to be traced.

    Args:
        q: any quantizer whose rounding neither draws nor learns.
        w: ``(out, in)``, any floating-point dtype; rounded to float32 first.
        hessian: float64 ``(in, in)``, as `hessian_update` gives it.
        blocksize: columns that are done before others are touched; of which weights the scales of groups are chosen,
            where `GroupScales.BLOCK` asks.
        percdamp: how much of the mean diagonal is added to it.
        act_order: whether columns are taken by falling diagonal.
        group_scales: see `GroupScales`; None for its BLOCK, and ORIGINAL where ``act_order`` or scales of two levels
            leave nothing else.
    Returns:
        Codes, ``(out, in)``; their parameters; their values, float32; losses, float64 ``(out, in)``.
    Raises:
        TypeError, ValueError: as `choose_qparams` and `check_gptq`; statistics that are not finite, or not positive
            definite after damping.
    """
    checks.check_quantizer(q)
    with with_float64(np.float64):
        w = as_array("w", w)
        checks.check_float("w", w.dtype.name)
        per_scale, rule = check_gptq(q, w.shape, blocksize, percdamp, act_order, group_scales)
        hessian = jnp.asarray(hessian, np.float64)
        check_hessian(hessian.shape, w.shape[1], bool(jnp.isfinite(hessian).all()))
        diagonal = jnp.diagonal(hessian)
        kept = jnp.where(diagonal == 0, np.float32(0), w.astype(np.float32))
        order = np.arange(w.shape[1])
        if act_order:
            order = np.asarray(jnp.argsort(_used(diagonal).astype(np.float32), descending=True, stable=True))
        factor = inverse_factor(hessian[order][:, order], percdamp)

        chosen = [choose_qparams(q, kept)] if rule is GroupScales.ORIGINAL else []
        rest = kept.T[order].astype(np.float64)
        parts = []
        for first, last in _segments(w.shape[1], blocksize, per_scale, rule):
            begin, end = (-(-place // per_scale) * per_scale for place in (first, last))
            if rule is not GroupScales.ORIGINAL and begin < end:
                chosen.append(choose_qparams(q, rest[begin:end].T.astype(np.float32)))
            scale, zero = _of_columns(_joined(chosen), order[first:last] // per_scale, len(w))
            per_row = q.replace(granularity=PerAxis(0))
            rest, *part = _segment(per_row, last - first, rest, factor, np.int32(first), scale, zero)
            parts.append(part)
        back = np.argsort(order)
        source, errors = (jnp.concatenate(list(some))[back].T for some in zip(*parts, strict=True))
        qparams = _joined(chosen)
        return quantize(q, source, qparams), qparams, fake_quantize(q, source, qparams), errors**2 / 2


@jax.jit
def _added(hessian: Array, x: Array, kept: Array, added: Array) -> Array:
    wide = x.astype(np.float64)
    return hessian * kept + added * jnp.matmul(wide.T, wide, precision=lax.Precision.HIGHEST)


@jax.jit
def _factor(hessian: Array, percdamp: Array) -> Array:
    """The factor, NaN where there is none: the inverse by two triangular solutions, then its own factor."""
    diagonal = _used(jnp.diagonal(hessian))
    places = jnp.arange(len(hessian))
    damped = hessian.at[places, places].set(diagonal + percdamp * diagonal.mean())
    lower = lax.linalg.cholesky(damped, symmetrize_input=False)
    inverse = jax.scipy.linalg.cho_solve((lower, True), jnp.eye(len(hessian), dtype=np.float64))
    return lax.linalg.cholesky((inverse + inverse.T) / 2, symmetrize_input=False).T


@partial(jax.jit, static_argnums=(0, 1))
def _segment(
    q: Quantizer, count: int, rest: Array, factor: Array, first: Array, scale: Array, zero_point: Array | None
) -> tuple[Array, Array, Array]:
    """Quantizes ``count`` columns, and updates all later ones.

    Args:
        rest: weights ``(in, out)``; ``scale``, ``zero_point``: ``(count, out)``.
    Returns:
        The weights; what the columns were quantized from, float32; what they are off by, over the diagonal.
    """
    rows = lax.dynamic_slice_in_dim(factor, first, count)
    square = lax.dynamic_slice_in_dim(rows, first, count, axis=1)

    def column(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        block, sources, errors = state
        source = block[i].astype(np.float32)
        value = fake_quantize(q, source, QParams(scale[i], None if zero_point is None else zero_point[i]))
        e = (block[i] - value.astype(np.float64)) / square[i, i]
        return block - square[i][:, None] * e[None], sources.at[i].set(source), errors.at[i].set(e)

    block = lax.dynamic_slice_in_dim(rest, first, count)
    _, sources, errors = lax.fori_loop(
        0, count, column, (block, jnp.zeros(block.shape, np.float32), jnp.zeros_like(block))
    )
    later = jnp.where(jnp.arange(len(factor), dtype=np.int32) >= first + count, rows, 0.0)
    return rest - jnp.matmul(later.T, errors, precision=lax.Precision.HIGHEST), sources, errors


def _of_columns(qparams: QParams, groups: np.ndarray, rows: int) -> tuple[Array, Array | None]:
    """The parameters of every row in columns of these groups."""

    def spread(parameter: Array) -> Array:
        if not parameter.ndim:
            return jnp.broadcast_to(parameter, (len(groups), rows))
        return jnp.repeat(parameter.T[groups], rows // len(parameter), axis=1)

    return spread(qparams.scale), None if qparams.zero_point is None else spread(qparams.zero_point)


def _joined(chosen: list[QParams]) -> QParams:
    """The parameters of all groups side by side."""
    if len(chosen) == 1:
        return chosen[0]
    scale = jnp.concatenate([one.scale for one in chosen], 1)
    affine = chosen[0].zero_point is not None
    return QParams(scale, jnp.concatenate([one.zero_point for one in chosen], 1) if affine else None)


def _segments(columns: int, blocksize: int, per_scale: int, rule: GroupScales) -> list[tuple[int, int]]:
    """Ranges of columns after each of which all later ones are up to date."""
    starts = set(range(0, columns, blocksize))
    if rule is GroupScales.UPDATED:
        starts |= set(range(0, columns, per_scale))
    ends = sorted(starts | {columns})
    return list(pairwise(ends))


def _used(diagonal: Array) -> Array:
    """A diagonal, 1 where no input was."""
    return jnp.where(diagonal == 0, 1.0, diagonal)
