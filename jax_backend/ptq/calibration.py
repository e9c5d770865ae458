"""Scales of activations from data, of layers and of functions: quantize, run some batches under `Calibration`, use.

`quantize` makes a function whose weights are quantized and whose activations wait for their scales. It runs the given
function as its jaxpr says. What is quantized is a *site*: the output of a product with a weight (what the function
closes over), the input of one that nothing before it quantized, and the result of a function (``sigmoid``, ``softmax``,
``log``, ``elu``, a product of activations), told apart by its name and its turn. Contractions are of codes, exactly.

A function that cannot leave a range, `core.calibration`, gets its scale from that range, without data. All others are
observed: the running average of the scales of the batches, ``momentum * old + (1 - momentum) * new``, the first one
copied. Streamlining then takes away sites whose codes nothing computes with.

Loops and branches (``scan``, ``while``, ``cond``) are not looked into; and what `jax.nn` writes out in arithmetic, as
``gelu``, is no function here.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ...core.calibration import KNOWN_RANGES, Site, function_of, site, table
from ...core.choice import check_number
from ...core.descriptions import Quantizer
from ...core.granularity import PerTensor
from ...core.scales import ScaleSource
from ..arrays import is_concrete
from ..quantizer import choose_qparams, fake_quantize
from ..tensor_quantizer import TensorQuantizer, quantizer_of
from .walk import Value, in_jaxpr

Array = jax.Array


class Quantized:
    """A function whose weights and activations are quantized; `quantize` makes it.

    Works under ``jax.jit``, ``jax.grad`` and ``jax.vmap`` once it is calibrated.

    Attributes:
        sites: the quantizer of each site.
        removed: sites that quantize nothing, with the reason.
    """

    def __init__(self, function: Callable[..., Any], weights: Quantizer, activations: Quantizer) -> None:
        self.function, self.weights, self.activations = function, weights, activations
        self.sites: dict[str, TensorQuantizer] = {}
        self.removed: dict[str, str] = {}
        self.calibrated = False
        self.follower: _Follower | None = None

    def __call__(self, *args: Any) -> Any:
        """What the function gives, quantized.

        Raises:
            RuntimeError: it is not calibrated, or is being calibrated within ``jax.jit``.
        """
        if Calibration.active is not None:
            if not is_concrete(*jax.tree.leaves(args)):
                raise RuntimeError("calibration looks at numbers: call the function itself, not within jax.jit")
            Calibration.active.adopt(self)
        elif not self.calibrated:
            raise RuntimeError("calibration never run: call it on some batches within `with Calibration():` first")
        return in_jaxpr(self, self.function, args)

    def quantized(self, name: str, value: Value) -> Value:
        """The value with the codes of its site, if there is one."""
        x, follower = value.array, self.follower
        if not jnp.issubdtype(x.dtype, jnp.floating) or (follower is not None and not x.size):
            return value
        if follower is not None and name not in self.removed:
            follower.readers.setdefault(name, set())
            if name not in self.sites:
                self.sites[name] = self._quantizer(name, follower.momentum)
        if name not in self.sites:
            return value
        held = self.sites[name]
        qparams = held.qparams(x, follower is None)
        x_hat = fake_quantize(held.quantizer, x, qparams)
        return value._replace(array=x_hat, q=held.quantizer, qparams=qparams, sites=frozenset([name]))

    def used(self, reader: str, values: Sequence[Value], *, as_codes: bool) -> None:
        """An operation took values, or their codes."""
        if self.follower is None:
            return
        for name in {name for value in values for name in value.sites}:
            if as_codes:
                self.follower.needed.add(name)
            else:
                self.follower.readers[name].add(reader)

    def _quantizer(self, name: str, momentum: float) -> TensorQuantizer:
        """A new one: with the scale of a range that is known, or one that learns it."""
        q, ends = self.activations, KNOWN_RANGES.get(function_of(name))
        if ends is None:
            return TensorQuantizer(q.replace(source=ScaleSource.RUNNING_STATISTIC, momentum=momentum))
        qparams = choose_qparams(q, jnp.array(ends, jnp.float32))
        zero = 0 if qparams.zero_point is None else qparams.zero_point.item()
        scale = qparams.scale.item()
        return TensorQuantizer(q.replace(source=ScaleSource.CONSTANT, scale_value=scale, zero_point_value=zero))


class _Follower:
    """Whose codes are used by what, while a function runs."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.needed: set[str] = set()
        self.readers: dict[str, set[str]] = {}


