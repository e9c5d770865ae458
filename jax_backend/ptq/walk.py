"""A function run operation by operation, as its jaxpr says, with activations quantized where `calibration` has sites.

Contractions are those of `matmul`: of codes, where both operands have them. A value keeps the quantizer it was
quantized with while its elements are only moved; quantizing it again then gives the same codes.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from ...core.calibration import KNOWN_RANGES, OBSERVED_FUNCTIONS
from ...core.descriptions import QParams, Quantizer
from .. import matmul
from ..quantizer import choose_qparams

Array = jax.Array

FUNCTIONS = frozenset((*KNOWN_RANGES, *OBSERVED_FUNCTIONS))
CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
# What `jax.nn` calls the functions that it compiles; a function of a user that has such a name is taken for it
CALLED = ("elu", "leaky_relu", "log_softmax", "relu", "relu6", "selu", "sigmoid", "silu", "softmax", "softplus")
COMPILED = dict(zip(CALLED, CALLED, strict=True)) | {
    "hard_sigmoid": "hardsigmoid",
    "hard_tanh": "hardtanh",
    "soft_sign": "softsign",
}
PRIMITIVES = {"logistic": "sigmoid", "tanh": "tanh", "log": "log", "erf": "erf", "sin": "sin", "cos": "cos"}
MOVES = ("broadcast_in_dim", "copy", "expand_dims", "reshape", "rev", "slice", "squeeze", "stop_gradient", "transpose")
KEEPING = ("relu",)  # functions whose result keeps the scale of codes


class Value(NamedTuple):
    """An array, and what is known of it.

    Attributes:
        constant: whether no argument of the function is in it: a weight.
        sites: where it was quantized.
        q: what it was quantized by, with ``qparams``; None for a value without codes.
    """

    array: Any
    constant: bool = False
    sites: frozenset[str] = frozenset()
    q: Quantizer | None = None
    qparams: QParams = QParams(None)


class Site(Protocol):
    """What is asked while a function runs."""

    weights: Quantizer

    def quantized(self, name: str, value: Value) -> Value:
        """The value with the codes of its site, if there is one."""

    def used(self, reader: str, values: Sequence[Value], *, as_codes: bool) -> None:
        """An operation took values, or their codes."""


class Walk:
    """One run of a function.

    Args:
        sites: asked for every value that a site may be at.
    """

    def __init__(self, sites: Site) -> None:
        self.sites = sites
        self.turns: dict[str, int] = {}
        self.added: set[Any] = set()  # results that are read once, by an addition
        self.waiting: dict[Any, str] = {}  # layers whose site comes behind their bias

    def run(self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        """Values of the outputs of a jaxpr."""
        known: dict[Any, Value] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        makers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
        self.added |= _added(jaxpr)

        def read(v: Any) -> Value:
            return Value(v.val, True) if isinstance(v, jex.Literal) else known[v]

        for eqn in jaxpr.eqns:
            values = [read(v) for v in eqn.invars]
            names = [self.waiting.pop(v, "") if isinstance(v, jex.Var) else "" for v in eqn.invars]
            if any(names) and any(v.constant for v in values):
                found: Sequence[Value] = [self.sites.quantized("".join(names), Value(a)) for a in _bound(eqn, values)]
            else:
                values = [self.sites.quantized(n, v) if n else v for n, v in zip(names, values, strict=True)]
                found = self._operation(eqn, values, makers)
            known.update(zip(eqn.outvars, found, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _operation(self, eqn: Any, values: Sequence[Value], makers: Any) -> Sequence[Value]:
        kind, inner = eqn.primitive.name, _inner(eqn)
        name = PRIMITIVES.get(kind, "") if inner is None else COMPILED.get(eqn.params.get("name", ""), "")
        if kind == "div" and _is_softmax(eqn, makers):
            name = "softmax"
        if all(v.constant for v in values):
            return [Value(a, True) for a in _bound(eqn, values)]
        if inner is not None and name not in FUNCTIONS:
            return self.run(inner.jaxpr, [Value(c, True) for c in inner.consts], values)
        if kind in MOVES or name in KEEPING:
            first = values[0]
            return [first._replace(array=a) for a in _bound(eqn, values)]
        if kind in CONTRACTIONS:
            contracted = CONTRACTIONS[kind](self, eqn, values)
            if contracted is not None:
                return [contracted]
        self.sites.used(name or kind, values, as_codes=False)
        results = [Value(a) for a in _bound(eqn, values)]
        return [self.sites.quantized(self.turn(name), v) for v in results] if name in FUNCTIONS else results

    def turn(self, name: str) -> str:
        """A function or layer with how often it was met before."""
        count = self.turns.get(name, 0)
        self.turns[name] = count + 1
        return f"{name}_{count}"

    def output(self, eqn: Any, name: str, y: Array) -> Value:
        """What a layer gives, with the codes of its site; without, where a bias is still to come."""
        if eqn.outvars[0] in self.added:
            self.waiting[eqn.outvars[0]] = name
            return Value(y)
        return self.sites.quantized(name, Value(y))

    def operands(self, name: str, x: Value, w: Value) -> tuple[Value, Value]:
        """Input and weight of a layer, with codes; the weight ``(out, in, ...)``."""
        x = x if x.q is not None else self.sites.quantized(f"{name}.input", x)
        q = self.sites.weights
        return x, w._replace(q=q, qparams=choose_qparams(q, w.array))


def _inner(eqn: Any) -> Any:
    """The jaxpr that an operation calls once, closed; None of other operations."""
    if eqn.primitive.name not in CALLS:
        return None
    found = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return found if isinstance(found, jex.ClosedJaxpr) else jex.ClosedJaxpr(found, ())


def _bound(eqn: Any, values: Sequence[Value]) -> list[Any]:
    """Arrays that the operation gives by itself."""
    params: Any = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # both, in older releases
    found = eqn.primitive.bind(*functions, *(v.array for v in values), **params)
    return list(found) if eqn.primitive.multiple_results else [found]


def _added(jaxpr: Any) -> set[Any]:
    """Results that are read once, by an addition."""
    readers: dict[Any, list[str]] = {}
    for eqn in jaxpr.eqns:
        for v in eqn.invars:
            if isinstance(v, jex.Var):
                readers.setdefault(v, []).append(eqn.primitive.name)
    return {v for v, names in readers.items() if names == ["add"]} - {
        v for v in jaxpr.outvars if isinstance(v, jex.Var)
    }


def _is_softmax(eqn: Any, makers: Any) -> bool:
    """Whether a quotient is that of exponentials by their sum."""
    top, bottom = (makers.get(v) if not isinstance(v, jex.Literal) else None for v in eqn.invars)
    if top is None or top.primitive.name != "exp":
        return False
    while bottom is not None and bottom.primitive.name in MOVES:
        bottom = makers.get(bottom.invars[0])
    return bottom is not None and bottom.primitive.name == "reduce_sum" and bottom.invars[0] is eqn.invars[0]


def _dot(walk: Walk, eqn: Any, values: Sequence[Value]) -> Value | None:
    """A product of matrices: a layer where one is a weight, else of two activations. None where it has no codes."""
    (contracted, batched), (a, b) = eqn.params["dimension_numbers"], values
    if len(contracted[0]) != 1:
        return None
    sides = list(zip((a, b), contracted, batched, strict=True))
    if not batched[0] and (a.constant or b.constant):
        return _linear(walk, eqn, sides, weight=0 if a.constant else 1)
    if a.q is None or b.q is None:
        return None
    walk.sites.used("matmul", values, as_codes=True)
    rows = [_as_rows(v.array, axes[0], batch) for v, axes, batch in sides]
    y = matmul.batched_matmul(a.q, rows[0], a.qparams, b.q, rows[1], b.qparams).astype(eqn.outvars[0].aval.dtype)
    return walk.sites.quantized(walk.turn("matmul"), Value(y.reshape(eqn.outvars[0].aval.shape)))


def _linear(walk: Walk, eqn: Any, sides: Any, weight: int) -> Value | None:
    (w, (w_axis,), _), (x, (x_axis,), _) = sides[weight], sides[1 - weight]
    if w.array.ndim != 2:
        return None
    name = walk.turn("linear")
    x = x._replace(array=jnp.moveaxis(x.array, x_axis, -1))
    x, w = walk.operands(name, x, w._replace(array=w.array.T if w_axis == 0 else w.array))
    if x.q is None or w.q is None:
        return None
    walk.sites.used(name, [x], as_codes=True)
    y = matmul.linear(x.q, x.array, x.qparams, w.q, w.array, w.qparams).astype(eqn.outvars[0].aval.dtype)
    return walk.output(eqn, name, jnp.moveaxis(y, -1, 0) if weight == 0 else y)


def _as_rows(x: Array, axis: int, batch: Sequence[int]) -> Array:
    """``(*batch, rows, in)`` of an operand of ``dot_general``."""
    free = [k for k in range(x.ndim) if k != axis and k not in batch]
    x = x.transpose(*batch, *free, axis)
    lead = x.shape[: len(batch)]
    return x.reshape(*lead, prod(x.shape[len(batch) : -1]), x.shape[-1])


def _conv(walk: Walk, eqn: Any, values: Sequence[Value]) -> Value | None:
    """A convolution with a kernel that is a weight; None for one that spreads its input out, or counts batches."""
    x, w = values
    p = eqn.params
    if not w.constant or set(p["lhs_dilation"]) != {1} or p["batch_group_count"] != 1:
        return None
    numbers, name = p["dimension_numbers"], walk.turn("conv")
    x = x._replace(array=x.array.transpose(numbers.lhs_spec))
    x, w = walk.operands(name, x, w._replace(array=w.array.transpose(numbers.rhs_spec)))
    if x.q is None or w.q is None:
        return None
    walk.sites.used(name, [x], as_codes=True)
    sizes = p["window_strides"], p["padding"], p["rhs_dilation"], p["feature_group_count"]
    y = matmul.conv(x.q, x.array, x.qparams, w.q, w.array, w.qparams, None, *sizes)
    back = [numbers.out_spec.index(k) for k in range(y.ndim)]
    return walk.output(eqn, name, y.transpose(back))


Contract = Callable[[Walk, Any, Sequence[Value]], Value | None]
CONTRACTIONS: dict[str, Contract] = {"dot_general": _dot, "conv_general_dilated": _conv}


def in_jaxpr(sites: Site, function: Callable[..., Any], args: Sequence[Any]) -> Any:
    """What a function gives for arguments, with what the sites do to it."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    values = [Value(a) for a in jax.tree.leaves(args)]
    found = Walk(sites).run(closed.jaxpr, [Value(c, True) for c in closed.consts], values)
    return jax.tree.unflatten(jax.tree.structure(shape), [v.array for v in found])
