"""Faults of compilers, found by `causes.explain`; and of gradients, ranges and graphs, which break laws."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from jax import lax

from samebits import core
from samebits.core import QParams, Quantizer, QuantizerGradients, catalog
from samebits.proofs.divergence.causes import Program

from .instruments import Array, Function, Question, compiled, obeys, planted_in

F32 = np.float32
RNG = np.random.default_rng(0)
X = RNG.standard_normal(2000).astype(F32)
EDGES = ((np.arange(-500, 500) + 0.5) * 0.1).astype(F32)
B = RNG.standard_normal(2000).astype(F32)
LEARNED = catalog["int8_per_channel"].replace(gradient="learned_scale")
ROWS = (RNG.standard_normal((4, 64)) * 3).astype(F32)


def in_jax(name: str, function: Function, *arguments: Array) -> Program:
    return Program(name, arguments, in_jax=function)


def in_torch(name: str, function: Function, *arguments: Array) -> Program:
    return Program(name, arguments, in_torch=function)


def guarded(a: Any, b: Any, c: Any) -> Any:
    """A select between product and sum keeps them apart."""
    p = a * b
    return jnp.where(jnp.isnan(p), jnp.nan, p) + c


def gradients(change: Function) -> Function:
    """Our gradients, changed."""

    def vjp(q: Quantizer, x: Array, qparams: QParams, g: Array) -> QuantizerGradients:
        return change(core.fake_quantize_vjp(q, x, qparams, g), q, x, qparams, g)

    return vjp


def of_scale(change: Function) -> Function:
    """Our scales, changed."""

    def choose(q: Quantizer, x: Array) -> QParams:
        found = core.choose_qparams(q, x)
        return QParams(change(found.scale, x).astype(found.scale.dtype), found.zero_point)

    return choose


QUESTIONS: dict[str, Question] = {
    "division-by-scalar": compiled(
        in_jax("div", lambda x: x / jnp.float32(0.1), EDGES),
        in_jax("div", lambda x: x / lax.optimization_barrier(jnp.full(x.shape, 0.1, jnp.float32)), EDGES),
        "jax eager",
    ),
    "contraction": compiled(
        in_jax("fma", lambda a, b, c: a * b + c, X, B, X[::-1].copy()),
        in_jax("fma", guarded, X, B, X[::-1].copy()),
        "jax jit",
    ),
    "constants-regrouped": compiled(
        in_jax("k", lambda v: 3 * v / 7, X),
        in_jax("k", lambda v, a, b: a * v / b, X, np.full_like(X, 3), np.full_like(X, 7)),
        "jax jit",
    ),
    "log2-of-exp2": compiled(
        in_jax("l", lambda v: jnp.log2(jnp.exp2(v)), X), in_jax("l", lambda v: jnp.exp2(v), X), "jax jit"
    ),
    "cancelled": compiled(
        in_jax("c", lambda v: (v + 12582912.0) - 12582912.0, X),
        in_jax("c", lambda v, m: (v + m) - m, X, np.full_like(X, 12582912.0)),
        "jax jit",
    ),
    "cast-elided": planted_in(
        in_torch("cast", lambda x: x.to(torch.bfloat16).to(torch.float32) * 3, X), "torch", lambda x: x * F32(3)
    ),
    "cast-elided-fake": planted_in(
        in_torch("fake", lambda x: torch.round(x / 0.1), X.astype(ml_dtypes.bfloat16)),
        "torch",
        lambda x: np.rint(x.astype(F32) / F32(0.1)).astype(x.dtype),
    ),
    "scale-gradient-of-dx": obeys(
        LEARNED, ROWS * 4, vjp=gradients(lambda d, q, x, p, g: core.fake_quantize_vjp(q, x, p, d.x)._replace(x=d.x))
    ),
    "scale-gradient-missing": obeys(LEARNED, ROWS, vjp=gradients(lambda d, *_: d._replace(scale=0 * d.scale))),
    "gradient-at-bound": obeys("int8_per_channel", ROWS * 4, vjp=gradients(lambda d, q, x, p, g: d._replace(x=g))),
    "initialised-twice": obeys(
        "int8_per_channel", ROWS, choose=of_scale(lambda s, x: s * np.abs(x).max(1, keepdims=True))
    ),
    "one-scale-for-all": obeys("int8_per_channel", ROWS, choose=of_scale(lambda s, x: np.full_like(s, s.max()))),
    "number-over-tensor": planted_in(
        in_torch("number over tensor", lambda t: torch.div(torch.tensor(255.0), t), X),
        "torch",
        lambda t: (255 / torch.from_numpy(t)).numpy(),
    ),
}