def quantize(
    function: Callable[..., Any],
    weights: str | Quantizer = "int8_per_channel",
    activations: str | Quantizer = "int8_per_tensor",
) -> Quantized:
    """Quantizes the weights that a function closes over, and prepares activations for `Calibration`.

    Args:
        function: of arrays, or pytrees of them: a model with its parameters inside, as ``lambda x: model(x)``.
        weights: a catalog name or a `Quantizer`; ``(out, in)`` of a product, ``(out, in, ...)`` of a convolution.
        activations: the same, of one scale for each tensor.
    Raises:
        TypeError, KeyError: as `tensor_quantizer.quantizer_of`. ValueError: activations that have more than one scale,
            or one that is no statistic.
    """
    q_w, q = quantizer_of("weights", weights), quantizer_of("activations", activations)
    if q.granularity != PerTensor() or q.scale.source is not ScaleSource.STATISTIC or q.learned_bits is not None:
        raise ValueError(f"`activations` must have one scale, a statistic, got {q.granularity}, {q.scale}")
    return Quantized(function, q_w, q)


class Calibration:
    """Within it, functions made by `quantize` find the scales of their activations. Leaving it fixes them.

    ::

        quantized = quantize(lambda x: model(x), weights="int8_per_channel", activations="int8_per_tensor")
        with Calibration() as calibration:
            for x in batches:
                quantized(x)
        print(calibration)

    Args:
        momentum: weight of the scale so far against that of a batch, in [0, 1).
        streamline: whether sites whose codes nothing computes with are taken away.
    Attributes:
        report: one `Site` for each, when it is over.
    Raises:
        ValueError: a momentum outside; when leaving, no function of `quantize` was run. RuntimeError: within another
            one. Leaving by an exception puts the sites back as they were.
    """

    active: "Calibration | None" = None

    def __init__(self, momentum: float = 0.9, streamline: bool = True) -> None:
        check_number("momentum", momentum)
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must lie in [0, 1), got {momentum}")
        self.momentum, self.streamline = momentum, streamline
        self.report: list[Site] = []
        self._functions: list[tuple[Quantized, dict[str, TensorQuantizer]]] = []

    def __enter__(self) -> "Calibration":
        if Calibration.active is not None:
            raise RuntimeError("a calibration is running already")
        Calibration.active = self
        return self

    def adopt(self, quantized: Quantized) -> None:
        """Looks at a function of `quantize` from now on."""
        if quantized.follower is None:
            self._functions.append((quantized, {name: _copied(held) for name, held in quantized.sites.items()}))
            quantized.follower = _Follower(self.momentum)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Calibration.active = None
        functions, self._functions = self._functions, []
        for quantized, before in functions:
            follower, quantized.follower = quantized.follower, None
            if error is None and follower is not None:
                self._finish(quantized, follower)
            else:
                quantized.sites = before
        if error is None and not functions:
            raise ValueError("calibration never run: no function of `quantize` ran within `Calibration`")

    def _finish(self, quantized: Quantized, follower: _Follower) -> None:
        """Fixes the scales of a function, takes away what is not needed, and reports."""
        for name, read in follower.readers.items():
            kept = name in follower.needed or not self.streamline
            qparams = quantized.sites[name].qparams(jnp.zeros(1), True)
            zero = None if qparams.zero_point is None else qparams.zero_point.item()
            self.report.append(site(name, "", qparams.scale.item(), zero, kept, sorted(read)))
            if not kept:
                quantized.removed[name] = self.report[-1].reason
                del quantized.sites[name]
        quantized.calibrated = True

    def __str__(self) -> str:
        """The report as a table."""
        return table(self.report)


def _copied(held: TensorQuantizer) -> TensorQuantizer:
    return nnx.clone(held)
