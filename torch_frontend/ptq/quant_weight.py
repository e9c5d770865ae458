"""Weights as codes: tensors that stand for ``dequantize(codes)`` and know by which quantizer they were made.

A `QuantWeight` takes the place of a weight; the modules stay. Products with it are those of `samebits.core.configs`:
with ``act_quant`` None the values are multiplied, else what meets it on the left is quantized too, at every call, and
where `samebits.core.contraction.contracts_codes` allows it codes are contracted, with the bits of
`samebits.core.linear`. Operators that know nothing of codes get the values, so the result is a float tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ...core import checks
from ...core.arithmetic import ZeroPointDomain
from ...core.bytes_of_codes import check_stored, code_width, has_signs, is_packed
from ...core.configs import check_parts
from ...core.described import quantizer_of_text, text_of
from ...core.descriptions import QParams, Quantizer
from .. import routes
from ..arguments import check_qparams, check_tensor
from ..arrays import dtype_name, is_concrete, narrowed, wide_dtype
from ..quantizer import choose_qparams, quantize
from .packing import pack, unpack
from .products import dynamic_linear, few_rows

Handler = Callable[..., Any]

FUNCTIONS: dict[Any, Handler] = {}  # in the place of functions of torch
HANDLERS: dict[Any, Handler] = {}  # in the place of operators; filled by `weight_operators`


class QuantWeight(Tensor):
    """A weight of codes; see the module. `quant_weight` makes one of floats, `weight_of_codes` of codes.

    A constant to autograd: gradients go to what it is multiplied with.

    Attributes:
        codes: in the format's `storage` dtype, ``(out, ...)``; or packed along the last axis, uint8.
        scale, zero_point: as `samebits.core.descriptions.QParams`; an integer zero point has the dtype of codes.
        quantizer: of the weight. ``act_quant``: of what it is multiplied with, or None.
        code_layout: ``"plain"`` or ``"packed"`` (torch has another ``layout``). ``length``: of the last axis, unpacked.
        transposed: whether the tensor is the transposition of its codes.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    quantizer: Quantizer
    act_quant: Quantizer | None
    code_layout: str
    length: int
    transposed: bool

    @staticmethod
    def __new__(
        cls: Any,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        quantizer: Quantizer,
        act_quant: Quantizer | None,
        layout: str,
        length: int,
        dtype: torch.dtype,
        transposed: bool = False,
    ) -> "QuantWeight":
        """Of its parts, unchecked."""
        shape = (*codes.shape[:-1], length)
        shape = shape[::-1] if transposed else shape
        with _ordinary(codes):
            made: QuantWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=codes.device)
        made.codes, made.scale, made.zero_point = codes, scale, zero_point
        made.quantizer, made.act_quant, made.code_layout = quantizer, act_quant, layout
        made.length, made.transposed = length, transposed
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def dequantize(self) -> Tensor:
        """The values as a float tensor of this dtype."""
        return values_of(self)

    def numpy(self, *, force: bool = False) -> Any:
        """The values as a NumPy array, as ``torch.Tensor.numpy``."""
        return self.dequantize().numpy(force=force)

    @property
    def qparams(self) -> QParams:
        """Scale and zero point."""
        return QParams(self.scale, self.zero_point)

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Any, ...]]:
        names = ["codes", "scale", *([] if self.zero_point is None else ["zero_point"])]
        return names, (*described(self), self.dtype)

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], kept: tuple[Any, ...], *_: Any) -> "QuantWeight":
        return rebuilt(inner["codes"], inner["scale"], inner.get("zero_point"), *kept)

    def _stable_hash_for_caching(self) -> str:
        return repr(self.__tensor_flatten__())

    def __reduce_ex__(self, protocol: Any) -> Any:
        parts = (self.codes, self.scale, self.zero_point)
        return rebuilt, (*parts, *described(self), self.dtype, bool(getattr(self, "_is_param", False)))

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantWeight":
        if id(self) not in memo:
            made: Any = self.with_parts(lambda part: part.detach().clone())
            made._is_param = bool(getattr(self, "_is_param", False))
            memo[id(self)] = made
        found: QuantWeight = memo[id(self)]
        return found

    def __repr__(self) -> str:  # type: ignore[override]
        act = "" if self.act_quant is None else f", activations {self.act_quant.format} {self.act_quant.granularity}"
        q = f"{self.quantizer.format} {self.quantizer.granularity}, {self.code_layout}{act}"
        return f"QuantWeight({tuple(self.shape)}, {dtype_name(self.dtype)}, {q})"

    def with_parts(self, change: Callable[[Tensor], Tensor], **changes: Any) -> "QuantWeight":
        """This weight with all of its tensors changed alike, or with other attributes. Below autograd."""
        zero = None if self.zero_point is None else change(self.zero_point)
        kept = {name: getattr(self, name) for name in ("quantizer", "act_quant", "length", "transposed", "dtype")}
        kept |= {"layout": self.code_layout} | changes
        return QuantWeight(change(self.codes), change(self.scale), zero, **kept)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        handler = FUNCTIONS.get(func)
        if handler is not None:
            return handler(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        handler = HANDLERS.get(func)
        result = NotImplemented if handler is None else handler(func, *args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(value, QuantWeight):
                raise TypeError(
                    f"{func} would change a QuantWeight in place, whose codes could not follow: dequantize() it first"
                )
        held = next((value.codes for value in pytree.tree_leaves(args) if isinstance(value, QuantWeight)), None)
        with _ordinary(held if func.is_view else None):
            args, kwargs = pytree.tree_map_only(QuantWeight, values_of, (args, kwargs or {}))
            return func(*args, **kwargs)


def _ordinary(codes: Tensor | None) -> AbstractContextManager[Any]:
    """Outside inference mode, for views of a weight that was made outside it, which must not be inference tensors."""
    if codes is None or not torch.is_inference_mode_enabled() or codes.is_inference():
        return nullcontext()
    return torch.inference_mode(False)


def quant_weight(
    q: Quantizer,
    w: Tensor,
    qparams: QParams | None = None,
    act_quant: Quantizer | None = None,
    layout: str = "plain",
) -> QuantWeight:
    """The codes of a float weight.

    Args:
        w: ``(out, ...)``. ``qparams``: None to choose them from ``w``.
        act_quant: of what it is multiplied with, or None. ``layout``: see `samebits.core.configs`.
    Raises:
        TypeError, ValueError: as `quantize` and `choose_qparams`, and as `weight_of_codes`.
    """
    with torch.no_grad():
        w = w.detach()
        qparams = choose_qparams(q, w) if qparams is None else qparams
        return weight_of_codes(q, quantize(q, w, qparams), qparams, w.dtype, act_quant, layout)


def weight_of_codes(
    q: Quantizer,
    codes: Tensor,
    qparams: QParams,
    dtype: torch.dtype,
    act_quant: Quantizer | None = None,
    layout: str = "plain",
) -> QuantWeight:
    """The weight that has these codes.

    Args:
        codes: ``(out, ...)``, in the format's `storage` dtype, unpacked. ``dtype``: that the weight stands for.
        act_quant, layout: as `quant_weight`.
    Raises:
        TypeError: codes of another dtype, no float ``dtype``, or what is no quantizer. ValueError: codes that are none
            of the format, in eager mode, parameters of another shape or that are none, a layout or quantizer that does
            not fit (`samebits.core.configs`), no axis.
    """
    check_parts(q, act_quant, layout)
    check_tensor("codes", codes)
    checks.check_codes(q, dtype_name(codes.dtype))
    checks.check_float("dtype", dtype_name(dtype))
    if not codes.ndim:
        raise ValueError("`codes` must have an axis, got shape ()")
    scale, zero, *_ = check_qparams(q, tuple(codes.shape), dtype_name(dtype), qparams)
    if is_concrete(codes) and codes.numel():
        check_stored(q, int(codes.amin()), int(codes.amax()))
    length, scale = codes.shape[-1], scale.detach()
    if is_packed(q, layout):
        codes = pack(codes if has_signs(q) else codes.view(torch.uint8), code_width(q))
    if zero is not None:  # integers as codes: a quarter of the bytes
        whole = q.arithmetic.zero_point_domain is ZeroPointDomain.INTEGER
        zero = zero.detach().to(getattr(torch, q.format.storage) if whole else scale.dtype)
    return QuantWeight(codes.detach(), scale, zero, q, act_quant, layout, length, dtype)


def described(w: QuantWeight) -> tuple[str, str | None, str, int, bool]:
    """What a weight is apart from its tensors and dtype, as constants of Python."""
    act = None if w.act_quant is None else text_of(w.act_quant)
    return text_of(w.quantizer), act, w.code_layout, w.length, w.transposed


def rebuilt(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    quantizer: str,
    act_quant: str | None,
    layout: str,
    length: int,
    transposed: bool,
    dtype: torch.dtype,
    is_parameter: bool = False,
) -> QuantWeight:
    """The weight of its tensors and of what `described` gave."""
    act = None if act_quant is None else quantizer_of_text(act_quant)
    made: Any = QuantWeight(
        codes, scale, zero_point, quantizer_of_text(quantizer), act, layout, length, dtype, transposed
    )
    if is_parameter:
        made._is_param = True
    weight: QuantWeight = made
    return weight


def codes_of(w: QuantWeight) -> Tensor:
    """The codes in the format's `storage` dtype, unpacked, ``(out, ...)``."""
    if not is_packed(w.quantizer, w.code_layout):
        return w.codes
    return unpacked_codes(w.quantizer, w.codes, w.length)


def unpacked_codes(q: Quantizer, packed: Tensor, length: int) -> Tensor:
    """Packed codes of ``q``, in the format's `storage` dtype."""
    return unpack(packed, code_width(q), length, has_signs(q)).view(getattr(torch, q.format.storage))


def values_of(w: QuantWeight) -> Tensor:
    """`QuantWeight.dequantize`: `samebits.core.dequantize` of the codes, in the dtype of the weight."""
    fits = wide_dtype(w.dtype) == w.scale.dtype
    values = routes.values(w.quantizer, codes_of(w), w.scale, w.zero_point, w.dtype if fits else w.scale.dtype)
    values = values if fits else narrowed(values, w.dtype)
    return values.t() if w.transposed else values


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` with a `QuantWeight`."""
    if not isinstance(weight, QuantWeight) or isinstance(input, QuantWeight) or weight.transposed:
        x, w = (t.dequantize() if isinstance(t, QuantWeight) else t for t in (input, weight))
        return F.linear(x, w, bias)
    if weight.act_quant is None:
        y = few_rows(input, weight.quantizer, codes_of(weight), weight.qparams, bias)
        return F.linear(input, values_of(weight), bias) if y is None else y
    return dynamic_linear(
        weight.act_quant, input, weight.quantizer, codes_of(weight), weight.qparams, weight.dtype, bias
    )


FUNCTIONS[F.linear] = linear
torch.serialization.add_safe_globals([rebuilt, QuantWeight])
