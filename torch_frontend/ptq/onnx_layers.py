"""Linear layers and convolutions in ONNX: what a layer of torch holds, and its contraction over codes or values."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.arithmetic import ComputeDtype, ZeroPointDomain
from ...core.contraction import accumulator_bound, contracts_codes
from ...core.descriptions import QParams, Quantizer
from ...core.directions import Rounding
from ...core.formats import BinaryFormat, IntegerFormat, TernaryFormat
from ...core.granularity import PerAxis, PerGroup, PerTensor, PerToken
from ...core.scales import ScaleRule
from ..components import quantizing
from ..nn.given import CodedWeight, GivenQuantizer
from ..nn.layer import unlearned
from ..nn.proxies_of_given_scales import BiasQuantProxy
from ..packed import follows_tensor
from ..quantizer import quantize
from ..tensor_quantizer import TensorQuantizer
from .onnx_graph import SMALLEST, Activation, Graph
from .quant_weight import QuantWeight, codes_of

Array = NDArray[Any]


class Weight(NamedTuple):
    """A weight of codes: ``(out, ...)``, with scales and zero points by output, by group or one."""

    q: Quantizer
    codes: Array
    scale: Array
    zero_point: Array | None


class Layer(NamedTuple):
    """What is contracted: the weight in codes or floats, how its input and output are quantized, and the bias."""

    weight: Weight | Array
    act: Activation | None
    bias: Array | None
    out: Activation | None


def activation(held: Any, dynamic: bool) -> Activation | None:
    """How what a layer holds quantizes an activation; None where it does nothing.

    Raises:
        ValueError: what has no form in ONNX, scales without a state; or, unless ``dynamic``, of the tensor at hand.
    """
    q = None if held is None else held.quantizer
    if q is None:
        return None
    inner = getattr(held, "tensor_quant", held)
    known = isinstance(inner, TensorQuantizer | GivenQuantizer)
    follows = follows_tensor(q) if known else quantizing.follows_tensor(inner)
    if held.waits() is not None:
        raise ValueError("a quantizer with a delay that is not over passes floats: train it further, or set delay=0")
    if follows:
        return dynamic_activation(q, dynamic)
    _check_usual(q, (PerTensor(),))
    try:
        with torch.no_grad(), unlearned(held):
            scale, zero, *_ = held.qparams(torch.zeros(1))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return Activation(q, float(scale), 0 if zero is None else int(zero))


def dynamic_activation(q: Quantizer, dynamic: bool) -> Activation:
    """An activation whose scales come from the tensor at hand."""
    if not dynamic:
        raise ValueError(
            "its scale comes from the tensor at hand, which QuantizeLinear has no form for: calibrate it, or take "
            'form="integer"'
        )
    _check_usual(q, (PerTensor(), PerToken()))
    if q.scale != ScaleRule() or not (q.affine or q.format.lo < 0):
        raise ValueError(f"scales that come from the tensor must be chosen by the default ScaleRule, got {q.scale}")
    return Activation(q, None)


def _check_usual(q: Quantizer, granularities: tuple[Any, ...]) -> None:
    """ValueError unless QuantizeLinear computes what this quantizer does."""
    usual = q.arithmetic.is_default and q.rounding is Rounding.TIES_TO_EVEN and q.learned_bits is None
    if not isinstance(q.format, IntegerFormat) or q.format.bits > 8 or not usual or q.scale.signed:
        raise ValueError(
            "activations must be integers of at most 8 bits, rounded to nearest even in the usual arithmetic, got "
            f"{q.format}, '{q.rounding}', {q.arithmetic}"
        )
    if q.granularity not in granularities:
        raise ValueError(f"activations must have one scale, got {q.granularity}")


def layer_of(layer: Any, dynamic: bool) -> Layer:
    """What a linear layer or convolution holds. ValueError for what has no form in ONNX."""
    w = layer.weight
    if getattr(layer, "return_quant_tensor", False):
        raise ValueError("`return_quant_tensor` must be False: between layers there are floats")
    if isinstance(w, QuantWeight):
        if w.transposed:
            raise ValueError("its weight must not be transposed")
        act = None if w.act_quant is None else dynamic_activation(w.act_quant, dynamic)
        stored = _weight(w.quantizer, codes_of(w), w.qparams)
        return Layer(stored, act, array(layer.bias), None)
    act = activation(getattr(layer, "input_quant", None), dynamic)
    held: Any = getattr(layer, "weight_quant", None)
    if held is None or held.quantizer is None:
        found: Weight | Array = _floats(w)
    else:
        with torch.no_grad(), unlearned(held):
            qparams = held.qparams(w)
            coded = isinstance(held, CodedWeight)
            found = _weight(held.quantizer, w.detach() if coded else quantize(held.quantizer, w, qparams), qparams)
    bias = _bias(layer, act, found)
    return Layer(found, act, bias, activation(getattr(layer, "output_quant", None), dynamic))


def array(x: Tensor | None) -> Any:
    """A tensor as a NumPy array; None stays."""
    return None if x is None else x.detach().cpu().numpy()


def _floats(w: Tensor) -> Array:
    if w.dtype != torch.float32:
        raise ValueError(f"its weight must be float32, got {w.dtype}")
    floats: Array = array(w)
    return floats


def _weight(q: Quantizer, codes: Tensor, qparams: QParams) -> Weight:
    """A weight of codes, checked."""
    a = q.arithmetic
    integers = isinstance(q.format, IntegerFormat | BinaryFormat | TernaryFormat) and q.learned_bits is None
    usual = a.compute_dtype is ComputeDtype.WIDENED and not (a.flush_subnormals or a.fused_multiply_add)
    if not integers or codes.dtype not in (torch.int8, torch.uint8) or q.relaxed or q.scale.signed:
        raise ValueError(f"weights must be integers of at most 8 bits, got {q.format}")
    if a.zero_point_domain is not ZeroPointDomain.INTEGER or not usual:
        raise ValueError(
            f"weights must have the values (code - zero point) * scale, with zero points that are codes, got {a}"
        )
    by_row = q.granularity == PerToken() or q.granularity == PerAxis(0)
    by_group = isinstance(q.granularity, PerGroup) and codes.ndim == 2 and q.granularity.axis in (-1, 1)
    if not (by_row or by_group or q.granularity == PerTensor()):
        raise ValueError(f"weights must have scales per tensor, per axis 0 or per group, got {q.granularity}")
    scale, zero = qparams.scale, qparams.zero_point
    if scale.dtype != torch.float32:
        raise ValueError(f"its scales must be float32, got {scale.dtype}")
    shape = (-1,) if by_row else (codes.shape[0], -1) if by_group else ()
    whole = None if zero is None else zero.reshape(shape).to(codes.dtype)
    return Weight(q, array(codes), array(scale.reshape(shape)), array(whole))


def _bias(layer: Any, act: Activation | None, weight: Weight | Array) -> Any:
    """The bias, as its quantizer makes it."""
    bias, held = layer.bias, getattr(layer, "bias_quant", None)
    if bias is None or held is None or held.quantizer is None:
        return array(bias)
    with torch.no_grad(), unlearned(held):
        if isinstance(held, BiasQuantProxy) and not held.requires_input_scale:
            return array(held(bias))
        if act is None or act.scale is None or not isinstance(weight, Weight):
            raise ValueError("`bias_quant` needs a constant scale of the input and a scale of the weight")
        scale = torch.from_numpy(np.broadcast_to(_products(act.scale, weight.scale), (len(bias),)).copy())
        return array(held.quantized(bias, QParams(scale), None))


def _products(scale: float, scales: Array) -> Array:
    """``max(fl(s_x * s_w), smallest normal number)``."""
    products: Array = np.maximum(np.float32(scale) * scales.astype(np.float32), SMALLEST)
    return products


def emit(graph: Graph, x: str, layer: Layer, name: str, conv: dict[str, Any] | None, form: str) -> str:
    """The nodes of a layer, and the name of its value; ``conv``: attributes of a convolution, None if it is linear."""
    w = layer.weight
    last = name if layer.out is None else f"{name}_sum"
    act = layer.act if form == "integer" else None
    if act is not None and isinstance(w, Weight) and contracts_codes(act.q, w.q, per_token=conv is None):
        y = _integers(graph, x, act, w, layer.bias, last, conv)
    else:
        y = _values(graph, x, layer, last, conv)
    return y if layer.out is None else graph.dequantize(graph.quantize(y, layer.out), name)


def _integers(
    graph: Graph, x: str, act: Activation, w: Weight, bias: Any, name: str, conv: dict[str, Any] | None
) -> str:
    """The contraction of codes: exact sums in int32, scaled once, as `samebits.core.matmul` says."""
    if accumulator_bound(act.q, w.q, int(w.codes[0].size)) >= 2**31:
        raise ValueError(f"sums of {w.codes[0].size} products of {act.q.format} and {w.q.format} do not fit int32")
    shift = 128 if w.codes.dtype == np.int8 else 0
    shifted = (w.codes.astype(np.int16) + shift).astype(np.uint8)
    zeros = (np.zeros((), np.int16) if w.zero_point is None else w.zero_point.astype(np.int16)) + shift
    if conv is not None and zeros.ndim:
        if (zeros != zeros[0]).any():
            raise ValueError("a convolution over codes takes one zero point of the weight: ConvInteger has no more")
        zeros = zeros[0]
    codes = graph.quantize(x, act)
    own = graph.byte(act.shift + act.zero_point)
    of_w = graph.constant(np.asarray(zeros, np.uint8), f"{name}_zero_point")
    if conv is None:
        rows = graph.constant(shifted.T, f"{name}_codes")
        total = graph.add("MatMulInteger", codes.name, rows, own, of_w, clean=True)
    else:
        kernels = graph.constant(shifted, f"{name}_codes")
        total = graph.add("ConvInteger", codes.name, kernels, own, of_w, clean=True, **conv)
    if codes.zero_point is not None:  # one for each row, which the operator does not take
        if conv is not None:
            raise ValueError("a convolution over codes takes a constant zero point of the input")
        sums = (shifted.astype(np.int32) - zeros.astype(np.int32).reshape(-1, 1)).sum(1, dtype=np.int32)
        total = _without_zeros(graph, total, codes.zero_point, sums)
    along = (-1,) if conv is None else (1, -1, *(1 for _ in w.codes.shape[2:]))

    def outputs(values: Array) -> Array:
        return values.reshape(along) if values.ndim else values

    if act.scale is None:
        each = graph.add("Mul", str(codes.scale), graph.constant(outputs(w.scale), f"{name}_scale"), clean=True)
        scale = graph.add("Max", each, graph.number(float(SMALLEST)))
    else:
        scale = graph.constant(outputs(_products(act.scale, w.scale)), f"{name}_scale")
    out = None if bias is not None else name
    y = graph.add("Mul", graph.floats(total), scale, name=out, clean=True)
    return y if bias is None else graph.add("Add", y, graph.constant(outputs(bias), f"{name}_bias"), name=name)


def _without_zeros(graph: Graph, total: str, zero: str, sums: Array) -> str:
    """Sums of ``(code - z) * w`` of those of ``code * w``."""
    from onnx import TensorProto

    whole = graph.add("Cast", zero, to=TensorProto.INT32)
    return graph.add("Sub", total, graph.add("Mul", whole, graph.constant(sums, "sums")), clean=True)


def _values(graph: Graph, x: str, layer: Layer, name: str, conv: dict[str, Any] | None) -> str:
    """The contraction of values, floats in the order of onnxruntime."""
    rank = graph.ranks[x]
    if layer.act is not None:
        x = graph.dequantize(graph.quantize(x, layer.act))
    plain = conv is not None or rank == 2
    w = layer.weight
    if isinstance(w, Weight):
        weight = _dequantized(graph, w, f"{name}_codes", deep=not plain)
    else:
        weight = graph.constant(w, f"{name}_weight")
    graph.note(name, "a sum of products of floats")
    bias = [] if layer.bias is None else [graph.constant(layer.bias, f"{name}_bias")]
    if conv is not None:
        return graph.add("Conv", x, weight, *bias, name=name, clean=True, **conv)
    if plain:
        return graph.add("Gemm", x, weight, *bias, name=name, clean=True, transB=1)
    columns = graph.add("Transpose", weight, perm=[1, 0])
    y = graph.add("MatMul", x, columns, name=None if bias else name, clean=True)
    return graph.add("Add", y, bias[0], name=name) if bias else y


def _dequantized(graph: Graph, w: Weight, name: str, deep: bool) -> str:
    """The values of a weight; ``deep``: through an array of three axes, so that nothing merges it with a `MatMul`."""
    codes, scale, zero = w.codes, w.scale, w.zero_point
    attributes: dict[str, Any] = {"axis": 0} if scale.ndim == 1 else {}
    if scale.ndim == 2:
        size = codes.shape[1] // scale.shape[1]
        attributes = {"axis": 1, "block_size": size}
        if deep:
            codes, attributes = codes.reshape(len(codes), -1, size), {"axis": 2, "block_size": size}
            scale, zero = scale[..., None], None if zero is None else zero[..., None]
    elif deep:
        codes = codes[:, None]
    bits = w.q.format.bits if isinstance(w.q.format, IntegerFormat) else 8
    signed = w.q.format.lo < 0
    zeros = [] if zero is None else [graph.narrow(zero, bits, signed, f"{name}_zero_point")]
    stored = graph.narrow(codes, bits, signed, name)
    values = graph.add("DequantizeLinear", stored, graph.constant(scale, f"{name}_scale"), *zeros, **attributes)
    return graph.add("Reshape", values, graph.integers(w.codes.shape)) if deep else values
