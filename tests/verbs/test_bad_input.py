"""Bad input: every room refuses it with the same exception type and the same words."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerBlock, QParams, Quantizer, catalog, dialects
from samebits.proofs.modes.arrays import to_jax, to_torch

NAN, INF = np.nan, np.inf
INT8, UINT8 = catalog["int8_per_tensor"], catalog["uint8_affine_per_tensor"]
CHANNELS, TOKENS, GROUPS = catalog["int8_per_channel"], catalog["int8_affine_per_token"], catalog["int4_per_group32"]


class Room(NamedTuple):
    """A room, its arrays, and the names of its dtypes."""

    module: Any
    array: Callable[[Any], Any]
    dtype: Callable[[str], Any]
    around: Callable[[], Any]


ROOMS = {
    "core": Room(core, lambda a: a, np.dtype, nullcontext),
    "torch_frontend": Room(torch_frontend, to_torch, lambda name: getattr(torch, name), nullcontext),
    "jax_backend": Room(jax_backend, to_jax, np.dtype, lambda: jax.enable_x64(True)),
}


class Bad(NamedTuple):
    """A call that must be refused: a function, its quantizer, its arrays by name, and how the refusal begins."""

    function: str
    q: Any
    arrays: dict[str, Any]
    error: type[Exception]
    words: str


def a(*values: Any, dtype: str = "float32", shape: tuple[int, ...] | None = None) -> Any:
    array = np.array(values, dtype)
    return array.reshape(()) if shape is None and len(values) == 1 else array if shape is None else array.reshape(shape)


X, MATRIX = a(1, 2, 3), np.ones((2, 4), np.float32)
ONE, POINT = a(1), a(3, dtype="int32")
NORMAL = "`qparams.scale` must hold positive normal finite numbers, got"
SCALE_DTYPE = "`qparams.scale` must have dtype float32, bfloat16, float16"
ZERO_DTYPE = "`qparams.zero_point` must have an integer dtype or float32, bfloat16, float16"
RANGE = "`qparams.zero_point` must hold integers in [0, 255], got"


def scale(value: float, words: str) -> Bad:
    return Bad("fake_quantize", INT8, {"x": X, "scale": a(value)}, ValueError, f"{NORMAL} {words} at index ()")


def zero(value: float, words: str, dtype: str = "int32") -> Bad:
    return Bad(
        "fake_quantize", UINT8, {"x": X, "scale": ONE, "zero": a(value, dtype=dtype)}, ValueError, f"{RANGE} {words}"
    )


def fake(q: Any, error: type[Exception], words: str, **arrays: Any) -> Bad:
    return Bad("fake_quantize", q, {"x": X, "scale": ONE} | arrays, error, words)


BAD = {
    # values of the scale
    "NaN scale": scale(NAN, "nan"),
    "zero scale": scale(0, "0.0"),
    "negative zero scale": scale(-0.0, "-0.0"),
    "negative scale": scale(-0.5, "-0.5"),
    "subnormal scale": scale(1e-40, "1e-40"),
    "infinite scale": scale(INF, "inf"),
    "negative infinite scale": scale(-INF, "-inf"),
    "one bad scale of several": fake(
        CHANNELS, ValueError, f"{NORMAL} 0.0 at index (1, 0)", x=MATRIX, scale=a(1, 0, shape=(2, 1))
    ),
    "subnormal float64 scale": fake(
        INT8, ValueError, f"{NORMAL} 1e-310 at", x=X.astype(float), scale=a(1e-310, dtype="float64")
    ),
    # shape and dtype of the scale
    "scale per channel for one per tensor": fake(
        INT8, ValueError, "`qparams.scale` must have shape () (per tensor, x of shape (3,)), got (3,)", scale=X
    ),
    "scale of one axis too few": fake(
        CHANNELS,
        ValueError,
        "`qparams.scale` must have shape (2, 1) (per axis 0, x of shape (2, 4)), got (2,)",
        x=MATRIX,
        scale=a(1, 1),
    ),
    "scale of the wrong axis": fake(
        CHANNELS, ValueError, "`qparams.scale` must have shape (2, 1)", x=MATRIX, scale=np.ones((1, 4), np.float32)
    ),
    "scalar scale for channels": fake(CHANNELS, ValueError, "`qparams.scale` must have shape (2, 1)", x=MATRIX),
    "float16 scale of float64 data": fake(
        INT8,
        TypeError,
        "`qparams.scale` must have dtype float64; got float16",
        x=X.astype(float),
        scale=a(1, dtype="float16"),
    ),
    "float64 scale of float32 data": fake(INT8, TypeError, f"{SCALE_DTYPE}; got float64", scale=a(1, dtype="float64")),
    "float32 scale of float64 data": fake(
        INT8, TypeError, "`qparams.scale` must have dtype float64; got float32", x=X.astype(float)
    ),
    "integer scale": fake(INT8, TypeError, f"{SCALE_DTYPE}; got int32", scale=a(1, dtype="int32")),
    # zero points
    "missing zero point": fake(
        UINT8, TypeError, "`qparams.zero_point` must be an array (the quantizer is affine), got None"
    ),
    "unwanted zero point": fake(
        INT8, TypeError, "`qparams.zero_point` must be None (the quantizer is symmetric), got an array", zero=POINT
    ),
    "zero point below the range": zero(-1, "-1"),
    "zero point above the range": zero(256, "256"),
    "zero point between integers": zero(3.5, "3.5", "float32"),
    "NaN zero point": zero(NAN, "nan", "float32"),
    "zero point of the wrong shape": fake(
        UINT8, ValueError, "`qparams.zero_point` must have shape (), got (3,)", zero=a(1, 2, 3, dtype="int32")
    ),
    "boolean zero point": fake(UINT8, TypeError, f"{ZERO_DTYPE}; got bool", zero=a(1, dtype="bool")),
    "int64 zero point beyond int32": zero(2**32 + 3, str(2**32 + 3), "int64"),
    "float64 zero point of float32 data": fake(
        UINT8, TypeError, f"{ZERO_DTYPE}; got float64", zero=a(3, dtype="float64")
    ),
    # data
    "integer data": fake(
        INT8, TypeError, "`x` must have dtype float32, bfloat16, float16, float64; got int32", x=X.astype("int32")
    ),
    "boolean data": fake(
        INT8, TypeError, "`x` must have dtype float32, bfloat16, float16, float64; got bool", x=X.astype(bool)
    ),
    "complex data": fake(
        INT8,
        TypeError,
        "`x` must have dtype float32, bfloat16, float16, float64; got complex64",
        x=X.astype("complex64"),
    ),
    "integer data to choose from": Bad(
        "choose_qparams", INT8, {"x": X.astype("int32")}, TypeError, "`x` must have dtype float32"
    ),
    "NaN to choose from": Bad(
        "choose_qparams",
        INT8,
        {"x": a(1, NAN)},
        ValueError,
        "`x` must be finite to choose a scale from it, got NaN or an infinity",
    ),
    "infinity to choose from": Bad(
        "choose_qparams", UINT8, {"x": a(1, INF)}, ValueError, "`x` must be finite to choose a scale from it"
    ),
    "NaN, parameters chosen": Bad(
        "fake_quantize", CHANNELS, {"x": a(1, NAN, shape=(2, 1))}, ValueError, "`x` must be finite to choose a scale"
    ),
    "NaN to quantize": Bad(
        "quantize",
        INT8,
        {"x": a(1, NAN), "scale": ONE},
        ValueError,
        "`x` must not hold NaN for quantize (no code stands for it)",
    ),
    # shapes that granularities do not take
    "group that does not divide": Bad(
        "choose_qparams",
        GROUPS,
        {"x": np.ones((2, 33), np.float32)},
        ValueError,
        "the length of axis -1 of x must be a multiple of the group size 32, got 33 in shape (2, 33); pad x",
    ),
    "group that does not divide, parameters given": fake(
        GROUPS, ValueError, "the length of axis -1 of x must be a multiple of the group size 32"
    ),
    "block that does not divide": Bad(
        "choose_qparams",
        INT8.replace(granularity=PerBlock((2, 3))),
        {"x": MATRIX},
        ValueError,
        "the last axes of x must be multiples of the block shape (2, 3), got shape (2, 4)",
    ),
    "token of a scalar": Bad(
        "choose_qparams",
        TOKENS,
        {"x": ONE},
        ValueError,
        "`axis` of per token must exist in x, got axis -1 for x of shape ()",
    ),
    "channel of a scalar": Bad(
        "choose_qparams",
        CHANNELS,
        {"x": ONE},
        ValueError,
        "`axis` of per axis 0 must exist in x, got axis 0 for x of shape ()",
    ),
    # codes and cotangents
    "codes of the wrong integer dtype": Bad(
        "dequantize",
        INT8,
        {"codes": a(1, 2, dtype="int32"), "scale": ONE},
        TypeError,
        "`codes` of int8 must have dtype int8, got int32",
    ),
    "floating-point codes": Bad(
        "dequantize",
        UINT8,
        {"codes": X, "scale": ONE, "zero": POINT},
        TypeError,
        "`codes` of uint8 must have dtype uint8, got float32",
    ),
    "codes with a zero scale": Bad(
        "dequantize", INT8, {"codes": a(1, 2, dtype="int8"), "scale": a(0)}, ValueError, f"{NORMAL} 0.0 at index ()"
    ),
    "integer result of dequantize": Bad(
        "dequantize",
        INT8,
        {"codes": a(1, 2, dtype="int8"), "scale": ONE, "dtype": "int32"},
        TypeError,
        "`dtype` must have dtype float32, bfloat16, float16, float64; got int32",
    ),
    "float64 result of a float32 scale": Bad(
        "dequantize",
        INT8,
        {"codes": a(1, 2, dtype="int8"), "scale": ONE, "dtype": "float64"},
        TypeError,
        "`qparams.scale` must have dtype float64; got float32",
    ),
    "cotangent of another shape": Bad(
        "fake_quantize_vjp",
        INT8,
        {"x": X, "scale": ONE, "g": ONE},
        ValueError,
        "`g` must have the shape of x, (3,), got ()",
    ),
    "cotangent of another dtype": Bad(
        "fake_quantize_vjp",
        INT8,
        {"x": X, "scale": ONE, "g": X.astype("float16")},
        TypeError,
        "`g` must have the dtype of x, float32, got float16",
    ),
    # no quantizer
    "name for a quantizer": fake(
        "int8_per_tensor", TypeError, "`q` must be a Quantizer (see samebits.core.catalog), got 'int8_per_tensor'"
    ),
    "nothing for a quantizer": Bad(
        "choose_qparams", None, {"x": X}, TypeError, "`q` must be a Quantizer (see samebits.core.catalog), got None"
    ),
}


def refusal(name: str, bad: Bad) -> Exception:
    """What a room raises, after which nothing else may have happened."""
    room = ROOMS[name]
    with room.around():
        made = {k: room.dtype(v) if k == "dtype" else room.array(v) for k, v in bad.arrays.items()}
        given = QParams(made["scale"], made.get("zero")) if "scale" in made else None
        arrays = [made[k] for k in ("x", "codes") if k in made]
        arguments = [*arrays, *([given] if given else []), *([made["g"]] if "g" in made else [])]
        more = {"dtype": made["dtype"]} if "dtype" in made else {}
        with pytest.raises(Exception) as caught:  # noqa: PT011  # its type and words are compared by the caller
            getattr(room.module, bad.function)(bad.q, *arguments, **more)
    return caught.value


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_every_room_refuses_it_with_the_same_words(bad: Bad) -> None:
    refusals = {name: refusal(name, bad) for name in ROOMS}
    assert {type(error) for error in refusals.values()} == {bad.error}
    assert str(refusals["core"]).startswith(bad.words)
    assert {str(error) for error in refusals.values()} == {str(refusals["core"])}


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (
            lambda: catalog["int8_per_chanel"],
            KeyError,
            "unknown quantizer 'int8_per_chanel'; did you mean int8_per_channel",
        ),
        (lambda: dialects["brevitos"], KeyError, "unknown dialect 'brevitos'; did you mean brevitas"),
        (
            lambda: INT8.replace(rounding="half_up"),
            ValueError,
            "`rounding` must be one of 'ties_to_even', 'ties_to_away'",
        ),
        (lambda: INT8.replace(gradient="lsq"), ValueError, "`gradient` must be one of 'clipped', 'pass_through'"),
        (
            lambda: INT8.replace(restriction="po2"),
            ValueError,
            "`restriction` must be one of 'float', 'log_float', 'power_of_two'",
        ),
        (
            lambda: INT8.replace(widht=4),
            TypeError,
            "no field widht in a quantizer; fields are arithmetic, batch_in_training",
        ),
    ],
)
def test_unknown_names(ask: Callable[[], Quantizer], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        ask()
    assert caught.value.args[0].startswith(words)


LAYERS = {
    "weight with an axis too many": (
        "linear",
        {"w": (3, 4, 1)},
        ValueError,
        "`w` must have 2 axes, got shape (3, 4, 1)",
    ),
    "input of another length": (
        "linear",
        {"x": (2, 5)},
        ValueError,
        "`x` must fit `w` of shape (3, 4), got shape (2, 5)",
    ),
    "input without axes": ("linear", {"x": ()}, ValueError, "`x` must fit `w` of shape (3, 4), got shape ()"),
    "bias of another length": ("linear", {"bias": (4,)}, ValueError, "`bias` must have shape (3,), got (4,)"),
    "kernel of two axes": ("conv", {"w": (3, 4)}, ValueError, "`w` must have 3 to 5 axes, got shape (3, 4)"),
    "image without a batch": (
        "conv",
        {"x": (4, 5, 5)},
        ValueError,
        "`x` must fit `w` of shape (3, 4, 2, 2), got shape (4, 5, 5)",
    ),
    "image of other channels": ("conv", {"x": (1, 3, 5, 5)}, ValueError, "`x` must fit `w` of shape (3, 4, 2, 2)"),
}
FITTING = {"linear": {"x": (2, 4), "w": (3, 4)}, "conv": {"x": (1, 4, 5, 5), "w": (3, 4, 2, 2)}}


def layer_refusal(name: str, function: str, arrays: dict[str, Any]) -> Exception:
    room = ROOMS[name]
    given = {key: room.array(value) for key, value in arrays.items()}
    one = QParams(room.array(ONE))
    with pytest.raises(Exception) as caught:  # noqa: PT011  # its type and words are compared by the caller
        getattr(room.module, function)(INT8, given["x"], one, INT8, given["w"], one, given.get("bias"))
    return caught.value


@pytest.mark.parametrize(("function", "shapes", "error", "words"), LAYERS.values(), ids=LAYERS)
def test_every_room_refuses_operands_that_do_not_fit(
    function: str, shapes: dict[str, Any], error: type[Exception], words: str
) -> None:
    arrays = {key: np.ones(shape, np.float32) for key, shape in (FITTING[function] | shapes).items()}
    refusals = {name: layer_refusal(name, function, arrays) for name in ROOMS}
    assert {type(caught) for caught in refusals.values()} == {error}
    assert {str(caught) for caught in refusals.values()} == {str(refusals["core"])}
    assert str(refusals["core"]).startswith(words)


@pytest.mark.parametrize("function", FITTING)
def test_every_room_refuses_a_weight_of_another_dtype(function: str) -> None:
    x, w = (np.ones(FITTING[function][key], np.float32) for key in ("x", "w"))
    refusals = {name: layer_refusal(name, function, {"x": x, "w": w.astype(np.float16)}) for name in ROOMS}
    assert {type(caught) for caught in refusals.values()} == {TypeError}
    assert {str(caught) for caught in refusals.values()} == {"`w` must have the dtype of `x`, float32, got float16"}
