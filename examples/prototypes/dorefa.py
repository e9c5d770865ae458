"""DoReFa-Net, weights (Zhou et al., arXiv 1606.06160, equations 5 and 9).

    quantize_k(r) = round((2^k - 1) r) / (2^k - 1)
    r_o = 2 quantize_k(tanh(r_i) / (2 max |tanh(r_i)|) + 1/2) - 1

The gradient of quantize_k is that of the identity.
"""

from samebits.core import formula as p
from samebits.core.formula import Value
from samebits.proofs import prototype


@prototype
def dorefa(x: Value, *, bits: int = 2) -> Value:
    """Weights in [-1, 1]."""
    n = 2.0**bits - 1
    t = p.tanh(x)
    r = t / (2 * p.absmax(t)) + 0.5
    return 2 * p.straight_through(p.round(n * r) / n, r) - 1
