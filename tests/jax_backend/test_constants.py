"""jax_backend where operands are constants of a program: what a compiler knows, it may fold, merge and contract.

Each of them is tried as one: x, codes, scale, zero point, seed, bit width, learned rounding. An addition behind the
product is there to be contracted with it.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import QParams, Quantizer, catalog
from samebits.jax_backend.nn import QuantLinear
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values

Array = NDArray[Any]
SHAPE = (32, 128)
INT8 = catalog["int8_per_tensor"]
OTHERS = {
    "stochastic": INT8.replace(rounding="stochastic"),
    "learned rounding": INT8.replace(rounding="learned"),
    "directed": catalog["int8_per_channel"].replace(rounding="toward_positive"),
    "float zeros": catalog["uint4_affine_float_zero_per_group64"],
    "unsigned": catalog["uint8_per_tensor"],
}
QUANTIZERS = {**catalog, **OTHERS}


def data(seed: int = 0) -> tuple[Array, Array]:
    """Numbers with all special ones that have parameters, and what is added to the results."""
    rng = np.random.default_rng(seed)
    x, b = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    special = special_values(np.dtype(np.float32))
    x.reshape(-1)[: len(special)] = np.where(np.abs(special) < 2, special, 1.5)
    return x, b


def each_as_a_constant(
    function: Callable[..., Any], operands: Sequence[Any], last: Any, constants: Sequence[tuple[bool, ...]]
) -> Any:
    """``function(*operands) + last`` jitted, with every choice of constants; ``last`` is an argument always."""
    for chosen in constants:
        fixed = [o if c else None for o, c in zip(operands, chosen, strict=True)]

        def program(last: Any, *given: Any, chosen: tuple[bool, ...] = chosen, fixed: list[Any] = fixed) -> Any:
            used = [f if c else g for f, g, c in zip(fixed, given, chosen, strict=True)]
            return function(*used) + last

        yield chosen, jax.jit(program)(last, *(None if c else o for o, c in zip(operands, chosen, strict=True)))


def operands_of(q: Quantizer, x: Array) -> tuple[QParams, list[Any]]:
    """Parameters, and scale, zero point and seed (or the parameter of learned rounding) as JAX arrays or None."""
    qparams = core.choose_qparams(q, x)
    extra: Any = None
    if q.rounding == "stochastic":
        extra, qparams = jnp.uint32(7), qparams._replace(seed=7)
    if q.rounding == "learned":
        v = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
        extra, qparams = jnp.asarray(v), qparams._replace(rounding=v)
    zero = None if qparams.zero_point is None else jnp.asarray(qparams.zero_point)
    return qparams, [jnp.asarray(qparams.scale), zero, extra]


def given(q: Quantizer, scale: Any, zero: Any, extra: Any) -> QParams:
    """The parameters again."""
    name = {"stochastic": "seed", "learned": "rounding"}.get(str(q.rounding))
    return QParams(scale, zero) if name is None else QParams(scale, zero)._replace(**{name: extra})


def choices(operands: Sequence[Any]) -> list[tuple[bool, ...]]:
    """Of the operands that there are: each alone, all but each, and all; each choice once."""
    there = [i for i, operand in enumerate(operands) if operand is not None]
    chosen = [{i} for i in there] + [set(there) - {i} for i in there] + [set(there)]
    return list(dict.fromkeys(tuple(i in one for i in range(len(operands))) for one in chosen if one))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_and_parameters_as_constants(name: str) -> None:
    q, (x, b) = QUANTIZERS[name], data()
    qparams, operands = operands_of(q, x)
    codes = core.quantize(q, x, qparams)
    with np.errstate(all="ignore"):
        want = core.dequantize(q, codes, qparams) + b

    def function(codes: Any, scale: Any, zero: Any, extra: Any) -> Any:
        return jax_backend.dequantize(q, codes, given(q, scale, zero, extra))

    given_here = [jnp.asarray(codes), *operands]
    for chosen, got in each_as_a_constant(function, given_here, jnp.asarray(b), choices(given_here)):
        assert_same_bits(want, got, call=f"{name}, constants {chosen}")


@pytest.mark.parametrize("name", QUANTIZERS)
def test_x_and_parameters_as_constants(name: str) -> None:
    q, (x, b) = QUANTIZERS[name], data()
    qparams, operands = operands_of(q, x)
    with np.errstate(all="ignore"):
        want = core.fake_quantize(q, x, qparams) + b

    def function(x: Any, scale: Any, zero: Any, extra: Any) -> Any:
        return jax_backend.fake_quantize(q, x, given(q, scale, zero, extra))

    given_here = [jnp.asarray(x), *operands]
    for chosen, got in each_as_a_constant(function, given_here, jnp.asarray(b), choices(given_here)):
        assert_same_bits(want, got, call=f"{name}, constants {chosen}", inputs=x)


@pytest.mark.parametrize("code", [3, -127, 0])
@pytest.mark.parametrize("name", ["int8_per_tensor", "int8_per_channel", "int16_per_tensor"])
def test_one_code_everywhere(name: str, code: int) -> None:
    """A code that is the same number everywhere is known to the compiler element by element."""
    q, (x, b) = catalog[name], data()
    qparams = core.choose_qparams(q, x)
    codes = np.full(SHAPE, code, q.format.storage)
    want = core.dequantize(q, codes, qparams) + b
    program = jax.jit(lambda s, b: jax_backend.dequantize(q, jnp.full(SHAPE, code, q.format.storage), QParams(s)) + b)
    assert_same_bits(want, program(jnp.asarray(qparams.scale), jnp.asarray(b)), call=name)


@pytest.mark.parametrize("name", ["binary_per_tensor", "binary_per_channel", "ternary_per_tensor"])
@pytest.mark.parametrize("scale", [0.1, 2.0**-126, 1.5 * 2.0**-100, 2.0**100])
def test_subnormals_meet_constant_scales(name: str, scale: float) -> None:
    q = catalog[name]
    tiny = np.array([1e-45, 1e-39, 1e-38, 1.2e-38, 0.0, 1e-20], np.float32)
    x = np.concatenate([tiny, -tiny]).reshape(1, -1)
    s = np.full((1, 1) if "channel" in name else (), scale, np.float32)
    qparams, fixed = QParams(s), QParams(jnp.asarray(s))
    for function, want in (
        (jax_backend.fake_quantize, core.fake_quantize(q, x, qparams)),
        (jax_backend.quantize, core.quantize(q, x, qparams)),
    ):
        program = jax.jit(lambda x, function=function: function(q, x, fixed))
        assert_same_bits(want, program(jnp.asarray(x)), call=f"{function.__name__}, {name}, {scale}", inputs=x)


def test_a_width_that_is_a_constant() -> None:
    q, (x, b) = catalog["int8_learned_per_tensor"], data()
    scale, width = np.float32(0.03), np.float32(5)
    want = core.fake_quantize(q, x, QParams(scale, bit_width=width)) + b

    def function(x: Any, scale: Any, width: Any) -> Any:
        return jax_backend.fake_quantize(q, x, QParams(scale, bit_width=width))

    every = list(product([False, True], repeat=3))
    operands = [jnp.asarray(x), jnp.asarray(scale), jnp.asarray(width)]
    for chosen, got in each_as_a_constant(function, operands, jnp.asarray(b), every):
        assert_same_bits(want, got, call=f"constants {chosen}", inputs=x)


@pytest.mark.parametrize("name", ["int8_per_tensor", "uint8_affine_per_tensor", "float8_e4m3fn_per_tensor"])
def test_gradients_at_constants(name: str) -> None:
    q, (x, g) = catalog[name], data()
    qparams, operands = operands_of(q, x)
    want = core.fake_quantize_vjp(q, x, qparams, g)

    def function(x: Any, scale: Any, zero: Any, extra: Any) -> Any:
        return jax_backend.fake_quantize_vjp(q, x, QParams(scale, zero), jnp.asarray(g)).x

    nothing = jnp.zeros(SHAPE, np.float32) - 0.0
    given_here = [jnp.asarray(x), *operands]
    for chosen, got in each_as_a_constant(function, given_here, nothing, choices(given_here)):
        assert_same_bits(want.x + np.float32(0), got, call=f"{name}, constants {chosen}", inputs=x)


@pytest.mark.parametrize(
    "kinds", [("int8_per_channel", "uint8_affine_per_tensor"), ("ternary_per_tensor", "int8_per_tensor")]
)
def test_weights_of_a_layer_that_is_closed_over(kinds: tuple[str, str]) -> None:
    """Weights, and the bias behind the product, are constants then; what comes in is one too, in turn."""
    layer = QuantLinear(128, 32, weight_quant=kinds[0], input_quant=kinds[1], rngs=nnx.Rngs(0))
    assert layer.bias is not None
    layer.bias.set_value(jnp.asarray(np.random.default_rng(1).standard_normal(32).astype(np.float32)))
    x, b = data()
    x = np.where(np.isfinite(x), x, 1).astype(np.float32)
    x, b = x * np.float32(0.5), b[:, :32]
    graph, state = nnx.split(layer)
    want = np.asarray(layer(x)) + b
    assert_same_bits(want, jax.jit(lambda x, b: layer(x) + b)(x, b), call="weights")
    assert_same_bits(want, jax.jit(lambda state, b: nnx.merge(graph, state)(x) + b)(state, b), call="inputs")
    assert_same_bits(want, jax.jit(lambda b: layer(x) + b)(b), call="both")
