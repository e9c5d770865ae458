"""A quantizer with the state of its scale: what the layers hold for each tensor that they quantize."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from ..core import checks
from ..core.catalog import catalog
from ..core.descriptions import QParams, Quantizer, Rounding, ScaleSource
from ..core.granularity import PerAxis, PerTensor, Shape, qparams_shape
from .arguments import check_description, check_qparams
from .arrays import is_concrete
from .clamp import clamp
from .layers import Axes, laid_out, laid_out_qparams
from .quantizer import choose_qparams, fake_quantize
from .rounding import round_to_integer
from .scaling import restrict_scale

Array = jax.Array


class TensorQuantizer(nnx.Module):
    """Quantizes one tensor of a network, with a scale from where ``q.scale.source`` says.

    - ``statistic``: of the tensor at hand, at every call; no state.
    - ``running_statistic``: the variable ``scale`` (an ``nnx.BatchStat``), the average
      ``momentum * old + (1 - momentum) * new`` of the scales of the tensors seen while training; the first is copied.
    - ``learned``: the parameter ``scale`` (an ``nnx.Param``), first the statistic of the first tensor seen in training.

    Affine quantizers keep ``zero_point`` beside it, in floating point. What is used is the scale raised to the floor of
    the rule and restricted, and the zero point rounded into the format's range; gradients pass both unchanged. Until it
    is set, the state is NaN. A tensor with NaN or infinities, seen where nothing can be raised, leaves it as it is.

    With stochastic rounding there is the variable ``step`` (an ``nnx.BatchStat``), the seed of what is drawn: an
    integer that every tensor seen in training increases by one, so that each of them draws anew; in evaluation it
    stays, and the same tensor has the same bits. Quantizers that are to draw differently at the same step need other
    numbers to begin with: ``quantizer.step.set_value(...)``.

    Training or not is the attribute ``use_running_average``, which ``module.train()`` and ``module.eval()`` set, as in
    ``nnx.BatchNorm``. Works under ``nnx.jit``.

    Args:
        quantizer: a catalog name or a `Quantizer`.
        shape: of the tensors to come, as far as the shape of the state depends on it; None if not known yet.
        qparams: where the state starts; None for the first tensor seen.
        use_running_average: whether the state stays as it is.
    Raises:
        TypeError: neither a name nor a Quantizer, or ``qparams`` for a quantizer without state.
        KeyError: a name that is not in the catalog.
        ValueError: a state whose shape would change with the number of rows (tokens, groups, blocks of activations), an
            arithmetic that is not the default, ``qparams`` as `fake_quantize`.
    """

    def __init__(
        self,
        quantizer: str | Quantizer,
        shape: Shape | None = None,
        *,
        qparams: QParams | None = None,
        use_running_average: bool = False,
    ) -> None:
        q = quantizer_of("quantizer", quantizer)
        self.quantizer = q
        self.use_running_average = use_running_average
        self.step = nnx.BatchStat(jnp.zeros((), np.uint32)) if q.rounding is Rounding.STOCHASTIC else None
        if q.scale.source is ScaleSource.STATISTIC:
            if qparams is not None:
                raise TypeError("`qparams` must be None for a quantizer whose scale is a statistic of each tensor")
            self.scale = self.zero_point = None
            return
        if shape is None and not isinstance(q.granularity, (PerTensor, PerAxis)):
            raise ValueError(
                f"a {q.scale.source} scale of activations must be per tensor or per axis, got {q.granularity}"
            )
        kind = nnx.Param if q.scale.source is ScaleSource.LEARNED else nnx.BatchStat
        start = _unset(q, shape) if qparams is None else _given(q, shape, qparams)
        self.scale = kind(start)
        zero_point = start if qparams is None or not q.affine else qparams.zero_point.astype(np.float32)
        self.zero_point = kind(zero_point) if q.affine else None

    def qparams(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> QParams:
        """Parameters for ``x``; while training, the state learns from it first, and a step is over.

        Args:
            use_running_average: whether the state stays as it is; None for what the attribute says.
            axes: for a tensor laid out in another way: it is ``x.transpose(axes)`` that the quantizer is meant for.
        Returns:
            Parameters for ``x.transpose(axes)``.
        Raises:
            RuntimeError: no state yet, and not training (where values are at hand; else the scale is NaN).
            TypeError, ValueError: as `choose_qparams`.
        """
        frozen = self.use_running_average if use_running_average is None else use_running_average
        used = self._used_for(x, frozen, axes)
        return used if self.step is None else used._replace(seed=self._seed(self.step, frozen))

    def _used_for(self, x: Array, frozen: bool, axes: Axes | None) -> QParams:
        """Scale and zero point."""
        if self.scale is None:
            return _chosen(self.quantizer, x, axes)
        before = self._state()
        if frozen:
            _check_set(self.quantizer, before[0])
            state = before
        else:
            state = _learned(self.quantizer, tuple(map(lax.stop_gradient, before)), x, axes)
            for variable, value in zip((self.scale, self.zero_point), state, strict=False):
                variable.set_value(value)  # type: ignore[union-attr]  # None only where there is no value either
        if before[0].shape != state[0].shape:
            before = state
        dtype = checks.scale_dtype(x.dtype.name)
        return _used(self.quantizer, [v.astype(dtype) for v in before], [v.astype(dtype) for v in state])

    def __call__(self, x: Array, use_running_average: bool | None = None, axes: Axes | None = None) -> Array:
        """`fake_quantize` of ``x``, which keeps its layout; arguments as `qparams`."""
        q, qparams = self.quantizer, self.qparams(x, use_running_average, axes)
        if axes is None:
            return fake_quantize(q, x, qparams)
        lying = None if q.rounding is Rounding.STOCHASTIC else laid_out(q, axes)  # which counts elements
        if lying is None:
            return fake_quantize(q, x.transpose(axes), qparams).transpose(np.argsort(axes))
        return fake_quantize(lying, x, laid_out_qparams(qparams, axes))

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

    def _state(self) -> tuple[Array, ...]:
        """Values of the variables: scale and, when affine, zero point."""
        return tuple(variable[...] for variable in (self.scale, self.zero_point) if variable is not None)


def quantizer_of(name: str, value: str | Quantizer) -> Quantizer:
    """The quantizer that an argument is or names in the catalog.

    Raises:
        TypeError: neither; ``KeyError``: an unknown name; ``ValueError``: an arithmetic that is not the default.
    """
    if isinstance(value, str):
        value = catalog[value]
    if not isinstance(value, Quantizer):
        raise TypeError(f"`{name}` must be a catalog name or a Quantizer, got {value!r}")
    check_description(value)
    return value


def _unset(q: Quantizer, shape: Shape | None) -> Array:
    """NaN, in the shape of the state; empty where that is not known yet."""
    if isinstance(q.granularity, PerTensor):
        shape = ()
    return jnp.full((0,) if shape is None else qparams_shape(q.granularity, shape), jnp.nan, np.float32)


def _given(q: Quantizer, shape: Shape | None, qparams: QParams) -> Array:
    """The scale given, checked as far as it can be without knowing the shape of tensors."""
    shape = tuple(qparams.scale.shape) if shape is None else shape
    return check_qparams(q, shape, "float32", qparams)[0]


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
    lying = laid_out(q, axes)
    if lying is None:
        return choose_qparams(q, x.transpose(axes))
    return laid_out_qparams(choose_qparams(lying, x), tuple(np.argsort(axes)))


def _learned(q: Quantizer, old: tuple[Array, ...], x: Array, axes: Axes | None) -> tuple[Array, ...]:
    """The state after ``x``: set from the first tensor, averaged with later ones where it is a running statistic."""

    def chosen() -> tuple[Array, ...]:
        """Scale and zero point of ``x``."""
        qparams = _chosen(q, lax.stop_gradient(x), axes)
        return tuple(p.astype(np.float32) for p in qparams[:2] if p is not None)

    if not old[0].size:
        return chosen()
    unset = jnp.isnan(old[0])
    if q.scale.source is ScaleSource.LEARNED:
        state: tuple[Array, ...] = lax.cond(unset.any(), chosen, lambda: old)
        return state
    new = chosen()
    bad = jnp.isnan(new[0])
    kept = (jnp.where(unset, n, _average(o, n, q.scale.momentum)) for o, n in zip(old, new, strict=True))
    return tuple(jnp.where(bad, o, k) for o, k in zip(old, kept, strict=True))


def _average(old: Array, new: Array, momentum: float) -> Array:
    """``momentum * old + (1 - momentum) * new``, every operation rounded; selects prevent fused multiply-adds."""
    first, second = old * np.float32(momentum), new * np.float32(1 - momentum)
    return jnp.where(jnp.isnan(first), old, first) + jnp.where(jnp.isnan(second), new, second)


def _used(q: Quantizer, before: Sequence[Array], state: Sequence[Array]) -> QParams:
    """What quantizes, from the state; gradients go to the state as it was ``before`` it learned."""
    scale = _replaced(before[0], restrict_scale(q, state[0]))
    if not q.affine:
        return QParams(scale)
    code = clamp(round_to_integer(state[1], Rounding.TIES_TO_EVEN), q.format.lo, q.format.hi)
    return QParams(scale, _replaced(before[1], code))


@jax.custom_vjp
def _replaced(state: Array, used: Array) -> Array:
    """The value that is used instead of a state, with the gradient of the identity."""
    return used


def _replaced_forward(state: Array, used: Array) -> tuple[Array, None]:
    return used, None


def _replaced_backward(_: None, g: Array) -> tuple[Array, Array]:
    return g, jnp.zeros_like(g)


_replaced.defvjp(_replaced_forward, _replaced_backward)
