"""AdaRound: which of the two codes next to each weight it takes is learned, so that outputs of the layer stay.

Scales are those of the weight. With the parameter v of learned rounding (`learned_rounding`), h its share and E the
output error of ``w_hat(v)`` (`gptq.output_error`), relative to that of rounding to nearest, ``steps`` steps of Adam
(beta 0.9 and 0.999, epsilon 1e-8, moments in float64, v in float32) go down on

    size of w * E / E(nearest) + penalty * sum(1 - |2 h - 1|**b)

The penalty is 0 in the first fifth; then b falls from 20 to 2 on half a cosine, which drives every h to 0 or 1. What v
decides at the end is kept if its output error is below that of rounding to nearest. Gradients are those of
`fake_quantize_vjp`. Libraries differ in last bits of products, so v, and rarely a code, can differ between rooms.

Source: Nagel et al., arXiv 2004.10568, equations 21 to 25; the paper weighs with absolute errors of layers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checks
from .arguments import as_array
from .descriptions import QParams, Quantizer
from .gptq import output_error
from .layerwise import check_adaround, check_hessian, penalty_exponents
from .learned_rounding import initial_rounding, rounding_share, rounding_slope
from .quantizer import choose_qparams, dequantize, fake_quantize, fake_quantize_vjp, quantize

Array = NDArray[Any]
DECAY, DECAY_OF_SQUARES, EPSILON = 0.9, 0.999, 1e-8


def adaround(
    q: Quantizer, w: Array, hessian: Array, steps: int = 500, rate: float = 0.03, penalty: float = 3.0
) -> tuple[Array, QParams, Array]:
    """Codes of a weight that keep the outputs of its layer, each next to the weight; see the module.

    Args:
        q: a quantizer of integers, whose rounding neither draws nor learns.
        w: ``(out, in)``, any floating-point dtype; rounded to float32 first.
        hessian: float64 ``(in, in)``, as `gptq.hessian_update` gives it.
        steps: of Adam. ``rate``: of learning. ``penalty``: how much it counts that shares are not 0 or 1.
    Returns:
        Codes, ``(out, in)``; their parameters; their values, float32.
    Raises:
        TypeError, ValueError: as `choose_qparams` and `check_adaround`; statistics that are not finite.
    """
    w = as_array("w", w)
    checks.check_quantizer(q)
    checks.check_float("w", w.dtype.name)
    check_adaround(q, w.shape, steps, rate, penalty)
    hessian = np.asarray(hessian, np.float64)
    check_hessian(hessian.shape, w.shape[1], bool(np.isfinite(hessian).all()))
    w = w.astype(np.float32)
    qparams = choose_qparams(q, w)
    nearest = quantize(q, w, qparams), qparams, fake_quantize(q, w, qparams)
    worst = output_error(w, nearest[2], hessian)
    if not worst:
        return nearest
    hard = q.replace(rounding="learned", soft=False)
    v = _learned(hard.replace(soft=True), w, qparams, hessian / worst * w.size, steps, rate, penalty)
    codes = quantize(hard, w, qparams._replace(rounding=v))
    w_hat = dequantize(q, codes, qparams)
    return (codes, qparams, w_hat) if output_error(w, w_hat, hessian) < worst else nearest


def _learned(q: Quantizer, w: Array, qparams: QParams, weight: Array, steps: int, rate: float, penalty: float) -> Array:
    """The parameter of rounding after all steps."""
    v = initial_rounding(q, w, qparams)
    mean, square = np.zeros(w.shape), np.zeros(w.shape)
    for step, b in enumerate(penalty_exponents(steps)):
        known = qparams._replace(rounding=v)
        off = fake_quantize(q, w, known).astype(np.float64) - w
        g = fake_quantize_vjp(q, w, known, (off @ weight).astype(np.float32)).rounding.astype(np.float64)
        if b:
            middle = 2 * rounding_share(q.learned_rounding, v).astype(np.float64) - 1
            slope = rounding_slope(q.learned_rounding, v).astype(np.float64)
            g -= penalty * 2 * b * np.abs(middle) ** (b - 1) * np.sign(middle) * slope
        mean = DECAY * mean + (1 - DECAY) * g
        square = DECAY_OF_SQUARES * square + (1 - DECAY_OF_SQUARES) * g * g
        of_mean, of_square = 1 - DECAY ** (step + 1), 1 - DECAY_OF_SQUARES ** (step + 1)
        v = (v - rate * (mean / of_mean) / (np.sqrt(square / of_square) + EPSILON)).astype(np.float32)
    return v
