"""Putting an ONNX graph together: nodes, constants, and what quantizes and dequantizes, with the bits of samebits.

`QuantizeLinear` divides, rounds to even, adds the zero point and clamps, and `DequantizeLinear` subtracts and
multiplies once: these are `samebits.core.quantize` and `dequantize` of the usual arithmetic. What follows avoids what
the default optimizations of onnxruntime 1.31 change around them, as measured (docs/post_training.md):

- codes of activations are uint8, with 128 in the place of a signed 0: of int8 ones a graph may not load, and products
  of int8 may saturate on processors without VNNI;
- two pairs with nothing but moves or sums between them would become one: the second is written out as a division, a
  rounding and a clamp (`Graph.quantize`);
- a `DequantizeLinear` right before a `MatMul` would become `MatMulNBits`, which quantizes the other side too: weights
  go through `Gemm`, or are reshaped in between.

Source: the operators of ONNX 1.23, opset 21.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.descriptions import Quantizer

Array = NDArray[Any]
OPSET, IR_VERSION = 21, 10
SMALLEST = np.finfo(np.float32).smallest_normal
LARGEST_SCALE = 2.0**100  # below it no value overflows, and codes of values of codes are these again


@dataclass(frozen=True)
class Activation:
    """How a tensor of activations is quantized.

    Args:
        q: the quantizer, of integers of at most 8 bits in the usual arithmetic.
        scale, zero_point: constants; None for a scale that comes from the tensor.
    """

    q: Quantizer
    scale: float | None
    zero_point: int = 0

    @property
    def shift(self) -> int:
        """What is added to a code so that it is uint8."""
        return 128 if self.q.format.lo < 0 else 0

    @property
    def ends(self) -> tuple[int, int]:
        """Smallest and largest code, as uint8."""
        return int(self.q.format.lo) + self.shift, int(self.q.format.hi) + self.shift


@dataclass
class Codes:
    """Codes of a tensor in the graph: names of values, uint8 with ``activation.shift``.

    Args:
        scale, zero_point: of scales that come from the tensor, float32, as they broadcast to it; else None.
    """

    name: str
    activation: Activation
    scale: str | None = None
    zero_point: str | None = None


@dataclass
class Graph:
    """An ONNX graph in the making. Values are known by name.

    Attributes:
        inexact: of operators whose bits are their own, the value that they give and what it is.
    """

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    inexact: list[tuple[str, str]] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    _of_codes: dict[str, Codes] = field(default_factory=dict)  # values that are codes dequantized
    _touched: set[str] = field(default_factory=set)  # what comes from such values without a contraction in between
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def add(self, kind: str, *inputs: str, name: str | None = None, clean: bool = False, **attributes: Any) -> str:
        """A node with one output, whose name it returns.

        Args:
            name: of the output; None for one of its own. ``clean``: a contraction, behind which pairs do not meet.
        """
        from onnx import helper

        out = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], name=f"{out}:{kind}", **attributes))
        if not clean and self._touched.intersection(inputs):
            self._touched.add(out)
        return out

    def constant(self, value: Array, name: str = "constant") -> str:
        """An initializer of this array; equal ones are one."""
        from onnx import numpy_helper

        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._known:
            self._known[key] = f"{name}_{len(self.constants)}"
            self.constants[self._known[key]] = numpy_helper.from_array(np.ascontiguousarray(value), self._known[key])
        return self._known[key]

    def number(self, value: float) -> str:
        """A float32 without axes."""
        return self.constant(np.array(value, np.float32), "number")

    def integers(self, values: Any) -> str:
        """An int64 array."""
        return self.constant(np.array(values, np.int64), "integers")

    def byte(self, value: int) -> str:
        """A uint8 without axes."""
        return self.constant(np.array(value, np.uint8), "byte")

    def narrow(self, codes: Array, bits: int, signed: bool, name: str) -> str:
        """An initializer of integer codes: 4 bits wide for at most 4 bits, else 8."""
        from onnx import TensorProto, helper

        if bits > 4:
            return self.constant(codes.astype(np.int8 if signed else np.uint8), name)
        kind = TensorProto.INT4 if signed else TensorProto.UINT4
        out = f"{name}_{len(self.constants)}"
        self.constants[out] = helper.make_tensor(out, kind, codes.shape, codes.reshape(-1).tolist())
        return out

    def quantize(self, x: str, act: Activation) -> Codes:
        """Codes of a value: by `QuantizeLinear`, or written out where that would meet another pair, or finds scales."""
        known = self._of_codes.get(x)
        if known is not None and known.activation == act and act.scale is not None and act.scale < LARGEST_SCALE:
            return known
        low, high = act.ends
        if act.scale is None:
            return self._dynamic(x, act)
        if x not in self._touched:
            zero = self.byte(act.zero_point + act.shift)
            codes = self.add("QuantizeLinear", x, self.number(act.scale), zero)
            if (low, high) != (0, 255):
                codes = self.add("Clip", codes, self.byte(low), self.byte(high))
            return Codes(codes, act)
        places = self.add("Round", self.add("Div", x, self.number(act.scale)))
        return Codes(self._bytes(places, self.number(act.zero_point + act.shift), act), act)

    def dequantize(self, codes: Codes, name: str | None = None) -> str:
        """The values of codes, float32."""
        act = codes.activation
        if codes.scale is None and act.scale is not None:
            zero = self.byte(act.zero_point + act.shift)
            value = self.add("DequantizeLinear", codes.name, self.number(act.scale), zero, name=name)
        else:
            centred = self.add("Sub", self.floats(codes.name), self._from_dynamic(codes))
            value = self.add("Mul", centred, str(codes.scale), name=name)
        self._of_codes[value] = codes
        self._touched.add(value)
        return value

    def floats(self, x: str) -> str:
        """A value as float32, rounded to nearest even."""
        from onnx import TensorProto

        return self.add("Cast", x, to=TensorProto.FLOAT)

    def _bytes(self, places: str, zero: str, act: Activation) -> str:
        """Rounded quotients to codes: ``uint8(clamp(places + zero))``."""
        from onnx import TensorProto

        low, high = act.ends
        codes = self.add("Clip", self.add("Add", places, zero), self.number(low), self.number(high))
        return self.add("Cast", codes, to=TensorProto.UINT8)

    def _from_dynamic(self, codes: Codes) -> str:
        """What is subtracted from shifted codes: the zero point of the tensor, with the shift."""
        shift = self.number(codes.activation.shift)
        return shift if codes.zero_point is None else self.add("Add", codes.zero_point, shift)

    def _dynamic(self, x: str, act: Activation) -> Codes:
        """Codes with scales of the tensor or of each token: `samebits.core.choose_qparams` of the usual rule."""
        from ...core.granularity import PerToken

        axes = [self.integers([-1])] if isinstance(act.q.granularity, PerToken) else []
        low, high = act.q.format.lo, act.q.format.hi
        if not act.q.affine:
            size = self.add("ReduceMax", self.add("Abs", x), *axes, keepdims=1)
            scale = self.add("Max", self.add("Div", size, self.number(high)), self.number(float(SMALLEST)))
            return Codes(
                self._bytes(self.add("Round", self.add("Div", x, scale)), self.number(act.shift), act), act, scale
            )
        most = self.add("Max", self.add("ReduceMax", x, *axes, keepdims=1), self.number(0))
        least = self.add("Min", self.add("ReduceMin", x, *axes, keepdims=1), self.number(0))
        size = self.add("Div", self.add("Sub", most, least), self.number(high - low))
        scale = self.add("Max", size, self.number(float(SMALLEST)))
        place = self.add("Sub", self.number(low), self.add("Round", self.add("Div", least, scale)))
        zero = self.add("Clip", place, self.number(low), self.number(high))
        shifted = self.add("Add", zero, self.number(act.shift))
        return Codes(self._bytes(self.add("Round", self.add("Div", x, scale)), shifted, act), act, scale, zero)

    def note(self, name: str, what: str) -> None:
        """That the bits of a value are those of its operator."""
        self.inexact.append((name, what))
