"""Torch models in GGUF files: the codes of that format's own tools, or weights that its layouts hold as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.choice import fits
from ...core.formats import FLOAT4_E2M1, IntegerFormat
from ...core.gguf_files import BLOCK, Blocks, Value, check_layout, stored, write_gguf
from ...core.granularity import PerGroup
from .files import Path
from .gguf import block_codes
from .quant_weight import QuantWeight, codes_of

HELD = {IntegerFormat(8): ("Q8_0", 0), IntegerFormat(4): ("Q4_0", 8), FLOAT4_E2M1: ("MXFP4", 0)}  # and what is added


def save_gguf(
    model: nn.Module,
    path: Path,
    layout: str = "Q8_0",
    metadata: Mapping[str, Value] | None = None,
    *,
    keep: Sequence[str] = (),
) -> dict[str, str]:
    """Writes the parameters and buffers of a model as a GGUF file, under the names of its ``state_dict``.

    Floats with two axes or more, whose last one is a multiple of 32, become blocks of ``layout``, with the codes that
    GGUF's own tools give (`samebits.core.gguf`). A `QuantWeight` keeps its codes where a layout has the same: int8 and
    int4 in groups of 32 with scales that are float16 numbers, mxfp4. All else stays float32, or float16, bfloat16.

    Args:
        layout: ``"Q8_0"``, ``"Q4_0"`` or ``"MXFP4"``.
        metadata: as `samebits.core.gguf_files.write_gguf`; ``general.architecture`` is ``"samebits"`` unless given.
        keep: patterns of names (`fnmatch`, or ``re:`` and a regular expression) of tensors that stay floats.
    Returns:
        The layout of each tensor, by name.
    Raises:
        ValueError: another layout, a pattern that fits nothing, a weight whose codes no layout holds, numbers that are
            not finite. TypeError: tensors of other dtypes. They name the tensor. Nothing is written then.
    """
    check_layout(layout)
    state = {name: value for name, value in model.state_dict().items() if value.dtype != torch.int64}  # counters
    for pattern in keep:
        if not any(fits(pattern, name) for name in state):
            raise ValueError(f"`keep`: '{pattern}' fits no tensor; tensors are {', '.join(state)}")
    tensors: dict[str, Any] = {}
    for name, value in state.items():
        stays = any(fits(pattern, name) for pattern in keep)
        try:
            tensors[name] = _stored(value, None if stays else layout)
        except ValueError as error:
            raise ValueError(f"`{name}`: {error.args[0]}") from error
    write_gguf(path, tensors, {"general.architecture": "samebits", **(metadata or {})})
    return {name: one.layout if isinstance(one, Blocks) else str(one.dtype) for name, one in tensors.items()}


def _stored(x: Tensor, layout: str | None) -> Any:
    """A tensor as the file has it."""
    if isinstance(x, QuantWeight):
        return _held(x)
    if layout is not None and x.is_floating_point() and x.ndim > 1 and x.shape[-1] % BLOCK == 0:
        codes, scale = block_codes(layout, x)
        return stored(layout, codes.cpu().numpy(), scale.cpu().numpy())
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:
        import ml_dtypes

        return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def _held(w: QuantWeight) -> Blocks:
    """The codes of a weight in the layout that has them."""
    q = w.quantizer
    layout, shift = HELD.get(q.format, (None, 0))
    by_block = isinstance(q.granularity, PerGroup) and q.granularity.size == BLOCK and q.granularity.axis in (-1, 1)
    if layout is None or not by_block or q.affine or w.transposed or w.dtype != torch.float32:
        raise ValueError(
            f"GGUF holds codes of int8, int4 and mxfp4 in groups of {BLOCK} without zero points, got {w!r}; write the "
            "float model instead"
        )
    codes = codes_of(w).cpu().numpy().astype(np.int16) + shift
    return stored(layout, codes, w.scale.cpu().numpy().reshape(*w.shape[:-1], -1))
