"""AdaRound: which of the two codes next to each weight it takes is learned; see `samebits.core.adaround`.

Gradients are autograd's, through `fake_quantize` and `rounding_share`.
"""

from typing import Any

import torch
from torch import Tensor

from ...core import checks
from ...core.descriptions import QParams, Quantizer
from ...core.directions import Rounding
from ...core.layerwise import check_adaround, check_hessian, penalty_exponents
from ..arguments import check_tensor
from ..arrays import dtype_name
from ..learned_rounding import initial_rounding, rounding_share
from ..quantizer import choose_qparams, dequantize, fake_quantize, quantize
from .gptq import output_error


def adaround(
    q: Quantizer, w: Tensor, hessian: Tensor, steps: int = 500, rate: float = 0.03, penalty: float = 3.0
) -> tuple[Tensor, QParams, Tensor]:
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
    check_tensor("w", w)
    checks.check_float("w", dtype_name(w.dtype))
    check_adaround(q, tuple(w.shape), steps, rate, penalty)
    check_hessian(tuple(hessian.shape), w.shape[1], bool(hessian.isfinite().all()))
    w = w.detach().float()
    qparams = choose_qparams(q, w)
    nearest = quantize(q, w, qparams), qparams, fake_quantize(q, w, qparams)
    worst = output_error(w, nearest[2], hessian)
    if not worst:
        return nearest
    hard = q.replace(rounding=Rounding.LEARNED, soft=False)
    v = _learned(hard.replace(soft=True), w, qparams, hessian / worst * w.numel(), steps, rate, penalty)
    codes = quantize(hard, w, qparams._replace(rounding=v))
    w_hat = dequantize(q, codes, qparams)
    return (codes, qparams, w_hat) if output_error(w, w_hat, hessian) < worst else nearest


@torch.enable_grad()
def _learned(
    q: Quantizer, w: Tensor, qparams: QParams, weight: Tensor, steps: int, rate: float, penalty: float
) -> Tensor:
    """The parameter of rounding after all steps."""
    v = initial_rounding(q, w, qparams).requires_grad_()
    moments: dict[str, Any] = {"mean": torch.zeros_like(v, dtype=torch.float64)}
    moments["square"] = torch.zeros_like(moments["mean"])
    for step, b in enumerate(penalty_exponents(steps), 1):
        w_hat = fake_quantize(q, w, qparams._replace(rounding=v))
        with torch.no_grad():
            of_error = torch.mm(w_hat.double() - w, weight).float()
        total = (w_hat * of_error).sum()
        if b:
            middle = 2 * rounding_share(q.learned_rounding, v).double() - 1
            total = total - penalty * middle.abs().pow(b).sum()
        (g,) = torch.autograd.grad(total, v)
        with torch.no_grad():
            g = g.double()
            moments["mean"].lerp_(g, 1 - 0.9)
            moments["square"].mul_(0.999).addcmul_(g, g, value=1 - 0.999)
            size = (moments["square"] / (1 - 0.999**step)).sqrt_().add_(1e-8)
            v.copy_(v.double() - rate * (moments["mean"] / (1 - 0.9**step)) / size)
    return v.detach()
