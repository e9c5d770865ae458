"""What it takes to make a quantizer again: one for several weights, and with the parameters of the one before it."""

import torch
from torch import Tensor, nn

from ..core.descriptions import QParams, Quantizer
from ..core.granularity import PerAxis, PerTensor, qparams_shape
from .quantizer import choose_qparams


def qparams_of_all(q: Quantizer, weights: list[Tensor]) -> QParams:
    """Parameters of several weights as if they were one.

    Raises:
        ValueError: a scale that is not per tensor or per axis.
    """
    match q.granularity:
        case PerTensor():
            return choose_qparams(q, torch.cat([w.detach().reshape(-1) for w in weights]))
        case PerAxis(axis=axis):
            rows = torch.cat([w.detach().movedim(axis, 0).flatten(1) for w in weights], dim=1)
            shape = qparams_shape(q.granularity, tuple(weights[0].shape))
            scale, zero_point, *_ = choose_qparams(q.replace(granularity=PerAxis(0)), rows)
            return QParams(scale.reshape(shape), None if zero_point is None else zero_point.reshape(shape))
        case _:
            raise ValueError(f"layers can share a scale per tensor or per axis, not {q.granularity}")


@torch.no_grad()
def adopt(old: nn.Module, fresh: nn.Module, loaded: set[str]) -> None:
    """Gives a quantizer the parameters and buffers of the one before it, with its own values but for those loaded."""
    before = dict(old.named_parameters(remove_duplicate=False)) | dict(old.named_buffers(remove_duplicate=False))
    kept = {name: before[name].detach().clone() for name in loaded if name in before}
    for holder, module in [(name, module) for name, module in fresh.named_modules(remove_duplicate=False)]:
        for table in (module._parameters, module._buffers):
            for leaf, tensor in table.items():
                given = before.get(f"{holder}.{leaf}" if holder else leaf)
                if (
                    tensor is None
                    or given is None
                    or isinstance(given, nn.Parameter) != isinstance(tensor, nn.Parameter)
                ):
                    continue
                if given.shape == tensor.shape:
                    given.copy_(tensor)
                else:
                    given.data = tensor.detach().to(given.device, given.dtype).clone()
                table[leaf] = given
    if kept:
        fresh.load_state_dict(kept, strict=False)
