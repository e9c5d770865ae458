"""How the laws make their inputs and say what was broken."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer
from ..inputs.compare import assert_same_bits, describe
from ..modes.execution import Implementation

Array = NDArray[Any]


def same(
    f: Implementation, q: Quantizer, call: str, expected: Any, got: Any, inputs: dict[str, Array] | None = None
) -> None:
    """`assert_same_bits`, naming the implementation and the quantizer."""
    assert_same_bits(expected, got, call=claim(f, q, call), inputs=inputs)


def require(holds: Array, claim: str, **values: Array) -> None:
    """AssertionError unless it holds everywhere; it shows the claim and, at the first element where not, all values."""
    holds = np.asarray(holds)
    if holds.all():
        return
    index = tuple(int(i) for i in np.unravel_index(int(np.argmin(holds)), holds.shape))
    lines = [f"{claim}: broken by {int((~holds).sum())} of {holds.size} elements", f"  index     {index}"]
    lines += [f"  {name:<9} {describe(np.broadcast_to(value, holds.shape)[index])}" for name, value in values.items()]
    raise AssertionError("\n".join(lines))


def refuses(f: Implementation, q: Quantizer, call: str, run: Callable[[], Any]) -> None:
    """AssertionError unless the call raises ValueError."""
    try:
        got = run()
    except ValueError:
        return
    raise AssertionError(f"{claim(f, q, call)}: must raise ValueError, returned {got!r}")


def claim(f: Implementation, q: Quantizer, what: str) -> str:
    """What is promised, by whom, for which quantizer: the first line of every message."""
    zero = "affine " if q.affine else ""
    return f"{f.name}, {zero}{q.format} {q.granularity}, {q.rounding}, {q.gradient}: {what}"


def without_nan(x: Array) -> Array:
    """``x`` with 0 for NaN."""
    return np.where(np.isnan(x), np.zeros_like(x), x)


def only_finite(x: Array) -> Array:
    """``x`` with 0 for NaN and infinities."""
    return np.where(np.isfinite(x), x, np.zeros_like(x))


def with_every(x: Array, value: float, step: int) -> Array:
    """``x`` with ``value`` in every ``step``-th place, the first included."""
    out = np.array(x)
    out.reshape(-1)[::step] = value
    return out
