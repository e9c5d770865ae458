"""What torch needs around the verbs: dtypes, views that broadcast, when values may be looked at, and chunks.

Nothing here quantizes. `rounded_to` is the one numerical function: a narrowing that no compiler can undo.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from ..core import checks
from ..core.granularity import Granularity, PerTensor, Shape
from . import operators as operators

CHUNK = 256 * 1024  # elements: an output of this size stays in the second-level caches between the passes over it
LAYOUTS = {  # bits behind the point, least and largest exponent of normal numbers
    torch.float16: (10, -14, 15),
    torch.bfloat16: (7, -126, 127),
    torch.float32: (23, -126, 127),
}
WHOLE = 4 * CHUNK  # the last-level cache serves passes over so many: fewer calls then count for more


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype as core spells it: ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the scale and of all arithmetic for arrays of this dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_concrete(*tensors: Tensor | None) -> bool:
    """Whether values can be read and buffers written: ordinary tensors without tangents, outside compilation, tracing
    and torch.func.

    Raises:
        RuntimeError: under ``torch.jit.trace``; for tensors of the CPU where this thread flushes subnormal numbers.
    """
    if torch.compiler.is_compiling():
        return False
    _refuse_trace()
    if not checks.keeps_subnormals():
        refuse_flushing(*tensors)
    if torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if forward_ad._current_level >= 0 and any(t is not None and may_have_tangent(t) for t in tensors):
        return False
    return all(t is None or (type(t) in (Tensor, torch.nn.Parameter) and not t.is_meta) for t in tensors)


def may_have_tangent(t: Tensor) -> bool:
    """Whether ``torch.autograd.forward_ad`` differentiates along ``t``, as far as that can be seen where it is at work.

    The forward pass of an ``autograd.Function`` cannot see it.
    """
    if not torch._C._is_fwd_grad_enabled():
        return True
    return forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]


def is_batched(g: Tensor) -> bool:
    """Whether ``g`` is one of many gradients at once (``torch.autograd.grad(is_grads_batched=True)``).

    That ``vmap`` is older than ``torch.func``, whose tensors `is_concrete` knows: only the dispatch keys tell.
    """
    return torch._C._dispatch_keys(g).has("Batched")


def may_hold_nan(x: Tensor) -> bool:
    """Whether ``x`` holds NaN, as far as it can be seen: False only when there is none."""
    return not (is_concrete(x) and x.numel() and not x.amax().isnan().item())


def records_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


LOST_GRADIENTS = (
    "torch.compile around torch.func (grad, vjp, jacrev, jvp, vmap) would give wrong gradients here, and so it "
    "would with torch.autograd.forward_ad: use torch.autograd.grad inside of it, torch.no_grad() if there are "
    "none, or these without torch.compile"
)


def apply(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """``function.apply``, but no compiled program that would differentiate the forward pass of ``function``.

    Args:
        function: with a static method ``tangent``, what ``jvp`` is elsewhere.
    Raises:
        RuntimeError: while ``torch.compile`` traces a transform of ``torch.func``: dynamo inlines the forward pass
            there and forgets the backward pass. Without ``fullgraph`` it then leaves the function to eager code. Under
            ``torch.jit.trace``. In a backward pass of a program that ``torch.export`` made.
    """
    if not torch.compiler.is_compiling():
        _refuse_trace()
        if not checks.keeps_subnormals():
            refuse_flushing(*arguments)
        function = _of_both_modes(function)
    elif loses_gradients():
        raise RuntimeError(LOST_GRADIENTS)
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    if not (torch.compiler.is_exporting() and torch.is_grad_enabled()):
        return result
    inputs = [t for t in arguments if isinstance(t, Tensor) and t.is_floating_point()]
    value: Tensor = torch.ops.samebits.inference_only(result, inputs)
    return value


@lru_cache
def _of_both_modes(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """``function`` with its ``tangent`` as the derivative of forward mode. Dynamo takes no function that has one."""
    return type(function.__name__, (function,), {"jvp": staticmethod(function.tangent)})  # type: ignore[attr-defined]


def refuse_flushing(*arguments: object) -> None:
    """RuntimeError if one of these is a tensor of the CPU, for threads that flush subnormal numbers. Not compiled."""
    if any(isinstance(t, Tensor) and t.is_cpu for t in arguments):
        checks.check_subnormals()


def _refuse_trace() -> None:
    if torch._C._is_tracing():
        raise RuntimeError(
            "torch.jit.trace would keep what is looked at in this call, such as scales, as constants: use torch.export "
            "or torch.compile"
        )


def loses_gradients() -> bool:
    """Whether a transform of ``torch.func`` is at work that differentiates: gradients can be off, tangents cannot.

    So with `torch.autograd.forward_ad`, whose tangents compiled functions lose.
    """
    if forward_ad._current_level >= 0:
        return True
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) or (
        len(stack) > 0 and torch.is_grad_enabled()
    )


# Dynamo runs it for real while it traces. So says `torch.compiler.assume_constant_result` too, which imports dynamo.
loses_gradients._dynamo_marked_constant = True  # type: ignore[attr-defined]


def apply_plainly(function: type[torch.autograd.Function], *arguments: object) -> Tensor:
    """``function.apply`` for concrete tensors: what it does outside ``torch.func``, less the binding of a signature."""
    result: Tensor = super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]
    return result


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on the device of ``x`` run in the dtypes that they are given."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if under_autocast(x) else nullcontext()


def under_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``. Of ``meta``, which computes nothing, torch knows no autocast."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def widened(x: Tensor) -> Tensor:
    """``x`` in its wide dtype. In compiled code rounded to its own precision first, which costs nothing in eager code.

    A 16-bit ``x`` made by an earlier operation of the same compiled program arrives unrounded: inductor drops the
    narrowing that is widened again.
    """
    if x.element_size() > 2:
        return x
    wide = x.to(torch.float32)
    return rounded_to(wide, x.dtype) if torch.compiler.is_compiling() else wide


def narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` rounded once to ``dtype``, also where a compiler widens the result again.

    float64 goes through numbers of ``dtype``: torch would round it twice to 16 bits.
    """
    if value.dtype == dtype:
        return value
    if value.dtype == torch.float64 and (dtype.itemsize == 2 or torch.compiler.is_compiling()):
        return rounded_to(value, dtype).to(torch.float32).to(dtype)
    return (rounded_to(value, dtype) if torch.compiler.is_compiling() else value).to(dtype)


