"""BitNet b1.58 (Ma et al., arXiv 2402.17764, equations 1 to 3; activations of Wang et al., arXiv 2310.11453).

    W_q = gamma round_clip(W / (gamma + eps), -1, 1),  gamma = mean |W|
    x_q = round_clip(x 127 / absmax, -128, 127) absmax / 127,  absmax of each token

The gradient is that of the identity.
"""

from samebits.core import formula as p
from samebits.core.formula import Value
from samebits.proofs import prototype


@prototype
def ternary(x: Value, *, epsilon: float = 1e-5) -> Value:
    """Weights of three values."""
    gamma = p.mean(abs(x))
    return p.straight_through(p.clamp(p.round(x / (gamma + epsilon)), -1.0, 1.0) * gamma, x)


@prototype
def per_token(x: Value, *, epsilon: float = 1e-5) -> Value:
    """Activations of 8 bits, one scale for the last axis."""
    scale = 127 / p.maximum(p.absmax(x, axis=-1, keepdims=True), epsilon)
    return p.straight_through(p.clamp(p.round(x * scale), -128.0, 127.0) / scale, x)
