"""Division in jax_backend, which XLA would make a product with the reciprocal: around ties, in programs of every kind.

Operands are arguments or constants of the program, alone or with operations around them that XLA likes to merge with a
division. A last test counts loops: what hides the divisor must not be an array of its own.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import PerTensor, QParams, Quantizer, Restriction, catalog
from samebits.jax_backend.arrays import divide
from samebits.jax_backend.ieee import divide_exactly
from samebits.proofs.inputs.bits import neighbours
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edge_array, special_values
from samebits.proofs.modes.arrays import to_jax

from ..exact import DTYPES

Array = NDArray[Any]
Division = Callable[[Any, Any], Any]
Results = Iterator[tuple[str, Array, Any]]
INT8, CHANNELS = catalog["int8_per_tensor"], catalog["int8_per_channel"]
NAMES = ("int8_per_tensor", "int8_per_channel", "uint4_affine_per_group32", "float8_e4m3fn_per_tensor", "mxfp4_e2m1")
SCALES = 300
each_float = pytest.mark.parametrize("dtype", ["float32", "float64"])


def divide_ordinary(x: Any, s: Any) -> Any:
    """Where nothing but what hides the divisor stands before XLA; here no ``x`` is subnormal."""
    return divide(x, s, subnormals=False)


each_division = pytest.mark.parametrize(
    "division", [divide, divide_ordinary, divide_exactly], ids=lambda division: division.__name__
)


def some_scales(dtype: str, count: int = SCALES) -> Array:
    """Random significands, exponents from -30 to 30; the least and a large one among them."""
    rng = np.random.default_rng(0)
    scales = np.ldexp(rng.uniform(1, 2, count), rng.integers(-30, 31, count)).astype(dtype)
    scales[:4] = 0.1, 0.7, np.finfo(dtype).smallest_normal, 2.0**100
    return scales


def ties(scales: Array, division: Division = divide) -> Array:
    """A row for each scale: ``(k + 1/2) * s`` and its two neighbours for each code k, and special values.

    For `divide_ordinary` with zeros for subnormals.
    """
    halves = np.arange(-128, 128) + 0.5
    with np.errstate(over="ignore"):
        rows = [np.resize(neighbours((halves * s).astype(scales.dtype), 1), 3 * len(halves)) for s in scales]
    special = np.broadcast_to(special_values(scales.dtype), (len(scales), 26))
    x = np.concatenate([np.stack(rows), special], axis=1)
    return ordinary(x) if division is divide_ordinary else x


def quotients(x: Array, s: Array) -> Array:
    """As IEEE 754 has them."""
    with np.errstate(all="ignore"):
        return np.asarray(x / s)


def ordinary(quotient: Array) -> Array:
    """Zeros of the same sign for subnormals: `divide` does not promise which of the two."""
    return np.where(np.abs(quotient) < np.finfo(quotient.dtype).smallest_normal, np.copysign(0, quotient), quotient)


def assert_divided(division: Division, x: Array, s: Array, got: Any, call: str) -> None:
    """`divide_exactly` promises subnormal quotients too."""
    want, found = quotients(x, s), np.asarray(got)
    if division is not divide_exactly:
        want, found = ordinary(want), ordinary(found)
    assert_same_bits(want, found, call=f"{division.__name__}, {call}", inputs=x)


def full(division: Division) -> Division:
    """With the divisor in the shape of ``x``, as the callers of both have it."""
    return lambda x, s: division(x, jnp.broadcast_to(s, x.shape))


def programs(f: Division, x: Array, s: Array) -> Iterator[tuple[str, Any]]:
    """One division as JAX may meet it."""
    yield "operation by operation", f(jnp.asarray(x), jnp.asarray(s))
    with jax.disable_jit():
        yield "jit disabled", f(jnp.asarray(x), jnp.asarray(s))
    yield "arguments", jax.jit(f)(x, s)
    yield "s a constant", jax.jit(lambda x: f(x, jnp.asarray(s)))(x)
    yield "x a constant", jax.jit(lambda s: f(jnp.asarray(x), s))(s)
    yield "both constants", jax.jit(lambda: f(jnp.asarray(x), jnp.asarray(s)))()
    yield "both constants, through a function", jax.jit(lambda: jax.jit(f)(x, s))()


@each_float
@each_division
def test_a_scale_for_each_row(division: Division, dtype: str) -> None:
    """Fewer of `divide_exactly`: as a constant it is evaluated while compiling."""
    scales = some_scales(dtype)[: 8 if division is divide_exactly else SCALES, None]
    x = ties(scales[:, 0], division)
    with jax.enable_x64(dtype == "float64"):
        for call, got in programs(full(division), x, scales):
            assert_divided(division, x, scales, got, call)
        batch = jax.vmap(full(division))
        for call, got in (("vmap", batch(x, scales[:, 0])), ("vmap in jit", jax.jit(batch)(x, scales[:, 0]))):
            assert_divided(division, x, scales, got, call)
        of_one = jax.jit(jax.vmap(full(division), (None, 0)))(x[0], scales[:, 0])
        assert_divided(division, np.broadcast_to(x[0], x.shape), scales, of_one, "vmap over scales")


@each_float
@each_division
def test_one_scale_as_an_argument(division: Division, dtype: str) -> None:
    scales = some_scales(dtype)
    rows = ties(scales, division)
    with jax.enable_x64(dtype == "float64"):
        program, scalar = jax.jit(full(division)), jax.jit(jax.vmap(full(division), (0, None)))
        for x, s in zip(rows, scales, strict=True):
            assert_divided(division, x, s, program(x, s), "scalar")
            assert_divided(division, x, s, scalar(x, s), "scalar of scalars")


@each_float
@each_division
def test_one_scale_as_a_constant(division: Division, dtype: str) -> None:
    """Fewer for `divide_exactly`, to whose division of significands scales of one significand are one."""
    scales = some_scales(dtype, 4)[:: 2 if division is divide_exactly else 1]
    with jax.enable_x64(dtype == "float64"):
        for x, s in zip(ties(scales, division), scales, strict=True):
            for call, got in programs(full(division), x, s):
                assert_divided(division, x, s, got, f"{call}, s = {s}")


@each_float
@each_division
def test_both_operands_are_broadcast(division: Division, dtype: str) -> None:
    """Scalars both, or rows and columns: XLA divides before it broadcasts, if it may."""
    scales = some_scales(dtype)[4:12]
    of_scalars = jax.jit(lambda v, s: division(jnp.full((81,), v), jnp.full((81,), s)))
    rows = jax.jit(lambda x, s: division(jnp.tile(x, (3, 1)), jnp.full((3, x.size), s)))
    columns = jax.jit(lambda x, s: division(jnp.repeat(x[:, None], 3, 1), jnp.full((x.size, 3), s)))
    count = jax.jit(lambda n: division(jnp.full((81,), n), jnp.full((81,), n) + 1))
    with jax.enable_x64(dtype == "float64"):
        for s in scales:
            x = (np.arange(-20, 21) * s + s / 2).astype(scales.dtype)
            for v in x:
                assert_divided(division, np.full(81, v), np.full(81, s), of_scalars(v, s), "of two scalars")
            assert_divided(division, np.tile(x, (3, 1)), np.full((3, x.size), s), rows(x, s), "of rows")
            wide = np.repeat(x[:, None], 3, 1)
            assert_divided(division, wide, np.full_like(wide, s), columns(x, s), "of columns")
        for n in (1, 6, 1000):
            number = np.full(81, n, scales.dtype)
            assert_divided(division, number, number + 1, count(number[0]), "of a scalar by the next")


@each_float
@each_division
def test_operations_around_it(division: Division, dtype: str) -> None:
    """What XLA merges: quotients by an array or a scale, products, whole numbers; and sums and products behind it."""
    scales = some_scales(dtype)[4:, None]
    x = ties(scales[:, 0], division)[:, :-26]
    two, ten, three = (scales.dtype.type(v) for v in (2.0**-3, 10.0, 3.0))
    whole = np.arange(x.size).reshape(x.shape) % 2001 - 1000
    f = full(division)
    with jax.enable_x64(dtype == "float64"):
        program = jax.jit(
            lambda x, s, a, w: (
                f(x / a, s),
                f(f(x, jnp.full_like(s, ten)), s),
                f(x * two, s),
                f(w.astype(x.dtype), s),
                f(x * s, s),
                f(f(x, s), jnp.full_like(s, three)),
                f(x, s) * s,
                jnp.round(f(x, s)) + a,
            )
        )
        a = np.abs(x) + 1
        got = program(x, scales, a, whole)
    by_scale = quotients(x, scales)
    wholes = whole.astype(x.dtype)
    for call, dividend, s, quotient in (
        ("of a quotient", x / a, scales, got[0]),
        ("of a division", x / ten, scales, got[1]),
        ("of a multiple", x * two, scales, got[2]),
        ("of whole numbers", wholes, scales, got[3]),
        ("of a product", x * scales, scales, got[4]),
        ("divided again", by_scale, three, got[5]),
    ):
        assert_divided(division, dividend, np.asarray(s), quotient, call)
    assert_same_bits(by_scale * scales, got[6], call="times the scale", inputs=x)
    assert_same_bits(np.round(by_scale) + a, got[7], call="rounded, and added to", inputs=x)


def scales_of(q: Quantizer, dtype: str) -> Array:
    """For `knife_edge_array`: one where there is one, powers of two for MX."""
    wide = "float64" if dtype == "float64" else "float32"
    if q.scale.restriction is not Restriction.FLOAT:
        return (2.0 ** np.arange(-24, 24, 4)).astype(wide)
    return some_scales(wide, 24)[: 1 if isinstance(q.granularity, PerTensor) else None]


def larger_programs(q: Quantizer, x: Any, p: QParams, w: Any, b: Any) -> Results:
    """Values in programs of each kind, beside those of core; ``w`` are powers of two, so that products are exact."""
    y = core.fake_quantize(q, x, p)
    data, given = to_jax(x), QParams(*(v if v is None else jnp.asarray(v) for v in p[:2]))
    fake = jax_backend.fake_quantize
    yield "by itself", y, fake(q, data, given)
    with jax.disable_jit():
        yield "jit disabled", y, fake(q, data, given)
    yield "arguments", y, jax.jit(lambda x, p: fake(q, x, p))(data, given)
    yield "parameters constant", y, jax.jit(lambda x: fake(q, x, given))(data)
    yield "x constant", y, jax.jit(lambda p: fake(q, data, p))(given)
    yield "all constant", y, jax.jit(lambda: fake(q, data, given))()
    yield "times w plus b", y * w + b, jax.jit(lambda x, p, w, b: fake(q, x, p) * w + b)(data, given, w, b)
    batch = jax.vmap(lambda x: fake(q, x, given))(jnp.stack([data, data[::-1]]))
    turned = core.fake_quantize(q, np.ascontiguousarray(x[::-1]), p)
    yield "vmap", np.stack([y, turned]), batch
    pull = jax.jit(lambda x, p, g: jax.vjp(lambda x: fake(q, x, p), x)[1](g)[0])
    yield "gradient", core.fake_quantize_vjp(q, x, p, b).x, pull(data, given, b)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_quantizers_on_their_knife_edges(name: str, dtype: str) -> None:
    q, kind = catalog[name], DTYPES[dtype]
    scales = scales_of(q, dtype)
    zeros = np.arange(len(scales), dtype=np.int32) % 16 if q.affine else None
    x, p = knife_edge_array(q, QParams(scales, zeros), kind)
    rng = np.random.default_rng(0)
    w, b = (2.0 ** rng.integers(-2, 3, x.shape)).astype(kind), rng.standard_normal(x.shape).astype(kind)
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):
        for call, want, got in larger_programs(q, x, p, to_jax(w), to_jax(b)):
            assert_same_bits(want, got, call=f"{name}, {dtype}, {call}")


@pytest.mark.parametrize("q", [INT8, CHANNELS], ids=lambda q: str(q.granularity))
def test_quantizers_at_many_scales(q: Quantizer) -> None:
    """One after the other for a scale of the whole array, as rows where each row has one."""
    scales = some_scales("float32")
    x, program = ties(scales), jax.jit(jax_backend.fake_quantize, static_argnums=0)
    cases = zip(x, scales, strict=True) if q is INT8 else [(x, scales[:, None])]
    for row, s in cases:
        p = QParams(np.asarray(s))
        assert_same_bits(core.fake_quantize(q, row, p), program(q, row, p), call=f"s = {s}", inputs=row)


@pytest.mark.parametrize("name", ["int8_per_tensor", "int8_per_channel", "float8_e4m3fn_per_tensor", "mxfp8_e4m3"])
def test_one_loop_for_each_branch(name: str) -> None:
    """Neither what hides the divisor nor the quotient is stored, which would take a loop over the array each.

    (Their memory shows nothing: XLA puts them where the result will be.) There is a branch that heeds subnormals.
    """
    q, x = catalog[name], np.ones((256, 4096), np.float32)
    scale = jnp.asarray(core.choose_qparams(q, x).scale)
    program = jax.jit(lambda x, s: jax_backend.fake_quantize(q, x, QParams(s))).lower(x, scale).compile().as_text()
    assert program is not None
    loops = re.findall(r" = f32\[256,4096\]\S* fusion\(.*calls=", program)
    assert len(loops) == 2
