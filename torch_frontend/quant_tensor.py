"""Tensors that know their codes: what a quantizer made, its scale, zero point and width, through arithmetic.

A `QuantTensor` stands for ``(code - z) * s`` like any tensor of that dtype, and keeps the integers themselves: sums,
differences, products and contractions of such tensors are computed on codes, exactly, and their values are the code
times the new scale, rounded once. What has no such result is a float tensor: `quant_operators` lists what has one.

It holds codes and no values. Dividing values by the scale gives codes back only while they are small: an accumulator of
30 bits, or 8 bits in bfloat16, has lost them. Operators are caught in ``__torch_dispatch__``, below autograd: the
gradient of a tensor is that of its values whatever it is computed from, one rule for every operator of torch, and the
border of a compiled program hands gradients on. (In ``__torch_function__``, above autograd, tensors inside would have
them, and such a border loses those.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from ..core.integer_range import IntegerRange, integer_range
from .arrays import is_concrete, narrowed, without_autocast
from .quant_borders import IN_GRAPH, STATES, GradientOfQuantTensor, gated, marked, past_tracing
from .quant_formats import Numbers, format_of, on_grid, spec_of

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

HANDLERS: dict[Any, Handler] = {}  # by operator; filled by `quant_operators`
FUNCTIONS: dict[Any, Callable[..., Any]] = {}  # in the place of functions of torch that are operators of several
UNGATED = ("__get__", "__set__", "retain_grad", "register_hook")


class QuantTensor(Tensor):
    """A tensor of values ``(code - z) * s``, with what they are made of; see the module.

    `quant_tensor` makes one of values, `quantized_tensor` by a quantizer. Immutable: in-place operators are refused,
    but for ``relu_`` and for ``copy_`` from one of the same format.

    Attributes:
        codes: numbers of the format, in float32 (float64 where they are large, and for float64 values): integers, or
            what a floating-point format or a codebook holds. NaN where the value is.
        scale: positive, float32 (float64 for float64 values); broadcasts against the tensor.
        zero_point: the code of 0, as scale; one zero where no code is subtracted, ``affine`` False.
        offset: None, or what is added to the values, as scale: a bias that is no multiple of the scale.
        format: which codes may occur: an `IntegerRange`, or the format, if its numbers are no integers or have a name.
        training: whether it was made while training.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    affine: bool
    offset: Tensor | None
    format: Numbers
    training: bool

    @staticmethod
    def __new__(
        cls: Any,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        offset: Tensor | None,
        format: Numbers,
        dtype: torch.dtype,
        training: bool = False,
    ) -> "QuantTensor":
        """Of its parts, unchecked."""
        made: QuantTensor = Tensor._make_wrapper_subclass(
            cls, codes.shape, strides=codes.stride(), dtype=dtype, device=codes.device
        )
        made.codes, made.scale, made.offset = codes, scale, offset
        made.affine, made.zero_point = zero is not None, scale.new_zeros(()) if zero is None else zero
        made.format, made.training = format, training
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def dequantize(self) -> Tensor:
        """The values as a float tensor; gradients pass."""
        if torch.compiler.is_compiling():
            marked()
        return values_of(self)

    @property
    def value(self) -> Tensor:
        """`dequantize`; in compiled code write that, since what it traces has no properties that are tensors."""
        return self.dequantize()

    @property
    def zero(self) -> Tensor | None:
        """The zero point, if there is one."""
        return self.zero_point if self.affine else None

    @property
    def bit_width(self) -> int:
        """Width of the codes. Where a width is learned, that of the format, which it cannot leave."""
        return self.format.bits

    @property
    def signed(self) -> bool:
        """Whether negative codes exist."""
        return self.format.signed if isinstance(self.format, IntegerRange) else self.format.lo < 0

    @property
    def is_valid(self) -> bool:
        """Whether every code is one of the format, every scale a positive normal number and every value finite."""
        numbers = on_grid(self.format, self.codes)
        tiny = torch.finfo(self.scale.dtype).smallest_normal
        good = (numbers == self.codes).all() & (self.scale >= tiny).all() & (self.scale < torch.inf).all()
        good &= self.detach().dequantize().isfinite().all()
        return bool(good if self.zero is None else good & (self.zero == on_grid(self.format, self.zero)).all())

    def int(self, float_datatype: bool = False) -> Tensor:
        """The integer codes: int8 or uint8 up to 8 bits, then int32 or int64. A constant to autograd.

        They are read, not computed. NaN has none: an error in eager mode, the code of zero in compiled code.

        Args:
            float_datatype: as `codes` has them instead.
        Raises:
            TypeError: a format whose numbers are no integers. ValueError: NaN, in eager mode.
        """
        integers, codes = integer_range(self.format), self.codes.detach()
        if integers is None:
            raise TypeError(f"a tensor of {self.format} has no integer codes; its numbers are in `codes`")
        if is_concrete(codes) and bool(codes.isnan().any()):
            raise ValueError("a QuantTensor that holds NaN has no codes there (no integer stands for it)")
        codes = torch.where(codes != codes, 0.0 if self.zero is None else self.zero, codes)
        return codes if float_datatype else codes.to(getattr(torch, integers.storage))

    def numpy(self, *, force: bool = False) -> Any:
        """The values as a NumPy array, as ``torch.Tensor.numpy``."""
        return self.dequantize().numpy(force=force)

    def tolist(self) -> Any:
        """The values as numbers of Python."""
        return self.dequantize().tolist()

    def __format__(self, spec: str) -> str:
        """A single value as the number that it is, as of other tensors."""
        return format(self.item(), spec) if spec and self.ndim == 0 else object.__format__(self, spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = (self.codes, self.scale, self.zero, self.offset)
        return rebuilt, (*parts, spec_of(self.format), self.dtype, self.training, self.requires_grad and self.is_leaf)

    def __repr__(self) -> str:  # type: ignore[override]
        grad = ", requires_grad=True" if self.requires_grad else ""
        zero = "" if self.zero is None else f", zero_point={self.zero}"
        offset = "" if self.offset is None else f", offset={self.offset}"
        value = self.detach().dequantize()
        return f"QuantTensor({value}, scale={self.scale}{zero}{offset}, format={self.format}{grad})"

    def with_codes(self, codes: Tensor, **changes: Any) -> "QuantTensor":
        """A tensor of these codes, with changed parts. Below autograd."""
        parts = {"scale": self.scale, "zero": self.zero, "offset": self.offset, "format": self.format}
        return QuantTensor(codes, **(parts | {"dtype": self.dtype, "training": self.training} | changes))

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        names = ["codes", "scale", "zero_point", *(["offset"] if self.offset is not None else [])]
        return names, (spec_of(self.format), self.dtype, self.training, self.affine)

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], kept: tuple[Any, ...], *_: Any) -> "QuantTensor":
        spec, dtype, training, affine = kept
        zero = inner["zero_point"] if affine else None
        t = QuantTensor(inner["codes"], inner["scale"], zero, inner.get("offset"), format_of(spec), dtype, training)
        t.zero_point = inner["zero_point"]
        return t

    def __coerce_tangent_metadata__(self) -> "GradientOfQuantTensor":
        return GradientOfQuantTensor(self.dequantize())

    def _stable_hash_for_caching(self) -> str:
        return repr(self.__tensor_flatten__())

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.__name__ not in UNGATED:
            args = tuple(map(gated, args))
        func = FUNCTIONS.get(func, func)
        several = [a for a in args if isinstance(a, QuantTensor)][1:]
        with torch._C.DisableTorchFunctionSubclass(), without_autocast(several[0]) if several else nullcontext():
            if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
                return past_tracing(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if STATES:
            with torch._C._ForceDispatchKeyGuard(*STATES[-1]):
                return cls._dispatched(func, args, kwargs or {})
        return cls._dispatched(func, args, kwargs or {})

    @staticmethod
    def _dispatched(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        handler = HANDLERS.get(func)
        result = NotImplemented if handler is None else handler(func, args, kwargs)
        if result is not NotImplemented:
            return result
        _check_unchanged(func, args)
        if handler is None and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        args, kwargs = pytree.tree_map_only(QuantTensor, plain_values, (args, kwargs))
        return func(*args, **kwargs)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` by one product of matrices; torch's own may add the bias in place."""
    rows = input if input.ndim == 2 else input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    y = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
    return y if input.ndim == 2 else y.reshape(*input.shape[:-1], weight.shape[0])


def plain_values(t: QuantTensor) -> Tensor:
    """The values, below autograd: ``fl(fl(code - z) * s)``, ``+ offset`` if there is one, each operation rounded."""
    codes = t.codes if t.zero is None else t.codes - t.zero
    product = codes.to(t.scale.dtype) * t.scale
    return narrowed(product if t.offset is None else product + t.offset, t.dtype)


def rebuilt(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    offset: Tensor | None,
    spec: tuple[Any, ...],
    dtype: torch.dtype,
    training: bool,
    requires_grad: bool,
) -> QuantTensor:
    """The tensor that was pickled."""
    t = QuantTensor(codes, scale, zero, offset, format_of(spec), dtype, training)
    return t.requires_grad_(requires_grad)  # type: ignore[return-value]


def values_of(t: QuantTensor) -> Tensor:
    """`QuantTensor.dequantize`."""
    value: Tensor = _Values.apply(gated(t))  # type: ignore[no-untyped-call]
    return value


def wrapped(
    value: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    offset: Tensor | None,
    spec: tuple[Any, ...],
    training: bool,
) -> Tensor:
    """The tensor of these parts; its gradient goes to ``value``, its values as a float tensor."""
    if torch.compiler.is_compiling():
        marked()
    return _wrapped(value, codes, scale, zero, offset, spec, training)


def _wrapped(
    value: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    offset: Tensor | None,
    spec: tuple[Any, ...],
    training: bool,
) -> Tensor:
    constants = (None if t is None else t.detach() for t in (codes, scale, zero, offset))
    result: Tensor = _Wrapped.apply(value, *constants, spec, training)  # type: ignore[no-untyped-call]
    return result


class _Wrapped(torch.autograd.Function):
    """Values with their codes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parts: Any) -> QuantTensor:
        *tensors, spec, training = parts
        return QuantTensor(*tensors, format_of(spec), value.dtype, training)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return (g, *[None] * 6)


class _Values(torch.autograd.Function):
    """The values alone."""

    @staticmethod
    def forward(ctx: Any, t: QuantTensor) -> Tensor:
        return plain_values(t)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def _check_unchanged(func: Any, args: tuple[Any, ...]) -> None:
    """TypeError for an operator that would change a QuantTensor in place."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.is_write and isinstance(value, QuantTensor):
            raise TypeError(
                f"{func} would change a QuantTensor in place, whose codes could not follow: use the operator that "
                "returns its result, or dequantize() first"
            )


IN_GRAPH += [_wrapped, values_of]
FUNCTIONS[functional.linear] = linear
torch.serialization.add_safe_globals([rebuilt])
