"""What a layer holds for a quantizer that is declared: it makes the quantizer, and makes it again when layers change.

A proxy resolves its declaration (an `samebits.core.inject.Injector`) with the layer as ``module``, a tuple of layers
where several share it:

- with an attribute ``tensor_quant``, that is a component: a module that gives (value, scale, zero point, bit width);
- without, the attribute ``quantizer`` is a `Quantizer`, of which it makes a `TensorQuantizer`.

It does so when it is made, when another layer comes to share it, when weights arrive in a state dict, and when
`QuantProxy.init_tensor_quant` is called. Parameters stay the same objects, so an optimizer made before still trains
them; what a state dict brings for the quantizer stays. A resolution that fails changes nothing.

Towards a layer a proxy is what `TensorQuantizer` is: ``quantizer``, ``qparams(x)``, ``waits()``, ``forward(x)`` and
``quantized(x, qparams, waits)``; ``quantizer`` is None where nothing is quantized or a component describes nothing.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerAxis, qparams_shape
from ...core.inject import Declaration, Resolution
from ...core.scales import ScaleSource
from .. import config
from ..making_again import adopt, begin, qparams_of_all
from ..tensor_quantizer import TensorQuantizer


class QuantProxy(nn.Module):
    """The quantizer that a declaration gives, for the layers that hold it; see the module.

    Args:
        quant_layer: the layer that holds it.
        quant_injector: the declaration.

    Attributes:
        declaration: as given, without a layer.
        tensor_quant: what is made of it.
        disable_quant: whether everything passes as it is.

    Raises:
        DependencyError: the declaration cannot be resolved.
        TypeError, ValueError: what it resolves to is not possible, as `Quantizer` and `TensorQuantizer`.
    """

    roles: ClassVar[tuple[str, ...]] = ()
    tensor_quant: Any

    def __init__(self, quant_layer: nn.Module, quant_injector: Declaration) -> None:
        super().__init__()
        self.declaration = quant_injector
        self.disable_quant = False
        self.register_module("tensor_quant", None)
        self._layers: list[nn.Module] = []
        self._signed: bool | None = None
        self._asked: set[str] = set()  # by the resolution
        self._compile_options: dict[str, Any] | None = None
        self._prefix = ""  # under which the last state dict came, and of it:
        self._load: object = None
        self._loaded: set[str] = set()
        self.register_load_state_dict_post_hook(QuantProxy._after_load)  # type: ignore[no-untyped-call]
        self.add_tracked_module(quant_layer)

    def add_tracked_module(self, module: nn.Module) -> None:
        """Another layer holds this proxy: it is made again for all of them, unless it did not look at any.

        Raises:
            As the class; then nothing has changed.
        """
        if any(module is layer for layer in self._layers):
            return
        self._layers.append(module)
        try:
            if self.tensor_quant is None or self._depends_on_layers():
                self.init_tensor_quant()
        except BaseException:
            self._layers.pop()
            raise
        module.register_load_state_dict_post_hook(self._after_load_of_layer)  # type: ignore[no-untyped-call]

    def init_tensor_quant(self) -> None:
        """Makes the quantizer again, from the layers as they are now. What it had learned is lost.

        Raises:
            As the class; then nothing has changed.
        """
        self._make(set())

    @property
    def quantizer(self) -> Quantizer | None:
        """The description of what is computed; None where there is none, and where nothing is quantized."""
        return None if self.disable_quant else getattr(self.tensor_quant, "quantizer", None)

    @property
    def is_signed(self) -> bool:
        """Whether there are negative values.

        Raises:
            TypeError: the declaration does not say.
        """
        if self._signed is None:
            role = self.roles[0]
            raise TypeError(
                f"`signed` is not set in {self.declaration!r}: declare `signed = True` or `signed = False` there, or "
                f"give the layer `{role}_signed=` ({', '.join(type(layer).__name__ for layer in self._layers)})"
            )
        return self._signed

    def qparams(self, x: Tensor) -> QParams:
        """Parameters for ``x``; while training, the state learns from it first. Raises as `TensorQuantizer.qparams`."""
        self._check_signed()
        found: QParams = self.tensor_quant.qparams(x)
        return found

    def waits(self) -> Tensor | None:
        """Whether the tensor to come passes unquantized, because of a delay: 0-d, or None once that is over."""
        waits: Tensor | None = self.tensor_quant.waits()
        return waits

    def quantized(self, x: Tensor, qparams: QParams, waits: Tensor | None) -> Tensor:
        """``x`` quantized with these parameters, or as it is where it waits."""
        quantized: Tensor = self.tensor_quant.quantized(x, qparams, waits)
        return quantized

    def forward(self, x: Tensor) -> Tensor:
        """``x`` quantized."""
        if self.disable_quant:
            return x
        if self.quantizer is None:
            self._check_signed()
            value: Tensor = self._of_component(x)[0]
            return value
        waits = self.waits()
        return self.quantized(x, self.qparams(x), waits)

    def scale(self) -> Tensor:
        """The scale that the next tensor would get in evaluation. Raises RuntimeError where that depends on it."""
        scale: Tensor = self._now()[0]
        return scale

    def zero_point(self) -> Tensor:
        """The zero point beside the scale; 0.0 where there is none."""
        zero_point = self._now()[1]
        return torch.zeros(()) if zero_point is None else zero_point

    def bit_width(self) -> Tensor:
        """The number of bits."""
        q = self.quantizer
        if q is not None and q.learned_bits is None:  # known before there is a scale
            self._check_signed()
            return torch.tensor(float(q.format.bits))
        width: Tensor = self._now()[2]
        return width

    def compile_quant(self, **options: Any) -> None:
        """Compiles the quantizer alone, with options of ``torch.compile``; once more whenever it is made again."""
        self._compile_options = options
        compile_quant(self.tensor_quant, options)

    def extra_repr(self) -> str:
        """The declaration."""
        return repr(self.declaration)

    def _check_signed(self) -> None:
        if self._signed is None:
            self.is_signed  # noqa: B018  # which says what to declare

    def _depends_on_layers(self) -> bool:
        return "module" in self._asked

    def _make(self, loaded: set[str]) -> None:
        """Makes the quantizer; of the old one these entries of its state dict stay."""
        layers = self._layers
        declaration = self.declaration.let(module=layers[0] if len(layers) == 1 else tuple(layers))
        resolution = Resolution(declaration, "tensor_quant" if "tensor_quant" in declaration else "quantizer")
        with torch.no_grad():  # a number that comes from a weight is a number from then on, and can be copied
            found = resolution.root()
        fresh = self._of_description(found) if isinstance(found, Quantizer) else found
        if not isinstance(fresh, nn.Module):
            raise TypeError(f"{self.declaration!r}.{resolution.name} must be a module or a Quantizer, got {found!r}")
        if "signed" in declaration:
            self._signed = declaration.signed
        elif isinstance(found, Quantizer):
            self._signed = found.format.lo < 0
        else:
            self._signed = None
        self._begin(fresh)
        fresh.train(self.training)
        if self.tensor_quant is not None:
            adopt(self.tensor_quant, fresh, loaded)
        self._asked = resolution.asked
        self.tensor_quant = fresh
        if self._compile_options is not None:
            compile_quant(fresh, self._compile_options)

    def _of_description(self, q: Quantizer) -> nn.Module:
        return TensorQuantizer(q)

    def _begin(self, fresh: nn.Module) -> None:
        """Sets what a quantizer knows before it sees a tensor."""

    def _now(self) -> tuple[Any, Any, Any]:
        """Scale, zero point and bit width, learned from nothing and counted by nobody."""
        self._check_signed()
        x, training = self._example(), self.tensor_quant.training
        self.tensor_quant.train(False)
        try:
            found = self._of_component(x)[1:] if self.quantizer is None else self.qparams(x)[:3]
        finally:
            self.tensor_quant.train(training)
        return found[0], found[1], found[2]

    def _of_component(self, x: Tensor) -> tuple[Tensor, ...]:
        """What a component without a description gives."""
        given = self.tensor_quant(x)
        if not (isinstance(given, tuple) and len(given) >= 4):
            what = tuple(given.shape) if isinstance(given, Tensor) else given
            raise TypeError(
                f"{self.declaration!r}.tensor_quant, a {type(self.tensor_quant).__name__}, must give (value, scale, "
                f"zero point, bit width), got {'a tensor of shape ' if isinstance(given, Tensor) else ''}{what}"
            )
        return given

    def _example(self) -> Tensor:
        """A tensor that all scales of this quantizer fit."""
        for tensor in (*self.tensor_quant.parameters(), *self.tensor_quant.buffers()):
            if tensor.is_floating_point() and tensor.numel():
                return torch.zeros(tensor.shape, dtype=torch.float32, device=tensor.device)
        source = None if self.quantizer is None else self.quantizer.scale.source
        if source in (None, ScaleSource.CONSTANT):
            return torch.zeros(())
        raise RuntimeError(f"the {source} scale of {self.declaration!r} is that of each tensor, and there is none yet")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        self._prefix = prefix
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _after_load(self, keys: Any) -> None:
        """What came for the quantizer stays, and what did not is missing, or is ignored."""
        if self._load is not keys.missing_keys:  # the list of this call of `load_state_dict`
            self._load, self._loaded = keys.missing_keys, set()
        inner = f"{self._prefix}tensor_quant."
        missing = {key for key in keys.missing_keys if key.startswith(inner)}
        self._loaded |= {name for name in self.tensor_quant.state_dict() if inner + name not in missing}
        if config.IGNORE_MISSING_KEYS:
            keys.missing_keys[:] = [key for key in keys.missing_keys if key not in missing]

    def _after_load_of_layer(self, layer: nn.Module, keys: Any) -> None:
        """Made again where weights of the layer came."""
        inside = [(f"{name}.", module) for name, module in layer.named_modules(remove_duplicate=False)]
        place = next((n for n, module in inside if module is self and self._prefix.endswith(n)), None)
        if place is None:
            return
        owner, quantizers = self._prefix[: -len(place)], tuple(n for n, module in inside if isinstance(module, HELD))
        names = [name for name, _ in layer.named_parameters() if not name.startswith(quantizers)]
        if self._depends_on_layers() and any(owner + name not in keys.missing_keys for name in names):
            self._make(self._loaded)


def compile_quant(tensor_quant: Any, options: Mapping[str, Any]) -> None:
    """Compiles a `TensorQuantizer`, or a component as a whole."""
    compiles = tensor_quant.compile_quant if isinstance(tensor_quant, TensorQuantizer) else tensor_quant.compile
    compiles(**options)


HELD = (QuantProxy, TensorQuantizer)


class OneWeight:
    """Of a layer with several weights one, as the ``module`` that a declaration looks at: the layer of that weight."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.layer, self.name = layer, name

    @property
    def weight(self) -> Tensor:
        """That weight."""
        weight: Tensor = getattr(self.layer, self.name)
        return weight

    def __getattr__(self, name: str) -> Any:
        if name in ("layer", "name") or name.startswith("__"):  # of a copy that is not complete
            raise AttributeError(name)
        return getattr(self.layer, name)


