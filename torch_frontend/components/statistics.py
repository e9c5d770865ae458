"""Which number of a tensor its scale comes from: ``scaling_stats_impl``; and its zero point: ``zero_point_stats_impl``.

What they compute, stands in `samebits.core.scales.Statistic` and docs/scales.md. Results are constants to autograd.

Common argument ``granularity``: which elements have a number in common; that of the scale, where it is part of one.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...core.descriptions import Quantizer, ZeroPoint
from ...core.formats import IntegerFormat
from ...core.granularity import Granularity, PerTensor
from ...core.scales import Statistic
from ..arrays import widened
from ..ranges import average_range, percentile_range
from ..statistics import absmax, min_max, positive_peak
from .description import number, precise

WHOLE = PerTensor()


def described(granularity: Granularity, zero_point: ZeroPoint = ZeroPoint.NONE, **fields: Any) -> Quantizer:
    """What a statistic is the scale of, by itself."""
    return Quantizer(format=IntegerFormat(8), granularity=granularity, zero_point=zero_point).replace(**fields)


def describe(m: Any, granularity: Granularity, zero_point: ZeroPoint = ZeroPoint.NONE, **fields: Any) -> None:
    """Gives a statistic what it says of a description, and one by itself."""
    m.fields, m.described = fields, described(granularity, zero_point, **fields)


def adopt(m: Any, quantizer: Quantizer) -> None:
    """Becomes part of a quantizer: takes over which elements share a scale."""
    m.described = m.described.replace(granularity=quantizer.granularity)


def kept_precise(m: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Moves the module; what it learns stays float32."""
    return nn.Module._apply(m, precise(fn), recurse)  # type: ignore[no-untyped-call]


class AbsMax(nn.Module):
    """The largest magnitude."""

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity, statistic=Statistic.EXTREMES)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of ``x``."""
        return absmax(x.detach(), self.described.granularity)


class AbsMinMax(nn.Module):
    """The length of the interval from the smallest to the largest element, which includes 0."""

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity, statistic=Statistic.EXTREMES)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of ``x``."""
        low, high = min_max(x.detach(), self.described.granularity)
        return high - low


