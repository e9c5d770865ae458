"""Convolutions in one to three dimensions, in groups, dilated, transposed: the rooms beside exact integers."""

import itertools
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerAxis, QParams, catalog
from samebits.core.contraction import contracts_codes
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch

from ..exact import DTYPES

Array = NDArray[Any]


class Case(NamedTuple):
    """Shapes of a convolution, and the keywords of its verb."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    options: dict[str, Any]

    @property
    def transposed(self) -> bool:
        return "output_padding" in self.options

    @property
    def verb(self) -> str:
        return "conv_transpose" if self.transposed else "conv"


CASES = {
    "1d": Case((2, 3, 9), (4, 3, 3), {"stride": 2, "padding": 1}),
    "1d dilated in groups": Case((1, 4, 11), (6, 2, 3), {"dilation": 3, "groups": 2, "padding": ((2, 1),)}),
    "1d same": Case((2, 2, 7), (3, 2, 4), {"padding": [(1, 2)]}),
    "2d depthwise": Case((2, 3, 5, 6), (3, 1, 3, 2), {"groups": 3, "stride": (2, 1), "padding": (1, (0, 1))}),
    "2d dilated": Case((1, 2, 7, 8), (3, 2, 2, 3), {"dilation": (3, 2), "padding": (0, 2)}),
    "3d": Case((1, 2, 4, 5, 3), (2, 2, 2, 3, 1), {"stride": (1, 2, 1), "padding": (1, 0, 1)}),
    "3d in groups": Case((1, 4, 3, 3, 3), (4, 2, 2, 2, 2), {"groups": 2, "dilation": (1, 2, 1)}),
    "no batch": Case((0, 2, 5), (3, 2, 2), {"padding": 1}),
    "1d transposed": Case((2, 3, 5), (3, 4, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "1d transposed, strides apart": Case((1, 2, 4), (2, 2, 2), {"stride": 4, "output_padding": 3}),
    "2d transposed in groups": Case(
        (2, 4, 3, 4), (4, 3, 3, 2), {"stride": (2, 3), "padding": (1, 0), "groups": 2, "output_padding": (0, 2)}
    ),
    "2d transposed, dilated": Case((1, 2, 3, 3), (2, 2, 3, 3), {"dilation": (2, 1), "padding": 2, "output_padding": 0}),
    "3d transposed": Case((1, 2, 2, 3, 2), (2, 2, 2, 2, 3), {"stride": (1, 2, 2), "output_padding": (0, 1, 0)}),
    "no batch, transposed": Case((0, 2, 5), (2, 3, 2), {"output_padding": 0}),
}
# Compiled by XLA in the quick run; what is in none of these is thorough.
IN_JAX = {"1d", "2d depthwise", "2d transposed in groups", "3d transposed", "no batch, transposed"}
GRADIENTS = {"2d depthwise", "2d transposed in groups", "1d dilated in groups"}
PAIRS = [
    ("int8_per_tensor", "int8_per_channel"),
    ("uint8_affine_per_tensor", "uint8_affine_per_channel"),
    ("int16_per_tensor", "int16_per_tensor"),
]


def operands(case: Case, names: tuple[str, str], dtype: str = "float32", special: bool = False) -> tuple[Any, ...]:
    """Quantizers (of weights per output channel), arrays, parameters, and a bias."""
    rng, kind = np.random.default_rng(0), DTYPES[dtype]
    q_x, q_w = (catalog[name] for name in names)
    if case.transposed and q_w.granularity == PerAxis(0):
        q_w = q_w.replace(granularity=PerAxis(1))
    x, w = (rng.standard_normal(shape).astype(kind) for shape in (case.x, case.w))
    x_qparams = core.choose_qparams(q_x, x if x.size else np.ones_like(x, shape=(1, *case.x[1:])))
    w_qparams = core.choose_qparams(q_w, w)
    if special and x.size:
        for array in (x, w):
            array.reshape(-1)[rng.permutation(array.size)[:4]] = [np.nan, np.inf, -np.inf, -0.0]
    outputs = case.w[1] * case.options.get("groups", 1) if case.transposed else case.w[0]
    bias = rng.standard_normal(outputs).astype(np.asarray(x_qparams.scale).dtype)
    bias[:1] = -0.0
    return q_x, x, x_qparams, q_w, w, w_qparams, bias


def given(parts: tuple[Any, ...], convert: Any) -> tuple[Any, ...]:
    """The same for another room."""
    q_x, x, p, q_w, w, r, bias = parts
    p, r = (QParams(*(None if a is None else convert(np.array(a)) for a in q[:2])) for q in (p, r))
    return q_x, convert(x), p, q_w, convert(w), r, convert(bias)


def by_definition(case: Case, a: Array, b: Array) -> Array:
    """Sums of integers, output by output: which elements of input and kernel meet there."""
    n = len(case.x) - 2

    def sizes(name: str, usual: int) -> list[Any]:
        value = case.options.get(name, usual)
        return [value] * n if isinstance(value, int) else list(value)

    stride, dilation, groups = sizes("stride", 1), sizes("dilation", 1), case.options.get("groups", 1)
    before, after = zip(*((m, m) if isinstance(m, int) else m for m in sizes("padding", 0)), strict=True)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, case.w[2:], strict=True)]
    if case.transposed:
        extra, outputs = sizes("output_padding", 0), case.w[1] * groups
        rows = zip(case.x[2:], stride, before, after, spans, extra, strict=True)
        lengths = [(size - 1) * s - lo - hi + span + more for size, s, lo, hi, span, more in rows]
    else:
        outputs = case.w[0]
        rows = zip(case.x[2:], stride, before, after, spans, strict=True)
        lengths = [(size + lo + hi - span) // s + 1 for size, s, lo, hi, span in rows]
    total = np.zeros((case.x[0], outputs, *lengths), object)
    inputs, each = case.x[1] // groups, outputs // groups
    for image, o, *place in np.ndindex(total.shape):
        for c, *k in itertools.product(range(inputs), *map(range, case.w[2:])):
            channel = o // each * inputs + c
            if case.transposed:
                moved = [i + lo - d * j for i, lo, d, j in zip(place, before, dilation, k, strict=True)]
                if any(m % s for m, s in zip(moved, stride, strict=True)):
                    continue
                at = [m // s for m, s in zip(moved, stride, strict=True)]
                weight = b[(channel, o % each, *k)]
            else:
                steps = zip(place, stride, before, dilation, k, strict=True)
                at = [i * s - lo + d * j for i, s, lo, d, j in steps]
                weight = b[(o, c, *k)]
            if all(0 <= i < size for i, size in zip(at, case.x[2:], strict=True)):
                total[(image, o, *place)] += a[(image, channel, *at)] * weight
    return total


@pytest.mark.parametrize("name", CASES)
def test_core_sums_integers(name: str) -> None:
    """Scales of 1 make outputs of the sums, which so small float32 holds."""
    case = CASES[name]
    rng = np.random.default_rng(1)
    a, b = rng.integers(-8, 8, case.x), rng.integers(-7, 8, case.w)
    one, q = QParams(np.float32(1)), catalog["int8_per_tensor"]
    got = getattr(core, case.verb)(q, a.astype(np.float32), one, q, b.astype(np.float32), one, None, **case.options)
    want = by_definition(case, a, b)
    assert_same_bits(want.astype(np.float32), got)
    assert (want != 0).any() or not want.size


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
@pytest.mark.parametrize("name", CASES)
def test_torch_has_the_bits_of_core(name: str, names: tuple[str, str]) -> None:
    case = CASES[name]
    for dtype, special in (("float32", False), ("float32", True), ("bfloat16", False), ("float64", False)):
        parts = operands(case, names, dtype, special)
        assert contracts_codes(parts[0], parts[3], per_token=False, axis=int(case.transposed))
        with np.errstate(all="ignore"):
            want = getattr(core, case.verb)(*parts, **case.options)
        got = getattr(torch_frontend, case.verb)(*given(parts, to_torch), **case.options)
        assert_same_bits(want, got, call=f"{name}, {dtype}, {special}")


def cases(quick: set[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.thorough) for name in CASES]


@pytest.mark.parametrize("name", cases(IN_JAX))
def test_jax_has_the_bits_of_core(name: str) -> None:
    case = CASES[name]
    for names, special in ((PAIRS[1], True), (PAIRS[2], False)) if name == "2d depthwise" else ((PAIRS[1], True),):
        parts = operands(case, names, special=special)
        with np.errstate(all="ignore"):
            want = getattr(core, case.verb)(*parts, **case.options)
        q_x, x, p, q_w, w, r, bias = given(parts, to_jax)

        @jax.jit
        def layer(x: Any, p: Any, w: Any, r: Any, bias: Any, q_x: Any = q_x, q_w: Any = q_w) -> Any:
            return getattr(jax_backend, case.verb)(q_x, x, p, q_w, w, r, bias, **case.options)

        assert_same_bits(want, layer(x, p, w, r, bias), call=f"{name}, {names}")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_long_contractions_are_exact(transposed: bool, groups: int) -> None:
    """Largest codes everywhere: sums pass 2**24 in each group, where float32 sums would round."""
    channels = 1200
    rng = np.random.default_rng(0)
    a = np.where(rng.random((1, channels * groups, 3)) < 0.9, 127, -127)
    b = np.where(rng.random((channels * groups, 2, 2) if transposed else (2 * groups, channels, 2)) < 0.9, 127, -126)
    options = {"groups": groups} | ({"output_padding": 0} if transposed else {})
    case = Case(a.shape, b.shape, options)
    want = by_definition(case, a, b)
    assert abs(want).max() > 2**24
    assert (want % 2 != 0).any()
    one, q = np.float32(1), catalog["int8_per_tensor"]
    parts = (
        q,
        a.astype(np.float32),
        QParams(one),
        q,
        b.astype(np.float32),
        QParams(one),
        np.zeros(2 * groups, one.dtype),
    )
    for module, convert in ((core, np.asarray), (torch_frontend, to_torch), (jax_backend, to_jax)):
        got = getattr(module, case.verb)(*given(parts, convert), **options)
        assert_same_bits(want.astype(np.float32), got, call=module.__name__)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases(GRADIENTS))
def test_gradients_are_those_of_dequantized_operands(name: str) -> None:
    """Of x, w, scales, zero points and bias, in both backends, against torch's own convolutions of values."""
    case = CASES[name]
    parts = operands(case, PAIRS[1])
    q_x, q_w = (q.replace(gradient="learned_scale") for q in (parts[0], parts[3]))
    leaves = [np.asarray(a) for a in (parts[1], *parts[2][:2], parts[4], *parts[5][:2], parts[6])]
    leaves = [a.astype(np.float32) * np.float32(0.8 if i in (1, 4) else 1) for i, a in enumerate(leaves)]

    def in_room(room: Any, tensors: Any) -> Any:
        x, s, z, w, t, v, bias = tensors
        return getattr(room, case.verb)(q_x, x, QParams(s, z), q_w, w, QParams(t, v), bias, **case.options)

    tensors = [torch.tensor(a, requires_grad=True) for a in leaves]
    x, s, z, w, t, v, bias = tensors
    hats = torch_frontend.fake_quantize(q_x, x, QParams(s, z)), torch_frontend.fake_quantize(q_w, w, QParams(t, v))
    want, got = in_torch(case, *hats, bias), in_room(torch_frontend, tensors)
    torch.testing.assert_close(got, want)
    g = np.random.default_rng(3).standard_normal(want.shape).astype(np.float32)
    expected = torch.autograd.grad(want, tensors, to_torch(g))
    ours = torch.autograd.grad(got, tensors, to_torch(g))
    _, pull = jax.vjp(lambda *a: in_room(jax_backend, a), *map(to_jax, leaves))
    for d, in_jax, e in zip(ours, jax.jit(pull)(to_jax(g)), expected, strict=True):
        scale = float(e.abs().max()) if e.numel() else 1.0
        torch.testing.assert_close(d, e, rtol=1e-4, atol=1e-5 * scale)
        np.testing.assert_allclose(to_numpy(in_jax), e.numpy(), rtol=1e-4, atol=2e-5 * scale)


