"""What operators of torch do on a `QuantTensor`: those that keep codes, each with the format and scale of its result.

- Moved elements (views, slices, ``cat``, ``flip``, indexing, ``pixel_shuffle``, nearest upsampling), maxima
  (``max_pool``), ``relu`` and padding with 0: the same scale.
- ``a + b``, ``a - b`` of one scale, ``-a``, ``abs``: ``code_a + code_b``, width as `IntegerRange` says. Scales are the
  same if they have the same bits. In eager mode tensors of two scales give a float tensor; compiled code takes scales
  for the same, looks when it runs, and raises a RuntimeError if they are not.
- ``a * b``, ``a @ b``, linear layers and convolutions: products of centred codes, summed exactly, with the scale
  ``max(s_a * s_b, smallest normal number)``. A bias that is no QuantTensor of that scale is added to the values, as
  `QuantTensor.offset`.
- ``avg_pool2d``, ``adaptive_avg_pool2d`` over windows of one size n: exact sums, with the scale ``s / n``.
- `to` another device, or from float32 to 16 bits.

- ``a + c`` for a number, or a float32 (float64) tensor of fewer axes: `QuantTensor.offset`.

Everything else, and these where scales vary along what is summed or integers leave float64's exact ones, gives what the
operator gives for the values: a float tensor. So do products with numbers, and quotients.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from ..core.formats import BinaryFormat, CodebookFormat
from ..core.integer_range import IntegerRange, integer_range
from .arrays import is_concrete
from .quant_tensor import HANDLERS, Handler, QuantTensor

aten = torch.ops.aten
VIEWS = (
    aten.alias.default,
    aten.detach.default,
    aten.diagonal.default,
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unbind.int,
    aten.unfold.default,
    aten.unsqueeze.default,
    aten.view.default,
)
MOVES = (
    aten._unsafe_index.Tensor,
    aten._unsafe_view.default,
    aten.clone.default,
    aten.flip.default,
    aten.gather.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.repeat.default,
    aten.roll.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.default,
    aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact3d.default,
)
MAXIMA = {  # with the number of axes that they look along
    aten.max_pool2d_with_indices.default: 2,
    aten.max_pool3d_with_indices.default: 3,
    aten.adaptive_max_pool2d.default: 2,
    aten.adaptive_max_pool3d.default: 3,
}


def handles(*operators: Any) -> Callable[[Handler], Handler]:
    """Makes a function what these operators do on tensors of which one is a QuantTensor, or NotImplemented."""

    def decorator(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(operators, handler))
        return handler

    return decorator


@handles(*VIEWS, *MOVES)
def moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Elements in another place, with the parameters that they had."""
    t, *rest = args
    if type(t) is not QuantTensor:
        return NotImplemented
    codes = func(t.codes, *rest, **kwargs)
    shapes = [c.shape for c in codes] if isinstance(codes, list | tuple) else codes.shape
    parts = {name: _parameter(func, getattr(t, name), t, shapes, rest, kwargs) for name in ("scale", "zero", "offset")}
    if isinstance(codes, list | tuple):
        names = list(parts)
        each = zip(codes, *(parts[name] or [None] * len(codes) for name in names), strict=True)
        result: Any = [t.with_codes(c, **dict(zip(names, p, strict=True))) for c, *p in each]
    else:
        result = t.with_codes(codes, **parts)
    if func not in VIEWS:
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)  # type: ignore[no-untyped-call]


def _parameter(func: Any, p: Tensor | None, t: QuantTensor, shapes: Any, rest: Any, kwargs: Any) -> Any:
    """A parameter of ``t`` beside the elements that an operator moves: a list of them where that gives many tensors."""
    if p is None:
        return None
    many = isinstance(shapes, list)
    if p.numel() == 1:
        number = p.reshape(())
        return [number] * len(shapes) if many else number
    if func in (aten.view.default, aten._unsafe_view.default):
        return _viewed(p, t.shape, shapes)
    if func in (aten.detach.default, aten.alias.default, aten.clone.default):
        return p
    result = func(_with_axes(p, t.ndim).expand(t.shape), *rest, **kwargs)
    return [_collapsed(r) for r in result] if many else _collapsed(result)


