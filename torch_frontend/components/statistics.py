"""Which number of a tensor its scale comes from: ``scaling_stats_impl``; and its zero point: ``zero_point_stats_impl``.

What they compute, stands in `samebits.core.scales.Statistic` and docs/scales.md. Results are constants to autograd.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from ...core.descriptions import Quantizer
from ...core.formats import IntegerFormat
from ...core.granularity import Granularity, PerTensor
from ...core.scales import Statistic
from ..arrays import widened
from ..ranges import average_range, percentile_range
from ..statistics import absmax, min_max, positive_peak
from .description import number

WHOLE = PerTensor()


class AbsMax(nn.Module):
    """The largest magnitude."""

    fields: ClassVar[dict[str, Any]] = {"statistic": Statistic.EXTREMES}

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of ``x``."""
        return absmax(x.detach(), granularity)


class AbsMinMax(nn.Module):
    """The length of the interval from the smallest to the largest element, which includes 0."""

    fields: ClassVar[dict[str, Any]] = {"statistic": Statistic.EXTREMES}

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of ``x``."""
        low, high = min_max(x.detach(), granularity)
        return high - low


class SignedAbsMax(nn.Module):
    """The largest magnitude, negative where a positive number has it: scales are negative there."""

    fields: ClassVar[dict[str, Any]] = {"statistic": Statistic.SIGNED_ABSMAX}

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of ``x``."""
        size = absmax(x.detach(), granularity)
        return size.where(~positive_peak(x.detach(), granularity), -size)


class AbsPercentile(nn.Module):
    """A percentile of the magnitudes.

    Args:
        high_percentile_q: in percent, in (0, 100].
    """

    def __init__(self, high_percentile_q: float = 99.999) -> None:
        super().__init__()
        self.fields = {"statistic": Statistic.PERCENTILE, "percentile": high_percentile_q}
        self.described = _plain(**self.fields)

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return percentile_range(self.described.replace(granularity=granularity), widened(x.detach()))[1]

    def extra_repr(self) -> str:
        """The percentile."""
        return str(self.fields["percentile"])


class PercentileInterval(nn.Module):
    """The length of the interval between two percentiles of the elements, which includes 0.

    Args:
        low_percentile_q, high_percentile_q: in percent, in [0, 100) and in (0, 100].
    """

    def __init__(self, low_percentile_q: float = 0.001, high_percentile_q: float = 99.999) -> None:
        super().__init__()
        percentiles = {"percentile": high_percentile_q, "low_percentile": low_percentile_q}
        self.fields = {"statistic": Statistic.PERCENTILE, **percentiles}
        self.described = _plain(**self.fields, zero_point="min_max")

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        low, high = percentile_range(self.described.replace(granularity=granularity), widened(x.detach()))
        return high.clamp(min=0) - low.clamp(max=0)

    def extra_repr(self) -> str:
        """Both percentiles."""
        return f"{self.fields['low_percentile']}, {self.fields['percentile']}"


class AbsAve(nn.Module):
    """The mean of the magnitudes."""

    fields: ClassVar[dict[str, Any]] = {"statistic": Statistic.ABSMEAN}

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return _average(self, x, granularity)


class MeanSigmaStd(nn.Module):
    """The mean of the magnitudes, and so many standard deviations more.

    Args:
        sigma: how many, in [0, 2**20].
    """

    def __init__(self, sigma: float = 3.0) -> None:
        super().__init__()
        self.fields = {"statistic": Statistic.MEAN_SIGMA, "sigma": sigma}

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return _average(self, x, granularity)

    def extra_repr(self) -> str:
        """How many deviations."""
        return str(self.fields["sigma"])


class MeanLearnedSigmaStd(nn.Module):
    """The same with the parameter ``sigma``, which begins there; of symmetric scales that are computed at every call.

    Args:
        sigma: where it begins, in [0, 2**20].
    """

    def __init__(self, sigma: float = 3.0) -> None:
        super().__init__()
        self.fields = {"statistic": Statistic.MEAN_SIGMA, "sigma": sigma, "learned_sigma": True}
        self.sigma = nn.Parameter(number(sigma))


class L1Norm(nn.Module):
    """The sum of the magnitudes."""

    fields: ClassVar[dict[str, Any]] = {"statistic": Statistic.L1}

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return _average(self, x, granularity)


class L2Norm(nn.Module):
    """The root of the sum of squares."""

    fields: ClassVar[dict[str, Any]] = {"statistic": Statistic.L2}

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return _average(self, x, granularity)


class RootMeanSquare(nn.Module):
    """The root of the mean of squares."""

    fields: ClassVar[dict[str, Any]] = {"statistic": Statistic.RMS}

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        return _average(self, x, granularity)


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

    fields: ClassVar[dict[str, Any]] = {}

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of ``x``."""
        return min_max(x.detach(), granularity)[0]


class NegativePercentileOrZero(nn.Module):
    """A percentile of the elements, at most 0.

    Args:
        low_percentile_q: in percent, in [0, 100).
    """

    def __init__(self, low_percentile_q: float = 0.001) -> None:
        super().__init__()
        self.fields = {"low_percentile": low_percentile_q}
        self.described = _plain(statistic=Statistic.PERCENTILE, zero_point="min_max", **self.fields)

    def forward(self, x: Tensor, granularity: Granularity = WHOLE) -> Tensor:
        """Any shape; shape of the scales, dtype of the scale."""
        q = self.described.replace(granularity=granularity)
        return percentile_range(q, widened(x.detach()))[0].clamp(max=0)

    def extra_repr(self) -> str:
        """The percentile."""
        return str(self.fields["low_percentile"])


def _plain(**fields: Any) -> Quantizer:
    return Quantizer(format=IntegerFormat(8)).replace(**fields)


def _average(part: nn.Module, x: Tensor, granularity: Granularity) -> Tensor:
    q = _plain(granularity=granularity, **getattr(part, "fields", {}))
    return average_range(q, widened(x.detach()))[1]


def _searched(steps: int, norm: float, beta: float | None, kappa: float) -> dict[str, Any]:
    found = {"search_steps": steps, "search_norm": norm, "search_beta": beta, "search_kappa": kappa}
    return {"statistic": Statistic.HQO, **found}
