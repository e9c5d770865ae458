"""What quantizers compute on tensors, compiled apart from the model around them."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.descriptions import QParams, Quantizer
from .eager_scales import takes_absmax
from .quantizer import choose_qparams, fake_quantize


class Programs(NamedTuple):
    """`choose_qparams` and `fake_quantize` of one quantizer."""

    choose: Callable[[Tensor], QParams]
    fake: Callable[[Tensor, QParams], Tensor]


@lru_cache
def programs(q: Quantizer, **options: Any) -> Programs:
    """The programs of a quantizer: one for all modules that have it, of whatever shapes.

    Compiled anew for another rank or dtype, for axes of length 1, and with gradients. Where the scale is the largest
    magnitude over a number, eager code finds it: its few operations take less time than calling a program does.

    Args:
        options: of ``torch.compile``.
    """

    def choose(x: Tensor) -> QParams:
        return choose_qparams(q, x)

    def fake(x: Tensor, qparams: QParams) -> Tensor:
        return fake_quantize(q, x, qparams)

    settings = {"dynamic": True, "isolate_recompiles": True, **options}
    return Programs(choose if takes_absmax(q) else torch.compile(choose, **settings), torch.compile(fake, **settings))
