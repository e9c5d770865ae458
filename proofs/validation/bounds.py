"""How far a float operation of torch, or of another library, may lie from what exact arithmetic gives.

Rules take how far the arguments may be off and give how far the result may be: to first order and beyond, in float64,
element by element. ``u`` is half an ulp of 1 of the dtype of the result, ``gamma_n = n u / (1 - n u)``:

    sums, contractions       ``gamma_n`` times the sum of absolute values; of a contraction n is its length + 2, as
                             `samebits.core.contraction_bound` has it: any order, with or without fused operations
    + - * /, sqrt            one rounding, u of the result
    other functions          `ULPS` ulps of the result (of the input, for GELU and SiLU, which cancel), and the largest
                             slope times the error of the argument
    softmax                  the error of its exponents doubled, a sum, `ULPS` ulps
    normalisation            a mean, a variance as the mean of squared distances from it, a root, three roundings
    what moves numbers       nothing

Two programs that follow these rules lie within twice the bound of each other. An operation without a rule has none.

Source of the sums: Higham, Accuracy and Stability of Numerical Algorithms, chapters 3 and 4.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from ...core.requirements import explaining

with explaining(__name__):
    import torch
    from torch import Tensor
    from torch.utils._pytree import tree_leaves, tree_map

ULPS = 8  # of exponentials, error functions and the like, in any library
TINY = 2.0**-126  # what is smaller may become 0
MOVES = (
    "view _unsafe_view reshape t transpose permute expand slice select unsqueeze squeeze clone contiguous alias detach"
    " split split_with_sizes chunk unbind index_select index gather embedding repeat flip roll cat stack lift_fresh"
    " constant_pad_nd neg copy tril triu unfold diagonal movedim squeeze_dims slice_scatter view_as_real"
    " repeat_interleave pixel_shuffle reflection_pad2d replication_pad2d upsample_nearest2d"
)
SLOPES = {  # largest slope of a function that is not steep anywhere
    "tanh": 1.0,
    "sigmoid": 0.25,
    "erf": 1.1284,
    "sin": 1.0,
    "cos": 1.0,
    "softplus": 1.0,
    "log_sigmoid_forward": 1.0,
    "elu": 1.76,  # selu is elu with a slope
    "leaky_relu": 1.0,
    "hardtanh": 1.0,
    "hardsigmoid": 0.17,
    "hardswish": 1.5,
    "silu": 1.1,
    "gelu": 1.13,
    "mish": 1.1,
}
CONSTANT = "ones_like zeros_like full_like empty_like new_zeros new_ones new_full new_empty zero fill"
CANCEL = frozenset(("silu", "gelu", "mish", "hardswish"))
EXACT_SLOPES = frozenset(("relu", "abs", "clamp", "clamp_min", "clamp_max", "threshold", "relu6"))
Errors = tuple[Tensor | None, str]


def unit(dtype: torch.dtype) -> float:
    """Half an ulp of 1."""
    return torch.finfo(dtype).eps / 2


def gamma(n: int, dtype: torch.dtype) -> float:
    """Of a sum of n terms; infinite where there are too many for a bound."""
    nu = n * unit(dtype)
    return nu / (1 - nu) if nu < 1 else torch.inf


def error_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor, position: int = 0) -> Errors:
    """Bound on the error of a result, float64 of its shape; or None, and the operation that no rule is known of.

    Args:
        name: of the operation, without overload, as ``addmm``.
        args, kwargs: its arguments, with ``value`` and ``error`` wherever there is a tensor.
        out: what it gave, at the place ``position`` of its results.
    """
    tensors = [leaf for leaf in tree_leaves([list(args), dict(kwargs)], is_leaf=_tensor) if _tensor(leaf)]
    unknown = next((leaf.reason for leaf in tensors if leaf.error is None), None)
    if unknown is not None:
        return None, unknown
    if not out.is_floating_point():
        exact = not any(bool(leaf.error.any()) for leaf in tensors)
        return (_zeros(out), "") if exact else (None, f"{name} decides by numbers that are not exact")
    if not tensors or name in CONSTANT.split():
        return _zeros(out), ""
    rule = RULES.get(name)
    if rule is None or (position and rule is not _moves):
        return None, name
    error = rule(name, args, kwargs, out.double(), out.dtype, position)
    return error.expand(out.shape), ""


def _tensor(leaf: Any) -> bool:
    return hasattr(leaf, "error") and hasattr(leaf, "value")


def _zeros(out: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.float64).expand(out.shape)


def _parts(leaf: Any) -> tuple[Tensor, Tensor]:
    """Value and error of an operand, which may be a number."""
    if _tensor(leaf):
        return leaf.value.double(), leaf.error
    return torch.tensor(float(leaf), dtype=torch.float64), torch.zeros((), dtype=torch.float64)


def _moves(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    """Errors go where numbers go."""

    def moved(leaf: Any) -> Any:
        if not _tensor(leaf):
            return leaf
        return leaf.error.contiguous() if leaf.value.is_floating_point() else leaf.value

    plain, keywords = tree_map(moved, [list(args), dict(kwargs)], is_leaf=_tensor)
    if name == "copy":
        return torch.as_tensor(plain[1])
    if name == "constant_pad_nd":
        plain = [*plain[:2], 0.0]
    op = getattr(torch.ops.aten, name)
    given = op(*plain, **keywords)
    error: Tensor = given[position] if isinstance(given, tuple | list) else given
    return error.abs()


def _converts(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    source = args[0]
    narrows = source.value.is_floating_point() and unit(source.value.dtype) < unit(dtype)
    error: Tensor = source.error + (unit(dtype) * out.abs() if narrows else 0)
    return error


def _adds(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    (_, ea), (_, eb) = _parts(args[0]), _parts(args[1])
    alpha = abs(float(kwargs.get("alpha", args[2] if len(args) > 2 else 1)))
    return ea + alpha * eb + unit(dtype) * (out.abs() + (alpha != 1) * _parts(args[1])[0].abs() * alpha)


def _multiplies(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    (a, ea), (b, eb) = _parts(args[0]), _parts(args[1])
    return _product(a, ea, b, eb) + unit(dtype) * out.abs()


def _product(a: Tensor, ea: Tensor, b: Tensor, eb: Tensor) -> Tensor:
    """Errors of operands in a product; what is exact adds nothing, not even beside an infinity."""
    parts = [torch.where(e == 0, 0.0, v.abs() * e) for v, e in ((a, eb), (b, ea))]
    return parts[0] + parts[1] + torch.where((ea == 0) | (eb == 0), 0.0, ea * eb)


def _divides(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    (_, ea), (b, eb) = (_parts(args[0]), _parts(args[1])) if name == "div" else (_parts(1.0), _parts(args[0]))
    room = (b.abs() - eb).clamp_min(0)
    grown = ea + torch.where(eb == 0, 0.0, out.abs() * eb)
    return _ratio(grown, room) + 2 * unit(dtype) * out.abs()  # or a product with the reciprocal


def _ratio(error: Tensor, room: Tensor) -> Tensor:
    """What is exact adds nothing, not even where there is no room."""
    return torch.where(error == 0, 0.0, error / room)


def _sums(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    x, e = _parts(args[0])
    rest = args[1:]
    op = torch.ops.aten.mean if name == "mean" else torch.ops.aten.sum
    sizes, errors = (op(t.contiguous(), *rest) for t in (x.abs(), e.expand(x.shape)))
    n = x.numel() // max(out.numel(), 1)
    return torch.as_tensor(errors + gamma(n + 2, dtype) * sizes)


def _norms(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    x, e = _parts(args[0])
    errors = torch.ops.aten.linalg_vector_norm(e.expand(x.shape).contiguous(), *args[1:])
    return torch.as_tensor(errors + gamma(x.numel() // max(out.numel(), 1) + 4, dtype) * out)


def _contracts(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    """``bias + a @ b``: of sizes and errors in turn, n is the length of the contraction + 2."""
    a, b = (_parts(leaf) for leaf in args[-2:]) if name in ("mm", "bmm", "mv", "dot") else map(_parts, args[1:3])
    bias = _parts(args[0]) if name in ("addmm", "baddbmm", "addmv") else _parts(0.0)
    (x, ex), (w, ew) = a, b
    ex, ew = ex.expand(x.shape), ew.expand(w.shape)
    grown = x.abs() @ ew + ex @ w.abs() + ex @ ew if bool(ex.any() | ew.any()) else 0.0
    size = x.abs().nan_to_num(posinf=0) @ w.abs() + bias[0].abs()
    return grown + bias[1] + gamma(x.shape[-1] + 2, dtype) * size


def _convolves(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    (x, ex), (w, ew) = _parts(args[0]), _parts(args[1])
    rest = args[3:]
    length = prod(w.shape[1:]) if not rest[3] else prod(w.shape[2:]) * w.shape[0] // rest[5]

    def of(a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten.convolution(a.contiguous(), b.contiguous(), None, *rest)
        return y

    ex, ew = ex.expand(x.shape), ew.expand(w.shape)
    total = gamma(length + 2, dtype) * of(x.abs(), w.abs())
    if bool(ex.any() | ew.any()):
        total = total + of(x.abs(), ew) + of(ex, w.abs()) + of(ex, ew)
    if args[2] is not None:
        bias, error = _parts(args[2])
        each = gamma(length + 2, dtype) * bias.abs() + error
        total = total + each.reshape(-1, *(1 for _ in w.shape[2:]))
    return total


def _slopes(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    x, e = _parts(args[0])
    if name in EXACT_SLOPES:
        return e
    size = torch.maximum(out.abs(), x.abs()) if name in CANCEL else out.abs()
    return SLOPES[name] * e + 2 * ULPS * unit(dtype) * size.nan_to_num() + TINY


def _powers(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    """Powers and roots, by the slope at the end of the interval where it is steepest."""
    x, e = _parts(args[0])
    if name == "pow" and _tensor(args[1]):
        power, error = _parts(args[1])
        steep = error * torch.log(x.abs() + e).abs() + power.abs() * _ratio(e, (x.abs() - e).clamp_min(0))
        return out.abs() * (torch.expm1(steep) + 2 * ULPS * unit(dtype)) + TINY
    p = {"sqrt": 0.5, "rsqrt": -0.5}.get(name) or float(args[1])
    edge = x.abs() + e if p >= 1 else (x.abs() - e).clamp_min(0)
    grown = torch.where(e == 0, 0.0, abs(p) * edge ** (p - 1) * e)
    return grown + 4 * unit(dtype) * out.abs()


def _exponents(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    x, e = _parts(args[0])
    own = 2 * ULPS * unit(dtype)
    if name in ("exp", "expm1"):
        return torch.exp(x) * (torch.expm1(e) + own) + TINY
    return _ratio(e, (x - e).clamp_min(0)) + own * out.abs()  # log, log1p


def _softmaxes(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    x, e = _parts(args[0])
    axis, u = args[1], unit(dtype)
    n, top = x.shape[axis], x.amax(axis, keepdim=True)
    below = torch.where(x.isneginf() | top.isneginf(), 0.0, (top - x).abs())
    share = out.exp() if name == "_log_softmax" else out
    worst = e.expand(x.shape).amax(axis, keepdim=True)
    relative = torch.expm1(2 * worst + u * (below + (share * below.nan_to_num()).sum(axis, keepdim=True)))
    relative = relative + gamma(n + 2, dtype) + 2 * 2 * ULPS * u
    if name == "_log_softmax":
        return relative + 4 * u * (out.abs() + below.abs())
    return out * relative + TINY


def _normalises(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    """Layer norm over the last axes; group norm over channels and places of a group."""
    (x, e), eps = _parts(args[0]), float(args[-1])
    weights = (args[2], args[3]) if name == "native_layer_norm" else (args[1], args[2])
    if name == "native_layer_norm":
        n, shape = prod(args[1]), tuple(x.shape)
    else:
        n, shape = x[0].numel() // args[6], (1, -1, *(1 for _ in x.shape[2:]))
    rows, errors = x.reshape(-1, n), e.expand(x.shape).reshape(-1, n)
    grown, size = _standardised(rows, errors, eps, dtype)
    w, b = ((_parts(leaf) if leaf is not None else _parts(d)) for leaf, d in zip(weights, (1.0, 0.0), strict=True))
    if name != "native_layer_norm":
        w, b = ((v.reshape(shape) if v.ndim else v, q.reshape(shape) if q.ndim else q) for v, q in (w, b))
    grown, size = grown.reshape(x.shape), size.reshape(x.shape)
    u = unit(dtype)
    return w[0].abs() * grown + w[1] * (size + grown) + b[1] + 4 * u * (w[0].abs() * size + b[0].abs())


def _standardised(x: Tensor, e: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Error and size of ``(x - mean) / sqrt(var + eps)`` over the last axis."""
    n, u = x.shape[-1], unit(dtype)
    mean = x.mean(-1, keepdim=True)
    off = gamma(n + 2, dtype) * x.abs().mean(-1, keepdim=True) + e.mean(-1, keepdim=True)
    d = (x - mean).abs()
    ed = off + e + u * d
    var = (d * d).mean(-1, keepdim=True)
    ev = (2 * d * ed + ed * ed).mean(-1, keepdim=True) + gamma(n + 4, dtype) * var
    share = (ev / (var + eps)).clamp_max(1)
    relative = torch.rsqrt(1 - share) - 1 + 6 * u
    root = torch.rsqrt(var + eps)
    return root * (d * relative + ed * (1 + relative)), root * d


