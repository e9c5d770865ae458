"""GPTQ with torch: columns in blocks, so that most of what errors change is done by products of matrices.

Formulas, shapes and the source stand in `samebits.core.gptq`. The factor comes from one factorization of the matrix
with its order reversed: where ``H = R R^T`` with R upper triangular, ``U = inverse(R)``. A block of columns passes its
errors on to all later ones when it is done; inside, each half passes them on to the other. What each column is
quantized from is kept, so that all codes are found at the end, at once.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ...core import checks
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerAxis
from ...core.layerwise import GroupScales, check_damping, check_gptq, check_hessian, check_rows, indefinite
from .. import eager, routes
from ..arguments import check_tensor
from ..arrays import dtype_name
from ..quantizer import choose_qparams, fake_quantize, quantize

LEAF = 8  # columns that pass their errors on one by one


def hessian_update(hessian: Tensor, n: int, x: Tensor) -> tuple[Tensor, int]:
    """``2/n * sum x x^T`` over the n rows so far, and over those of ``x`` too.

    Args:
        hessian: float64, ``(in, in)``; zeros to begin with.
        n: rows so far.
        x: ``(rows, in)``, any floating-point dtype.
    Returns:
        The new matrix, and the new n. The argument stays as it is.
    Raises:
        TypeError: ``x`` is no floating-point tensor. ValueError: another shape, or a negative ``n``.
    """
    check_tensor("x", x)
    checks.check_float("x", dtype_name(x.dtype))
    check_rows(tuple(x.shape), len(hessian), n)
    total = n + len(x)
    if not len(x):
        return hessian, n
    wide = x.detach().double()
    return torch.addmm(hessian, wide.t(), wide, beta=n / total, alpha=2 / total), total


def output_error(w: Tensor, w_hat: Tensor, hessian: Tensor) -> float:
    """Mean over the recorded rows of the squared error of the outputs, summed over outputs; see `core.gptq`.

    Args:
        w, w_hat: ``(out, in)``, any floating-point dtype. ``hessian``: float64, as `hessian_update` gives it.
    """
    off = w.detach().double() - w_hat.detach().double()
    return float(torch.einsum("oi,oi->", off @ hessian, off) / 2)


def inverse_factor(hessian: Tensor, percdamp: float = 0.01) -> Tensor:
    """U, upper triangular, with ``U^T U`` the inverse of the damped matrix, in which unused columns have a 1.

    Raises:
        ValueError: values that are not finite, named; a matrix that is not positive definite even so.
    """
    check_damping(percdamp)
    check_hessian(tuple(hessian.shape), len(hessian), bool(hessian.isfinite().all()))
    diagonal = _used_diagonal(hessian).double()
    damped = hessian.double().clone()
    damped.diagonal().copy_(diagonal + percdamp * diagonal.mean())
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if failed:
        raise indefinite(percdamp)
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    if not factor.isfinite().all():
        raise indefinite(percdamp)
    return factor


@torch.no_grad()
def gptq(
    q: Quantizer,
    w: Tensor,
    hessian: Tensor,
    blocksize: int = 128,
    percdamp: float = 0.01,
    act_order: bool = False,
    group_scales: str | None = None,
) -> tuple[Tensor, QParams, Tensor, Tensor]:
    """Codes of a weight that keep the outputs of its layer; see `core.gptq`.

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
    check_tensor("w", w)
    checks.check_float("w", dtype_name(w.dtype))
    per_scale, rule = check_gptq(q, tuple(w.shape), blocksize, percdamp, act_order, group_scales)
    check_hessian(tuple(hessian.shape), w.shape[1], bool(hessian.isfinite().all()))
    kept = torch.where(hessian.diagonal() == 0, 0.0, w.float())
    order = None
    if act_order:
        order = torch.argsort(_used_diagonal(hessian).float(), descending=True, stable=True)
        hessian = hessian[order][:, order]
    factor = inverse_factor(hessian, percdamp)

    scales = _Scales(q, per_scale, rule, [choose_qparams(q, kept)] if rule is GroupScales.ORIGINAL else [], w.shape[1])
    rest = kept.t().double() if order is None else kept.t().double()[order]
    sources, errors = torch.empty(rest.shape, device=w.device), torch.empty_like(rest)
    for first, last in _segments(w.shape[1], blocksize, per_scale, rule):
        scales.choose(rest, first, last)
        _columns(scales.of_columns(first, last, order, len(w)), rest, factor, sources, errors, first, last)
        rest[last:].addmm_(factor[first:last, last:].t(), errors[first:last], alpha=-1)
    if order is not None:
        back = torch.argsort(order)
        sources, errors = sources[back], errors[back]
    qparams, source = scales.joined(), sources.t().contiguous()
    codes, w_hat = quantize(q, source, qparams), fake_quantize(q, source, qparams)
    return codes, qparams, w_hat, (errors.square_() / 2).t().contiguous()


