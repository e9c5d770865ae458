"""Half-quadratic optimization of scales (HQO) and of zero points that are not rounded (HQQ): `Statistic.HQO`.

Formulas and sources stand in `samebits.core.half_quadratic`. One step after another; in compiled code one step is
compiled, and a loop of the program repeats it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop

from ..core.descriptions import Quantizer
from ..core.scales import inverse_betas
from . import devices
from .arrays import is_concrete
from .blocks import split_blocks
from .elementary import power
from .operations import round_to_dtype
from .scaling import divisor
from .statistics import absmax, nth_smallest
from .sums import in_units, of_units, ordered_sum, unit_of

LEAST = 2.0**-100
State = tuple[Tensor, Tensor, Tensor, Tensor]  # candidate, the best so far, its error, whether the block goes on


def half_quadratic_range(
    q: Quantizer, x: Tensor, low: Tensor, high: Tensor, attempt: Callable[..., tuple[Tensor, Tensor, Tensor]]
) -> tuple[Tensor, ...]:
    """The range that the search finds. When affine it stays, and a third end follows, for the zero point.

    Args:
        x: float32 or float64; ``low``, ``high``: where the search starts.
        attempt: scale, codes and ``x_hat``, these as `split_blocks` arranges them, for such a result.
    """
    blocks = split_blocks(x, q.granularity).clone()  # since loops of a program refuse two views of the same numbers
    unit = unit_of(absmax(x, q.granularity))
    inverses = torch.tensor(inverse_betas(q.scale, q.affine), dtype=x.dtype, device=x.device)
    start = torch.full_like(high, torch.inf, dtype=x.dtype)
    moved = low if q.affine else high
    state: State = (moved.clone(), moved.clone(), start, start > 0)

    def advanced(state: Sequence[Tensor], inverse_beta: Tensor) -> State:
        candidate, best, least, going = state
        scale, codes, hat = attempt(low, high, candidate) if q.affine else attempt(-candidate, candidate)
        e = in_units(blocks - hat, unit)
        error = ordered_sum(e.abs())
        going = going & (error < least)
        y = in_units(blocks, unit) - outliers(q, e, unit, inverse_beta)
        if q.affine:
            found = _mean_rest(y, codes, scale, unit)
            good = found.abs() < torch.inf
        else:
            found = _median_ratio(y, codes) * float(divisor(q))
            good = (found > 0) & (found < torch.inf)
        better = torch.where(good, round_to_dtype(of_units(found, unit), candidate.dtype), candidate)
        return better, torch.where(going, candidate, best), torch.where(going, error, least), going

    if torch.compiler.is_compiling():
        steps = len(inverses)

        def proceed(k: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
            return k + 1, *advanced(state, inverses.index_select(0, k).reshape(()))

        def goes_on(k: Tensor, *state: Tensor) -> Tensor:
            return (k[0] < steps) & state[3].any()

        first = torch.zeros(1, dtype=torch.int64, device=x.device)
        best: Tensor = while_loop(goes_on, proceed, (first, *state))[2]  # type: ignore[no-untyped-call]
        return (low, high, best) if q.affine else (-best, best)
    for inverse_beta in inverses:
        state = advanced(state, inverse_beta)
        if is_concrete(x) and not state[3].any():
            break
    return (low, high, state[1]) if q.affine else (-state[1], state[1])


def outliers(q: Quantizer, e: Tensor, unit: Tensor, inverse_beta: Tensor) -> Tensor:
    """``w``, in units: errors less the threshold.

    Args:
        e: one axis more than ``unit``, the last.
    """
    p = float(q.scale.decimals[4])
    factor = power(unit, p - 2) * inverse_beta
    factor = torch.where(factor < LEAST, 0.0, factor)
    size = e.abs()
    threshold = power(size, p - 1) * factor[..., None]
    return torch.where(size > threshold, torch.copysign(size - threshold, e), 0.0)


def _median_ratio(y: Tensor, codes: Tensor) -> Tensor:
    """Infinite where no element counts."""
    counts = (y != 0) & (codes != 0)
    if not y.shape[-1]:
        return y.new_full(y.shape[:-1], torch.inf)
    ratios = torch.where(counts, devices.quotient(y, codes), torch.inf)
    return nth_smallest(ratios, ((counts.sum(-1) + 1) // 2).clamp(min=1))


def _mean_rest(y: Tensor, codes: Tensor, scale: Tensor, unit: Tensor) -> Tensor:
    """The mean of what the codes leave, in units."""
    total = ordered_sum(y - devices.product(codes, in_units(scale[..., None], unit)))
    return devices.quotient(total, torch.full_like(total, y.shape[-1]))