def _batch_norms(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    (x, e), eps = _parts(args[0]), float(args[-1])
    training = name == "native_batch_norm" and args[5]
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    w, b = (_parts(leaf)[0] if leaf is not None else _parts(d)[0] for leaf, d in ((args[1], 1.0), (args[2], 0.0)))
    w, b = (v.reshape(shape) if v.ndim else v for v in (w, b))
    if training:
        rows = x.transpose(0, 1).flatten(1)
        grown, size = _standardised(rows, e.expand(x.shape).transpose(0, 1).flatten(1), eps, dtype)
        grown, size = (t.reshape(x.transpose(0, 1).shape).transpose(0, 1) for t in (grown, size))
        return w.abs() * grown + 4 * unit(dtype) * (w.abs() * size + b.abs())
    mean, var = (_parts(leaf)[0].reshape(shape) for leaf in args[3:5])
    root = torch.rsqrt(var + eps)
    # also with the mean and the scale folded into one product and one sum
    size = w.abs() * root * (x.abs() + mean.abs()) + b.abs()
    return w.abs() * root * e + 10 * unit(dtype) * size


def _pools(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    x, e = _parts(args[0])
    op, rest = getattr(torch.ops.aten, name), args[1:]
    if name == "max_pool2d_with_indices":
        return torch.as_tensor(op(e.expand(x.shape).contiguous(), *rest)[0])
    size, errors = (op(t.contiguous(), *rest) for t in (x.abs(), e.expand(x.shape)))
    n = prod(rest[0]) if name == "avg_pool2d" else x.numel() // max(out.numel(), 1)
    return torch.as_tensor(errors + gamma(n + 2, dtype) * size)


def _chooses(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    """One of its operands, or the larger."""
    if name == "where":
        return torch.where(args[0].value, _parts(args[1])[1], _parts(args[2])[1])
    if name == "masked_fill":
        return torch.where(args[1].value, _parts(args[2])[1], _parts(args[0])[1])
    if name in ("amax", "amin"):
        x, e = _parts(args[0])
        return torch.as_tensor(torch.ops.aten.amax(e.expand(x.shape).contiguous(), *args[1:]))
    return torch.maximum(_parts(args[0])[1], _parts(args[1])[1])


def _spreads(name: str, args: Any, kwargs: Any, out: Tensor, dtype: torch.dtype, position: int) -> Tensor:
    """Variance, or its root, over some axes."""
    x, e = _parts(args[0])
    axes = args[1] if len(args) > 1 and isinstance(args[1], list) else list(range(x.ndim))
    keep = bool(kwargs.get("keepdim", False))
    n = prod(x.shape[axis] for axis in axes)
    mean = x.mean(axes, keepdim=True)
    off = gamma(n + 2, dtype) * x.abs().mean(axes, keepdim=True) + e.expand(x.shape).mean(axes, keepdim=True)
    d = (x - mean).abs()
    ed = off + e + unit(dtype) * d
    correction = kwargs.get("correction", 1)
    share = n / max(n - float(1 if correction is None else correction), 1)
    error = (2 * d * ed + ed * ed).mean(axes, keepdim=keep) * share
    if name == "var":
        return error + gamma(n + 4, dtype) * out.abs()
    return _ratio(error, out.clamp_min(TINY)) + gamma(n + 6, dtype) * out.abs()


Rule = Callable[[str, Any, Any, Tensor, torch.dtype, int], Tensor]
RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVES.split(), _moves),
    "_to_copy": _converts,
    **dict.fromkeys(("add", "sub", "rsub"), _adds),
    "mul": _multiplies,
    **dict.fromkeys(("div", "reciprocal"), _divides),
    **dict.fromkeys(("sum", "mean"), _sums),
    "linalg_vector_norm": _norms,
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv"), _contracts),
    "convolution": _convolves,
    **dict.fromkeys((*SLOPES, *EXACT_SLOPES), _slopes),
    **dict.fromkeys(("pow", "sqrt", "rsqrt"), _powers),
    **dict.fromkeys(("exp", "expm1", "log", "log1p"), _exponents),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), _softmaxes),
    **dict.fromkeys(("native_layer_norm", "native_group_norm"), _normalises),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training"), _batch_norms),
    **dict.fromkeys(("avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices"), _pools),
    **dict.fromkeys(("where", "masked_fill", "amax", "amin", "maximum", "minimum"), _chooses),
    **dict.fromkeys(("var", "std"), _spreads),
}
