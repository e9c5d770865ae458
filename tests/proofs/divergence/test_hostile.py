"""Programs for a GPU keep their bits on a device that takes every liberty, and textbook code is seen to lose them.

No GPU is needed: programs of torch are traced for a device that is not there, those of JAX as they are for one; both
are then evaluated on the CPU, `samebits.proofs.divergence.hostile`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core, jax_backend, torch_frontend
from samebits.core import QParams, Quantizer, catalog
from samebits.jax_backend import kernels, platforms
from samebits.proofs.divergence.graph import Graph
from samebits.proofs.divergence.graph_jax import trace_jax
from samebits.proofs.divergence.graph_torch import trace_torch
from samebits.proofs.divergence.hostile import LIBERTIES, on_hostile_device, unexamined
from samebits.proofs.inputs.compare import assert_same_bits, differences
from samebits.proofs.inputs.knife_edges import knife_edge_array

Array = NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ENTRIES = (
    ("int8_per_tensor", np.float32),
    ("int8_per_tensor", BFLOAT16),
    ("int8_per_channel", np.float16),
    ("uint8_affine_per_tensor", np.float32),
    ("uint4_affine_float_zero_per_group64", np.float32),
    ("float8_e4m3fn_per_tensor", np.float32),
    ("mxfp4_e2m1", BFLOAT16),
    ("ternary_per_tensor", np.float32),
    ("nf4_per_group64", np.float32),
)
OF_XLA = tuple(one for one in LIBERTIES if one != "ties")  # rounding to the nearest integer is taken as it is
OF_TRITON = tuple(one for one in OF_XLA if one != "subnormals")  # which it keeps


def each(*quick: int) -> pytest.MarkDecorator:
    """Every entry; those with other numbers than these are `thorough`."""
    thorough = [pytest.param(*entry, marks=pytest.mark.thorough) for entry in ENTRIES]
    return pytest.mark.parametrize(
        ("name", "dtype"), [entry if i in quick else thorough[i] for i, entry in enumerate(ENTRIES)]
    )


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code of JAX takes the way that it has where a GPU is the default."""
    monkeypatch.setattr(platforms, "rounds_once", lambda: False)
    jax.clear_caches()
    yield
    jax.clear_caches()


def traced(function: Callable[..., Any], *arguments: Array) -> Graph:
    return trace_torch(function, *arguments, device="cuda")


def inputs(name: str, dtype: Any) -> tuple[Quantizer, Array, QParams, Array]:
    """Knife edges of an odd scale, an addend, and the parameters."""
    q = catalog[name]
    power = q.scale.restriction is not core.Restriction.FLOAT
    s = np.float32(0.5 if power else 0.7)
    zero = None
    if q.affine:
        zero = np.float32(0.3) if q.arithmetic.has_float_zeros else np.int32(7)
    shape = () if name.endswith("per_tensor") else (1,)
    given = QParams(np.full(shape, s), None if zero is None else np.full(shape, zero))
    x, p = knife_edge_array(q, given, dtype)
    return q, x, QParams(*p[:2]), np.random.default_rng(0).standard_normal(x.shape).astype(dtype)


def programs_of(room: Any, q: Quantizer) -> Any:
    """Values with a sum behind them, and codes; of parameters that may be None."""

    def program(x: Any, s: Any, b: Any, *zero: Any) -> tuple[Any, ...]:
        p = QParams(s, *(zero or (None,)))
        return room.fake_quantize(q, x, p) + b, room.quantize(q, x, p)

    return program


def arguments_of(x: Array, p: QParams, b: Array) -> list[Array]:
    return [x, np.asarray(p.scale), b, *([] if p.zero_point is None else [np.asarray(p.zero_point)])]


def expected(q: Quantizer, x: Array, p: QParams, b: Array) -> tuple[Array, Array]:
    number = x if q.format.has_nan else np.where(np.isnan(x), np.zeros_like(x), x)
    with np.errstate(all="ignore"):
        return core.fake_quantize(q, x, p) + b, core.quantize(q, number, p)