class WeightQuantProxy(QuantProxy):
    """Of a weight. Layers that share one share its scale, a statistic too: it is that of all their weights together."""

    roles = ("weight",)

    def qparams(self, x: Tensor) -> QParams:
        """Parameters for ``x``; those of all weights together where several layers share a statistic."""
        found, q = super().qparams(x), self.quantizer
        if len(self._layers) == 1 or q is None or q.scale.source is not ScaleSource.STATISTIC:
            return found
        scale, zero_point = qparams_of_all(q, self._weights())[:2]
        zero = getattr(self.tensor_quant, "zero_point_impl", None)
        learned = getattr(zero, "source", ScaleSource.STATISTIC) is not ScaleSource.STATISTIC
        return found._replace(scale=scale, zero_point=found.zero_point if learned else zero_point)

    def _weights(self) -> list[Tensor]:
        return [layer.weight for layer in self._layers]  # type: ignore[misc]  # what holds one has a weight

    def _depends_on_layers(self) -> bool:
        return True

    def _of_description(self, q: Quantizer) -> nn.Module:
        weight = self._weights()[0]
        return TensorQuantizer(q, tuple(weight.shape)).to(weight.device)

    def _begin(self, fresh: nn.Module) -> None:
        q, weights = getattr(fresh, "quantizer", None), self._weights()
        if q is None:
            return
        if len(weights) > 1:
            self._check_shared(q)
        if q.scale.source is ScaleSource.LEARNED and not any(w.is_meta for w in weights):
            begin(fresh, lambda: qparams_of_all(q, weights))

    def _check_shared(self, q: Quantizer) -> None:
        """ValueError unless the scales of this quantizer can be those of all layers."""
        shapes = {qparams_shape(q.granularity, tuple(w.shape)) for w in self._weights()}
        if len(shapes) > 1:
            raise ValueError(f"layers that share a quantizer need scales of one shape, got {sorted(shapes)}")
        transposed = {isinstance(layer, nn.modules.conv._ConvTransposeNd) for layer in self._layers}
        if len(transposed) > 1 and isinstance(q.granularity, PerAxis):
            raise ValueError(
                "layers that share scales per channel need channels along one axis of their weights: 1 in a "
                "transposed convolution, 0 in others"
            )
        if q.scale.learned_sigma:
            raise ValueError("layers can share no scale whose `sigma` is learned")

    def _example(self) -> Tensor:
        return self._weights()[0]


class ActQuantProxy(QuantProxy):
    """Of activations: input, output, or what an activation gives."""

    roles = ("act", "input", "output")


# the names that users of Brevitas know
WeightQuantProxyFromInjector = WeightQuantProxy
ActQuantProxyFromInjector = ActQuantProxy
