"""GPTQ against its definition without factors: after each column, the rest is where the outputs' error is least."""

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import (
    IntegerFormat,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    Quantizer,
    ZeroPoint,
    catalog,
    choose_qparams,
    dequantize,
    fake_quantize,
)
from samebits.core.gptq import gptq, hessian_update, inverse_factor, output_error
from samebits.proofs.inputs.compare import assert_same_bits

from ..layerwise_inputs import UNUSED, damped, layer, statistics

Array = NDArray[Any]
INT4 = Quantizer(format=IntegerFormat(4), granularity=PerAxis(0))
QUANTIZERS = {
    "per channel": INT4,
    "per tensor": INT4.replace(granularity=PerTensor()),
    "per group": INT4.replace(granularity=PerGroup(8)),
    "affine per group": INT4.replace(granularity=PerGroup(8), zero_point=ZeroPoint.MIN_MAX),
    "per column": INT4.replace(granularity=PerAxis(1)),
    "per block": INT4.replace(granularity=PerBlock((4, 8))),
    "mxfp4": catalog["mxfp4_e2m1"].replace(granularity=PerGroup(8)),
    "nvfp4": catalog["nvfp4"].replace(granularity=PerGroup(8)),
    "float8": catalog["float8_e4m3fn_per_tensor"],
}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"blocksize": 6},
    {"blocksize": 8, "percdamp": 0.1},
    {"act_order": True},
    {"group_scales": "updated"},
    {"group_scales": "original"},
]