def rounded_to(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` rounded to nearest even to the numbers of a narrower ``dtype``, in its own. By its bits.

    Its own ``dtype`` leaves it as it is, and so does any other than those of 16 bits float32. NaN stays NaN, infinities
    and the sign of zero are kept. (NaN is found by ``!=``, since inductor does not vectorize `isnan`.)
    """
    if value.dtype == torch.float64:
        return value if dtype == torch.float64 else _rounded_wide(value, dtype)
    if dtype == torch.bfloat16:
        bits = torch.where(value != value, torch.nan, value).view(torch.int32)  # a NaN whose bits survive the sum
        return ((bits + (((bits >> 16) & 1) + 0x7FFF)) & -0x10000).view(torch.float32)
    if dtype != torch.float16:
        return value
    # With 2**e <= |value| < 2**(e + 1), the float32 numbers next to 1.5 * 2**(e + 13) lie as far apart as those of
    # float16 next to the value: 2**(e - 10). Subnormal numbers of float16 lie as those with e = -14.
    size = value.abs()
    exponent = (size.view(torch.int32) & 0x7F800000).clamp((127 - 14) << 23, (127 + 15) << 23)
    large = ((exponent + (13 << 23)) | 0x400000).view(torch.float32)
    near = torch.copysign((size + large) - large, value)
    return torch.where(size < 65520.0, near, value * torch.inf)


def _rounded_wide(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`rounded_to` of float64, in the same way for every dtype."""
    bits, least, most = LAYOUTS[dtype]
    size = value.abs()
    exponent = (size.view(torch.int64) & (0x7FF << 52)).clamp((1023 + least) << 52, (1023 + most) << 52)
    large = ((exponent + ((52 - bits) << 52)) | (1 << 51)).view(torch.float64)
    near = torch.copysign((size + large) - large, value)
    return torch.where(size < 2.0 ** (most + 1) - 2.0 ** (most - bits - 1), near, value * torch.inf)


def broadcast_views(granularity: Granularity, shape: Shape) -> tuple[list[int], list[int]]:
    """Shapes under which an array and its parameters broadcast: ``(4, 2, 3)``, ``(4, 2, 1)`` for ``(4, 6)`` by 3."""
    if isinstance(granularity, PerTensor):
        return list(shape), []
    array: list[int] = []
    parameter: list[int] = []
    for n, block in zip(shape, granularity.block_size(tuple(shape)), strict=True):
        if block == n or block == 1:
            array.append(n)
            parameter.append(1 if block == n else n)
        else:
            array += [n // block, block]
            parameter += [n // block, 1]
    return array, parameter


def pieces(
    reference: Tensor, *others: Tensor | None, size: int = CHUNK, whole: int = WHOLE
) -> Iterator[tuple[Any, ...]]:
    """Views that together cover ``reference``, each with what broadcasts against it.

    An array of at most ``whole`` elements, and each so long row of a longer one, comes whole; else at most ``size`` of
    them. ``others`` have the axes of ``reference``, each as long or of length 1, or no axes, or are None.
    """
    total = reference.numel()
    if total == 0:
        return
    if total <= whole:
        yield (reference, *others)
        return
    step = max(1, size * reference.shape[0] // total)
    for start in range(0, reference.shape[0], step):
        part = [_rows(t, start, step) for t in (reference, *others)]
        if step == 1 and reference.ndim > 1:
            inner, *rest = (t.squeeze(0) if t is not None and t.ndim else t for t in part)
            yield from pieces(inner, *rest, size=size, whole=whole)  # type: ignore[arg-type]
        else:
            yield tuple(part)


def _rows(t: Tensor | None, start: int, step: int) -> Tensor | None:
    return t if t is None or t.ndim == 0 or t.shape[0] == 1 else t[start : start + step]


def dense_order(x: Tensor) -> list[int] | None:
    """Axes of ``x`` from the outermost in memory to the innermost, if in that order it is contiguous; else None."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    return order if x.permute(order).is_contiguous() else None


def numpy_of(t: Tensor) -> NDArray[Any]:
    """The values of a small tensor as a NumPy array."""
    return t.detach().cpu().numpy()
