"""AdaRound: which of the two codes next to each weight it takes is learned; see `samebits.core.adaround`.

All steps are one compiled loop; gradients are those of `jax.grad`. Float64 is on inside alone.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from ...core import checks
from ...core.descriptions import QParams, Quantizer
from ...core.directions import Rounding
from ...core.layerwise import check_adaround, check_hessian, penalty_exponents
from ..arrays import as_array, with_float64
from ..learned_rounding import initial_rounding, rounding_share
from ..quantizer import choose_qparams, dequantize, fake_quantize, quantize
from .gptq import output_error

Array = jax.Array
Wide = Array | NDArray[Any]  # float64: JAX makes none where `jax_enable_x64` is not set
State = tuple[Array, Array, Array]


def adaround(
    q: Quantizer, w: Array, hessian: Wide, steps: int = 500, rate: float = 0.03, penalty: float = 3.0
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
    checks.check_quantizer(q)
    with with_float64(np.float64):
        w = as_array("w", w)
        checks.check_float("w", w.dtype.name)
        check_adaround(q, w.shape, steps, rate, penalty)
        hessian = jnp.asarray(hessian, np.float64)
        check_hessian(hessian.shape, w.shape[1], bool(jnp.isfinite(hessian).all()))
        w = w.astype(np.float32)
        qparams = choose_qparams(q, w)
        nearest = quantize(q, w, qparams), qparams, fake_quantize(q, w, qparams)
        worst = output_error(w, nearest[2], hessian)
        if not worst:
            return nearest
        hard = q.replace(rounding=Rounding.LEARNED, soft=False)
        soft = hard.replace(soft=True)
        begin = initial_rounding(soft, w, qparams)
        exponents = np.asarray(penalty_exponents(steps))
        settings = np.float64(rate), np.float64(penalty)
        v = _learned(soft, w, qparams, hessian * np.float64(w.size / worst), begin, exponents, settings)
        codes = quantize(hard, w, qparams._replace(rounding=v))
        w_hat = dequantize(q, codes, qparams)
        return (codes, qparams, w_hat) if output_error(w, w_hat, hessian) < worst else nearest


@partial(jax.jit, static_argnums=0)
def _learned(
    q: Quantizer,
    w: Array,
    qparams: QParams,
    weight: Array,
    begin: Array,
    exponents: Array,
    settings: tuple[Array, Array],
) -> Array:
    """The parameter of rounding after all steps."""
    rate, penalty = settings

    def loss(v: Array, b: Array) -> Array:
        off = fake_quantize(q, w, qparams._replace(rounding=v)).astype(np.float64) - w.astype(np.float64)
        moved = lax.stop_gradient(jnp.matmul(off, weight, precision=lax.Precision.HIGHEST))
        middle = jnp.abs(2 * rounding_share(q.learned_rounding, v).astype(np.float64) - 1)
        size = jnp.where(middle > 0, middle, 1.0)  # whose power has a slope
        of_shares = jnp.where((b > 0) & (middle > 0), size**b, 0.0)
        return jnp.sum(moved * off) - penalty * jnp.sum(of_shares)

    def step(i: Array, state: State) -> State:
        v, mean, square = state
        g = jax.grad(loss)(v, jnp.asarray(exponents)[i]).astype(np.float64)
        mean, square = 0.9 * mean + (1 - 0.9) * g, 0.999 * square + (1 - 0.999) * g * g
        count = (i + 1).astype(np.float64)
        size = jnp.sqrt(square / (1 - 0.999**count)) + 1e-8
        moved = v.astype(np.float64) - rate * (mean / (1 - 0.9**count)) / size
        return moved.astype(np.float32), mean, square

    zeros = jnp.zeros(w.shape, np.float64)
    v: Array = lax.fori_loop(0, len(exponents), step, (begin, zeros, zeros))[0]
    return v