def in_torch(case: Case, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """torch's own convolution."""
    n, options = len(case.x) - 2, dict(case.options)
    if case.transposed:
        native: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n - 1]
    else:
        native = (F.conv1d, F.conv2d, F.conv3d)[n - 1]
        sides = options.pop("padding", 0)
        pairs = [(m, m) if isinstance(m, int) else m for m in ([sides] * n if isinstance(sides, int) else sides)]
        x = F.pad(x, [side for pair in reversed(pairs) for side in pair])
    y: torch.Tensor = native(x, w, bias, **options)
    return y


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any], type[Exception], str]] = {
    "stride 0": ("conv", (1, 2, 5), (3, 2, 2), {"stride": 0}, ValueError, "`stride` must be at least 1, got 0"),
    "strides": ("conv", (1, 2, 5), (3, 2, 2), {"stride": (1, 1)}, ValueError, "`stride` must be an int, or one for"),
    "half a step": ("conv", (1, 2, 5), (3, 2, 2), {"dilation": (0.5,)}, TypeError, "`dilation` must be an int"),
    "padding": ("conv", (1, 2, 5), (3, 2, 2), {"padding": -1}, ValueError, "`padding` must be at least 0, got -1"),
    "sides": ("conv", (1, 2, 5), (3, 2, 2), {"padding": ((1, 2, 3),)}, ValueError, "`padding` of an axis must be an"),
    "groups": ("conv", (1, 2, 5), (3, 1, 2), {"groups": 2}, ValueError, "`groups` must divide the channels of `w`"),
    "channels": ("conv", (1, 2, 5), (4, 2, 2), {"groups": 2}, ValueError, "`x` must fit `w` of shape (4, 2, 2) in 2"),
    "too short": ("conv", (1, 2, 5), (3, 2, 3), {"dilation": 3}, ValueError, "`x` must reach as far as `w`"),
    "four dimensions": ("conv", (1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1), {}, ValueError, "`w` must have 3 to 5 axes"),
    "rows of w": ("conv_transpose", (1, 2, 5), (3, 2, 2), {}, ValueError, "`x` must fit `w` of shape (3, 2, 2), got"),
    "extra": ("conv_transpose", (1, 2, 5), (2, 2, 2), {"output_padding": 1}, ValueError, "`output_padding` must be"),
    "nothing left": ("conv_transpose", (1, 2, 2), (2, 2, 1), {"padding": 1}, ValueError, "`x` must reach as far as"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_room_refuses_with_the_same_words(name: str) -> None:
    verb, x, w, options, error, words = REFUSED[name]
    q, refusals = catalog["int8_per_tensor"], []
    for module, convert in ((core, np.asarray), (torch_frontend, to_torch), (jax_backend, to_jax)):
        one = QParams(convert(np.array(1, np.float32)))
        arrays = (convert(np.ones(shape, np.float32)) for shape in (x, w))
        with pytest.raises(error) as refusal:
            getattr(module, verb)(q, next(arrays), one, q, next(arrays), one, None, **options)
        refusals.append(str(refusal.value))
    assert refusals[0].startswith(words)
    assert len(set(refusals)) == 1, refusals


def test_cases_are_small_and_meet_both_kinds() -> None:
    assert {case.transposed for case in CASES.values()} == {False, True}
    assert all(prod(case.x) * prod(case.w) < 10_000 for case in CASES.values())
