"""Batch normalization that is folded into the layer before it, while it trains and after."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..arrays import wide_dtype
from ..ranks import mean_over_ranks
from ..recomputation import lists_of, refuse_repetition, repeated
from ..sums import square_root


class FoldedBatchNorm(nn.Module):
    """A layer and the batch normalization of its outputs as one layer: what is quantized is the folded weight.

    With ``f = gamma / sqrt(running_var + eps)``, one factor for each output channel, the layer gets the weight
    ``weight * f`` (every operation rounded in float32, the result to the dtype of the weight) and

    - in evaluation the bias ``beta + (bias - running_mean) * f``: the bits of the layer that `folded` gives.
    - in training the bias ``bias * f``. The outputs ``z`` are those of the quantized layer; their mean and variance,
      divided by ``f`` and ``f**2``, are what the running statistics average, by the rule of ``torch.nn.BatchNorm2d``
      (``momentum``, variances that divide by n - 1). The result is normalized by the batch:
      ``(z - mean(z)) * sqrt((running_var + eps) / (var(z) / f**2 + eps)) + beta``, with the running variance from
      before this batch, in float32. Where ``f`` is 0 the running statistics stay, and count as those of the batch.

    Gradients are those of these formulas, and of the quantizers in the layer. With ``module.bn.eval()`` training, too,
    runs the layer of evaluation: statistics are frozen. A forward pass that ``torch.utils.checkpoint`` repeats is no
    step. Under ``DistributedDataParallel`` each rank normalizes by its part of the batch, as ``torch.nn.BatchNorm2d``
    does, and the running statistics average the mean over the ranks of their statistics: they are the same on all.

    Args:
        layer: a quantized linear layer or convolution, or one of torch, without a quantizer of its output.
        bn: a batch normalization of as many channels, with running statistics; its ``affine`` may be False. Both are
            kept, under the names ``layer`` and ``bn``.
    Raises:
        TypeError: other modules, or another kind of batch normalization.
        ValueError: another number of channels, no running statistics, or an ``output_quant``.

    Source: Krishnamoorthi, arXiv 1806.08342, section 3.2.2 (weights folded by running statistics, outputs corrected to
    those of the batch), with the statistics of the quantized layer, as ``torch.ao.nn.intrinsic.qat.ConvBn2d`` has them.
    """

    layer: Any
    bn: Any
    _mark: Tensor

    def __init__(self, layer: nn.Module, bn: nn.Module) -> None:
        super().__init__()
        if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            raise TypeError(f"`layer` must be a linear layer or a convolution, got {type(layer).__name__}")
        check_kind(bn)
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        if bn.num_features != channels:
            raise ValueError(f"`bn` must have the {channels} channels of `layer`, got {bn.num_features}")
        if bn.running_mean is None:
            raise ValueError("`bn` must have running statistics, got track_running_stats=False")
        if getattr(layer, "output_quant", None) is not None:
            raise ValueError("`output_quant` of `layer` must be None: put a QuantIdentity behind this module")
        self.layer, self.bn = layer, bn
        self._mark = torch.zeros(())  # of `refuse_repetition`

    def forward(self, x: Tensor) -> Tensor:
        """Shapes and dtype as the layer; in training with a batch. The channels of linear layers are the last axis.

        Raises:
            TypeError: ``bn`` was replaced by a ``SyncBatchNorm``: its statistics are not those of one process.
            ValueError: in training, a batch of one value for each channel; and as the layer.
            RuntimeError: inside a backward pass, as `TensorQuantizer`.
        """
        check_kind(self.bn)
        if not self.bn.training:
            return self._layer(x, *self._fold())
        self._check(x.shape)
        variance, again = self._variance()
        deviation, bias = self._deviation(variance), getattr(self.layer, "bias", None)
        f = self._factor(deviation)
        z = self._layer(x, self._weight(f), None if bias is None else (bias * f).to(bias.dtype))
        return self._normalized(z, f, deviation, learns=not again)

    def folded(self) -> nn.Module:
        """A copy of the layer, with weight and bias folded: in evaluation the bits of this module."""
        layer: Any = copy.deepcopy(self.layer)
        with torch.no_grad():
            weight, bias = self._fold()
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        layer.train(self.training)
        copied: nn.Module = layer
        return copied

    def _fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of evaluation."""
        bn, bias = self.bn, getattr(self.layer, "bias", None)
        f = self._factor(self._deviation(bn.running_var))
        shift = (-bn.running_mean if bias is None else bias - bn.running_mean) * f
        return self._weight(f), (shift if bn.bias is None else bn.bias + shift).to(self.layer.weight.dtype)

    def _deviation(self, variance: Tensor) -> Tensor:
        return square_root(variance.to(wide_dtype(variance.dtype)) + self.bn.eps)

    def _factor(self, deviation: Tensor) -> Tensor:
        return (torch.ones_like(deviation) if self.bn.weight is None else self.bn.weight) / deviation

    def _weight(self, f: Tensor) -> Tensor:
        """The weight, times the factor of each output."""
        layer, ones = self.layer, (1,) * (self.layer.weight.ndim - 2)
        if getattr(layer, "transposed", False):
            rows = f.reshape(layer.groups, 1, -1).expand(-1, layer.in_channels // layer.groups, -1)
            f = rows.reshape(layer.in_channels, -1, *ones)
        else:
            f = f.reshape(-1, 1, *ones)
        product: Tensor = layer.weight * f
        return product.to(layer.weight.dtype)

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        both: Any = {"weight": weight, "bias": bias}
        y: Tensor = functional_call(self.layer, both, (x,))
        return y

    def _normalized(self, z: Tensor, f: Tensor, deviation: Tensor, *, learns: bool) -> Tensor:
        """The outputs of the layer, normalized by the batch, after the running statistics have learned from it."""
        bn, axis = self.bn, z.ndim - 1 if isinstance(self.layer, nn.Linear) else 1
        others, n = [d for d in range(z.ndim) if d != axis], z.numel() // bn.num_features
        self._check(z.shape)
        wide = z.float() if z.element_size() < 4 else z
        variance, mean = torch.var_mean(wide, others, correction=0)
        moves = f != 0
        safe = torch.where(moves, f, 1.0)
        own = torch.where(moves, variance / (safe * safe), deviation * deviation - bn.eps)
        if learns:
            with torch.no_grad():
                spread = torch.where(moves, own * (n / (n - 1)), bn.running_var)
                self._learn(torch.where(moves, mean / safe, bn.running_mean), spread)
        ratio = torch.where(moves, deviation / (own + bn.eps).sqrt(), 1.0)
        shape = [-1 if d == axis else 1 for d in range(z.ndim)]
        y = (wide - mean.reshape(shape)) * ratio.reshape(shape)
        return (y if bn.bias is None else y + bn.bias.reshape(shape)).to(z.dtype)

    def _check(self, shape: torch.Size) -> None:
        """ValueError for a batch without a variance; of its inputs it can be told unless a kernel covers them whole."""
        linear = isinstance(self.layer, nn.Linear)
        if len(shape) < self.layer.weight.ndim or (shape[:-1].numel() if linear else shape[0] * shape[2:].numel()) < 2:
            what = "training needs a batch with more than one value per channel"
            raise ValueError(f"{what}, got shape {tuple(shape)}")

    def _learn(self, mean: Tensor, variance: Tensor) -> None:
        bn = self.bn
        bn.num_batches_tracked.add_(1)
        share = 1 / bn.num_batches_tracked.to(mean.dtype) if bn.momentum is None else bn.momentum
        for state, new in zip(
            (bn.running_mean, bn.running_var), mean_over_ranks(torch.stack([mean, variance])), strict=True
        ):
            state.copy_(state * (1 - share) + new * share)

    def _variance(self) -> tuple[Tensor, bool]:
        """The running variance before this batch, and whether this forward pass repeats an earlier one."""
        refuse_repetition(self._mark)
        if torch.compiler.is_compiling():
            return self.bn.running_var.clone(), False
        before: Tensor | None = repeated(self, ends=True)
        used = self.bn.running_var.clone() if before is None else before
        for calls in lists_of(self):
            calls.append(used)
        return used, before is not None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FoldedBatchNorm":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._mark = fn(self._mark)
        return self


def check_kind(bn: Any) -> None:
    """TypeError unless this is a batch normalization over the batch of one process."""
    if not isinstance(bn, nn.modules.batchnorm._BatchNorm) or isinstance(bn, nn.SyncBatchNorm):
        raise TypeError(f"`bn` must be a BatchNorm1d, BatchNorm2d or BatchNorm3d, got {type(bn).__name__}")