@each(0, 1, 5)
def test_programs_of_torch_keep_their_bits(name: str, dtype: Any) -> None:
    q, x, p, b = inputs(name, dtype)
    graph = traced(programs_of(torch_frontend, q), *arguments_of(x, p, b))
    values, codes = on_hostile_device(graph, arguments_of(x, p, b), OF_TRITON)
    want, numbers = expected(q, x, p, b)
    assert_same_bits(want, values.astype(dtype), call=name, inputs=x)
    assert_same_bits(numbers, codes, call=name, inputs=x)
    assert not any("float8" in operation.text for operation in graph.operations), "codes are made of bits"
    assert unexamined(graph) == []


def test_what_nothing_is_known_of_is_seen() -> None:
    graph = traced(lambda x: torch.special.i0(x) + x.floor(), np.ones(3, np.float32))
    assert [text.split(":")[0] for text in unexamined(graph)] == ["i0"]
    with pytest.raises(ValueError, match=r"`liberties` must be among division, .*; got rounding"):
        on_hostile_device(graph, [np.ones(3, np.float32)], ["rounding"])


# Where quotients of the data itself lie halfway: zero points, and scales in a float format.
CHOSEN = ("uint8_affine_per_channel", "nvfp4", "uint4_affine_float_zero_per_group64", "ternary_absmean_per_tensor")


def ranges_that_decide(name: str) -> Array:
    """Blocks whose smallest and largest number make a zero point, or the number of a scale, that lies halfway."""
    x = np.random.default_rng(0).standard_normal((8, 128)) * 0.01
    if name == "nvfp4":
        x[:, ::16] = 6 * 1.0625 * 2.0 ** np.arange(-4, 4)[:, None]
        x[0, 0] = 6 * 448
    else:
        x[:, 0], x[:, 64] = -(np.arange(8) * 30 + 0.5), 254.5 - np.arange(8) * 30
    return x.astype(np.float32)


@pytest.mark.parametrize("name", [CHOSEN[0], *(pytest.param(n, marks=pytest.mark.thorough) for n in CHOSEN[1:])])
@pytest.mark.parametrize("room", [torch_frontend, pytest.param(jax_backend, marks=pytest.mark.thorough)])
def test_parameters_keep_their_bits(on_a_gpu: None, name: str, room: Any) -> None:
    q, x = catalog[name], ranges_that_decide(name)
    in_torch = room is torch_frontend

    def chosen(x: Any) -> list[Any]:
        return [p for p in room.choose_qparams(q, x)[:2] if p is not None]

    graph = traced(chosen, x) if in_torch else trace_jax(chosen, x, branches=True)
    assert unexamined(graph) == []
    found = on_hostile_device(graph, [x], OF_TRITON if in_torch else OF_XLA)
    for want, got in zip((p for p in core.choose_qparams(q, x)[:2] if p is not None), found, strict=True):
        assert_same_bits(np.asarray(want), got, call=name)


