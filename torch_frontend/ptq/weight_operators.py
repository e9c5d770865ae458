"""What operators of torch do with a `QuantWeight`: copies, moves, transpositions, rows and products keep the codes."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.granularity import PerAxis, PerGroup, PerTensor, PerToken
from ..arrays import without_autocast
from .products import dynamic_linear
from .quant_weight import FUNCTIONS, HANDLERS, QuantWeight, codes_of, described, values_of

aten = torch.ops.aten


def _alike(func: Any, w: QuantWeight, *args: Any, **kwargs: Any) -> QuantWeight:
    """The operator on each of the tensors."""
    return w.with_parts(lambda part: func(part, *args, **kwargs))


def _aliased(func: Any, w: QuantWeight, *args: Any) -> QuantWeight:
    """A view of all of it, whatever is said of its shape, which does not change."""
    return w.with_parts(aten.alias.default)


def _viewed(func: Any, w: QuantWeight, size: Any) -> Any:
    same = len(size) == w.ndim and all(n in (-1, have) for n, have in zip(size, w.shape, strict=True))
    return _aliased(func, w) if same else NotImplemented


def _moved(func: Any, w: QuantWeight, **kwargs: Any) -> Any:
    """To another device or dtype: the dtype is that which the values have, codes and scales keep theirs."""
    dtype = kwargs.pop("dtype", None)
    if dtype is not None and not dtype.is_floating_point:
        return NotImplemented
    device, blocking = kwargs.get("device"), kwargs.get("non_blocking", False)
    moved = w.with_parts(lambda part: aten._to_copy.default(part, device=device, non_blocking=blocking))
    return moved if dtype is None else moved.with_parts(lambda part: part, dtype=dtype)


def _transposed(func: Any, w: QuantWeight, *axes: int) -> Any:
    if w.ndim != 2 or (axes and {axis % 2 for axis in axes} != {0, 1}):
        return NotImplemented
    return w.with_parts(aten.alias.default, transposed=not w.transposed)


def _permuted(func: Any, w: QuantWeight, axes: list[int]) -> Any:
    return _transposed(func, w) if [axis % 2 for axis in axes] == [1, 0] else NotImplemented


def _copied(func: Any, w: Any, source: Any, non_blocking: bool = False) -> Any:
    """Codes and parameters from a weight of the same kind."""
    if not isinstance(w, QuantWeight):
        return NotImplemented
    if not isinstance(source, QuantWeight):
        raise ValueError(
            "a QuantWeight takes a QuantWeight, got a float tensor: load floats into the float model, then quantize it"
        )
    if described(w) != described(source) or w.shape != source.shape:
        raise ValueError(f"a QuantWeight takes one that is made alike, {w!r}, got {source!r}")
    w.codes.copy_(source.codes, non_blocking)
    w.scale.copy_(source.scale, non_blocking)
    if w.zero_point is not None and source.zero_point is not None:
        w.zero_point.copy_(source.zero_point, non_blocking)
    return w


def _sliced(func: Any, w: QuantWeight, axis: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    """Rows of codes, where every row has scales of its own, or all have one."""
    by_row = isinstance(w.quantizer.granularity, PerTensor | PerToken | PerGroup) or w.quantizer.granularity == PerAxis(
        0
    )
    whole = isinstance(w.quantizer.granularity, PerGroup) and w.quantizer.granularity.axis % w.ndim == 0
    if axis % w.ndim or w.transposed or w.ndim < 2 or not by_row or whole:
        return NotImplemented
    return w.with_parts(lambda part: func(part, 0, start, end, step) if part.ndim else aten.alias.default(part))


def _mm(func: Any, x: Any, w: Any) -> Any:
    return _times(None, x, w)


def _addmm(func: Any, bias: Any, x: Any, w: Any, beta: float = 1, alpha: float = 1) -> Any:
    if beta != 1 or alpha != 1 or bias.ndim != 1:
        return NotImplemented
    return _times(bias, x, w)


def _times(bias: Tensor | None, x: Any, w: Any) -> Any:
    """``x @ w.T + bias`` for the transposition of a weight of codes that quantizes what it meets."""
    if not isinstance(w, QuantWeight) or isinstance(x, QuantWeight) or not w.transposed or w.act_quant is None:
        return NotImplemented
    with torch.no_grad():
        return dynamic_linear(w.act_quant, x, w.quantizer, codes_of(w), w.qparams, w.dtype, bias)


def _linear(func: Any, x: Any, w: Any, bias: Any = None) -> Any:
    if not isinstance(w, QuantWeight) or isinstance(x, QuantWeight) or w.transposed or w.act_quant is None:
        return NotImplemented
    return _times(bias, x, w.with_parts(aten.alias.default, transposed=True))


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``torch.nn.functional.embedding``: of a weight with scales by row, only the rows that are asked for are made.

    ``max_norm`` would change the weight: TypeError.
    """
    if max_norm is not None:
        raise TypeError(f"`max_norm` must be None for a QuantWeight, which it would change, got {max_norm}")
    if isinstance(weight, QuantWeight) and weight.quantizer.granularity in (PerAxis(0), PerToken()):
        rows = weight.with_parts(lambda part: part[input.reshape(-1)], transposed=False)
        return values_of(rows).reshape(*input.shape, weight.length)
    return F.embedding(input, weight.dequantize(), padding_idx, None, norm_type, scale_grad_by_freq, sparse)


def _emptied(func: Any, w: QuantWeight, device: Any = None, dtype: Any = None, **_: Any) -> Any:
    """Of a weight without data one on a device, to be loaded into; else values are."""
    if w.device.type != "meta" or device is None or dtype not in (None, w.dtype):
        return NotImplemented
    return w.with_parts(lambda part: torch.empty_like(part, device=device))


def share_memory_(weight: QuantWeight) -> QuantWeight:
    """``torch.Tensor.share_memory_`` of the tensors inside."""
    for part in weight.__tensor_flatten__()[0]:
        getattr(weight, part).share_memory_()
    return weight


def is_shared(weight: QuantWeight) -> bool:
    """``torch.Tensor.is_shared`` of the tensors inside."""
    return all(getattr(weight, part).is_shared() for part in weight.__tensor_flatten__()[0])


def dequantize(weight: QuantWeight) -> Tensor:
    """`QuantWeight.dequantize`."""
    with without_autocast(weight):
        return values_of(weight)


HANDLERS.update(
    {
        aten.detach.default: _alike,
        aten.clone.default: lambda func, w, **_: w.with_parts(lambda part: part.clone()),
        aten.alias.default: _aliased,
        aten.empty_like.default: _emptied,
        aten.view.default: _viewed,
        aten._to_copy.default: _moved,
        aten.t.default: _transposed,
        aten.transpose.int: _transposed,
        aten.permute.default: _permuted,
        aten.copy_.default: _copied,
        aten.slice.Tensor: _sliced,
        aten.mm.default: _mm,
        aten.addmm.default: _addmm,
        aten.linear.default: _linear,
    }
)
FUNCTIONS[F.embedding] = embedding
FUNCTIONS[Tensor.dequantize] = dequantize
FUNCTIONS[Tensor.share_memory_] = share_memory_
FUNCTIONS[Tensor.is_shared] = is_shared
FUNCTIONS[torch.dequantize] = dequantize
