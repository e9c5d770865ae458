"""Steps of training that pass unquantized: ``quant_delay_steps``."""

import torch
from torch import Tensor, nn

from ...core.choice import check_count
from ..arrays import is_concrete


class DelayWrapper(nn.Module):
    """Lets the first tensors of training pass unquantized, and those of evaluation until that is over.

    The buffer ``seen`` counts tensors of training alone, up to that number, and is part of the ``state_dict``. Without
    a delay there is none.

    Args:
        quant_delay_steps: how many; None for 0.
    Raises:
        TypeError, ValueError: no int, or a negative one.
    """

    seen: Tensor | None

    def __init__(self, quant_delay_steps: int | None = 0) -> None:
        super().__init__()
        self.quant_delay_steps = quant_delay_steps or 0
        check_count("quant_delay_steps", self.quant_delay_steps, 0)
        self.fields = {"delay": self.quant_delay_steps}
        self._settled = self.quant_delay_steps == 0
        self.register_buffer("seen", None if self._settled else torch.zeros((), dtype=torch.int64))

    def waits(self) -> Tensor | None:
        """Whether the tensor to come passes unquantized: 0-d, or None once that is over."""
        if self._has_settled() or self.seen is None:
            return None
        waits = self.seen < self.quant_delay_steps
        return None if is_concrete(waits) and not waits else waits

    def count(self) -> None:
        """A tensor was seen; counts in training."""
        if self.training and self.seen is not None and not self._settled:
            with torch.no_grad():
                self.seen.copy_((self.seen + 1).clamp(max=self.quant_delay_steps))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x`` during the delay, else ``y``; a step of training is over."""
        waits = self.waits()
        self.count()
        return y if waits is None else torch.where(waits, x, y)

    def train(self, mode: bool = True) -> "DelayWrapper":
        """As ``torch.nn.Module``; compiled code sees then whether the delay is over, and drops it."""
        super().train(mode)
        self._has_settled()
        return self

    def extra_repr(self) -> str:
        """The number of steps, if there are any."""
        return str(self.quant_delay_steps) if self.quant_delay_steps else ""

    def _has_settled(self) -> bool:
        """Whether the delay is over. Remembered, since compiled code cannot look."""
        if not self._settled and self.seen is not None and is_concrete(self.seen):
            self._settled = bool(self.seen >= self.quant_delay_steps)
        return self._settled

    def _load_from_state_dict(self, *arguments: object) -> None:
        super()._load_from_state_dict(*arguments)
        self._settled = self.seen is None
        self._has_settled()
