"""Scales that no rule chooses: another formula of absmax, or exponents that are off by one."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
NARROW = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
EPSILONS = (2.0**-23, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5)


@np.errstate(all="ignore")
def said_of_scales(sizes: Array, scales: Array, chosen: Array) -> dict[str, str]:
    """Words for what all of them have in common; nothing where there is no such thing.

    Args:
        sizes: absmax of each block; ``scales``: what was chosen for it; ``chosen``: what the nearest rule chooses. Of
            the dtype that scales are computed in, 1-d, in the same order.
    """
    divisor = (np.rint(2 * np.median(sizes / scales)) / 2).astype(sizes.dtype)
    one = np.ones((), sizes.dtype)
    for words, found in (
        (f"absmax / {divisor:g}", sizes / divisor),
        (f"absmax * (1 / {divisor:g})", sizes * (one / divisor)),
        (f"1 / ({divisor:g} / absmax)", one / (divisor / sizes)),
    ):
        for name, given in (
            ("", found),
            *((f", in {kind}", found.astype(kind).astype(sizes.dtype)) for kind in NARROW),
        ):
            if np.isfinite(divisor) and np.array_equal(given, scales):
                return {"formula": words + name}
    for eps in EPSILONS:
        if np.isfinite(divisor) and np.array_equal((sizes + sizes.dtype.type(eps)) / divisor, scales):
            return {"formula": f"(absmax + {eps:g}) / {divisor:g}"}
    off = scales != chosen
    if not off.any() or not np.isin(scales / chosen, (0.5, 1.0, 2.0)).all():
        return {}
    counts = {word: int((scales == factor * chosen).sum()) for word, factor in (("small", 0.5), ("large", 2.0))}
    said = [f"one too {word} in {n} of {len(scales)} blocks" for word, n in counts.items() if n]
    return {"exponent": ", ".join([*said, *_where(sizes, off)])}


def _where(sizes: Array, off: Array) -> list[str]:
    """What is special about the numbers whose exponents are off."""
    power = np.frexp(sizes)[0] == 0.5
    if power[off].all():
        return ["all at powers of two"]
    near = sizes.astype(ml_dtypes.bfloat16).astype(sizes.dtype)
    kinds = {
        "where bfloat16 rounds absmax up to a power of two": np.frexp(near)[0] == 0.5,
        "where log2(absmax) is rounded up to an integer": np.log2(sizes) % 1 == 0,
    }
    return [words for words, kind in kinds.items() if np.array_equal(kind & ~power, off)][:1]