def by_definition(q: Quantizer, w: Array, hessian: Array, **settings: Any) -> Array:
    """Values of the codes, where each column's error moves the rest to ``argmin tr(d H d^T)`` by solving for it."""
    blocksize, updated = settings.get("blocksize", 128), settings.get("group_scales") == "updated"
    h, columns = damped(hessian, settings.get("percdamp", 0.01)), w.shape[1]
    rest = np.where(np.diag(hessian) == 0, 0, w).astype(np.float64)
    order = np.arange(columns)
    if settings.get("act_order"):
        order = np.array(sorted(order, key=lambda j: -np.float32(np.diag(hessian)[j] or 1)))
    size = q.granularity.block_size(w.shape)[1]
    fixed = size == columns or q.scale.two_level or "act_order" in settings
    fixed = fixed or settings.get("group_scales") == "original"
    given, w_hat, began = choose_qparams(q, rest.astype(np.float32)), np.zeros(w.shape, np.float32), rest
    for place, j in enumerate(order):
        began = rest.copy() if place % blocksize == 0 else began
        group = slice(j // size * size, j // size * size + size)
        if place % size == 0 or fixed:
            base = rest if updated else began
            chosen = given if fixed else choose_qparams(q, base[:, group].astype(np.float32))
        whole = rest.astype(np.float32) if fixed else np.repeat(rest[:, [j]], size, 1).astype(np.float32)
        w_hat[:, j] = fake_quantize(q, whole, chosen)[:, j if fixed else 0]
        later = order[place + 1 :]
        if len(later):
            move = np.linalg.solve(h[np.ix_(later, later)], h[later, j])  # d later / d column, where the sum is least
            rest[:, later] += np.outer(rest[:, j] - w_hat[:, j], move)
        rest[:, j] = w_hat[:, j]
    return w_hat


@pytest.mark.parametrize(
    ("name", "settings"), [(n, s) for n in QUANTIZERS for s in SETTINGS if (n, *s.values()) != ("nvfp4", "updated")]
)
def test_columns_are_those_of_the_definition(name: str, settings: dict[str, Any]) -> None:
    q = QUANTIZERS[name]
    w, x = layer(12, 24)
    hessian = statistics(x)
    codes, qparams, w_hat, losses = gptq(q, w, hessian, **settings)
    assert_same_bits(dequantize(q, codes, qparams), w_hat)
    assert_same_bits(by_definition(q, w, hessian, **settings), w_hat)
    # each loss is what its column adds to the error of the outputs
    kept = np.where(np.diag(hessian) == 0, 0, w)
    h = damped(hessian, settings.get("percdamp", 0.01))
    assert losses.sum() == pytest.approx(output_error(kept, w_hat, h), rel=1e-12)


def test_settings_change_what_is_found() -> None:
    """So the comparison above tells them apart."""
    w, x = layer(12, 24)
    q = QUANTIZERS["per group"]
    found = [gptq(q, w, statistics(x), **settings)[2] for settings in SETTINGS]
    for i, one in enumerate(found[:5]):
        assert all((one != other).any() for other in found[:i]), SETTINGS[i]


@pytest.mark.parametrize("name", ["per channel", "per group", "affine per group", "mxfp4"])
def test_outputs_are_nearer_than_those_of_rounding_to_nearest(name: str) -> None:
    q = QUANTIZERS[name]
    w, x = layer(32, 64, seed=1)
    hessian = statistics(x)
    error = output_error(w, gptq(q, w, hessian)[2], hessian)
    assert error < 0.7 * output_error(w, fake_quantize(q, w), hessian)
    wide = x.astype(np.float64)
    off = wide @ (w.astype(np.float64) - gptq(q, w, hessian)[2]).T
    assert error == pytest.approx((off**2).sum(1).mean(), rel=1e-12)


def test_independent_inputs_leave_rounding_to_nearest() -> None:
    w, _ = layer(8, 24)
    assert_same_bits(gptq(INT4, w, np.diag(np.arange(1.0, 25)))[2], fake_quantize(INT4, w))


def test_unused_columns_become_zero() -> None:
    w, x = layer(8, 24)
    codes, _, w_hat, losses = gptq(INT4, w, statistics(x))
    assert not codes[:, UNUSED].any()
    assert not w_hat[:, UNUSED].any()
    assert not losses[:, UNUSED].any()


def test_order_of_equal_inputs_is_kept() -> None:
    w, x = layer(8, 24)
    hessian = statistics(np.repeat(x[:, 8:20], 2, 1))
    hessian /= np.sqrt(np.outer(np.diag(hessian), np.diag(hessian)))
    np.fill_diagonal(hessian, 1 + 2.0**-50 * np.arange(24))  # of ones, as another library might have rounded them
    assert_same_bits(gptq(INT4, w, hessian, act_order=True)[0], gptq(INT4, w, hessian)[0])


def test_statistics_of_pieces_are_those_of_all() -> None:
    _, x = layer(1, 24)
    wide = x.astype(np.longdouble)
    exact = 2 * wide.T @ wide / len(x)
    bound = (len(x) + 12) * 2.0**-53 * (2 * abs(wide).T @ abs(wide) / len(x))
    for pieces in (1, 3, 50):
        assert (abs(statistics(x, pieces) - exact) <= bound).all()
    hessian, n = hessian_update(np.eye(24), 7, np.zeros((0, 24), np.float32))
    assert n == 7
    assert (hessian == np.eye(24)).all()


def test_factor_is_that_of_the_inverse() -> None:
    _, x = layer(1, 24)
    u = inverse_factor(statistics(x))
    assert (u == np.triu(u)).all()
    assert (np.diag(u) > 0).all()
    np.testing.assert_allclose(u.T @ u @ damped(statistics(x)), np.eye(24), atol=1e-12)


W, X = layer(8, 16)
H = statistics(X)
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hessian": np.full((16, 16), np.nan)}, ValueError, "`hessian` must be finite, got NaN or an infinity"),
    ({"hessian": np.eye(8)}, ValueError, "`hessian` must have shape (16, 16), as `w` has columns, got (8, 8)"),
    ({"hessian": -np.eye(16)}, ValueError, "not positive definite with `percdamp` 0.01: raise `percdamp`"),
    ({"hessian": np.ones((16, 16)), "percdamp": 0.0}, ValueError, "raise `percdamp`"),
    ({"percdamp": -1.0}, ValueError, "`percdamp` must be finite and not negative, got -1.0"),
    ({"percdamp": "1"}, TypeError, "`percdamp` must be a number"),
    ({"blocksize": 0}, ValueError, "`blocksize` must be at least 1, got 0"),
    ({"act_order": 1}, TypeError, "`act_order` must be a bool, got 1"),
    ({"group_scales": "mine"}, ValueError, "`group_scales` must be one of 'block', 'updated', 'original'"),
    ({"q": INT4.replace(granularity=PerGroup(5))}, ValueError, "multiple of the group size 5"),
    ({"q": INT4.replace(rounding="stochastic")}, ValueError, "`rounding` must not draw or learn here"),
    ({"q": INT4.replace(rounding="learned")}, ValueError, "`rounding` must not draw or learn here"),
    ({"q": "int4"}, TypeError, "`q` must be a Quantizer"),
    ({"w": W[0]}, ValueError, "`w` must be a matrix (out, in)"),
    ({"w": W.astype(int)}, TypeError, "`w` must have dtype"),
    ({"w": np.full_like(W, np.inf)}, ValueError, "`x` must"),
    (
        {"q": QUANTIZERS["per group"], "act_order": True, "group_scales": "block"},
        ValueError,
        "`group_scales` must be 'original' or None where `act_order` reorders columns, got 'block'",
    ),
    ({"q": QUANTIZERS["nvfp4"], "group_scales": "updated"}, ValueError, "where scales have two levels"),
]


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED)
def test_bad_input_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        gptq(**{"q": INT4, "w": W, "hessian": H, **changes})


@pytest.mark.parametrize(
    ("x", "n", "error", "words"),
    [
        (X[:, :8], 0, ValueError, "`x` must have shape (rows, 16), as `hessian` has columns, got (400, 8)"),
        (X, -1, ValueError, "`n` must be at least 0, got -1"),
        (X.astype(int), 0, TypeError, "`x` must have dtype"),
    ],
)
def test_bad_inputs_of_statistics_are_refused(x: Array, n: int, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        hessian_update(H, n, x)
