"""Histograms of what an observer has seen, and the range in them with the least error of quantization.

All in float32, every operation rounded, unless something else is said. Bins are equal parts of ``[low, high]``.

Source: ``torch.ao.quantization.HistogramObserver`` on a CPU with fused multiply-adds, whose ``linspace`` fuses; the
search is that of ``NormMinimization`` in Caffe2. Errors are added in the order of `sums.ordered_sum`; torch adds in an
order that depends on the processor.
"""

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arithmetic import Arithmetic
from .observing import ObserverState
from .operations import multiply_add
from .sums import ordered_sum

Array = NDArray[Any]
FINER = 16  # into how many parts a bin is cut before it is sorted into other bins
STEP = 1e-5  # of quantiles in the search
FUSED = Arithmetic(fused_multiply_add=True)


def counted(x: Array, bins: int, low: Array, high: Array) -> Array:
    """How many elements lie in each bin, rounded to float32: in that of ``floor((x - low) * bins / (high - low))``.

    ``high`` lies in the last one. Where ``low == high``, the range is one more on both sides.

    Args:
        x: finite; elements outside the range count nowhere.
    """
    if low == high:
        low, high = low - np.float32(1), high + np.float32(1)
    inside = x[(x >= low) & (x <= high)]
    places = ((inside - low) * np.float32(bins) / (high - low)).astype(np.int64)
    return np.bincount(np.minimum(places, bins - 1), minlength=bins).astype(np.float32)


def merged(state: ObserverState, x: Array, low: Array, high: Array) -> ObserverState:
    """The histogram of a state with ``x``, whose ends are ``low`` and ``high``, over the range of both.

    What was counted in another range is sorted anew: each bin in `FINER` parts, by their midpoints, one addition after
    the other; a range of a single number is counted at that number.
    """
    old, bins = state.histogram, len(state.histogram)
    ends = np.minimum(state.low, low), np.maximum(state.high, high)
    counts = counted(x, bins, *ends)
    if (ends[0] == state.low and ends[1] == state.high) or old is None:
        return ObserverState(*ends, old + counts)
    if state.low == state.high:
        total = old.astype(np.float64).sum().astype(np.float32)  # in one bin
        return ObserverState(*ends, counted(state.low[None], bins, *ends) * total + counts)
    return ObserverState(*ends, counts + rebinned(old, state.low, state.high, *ends))


def rebinned(histogram: Array, low: Array, high: Array, new_low: Array, new_high: Array) -> Array:
    """A histogram over ``[low, high]`` as one over ``[new_low, new_high]``, which holds that."""
    bins = len(histogram)
    width = (high - low) / np.float32(bins * FINER)
    middles = spaced(low, high, bins * FINER + 1)[:-1] + np.float32(0.5) * width
    places = np.searchsorted(spaced(new_low, new_high, bins + 1), middles, side="right") - 1
    result = np.zeros(bins, np.float32)
    for place, part in zip(np.clip(places, 0, bins - 1), np.repeat(histogram, FINER) / np.float32(FINER), strict=True):
        result[place] += part
    return result


def spaced(low: Array, high: Array, n: int) -> Array:
    """``n`` numbers from ``low`` to ``high``: ``low + step * i`` in the first half, then ``high - step * (n - 1 - i)``.

    ``step`` is ``(high - low) / (n - 1)``; the multiply-adds are fused.
    """
    step, half = (high - low) / np.float32(n - 1), n // 2
    up, down = np.arange(half).astype(np.float32), np.arange(n - 1 - half, -1, -1).astype(np.float32)
    return np.concatenate([multiply_add(step, up, low, FUSED), multiply_add(-step, down, high, FUSED)])


def searched_ends(state: ObserverState, steps: int) -> tuple[Array, Array]:
    """The range, from the lower end of a bin to the upper end of another, that the search ends at.

    It begins with the whole, and drops a quantile of `STEP` after the other at the end where more bins go with it,
    until the error of quantizing to ``steps`` steps grows.
    """
    histogram, bins = state.histogram, len(state.histogram)
    cumulative = [np.float32(v) for v in np.cumsum(histogram.astype(np.float64))]
    total, alpha, beta = float(cumulative[-1]), 0.0, 1.0
    start, end, least = 0, bins - 1, np.float32(np.inf)
    while alpha < beta:
        next_alpha, next_beta = alpha + STEP, beta - STEP
        left = min(max(bisect_left(cumulative, np.float32(next_alpha * total)), start), end)
        limit = np.float32(next_beta * total)
        right = end
        while right > start and cumulative[right] > limit:
            right -= 1
        moves_start = left - start > end - right
        alpha, beta = (next_alpha, beta) if moves_start else (alpha, next_beta)
        candidate = (left, end) if moves_start else (start, right)
        if candidate == (start, end):
            continue
        error = squared_error(state, *candidate, steps)
        if error > least:
            break
        least, (start, end) = error, candidate
    width = (state.high - state.low) / np.float32(bins)
    return state.low + width * np.float32(start), state.low + width * np.float32(end + 1)


def squared_error(state: ObserverState, start: int, end: int, steps: int) -> np.float32:
    """Sum of squared errors, elements spread evenly in their bins, if bins ``start`` to ``end`` are cut into steps.

    Widths are float64, and numbers that tensors meet are float32 of them.
    """
    bins, f = len(state.histogram), np.float32
    width = (float(state.high) - float(state.low)) / bins
    step = width * (end - start + 1) / steps
    if step == 0:
        return f(0)
    begin = (np.arange(bins) - start).astype(np.float32) * f(width)
    finish = begin + f(width)
    first = np.clip(np.floor_divide(begin, f(step)), f(0), f(steps - 1))
    last = np.clip(np.floor_divide(finish, f(step)), f(0), f(steps - 1))
    density, half = state.histogram / f(width), f(step / 2)
    terms = cubes(begin - (first + f(0.5)) * f(step), np.full(bins, half), density)
    terms = terms + (last - first - f(1)) * cubes(np.full(bins, -half), np.full(bins, half), density)
    terms = terms + cubes(np.full(bins, -half), finish - (last * f(step) + half), density)
    return np.float32(ordered_sum(terms))


def cubes(begin: Array, end: Array, density: Array) -> Array:
    """``density * (end**3 - begin**3) / 3``: of elements spread evenly between two errors, the sum of squares."""
    return np.asarray(density * ((end * end * end - begin * begin * begin) / np.float32(3)))
