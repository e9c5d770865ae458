"""Statistics of the whole batch where several processes train one model (``DistributedDataParallel``).

Each process, a *rank*, sees a part of the batch. What a state learns in training it learns from all parts, so that it
has the same bits on every rank: `choose_over_ranks`. In a forward pass of ``DistributedDataParallel`` alone, over its
process group; where other things run in several processes nothing is exchanged. Every rank must then call the same
quantizers in the same order, as for any collective operation.
"""

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..core.descriptions import QParams, Quantizer
from ..core.granularity import PerAxis, PerTensor
from ..core.scales import Statistic
from .operators import LIBRARY
from .quantizer import choose_qparams


def choose_over_ranks(q: Quantizer, x: Tensor) -> QParams:
    """`choose_qparams` of the batch whose part is ``x``.

    From the smallest and largest elements it is exactly that of all parts together. Of other statistics it is the mean
    over the ranks, in float32 (float64 for such ``x``), also of the zero points. Where blocks are other than the whole
    tensor or an axis, the tensor is a weight, which all ranks have in common, and it is `choose_qparams`.

    Raises:
        TypeError, ValueError: as `choose_qparams`; for NaN and infinities on every rank, of means on the one that has
            them.
    """
    if not may_share() or not isinstance(q.granularity, PerTensor | PerAxis):
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


def check_may_learn(module: object, state: Tensor | None) -> None:
    """Whether what a statistic writes into a state stays there.

    Raises:
        RuntimeError: a parameter in a copy that ``DataParallel`` made, where it is lost; or one of yet unknown shape
            inside ``DistributedDataParallel``, which keeps the shapes that parameters had when it was made.
    """
    wrapped = may_share() and DistributedDataParallel._active_ddp_module is not None
    if wrapped and isinstance(state, nn.Parameter) and not state.numel():
        raise RuntimeError(
            "a learned scale of yet unknown shape cannot be set inside DistributedDataParallel: run a batch in "
            "training mode before it wraps the module"
        )
    if getattr(module, "_is_replica", False) and state is not None and state.requires_grad:
        raise RuntimeError(
            "a scale that is learned takes its first values from statistics, and cannot in the copies of DataParallel: "
            "run these batches in training mode before it wraps the module, or use DistributedDataParallel"
        )


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


LIBRARY.define("over_ranks(Tensor value, bool largest) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.impl("over_ranks", _over_ranks, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
LIBRARY.impl("over_ranks", lambda value, largest: torch.empty_like(value), "Meta")  # type: ignore[no-untyped-call]
