"""What it takes to make a quantizer again: one for several weights, and with the parameters of the one before it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.descriptions import QParams, Quantizer
from ..core.granularity import PerAxis, PerTensor, qparams_shape
from .components.kept import kept
from .components.learning import has_state, start
from .quantizer import choose_qparams
from .tensor_quantizer import TensorQuantizer


def qparams_of_all(q: Quantizer, weights: list[Tensor]) -> QParams:
    """Parameters of several weights as if they were one.

    Raises:
        ValueError: a scale that is not per tensor or per axis.
    """
    if len(weights) == 1:
        return choose_qparams(q, weights[0].detach())
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


def begin(quantizer: nn.Module, first: Callable[[], QParams]) -> None:
    """Begins what is learned and not set yet with the first parameters: of a `TensorQuantizer`, or of components."""
    q: Quantizer = quantizer.quantizer  # type: ignore[assignment]  # both have one
    if isinstance(quantizer, TensorQuantizer):
        if q.scale.scale_value is None:
            quantizer.begin(first())
        return
    parts = [getattr(quantizer, name, None) for name in ("scaling_impl", "zero_point_impl")]
    unset: list[Any] = [part for part in parts if hasattr(part, "is_set")]
    if any(not has_state(part) for part in unset):
        scale, zero_point = first()[:2]
        for part in unset:
            start(part, kept(q, scale) if part is parts[0] else zero_point)


@torch.no_grad()
def adopt(old: nn.Module, fresh: nn.Module, loaded: set[str]) -> None:
    """Gives a quantizer the parameters and buffers of the one before it, with its own values but for those loaded.

    Those on the device ``meta`` are replaced where the new ones are not.
    """
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
                if given.is_meta and not tensor.is_meta:  # it never had a value, so nothing can be written in place
                    continue
                if given.shape == tensor.shape:
                    given.copy_(tensor)
                else:
                    given.data = tensor.detach().to(given.device, given.dtype).clone()
                table[leaf] = given
    if kept:
        fresh.load_state_dict(kept, strict=False)
