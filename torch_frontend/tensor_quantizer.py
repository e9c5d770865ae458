"""A quantizer with the state of its scale: what the layers hold for each tensor that they quantize."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.catalog import catalog
from ..core.descriptions import QParams, Quantizer, Rounding, ScaleSource
from ..core.granularity import PerAxis, PerTensor, qparams_shape
from .arrays import apply_plainly, is_concrete, records_gradient, wide_dtype
from .clamp import clamp
from .quantizer import choose_qparams, fake_quantize
from .rounding import round_to_integer
from .scaling import restrict_scale


class TensorQuantizer(nn.Module):
    """Quantizes one tensor of a network, with a scale from where ``q.scale.source`` says.

    - ``statistic``: of the tensor at hand, at every call; no state.
    - ``running_statistic``: the buffer ``scale``, the average ``momentum * old + (1 - momentum) * new`` of the scales
      of the tensors seen while training; the first one is copied.
    - ``learned``: the parameter ``scale``, first the statistic of the first tensor seen while training.

    Affine quantizers keep ``zero_point`` beside it, in floating point. What is used is the scale raised to the floor of
    the rule and restricted, and the zero point rounded into the format's range; gradients pass both unchanged.

    With stochastic rounding there is the buffer ``step``, the seed of what is drawn: an integer that every tensor seen
    in training increases by one, so that each of them draws anew; in evaluation it stays, and the same tensor has the
    same bits. Quantizers that are to draw differently at the same step need other numbers to begin with:
    ``quantizer.step.fill_(...)``. (A forward pass that activation checkpointing repeats is one more step.)

    Until it is set, the state is NaN, also in a ``state_dict``; it stays in float32 when a module is moved to 16 bits.

    Args:
        quantizer: a catalog name or a `Quantizer`.
        shape: of the tensors to come, as far as the shape of the state depends on it; None if not known yet.
    Raises:
        TypeError: neither a name nor a Quantizer.
        KeyError: a name that is not in the catalog.
        ValueError: a state whose shape would change with the number of rows (tokens, groups, blocks of activations).
    """

    scale: Tensor | None
    zero_point: Tensor | None
    step: Tensor | None

    def __init__(self, quantizer: str | Quantizer, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.quantizer = quantizer_of("quantizer", quantizer)
        self._is_set = False
        source, granularity = self.quantizer.scale.source, self.quantizer.granularity
        if source is not ScaleSource.STATISTIC and shape is None and not isinstance(granularity, (PerTensor, PerAxis)):
            raise ValueError(f"a {source} scale of activations must be per tensor or per axis, got {granularity}")
        known = (
            () if isinstance(granularity, PerTensor) else None if shape is None else qparams_shape(granularity, shape)
        )
        for name, wanted in (("scale", True), ("zero_point", self.quantizer.affine)):
            unset = torch.full((0,) if known is None else known, torch.nan)
            if source is ScaleSource.LEARNED:
                self.register_parameter(name, nn.Parameter(unset) if wanted else None)
            else:
                self.register_buffer(name, unset if wanted and source is ScaleSource.RUNNING_STATISTIC else None)
        stochastic = self.quantizer.rounding is Rounding.STOCHASTIC
        self.register_buffer("step", torch.zeros((), dtype=torch.int64) if stochastic else None)

    def qparams(self, x: Tensor) -> QParams:
        """Parameters for ``x``; while training, the state learns from it first, and a step is over.

        Raises:
            RuntimeError: no state yet, and not training.
            TypeError, ValueError: as `choose_qparams`.
        """
        used = self._used(x)
        return used if self.step is None else used._replace(seed=self._seed(self.step))

    def _used(self, x: Tensor) -> QParams:
        """Scale and zero point."""
        q = self.quantizer
        if self.scale is None:
            return choose_qparams(q, x)
        if not self._has_state():
            self._start(x)
        elif self.training and q.scale.source is ScaleSource.RUNNING_STATISTIC:
            self._average(choose_qparams(q, x))
        scale = self.scale.to(wide_dtype(x.dtype))
        used = _replaced(scale, restrict_scale(q, scale.detach()))
        if self.zero_point is None:
            return QParams(used)
        zero = self.zero_point.to(scale.dtype)
        code = clamp(round_to_integer(zero.detach(), Rounding.TIES_TO_EVEN), q.format.lo, q.format.hi)
        return QParams(used, _replaced(zero, code))

    def forward(self, x: Tensor) -> Tensor:
        """`fake_quantize` of ``x``."""
        return fake_quantize(self.quantizer, x, self.qparams(x))

    def extra_repr(self) -> str:
        """Format, granularity and source of the scale."""
        q = self.quantizer
        return f"{q.format}{' affine' if q.affine else ''}, {q.granularity}, scale={q.scale.source}"

    def _seed(self, step: Tensor) -> Tensor:
        """The seed of this step, which while training is over then."""
        seed = step.clone()  # which the backward pass needs again
        if self.training:
            with torch.no_grad():
                step.copy_((step + 1) & 0xFFFFFFFF)
        return seed

    def _has_state(self) -> bool:
        """Whether there is a scale, not NaN. Remembered, since compiled code cannot look."""
        scale = self.scale
        if not self._is_set and scale is not None and scale.numel() and is_concrete(scale):
            self._is_set = not bool(scale.isnan().any())
        return self._is_set

    def _start(self, x: Tensor) -> None:
        if not self.training:
            raise RuntimeError(
                f"the {self.quantizer.scale.source} scale of this quantizer is not set: run a batch in training mode "
                "(module.train()) or load a state_dict that holds it, before module.eval()"
            )
        chosen = choose_qparams(self.quantizer, x)
        with torch.no_grad():
            for state, first in ((self.scale, chosen.scale), (self.zero_point, chosen.zero_point)):
                if state is not None:
                    _give_shape(state, first.shape)
                    state.copy_(first)
        self._is_set = True

    @torch.no_grad()
    def _average(self, new: QParams) -> None:
        momentum = self.quantizer.scale.momentum
        for state, value in ((self.scale, new.scale), (self.zero_point, new.zero_point)):
            if state is not None:
                state.copy_(state * momentum + value * (1 - momentum))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TensorQuantizer":
        def precise(t: Tensor) -> Tensor:
            moved = fn(t)
            return t.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        super()._apply(precise, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("scale", "zero_point"):
            state, stored = getattr(self, name), state_dict.get(prefix + name)
            if state is not None and stored is not None and not state.numel():
                _give_shape(state, stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._is_set = False
        self._has_state()


def quantizer_of(name: str, value: str | Quantizer) -> Quantizer:
    """The quantizer that an argument is or names in the catalog. TypeError, KeyError otherwise."""
    if isinstance(value, Quantizer):
        return value
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a catalog name or a Quantizer, got {value!r}")
    return catalog[value]


def _give_shape(state: Tensor, shape: tuple[int, ...]) -> None:
    """Lets a state of unknown shape, which holds nothing, take this one; parameters stay the same objects."""
    if not state.numel() and state.shape != shape:
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "a scale of yet unknown shape cannot be set in compiled code: run the first batch eagerly"
            )
        state.data = torch.full(shape, torch.nan, dtype=state.dtype, device=state.device)


class _Replaced(torch.autograd.Function):
    """The value that is used instead of a state, with the gradient of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(state: Tensor, used: Tensor) -> Tensor:
        return used.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


def _replaced(state: Tensor, used: Tensor) -> Tensor:
    if is_concrete(state):
        return apply_plainly(_Replaced, state, used) if records_gradient(state) else used
    value: Tensor = _Replaced.apply(state, used)  # type: ignore[no-untyped-call]
    return value