def _viewed(p: Tensor, old: Any, new: Any) -> Tensor:
    """A parameter of a tensor of shape ``old`` as that of one viewed in shape ``new``; equal axes at both ends stay."""
    shorter, lead, tail = min(len(old), len(new)), 0, 0
    while lead < shorter and old[lead] == new[lead]:
        lead += 1
    while lead + tail < shorter and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    p, end = _with_axes(p, len(old)), len(old) - tail
    outer, inner, last = p.shape[:lead], p.shape[lead:end], p.shape[end:]
    if all(n == 1 for n in inner):
        return p.reshape(*outer, *[1] * (len(new) - tail - lead), *last)
    return p.expand(*outer, *old[lead:end], *last).reshape(*outer, *new[lead : len(new) - tail], *last)


def _with_axes(p: Tensor, axes: int) -> Tensor:
    return p.reshape(*[1] * (axes - p.ndim), *p.shape)


def _collapsed(p: Tensor) -> Tensor:
    """Axes along which the same elements repeat, once."""
    for axis in range(p.ndim):
        if p.stride(axis) == 0 and p.shape[axis] > 1:
            p = p.narrow(axis, 0, 1)
    return p


def constant_along(t: QuantTensor, axes: int) -> bool:
    """Whether no parameter varies along the last so many axes."""
    parts = [p for p in (t.scale, t.zero, t.offset) if p is not None]
    return all(p.numel() == 1 or all(n == 1 for n in _with_axes(p, t.ndim).shape[t.ndim - axes :]) for p in parts)


def plain_parameters(t: QuantTensor) -> dict[str, Tensor | None]:
    """The parameters without axes, where each is one number for all."""
    parts = {"scale": t.scale, "zero": t.zero, "offset": t.offset}
    return {n: p.reshape(()) if p is not None and p.numel() == 1 else p for n, p in parts.items()}