@pytest.mark.parametrize(
    ("name", "liberty", "module", "attribute", "instead"),
    [
        (CHOSEN[0], "division", torch_frontend.devices, "quotient", lambda x, s: x / s),
        (CHOSEN[3], "sums", torch_frontend.ranges, "ordered_sum", lambda terms: terms.sum(-1)),
    ],
)
def test_without_its_counter_measure_a_parameter_is_seen_to_part(
    name: str, liberty: str, module: Any, attribute: str, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, x = catalog[name], ranges_that_decide(name)
    monkeypatch.setattr(module, attribute, instead)
    graph = traced(lambda x: [p for p in torch_frontend.choose_qparams(q, x)[:2] if p is not None], x)
    found = on_hostile_device(graph, [x], [liberty])
    wanted = [np.asarray(p) for p in core.choose_qparams(q, x)[:2] if p is not None]
    assert sum(differences(*pair).differing for pair in zip(wanted, found, strict=True))


@each(0)
def test_gradients_of_x_in_torch_keep_their_bits(name: str, dtype: Any) -> None:
    """Which are masks; by the function that backward calls."""
    q, x, p, g = inputs(name, dtype)

    def gradient(x: Any, s: Any, g: Any, *zero: Any) -> Any:
        return torch_frontend.routes.gradients(q, x, s, zero[0] if zero else None, g, (True, False, False)).x

    graph = traced(gradient, *arguments_of(x, p, g))
    assert unexamined(graph) == []
    found = on_hostile_device(graph, arguments_of(x, p, g), OF_TRITON)[0]
    assert_same_bits(core.fake_quantize_vjp(q, x, p, g).x, found.astype(dtype), call=name, inputs=x)


@each()
def test_gradients_of_x_in_jax_keep_their_bits(on_a_gpu: None, name: str, dtype: Any) -> None:
    q, x, p, g = inputs(name, dtype)

    def gradient(x: Any, s: Any, g: Any, *zero: Any) -> Any:
        return jax.vjp(lambda x: jax_backend.fake_quantize(q, x, QParams(s, *(zero or (None,)))), x)[1](g)[0]

    graph = trace_jax(gradient, *arguments_of(x, p, g), branches=True)
    assert unexamined(graph) == []
    found = on_hostile_device(graph, arguments_of(x, p, g), OF_XLA)[0]
    assert_same_bits(core.fake_quantize_vjp(q, x, p, g).x, found.astype(dtype), call=name, inputs=x)


SOFT = core.LearnedRounding(soft=True)
FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "exp2": (core.elementary.exp2, torch_frontend.elementary.exp2, torch.exp2),
    "log2": (core.elementary.log2, torch_frontend.elementary.log2, torch.log2),
    "power": (
        lambda x: core.elementary.power(x, 0.3),
        lambda x: torch_frontend.elementary.power(x, 0.3),
        lambda x: x**0.3,
    ),
    "learned rounding": (
        lambda x: core.learned_rounding.rounding_offset(SOFT, x),
        lambda x: torch_frontend.learned_rounding.rounding_offset(SOFT, x),
        lambda x: (torch.sigmoid(x) * 1.2 - 0.1).clamp(0, 1),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_of_torch_keep_their_bits(name: str) -> None:
    """Made of sums and products that are kept apart, and of no function that the device has."""
    in_numpy, ours, textbook = FORMULAS[name]
    x = np.linspace(0.1, 30, 2000, dtype=np.float32) * np.float32(0.2 if name == "learned rounding" else 1)
    graph, loose = traced(ours, x), traced(textbook, x)
    assert unexamined(graph) == []
    assert_same_bits(in_numpy(x), on_hostile_device(graph, [x], OF_TRITON)[0], call=name, inputs=x)
    assert differences(in_numpy(x), on_hostile_device(loose, [x], OF_TRITON)[0]).differing > 100


def test_without_its_counter_measure_a_formula_is_seen_to_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_frontend.devices, "product", lambda a, b: a * b)
    x = np.linspace(0.1, 30, 2000, dtype=np.float32)
    for name, (in_numpy, ours, _) in FORMULAS.items():
        found = on_hostile_device(traced(ours, x), [x], ["contraction"])[0]
        assert differences(in_numpy(x), found).differing > 0, name


PLANTED: dict[str, tuple[str, Callable[..., Any]]] = {  # a liberty, and what is taken back of the counter-measures
    "division": ("quotient", lambda x, s: x / s),
    "contraction": ("product_of_codes", lambda codes, s: codes * s),
}


@pytest.mark.parametrize("liberty", PLANTED)
def test_without_its_counter_measure_torch_is_seen_to_lose_bits(liberty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, x, p, b = inputs("int8_per_tensor", np.float32)
    monkeypatch.setattr(torch_frontend.devices, *PLANTED[liberty])
    graph = traced(programs_of(torch_frontend, q), *arguments_of(x, p, b))
    values = on_hostile_device(graph, arguments_of(x, p, b), [liberty])[0]
    assert differences(expected(q, x, p, b)[0], values).differing > 10


def textbook(x: torch.Tensor, s: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """With a cast before the clamp for the codes, as is seen; a contraction, and a convolution, of codes as floats.

    And what quantizers meet besides: a sigmoid, a sum, the larger of two zeros, values that are subnormal.
    """
    values = torch.clamp(torch.round(x / s), -128, 127) * s
    codes = torch.round(x / s).to(torch.int8).clamp(-128, 127)
    wide = (torch.clamp(torch.round(x / s), -512, 511) * 3).reshape(1, -1)
    return (
        values + b,
        values.to(torch.bfloat16) + b,
        codes,
        wide @ wide.t(),
        torch.conv1d(wide.reshape(1, 1, -1), wide.narrow(1, 0, 3).reshape(1, 1, 3)),
        torch.sigmoid(b),
        b.abs().sum(),
        torch.maximum(b * 0, b * -0.0),
        values * 2.0**-140,
    )


@pytest.mark.parametrize("liberty", LIBERTIES)
def test_textbook_code_is_seen_to_lose_its_bits(liberty: str) -> None:
    _, x, p, b = inputs("int8_per_tensor", np.float32)
    given = [np.where(np.isfinite(x), x, np.float32(300)), np.asarray(p.scale), b]
    graph = traced(textbook, *given)
    as_written, found = (on_hostile_device(graph, given, taken) for taken in ((), [liberty]))
    assert sum(differences(*pair).differing for pair in zip(as_written, found, strict=True))


def test_contractions_of_codes_keep_their_bits() -> None:
    """Up to 8 bits in float32, of which tensor cores may drop what is not there; convolutions in float64."""
    rng, p = np.random.default_rng(0), QParams(np.float32(0.01))
    q_x, q_w = catalog["int8_per_tensor"], catalog["int8_per_tensor"].replace(bits=10)
    x, w, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 96), (7, 96), (4, 2, 3)))
    signal = x.reshape(5, 2, 48)
    for q in (q_x, q_w):

        def layers(x: Any, w: Any, signal: Any, kernel: Any, s: Any) -> tuple[Any, Any]:
            one = QParams(s)
            flat = torch_frontend.linear(q_x, x, one, q, w, one)  # noqa: B023  # called in this round of the loop
            return flat, torch_frontend.conv(q_x, signal, one, q, kernel, one, padding=1)  # noqa: B023

        given = [x, w, signal, kernel, np.asarray(p.scale)]
        found = on_hostile_device(traced(layers, *given), given, OF_TRITON)
        assert_same_bits(core.linear(q_x, x, p, q, w, p), found[0])
        assert_same_bits(core.conv(q_x, signal, p, q, kernel, p, padding=1), found[1])


