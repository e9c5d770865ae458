"""Histograms of what an observer has seen, and the range in them with the least error, by torch's operators.

What is computed is stated in `samebits.core.histograms`. Elements are counted where they lie; everything else happens
on the CPU, over some thousand numbers, since scattered additions have no order elsewhere. Never in compiled code.
"""

import torch
from torch import Tensor

from ...core.arithmetic import Arithmetic
from ...core.observing import ObserverState
from ..operations import multiply_add
from ..sums import ordered_sum

FINER = 16  # into how many parts a bin is cut before it is sorted into other bins
STEP = 1e-5  # of quantiles in the search
FUSED = Arithmetic(fused_multiply_add=True)


def counted(x: Tensor, bins: int, low: Tensor, high: Tensor) -> Tensor:
    """How many elements lie in each bin, rounded to float32: in that of ``floor((x - low) * bins / (high - low))``.

    ``high`` lies in the last one. Where ``low == high``, the range is one more on both sides.

    Args:
        x: finite; elements outside the range count nowhere.
    """
    same = (low == high).to(low.dtype)
    low, high = (low - same).to(x.device), (high + same).to(x.device)
    inside = x[(x >= low) & (x <= high)]
    places = (inside.sub(low).mul_(bins) / (high - low)).long().clamp_(max=bins - 1)
    return torch.bincount(places, minlength=bins).to(torch.float32).cpu()


def merged(state: ObserverState, x: Tensor, low: Tensor, high: Tensor) -> ObserverState:
    """The histogram of a state with ``x``, whose ends are ``low`` and ``high``, over the range of both.

    What was counted in another range is sorted anew: each bin in `FINER` parts, by their midpoints, one addition after
    the other; a range of a single number is counted at that number.
    """
    old, was_low, was_high = state.histogram.cpu(), state.low.cpu(), state.high.cpu()
    ends = torch.minimum(was_low, low.cpu()), torch.maximum(was_high, high.cpu())
    counts = counted(x, len(old), *ends)
    if torch.equal(torch.stack(ends), torch.stack([was_low, was_high])):
        before = old
    elif torch.equal(was_low, was_high):
        before = counted(was_low.reshape(1), len(old), *ends) * old.sum()  # all in one bin
    else:
        before = rebinned(old, was_low, was_high, *ends)
    return ObserverState(*(v.to(state.low.device) for v in (*ends, before + counts)))


def rebinned(histogram: Tensor, low: Tensor, high: Tensor, new_low: Tensor, new_high: Tensor) -> Tensor:
    """A histogram over ``[low, high]`` as one over ``[new_low, new_high]``, which holds that."""
    bins = len(histogram)
    width = (high - low) / (bins * FINER)
    middles = spaced(low, high, bins * FINER + 1)[:-1] + 0.5 * width
    places = torch.bucketize(middles, spaced(new_low, new_high, bins + 1), right=True) - 1
    return torch.bincount(places.clamp(0, bins - 1), histogram.repeat_interleave(FINER) / FINER, bins)


def spaced(low: Tensor, high: Tensor, n: int) -> Tensor:
    """``n`` numbers from ``low`` to ``high``: ``low + step * i`` in the first half, then ``high - step * (n - 1 - i)``.

    ``step`` is ``(high - low) / (n - 1)``; the multiply-adds are fused.
    """
    places = torch.arange(n, dtype=torch.float32)
    step, first = (high - low) / (n - 1), places < n // 2
    steps, times = torch.where(first, step, -step), torch.where(first, places, n - 1 - places)
    return multiply_add(steps, times, torch.where(first, low, high), FUSED)


def searched_ends(state: ObserverState, steps: int) -> tuple[Tensor, Tensor]:
    """The range, from the lower end of a bin to the upper end of another, that the search ends at.

    It begins with the whole, and drops a quantile of `STEP` after the other at the end where more bins go with it,
    until the error of quantizing to ``steps`` steps grows.
    """
    here = ObserverState(*(v.cpu() for v in state))
    bins, cumulative = len(here.histogram), here.histogram.cumsum(0)
    lefts, rights = _quantiles(cumulative)
    start, end, least, i, j = 0, bins - 1, float("inf"), 0, 0  # i, j: quantiles dropped at either end
    while _ALPHAS[i] < _BETAS[j]:
        left, right = min(max(lefts[i], start), end), max(min(rights[j], end), start)
        at_start = left - start > end - right
        i, j = i + at_start, j + (not at_start)
        a, b = (left, end) if at_start else (start, right)
        if (a, b) == (start, end):
            continue
        error = squared_error(here, a, b, steps).item()
        if error > least:
            break
        least, start, end = error, a, b
    width = (here.high - here.low) / bins
    found = here.low + width * start, here.low + width * (end + 1)
    return found[0].to(state.low.device), found[1].to(state.low.device)


def squared_error(state: ObserverState, start: int, end: int, steps: int) -> Tensor:
    """Sum of squared errors, elements spread evenly in their bins, if bins ``start`` to ``end`` are cut into steps.

    Widths are float64, and numbers that tensors meet are float32 of them.
    """
    bins = len(state.histogram)
    width = (state.high.item() - state.low.item()) / bins
    step = width * (end - start + 1) / steps
    if step == 0:
        return torch.zeros(())
    begin = (torch.arange(bins) - start) * width
    edges = torch.stack([begin, begin + width])
    first, last = torch.div(edges, step, rounding_mode="floor").clamp(0, steps - 1)
    density, half = state.histogram / width, torch.full((bins,), step / 2)
    terms = cubes(begin - (first + 0.5) * step, half, density)
    terms = terms + (last - first - 1) * cubes(-half, half, density)
    return ordered_sum(terms + cubes(-half, edges[1] - (last * step + step / 2), density))


def cubes(begin: Tensor, end: Tensor, density: Tensor) -> Tensor:
    """``density * (end**3 - begin**3) / 3``: of elements spread evenly between two errors, the sum of squares."""
    return density * ((end * end * end - begin * begin * begin) / 3)


def _progress(start: float, step: float) -> list[float]:
    """What one float64 is after each of many steps."""
    values = [start]
    while 0.0 <= values[-1] <= 1.0:
        values.append(values[-1] + step)
    return values


_ALPHAS, _BETAS = _progress(0.0, STEP), _progress(1.0, -STEP)


def _quantiles(cumulative: Tensor) -> tuple[list[int], list[int]]:
    """For each number of dropped quantiles the first bin with so much below its end, and the last with not more."""
    total = cumulative[-1].item()
    alphas, betas = (torch.tensor(v[1:], dtype=torch.float64) for v in (_ALPHAS, _BETAS))
    lefts = torch.searchsorted(cumulative, (alphas * total).float())
    rights = torch.searchsorted(cumulative, (betas * total).float(), right=True) - 1
    return lefts.tolist(), rights.tolist()
