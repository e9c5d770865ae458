"""GPTQ: the columns of a weight are quantized one after the other, and what each is off is made up for by the rest.

For a layer ``y = x @ w.T`` and inputs x of n rows, ``H = 2/n * sum x x^T``, the error of the outputs is

    output_error = 1/2 tr((w - w_hat) H (w - w_hat)^T)      mean over rows, sum over outputs, of the squared error

A column whose inputs are all 0 (``H[j, j] = 0``) gets weights 0 and ``H[j, j] = 1``. Then ``percdamp`` times the mean
of the diagonal is added to it, and ``inverse(H) = U^T U`` with U upper triangular. Column after column

    v[:, j] = w[:, j] as float32                            code[:, j] = quantize(q, v[:, j])
    e = (w[:, j] - w_hat[:, j]) / U[j, j]                   losses[:, j] = e**2 / 2
    w[:, k] -= e * U[j, k]                                  for all k > j

All of it in float64, except that codes are those of ``quantize`` in the arithmetic of the quantizer, of weights rounded
to float32. So the sum of the losses is the output error of ``w_hat`` under the damped H. With ``act_order`` columns are
taken by falling diagonal (rounded to float32, so that equal inputs stay in their order).

Scales that all columns share are those of the whole weight. Those of a group of columns are chosen when it begins; of
which weights says `GroupScales`. The default is that of the original program: of the weights as they were when the
block of ``blocksize`` columns began in which the group begins. For anything else ``blocksize`` is without meaning.

Libraries differ in the last bits of factors and products, so a code can differ between two rooms where ``v`` lies
within that of a boundary between two codes; then what follows in its row differs, too.

Source: Frantar et al., arXiv 2210.17323, algorithm 1, and ``faster_quant`` of its program.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .arguments import as_array
from .descriptions import QParams, Quantizer
from .granularity import PerAxis
from .layerwise import GroupScales, check_damping, check_gptq, check_hessian, check_rows, indefinite
from .quantizer import choose_qparams, dequantize, quantize

Array = NDArray[Any]


def hessian_update(hessian: Array, n: int, x: Array) -> tuple[Array, int]:
    """``2/n * sum x x^T`` over the n rows so far, and over those of ``x`` too.

    Args:
        hessian: float64, ``(in, in)``; zeros to begin with.
        n: rows so far.
        x: ``(rows, in)``, any floating-point dtype.
    Returns:
        The new matrix, and the new n. The argument stays as it is.
    Raises:
        TypeError: ``x`` is no floating-point array. ValueError: another shape, or a negative ``n``.
    """
    x = as_array("x", x)
    checks.check_float("x", x.dtype.name)
    check_rows(x.shape, len(hessian), n)
    total = n + len(x)
    if not len(x):
        return hessian, n
    wide = x.astype(np.float64)
    return hessian * (n / total) + (2 / total) * (wide.T @ wide), total


def output_error(w: Array, w_hat: Array, hessian: Array) -> float:
    """Mean over the recorded rows of the squared error of the outputs, summed over outputs; see the module.

    Args:
        w, w_hat: ``(out, in)``, any floating-point dtype. ``hessian``: float64, as `hessian_update` gives it.
    """
    off = w.astype(np.float64) - w_hat.astype(np.float64)
    return float(np.sum((off @ hessian) * off) / 2)


def inverse_factor(hessian: Array, percdamp: float = 0.01) -> Array:
    """U, upper triangular, with ``U^T U`` the inverse of the damped matrix, in which unused columns have a 1.

    Raises:
        ValueError: values that are not finite, named; a matrix that is not positive definite even so.
    """
    hessian = np.asarray(hessian, np.float64)
    check_damping(percdamp)
    check_hessian(hessian.shape, len(hessian), bool(np.isfinite(hessian).all()))
    damped = hessian.copy()
    diagonal = np.diagonal(hessian)
    diagonal = np.where(diagonal == 0, 1.0, diagonal)
    np.fill_diagonal(damped, diagonal + percdamp * diagonal.mean())
    try:
        lower = np.linalg.cholesky(damped)
        inverse = np.linalg.inv(lower)
        factor = np.linalg.cholesky(inverse.T @ inverse).T
    except np.linalg.LinAlgError:
        raise indefinite(percdamp) from None
    if not np.isfinite(factor).all():
        raise indefinite(percdamp)
    return factor


def gptq(
    q: Quantizer,
    w: Array,
    hessian: Array,
    blocksize: int = 128,
    percdamp: float = 0.01,
    act_order: bool = False,
    group_scales: str | None = None,
) -> tuple[Array, QParams, Array, Array]:
    """Codes of a weight that keep the outputs of its layer; see the module.

    Args:
        q: any quantizer whose rounding neither draws nor learns.
        w: ``(out, in)``, any floating-point dtype; rounded to float32 first.
        hessian: float64 ``(in, in)``, as `hessian_update` gives it.
        blocksize: of which weights the scales of groups are chosen, where `GroupScales.BLOCK` asks.
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
    w = as_array("w", w)
    checks.check_quantizer(q)
    checks.check_float("w", w.dtype.name)
    per_scale, rule = check_gptq(q, w.shape, blocksize, percdamp, act_order, group_scales)
    hessian = np.asarray(hessian, np.float64)
    check_hessian(hessian.shape, w.shape[1], bool(np.isfinite(hessian).all()))
    unused = np.diagonal(hessian) == 0
    rest = np.where(unused, 0, w.astype(np.float32)).astype(np.float64)
    order = _order(hessian) if act_order else np.arange(w.shape[1])
    factor = inverse_factor(hessian[np.ix_(order, order)], percdamp)

    given = choose_qparams(q, rest.astype(np.float32)) if rule is GroupScales.ORIGINAL else None
    chosen: dict[int, QParams] = {}  # of each group of columns
    codes = np.zeros(w.shape, q.format.storage)
    w_hat, losses = np.zeros(w.shape, np.float32), np.zeros(w.shape)
    for place, j in enumerate(order):
        if place % blocksize == 0:
            began = rest.copy()
        if given is None and j % per_scale == 0:
            source = began if rule is GroupScales.BLOCK else rest
            chosen[j // per_scale] = choose_qparams(q, source[:, j : j + per_scale].astype(np.float32))
        of_rows = _of_rows(given or chosen[j // per_scale], j // per_scale if given else 0, len(w))
        per_row = q.replace(granularity=PerAxis(0))
        codes[:, j] = quantize(per_row, rest[:, j].astype(np.float32), of_rows)
        w_hat[:, j] = dequantize(per_row, codes[:, j], of_rows)
        e = (rest[:, j] - w_hat[:, j]) / factor[place, place]
        losses[:, j] = e**2 / 2
        later = order[place + 1 :]
        rest[:, later] -= np.outer(e, factor[place, place + 1 :])
    return codes, given or _joined(list(chosen.values())), w_hat, losses


def _order(hessian: Array) -> Array:
    """Columns by falling diagonal, equal ones as they come."""
    diagonal = np.diagonal(hessian)
    return np.argsort(-np.where(diagonal == 0, 1.0, diagonal).astype(np.float32), kind="stable")


def _of_rows(qparams: QParams, group: int, rows: int) -> QParams:
    """The parameters of a group of columns, one for each row."""

    def of_each(parameter: Array | None) -> Array | None:
        if parameter is None:
            return None
        column = parameter[:, group] if parameter.ndim else parameter.reshape(1)
        return np.repeat(column, rows // len(column))

    return QParams(of_each(qparams.scale), of_each(qparams.zero_point))


def _joined(of_groups: list[QParams]) -> QParams:
    """The parameters of all groups side by side."""
    scale = np.concatenate([one.scale for one in of_groups], 1)
    if of_groups[0].zero_point is None:
        return QParams(scale)
    return QParams(scale, np.concatenate([one.zero_point for one in of_groups], 1))
