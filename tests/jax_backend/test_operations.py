"""Single operations of jax_backend beside those of core: numbers of all exponents, and where rounding twice shows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import Arithmetic, operations
from samebits.jax_backend import operations as of_jax
from samebits.jax_backend import ordinary
from samebits.proofs.inputs.compare import assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
Array = NDArray[Any]
NARROW = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
FUSED = Arithmetic(fused_multiply_add=True)


def numbers(dtype: np.dtype[Any], seed: int, count: int = 2000) -> Array:
    """Numbers of all exponents, spread by their bits."""
    bits = np.random.default_rng(seed).integers(0, 2 ** (8 * dtype.itemsize), count, dtype=np.uint64)
    return bits.astype(f"u{dtype.itemsize}").view(dtype)


def specials(dtype: np.dtype[Any]) -> Array:
    """Zeros, ends of the subnormal and normal numbers, infinities and NaN, of both signs."""
    info: Any = ml_dtypes.finfo(dtype)
    least, most = float(info.smallest_subnormal), float(info.max)
    sizes = np.array([0, least, 3 * least, float(info.smallest_normal), 1, 1.5, most, np.inf, np.nan], np.float64)
    return np.concatenate([sizes, -sizes]).astype(dtype)


def pairs(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Random ones, every special value with every other, and near magnitudes, which cancel."""
    s, rng = specials(dtype), np.random.default_rng(2)
    near = rng.standard_normal((2, 500)) * 3
    first = np.concatenate([numbers(dtype, 0), np.repeat(s, s.size), near[0].astype(dtype)])
    return first, np.concatenate([numbers(dtype, 1), np.tile(s, s.size), near[1].astype(dtype)])


def twice_rounded(dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
    """Products and sums that another rounding on the way would change, ``a * b + c``.

    In 16 bits: products halfway between two numbers, and something too small for float32 beside them. In float32: sums
    of 128 and a rounded product that are halfway, where the product is more or less by 2**-46.
    """
    if dtype != np.float32:
        a, b = ([5.0, 3.0], [53.0, 683.0])  # 265 and 2049
        c = np.array([2.0**-20, -(2.0**-20)])
        return tuple(v.reshape(-1).astype(dtype) for v in np.meshgrid(a, b, c))  # type: ignore[return-value]
    found: list[tuple[float, float, float]] = []
    for x in range(2**23 + 1, 2**24, 9998):
        for n in (1, -1, 5):  # significands with x * y = m * 2**30 + 2**29 + n
            y = pow(x, -1, 2**30) * (2**29 + n) % 2**30
            if 2**23 <= y < 2**24:
                found.append((x * 2.0**-23, y * 2.0**-23, 128.0))
    return tuple(np.array(found, np.float32).T)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("name", ["add", "multiply", "true_divide"])
def test_operations_of_any_operands(name: str, dtype: np.dtype[Any]) -> None:
    a, b = pairs(dtype)
    function: Callable[..., Any] = jax.jit(getattr(of_jax, name), static_argnums=2)
    for flushing in (False, True):
        arithmetic = Arithmetic(flush_subnormals=flushing)
        expected = getattr(operations, name)(a, b, arithmetic)
        found = function(jnp.asarray(a), jnp.asarray(b), arithmetic)
        assert_same_bits(expected, found, call=name, inputs={"a": a, "b": b})


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_fused_multiply_add(dtype: np.dtype[Any]) -> None:
    """Sums of products and what nearly cancels them, and the triples that show a second rounding, by both methods."""
    a, b = (v[::4] for v in pairs(dtype))
    cancelling = -(a * b) * (1 + np.resize([0, 2, -3, 1], a.shape) * float(ml_dtypes.finfo(dtype).eps)).astype(dtype)
    every = jax.jit(of_jax.multiply_add, static_argnums=3)
    for c in (cancelling, np.resize(specials(dtype), a.shape), b[::-1]):
        expected = operations.multiply_add(a, b, c, FUSED)
        found = every(*map(jnp.asarray, (a, b, c)), FUSED)
        assert_same_bits(expected, found, inputs={"a": a, "b": b, "c": c})
    triples = twice_rounded(dtype)
    expected = operations.multiply_add(*triples, FUSED)
    once = operations.multiply_add(*triples, Arithmetic())
    assert np.any(expected != once) or dtype != np.float32  # a product that is rounded gives others
    for function in (every, jax.jit(ordinary.multiply_add, static_argnums=3)):
        assert_same_bits(expected, function(*map(jnp.asarray, triples), FUSED), inputs=triples[0])
    if dtype == np.float32:
        found = jax.jit(ordinary.multiply_add_integer)(*map(jnp.asarray, triples), jnp.float32(-0.0))
        assert_same_bits(expected, found, inputs=triples[0])


@pytest.mark.parametrize("wide", [np.dtype(np.float64), np.dtype(np.float32)], ids=str)
def test_roundings_to_narrower_dtypes(wide: np.dtype[Any]) -> None:
    """Numbers of all exponents, of the narrow dtype, halfway between two, and beside these."""
    with jax.enable_x64(True):
        for dtype in (t for t in NARROW if t.itemsize < wide.itemsize):
            near = numbers(dtype, 3).astype(wide)
            after = (numbers(dtype, 3).view(f"i{dtype.itemsize}") + 1).view(dtype).astype(wide)
            middle = (near + after) / 2
            beside = [np.nextafter(middle, np.asarray(end, wide)) for end in (-np.inf, np.inf)]
            x = np.concatenate([numbers(wide, 4), specials(wide), near, middle, *beside])
            found = jax.jit(of_jax.round_to_dtype, static_argnums=1)(jnp.asarray(x), dtype)
            assert_same_bits(operations.round_to_dtype(x, dtype), found, inputs=x)
