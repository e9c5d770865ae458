"""The state that scales and zero points learn: averages of what tensors give, and parameters; in float32.

What a state is, when it is set and what is used of it, says `samebits.torch_frontend.tensor_quantizer.TensorQuantizer`,
of which these modules have the bits at every step.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...core.descriptions import Quantizer
from ...core.scales import ScaleSource
from ..arrays import is_concrete
from ..ranks import check_may_learn
from ..running import running_average
from ..states import give_shape, unlearned

LEARNED = (ScaleSource.LEARNED, ScaleSource.STATISTIC_THEN_LEARNED)
RUNNING = (ScaleSource.RUNNING_STATISTIC, ScaleSource.STATISTIC_THEN_LEARNED)


class Learner(Protocol):
    """A module with one such state, ``value``, and the number of tensors of training seen, where that counts."""

    source: ScaleSource
    value: Tensor
    seen: Tensor | None
    steps: int
    is_set: bool
    settled: bool
    training: bool

    @property
    def quantizer(self) -> Quantizer:
        """What it is part of."""


def begin(m: nn.Module, source: ScaleSource, shape: tuple[int, ...] | None, steps: int, counts: bool) -> None:
    """Gives a module its state: NaN until it is set, of unknown shape if that is None."""
    unset = torch.full((0,) if shape is None else shape, torch.nan, dtype=torch.float32)
    if source in LEARNED:
        m.register_parameter("value", nn.Parameter(unset))
    else:
        m.register_buffer("value", unset)
    m.source, m.steps = source, steps  # type: ignore[assignment]  # a module takes any attribute
    m.is_set, m.settled = False, not counts  # type: ignore[assignment]
    m.register_buffer("seen", torch.zeros((), dtype=torch.int64) if counts else None)


def looks(m: Learner) -> bool:
    """Whether the state learns from the tensor to come."""
    runs = m.source is ScaleSource.RUNNING_STATISTIC
    return not has_state(m) or (m.training and (runs or collects(m) is not None))


def learned(m: Learner, new: Tensor | None) -> Tensor:
    """The state, or what is used instead while it is a statistic, after it has learned from ``new``; a step is over.

    Args:
        new: what the tensor at hand gives, if the state `looks`.
    Raises:
        RuntimeError: no state yet, and not training.
    """
    rule, collecting, starts = m.quantizer.scale, collects(m), not has_state(m)
    if starts:
        if not m.training or new is None:
            raise RuntimeError(
                f"the {m.source} scale or zero point of this quantizer is not set: run a batch in training mode "
                "(module.train()) or load a state_dict that holds it, before module.eval()"
            )
        start(m, new)
    elif new is not None:
        average(m, new, collecting)
    used = m.value
    if new is not None and m.source is ScaleSource.RUNNING_STATISTIC and rule.batch_in_training:
        used = new
    elif collecting is not None:
        used = unlearned(used, new if rule.batch_in_training else None, collecting)
    count(m)
    return used


@torch.no_grad()
def start(m: Learner, first: Tensor) -> None:
    """Sets the state; a parameter stays the same object."""
    check_may_learn(m, m.value)
    give_shape(m.value, tuple(first.shape))
    m.value.copy_(first)
    m.is_set = torch.compiler.is_compiling() or type(first) is Tensor  # a FakeTensor sets nothing


@torch.no_grad()
def average(m: Learner, new: Tensor, collecting: Tensor | None) -> None:
    """Lets the state, while it collects, learn from what a tensor gives."""
    check_may_learn(m, m.value)
    found = running_average(m.quantizer, m.value, new.to(m.value.dtype), m.seen)
    m.value.copy_(found if collecting is None else torch.where(collecting, found, m.value))


@torch.no_grad()
def count(m: Learner) -> None:
    """Counts a tensor of training, as long as something depends on how many there were."""
    if m.training and m.seen is not None and not m.settled:
        m.seen.copy_((m.seen + 1).clamp(max=m.steps) if m.steps else m.seen + 1)


def collects(m: Learner) -> Tensor | None:
    """Whether the state, learned later, still is a statistic at the tensor to come: 0-d, or None if not."""
    if m.steps == 0 or has_settled(m) or m.seen is None:
        return None
    collecting = m.seen < m.steps
    return None if is_concrete(collecting) and not collecting else collecting


def has_settled(m: Learner) -> bool:
    """Whether nothing depends on ``seen`` any more. Remembered, since compiled code cannot look."""
    if not m.settled and m.steps and m.seen is not None and is_concrete(m.seen):
        m.settled = bool(m.seen >= m.steps)
    return m.settled


def train(m: Any, mode: bool = True) -> Any:
    """As ``torch.nn.Module``; compiled code sees then whether statistics are over, and drops them."""
    nn.Module.train(m, mode)
    has_settled(m)
    return m


def has_state(m: Learner) -> bool:
    """Whether the state is set: not NaN. Remembered, since compiled code cannot look."""
    if not m.is_set and m.value.numel() and is_concrete(m.value):
        m.is_set = not bool(m.value.isnan().any())
    return m.is_set


def shaped(m: Learner, stored: Tensor | None) -> None:
    """Lets a state of unknown shape take that of what is loaded into it."""
    if stored is not None and not m.value.numel():
        give_shape(m.value, tuple(stored.shape))


def loaded(m: Learner) -> None:
    """A state was loaded: looks at it."""
    m.is_set, m.settled = False, m.seen is None
    has_state(m)
    has_settled(m)
