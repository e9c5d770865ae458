"""Four over six: NVFP4 with an adaptive scale of blocks (Cook et al., arXiv 2512.02010, section 3).

    alpha = max |x| / (6 * 256)
    for M in 6, 4:  s_M = E4M3(max |block| / (M alpha)),  x_M = E2M1(x / (s_M alpha)) s_M alpha
    x_hat = the one whose mean squared error over the block is the smaller one; M = 6 if they are equal

The gradient is that of the identity. The last axis is a multiple of 16.
"""

from samebits.core import formula as p
from samebits.core.formats import FLOAT4_E2M1, FLOAT8_E4M3FN
from samebits.core.formula import Value
from samebits.proofs import prototype


@prototype
def four_over_six(x: Value, *, block: int = 16) -> Value:
    """Blocks that fill either 4 or 6 of E2M1."""
    b = x.reshape(-1, block)
    alpha = p.maximum(p.absmax(x) / (6 * 256), 2.0**-100)
    tried = []
    for largest in (6, 4):
        s = p.to_format(p.absmax(b, axis=1, keepdims=True) / (largest * alpha), FLOAT8_E4M3FN) * alpha
        y = p.where(s == 0, 0.0, p.to_format(b / s, FLOAT4_E2M1) * s)
        tried.append((y, p.mean((y - b) ** 2, axis=1, keepdims=True)))
    (six, error_six), (four, error_four) = tried
    return p.straight_through(p.where(error_four < error_six, four, six).reshape(x.shape), x)
