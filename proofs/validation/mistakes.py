"""The usual mistakes of a port, each as what it would have made of one step of torch: numbers and weights.

A rule looks at a step and yields names with what the step would give. `layouts` has those of axes, heads and places.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from ...core.requirements import explaining
from ..modes.arrays import to_numpy

with explaining(__name__):
    import torch
    from torch import Tensor
    from torch.nn import functional as F

from .tape import Change, Ref, Step, Tape

Found = Iterator[tuple[str, Change]]
Rule = Callable[[Tape, Step], Found]

EPSILONS = (1e-5, 1e-6, 1e-12, 1e-3, 1e-8, 0.0)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf gelu": F.gelu,
    "tanh gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "sigmoid gelu (x * sigmoid(1.702 x))": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky relu": F.leaky_relu,
    "elu": F.elu,
    "relu6": F.relu6,
    "no activation": lambda x: x.clone(),
}
NORMS = {  # where each has scale, bias, and epsilon
    "native_layer_norm": (2, 3, 4),
    "native_group_norm": (1, 2, 7),
    "native_batch_norm": (1, 2, 7),
    "_native_batch_norm_legit_no_training": (1, 2, 6),
}


def other_args(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any], new: Mapping[int, Any]) -> Any:
    """The result of a step with other arguments at some places."""
    return step.op(*(new.get(i, arg) for i, arg in enumerate(args)), **kwargs)


def changed(new: Mapping[int, Callable[[Any], Any]]) -> Change:
    """The change that makes other arguments of those at some places."""
    return lambda step, args, kwargs: other_args(step, args, kwargs, {i: f(args[i]) for i, f in new.items()})


def constant(position: int, value: Any) -> Change:
    """The change that sets one argument."""
    return lambda step, args, kwargs: other_args(step, args, kwargs, {position: value})


def applied(function: Callable[[Tensor], Tensor]) -> Change:
    """The change to a function of the first argument alone."""
    return lambda step, args, kwargs: function(args[0])


def activations(tape: Tape, step: Step) -> Found:
    """Another activation; of a gelu written out by hand, the other one."""
    own = {"gelu": "tanh gelu" if step.kwargs.get("approximate") == "tanh" else "erf gelu"}.get(step.name, step.name)
    own = {"leaky_relu": "leaky relu", "hardtanh": "relu6"}.get(own, own)
    if own in ACTIVATIONS:
        for name, function in ACTIVATIONS.items():
            if name != own:
                yield f"{name} instead of {own}", applied(function)
    if step.name == "erf":

        def by_tanh(s: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
            x = args[0] * 2**0.5
            return torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))

        yield "tanh gelu instead of erf gelu", by_tanh


def epsilons(tape: Tape, step: Step) -> Found:
    """Another epsilon, in a norm or added by hand."""
    if step.name in NORMS:
        at = NORMS[step.name][2]
    elif step.name in ("add", "clamp_min") and isinstance(step.args[1], float) and 0 < abs(step.args[1]) <= 1e-2:
        at = 1
    else:
        return
    for epsilon in EPSILONS:
        if epsilon != step.args[at]:
            yield f"epsilon {epsilon:g} instead of {step.args[at]:g}", constant(at, epsilon)


def variances(tape: Tape, step: Step) -> Found:
    """Divided by n - 1 or by n; root mean squares; statistics of the batch."""
    if step.name in ("var", "std"):
        biased = step.kwargs.get("correction", 1) == 0
        name = (
            "unbiased variance (n - 1) instead of biased (n)"
            if biased
            else "biased variance (n) instead of unbiased (n - 1)"
        )
        yield name, lambda s, a, k: s.op(*a, **{**k, "correction": int(biased)})
    if step.name == "native_layer_norm":
        axes = [-i - 1 for i in range(len(step.args[1]))]
        n = prod(step.args[1])

        def by(center: bool, correction: int) -> Change:
            def change(s: Step, a: Sequence[Any], k: Mapping[str, Any]) -> Tensor:
                d = a[0] - a[0].mean(axes, keepdim=True) if center else a[0]
                var = d.square().sum(axes, keepdim=True) / (n - correction)
                y = d * torch.rsqrt(var + a[4])
                y = y if a[2] is None else y * a[2]
                return torch.as_tensor(y if a[3] is None else y + a[3])

            return change

        if n > 1:
            yield "unbiased variance (n - 1) instead of biased (n)", by(True, 1)
        yield "root mean square instead of layer norm (no mean is taken away)", by(False, 0)
    if step.name == "_native_batch_norm_legit_no_training" or (step.name == "native_batch_norm" and not step.args[5]):

        def of_batch(s: Step, a: Sequence[Any], k: Mapping[str, Any]) -> Tensor:
            return F.batch_norm(a[0], None, None, a[1], a[2], True, 0.0, a[-1])

        yield "statistics of the batch instead of the running ones", of_batch


def _fast_variance(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """As flax has it by ``use_fast_variance``: its own bound is what is larger."""
    axes = [-i - 1 for i in range(len(args[1]))]
    mean = args[0].mean(axes, keepdim=True)
    var = args[0].square().mean(axes, keepdim=True) - mean.square()
    y = (args[0] - mean) * torch.rsqrt(var.clamp_min(0) + args[4])
    y = y if args[2] is None else y * args[2]
    return torch.as_tensor(y if args[3] is None else y + args[3])


def cancelling(tape: Tape, step: Step) -> Found:
    """Right in exact arithmetic; with rounding, its bound is larger. Tried last."""
    if step.name == "native_layer_norm":
        yield "variance as the mean of squares less the squared mean, which cancels", _fast_variance


def scales_and_biases(tape: Tape, step: Step) -> Found:
    """Of norms: swapped, left out, counted from 1."""
    if step.name not in NORMS:
        return
    scale, bias, _ = NORMS[step.name]
    if step.args[scale] is not None and step.args[bias] is not None:
        yield "scale and bias swapped", lambda s, a, k: other_args(s, a, k, {scale: a[bias], bias: a[scale]})
    if step.args[bias] is not None:
        yield "bias is missing", constant(bias, None)
    if step.args[scale] is not None:
        yield "scale is missing", constant(scale, None)
        yield "scale is 1 + weight", changed({scale: lambda w: w + 1})


def missing(tape: Tape, step: Step) -> Found:
    """A bias, a summand, a factor that is not there."""
    if step.name == "addmm":
        yield "bias is missing", lambda s, a, k: a[1] @ a[2]
    if step.name == "convolution" and step.args[2] is not None:
        yield "bias is missing", constant(2, None)
    if step.name in ("add", "sub") and all(isinstance(arg, Ref) for arg in step.args[:2]):
        for i, kept in ((1, "first"), (0, "second")):
            gone = _name_of(tape, step.args[i]) or f"what is added to the {kept} summand"
            yield f"a sum without one of its parts: {gone} is missing", _operand(1 - i)
    if step.name in ("div", "mul") and isinstance(step.args[1], int | float):
        factor, divides = float(step.args[1]), step.name == "div"
        word = f"division by {factor:g}" if divides else f"factor {factor:g}"
        yield f"missing 1/sqrt(d): no {word}", lambda s, a, k: a[0].clone()
        yield f"{word}: twice", lambda s, a, k: s.op(s.op(*a, **k), *a[1:], **k)
        yield f"{word}: its square", lambda s, a, k: s.op(a[0], factor**2, **k)


def _operand(at: int) -> Change:
    """One operand alone, in the shape of the result."""

    def change(s: Step, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        kept: Tensor = args[at].expand(_shape(args)).clone()
        return kept

    return change


def _name_of(tape: Tape, leaf: Any) -> str:
    """Of a parameter, through steps that only move it."""
    number = leaf.number if isinstance(leaf, Ref) else None
    while number is not None and number not in tape.names and number in tape.makers:
        step = tape.steps[tape.makers[number]]
        number = step.args[0].number if step.name in ("slice", "select", "unsqueeze", "t", "expand") else None
    return tape.names.get(number, "") if number is not None else ""


def masks(tape: Tape, step: Step) -> Found:
    """Turned round, or not used."""
    if step.name == "masked_fill":
        yield "mask polarity: what is to be seen is hidden", changed({1: torch.logical_not})
        yield "the mask is not used", lambda s, a, k: a[0].clone()
    if step.name == "where" and len(step.args) == 3:
        yield "mask polarity: what is to be seen is hidden", lambda s, a, k: s.op(a[0].logical_not(), *a[1:], **k)
        yield "the mask is not used", lambda s, a, k: (a[1] + 0 * a[2].nan_to_num(0, 0, 0)).expand(_shape(a))
        yield "the mask is not used", lambda s, a, k: (a[2] + 0 * a[1].nan_to_num(0, 0, 0)).expand(_shape(a))
    if step.name == "_to_copy" and isinstance(step.args[0], Ref) and _is_mask(tape.values[step.args[0].number]):
        yield "pooling without mask: filled places count", lambda s, a, k: torch.ones_like(s.op(*a, **k))
        yield "mask polarity: what is to be seen is hidden", lambda s, a, k: 1 - s.op(*a, **k)


def _shape(args: Sequence[Tensor]) -> torch.Size:
    return torch.Size(np.broadcast_shapes(*(tuple(arg.shape) for arg in args)))


def _is_mask(value: Tensor) -> bool:
    return not value.is_floating_point() and bool(((value == 0) | (value == 1)).all())


def softmax_axes(tape: Tape, step: Step) -> Found:
    """Over another axis."""
    if step.name in ("_softmax", "_safe_softmax", "_log_softmax"):
        ndim = tape.values[step.args[0].number].ndim
        for axis in range(ndim):
            if axis != step.args[1] % ndim:
                yield f"wrong softmax axis: {axis - ndim} instead of {step.args[1] % ndim - ndim}", constant(1, axis)


def weights(tape: Tape, step: Step) -> Found:
    """Transposed, turned, rounded."""
    if step.name == "t" and isinstance(step.args[0], Ref):
        shape = tape.values[step.args[0].number].shape
        if len(shape) == 2 and shape[0] == shape[1]:
            yield "transposed weight", lambda s, a, k: a[0].clone()
    if step.name == "convolution":
        shape = tape.values[step.args[1].number].shape
        spatial = list(range(2, len(shape)))
        if shape[0] == shape[1]:
            yield "transposed weight: input and output channels", changed({1: lambda w: w.transpose(0, 1)})
        if len(spatial) == 2 and shape[2] == shape[3]:
            yield "swapped axes of the kernel: height and width", changed({1: lambda w: w.transpose(2, 3)})
        yield "kernel turned round (convolution instead of correlation)", changed({1: lambda w: w.flip(spatial)})
    for i, arg in enumerate(step.args):
        if isinstance(arg, Ref) and arg.number in tape.names and tape.values[arg.number].dtype == torch.float32:
            for dtype in (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)):
                yield f"weight rounded to {dtype.name}", changed({i: _rounded(dtype)})


def _rounded(dtype: np.dtype[Any]) -> Callable[[Any], Any]:
    """By NumPy, which no tape sees: the rounding is the mistake, not an error of it."""
    return lambda weight: torch.from_numpy(to_numpy(weight).astype(dtype).astype(np.float32))


RULES: tuple[Rule, ...] = (
    activations,
    epsilons,
    variances,
    scales_and_biases,
    weights,
    missing,
    masks,
    softmax_axes,
)
QUIET: tuple[Rule, ...] = (epsilons, variances, weights)  # whose numbers may lie within a bound
LAST: tuple[Rule, ...] = (cancelling,)
