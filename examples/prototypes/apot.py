"""APoT: additive powers of two, weights of 5 bits (Li et al., arXiv 1909.13144, equations 5 to 8).

    Q(alpha) = alpha gamma (+- (p0 + p1)),  p0 in {0, 2^0, 2^-2, 2^-4},  p1 in {0, 2^-1, 2^-3, 2^-5}
    w_hat = alpha nearest(clip(w / alpha, -1, 1)),  with gamma such that the largest level is 1

The gradient of the projection is that of the identity.
"""

from itertools import product

from samebits.core import formula as p
from samebits.core.formats import CodebookFormat
from samebits.core.formula import Value
from samebits.proofs import prototype

SUMS = {a + b for a, b in product((0, 1, 2**-2, 2**-4), (0, 2**-1, 2**-3, 2**-5))}
LEVELS = CodebookFormat(tuple(sorted({float(sign * v) for v in SUMS for sign in (-1, 1)})))
LARGEST = float(max(SUMS))  # 1 / gamma


@prototype
def apot(x: Value, *, alpha: Value = p.learned(p.absmax)) -> Value:
    """Weights; the clipping point is learned."""
    v = p.clamp(x / alpha, -1.0, 1.0)
    return p.straight_through(p.to_format(v * LARGEST, LEVELS) / LARGEST, v) * alpha
