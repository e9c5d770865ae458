"""Contractions of packed weights beside core, where their arithmetic is decided: 2**24, int32, the smallest scale."""

from typing import Any

import numpy as np
from torch import Tensor

from samebits import core
from samebits.core import QParams, catalog
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_torch
from samebits.torch_frontend import matmul
from samebits.torch_frontend.packed import PackedWeight


def product(
    name: str, x: Any, zero: int | None, w_name: str, w: Any, w_zero: int | None, *, has_codes: bool = True
) -> Tensor:
    """`core.linear` of codes at scales of 1, with which a packed weight is compared."""
    q_x, q_w, one = catalog[name], catalog[w_name], np.float32(1)
    p, r = QParams(one, None if zero is None else np.int32(zero)), QParams(np.ones((len(w), 1), np.float32))
    r = r if w_zero is None else r._replace(zero_point=np.full((len(w), 1), w_zero, np.int32))
    want = core.linear(q_x, x, p, q_w, w, r)
    given = [QParams(*(None if v is None else to_torch(np.asarray(v)) for v in qparams[:2])) for qparams in (p, r)]
    held = PackedWeight(q_x, q_w, to_torch(w), given[1])
    assert (held.codes is not None) == has_codes
    got = matmul.linear(q_x, to_torch(x), given[0], q_w, held, given[1])
    assert_same_bits(want, got, call=f"{name} {w_name} {x.shape}")
    return got


def test_accumulators_around_2_to_the_24_are_rounded_once() -> None:
    """127 * 127 * n and one odd unit more or less: float32 has even numbers alone from 2**24 on, ties go to even."""
    n = 2**24 // (127 * 127)
    for more in range(-3, 4):
        x = np.full((3, n + 3), 127, np.float32)
        w = np.full((2, n + 3), 127, np.float32)
        rest = 2**24 + more - 127 * 127 * n
        w[:, n:], x[:, n] = 0, 127
        w[:, n], w[:, n + 1] = divmod(rest, 127)
        x[:, n + 1] = 1
        w[1] = -w[1]
        y = product("int8_per_tensor", x, None, "int8_per_channel", w, None)
        assert y[0].tolist() == [np.float32(2**24 + more), -np.float32(2**24 + more)]


def test_the_largest_sums_fit_int32() -> None:
    n = 2**15 - 1
    for zero, sign in ((0, 1), (255, -1)):
        x, w = np.full((2, n), 255.0 if zero == 0 else -255.0, np.float32), np.full((3, n), 255.0, np.float32)
        y = product("uint8_affine_per_tensor", x, zero, "uint8_affine_per_channel", w, 0)
        assert y[0, 0] == np.float32(sign * 255 * 255 * n)


def test_sums_beyond_int32_are_no_int32() -> None:
    n = 2**15 + 1000
    x, w = np.full((2, n), 255.0, np.float32), np.full((2, n), 255.0, np.float32)
    y = product("uint8_affine_per_tensor", x, 0, "uint8_affine_per_channel", w, 0, has_codes=False)
    assert y[0, 0] == np.float32(255 * 255 * n)


def test_sums_of_floats_beyond_2_to_the_24_are_made_in_parts() -> None:
    """A dilated convolution, which has no int8: 9 * 120 terms of 127 * 127, and one that makes the sum odd."""
    q_x, q_w, one = catalog["int8_per_tensor"], catalog["int8_per_channel"], np.float32(1)
    x, w = np.full((1, 120, 5, 5), 127, np.float32), np.full((2, 120, 3, 3), 127, np.float32)
    x[0, 0, 0, 0] = w[0, 0, 0, 0] = 126
    w[1, 0, 0, 0] = 0
    p, r = QParams(one), QParams(np.ones((2, 1, 1, 1), np.float32))
    want = core.conv(q_x, x, p, q_w, w, r, None, 1, 0, 2)
    given = [QParams(to_torch(np.asarray(v.scale))) for v in (p, r)]
    held = PackedWeight(q_x, q_w, to_torch(w), given[1])
    assert held.largest_sums is None
    assert_same_bits(want, matmul.conv(q_x, to_torch(x), given[0], q_w, held, given[1], None, 1, 0, 2))
    assert held.largest_sums == (1080 * 127 - 1, 2 * 9 * 127)
    assert want.max() > 2**24


def test_products_of_scales_below_the_smallest_number() -> None:
    q_x, q_w = catalog["int8_per_tensor"], catalog["int8_per_channel"]
    x, w = np.eye(4, dtype=np.float32) * 2.0**-70, np.full((3, 4), 2.0**-60, np.float32)
    p, r = core.choose_qparams(q_x, x), core.choose_qparams(q_w, w)
    want = core.linear(q_x, x, p, q_w, w, r)
    p, r = (QParams(to_torch(np.asarray(v.scale))) for v in (p, r))
    assert_same_bits(want, matmul.linear(q_x, to_torch(x), p, q_w, PackedWeight(q_x, q_w, to_torch(w), r), r))