@pytest.mark.parametrize(
    ("liberty", "attribute", "instead"),
    [
        ("tensor cores", "largest_code", lambda q: 1),
        ("transforms", "contraction", lambda q, a, r, b, f, *_, **__: f(a, b)),
    ],
)
def test_without_its_counter_measure_a_contraction_is_seen_to_part(
    liberty: str, attribute: str, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of 10 bits in float32; convolutions in float32."""
    q, p, rng = catalog["int8_per_tensor"].replace(bits=10), QParams(np.float32(0.01)), np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 96), (7, 96)))
    signal, kernel = x.reshape(5, 2, 48), rng.standard_normal((4, 2, 3)).astype(np.float32)
    monkeypatch.setattr(torch_frontend.exact, attribute, instead)

    def layers(x: Any, w: Any, signal: Any, kernel: Any, s: Any) -> tuple[Any, Any]:
        one = QParams(s)
        return torch_frontend.linear(q, x, one, q, w, one), torch_frontend.conv(q, signal, one, q, kernel, one)

    given = [x, w, signal, kernel, np.asarray(p.scale)]
    found = on_hostile_device(traced(layers, *given), given, [liberty])
    want = core.linear(q, x, p, q, w, p), core.conv(q, signal, p, q, kernel, p)
    assert differences(want[liberty == "transforms"], found[liberty == "transforms"]).differing > 10


@each(0)
@pytest.mark.parametrize("subnormals", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_programs_of_jax_keep_their_bits(on_a_gpu: None, name: str, dtype: Any, subnormals: bool) -> None:
    """The kernels themselves: what chooses between them, when a program runs, is a branch."""
    q, x, p, b = inputs(name, dtype)
    keep = subnormals | (np.abs(x) > 1e-30) | (x == 0)
    x = np.where(keep, x, np.zeros_like(x))

    def program(x: Any, s: Any, b: Any, *zero: Any) -> Any:
        z = zero[0] if zero else None
        codes = kernels.codes(q, x, s, z, subnormals=subnormals)
        return kernels.values(q, codes, s, z, x.dtype, subnormals=subnormals) + b

    given = arguments_of(x, p, b)
    values = on_hostile_device(trace_jax(program, *given), given, OF_XLA)[0]
    assert_same_bits(expected(q, x, p, b)[0], values.astype(dtype), call=name, inputs=x)


@each()
def test_functions_of_jax_keep_their_bits(on_a_gpu: None, name: str, dtype: Any) -> None:
    """With the branch that its scales choose, and all numbers, subnormal ones included."""
    q, x, p, b = inputs(name, dtype)
    given = arguments_of(x, p, b)
    graph = trace_jax(programs_of(jax_backend, q), *given, branches=True)
    assert unexamined(graph) == []
    values, codes = on_hostile_device(graph, given, OF_XLA)
    want, numbers = expected(q, x, p, b)
    assert_same_bits(want, values.astype(dtype), call=name, inputs=x)
    assert_same_bits(numbers, codes, call=name, inputs=x)


def test_convolutions_of_jax_keep_their_bits(on_a_gpu: None) -> None:
    q, p, rng = catalog["int8_per_tensor"], QParams(np.float32(0.01)), np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 20), (4, 3, 3)))
    kernel = jax_backend.layers.Geometry(1, (1,), ((1, 1),), (1,))
    codes = [core.quantize(q, a, p).astype(np.float32) for a in (x, w)]
    given = [codes[0].transpose(0, 2, 1), codes[1].transpose(2, 1, 0)]

    def program(a: Any, b: Any) -> Any:
        return jax_backend.layers._contract_integers(kernel, a, b)

    graph = trace_jax(program, *given)
    with jax.enable_x64(True):
        found = on_hostile_device(graph, given, OF_XLA)[0]
    wide = core.conv(q, codes[0], QParams(np.float32(1)), q, codes[1], QParams(np.float32(1)), padding=1)
    assert_same_bits(wide.transpose(0, 2, 1), found)


def test_without_its_counter_measure_jax_is_seen_to_lose_bits(on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    q, x, p, b = inputs("int8_per_tensor", np.float32)
    monkeypatch.setattr(platforms, "rounds_once", lambda: True)

    def program(x: Any, s: Any, b: Any) -> Any:
        return kernels.codes(q, x, s, None, subnormals=False) * s + b

    given = arguments_of(x, p, b)
    graph, want = trace_jax(program, *given), expected(q, x, p, b)[0]
    for liberty in ("division", "contraction"):
        assert differences(want + 0, on_hostile_device(graph, given, [liberty])[0]).differing > 10


def test_narrowing_of_jax_is_in_the_bits(on_a_gpu: None) -> None:
    x = np.linspace(-3, 3, 999, dtype=np.float32)
    for dtype in (jnp.bfloat16, jnp.float16):
        graph = trace_jax(lambda v, dtype=dtype: jax_backend.arrays.narrow(v, dtype).astype(np.float32) + 1, x)
        want = x.astype(dtype).astype(np.float32) + 1
        assert_same_bits(want, on_hostile_device(graph, [x])[0])
        loose = trace_jax(lambda v, dtype=dtype: v.astype(dtype).astype(np.float32) + 1, x)
        assert differences(want, on_hostile_device(loose, [x])[0]).differing > 100
