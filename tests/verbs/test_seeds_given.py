"""Integers that users bring: seeds and bit widths are one rule in all rooms, and so are the numbers of descriptions.

A seed or bit width is an integer of Python or NumPy, or a 0-d integer array of NumPy or the room; a bool is none. What
is traced cannot be looked at: of a seed the last 32 bits count.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from samebits import core, jax_backend, torch_frontend
from samebits.core import FloatFormat, IntegerFormat, PerAxis, PerBlock, PerGroup, QParams, catalog
from samebits.core.contraction import largest_norm
from samebits.jax_backend.tensor_quantizer import TensorQuantizer as InJax
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer as InTorch

DRAWING = catalog["int8_per_tensor"].replace(rounding="stochastic")
X, ONE = np.linspace(-3, 3, 101, dtype=np.float32), np.float32(0.7)
ROOMS: dict[str, Callable[..., Any]] = {
    "core": lambda q, **given: core.fake_quantize(q, X, QParams(ONE, **given)),
    "torch_frontend": lambda q, **given: torch_frontend.fake_quantize(
        q, to_torch(X), QParams(torch.tensor(ONE), **given)
    ),
    "jax_backend": lambda q, **given: jax_backend.fake_quantize(q, X, QParams(ONE, **given)),
}
each_room = pytest.mark.parametrize("room", ROOMS)
OWN = {"core": np.array, "torch_frontend": torch.tensor, "jax_backend": jnp.asarray}


def good(room: str, number: int) -> list[Any]:
    """An integer, as it may be given."""
    numbers = [np.dtype(name).type(number) for name in ("int64", "uint8", "int16")]
    return [number, *numbers, np.array(number), OWN[room](number)]


@each_room
def test_seeds_that_are_taken(room: str) -> None:
    want = ROOMS["core"](DRAWING, seed=7)
    assert not np.array_equal(want, ROOMS["core"](DRAWING, seed=8))
    for seed in good(room, 7):
        assert_same_bits(want, to_numpy(ROOMS[room](DRAWING, seed=seed)), call=f"{room} {seed!r}")
    for seed in (2**32 - 1, np.uint32(2**32 - 1), np.int64(2**32 - 1), np.uint64(2**32 - 1)):
        assert_same_bits(ROOMS["core"](DRAWING, seed=2**32 - 1), to_numpy(ROOMS[room](DRAWING, seed=seed)))


@each_room
def test_bit_widths_that_are_taken(room: str) -> None:
    q = catalog["int8_per_tensor"].replace(bits=8)
    want = ROOMS["core"](q.replace(bits=3))
    assert not np.array_equal(want, ROOMS["core"](q))
    widths = [*good(room, 3), OWN[room](np.float32(3.4))]
    for width in widths:
        assert_same_bits(want, to_numpy(ROOMS[room](q, bit_width=width)), call=f"{room} {width!r}")


REFUSED: dict[str, tuple[str, Any, type[Exception], str]] = {
    "true": ("seed", True, TypeError, "`qparams.seed` must be an integer, got dtype bool"),
    "NumPy's true": ("seed", np.True_, TypeError, "`qparams.seed` must be an integer, got dtype bool"),
    "negative": ("seed", -1, ValueError, "`qparams.seed` must be in [0, 2**32), got -1"),
    "negative in NumPy": ("seed", np.int8(-1), ValueError, "`qparams.seed` must be in [0, 2**32), got -1"),
    "too large": ("seed", 2**32, ValueError, "`qparams.seed` must be in [0, 2**32), got 4294967296"),
    "far too large": ("seed", 2**70, ValueError, "`qparams.seed` must be in [0, 2**32), got 1180591620717411303424"),
    "large in NumPy": (
        "seed",
        np.uint64(2**63),
        ValueError,
        "`qparams.seed` must be in [0, 2**32), got 92233720368547",
    ),
    "true width": (
        "bit_width",
        True,
        TypeError,
        "`qparams.bit_width` must be an integer or have dtype float32, got bo",
    ),
    "no width": ("bit_width", 0, ValueError, "`qparams.bit_width` must be in [2, 8] (int8), got 0"),
    "wide": ("bit_width", np.int64(9), ValueError, "`qparams.bit_width` must be in [2, 8] (int8), got 9"),
}


@each_room
@pytest.mark.parametrize("case", REFUSED)
def test_integers_that_every_room_refuses_with_the_same_words(room: str, case: str) -> None:
    name, value, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        ROOMS[room](DRAWING, **{name: value})
    assert type(caught.value) is error
    assert str(caught.value).startswith(words)


@each_room
@pytest.mark.parametrize("name", ["seed", "bit_width"])
@pytest.mark.parametrize("value", [3.0, "3", [3], np.array([3]), np.ma.array(3, mask=True), 3j], ids=repr)
def test_no_integers(room: str, name: str, value: Any) -> None:
    """What is no 0-d integer is refused by name, whatever else it is."""
    with pytest.raises((TypeError, ValueError), match=rf"^`qparams\.{name}` must "):
        ROOMS[room](DRAWING, **{name: value})


def test_arrays_that_are_no_integers() -> None:
    for seed in (torch.tensor(True), torch.tensor(3.0), torch.tensor([3])):
        with pytest.raises((TypeError, ValueError), match=r"^`qparams\.seed` must be "):
            ROOMS["torch_frontend"](DRAWING, seed=seed)
    for seed in (jnp.asarray(True), jnp.asarray(3.0), jnp.asarray([3]), jax.random.key(3), jnp.int32(-1)):
        with pytest.raises((TypeError, ValueError), match=r"^`qparams\.seed` must be "):
            ROOMS["jax_backend"](DRAWING, seed=seed)


@pytest.mark.parametrize("given", [-1, -(2**31), 5])
def test_of_a_traced_seed_the_last_32_bits_count(given: int) -> None:
    want = ROOMS["core"](DRAWING, seed=given % 2**32)
    in_jax = jax.jit(lambda seed: ROOMS["jax_backend"](DRAWING, seed=seed))
    assert_same_bits(want, np.asarray(in_jax(np.int32(given))))
    assert_same_bits(want, np.asarray(in_jax(given)))
    with jax.enable_x64(True):
        assert_same_bits(want, np.asarray(in_jax(np.int64(given + 2**40))))
    with pytest.raises(TypeError, match="must be an integer, got dtype bool"):
        in_jax(True)


def test_of_a_seed_in_compiled_torch_the_last_32_bits_count() -> None:
    x, scale = to_torch(X), torch.tensor(ONE)

    @torch.compile(fullgraph=True)
    def program(x: Any, scale: Any, seed: Any) -> Any:
        return torch_frontend.fake_quantize(DRAWING, x, QParams(scale, seed=seed))

    for given in (-1, 5, 5 - 2**40):
        want = ROOMS["core"](DRAWING, seed=given % 2**32)
        assert_same_bits(want, to_numpy(program(x, scale, torch.tensor(given))))
    for name, word in (("numpy", np.int64(5)), ("python", 5)):
        assert_same_bits(ROOMS["core"](DRAWING, seed=5), to_numpy(program(x, scale, word)), call=name)


NO_INTS = [True, np.int64(4), 4.0, "4", np.array(4), torch.tensor(4), None]
ACCEPTS_NONE = ("window", "bias", "seed")
INTEGERS: dict[str, Callable[[Any], Any]] = {
    "bits": IntegerFormat,
    "exponent_bits": lambda n: FloatFormat(n, 3),
    "mantissa_bits": lambda n: FloatFormat(4, n),
    "bias": lambda n: FloatFormat(4, 3, bias=n),
    "axis": PerAxis,
    "size": PerGroup,
    "shape": lambda n: PerBlock((n,)),
    "delay": lambda n: DRAWING.replace(delay=n),
    "steps": lambda n: DRAWING.replace(steps=n),
    "window": lambda n: DRAWING.replace(source="running_statistic", window=n),
    "search_steps": lambda n: DRAWING.replace(search_steps=n),
    "seed": lambda n: (InTorch(DRAWING, seed=n), InJax(DRAWING, seed=n)),
    "accumulator_bits": lambda n: largest_norm(n, 8, input_signed=True),
    "input_bits": lambda n: largest_norm(16, n, input_signed=True),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_of_descriptions_are_those_of_python(name: str) -> None:
    """Descriptions are hashed, compared and written down: an equal number of another type would not be the same."""
    assert INTEGERS[name](4) is not None
    for value in NO_INTS:
        if value is None and name in ACCEPTS_NONE:
            continue
        with pytest.raises(TypeError, match=f"^`{name}` must be an int, got "):
            INTEGERS[name](value)


@pytest.mark.parametrize("name", ["learned_bits", "scale_value", "zero_point_value"])
def test_numbers_of_descriptions_are_those_of_python(name: str) -> None:
    q = catalog["uint8_affine_per_tensor"].replace(source="learned", scale_value=1.0)
    for value in (True, "4", np.int64(4), np.array(4.0), torch.tensor(4.0)):
        with pytest.raises(TypeError, match=f"^`{name}` must be a number, got "):
            q.replace(**{name: value})
