"""What the layers have in common: the quantizers that they hold, and contractions over codes or over values."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ...core.contraction import contracts_codes
from ...core.descriptions import QParams, Quantizer
from ...core.granularity import PerAxis, PerTensor, qparams_shape
from ...core.inject import Declaration
from ...core.keywords import by_role, check_changeable, quantizer_of_bias, with_fields
from ...core.prototype import Prototype
from ..bias_quantizer import BiasQuantizer
from ..layers import Axes, Geometry, Layer, contract, laid_out, laid_out_qparams, over_codes
from ..prototype_quantizer import PrototypeQuantizer
from ..tensor_quantizer import TensorQuantizer, either, quantizer_of
from .given import CodedWeight
from .proxies import named, proxy

Array = jax.Array
# What the arguments `*_quant` take, and
Quant = str | Quantizer | TensorQuantizer | Declaration | Prototype | PrototypeQuantizer | None
Held = Any  # what becomes of them: a `TensorQuantizer`, a `BiasQuantizer`, what has their methods, or None
Surround = Callable[[Array], Array]
# What layers of parameters hand on to that of flax, as it means them
OF_FLAX = ("use_bias", "dtype", "param_dtype", "kernel_init", "bias_init", "kernel_metadata", "bias_metadata")


def split(keywords: Mapping[str, Any], of_flax: Sequence[str] = OF_FLAX) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords that a layer hands on to that of flax, and the others, which are for `hold`."""
    ours = {name: value for name, value in keywords.items() if name not in of_flax}
    return {name: value for name, value in keywords.items() if name in of_flax}, ours


def become(layer: nnx.Module, kind: type[nnx.Module]) -> None:
    """Makes a module one of another class, in place. Not by an assignment, which flax notes as one of data."""
    object.__setattr__(layer, "__class__", kind)


def hold(layer: nnx.Module, keywords: Mapping[str, Any], **quant: Any) -> None:
    """Sets ``layer.<role>_quant`` to what a layer keeps for each of its quantizers: once, after its parameters.

    Args:
        layer: what holds them; its property ``weight`` is the weight as its quantizer sees it.
        keywords: further keywords of the layer: ``<role>_<field>`` for a field of that quantizer, or of its format,
            scale rule, arithmetic or learned rounding; of ``act`` also without the prefix.
        quant: the argument ``<role>_quant`` of each role.
    Raises:
        TypeError: a keyword of another prefix or field, or one for a quantizer that is None or an instance, which
            others may share. The message names the class of the layer, the keyword and what is allowed.
        TypeError, KeyError, ValueError: what `held` raises.
    """
    overrides = by_role(type(layer).__name__, keywords, quant)
    for role, value in quant.items():
        setattr(layer, f"{role}_quant", held(role, value, layer, overrides[role]))


def held(role: str, value: Any, layer: Any, overrides: Mapping[str, Any]) -> Any:
    """What ``layer`` keeps for the argument ``<role>_quant``: the only place where one becomes the other.

    Args:
        role: weight, bias, or an activation: input, output, act, ...
        value: a catalog name, a `Quantizer`, an `Injector`, or None; a `TensorQuantizer` is shared.
        overrides: fields to replace: of the quantizer, its format, scale rule, arithmetic or learned rounding, or of
            the declaration.
    Raises:
        TypeError: a value of another type, or overrides that are no fields or have nothing to change.
        KeyError: a name that is not in the catalog. ValueError: as `TensorQuantizer` and `Quantizer`, and a weight that
            its granularity does not divide.
    """
    argument, kind = f"{role}_quant", type(layer).__name__
    if isinstance(value, Declaration):
        return proxy(role, value, layer, overrides)
    if isinstance(value, Prototype | PrototypeQuantizer) and role == "bias":
        raise TypeError(f"{kind}, `{argument}`: must not be a prototype, which has no codes to add to sums")
    if isinstance(value, Prototype):
        return PrototypeQuantizer(value, **{"like": layer.weight if role == "weight" else None, **overrides})
    if value is None or isinstance(value, PrototypeQuantizer | TensorQuantizer):
        check_changeable(kind, role, value, overrides)
        return value
    if not isinstance(value, str | Quantizer):
        raise TypeError(
            f"{kind}, `{argument}`: must be a catalog name or a Quantizer, a declaration (an Injector), a prototype, "
            f"a TensorQuantizer, or None; got {value!r}"
        )
    with named(f"{kind}, `{argument}`"):
        q = with_fields(quantizer_of(argument, value), role, overrides)
        if role == "bias":
            return BiasQuantizer(quantizer_of_bias(q))
        if role != "weight":
            return TensorQuantizer(q)
        shape = tuple(layer.weight.shape)
        if q.granularity == PerAxis(0):  # per channel, wherever this weight has its channels
            q = q.replace(granularity=PerAxis(channel_axis(layer)))
        qparams_shape(q.granularity, shape)
        return TensorQuantizer(q, shape)


