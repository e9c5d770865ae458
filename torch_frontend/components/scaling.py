"""Where scales come from: ``scaling_impl``.

A scaling gives the scale of a tensor, ``scaling_impl(x)``, of a shape that broadcasts against it. By itself it gives
the magnitude that a scale is made of; a tensor quantizer that takes it has it divide that by the largest code, so that
``value``, what is kept and learned, is a scale from then on. A scaling is part of one quantizer.

Common arguments:

- ``scaling_init``: the magnitude that the scale begins with, a number or a tensor of ``scaling_shape``.
- ``scaling_shape``: shape of the scale: ``()`` or ``(out, 1, 1, 1)`` and the like.
- ``granularity``: which elements share a scale, instead of a shape.
- ``scaling_stats_impl``: which number of the tensor it is made of; None for `AbsMax`.
- ``restrict_scaling_impl``: which scales are allowed; None for `FloatRestrictValue`.
- ``scaling_min_val``: the smallest magnitude; None for the smallest normal number as smallest scale.

State is float32 and stays so, NaN until it is set.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...core.choice import check_count
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import Granularity, PerGroup
from ...core.scales import ScaleSource
from ..arrays import wide_dtype
from ..quantizer import choose_qparams
from ..scaling import restrict_scale
from . import kept
from .kept import Shape
from .learning import begin, looks, train
from .restrict import FloatRestrictValue
from .statistics import AbsMax


class ConstScaling(nn.Module):
    """A scale that stays: a number, or a tensor, which is then the buffer ``value``.

    Args:
        scaling_init, scaling_shape, restrict_scaling_impl, scaling_min_val, granularity: see the module.
    Raises:
        ValueError: a magnitude that is not positive and finite, or of another shape.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    scaling_shape: Shape | None
    value: Tensor | None
    forward, looks, _apply = kept.forward, kept.never, kept.apply_precisely

    def __init__(
        self,
        scaling_init: float | Tensor,
        scaling_shape: Shape | None = None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
        granularity: Granularity | None = None,
    ) -> None:
        super().__init__()
        restrict = restrict_scaling_impl or FloatRestrictValue()
        shape = None if scaling_shape is None else tuple(scaling_shape)
        self.scaling_init, self.first = scaling_init, kept.first_value(scaling_init, shape)
        is_tensor = isinstance(scaling_init, Tensor)  # which is no part of a description
        source = ScaleSource.LEARNED if is_tensor else ScaleSource.CONSTANT
        kept.share(self, source, tuple(self.first.shape), granularity, restrict, scaling_min_val)
        self.register_buffer("value", kept.scale_of(self.quantizer, self.first) if is_tensor else None)

    def join(self, quantizer: Quantizer) -> None:
        """Becomes part of a quantizer. ValueError: of another one already."""
        kept.join(self, quantizer)
        if self.value is not None:
            self.value.copy_(kept.scale_of(quantizer, self.first))

    def used(self, x: Tensor, chosen: QParams | None = None) -> Tensor:
        """The scale, in the wide dtype of ``x``."""
        if self.value is None:
            scale: Tensor = choose_qparams(self.quantizer, x).scale
            return scale
        return restrict_scale(self.quantizer, self.value.to(wide_dtype(x.dtype)).expand(kept.shape_for(self, x)))


class ParameterScaling(nn.Module):
    """A scale that is learned: the parameter ``value``.

    Args:
        scaling_init, scaling_shape, restrict_scaling_impl, scaling_min_val, granularity: see the module.
    Raises:
        ValueError: a magnitude that is not positive and finite, or of another shape.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    scaling_shape: Shape | None
    forward, looks, _apply = kept.forward, kept.never, kept.apply_precisely

    def __init__(
        self,
        scaling_init: float | Tensor,
        scaling_shape: Shape | None = None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
        granularity: Granularity | None = None,
    ) -> None:
        super().__init__()
        restrict = restrict_scaling_impl or FloatRestrictValue()
        shape = None if scaling_shape is None else tuple(scaling_shape)
        self.scaling_init, self.first = scaling_init, kept.first_value(scaling_init, shape)
        kept.share(self, ScaleSource.LEARNED, tuple(self.first.shape), granularity, restrict, scaling_min_val)
        q = self.quantizer
        self.value = nn.Parameter(kept.kept(q, kept.scale_of(q, self.first)))

    def join(self, quantizer: Quantizer) -> None:
        """Becomes part of a quantizer. ValueError: of another one already."""
        kept.join(self, quantizer)
        with torch.no_grad():
            self.value.copy_(kept.kept(quantizer, kept.scale_of(quantizer, self.first)))

    def used(self, x: Tensor, chosen: QParams | None = None) -> Tensor:
        """The scale, in the wide dtype of ``x``, with a gradient towards the parameter."""
        return kept.handed_on(self, x, self.value).expand(kept.shape_for(self, x))


class StatsFromParameterScaling(nn.Module):
    """The statistic of the tensor at hand, at every call; no state, a constant to autograd.

    Args:
        scaling_stats_impl, scaling_shape, restrict_scaling_impl, scaling_min_val, granularity: see the module.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    scaling_shape: Shape | None
    forward, looks, join, used = kept.forward, kept.always, kept.join, kept.statistic

    def __init__(
        self,
        scaling_stats_impl: nn.Module | None = None,
        scaling_shape: Shape | None = None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
        granularity: Granularity | None = None,
    ) -> None:
        super().__init__()
        parts = restrict_scaling_impl or FloatRestrictValue(), scaling_min_val, scaling_stats_impl or AbsMax()
        kept.share(self, ScaleSource.STATISTIC, scaling_shape, granularity, *parts)


