"""SAWB, weights of 2 bits (Choi et al., Accurate and Efficient 2-bit Quantized Neural Networks, SysML 2019).

    alpha = c1 sqrt(E(w^2)) - c2 E(|w|)
    w_q = the nearest of the 2^k levels, as far from each other, from -alpha to alpha

The gradient is that of the identity inside [-alpha, alpha].
"""

from samebits.core import formula as p
from samebits.core.formula import Value
from samebits.proofs import prototype


@prototype
def sawb(x: Value, *, bits: int = 2, c1: float = 3.212, c2: float = 2.178) -> Value:
    """Weights of a bell-shaped distribution."""
    n = 2.0**bits - 1
    alpha = p.stop_gradient(c1 * p.sqrt(p.mean(x * x)) - c2 * p.mean(abs(x)))
    y = p.clamp(x, -alpha, alpha)
    level = p.round((y / alpha + 1) / 2 * n)
    return p.straight_through((level / n * 2 - 1) * alpha, y)
