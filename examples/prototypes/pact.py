"""PACT, activations (Choi et al., arXiv 1805.06085, equations 1 to 3).

y = (|x| - |x - alpha| + alpha) / 2 = clip(x, 0, alpha)
y_q = round(y (2^k - 1) / alpha) alpha / (2^k - 1)
dy_q / dalpha = 0 for x < alpha, 1 for x >= alpha
"""

from samebits.core import formula as p
from samebits.core.formula import Value
from samebits.proofs import prototype


@prototype
def pact(x: Value, *, alpha: Value = p.learned(6.0), bits: int = 4) -> Value:
    """Activations in [0, alpha]."""
    n = 2.0**bits - 1
    y = p.clamp(x, 0.0, alpha)
    return p.round(y * n / alpha) * alpha / n


@pact.gradient
def pact_gradient(g: Value, x: Value, *, alpha: Value) -> tuple[Value, dict[str, Value]]:
    """As the paper has it: straight through below alpha, and to alpha above."""
    above = x >= alpha
    return p.where((x < 0) | above, 0.0, g), {"alpha": p.sum(p.where(above, g, 0.0))}
