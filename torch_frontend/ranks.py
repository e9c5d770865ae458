"""Statistics of the whole batch where several processes train one model (``DistributedDataParallel``).

Each process, a *rank*, sees a part of the batch. What a state learns in training it learns from all parts, so that it
has the same bits on every rank: `choose_over_ranks`. In a forward pass of ``DistributedDataParallel`` alone, over its
process group; where other things run in several processes nothing is exchanged. Every rank must then call the same
quantizers in the same order, as for any collective operation.
"""

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from ..core.descriptions import QParams, Quantizer
from ..core.granularity import PerAxis, PerTensor
from ..core.scales import ScaleSource, Statistic
from .quantizer import choose_qparams


def choose_over_ranks(q: Quantizer, x: Tensor) -> QParams:
    """`choose_qparams` of the batch whose part is ``x``.

    From the smallest and largest elements it is exactly that of all parts together. Of other statistics it is the mean
    over the ranks, in float32 (float64 for such ``x``), also of the zero points. It is `choose_qparams` where scales
    are no state, and where blocks are other than the whole tensor or an axis: that is a weight, which all ranks share.

    Raises:
        TypeError, ValueError: as `choose_qparams`; for NaN and infinities on every rank, of means on the one that has
            them.
    """
    states = q.scale.source not in (ScaleSource.STATISTIC, ScaleSource.CONSTANT)
    if not (states and may_share() and isinstance(q.granularity, PerTensor | PerAxis)):
        return choose_qparams(q, x)
    if q.scale.statistic in (Statistic.EXTREMES, Statistic.SIGNED_ABSMAX) and x.ndim > isinstance(
        q.granularity, PerAxis
    ):
        return choose_qparams(q, _ends(q, x))
    chosen = choose_qparams(q, x)
    kind = chosen.scale.dtype
    return QParams(*(None if p is None else mean_over_ranks(p.to(kind)) for p in chosen[:2]))


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of what the ranks hold, the same bits on each; outside of ``DistributedDataParallel`` the value."""
    mean: Tensor = torch.ops.samebits.over_ranks(value, False) if may_share() else value
    return mean


def may_share() -> bool:
    """Whether there are other processes, which may train the same model."""
    return distributed.is_available() and distributed.is_initialized()


def _ends(q: Quantizer, x: Tensor) -> Tensor:
    """An array with the blocks of ``x``, each of two elements: the smallest and the largest of it on all ranks."""
    x = x.detach() if isinstance(q.granularity, PerAxis) else x.detach().reshape(-1)
    axis = q.granularity.axis % x.ndim if isinstance(q.granularity, PerAxis) else None
    others = [d for d in range(x.ndim) if d != axis]
    if x.numel() == 0:  # has no ends, and 0 belongs to every range
        x = x.new_zeros([n if d == axis else 1 for d, n in enumerate(x.shape)])
    both = torch.stack([-x.amin(others, keepdim=True), x.amax(others, keepdim=True)])
    low, high = torch.ops.samebits.over_ranks(both, True)
    return torch.cat([-low, high], others[0])


def _over_ranks(value: Tensor, largest: bool) -> Tensor:
    """The largest, NaN if there is one, or the mean of what the ranks hold: computed by each, from all values."""
    model = DistributedDataParallel._active_ddp_module
    if model is None:
        return value.clone()
    parts = [torch.empty_like(value) for _ in range(distributed.get_world_size(model.process_group))]
    distributed.all_gather(parts, value.contiguous(), group=model.process_group)
    return torch.stack(parts).amax(0) if largest else torch.stack(parts).mean(0)


_LIBRARY = torch.library.Library("samebits", "FRAGMENT")  # type: ignore[no-untyped-call]  # lives as its operator does
_LIBRARY.define("over_ranks(Tensor value, bool largest) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl("over_ranks", _over_ranks, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_LIBRARY.impl("over_ranks", lambda value, largest: torch.empty_like(value), "Meta")  # type: ignore[no-untyped-call]
