"""Logarithmic quantization (Miyashita et al., arXiv 1603.01025, equations 3 and 4).

    LogQuant(x) = 0 for x = 0, else sign(x) 2^v,  v = clip(round(log2 |x|), FSR - 2^bits, FSR)

The full scale range FSR is the exponent of the largest element, rounded. The gradient is that of the identity.
"""

from samebits.core import formula as p
from samebits.core.formula import Value
from samebits.proofs import prototype


@prototype
def logarithmic(x: Value, *, bits: int = 4) -> Value:
    """Powers of two with a sign, and zero."""
    v = p.round(p.log2(abs(x)))
    full = p.amax(v)
    v = p.clamp(v, full - 2.0**bits, full)
    return p.straight_through(p.where(x == 0, x, p.scale_by_power(p.sign(x), v)), x)
