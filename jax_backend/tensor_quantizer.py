"""A quantizer with the state of its scale: what the layers hold for each tensor that they quantize."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ..core import checks
from ..core.arithmetic import ZeroPointDomain
from ..core.catalog import catalog
from ..core.choice import check_count
from ..core.descriptions import QParams, Quantizer
from ..core.directions import Rounding
from ..core.granularity import PerAxis, PerTensor, Shape, qparams_shape
from ..core.scales import ScaleSource, Statistic
from .arguments import check_description, check_qparams, check_trained
from .arrays import as_array, is_concrete, product
from .bit_width import code_range
from .clamp import clamp
from .derivatives import replaced, varying_as
from .elementary import log2
from .layers import Axes, laid_out, laid_out_qparams
from .learned_sigma import scale_at_sigma
from .quantizer import choose_qparams, fake_quantize
from .rounding import round_to_integer
from .running import running_average, running_percentile
from .scaling import restrict_scale, scale_of_logarithm
from .sharding import lying_as

Array = jax.Array
State = tuple[Array, ...]  # scale, zero point when affine, and history where there is a window
T = TypeVar("T")
_NUMBERS = count()  # of the quantizers that draw, in the order in which they are made


class TensorQuantizer(nnx.Module):
    """Quantizes one tensor of a network, with a scale from where ``q.scale.source`` says.

    - ``statistic``: of the tensor at hand, at every call; no state. With ``learned_sigma`` the parameter ``sigma``,
      first the number in the rule: the scale is `scale_at_sigma`, whose gradient goes to sigma and not to the tensor.
    - ``constant``: the number in the rule; no state.
    - ``running_statistic``: the variable ``scale`` (an ``nnx.BatchStat``), the `running_average` of the scales of the
      tensors seen while training; the first is copied. With a ``window`` the `running_percentile` of the last ones,
      which the variable ``history`` holds. With ``batch_in_training`` it is used in evaluation only.
    - ``learned``: the parameter ``scale`` (an ``nnx.Param``), first the number in the rule, or else the statistic of
      the first tensor seen in training.
    - ``statistic_then_learned``: the parameter ``scale``, for the first ``steps`` tensors of training the running
      statistic, to which no gradient goes (it is 0); from then on learned.

    Affine quantizers keep ``zero_point`` beside it, in floating point. What is used is the scale raised to the floor of
    the rule and restricted, and the zero point, if it is a code, rounded into the format's range; gradients pass both
    unchanged. Until it is set, the state is NaN. A tensor with NaN or infinities, seen where nothing can be raised,
    leaves it as it is. A learned `log_float` scale is kept as its logarithm ``v``, also while it is averaged: what is
    used is ``s = exp2(v)``, and the gradient of v is that of s times ``s * ln 2``.

    With `learned_bits` there is the parameter ``bit_width``, which begins there. What is used is that number rounded to
    nearest even into what the format allows, and zero points in the range it leaves; its gradient passes unchanged.

    With a ``delay`` the first tensors of training pass unquantized, and so does every tensor in evaluation until that
    is over. The state learns from them all the same. What depends on how many tensors training has seen, counts them in
    the variable ``seen`` (an ``nnx.BatchStat``), and stops when nothing depends on it any more.

    With stochastic rounding there is the variable ``step`` (an ``nnx.BatchStat``), the seed of what is drawn: an
    integer that every tensor seen in training increases by one, so that each of them draws anew; in evaluation it
    stays, and the same tensor has the same bits. It begins at ``seed * 0x9E3779B9`` modulo 2**32, which keeps
    quantizers of different seeds apart for millions of steps.

    Training or not is the attribute ``use_running_average``, which ``module.train()`` and ``module.eval()`` set, as in
    ``nnx.BatchNorm``. Works under ``nnx.jit``.

    Args:
        quantizer: a catalog name or a `Quantizer`.
        shape: of the tensors to come, as far as the shape of the state depends on it; None if not known yet.
        qparams: where the state starts; None for the first tensor seen.
        use_running_average: whether the state stays as it is.
        seed: of stochastic rounding, at least 0; None for the number of such quantizers made before in this process, so
            that no two draw the same, and the same program draws the same again.
    Raises:
        TypeError: neither a name nor a Quantizer, ``qparams`` for a quantizer without state, or a seed that is no int.
        KeyError: a name that is not in the catalog.
        ValueError: a state whose shape would change with the number of rows (tokens, groups, blocks of activations),
            ``qparams`` as `fake_quantize`.
    """

    def __init__(
        self,
        quantizer: str | Quantizer,
        shape: Shape | None = None,
        *,
        qparams: QParams | None = None,
        use_running_average: bool = False,
        seed: int | None = None,
    ) -> None:
        q = quantizer_of("quantizer", quantizer)
        self.quantizer = q
        self.use_running_average = use_running_average
        stochastic = q.rounding is Rounding.STOCHASTIC
        self.step = nnx.BatchStat(jnp.asarray(first_step(seed), np.uint32)) if stochastic else None
        self.bit_width = None if q.learned_bits is None else nnx.Param(jnp.asarray(q.learned_bits, np.float32))
        self.sigma = nnx.Param(jnp.asarray(q.scale.sigma, np.float32)) if q.scale.learned_sigma else None
        counts = q.delay > 0 or q.scale.source is ScaleSource.STATISTIC_THEN_LEARNED or _is_mean(q)
        self.seen = nnx.BatchStat(jnp.zeros((), np.uint32)) if counts else None
        if q.scale.source in (ScaleSource.STATISTIC, ScaleSource.CONSTANT):
            if qparams is not None:
                raise TypeError(f"`qparams` must be None for a quantizer without state ({q.scale.source} scales)")
            self.scale = self.zero_point = self.history = None
            return
        if shape is None and not isinstance(q.granularity, (PerTensor, PerAxis)):
            raise ValueError(
                f"a {q.scale.source} scale of activations must be per tensor or per axis, got {q.granularity}"
            )
        kind = nnx.BatchStat if q.scale.source is ScaleSource.RUNNING_STATISTIC else nnx.Param
        start, zero_point = (_unset(q, shape),) * 2 if qparams is None else _given(q, shape, qparams)
        if qparams is None and q.scale.scale_value is not None and start.size:
            start = _kept(q, restrict_scale(q, jnp.full_like(start, q.scale.scale_value)))
            zero_point = jnp.full_like(start, q.scale.zero_point_value)
        self.scale = kind(start)
        self.zero_point = kind(zero_point) if q.affine else None
        self.history = nnx.BatchStat(_unseen(q, start.shape)) if _has_window(q) else None

    def qparams(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> QParams:
        """Parameters for ``x``; while training, the state learns from it first, and a step is over.

        Args:
            use_running_average: whether the state stays as it is; None for what the attribute says.
            axes: for a tensor laid out in another way: it is ``x.transpose(axes)`` that the quantizer is meant for.
        Returns:
            Parameters for ``x.transpose(axes)``.
        Raises:
            RuntimeError: no state yet, and not training (where values are at hand; else the scale is NaN).
            TypeError, ValueError: as `choose_qparams`; ValueError for a shape with other scales than the state has.
        """
        check_trained(self.quantizer, x, axes, None if self.scale is None else self.scale[...])
        frozen = self.use_running_average if use_running_average is None else use_running_average
        used = self._used_for(x, frozen, axes)
        if self.seen is not None and not frozen:
            self.seen.set_value(_counted(self.quantizer, self.seen[...]))
        return used if self.step is None else used._replace(seed=self._seed(self.step, frozen))

    def waits(self) -> Array | None:
        """Whether the tensor to come passes unquantized, because of a ``delay``: 0-d, or None where none can."""
        if self.quantizer.delay == 0 or self.seen is None:
            return None
        waits: Array = self.seen[...] < self.quantizer.delay
        return None if is_concrete(waits) and not bool(waits) else waits

    def quantized(self, x: Array, qparams: QParams, waits: Array | None, axes: Axes | None = None) -> Array:
        """`fake_quantize` of ``x``, or ``x`` where it ``waits``; it keeps its layout, ``axes`` as in `qparams`."""
        if waits is not None:
            return either(waits, lambda: x, lambda: self.quantized(x, qparams, None, axes))
        q = self.quantizer
        if axes is None:
            return fake_quantize(q, x, qparams)
        lying = None if q.rounding is Rounding.STOCHASTIC else laid_out(q, axes)  # which counts elements
        if lying is None:
            return fake_quantize(q, x.transpose(axes), qparams).transpose(np.argsort(axes))
        return fake_quantize(lying, x, laid_out_qparams(qparams, axes))

    def _used_for(self, x: Array, frozen: bool, axes: Axes | None) -> QParams:
        """Scale and zero point."""
        q, seen = self.quantizer, None if self.seen is None else self.seen[...]
        dtype = checks.scale_dtype(x.dtype.name)
        width = None if self.bit_width is None else _used_width(q, self.bit_width[...].astype(dtype))
        if self.sigma is not None:
            return QParams(scale_at_sigma(q, x if axes is None else x.transpose(axes), self.sigma[...]))
        if self.scale is None:
            return _chosen(q, x, axes)._replace(bit_width=width)
        before, batch = self._state(), None
        if frozen and (before[0].size or q.scale.scale_value is None):
            _check_set(q, before[0])
            state = before
        elif q.scale.source is ScaleSource.LEARNED and _is_set(before):
            state = before  # not written: a transformation of JAX may close over the module then
        else:
            state, batch = _learned(q, tuple(map(lax.stop_gradient, before)), x, axes, seen)
            for variable, value in zip(self._variables(), state, strict=True):
                variable.set_value(value)
        if before[0].shape != state[0].shape:
            before = state
        if q.scale.source is ScaleSource.STATISTIC_THEN_LEARNED and seen is not None:
            collects = seen < q.scale.steps
            before = tuple(jnp.where(collects, lax.stop_gradient(v), v) for v in before)
            if batch is not None:
                state = tuple(jnp.where(collects, b, v) for b, v in zip(batch, state, strict=False))  # without history
        elif batch is not None:
            state = batch
        return _used(q, [v.astype(dtype) for v in before], [v.astype(dtype) for v in state], width)

    def __call__(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> Array:
        """`fake_quantize` of ``x``, or ``x`` during the ``delay``; it keeps its layout. Arguments as `qparams`."""
        waits = self.waits()
        return self.quantized(x, self.qparams(x, use_running_average, axes), waits, axes)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What ``nnx.view`` calls.

        Args:
            use_running_average: whether the state stays as it is; None to leave that.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _seed(self, step: "nnx.BatchStat[Array]", frozen: bool) -> Array:
        """The seed of this step, which while training is over then."""
        seed: Array = step[...]
        if not frozen:
            step.set_value(seed + np.uint32(1))
        return seed

    def _variables(self) -> "list[nnx.Variable[Array]]":
        """Of scale, zero point and history those that there are."""
        return [v for v in (self.scale, self.zero_point, self.history) if v is not None]

    def _state(self) -> State:
        """Their values."""
        return tuple(variable[...] for variable in self._variables())


def quantizer_of(name: str, value: str | Quantizer) -> Quantizer:
    """The quantizer that an argument is or names in the catalog.

    Raises:
        TypeError: neither; ``KeyError``: an unknown name.
    """
    if isinstance(value, str):
        value = catalog[value]
    if not isinstance(value, Quantizer):
        raise TypeError(f"`{name}` must be a catalog name or a Quantizer, got {value!r}")
    check_description(value)
    return value


def first_step(seed: int | None) -> int:
    """Where the steps of a quantizer with this seed begin; None for the next of this process.

    Multiples of 2**32 over the golden ratio lie far from each other: those of the first 1000 seeds over 2**21 apart.
    """
    seed = next(_NUMBERS) if seed is None else seed
    check_count("seed", seed, 0)
    return seed * 0x9E3779B9 & 0xFFFFFFFF


def _unset(q: Quantizer, shape: Shape | None) -> Array:
    """NaN, in the shape of the state; empty where that is not known yet."""
    if isinstance(q.granularity, PerTensor):
        shape = ()
    return jnp.full((0,) if shape is None else qparams_shape(q.granularity, shape), jnp.nan, np.float32)


def _given(q: Quantizer, shape: Shape | None, qparams: QParams) -> tuple[Array, Array]:
    """Scale and zero point given (anything, where there is none), checked as far as the shape of tensors is known."""
    shape = tuple(as_array("qparams.scale", qparams.scale).shape) if shape is None else shape
    scale, zero_point = check_qparams(q, shape, "float32", qparams)
    return _kept(q, scale), scale if zero_point is None else zero_point.astype(np.float32)


def _kept(q: Quantizer, scale: Array) -> Array:
    """What the state keeps of a scale: of one that is learned as a logarithm, that."""
    return log2(scale) if q.scale.learns_logarithm else scale


def _is_set(state: State) -> bool:
    """Whether the values are at hand, and there."""
    return all(v.size and is_concrete(v) and not np.isnan(np.asarray(v)).any() for v in state)


def _check_set(q: Quantizer, scale: Array) -> None:
    if not scale.size or (is_concrete(scale) and bool(np.isnan(np.asarray(scale)).any())):
        raise RuntimeError(
            f"the {q.scale.source} scale of this quantizer is not set: run a batch in training mode "
            "(module.train()) or load tensors that hold it, before module.eval()"
        )


def _chosen(q: Quantizer, x: Array, axes: Axes | None) -> QParams:
    """`choose_qparams` for ``x.transpose(axes)``, from ``x`` as it lies where possible."""
    if axes is None:
        return choose_qparams(q, x)
    lying = laid_out(q, axes) if q.scale.statistic in (Statistic.EXTREMES, Statistic.PERCENTILE) else None
    if lying is None:  # or where the order of the elements is that of a sum
        return choose_qparams(q, x.transpose(axes))
    return laid_out_qparams(choose_qparams(lying, x), tuple(np.argsort(axes)))


def _is_mean(q: Quantizer) -> bool:
    """Whether the state is a mean, which needs to know of how many."""
    return _runs(q) and q.scale.momentum is None and q.scale.window is None


def _runs(q: Quantizer) -> bool:
    return q.scale.source in (ScaleSource.RUNNING_STATISTIC, ScaleSource.STATISTIC_THEN_LEARNED)


def _has_window(q: Quantizer) -> bool:
    """Whether the state is a percentile, which needs to know them all."""
    return _runs(q) and q.scale.window is not None


def _unseen(q: Quantizer, shape: Shape) -> Array:
    """The history of nothing; empty where its shape is not known yet."""
    rows = (q.scale.window or 1, 1 + q.affine)
    return jnp.full((0,) if shape == (0,) else (*rows, *shape), jnp.nan, np.float32)


def _counted(q: Quantizer, seen: Array) -> Array:
    """One tensor more, unless nothing depends on it any more."""
    steps = q.scale.steps if q.scale.source is ScaleSource.STATISTIC_THEN_LEARNED else 0
    more = seen + np.uint32(1)
    return more if _is_mean(q) else jnp.minimum(more, np.uint32(max(steps, q.delay)))


def either(condition: Array, yes: Callable[[], T], no: Callable[[], T]) -> T:
    """``yes()`` or ``no()``, only one of them computed; the gradient is that of the one."""
    if is_concrete(condition):  # `cond` would compile both anew at every call
        return yes() if condition else no()
    chosen: T = lax.cond(condition, yes, no)
    return chosen


def _learned(q: Quantizer, old: State, x: Array, axes: Axes | None, seen: Array | None) -> tuple[State, State | None]:
    """The state after ``x``, set from the first tensor, averaged with later ones where it is a running statistic.

    Also that of ``x`` alone, where it is used instead; None if not.
    """

    def alike(branch: Callable[[], Any]) -> Callable[[], Any]:
        """The branch, whose results may differ from device to device as those of the other may."""
        return lambda: jax.tree.map(lambda a: varying_as(a, *map(jax.typeof, (*old, x))), branch())

    def chosen() -> State:
        """Scale and zero point of ``x``."""
        qparams = _chosen(q, lax.stop_gradient(x), axes)
        qparams = qparams._replace(scale=_kept(q, qparams.scale))
        return tuple(lying_as(p.astype(np.float32), old[0]) for p in qparams[:2] if p is not None)

    def averaged() -> tuple[State, State]:
        """The average with ``x``, and ``x`` alone."""
        new = chosen()
        if _has_window(q):
            history = old[-1] if old[0].size else _unseen(q, new[0].shape)
            history, percentiles = running_percentile(q, history, jnp.stack(new))
            if old[0].size:  # what the state was given lasts until a tensor is seen
                percentiles = jnp.where(jnp.isnan(percentiles), jnp.stack(old[:-1]), percentiles)
            return (*percentiles, history), new
        start = tuple(map(jnp.full_like, new, [np.nan] * len(new))) if not old[0].size else old
        return tuple(running_average(q, o, n, seen) for o, n in zip(start, new, strict=True)), new

    if q.scale.source is ScaleSource.LEARNED:
        if not old[0].size:
            return chosen(), None
        return either(jnp.isnan(old[0]).any(), alike(chosen), alike(lambda: old)), None
    over = None if seen is None or q.scale.source is ScaleSource.RUNNING_STATISTIC else seen >= q.scale.steps
    if over is None or not old[0].size:
        state, batch = averaged()
    else:
        state, batch = either(over, alike(lambda: (old, old[: 1 + q.affine])), alike(averaged))
    return state, batch if q.scale.batch_in_training else None


def _used_width(q: Quantizer, width: Array) -> Array:
    """The width rounded into what the format allows."""
    return replaced(width, clamp(jnp.round(lax.stop_gradient(width)), *checks.widths(q)))


def _used(q: Quantizer, before: Sequence[Array], state: Sequence[Array], width: Array | None) -> QParams:
    """What quantizes, from the state; gradients go to the state as it was ``before`` it learned."""
    if q.scale.learns_logarithm:
        scale = _of_logarithm(before[0], scale_of_logarithm(q, state[0]))
    else:
        scale = replaced(before[0], restrict_scale(q, state[0]))
    if not q.affine:
        return QParams(scale, bit_width=width)
    if q.arithmetic.zero_point_domain is not ZeroPointDomain.INTEGER:
        return QParams(scale, replaced(before[1], state[1]), width)
    limits = (q.format.lo, q.format.hi) if width is None else code_range(q, lax.stop_gradient(width))
    code = clamp(round_to_integer(state[1], Rounding.TIES_TO_EVEN), *limits)
    return QParams(scale, replaced(before[1], code), width)


@jax.custom_jvp
def _of_logarithm(state: Array, used: Array) -> Array:
    """The scale of a logarithm, with the derivative ``s * ln 2``; both products rounded."""
    return used


@_of_logarithm.defjvp
def _of_logarithm_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    used = _of_logarithm(*primals)
    return used, varying_as(tangents[0], jax.typeof(used)) * product(used, jnp.full_like(used, np.log(2)))
