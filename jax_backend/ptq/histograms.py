"""Histograms of what an observer has seen, and the range in them with the least error, for JAX.

What is computed is stated in `samebits.core.histograms`. Elements are counted by XLA, where they lie. What follows
depends on some thousand numbers and decides by them what to do next, so it happens on the host, in NumPy: sums of runs
by accumulation, fused multiply-adds by a float64 that is rounded to odd, and the search over tables of quantiles.
Never in traced code.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ...core.arithmetic import Arithmetic
from ...core.observing import ObserverState
from ..arrays import ordered
from ..operations import add, multiply, true_divide

Array = jax.Array
Numbers = NDArray[np.float32]
FINER = 16  # into how many parts a bin is cut before it is sorted into other bins
STEP = 1e-5  # of quantiles in the search
PLAIN = Arithmetic()


def counted(x: Array, bins: int, low: Array, high: Array) -> Array:
    """How many elements lie in each bin, rounded to float32: in that of ``floor((x - low) * bins / (high - low))``.

    ``high`` lies in the last one. Where ``low == high``, the range is one more on both sides.

    Args:
        x: finite; elements outside the range count nowhere.
    """
    low, high = jnp.asarray(low, np.float32).reshape(()), jnp.asarray(high, np.float32).reshape(())
    counts: Array = _counted(x.reshape(-1), bins, low, high)
    return counts.astype(np.float32)


def _places(x: Array, bins: int, low: Array, high: Array) -> Array:
    x, low, high = (add(v, jnp.zeros_like(v), PLAIN) for v in (x, low, high))  # one zero
    one = (ordered(low) == ordered(high)).astype(np.float32)
    low, high = add(low, -one, PLAIN), add(high, one, PLAIN)
    spread = multiply(add(x, -low, PLAIN), jnp.asarray(bins, np.float32), PLAIN)
    places = jnp.minimum(true_divide(spread, add(high, -low, PLAIN), PLAIN).astype(np.int32), bins - 1)
    return jnp.where((ordered(x) >= ordered(low)) & (ordered(x) <= ordered(high)), places, bins)


_counted = jax.jit(
    lambda x, bins, low, high: jnp.bincount(_places(x, bins, low, high), length=bins + 1)[:-1], static_argnums=1
)


def merged(state: ObserverState, x: Array, low: Array, high: Array) -> ObserverState:
    """The histogram of a state with ``x``, whose ends are ``low`` and ``high``, over the range of both.

    What was counted in another range is sorted anew: each bin in `FINER` parts, by their midpoints, one addition after
    the other; a range of a single number is counted at that number.
    """
    was_low, was_high, old = (np.asarray(v) for v in state)
    ends = np.minimum(was_low, np.asarray(low)), np.maximum(was_high, np.asarray(high))
    counts = counted(x, len(old), jnp.asarray(ends[0]), jnp.asarray(ends[1]))
    if ends[0] == was_low and ends[1] == was_high:
        before = old
    elif was_low == was_high:
        at = counted(state.low.reshape(1), len(old), jnp.asarray(ends[0]), jnp.asarray(ends[1]))
        before = np.asarray(at) * old.max()  # all are in one bin
    else:
        before = rebinned(old, was_low, was_high, *ends)
    return ObserverState(jnp.asarray(ends[0]), jnp.asarray(ends[1]), jnp.asarray(before + np.asarray(counts)))


def rebinned(histogram: Numbers, low: Numbers, high: Numbers, new_low: Numbers, new_high: Numbers) -> Numbers:
    """A histogram over ``[low, high]`` as one over ``[new_low, new_high]``, which holds that."""
    bins = len(histogram)
    width = (high - low) / np.float32(bins * FINER)
    middles = spaced(low, high, bins * FINER + 1)[:-1] + np.float32(0.5) * width
    # middles ascend, so what goes into one bin is a run: it begins at the first middle that is not below the bin
    starts = np.searchsorted(middles, spaced(new_low, new_high, bins + 1)[1:-1], side="left")
    runs = np.split(np.repeat(histogram / np.float32(FINER), FINER), starts)
    sums = [np.add.accumulate(run, dtype=np.float32)[-1] if run.size else np.float32(0) for run in runs]
    return np.asarray(sums, np.float32)


def spaced(low: Numbers, high: Numbers, n: int) -> Numbers:
    """``n`` numbers from ``low`` to ``high``: ``low + step * i`` in the first half, then ``high - step * (n - 1 - i)``.

    ``step`` is ``(high - low) / (n - 1)``; the multiply-adds are fused.
    """
    i = np.arange(n, dtype=np.float64)
    step = np.float64((high - low) / np.float32(n - 1))
    up = i < n // 2
    base, product = np.where(up, np.float64(low), np.float64(high)), step * np.where(up, i, i - (n - 1))  # exact
    total = base + product
    rest = (base - (total - (total - base))) + (product - (total - base))  # what was rounded off
    bits = total.view(np.int64)
    away = np.where((rest > 0) == (total > 0), 1, -1)
    odd = np.where((rest != 0) & (bits & 1 == 0), bits + away, bits).view(np.float64)
    return odd.astype(np.float32)


def searched_ends(state: ObserverState, steps: int) -> tuple[Array, Array]:
    """The range, from the lower end of a bin to the upper end of another, that the search ends at.

    It begins with the whole, and drops a quantile of `STEP` after the other at the end where more bins go with it,
    until the error of quantizing to ``steps`` steps grows.
    """
    here = ObserverState(*(np.asarray(v) for v in state))
    bins = len(here.histogram)
    cumulative = np.cumsum(here.histogram, dtype=np.float64).astype(np.float32)
    total = np.float64(cumulative[-1])
    low, high = (
        np.add.accumulate(np.full(100_002, STEP)),
        np.subtract.accumulate(np.append(1.0, np.full(100_002, STEP))),
    )
    lefts = np.searchsorted(cumulative, (low * total).astype(np.float32))
    rights = np.searchsorted(cumulative, (high[1:] * total).astype(np.float32), side="right") - 1
    ends, dropped, least = (0, bins - 1), (0, 0), np.float32(np.inf)
    while (low[dropped[0] - 1] if dropped[0] else 0.0) < high[dropped[1]]:
        left = int(np.clip(lefts[dropped[0]], *ends))
        right = int(np.clip(rights[dropped[1]], *ends))
        first = left - ends[0] > ends[1] - right
        dropped = (dropped[0] + 1, dropped[1]) if first else (dropped[0], dropped[1] + 1)
        candidate = (left, ends[1]) if first else (ends[0], right)
        if candidate != ends:
            error = squared_error(here, *candidate, steps)
            if error > least:
                break
            least, ends = error, candidate
    width = (here.high - here.low) / np.float32(bins)
    return tuple(jnp.asarray(here.low + width * np.float32(place)) for place in (ends[0], ends[1] + 1))  # type: ignore[return-value]


def squared_error(state: ObserverState, start: int, end: int, steps: int) -> np.float32:
    """Sum of squared errors, elements spread evenly in their bins, if bins ``start`` to ``end`` are cut into steps.

    Widths are float64, and numbers that tensors meet are float32 of them.
    """
    bins = len(state.histogram)
    width = (float(state.high) - float(state.low)) / bins
    step = width * (end - start + 1) / steps
    if step == 0:
        return np.float32(0)
    w, s, half = np.float32(width), np.float32(step), np.float32(step / 2)
    begin = np.arange(-start, bins - start, dtype=np.float32) * w
    edges = np.stack([begin, begin + w])
    nearest = np.clip(np.floor_divide(edges, s), np.float32(0), np.float32(steps - 1))
    density = state.histogram / w
    inner = np.broadcast_to(half, begin.shape)
    from_ = np.stack([edges[0] - (nearest[0] + np.float32(0.5)) * s, -inner, -inner])
    upto = np.stack([inner, inner, edges[1] - (nearest[1] * s + half)])
    of_parts = cubes(from_, upto, density)
    terms = (of_parts[0] + (nearest[1] - nearest[0] - np.float32(1)) * of_parts[1]) + of_parts[2]
    padded = np.zeros(1 << max(bins - 1, 0).bit_length(), np.float32)
    padded[:bins] = terms
    while padded.size > 1:  # as `sums.ordered_sum`
        padded = np.add(*np.split(padded, 2))
    return np.float32(padded[0])


def cubes(begin: Numbers, end: Numbers, density: Numbers) -> Numbers:
    """``density * (end**3 - begin**3) / 3``: of elements spread evenly between two errors, the sum of squares."""
    return np.asarray(density * ((end * end * end - begin * begin * begin) / np.float32(3)), np.float32)