class SignedAbsMax(nn.Module):
    """The largest magnitude, negative where a positive number has it: scales are negative there."""

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity, statistic=Statistic.SIGNED_ABSMAX)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of ``x``."""
        size = absmax(x.detach(), self.described.granularity)
        return size.where(~positive_peak(x.detach(), self.described.granularity), -size)


class AbsPercentile(nn.Module):
    """A percentile of the magnitudes.

    Args:
        high_percentile_q: in percent, in (0, 100].
    """

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, high_percentile_q: float = 99.999, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity, statistic=Statistic.PERCENTILE, percentile=high_percentile_q)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return percentile_range(self.described, widened(x.detach()))[1]

    def extra_repr(self) -> str:
        """The percentile."""
        return str(self.fields["percentile"])


class PercentileInterval(nn.Module):
    """The length of the interval between two percentiles of the elements, which includes 0.

    Args:
        low_percentile_q, high_percentile_q: in percent, in [0, 100) and in (0, 100].
    """

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(
        self, low_percentile_q: float = 0.001, high_percentile_q: float = 99.999, granularity: Granularity = WHOLE
    ) -> None:
        super().__init__()
        percentiles = {"percentile": high_percentile_q, "low_percentile": low_percentile_q}
        describe(self, granularity, ZeroPoint.MIN_MAX, statistic=Statistic.PERCENTILE, **percentiles)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        low, high = percentile_range(self.described, widened(x.detach()))
        return high.clamp(min=0) - low.clamp(max=0)

    def extra_repr(self) -> str:
        """Both percentiles."""
        return f"{self.fields['low_percentile']}, {self.fields['percentile']}"


class AbsAve(nn.Module):
    """The mean of the magnitudes."""

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity, statistic=Statistic.ABSMEAN)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return average_range(self.described, widened(x.detach()))[1]


class MeanSigmaStd(nn.Module):
    """The mean of the magnitudes, and so many standard deviations more.

    Args:
        sigma: how many, in [0, 2**20].
    """

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, sigma: float = 3.0, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity, statistic=Statistic.MEAN_SIGMA, sigma=sigma)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return average_range(self.described, widened(x.detach()))[1]

    def extra_repr(self) -> str:
        """How many deviations."""
        return str(self.fields["sigma"])


class MeanLearnedSigmaStd(nn.Module):
    """The same with the parameter ``sigma``, which begins there; of symmetric scales that are computed at every call.

    Args:
        sigma: where it begins, in [0, 2**20].
    """

    _apply = kept_precise

    def __init__(self, sigma: float = 3.0) -> None:
        super().__init__()
        self.fields = {"statistic": Statistic.MEAN_SIGMA, "sigma": sigma, "learned_sigma": True}
        self.sigma = nn.Parameter(number(sigma))


class L1Norm(nn.Module):
    """The sum of the magnitudes."""

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity, statistic=Statistic.L1)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return average_range(self.described, widened(x.detach()))[1]


class L2Norm(nn.Module):
    """The root of the sum of squares."""

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity, statistic=Statistic.L2)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return average_range(self.described, widened(x.detach()))[1]


class RootMeanSquare(nn.Module):
    """The root of the mean of squares."""

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity, statistic=Statistic.RMS)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return average_range(self.described, widened(x.detach()))[1]


class MSE(nn.Module):
    """The range with the least squared error of so many, from nothing to the extremes; of scale and zero point.

    It has no number of its own: the whole quantizer is tried, so only a scaling computes it.

    Args:
        mse_iters: how many, in 1..1000.
    """

    def __init__(self, mse_iters: int = 20) -> None:
        super().__init__()
        self.fields = {"statistic": Statistic.MSE, "search_steps": mse_iters}

    def extra_repr(self) -> str:
        """How many candidates."""
        return str(self.fields["search_steps"])


class HalfQuadraticOptimizerScale(nn.Module):
    """Half-quadratic optimization of symmetric scales. As of `MSE`, only a scaling computes it.

    Args:
        hqo_iters_scale, hqo_lp_norm_scale, hqo_beta_scale, hqo_kappa_scale: ``search_steps``, ``search_norm``,
            ``search_beta`` and ``search_kappa`` of `ScaleRule`.
    """

    def __init__(
        self,
        hqo_iters_scale: int = 20,
        hqo_lp_norm_scale: float = 0.7,
        hqo_beta_scale: float | None = None,
        hqo_kappa_scale: float = 1.01,
    ) -> None:
        super().__init__()
        self.fields = _searched(hqo_iters_scale, hqo_lp_norm_scale, hqo_beta_scale, hqo_kappa_scale)


class HalfQuadraticOptimizerZeroPoint(nn.Module):
    """Half-quadratic optimization of zero points that are not rounded (HQQ). As of `MSE`, no number of its own.

    Args:
        hqo_iters_zp, hqo_lp_norm_zp, hqo_beta_zp, hqo_kappa_zp: ``search_steps``, ``search_norm``, ``search_beta`` and
            ``search_kappa`` of `ScaleRule`.
    """

    def __init__(
        self,
        hqo_iters_zp: int = 20,
        hqo_lp_norm_zp: float = 0.7,
        hqo_beta_zp: float | None = None,
        hqo_kappa_zp: float = 1.01,
    ) -> None:
        super().__init__()
        self.fields = _searched(hqo_iters_zp, hqo_lp_norm_zp, hqo_beta_zp, hqo_kappa_zp)


class NegativeMinOrZero(nn.Module):
    """The smallest element, at most 0."""

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        describe(self, granularity)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of ``x``."""
        return min_max(x.detach(), self.described.granularity)[0]


class NegativePercentileOrZero(nn.Module):
    """A percentile of the elements, at most 0.

    Args:
        low_percentile_q: in percent, in [0, 100).
    """

    fields: dict[str, Any]
    described: Quantizer
    join = adopt

    def __init__(self, low_percentile_q: float = 0.001, granularity: Granularity = WHOLE) -> None:
        super().__init__()
        self.fields = {"low_percentile": low_percentile_q}
        self.described = described(granularity, ZeroPoint.MIN_MAX, statistic=Statistic.PERCENTILE, **self.fields)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return percentile_range(self.described, widened(x.detach()))[0].clamp(max=0)

    def extra_repr(self) -> str:
        """The percentile."""
        return str(self.fields["low_percentile"])


def _searched(steps: int, norm: float, beta: float | None, kappa: float) -> dict[str, Any]:
    found = {"search_steps": steps, "search_norm": norm, "search_beta": beta, "search_kappa": kappa}
    return {"statistic": Statistic.HQO, **found}