class _Columns(NamedTuple):
    """A quantizer for one column, and the parameters of every row in columns from ``first`` on."""

    q: Quantizer
    first: int
    scale: Tensor  # (columns, out)
    zero_point: Tensor | None


class _Scales(NamedTuple):
    """The parameters that are chosen so far, of groups of ``per_scale`` columns; of all columns if ORIGINAL."""

    q: Quantizer
    per_scale: int
    rule: GroupScales
    chosen: list[QParams]
    columns: int

    def choose(self, rest: Tensor, first: int, last: int) -> None:
        """Chooses those of the groups that begin in these columns, of the weights ``(in, out)`` as they are."""
        if self.rule is GroupScales.ORIGINAL:
            return
        begin = -(-first // self.per_scale) * self.per_scale
        end = -(-last // self.per_scale) * self.per_scale
        if begin < end:
            self.chosen.append(choose_qparams(self.q, rest[begin:end].t().float().contiguous()))

    def joined(self) -> QParams:
        """The parameters of all groups side by side."""
        if len(self.chosen) == 1:
            return self.chosen[0]
        scale = torch.cat([one.scale for one in self.chosen], 1)
        affine = self.chosen[0].zero_point is not None
        return QParams(scale, torch.cat([one.zero_point for one in self.chosen], 1) if affine else None)

    def of_columns(self, first: int, last: int, order: Tensor | None, rows: int) -> _Columns:
        """The parameters of every row in these columns of the order."""
        known, places = self.joined(), torch.arange(first, last) if order is None else order[first:last]
        groups = places.to(known.scale.device) // self.per_scale

        def spread(parameter: Tensor) -> Tensor:
            if not parameter.ndim:
                return parameter.expand(last - first, rows)
            return parameter[:, groups].t().repeat_interleave(rows // len(parameter), 1).contiguous()

        zero = None if known.zero_point is None else spread(known.zero_point)
        return _Columns(self.q.replace(granularity=PerAxis(0)), first, spread(known.scale), zero)


def _columns(
    known: _Columns, rest: Tensor, factor: Tensor, sources: Tensor, errors: Tensor, first: int, last: int
) -> None:
    """Quantizes columns, fills in what they were and what they are off by, and updates those up to ``last``."""
    if last - first > LEAF:
        middle = (first + last) // 2
        _columns(known, rest, factor, sources, errors, first, middle)
        rest[middle:last].addmm_(factor[first:middle, middle:last].t(), errors[first:middle], alpha=-1)
        _columns(known, rest, factor, sources, errors, middle, last)
        return
    for j in range(first, last):
        source, place = sources[j].copy_(rest[j]), j - known.first
        value = _value(known, source, place)
        torch.sub(rest[j], value, out=errors[j]).div_(factor[j, j])
        if j + 1 < last:
            rest[j + 1 : last].addr_(factor[j, j + 1 : last], errors[j], alpha=-1)


def _value(known: _Columns, source: Tensor, place: int) -> Tensor:
    """As `fake_quantize`, of a column whose parameters need no check: they were chosen here."""
    scale, zero = known.scale[place], None if known.zero_point is None else known.zero_point[place]
    if known.q.usual and not known.q.scale.signed:
        return eager.fake_quantize(known.q, source, scale, routes.wide(zero, scale))
    return fake_quantize(known.q, source, QParams(scale, zero))


def _segments(columns: int, blocksize: int, per_scale: int, rule: GroupScales) -> list[tuple[int, int]]:
    """Ranges of columns after each of which all later ones are up to date."""
    starts = set(range(0, columns, blocksize))
    if rule is GroupScales.UPDATED:
        starts |= set(range(0, columns, per_scale))
    ends = sorted(starts | {columns})
    return list(pairwise(ends))


def _used_diagonal(hessian: Tensor) -> Tensor:
    """The diagonal, 1 where no input was."""
    diagonal = hessian.diagonal()
    return torch.where(diagonal == 0, 1.0, diagonal)
