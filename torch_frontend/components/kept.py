"""What the scalings have in common: functions that stand in their classes as methods.

``m`` is a scaling: a module with ``fields``, ``granularity``, ``quantizer`` (what it is by itself, until it is part of
another) and, where it has state, what `learning.begin` gives it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...core.choice import check_number
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import Granularity, PerTensor, qparams_shape
from ...core.scales import ScaleSource
from .. import devices
from ..arrays import is_concrete, wide_dtype
from ..elementary import log2
from ..learned_sigma import scale_at_sigma
from ..quantizer import choose_qparams
from ..ranks import choose_over_ranks
from ..scaling import divisor, restrict_scale, scale_of_logarithm
from ..states import replaced
from .description import alone, check_says, fields_of, granularity_of, number, precise
from .learning import learned, loaded, looks, shaped

Shape = tuple[int, ...]


def share(
    m: Any,
    source: ScaleSource,
    shape: Shape | None,
    granularity: Granularity | None,
    restrict_scaling_impl: nn.Module,
    scaling_min_val: float | None,
    scaling_stats_impl: nn.Module | None = None,
    **said: Any,
) -> None:
    """Gives a scaling its parts, and what it says of a description.

    Raises:
        TypeError: a part that is no component. ValueError: a shape or a smallest magnitude that cannot be.
    """
    check_says("restrict_scaling_impl", restrict_scaling_impl, "FloatRestrictValue", "PowerOfTwoRestrictValue")
    if scaling_stats_impl is not None:
        check_says("scaling_stats_impl", scaling_stats_impl, "AbsMax", "AbsPercentile")
        m.scaling_stats_impl = scaling_stats_impl
    if scaling_min_val is not None and not 0 < scaling_min_val < math.inf:
        raise ValueError(f"`scaling_min_val` must be None or positive and finite, got {scaling_min_val!r}")
    if shape is not None:
        m.scaling_shape = tuple(shape)
        granularity = granularity_of(m.scaling_shape) if granularity is None else granularity
    else:
        m.scaling_shape = () if granularity is None or isinstance(granularity, PerTensor) else None
    m.granularity = PerTensor() if granularity is None else granularity
    m.restrict_scaling_impl, m.scaling_min_val = restrict_scaling_impl, scaling_min_val
    m.fields = fields_of(scaling_stats_impl, restrict_scaling_impl) | {"source": source} | said
    m.is_part = False
    m.quantizer = alone(m)


def join(m: Any, quantizer: Quantizer) -> None:
    """Becomes part of a quantizer.

    Raises:
        ValueError: it is part of another one.
    """
    if m.is_part and m.quantizer != quantizer:
        raise ValueError(
            f"a {type(m).__name__} is part of one quantizer, {m.quantizer}, and cannot be of another: {quantizer}; "
            "make one for each"
        )
    m.quantizer, m.is_part = quantizer, True
    for name in ("scaling_stats_impl", "zero_point_stats_impl"):
        part: Any = getattr(m, name, None)
        if hasattr(part, "join"):
            part.join(quantizer)


def averages(scaling_stats_momentum: float | None) -> dict[str, Any]:
    """What is said of an average whose new values have this weight; None for the mean. ValueError: not in (0, 1]."""
    if scaling_stats_momentum is not None and not 0 < scaling_stats_momentum <= 1:
        raise ValueError(f"the momentum of statistics must be None or in (0, 1], got {scaling_stats_momentum!r}")
    momentum = None if scaling_stats_momentum is None else 1 - scaling_stats_momentum
    return {"momentum": momentum, "batch_in_training": True}


def first_value(scaling_init: float | Tensor, shape: Shape | None) -> Tensor:
    """The magnitude that a scale begins with, of its shape.

    Raises:
        ValueError: not positive and finite, or another shape.
    """
    if not isinstance(scaling_init, Tensor):
        check_number("scaling_init", scaling_init)
    first = number(scaling_init)
    if first.ndim == 0 and shape is not None:
        first = first.expand(shape).clone()
    if shape is not None and first.shape != shape:
        raise ValueError(
            f"`scaling_init` must be a number, or of `scaling_shape` {shape}, got shape {tuple(first.shape)}"
        )
    given = torch.tensor(scaling_init, device="cpu") if not isinstance(scaling_init, Tensor) else scaling_init.detach()
    if is_concrete(given) and not bool(((given > 0) & (given < torch.inf)).all()):
        raise ValueError(f"`scaling_init` must be positive and finite, got {scaling_init!r}")
    return first


def scale_of(quantizer: Quantizer, magnitude: Tensor) -> Tensor:
    """The scale of a magnitude."""
    return restrict_scale(quantizer, devices.quotient(magnitude, torch.full_like(magnitude, divisor(quantizer))))


def kept(quantizer: Quantizer, scale: Tensor) -> Tensor:
    """What a state keeps of a scale: of one that is learned as a logarithm, that."""
    return log2(scale) if quantizer.scale.learns_logarithm else scale


def handed_on(m: Any, x: Tensor, state: Tensor) -> Tensor:
    """The scale that is used instead of a state, in the wide dtype of ``x``, with a gradient towards the state."""
    q, scale = m.quantizer, state.to(wide_dtype(x.dtype))
    value = (scale_of_logarithm if q.scale.learns_logarithm else restrict_scale)(q, scale.detach())
    return replaced(scale, value, logarithm=q.scale.learns_logarithm)


def statistic(m: Any, x: Tensor, chosen: QParams | None = None) -> Tensor:
    """The scale of ``x``, in its wide dtype.

    Args:
        chosen: what the statistic of ``x`` gives, if that is known already.
    """
    sigma = getattr(m.scaling_stats_impl, "sigma", None)
    if sigma is not None:
        return scale_at_sigma(m.quantizer, x, sigma)
    scale: Tensor = (choose_qparams(m.quantizer, x) if chosen is None else chosen).scale
    return scale


def state(m: Any, x: Tensor, chosen: QParams | None = None) -> Tensor:
    """The scale that the state gives for ``x``, in its wide dtype; while training, the state learns from it first.

    Args:
        chosen: what the statistic of ``x`` gives, if that is known already.
    Raises:
        RuntimeError: no state yet, and not training.
    """
    new = None
    if looks(m):
        choose = choose_over_ranks if m.training else choose_qparams
        given = choose(m.quantizer, x) if chosen is None else chosen
        new = kept(m.quantizer, given.scale)
    return handed_on(m, x, learned(m, new))


def forward(m: Any, x: Tensor, threshold: Tensor | float | None = None) -> Tensor:
    """The scale, in the wide dtype of ``x``; divided by ``threshold``, if there is one.

    Raises:
        RuntimeError: no state yet, and not training.
    """
    scale: Tensor = m.used(x)
    if threshold is None:
        return scale
    given = threshold if isinstance(threshold, Tensor) else torch.full_like(scale, threshold)
    return devices.quotient(scale, given.to(scale.dtype))


def always(m: Any) -> bool:
    """Whether the next call needs the statistic of its tensor: each does."""
    return True


def never(m: Any) -> bool:
    """Whether the next call needs the statistic of its tensor: none does."""
    return False


def shape_for(m: Any, x: Tensor) -> Shape:
    """The shape of the scales of ``x``."""
    return qparams_shape(m.granularity, tuple(x.shape))


def apply_precisely(m: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Moves the module; its state stays float32."""
    return nn.Module._apply(m, precise(fn), recurse)  # type: ignore[no-untyped-call]


def load(
    m: Any,
    state_dict: Any,
    prefix: Any,
    local_metadata: Any,
    strict: Any,
    missing_keys: Any,
    unexpected_keys: Any,
    error_msgs: Any,
) -> None:
    """Loads state, in place; of unknown shape until then, it takes that of what is loaded, and the other way round."""
    stored = state_dict.get(prefix + "value")
    stored = stored if isinstance(stored, Tensor) else None  # torch says what else it is
    shaped(m, stored)
    if stored is not None and not stored.numel() and m.value.numel():
        state_dict[prefix + "value"] = torch.full_like(m.value, torch.nan)  # of torch's own copy
    said = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
    nn.Module._load_from_state_dict(m, state_dict, prefix, *said)
    loaded(m)