@handles(aten.embedding.default)
def looked_up(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows of a table, with the scale of each row if they have one."""
    table, indices, *rest = args

    def rows(p: Tensor | None) -> Tensor | None:
        if p is None or p.numel() == 1 or _with_axes(p, 2).shape[0] == 1:
            return p if p is None or p.numel() > 1 else p.reshape(())
        found: Tensor = func(p, indices, *rest, **kwargs)
        return found

    if type(table) is not QuantTensor:
        return NotImplemented
    parts = {name: rows(getattr(table, name)) for name in ("scale", "zero", "offset")}
    return table.with_codes(func(table.codes, indices, *rest, **kwargs), **parts)


@handles(*MAXIMA)
def largest(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The largest elements of windows along which no parameter varies, and where they are."""
    t, *rest = args
    if not constant_along(t, MAXIMA[func]):
        return NotImplemented
    codes, indices = func(t.codes, *rest, **kwargs)
    return t.with_codes(codes, **plain_parameters(t)), indices


@handles(aten._to_copy.default)
def converted(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """On another device; in 16 bits, if the values were float32."""
    (t,), dtype = args, kwargs.get("dtype") or args[0].dtype
    if dtype != t.dtype and not (t.dtype == torch.float32 and dtype in (torch.bfloat16, torch.float16)):
        return NotImplemented
    rest = {name: value for name, value in kwargs.items() if name not in ("dtype", "memory_format")}
    parts = {n: p if p is None else func(p, **rest) for n, p in plain_parameters(t).items()}
    return t.with_codes(func(t.codes, **rest, memory_format=kwargs.get("memory_format")), dtype=dtype, **parts)


@handles(aten.copy_.default)
def copied(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Codes and parameters of another tensor of the same format and shapes, in place."""
    t, other = args[:2]
    if type(t) is not QuantTensor or type(other) is not QuantTensor:
        return NotImplemented
    pairs = [(getattr(t, n), getattr(other, n)) for n in ("codes", "scale", "zero", "offset")]
    same = all((a is None) == (b is None) and (a is None or a.shape == b.shape) for a, b in pairs)
    if not same or (t.format, t.dtype) != (other.format, other.dtype):
        raise ValueError(
            f"copy_ into a QuantTensor needs one of its format, shapes and dtype, {t.format}, {tuple(t.shape)}, "
            f"{t.dtype}; got {other.format}, {tuple(other.shape)}, {other.dtype}"
        )
    for a, b in pairs:
        if a is not None:
            a.copy_(b)
    return t


@handles(aten.relu.default, aten.relu_.default)
def rectified(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``max(code, z)``; of formats that hold 0."""
    (t,) = args
    holds_zero = not (isinstance(t.format, CodebookFormat) and "0.0" not in t.format.decimals)
    format = t.format
    if isinstance(format, IntegerRange) and t.zero is None:
        format = format.rectified()
    elif isinstance(format, BinaryFormat):
        format = IntegerRange(0, 1, 2, True)
    if t.offset is not None or not holds_zero:
        return NotImplemented
    if func is aten.relu_.default:
        if isinstance(t.format, BinaryFormat):
            return NotImplemented
        t.codes.relu_() if t.zero is None else t.codes.copy_(torch.maximum(t.codes, t.zero))
        return t
    return t.with_codes(t.codes.relu() if t.zero is None else torch.maximum(t.codes, t.zero), format=format)


@handles(aten.constant_pad_nd.default)
def padded(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The number 0, code z, on both sides of axes along which no parameter varies."""
    t, pad, *value = args
    format, axes = _with_zero(t), len(pad) // 2
    if any(v != 0 for v in value) or t.offset is not None or format is None or not constant_along(t, axes):
        return NotImplemented
    codes = func(t.codes if t.zero is None else t.codes - t.zero, pad)
    return t.with_codes(codes if t.zero is None else codes + t.zero, format=format, **plain_parameters(t))


def _with_zero(t: QuantTensor) -> Any:
    """The format with the number 0, None if it cannot have it."""
    if isinstance(t.format, CodebookFormat):
        return t.format if "0.0" in t.format.decimals else None
    if isinstance(t.format, BinaryFormat):
        return integer_range(t.format)
    if isinstance(t.format, IntegerRange) and t.zero is None:
        return IntegerRange(min(t.format.lo, 0), max(t.format.hi, 0), t.format.bits, t.format.signed)
    return t.format


@handles(aten.stack.default)
def stacked(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`joined`, along a new axis."""
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return torch.cat([t.unsqueeze(axis) for t in args[0]], axis)


@handles(aten.cat.default)
def joined(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One after the other, of one scale and zero point; or with a scale for each channel, along these."""
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    tensors = [t for t in args[0] if not _adds_nothing(t, axis)] or args[0]  # whose scales may have no element
    first, *others = tensors
    if not all(type(t) is QuantTensor and t.offset is None and t.dtype == first.dtype for t in tensors):
        return NotImplemented
    format = first.format
    for t in others:
        if t.format != format:
            pair = integer_range(format), integer_range(t.format)
            if pair[0] is None or pair[1] is None:
                return NotImplemented
            format = pair[0].joined(pair[1])
    zeros = [t.zero for t in tensors]
    if any(z is not None for z in zeros):
        zeros = [torch.zeros_like(t.scale) if t.zero is None else t.zero for t in tensors]
    parts = [_joined_parameter(list(p), axis, tensors) for p in ([t.scale for t in tensors], zeros)]
    if parts[0] is NotImplemented or parts[1] is NotImplemented:
        return NotImplemented
    dtype = torch.float64 if any(t.codes.dtype == torch.float64 for t in tensors) else torch.float32
    codes = func([t.codes.to(dtype) for t in tensors], axis)
    training = any(t.training for t in tensors)
    return first.with_codes(codes, scale=parts[0], zero=parts[1], format=format, training=training)


def _adds_nothing(t: Tensor, axis: int) -> bool:
    """Whether a tensor has no element along an axis; not asked of lengths that are symbols."""
    n = t.shape[axis % t.ndim] if t.ndim else 1
    return isinstance(n, int) and n == 0


def _joined_parameter(parameters: list[Any], axis: int, tensors: list[QuantTensor]) -> Any:
    if parameters[0] is None:
        return None
    ndim = tensors[0].ndim
    along = axis % ndim if ndim else 0
    if all(
        p.numel() > 1 and _with_axes(p, ndim).shape[along] == t.shape[along]
        for p, t in zip(parameters, tensors, strict=True)
    ):
        return torch.cat([_with_axes(p, ndim) for p in parameters], along)
    if any(p.numel() > 1 and _with_axes(p, ndim).shape[along] != 1 for p in parameters):
        return NotImplemented
    shared: Any = parameters[0]
    for p in parameters[1:]:
        shared = same_parameter(shared, p)
        if shared is None:
            return NotImplemented
    return shared


def same_parameter(a: Tensor, b: Tensor) -> Tensor | None:
    """The parameter that both tensors have, None if they differ; traced, an operator that looks when it runs."""
    if a is b:
        return a
    if not is_concrete(a, b):
        same: Tensor = torch.ops.samebits.same_parameter(a, b)
        return same
    if not bool((a == b).all()):
        return None
    return a if a.ndim >= b.ndim else b
