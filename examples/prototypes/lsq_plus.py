"""LSQ+, activations (Bhalgat et al., arXiv 2004.09576, equations 1 to 6; gradient scale of LSQ, arXiv 1902.08153).

    x_bar = round(clamp((x - beta) / s, n, p)),    x_hat = x_bar s + beta
    the gradient of s is multiplied by 1 / sqrt(N p), that of round is 1

The scale begins at (max - min) / (p - n) of the first tensor, beta at its minimum.
"""

import math

from samebits.core import formula as p
from samebits.core.formula import Value
from samebits.proofs import prototype


def step(x: Value, bits: int) -> Value:
    """Where the scale begins."""
    return (p.amax(x) - p.amin(x)) / (2.0**bits - 1)


@prototype
def lsq_plus(x: Value, *, s: Value = p.learned(step), beta: Value = p.learned(p.amin), bits: int = 4) -> Value:
    """Any activations: the offset is learned, too."""
    n = 2.0**bits - 1
    s = p.straight_through(s, s * (1 / math.sqrt(math.prod(x.shape) * n)))
    beta = p.straight_through(beta, beta)
    v = p.clamp((x - beta) / s, 0.0, n)
    return p.straight_through(p.round(v), v) * s + beta
