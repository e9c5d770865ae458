"""High-order residual quantization (Li et al., arXiv 1708.08687, equations 5 to 9): a sum of scaled signs.

    R_0 = X,  H_i = sign(R_(i-1)),  beta_i = mean |R_(i-1)|,  R_i = R_(i-1) - beta_i H_i
    X_hat = beta_1 H_1 + ... + beta_K H_K

The gradient is that of the identity.
"""

from samebits.core import formula as p
from samebits.core.formula import Value
from samebits.proofs import prototype


@prototype
def residual(x: Value, *, order: int = 2) -> Value:
    """Each order takes what the ones before have left. The sign of zero is 1."""
    rest, total = x, x * 0
    for _ in range(order):
        part = p.where(rest < 0, -1.0, x * 0 + 1) * p.mean(abs(rest))
        rest, total = rest - part, total + part
    return p.straight_through(total, x)
