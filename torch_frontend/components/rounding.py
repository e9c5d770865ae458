"""Rounding to integers: ``float_to_int_impl``."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.directions import LearnedRounding, Relaxation, Rounding
from ..learned_rounding import rounding_offset, rounding_share
from ..straight_through import round_ste
from ..tensor_quantizer import first_step
from ..threefry import rounding_noise
from .description import precise


class RoundSte(nn.Module):
    """To nearest, halves to even; gradient 1."""

    fields: ClassVar[dict[str, Any]] = {"rounding": Rounding.TIES_TO_EVEN}

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype; the same."""
        return round_ste(x, Rounding.TIES_TO_EVEN)


class FloorSte(nn.Module):
    """Toward negative infinity; gradient 1."""

    fields: ClassVar[dict[str, Any]] = {"rounding": Rounding.TOWARD_NEGATIVE}

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype; the same."""
        return round_ste(x, Rounding.TOWARD_NEGATIVE)


class CeilSte(nn.Module):
    """Toward positive infinity; gradient 1."""

    fields: ClassVar[dict[str, Any]] = {"rounding": Rounding.TOWARD_POSITIVE}

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype; the same."""
        return round_ste(x, Rounding.TOWARD_POSITIVE)


class RoundToZeroSte(nn.Module):
    """Toward zero; gradient 1."""

    fields: ClassVar[dict[str, Any]] = {"rounding": Rounding.TOWARD_ZERO}

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype; the same."""
        return round_ste(x, Rounding.TOWARD_ZERO)


class DPURoundSte(nn.Module):
    """To nearest, halves to even, but those of negative numbers upwards; gradient 1."""

    fields: ClassVar[dict[str, Any]] = {"rounding": Rounding.DPU}

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype; the same."""
        return round_ste(x, Rounding.DPU)


class StochasticRoundSte(nn.Module):
    """Up or down by chance, with the fraction as probability; gradient 1.

    The buffer ``step`` is the seed: one more with each tensor of training, the same in evaluation. See
    `samebits.torch_frontend.tensor_quantizer.TensorQuantizer`.

    Args:
        stochastic_round_seed: at least 0; None for the number of such modules made before in this process.
    """

    fields: ClassVar[dict[str, Any]] = {"rounding": Rounding.STOCHASTIC}
    step: Tensor

    def __init__(self, stochastic_round_seed: int | None = None) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(first_step(stochastic_round_seed)))

    def seed(self) -> Tensor:
        """The seed of this step, which while training is over then: 0-d, integer."""
        seed = self.step.clone()  # which the backward pass needs again
        if self.training:
            with torch.no_grad():
                self.step.copy_((self.step + 1) & 0xFFFFFFFF)
        return seed

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float dtype; the same."""
        return round_ste(x, Rounding.STOCHASTIC, rounding_noise(self.seed(), tuple(x.shape)))


class LearnedRoundHardSigmoid(nn.Module):
    """How much is added to the floor: ``clamp(1.2 * sigmoid(v) - 0.1, 0, 1)`` in training, else whether it is over 1/2.

    Source: AdaRound, arXiv 2004.10568.
    """

    rule = LearnedRounding(relaxation=Relaxation.HARD_SIGMOID, soft=True)

    def forward(self, v: Tensor) -> Tensor:
        """float32 or float64, any shape; the same."""
        return rounding_share(self.rule, v) if self.training else rounding_offset(_decided(self.rule), v)


class LearnedRoundSigmoid(nn.Module):
    """How much is added to the floor: ``sigmoid(v / temperature)`` in training, else whether v is over 0.

    Args:
        learned_round_temperature: in [2**-10, 2**10].
    """

    def __init__(self, learned_round_temperature: float = 1.0) -> None:
        super().__init__()
        relaxation = Relaxation.SIGMOID
        self.rule = LearnedRounding(relaxation=relaxation, temperature=learned_round_temperature, soft=True)

    def forward(self, v: Tensor) -> Tensor:
        """float32 or float64, any shape; the same."""
        return rounding_share(self.rule, v) if self.training else rounding_offset(_decided(self.rule), v)


class LearnedRoundSte(nn.Module):
    """Between an element and its floor the parameter ``value`` decides, softly in training.

    Args:
        learned_round_impl: how: `LearnedRoundHardSigmoid` or `LearnedRoundSigmoid`.
        learned_round_init: where the parameter begins, shape of the tensor.
    Raises:
        TypeError: another ``learned_round_impl``, or no tensor.
    """

    def __init__(self, learned_round_impl: nn.Module, learned_round_init: Tensor) -> None:
        super().__init__()
        if not isinstance(learned_round_impl, LearnedRoundHardSigmoid | LearnedRoundSigmoid):
            raise TypeError(
                "`learned_round_impl` must be a LearnedRoundHardSigmoid or a LearnedRoundSigmoid, "
                f"got {learned_round_impl!r}"
            )
        if not isinstance(learned_round_init, Tensor):
            raise TypeError(f"`learned_round_init` must be a torch.Tensor, got {learned_round_init!r}")
        self.learned_round_impl = learned_round_impl
        self.value = nn.Parameter(learned_round_init.detach().clone().to(torch.float32))
        self.fields = {"rounding": Rounding.LEARNED, "learned_rounding": learned_round_impl.rule}

    def forward(self, x: Tensor) -> Tensor:
        """float32 or float64, shape of the parameter; ``floor(x)`` and what is added, gradient 1."""
        floor = round_ste(x, Rounding.TOWARD_NEGATIVE)
        added: Tensor = self.learned_round_impl(self.value.to(x.dtype))
        return floor + added

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LearnedRoundSte":
        super()._apply(precise(fn), recurse)  # type: ignore[no-untyped-call]
        return self


def _decided(rule: LearnedRounding) -> LearnedRounding:
    return LearnedRounding(relaxation=rule.relaxation, temperature=rule.temperature)