def check_single(layer: Any) -> None:
    """ValueError for several layers in one, as ``nnx.vmap`` makes them, and for one without values."""
    if isinstance(layer, nnx.MultiHeadAttention):  # of three axes each: heads are one of them
        for part in (layer.query, layer.key, layer.value, layer.out):
            _check_weight(part.kernel, 3)
        return
    w = layer.embedding if isinstance(layer, nnx.Embed) else layer.kernel
    _check_weight(w, getattr(layer, "kernel_axes", 2 + len(getattr(layer, "kernel_size", ()))))


def _check_weight(w: Any, axes: int) -> None:
    if len(w.shape) != axes:
        raise ValueError(
            f"its weight must have {axes} axes, got shape {tuple(w.shape)}: layers that `nnx.vmap` stacks are changed "
            "before, in the function that makes one"
        )
    if isinstance(w.get_raw_value(), jax.ShapeDtypeStruct):
        raise ValueError("its weight must have values, got a shape: change layers inside of `nnx.eval_shape`")


def channel_axis(layer: Any) -> int:
    """The axis of a weight that runs over the outputs."""
    return 1 if getattr(layer, "transposed", False) else 0


def or_same(quantizer: Any, x: Array, use_running_average: bool | None) -> Array:
    """``x`` quantized, or as it is where nothing is to quantize it."""
    y: Array = x if quantizer is None else quantizer(x, use_running_average)
    return y


class Operand(NamedTuple):
    """An array that is contracted, and what its quantizer, if there is one, does to it at this step.

    Attributes:
        held: a `TensorQuantizer`, what has its methods, or None.
        axes: of the transposition to the layout that the quantizer is meant for; None for none.
    """

    value: Array
    held: Any = None
    qparams: QParams = QParams(None)
    waits: Array | None = None
    axes: Axes | None = None

    def quantized(self) -> Array:
        """The values to contract."""
        if self.held is None:
            return self.value
        values: Array = self.held.quantized(self.value, self.qparams, self.waits, self.axes)
        return values


def operand(held: Any, value: Array, frozen: bool | None, axes: Axes | None = None) -> Operand:
    """An array beside its quantizer, whose state learns from it: one step of it."""
    if held is None or held.quantizer is None:  # what is off may watch
        return Operand(value if held is None else held(value, frozen, axes))
    waits = held.waits()
    return Operand(value, held, held.qparams(value, frozen, axes), waits, axes)


def waiting(*operands: Operand) -> Array | None:
    """Whether one of them is not quantized yet; None where all are."""
    found = [one.waits for one in operands if one.waits is not None]
    return jnp.any(jnp.stack(found)) if found else None