class RuntimeDynamicGroupStatsScaling(nn.Module):
    """The statistic of each group of the tensor at hand, at every call; no state, a constant to autograd.

    Args:
        group_size: how many elements share a scale; ``group_dim``: along which axis.
        scaling_stats_impl, restrict_scaling_impl, scaling_min_val: see the module.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    scaling_shape: Shape | None
    forward, looks, join, used = kept.forward, kept.always, kept.join, kept.statistic

    def __init__(
        self,
        group_size: int,
        group_dim: int = -1,
        scaling_stats_impl: nn.Module | None = None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
    ) -> None:
        super().__init__()
        parts = restrict_scaling_impl or FloatRestrictValue(), scaling_min_val, scaling_stats_impl or AbsMax()
        kept.share(self, ScaleSource.STATISTIC, None, PerGroup(group_size, group_dim), *parts)


class ParameterFromStatsFromParameterScaling(nn.Module):
    """A scale that is learned, the parameter ``value``: first the statistic of the first tensor seen in training.

    Args:
        scaling_stats_impl, scaling_shape, restrict_scaling_impl, scaling_min_val, granularity: see the module.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    scaling_shape: Shape | None
    forward, looks, join, used = kept.forward, looks, kept.join, kept.state
    train, _apply, _load_from_state_dict = train, kept.apply_precisely, kept.load

    def __init__(
        self,
        scaling_stats_impl: nn.Module | None = None,
        scaling_shape: Shape | None = None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_min_val: float | None = None,
        granularity: Granularity | None = None,
    ) -> None:
        super().__init__()
        parts = restrict_scaling_impl or FloatRestrictValue(), scaling_min_val, scaling_stats_impl or AbsMax()
        kept.share(self, ScaleSource.LEARNED, scaling_shape, granularity, *parts)
        begin(self, ScaleSource.LEARNED, self.scaling_shape, steps=0, counts=False)


class RuntimeStatsScaling(nn.Module):
    """In training the statistic of the tensor at hand, in evaluation the average of those seen: the buffer ``value``.

    Args:
        scaling_stats_impl, scaling_shape, restrict_scaling_impl, scaling_min_val, granularity: see the module.
        scaling_stats_momentum: weight of the new statistic in the average; None for the mean of all.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    scaling_shape: Shape | None
    forward, looks, join, used = kept.forward, looks, kept.join, kept.state
    train, _apply, _load_from_state_dict = train, kept.apply_precisely, kept.load

    def __init__(
        self,
        scaling_stats_impl: nn.Module | None = None,
        scaling_shape: Shape | None = None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_stats_momentum: float | None = 0.1,
        scaling_min_val: float | None = None,
        granularity: Granularity | None = None,
    ) -> None:
        super().__init__()
        source = ScaleSource.RUNNING_STATISTIC
        parts = restrict_scaling_impl or FloatRestrictValue(), scaling_min_val, scaling_stats_impl or AbsMax()
        said = kept.averages(scaling_stats_momentum)
        kept.share(self, source, scaling_shape, granularity, *parts, **said)
        begin(self, source, self.scaling_shape, steps=0, counts=scaling_stats_momentum is None)


class ParameterFromRuntimeStatsScaling(nn.Module):
    """For so many tensors of training as `RuntimeStatsScaling`; then that average is the parameter ``value``, learned.

    Args:
        collect_stats_steps: how many, at least 1.
        scaling_stats_impl, scaling_shape, restrict_scaling_impl, scaling_min_val, granularity: see the module.
        scaling_stats_momentum: weight of the new statistic in the average; None for the mean of all.
    """

    fields: dict[str, Any]
    quantizer: Quantizer
    scaling_shape: Shape | None
    forward, looks, join, used = kept.forward, looks, kept.join, kept.state
    train, _apply, _load_from_state_dict = train, kept.apply_precisely, kept.load

    def __init__(
        self,
        collect_stats_steps: int = 300,
        scaling_stats_impl: nn.Module | None = None,
        scaling_shape: Shape | None = None,
        restrict_scaling_impl: nn.Module | None = None,
        scaling_stats_momentum: float | None = 0.1,
        scaling_min_val: float | None = None,
        granularity: Granularity | None = None,
    ) -> None:
        super().__init__()
        source = ScaleSource.STATISTIC_THEN_LEARNED
        parts = restrict_scaling_impl or FloatRestrictValue(), scaling_min_val, scaling_stats_impl or AbsMax()
        check_count("collect_stats_steps", collect_stats_steps, 1)
        said = {"steps": collect_stats_steps} | kept.averages(scaling_stats_momentum)
        kept.share(self, source, scaling_shape, granularity, *parts, **said)
        begin(self, source, self.scaling_shape, steps=collect_stats_steps, counts=True)
