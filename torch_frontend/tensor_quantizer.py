"""A quantizer with the state of its scale: what the layers hold for each tensor that they quantize."""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from ..core import checks
from ..core.arithmetic import ZeroPointDomain
from ..core.catalog import catalog
from ..core.choice import check_count
from ..core.descriptions import QParams, Quantizer
from ..core.directions import Rounding
from ..core.granularity import PerAxis, PerTensor, qparams_shape
from ..core.scales import ScaleSource
from .arguments import check_array, check_operands
from .arrays import is_concrete, wide_dtype
from .bit_width import code_range
from .clamp import clamp
from .elementary import log2
from .learned_sigma import scale_at_sigma
from .programs import Programs, programs
from .quantizer import choose_qparams, fake_quantize
from .ranks import check_may_learn, choose_over_ranks, may_share
from .recomputation import lists_of, refuse_repetition, repeated
from .rounding import round_to_integer
from .running import running_average, running_percentile
from .scaling import restrict_scale, scale_of_logarithm
from .states import Call, give_shape, replaced, unlearned, unless_waiting

_NUMBERS = count()  # of the quantizers that draw, in the order in which they are made


class TensorQuantizer(nn.Module):
    """Quantizes one tensor of a network, with a scale from where ``q.scale.source`` says.

    - ``statistic``: of the tensor at hand, at every call; no state. With ``learned_sigma`` the parameter ``sigma``,
      first the number in the rule: the scale is `scale_at_sigma`, whose gradient goes to sigma and not to the tensor.
    - ``constant``: the number in the rule; no state.
    - ``running_statistic``: the buffer ``scale``, the `running_average` of the scales of the tensors seen while
      training; the first one is copied. With a ``window`` the `running_percentile` of the last ones, which the buffer
      ``history`` holds. With ``batch_in_training`` it is used in evaluation only.
    - ``learned``: the parameter ``scale``, first the number in the rule, or else the statistic of the first tensor seen
      while training.
    - ``statistic_then_learned``: the parameter ``scale``, for the first ``steps`` tensors of training the running
      statistic, to which no gradient goes (it is 0); from then on learned.

    Affine quantizers keep ``zero_point`` beside it, in floating point. What is used is the scale raised to the floor of
    the rule and restricted, and the zero point, if it is a code, rounded into the format's range; gradients pass both
    unchanged. A learned `log_float` scale is kept as its logarithm ``v``, also while it is averaged: what is used is
    ``s = exp2(v)``, and the gradient of v is that of s times ``s * ln 2``.

    With `learned_bits` there is the parameter ``bit_width``, which begins there. What is used is that number rounded to
    nearest even into what the format allows, and zero points in the range it leaves; its gradient passes unchanged.

    With a ``delay`` the first tensors of training pass unquantized, and so does every tensor in evaluation until that
    is over. The state learns from them all the same. What depends on how many tensors training has seen, counts them in
    the buffer ``seen``, and stops when nothing depends on it any more.

    With stochastic rounding there is the buffer ``step``, the seed of what is drawn: an integer that every tensor seen
    in training increases by one, so that each of them draws anew; in evaluation it stays, and the same tensor has the
    same bits. It begins at ``seed * 0x9E3779B9`` modulo 2**32, which keeps quantizers of different seeds apart for
    millions of steps.

    A forward pass that ``torch.utils.checkpoint`` repeats is no step: the state stays, and each call uses what it used
    before. Where the state changes with every tensor of training, any other call inside a backward pass is refused.

    Until it is set, the state is NaN, also in a ``state_dict``. It is float32 whatever the default dtype is, and stays
    so when a module is moved to 16 bits.

    Args:
        quantizer: a catalog name or a `Quantizer`.
        shape: of the tensors to come, as far as the shape of the state depends on it; None if not known yet.
        seed: of stochastic rounding, at least 0; None for the number of such quantizers made before in this process, so
            that no two draw the same, and the same program draws the same again.
    Raises:
        TypeError: neither a name nor a Quantizer, or a seed that is no int.
        KeyError: a name that is not in the catalog.
        ValueError: a state whose shape would change with the number of rows (tokens, groups, blocks of activations).
    """

    scale: Tensor | None
    zero_point: Tensor | None
    step: Tensor | None
    seen: Tensor | None
    history: Tensor | None
    bit_width: nn.Parameter | None
    sigma: nn.Parameter | None

    def __init__(
        self, quantizer: str | Quantizer, shape: tuple[int, ...] | None = None, seed: int | None = None
    ) -> None:
        super().__init__()
        self.quantizer = q = quantizer_of("quantizer", quantizer)
        self._is_set = False
        self.programs: Programs | None = None
        source, granularity = q.scale.source, q.granularity
        held = source not in (ScaleSource.STATISTIC, ScaleSource.CONSTANT)
        if held and shape is None and not isinstance(granularity, (PerTensor, PerAxis)):
            raise ValueError(f"a {source} scale of activations must be per tensor or per axis, got {granularity}")
        known = None if shape is None else qparams_shape(granularity, shape)
        known = () if isinstance(granularity, PerTensor) else known
        for name, wanted in (("scale", held), ("zero_point", held and q.affine)):
            unset = torch.full((0,) if known is None else known, torch.nan, dtype=torch.float32)
            if source in (ScaleSource.LEARNED, ScaleSource.STATISTIC_THEN_LEARNED):
                self.register_parameter(name, nn.Parameter(unset) if wanted else None)
            else:
                self.register_buffer(name, unset if wanted else None)
        start = None if q.learned_bits is None else _parameter(q.learned_bits)
        self.register_parameter("bit_width", start)
        sigma = _parameter(q.scale.decimals[2]) if q.scale.learned_sigma else None
        self.register_parameter("sigma", sigma)
        stochastic = q.rounding is Rounding.STOCHASTIC
        self.register_buffer("step", torch.tensor(first_step(seed)) if stochastic else None)
        runs = source in (ScaleSource.RUNNING_STATISTIC, ScaleSource.STATISTIC_THEN_LEARNED)
        rows = None if not runs or q.scale.window is None else (q.scale.window, 1 + q.affine)
        unseen = (
            None
            if rows is None
            else torch.full((0,) if known is None else (*rows, *known), torch.nan, dtype=torch.float32)
        )
        self.register_buffer("history", unseen)
        self._mean = runs and q.scale.momentum is None and q.scale.window is None
        self._steps = q.scale.steps if source is ScaleSource.STATISTIC_THEN_LEARNED else 0
        self._changes = runs or stochastic or q.delay > 0  # with every tensor of training
        self._mark = torch.zeros(()) if self._changes else None  # of `refuse_repetition`; a buffer that programs of
        # torch.export do not read is an error there
        self._settled = not (self._mean or self._steps or q.delay)  # whether nothing depends on `seen` any more
        self.register_buffer("seen", None if self._settled else torch.zeros((), dtype=torch.int64))
        if q.scale.scale_value is not None and held and known is not None:
            self._start(
                _kept(q, choose_qparams(q, torch.empty(known if shape is None else shape, dtype=torch.float32)))
            )

    def qparams(self, x: Tensor) -> QParams:
        """Parameters for ``x``; while training, the state learns from it first, and a step is over.

        Raises:
            RuntimeError: no state yet, and not training; inside a backward pass, as the class says.
            TypeError, ValueError: as `choose_qparams`; ValueError for a shape with other scales than the state has.
                Then nothing was learned or counted.
        """
        check_array(self.quantizer, x)
        if self.scale is not None and self.scale.numel():
            checks.check_fits_state(self.quantizer, x.shape, self.scale.shape)
        if not self._is_repeatable():
            return self._next(x)[0]
        before: Call | None = repeated(self, ends=True)
        waits = self.waits() if before is None else before.waits
        used, collects = self._next(x) if before is None else (self._again(x, before), before.collects)
        for calls in lists_of(self):
            calls.append(Call.of(used, collects, waits))
        return used

    @property
    def chooses(self) -> bool:
        """Whether `qparams` is `choose_qparams`, and nothing else."""
        none = (self.scale, self.sigma, self.bit_width, self.step, self.seen, self.programs)
        return all(state is None for state in none)

    def waits(self) -> Tensor | None:
        """Whether the tensor to come passes unquantized, because of a ``delay``: 0-d, or None once that is over."""
        if self.quantizer.delay == 0:
            return None
        before: Call | None = repeated(self, ends=False) if self._is_repeatable() else None
        if before is not None:
            return before.waits
        if self._has_settled() or self.seen is None:
            return None
        waits = self.seen < self.quantizer.delay
        return None if is_concrete(waits) and not waits else waits

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
        """`fake_quantize` of ``x``, or ``x`` where it ``waits``."""
        if waits is None:
            q, own = self.quantizer, self.programs
            return fake_quantize(q, x, qparams) if own is None else own.fake(x, qparams)
        if is_concrete(x, waits) and not may_share():  # there every parameter must have a gradient, if it is 0
            return x
        qparams = check_operands(self.quantizer, x, qparams)
        return unless_waiting(self.quantizer, x, qparams, waits)

    def forward(self, x: Tensor) -> Tensor:
        """`fake_quantize` of ``x``, or ``x`` during the ``delay``."""
        waits = self.waits()
        return self.quantized(x, self.qparams(x), waits)

    def begin(self, chosen: QParams) -> None:
        """Begins the state with these parameters, as the first tensor of training would; gradients go nowhere."""
        self._start(_kept(self.quantizer, chosen))

    def train(self, mode: bool = True) -> "TensorQuantizer":
        """As ``torch.nn.Module``; compiled code sees then whether delay and statistics are over, and drops them."""
        super().train(mode)
        self._has_settled()
        return self

    def compile_quant(self, **options: Any) -> None:
        """Compiles what is computed on tensors, with options of ``torch.compile``: `programs`. The state is not part.

        The same bits. Compiled code cannot refuse NaN and infinities where a scale is chosen: the scale is NaN then.
        """
        self.programs = programs(self.quantizer, **options)

    def _choose(self, x: Tensor) -> QParams:
        if self.scale is not None and self.training and may_share():  # the state learns from it
            return choose_over_ranks(self.quantizer, x)
        return choose_qparams(self.quantizer, x) if self.programs is None else self.programs.choose(x)

    def _is_repeatable(self) -> bool:
        """Whether this call has to use again what it used before, where it is repeated."""
        return self._changes and self.training and not torch.compiler.is_compiling()

    def _next(self, x: Tensor) -> tuple[QParams, Tensor | None]:
        """What the next tensor uses, and whether the state then is still collected; a step is over."""
        if self.training and self._mark is not None:
            refuse_repetition(self._mark)
        used, collects = self._used(x)
        if self.training and self.seen is not None and not self._settled:
            last = max(self._steps, self.quantizer.delay)
            with torch.no_grad():
                self.seen.copy_(self.seen + 1 if self._mean else (self.seen + 1).clamp(max=last))
        return (used if self.step is None else used._replace(seed=self._seed(self.step))), collects

    def _again(self, x: Tensor, before: Call) -> QParams:
        """What a call used before, with the gradients that it had."""
        if self.scale is None:
            return self._used(x)[0]._replace(seed=before.used.seed)
        scale, zero_point = self.scale, self.zero_point
        if before.collects is not None:
            scale = unlearned(scale, None, before.collects)
            zero_point = None if zero_point is None else unlearned(zero_point, None, before.collects)
        return self._handed_on(x, scale, zero_point, before.used)._replace(seed=before.used.seed)

    def _used(self, x: Tensor) -> tuple[QParams, Tensor | None]:
        """Scale and zero point, and `_collects`, after the state has learned."""
        q = self.quantizer
        if self.sigma is not None:
            return QParams(scale_at_sigma(q, x, self.sigma)), None
        if self.scale is None:
            given = self._choose(x)
            if self.bit_width is None:
                return given, None
            return given._replace(bit_width=self._used_width(self.bit_width.to(given.scale.dtype))), None
        collects, runs = self._collects(), q.scale.source is ScaleSource.RUNNING_STATISTIC
        chosen: QParams | None = None
        if not self._has_state():
            if not self.training and q.scale.scale_value is None:
                raise RuntimeError(
                    f"the {q.scale.source} scale of this quantizer is not set: run a batch in training mode "
                    "(module.train()) or load a state_dict that holds it, before module.eval()"
                )
            chosen = _kept(q, self._choose(x))
            self._start(chosen)
        elif self.training and (runs or collects is not None):
            chosen = _kept(q, self._choose(x))
            self._average(chosen, collects)
        scale, zero_point = self.scale, self.zero_point
        if chosen is not None and runs and q.scale.batch_in_training:
            scale, zero_point = chosen.scale, chosen.zero_point
        elif collects is not None:
            of_batch = chosen if chosen is not None and q.scale.batch_in_training else QParams(None)
            scale = unlearned(scale, of_batch.scale, collects)
            zero_point = None if zero_point is None else unlearned(zero_point, of_batch.zero_point, collects)
        return self._handed_on(x, scale, zero_point), collects

    def _handed_on(self, x: Tensor, scale: Tensor, zero_point: Tensor | None, before: QParams | None = None) -> QParams:
        """What is used instead of these states, with gradients towards them; values as ``before``, if that is given."""
        q, scale = self.quantizer, scale.to(wide_dtype(x.dtype))
        if before is None:
            value = (scale_of_logarithm if q.scale.learns_logarithm else restrict_scale)(q, scale.detach())
        else:
            value = before.scale
        used = replaced(scale, value, logarithm=q.scale.learns_logarithm)
        width = None if self.bit_width is None else self._used_width(self.bit_width.to(scale.dtype))
        if zero_point is None:
            return QParams(used, bit_width=width)
        zero = zero_point.to(scale.dtype)
        if before is not None:
            return QParams(used, replaced(zero, before.zero_point), width)
        if q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
            return QParams(used, replaced(zero, zero.detach().clone()), width)
        code = clamp(round_to_integer(zero.detach(), Rounding.TIES_TO_EVEN), q.format.lo, q.format.hi)
        if width is not None:
            lo, hi = code_range(q, width.detach())
            code = torch.minimum(torch.maximum(code, lo.to(code.dtype)), hi.to(code.dtype))
        return QParams(used, replaced(zero, code), width)

    def _used_width(self, width: Tensor) -> Tensor:
        """The width rounded into what the format allows."""
        return replaced(width, clamp(width.detach().round(), *checks.widths(self.quantizer)))

    def _collects(self) -> Tensor | None:
        """Whether the state, learned later, still is a statistic at the tensor to come: 0-d, or None if not."""
        if self._steps == 0 or self._has_settled() or self.seen is None:
            return None
        collects = self.seen < self._steps
        return None if is_concrete(collects) and not collects else collects

    def _has_settled(self) -> bool:
        """Whether nothing depends on `seen` any more. Remembered, since compiled code cannot look."""
        if not (self._settled or self._mean or self.seen is None) and is_concrete(self.seen):
            self._settled = bool(self.seen >= max(self._steps, self.quantizer.delay))
        return self._settled

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

    @torch.no_grad()
    def _start(self, chosen: QParams) -> None:
        q = self.quantizer
        check_may_learn(self, self.scale)
        for state, first in ((self.scale, chosen.scale), (self.zero_point, chosen.zero_point)):
            if state is not None:
                give_shape(state, first.shape)
                state.copy_(first)
        if self.history is not None:
            give_shape(self.history, (q.scale.window or 1, 1 + q.affine, *chosen.scale.shape))
            self._average(chosen, None)
        self._is_set = torch.compiler.is_compiling() or type(chosen.scale) is Tensor  # a FakeTensor sets nothing

    @torch.no_grad()
    def _average(self, new: QParams, collects: Tensor | None) -> None:
        check_may_learn(self, self.scale)
        states = [state for state in (self.scale, self.zero_point) if state is not None]
        values = [v.to(s.dtype) for v, s in zip(new[:2], states, strict=False)]
        if self.history is None:
            averages = [running_average(self.quantizer, *pair, self.seen) for pair in zip(states, values, strict=True)]
        else:
            history, chosen = running_percentile(self.quantizer, self.history, torch.stack(values))
            states, averages = [*states, self.history], [*chosen, history]
        for state, average in zip(states, averages, strict=True):
            state.copy_(average if collects is None else torch.where(collects, average, state))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TensorQuantizer":
        def precise(t: Tensor) -> Tensor:
            moved = fn(t)
            return t.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        super()._apply(precise, recurse)  # type: ignore[no-untyped-call]
        self._mark = None if self._mark is None else precise(self._mark)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("scale", "zero_point", "history"):
            state, stored = getattr(self, name), state_dict.get(prefix + name)
            if state is not None and stored is not None and not state.numel():
                give_shape(state, stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._is_set, self._settled = False, self.seen is None
        self._has_state()
        self._has_settled()


def quantizer_of(name: str, value: str | Quantizer) -> Quantizer:
    """The quantizer that an argument is or names in the catalog. TypeError, KeyError otherwise."""
    if isinstance(value, Quantizer):
        return value
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a catalog name or a Quantizer, got {value!r}")
    return catalog[value]


def first_step(seed: int | None) -> int:
    """Where the steps of a quantizer with this seed begin; None for the next of this process.

    Multiples of 2**32 over the golden ratio lie far from each other: those of the first 1000 seeds over 2**21 apart.
    """
    seed = next(_NUMBERS) if seed is None else seed
    check_count("seed", seed, 0)
    return seed * 0x9E3779B9 & 0xFFFFFFFF


def _parameter(value: Any) -> nn.Parameter:
    """A number as a parameter, in float32 whatever the default dtype is: state keeps its precision."""
    return nn.Parameter(torch.tensor(float(value), dtype=torch.float32))


def _kept(q: Quantizer, chosen: QParams) -> QParams:
    """What the state keeps of these: of a scale that is learned as a logarithm, that."""
    return chosen._replace(scale=log2(chosen.scale)) if q.scale.learns_logarithm else chosen