def contracted(
    layer: Any,
    x: Operand,
    w: Operand,
    bias: Array | None,
    geometry: Geometry,
    surround: Surround | None = None,
) -> Array:
    """A contraction over codes where both have them that allow it, else over values; see `apply`."""
    axis, around, q_b = channel_axis(layer), surround or _same, layer.bias_quant
    bias = None if bias is None else bias.reshape(-1)
    waits = waiting(x, w)
    if bias is not None and isinstance(q_b, BiasQuantizer):
        check_prescaled(layer, x, w)
        bias = q_b(bias.astype(x.qparams.scale.dtype), x.qparams, w.qparams, waits)

    def codes() -> Array:
        w_axes = w.axes or tuple(range(w.value.ndim))
        parts = Layer(x.held.quantizer, laid_out(w.held.quantizer, w_axes) or w.held.quantizer, geometry)
        w_qparams = laid_out_qparams(w.qparams, w_axes)
        return over_codes(parts, around(x.value), x.qparams, w.value, w_qparams, bias, x.axes, w.axes)

    def values() -> Array:
        return contract(geometry, around(x.quantized()), w.quantized(), bias)

    linear = geometry.stride is None
    if x.held is None or w.held is None:
        return values()
    if not contracts_codes(x.held.quantizer, w.held.quantizer, per_token=linear, axis=axis):
        return values()
    return codes() if waits is None else either(waits, values, codes)


def apply(
    layer: Any,
    x: Array,
    frozen: bool | None,
    geometry: Geometry,
    x_axes: Axes | None,
    w_axes: Axes,
    *,
    kernel: Array | None = None,
    surround: Surround | None = None,
) -> Array:
    """The output of a layer; ``axes`` are the transpositions to the layouts that quantizers are meant for.

    Args:
        layer: with ``kernel``, ``bias``, ``in_features``, ``dtype``, ``promote_dtype``, and the quantizers of input,
            weight, bias and output: each a `TensorQuantizer`, what has its methods, or None.
        kernel: in its place, laid out as ``geometry`` says.
        surround: puts elements of the input around it, after its scale is known.
    """
    x, w = promoted(layer, x, w_axes, kernel)
    operands = operand(layer.input_quant, x, frozen, x_axes), operand(layer.weight_quant, w, frozen, w_axes)
    y = contracted(layer, *operands, own_bias(layer, frozen), geometry, surround)
    return y if layer.output_quant is None else layer.output_quant(y, frozen, x_axes)


def promoted(layer: Any, x: Array, w_axes: Axes, kernel: Array | None = None) -> tuple[Array, Array]:
    """Input and kernel in one dtype. ValueError for an input of other features."""
    stored, q_w = layer.kernel[...] if kernel is None else kernel, layer.weight_quant
    x, w = layer.promote_dtype(
        (x, q_w.values(stored, w_axes) if isinstance(q_w, CodedWeight) else stored), dtype=layer.dtype
    )
    if x.ndim == 0 or x.shape[-1] != layer.in_features:
        raise ValueError(f"`x` must have {layer.in_features} features on its last axis, got shape {x.shape}")
    return x, w


def own_bias(layer: Any, frozen: bool | None) -> Array | None:
    """The bias of a layer, quantized if that asks for no other scales."""
    bias = None if layer.bias is None else layer.bias[...].reshape(-1)
    q_b = layer.bias_quant
    return bias if bias is None or q_b is None or isinstance(q_b, BiasQuantizer) else q_b(bias, frozen)


def _same(x: Array) -> Array:
    return x


def check_prescaled(layer: Any, x: Operand, w: Operand) -> None:
    """ValueError unless input and weight have the scales for a bias: one, and one or one for each channel."""
    name = f"{type(layer).__name__}, `bias_quant`"
    allowed_of = {"input": (PerTensor(),), "weight": (PerTensor(), PerAxis(channel_axis(layer)))}
    for (role, allowed), one in zip(allowed_of.items(), (x, w), strict=True):
        if one.held is None:
            raise ValueError(f"{name}: has no scale, since `{role}_quant` is None")
        if one.held.quantizer.granularity not in allowed:
            raise ValueError(f"{name}: `{role}_quant` must be {allowed[-1]}, got {one.held.quantizer.granularity}")
