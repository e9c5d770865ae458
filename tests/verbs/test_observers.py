"""Observers in torch and JAX beside the specification: states after every tensor, and the parameters, bit for bit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import catalog, observers
from samebits.core.observing import Observer, ObserverState, QConfig, default_histogram_qconfig
from samebits.jax_backend.ptq import observers as jax_observers
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_torch
from samebits.torch_frontend.ptq import observer_modules as modules
from samebits.torch_frontend.ptq import observers as torch_observers

Array = NDArray[Any]


class Room(NamedTuple):
    """One of the rooms."""

    verbs: Any
    array: Callable[[Array], Any]


ROOMS = [Room(observers, np.asarray), Room(torch_observers, to_torch), Room(jax_observers, to_jax)]
RULES = {"floor": 2.0**-23, "denominator": "half_range"}
OBSERVERS = [
    Observer("min_max", "int8_per_tensor"),
    Observer("min_max", catalog["uint8_affine_per_tensor"].replace(**RULES)),
    Observer("moving_average", catalog["int8_per_channel"].replace(**RULES), averaging_constant=0.3),
    Observer("moving_average", "uint8_affine_per_channel"),
    Observer("min_max", catalog["uint8_affine_per_tensor"].replace(statistic="percentile", percentile=90.0)),
    Observer("moving_average", catalog["int4_per_channel"].replace(statistic="percentile", percentile=90.0)),
    Observer("min_max", catalog["uint8_affine_per_tensor"].replace(statistic="mse", search_steps=5)),
    Observer("min_max", catalog["int4_per_channel"].replace(statistic="mse", search_steps=5)),
    Observer("min_max", catalog["float8_e4m3fn_per_tensor"]),
    Observer("min_max", catalog["uint8_affine_per_tensor"].replace(**RULES), symmetric_at=128),
    Observer("histogram", default_histogram_qconfig.activation.quantizer, bins=64, levels=16),
    Observer(
        "fixed",
        catalog["uint8_affine_per_tensor"].replace(source="constant", scale_value=2 / 256, zero_point_value=128),
    ),
]


def tensors() -> list[Array]:
    """Of one shape, with both zeros, subnormals, and numbers far apart; the last in 16 bits."""
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((4, 12)).astype(np.float32) * np.float32(10.0**k) for k in (0, -1, 1)]
    x[0][0, :3] = 0.0, -0.0, 1e-41
    x[2][1] = np.float32(-1e-40)
    return [x[0], x[1], np.zeros((4, 12), np.float32), x[2], x[1].astype(np.float16)]


@pytest.mark.parametrize(
    "observer", OBSERVERS, ids=lambda o: f"{o.kind}-{o.quantizer.format}-{o.quantizer.scale.statistic}"
)
def test_rooms_agree(observer: Observer) -> None:
    states = [room.verbs.init(observer) for room in ROOMS]
    for k, x in enumerate(tensors()):
        states = [r.verbs.observe(observer, s, r.array(x)) for r, s in zip(ROOMS, states, strict=True)]
        for state in states[1:]:
            for name, value in states[0]._asdict().items():
                if value is None:
                    assert getattr(state, name) is None
                else:
                    assert_same_bits(value, getattr(state, name), call=f"tensor {k}, {name}")
        chosen = [r.verbs.observed_qparams(observer, s) for r, s in zip(ROOMS, states, strict=True)]
        for one in chosen[1:]:
            assert_same_bits(chosen[0].scale, one.scale, call=f"tensor {k}")
            if chosen[0].zero_point is None:
                assert one.zero_point is None
            else:
                assert_same_bits(chosen[0].zero_point, one.zero_point, call=f"tensor {k}")


@pytest.mark.parametrize("room", ROOMS, ids=["core", "torch", "jax"])
def test_refusals(room: Room) -> None:
    observer = OBSERVERS[3]
    state = room.verbs.init(observer)
    assert not room.verbs.is_fed(observer, state)
    with pytest.raises(RuntimeError, match="calibration never run: this observer has seen no tensor"):
        room.verbs.observed_qparams(observer, state)
    assert room.verbs.observe(observer, state, room.array(np.zeros((4, 0), np.float32))) is state
    with pytest.raises(ValueError, match="`x` must be finite to be observed"):
        room.verbs.observe(observer, state, room.array(np.float32([[np.nan, 1.0]])))
    with pytest.raises(ValueError, match="`x` must be finite to be observed"):  # as float32
        room.verbs.observe(observer, state, room.array(np.float16([[np.inf, 1.0]])))
    with pytest.raises(TypeError, match="`x` must have dtype"):
        room.verbs.observe(observer, state, room.array(np.ones((4, 3), np.int32)))
    state = room.verbs.observe(observer, state, room.array(np.ones((4, 3), np.float32)))
    assert room.verbs.is_fed(observer, state)
    with pytest.raises(ValueError, match=r"`x` must have scales of shape \(4, 1\), as before, got \(3, 1\)"):
        room.verbs.observe(observer, state, room.array(np.ones((3, 3), np.float32)))
    placeholder = Observer("placeholder", "int8_per_tensor")
    with pytest.raises(RuntimeError, match="a 'placeholder' observer has no parameters"):
        room.verbs.observed_qparams(placeholder, room.verbs.init(placeholder))


def test_traced_states() -> None:
    """Ranges are observed in compiled code, and NaN goes into the state; histograms are refused there."""
    for observer in OBSERVERS[:4]:
        eager = jax_observers.init(observer)
        traced = jax_observers.observe(observer, eager, to_jax(tensors()[0]))
        eager = traced
        for x in map(to_jax, tensors()[1:4]):
            eager = jax_observers.observe(observer, eager, x)
            traced = jax.jit(jax_observers.observe, static_argnums=0)(observer, traced, x)
        assert_same_bits(eager.low, traced.low)
        assert_same_bits(eager.high, traced.high)
    spoiled = jax.jit(jax_observers.observe, static_argnums=0)(
        OBSERVERS[0], ObserverState(*map(jnp.float32, (0, 1))), jnp.float32([jnp.nan])
    )
    assert jnp.isnan(spoiled.low)
    histogram = OBSERVERS[-2]
    with pytest.raises(TypeError, match="a 'histogram' observer needs values that are at hand"):
        jax.jit(jax_observers.observe, static_argnums=0)(histogram, jax_observers.init(histogram), jnp.ones(3))


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "`kind` must be one of 'min_max'", ("max", "int8_per_tensor")),
        (KeyError, "int8_per_tensr", ("min_max", "int8_per_tensr")),
        (TypeError, "`quantizer` must be a catalog name", ("min_max", 8)),
        (ValueError, "must be PerTensor or PerAxis", ("min_max", "int4_per_group32")),
        (ValueError, "must be PerTensor, got per axis 0", ("histogram", "int8_per_channel")),
        (ValueError, "must be of integers", ("histogram", "float8_e4m3fn_per_tensor")),
        (ValueError, "must have a `scale_value`", ("fixed", "int8_per_tensor")),
        (ValueError, r"must be in \(0, 1\]", ("moving_average", "int8_per_tensor", 0)),
        (ValueError, "`bins` must be at least 2", ("histogram", "int8_per_tensor", 0.01, 1)),
        (ValueError, "`symmetric_at` must be a code", ("min_max", "int8_per_tensor", 0.01, 9, None, 0)),
        (ValueError, "`statistic` under a 'min_max'", ("min_max", catalog["int8_per_tensor"].replace(statistic="l2"))),
    ],
)
def test_descriptions_are_checked(error: type[Exception], match: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=match):
        Observer(*arguments)


def test_arguments_of_modules() -> None:
    for match, arguments in (
        ("`dtype` must be one of", {"dtype": torch.float16}),
        ("`qscheme` of this observer must be per_tensor", {"qscheme": torch.per_channel_affine}),
        ("must both be given", {"quant_min": 0}),
    ):
        with pytest.raises(ValueError, match=match):
            modules.MinMaxObserver(**arguments)
    with pytest.raises(TypeError):
        modules.MinMaxObserver(widht=3)
    made = QConfig(modules.HistogramObserver.with_args(bins=16), modules.MSEObserver(dtype=torch.qint8))
    assert made.activation.bins == 16
    assert made.weight.quantizer.scale.statistic == "mse"
    with pytest.raises(TypeError, match="`weight` must be an Observer, what makes one, or None"):
        QConfig(None, "int8_per_tensor")


def test_modules_keep_their_state() -> None:
    """In a state_dict, in 16 bits and on copies."""
    watching, other = (modules.PerChannelMinMaxObserver() for _ in range(2))
    watching(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    other.load_state_dict(watching.half().state_dict())
    for own, theirs in zip(watching.calculate_qparams(), other.calculate_qparams(), strict=True):
        assert_same_bits(own, theirs)
    assert other.low.dtype == torch.float32
