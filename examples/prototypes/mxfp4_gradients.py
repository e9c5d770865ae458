"""Gradients in MXFP4, unbiased (Tseng et al., arXiv 2502.20586, algorithm 2): the forward pass is the identity.

    X = 2^(floor(log2 max |block|) - 2),  g_hat = 4/3 X SR(3/4 g / X)

SR rounds to E2M1, up as likely as it is near; by 3/4 nothing is clipped. The last axis is a multiple of 32.
"""

from samebits.core import formula as p
from samebits.core.formats import FLOAT4_E2M1
from samebits.core.formula import Value
from samebits.proofs import prototype


@prototype
def mxfp4_gradients(x: Value, *, draw: Value = p.seed(0)) -> Value:
    """The same values; every step of training draws anew."""
    return p.stop_gradient(x)


@mxfp4_gradients.gradient
def rounded(g: Value, x: Value, *, draw: Value) -> Value:
    """The gradient, block by block."""
    b = g.reshape(-1, 32)
    power = p.exponent(p.absmax(b, axis=1, keepdims=True)) - 2
    scaled = p.scale_by_power(0.75 * b, -power)
    y = p.to_format(scaled, FLOAT4_E2M1, "stochastic", noise=p.random_bits(draw, b))
    return p.where(b == 0, b, p.scale_by_power(y, power) * (4 / 3)).reshape(g.shape)
