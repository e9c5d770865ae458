"""How many tensors training has seen: until when a state collects, waits and counts; after a load, after an error.

Both backends are asked the same; what is expected is counted here, by hand.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits import core
from samebits.core import Quantizer, catalog
from samebits.jax_backend import interop
from samebits.jax_backend.tensor_quantizer import TensorQuantizer as JaxTensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

Array = NDArray[Any]
State = dict[str, Array]
SYMMETRIC = catalog["int8_per_tensor"]
X = [np.array([-s, s / 3, s], np.float32) for s in (1.0, 3.0, 0.5, 2.0, 7.0, 0.1, 4.0, 0.25)]
KINDS = {"torch": (TensorQuantizer, to_torch), "jax": (JaxTensorQuantizer, to_jax)}
each_room = pytest.mark.parametrize("room", KINDS)


def steps_and_delay(steps: int, delay: int) -> Quantizer:
    """A statistic of the largest of all scales seen, which is learned after so many; a new one is seen at once."""
    return SYMMETRIC.replace(source="statistic_then_learned", steps=steps, delay=delay, window=8)


RULES = {
    "steps": steps_and_delay(3, 0),
    "delay": SYMMETRIC.replace(source="learned", delay=2),
    "delay of a running statistic": SYMMETRIC.replace(source="running_statistic", delay=2),
    "more steps": steps_and_delay(5, 2),
    "more delay": steps_and_delay(2, 5),
    "as many": steps_and_delay(3, 3),
}


def made(room: str, q: Quantizer) -> tuple[Any, Callable[[Array], Array]]:
    """A quantizer that trains, and what calls it with an array."""
    kind, convert = KINDS[room]
    quantizer = kind(q)

    def call(x: Array) -> Array:
        y = quantizer(convert(x))
        return np.asarray(to_numpy(y.detach() if isinstance(y, torch.Tensor) else y))

    return quantizer, call


def state_of(quantizer: Any) -> State:
    if isinstance(quantizer, TensorQuantizer):
        return {name: value.detach().numpy().copy() for name, value in quantizer.state_dict().items()}
    return {name: value.copy() for name, value in interop.state_dict(quantizer).items()}


def load(quantizer: Any, state: State) -> None:
    if isinstance(quantizer, TensorQuantizer):
        quantizer.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    else:
        interop.load_state_dict(quantizer, state)


def assert_same_states(want: State, got: State) -> None:
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert_same_bits(value, got[name], call=name)


# --- counting ---------------------------------------------------------------------------------------------------------


@each_room
@pytest.mark.parametrize("rule", RULES)
def test_tensors_are_counted_as_long_as_anything_depends_on_it(rule: str, room: str) -> None:
    """To the larger of steps and delay: tensors wait for so many, and the state moves for so many."""
    q = RULES[rule]
    steps = q.scale.steps if "steps" in rule or rule in ("more delay", "as many") else 0
    quantizer, call = made(room, q)
    for n, x in enumerate(X):
        assert (quantizer.waits() is not None) == (n < q.delay), n
        before = state_of(quantizer)
        y = call(x)
        after = state_of(quantizer)
        assert np.array_equal(x, y) == (n < q.delay), n
        assert int(after["seen"]) == min(n + 1, max(steps, q.delay)), n
        if n and steps:  # the largest of all scales, as long as it collects
            expected = max(before["scale"], core.choose_qparams(q, x).scale) if n < steps else before["scale"]
            assert_same_bits(np.asarray(expected), after["scale"], call=str(n))
    assert quantizer.waits() is None


@each_room
def test_a_mean_counts_on(room: str) -> None:
    """Beyond its delay: every tensor has the same weight in the end."""
    q = SYMMETRIC.replace(source="running_statistic", momentum=None, delay=2)
    quantizer, call = made(room, q)
    for n, x in enumerate(X):
        call(x)
        assert int(state_of(quantizer)["seen"]) == n + 1
    mean = np.mean([float(core.choose_qparams(q, x).scale) for x in X])
    assert float(state_of(quantizer)["scale"]) == pytest.approx(mean, rel=1e-6)


@each_room
def test_evaluation_counts_nothing(room: str) -> None:
    quantizer, call = made(room, RULES["more steps"])
    call(X[0])
    before = state_of(quantizer)
    quantizer.eval()
    for x in X:
        assert np.array_equal(call(x), x)  # still waits
    assert_same_states(before, state_of(quantizer))


# --- loading ----------------------------------------------------------------------------------------------------------


def trained(room: str, q: Quantizer, n: int) -> State:
    quantizer, call = made(room, q)
    for x in X[:n]:
        call(x)
    return state_of(quantizer)


@each_room
@pytest.mark.parametrize("rule", ["steps", "delay of a running statistic", "more steps", "more delay"])
def test_a_second_load_goes_on_from_where_it_says(rule: str, room: str) -> None:
    """Into a quantizer that was finished, one that had begun, and a fresh one: no memory of what was before."""
    q = RULES[rule]
    for stage in (0, 1, 2, 3, 5, 8):
        state = trained(room, q, stage)
        if stage == 0:
            state["scale"] = np.asarray(np.nan, np.float32)
        fresh, want = made(room, q)
        load(fresh, state)
        expected = [want(x) for x in X]
        for before in (8, 1):
            used, call = made(room, q)
            for x in X[:before]:
                call(x)
            used.eval()
            call(X[0])  # it looks once more at what it has
            used.train()
            load(used, state)
            for n, (x, y) in enumerate(zip(X, expected, strict=True)):
                assert_same_bits(y, call(x), call=f"tensor {n} after a state of {stage}, {before} before")
            assert_same_states(state_of(fresh), state_of(used))


@each_room
def test_a_loaded_state_that_is_not_set_is_not_used(room: str) -> None:
    q = SYMMETRIC.replace(source="learned")
    quantizer, call = made(room, q)
    call(X[0])
    load(quantizer, {"scale": np.asarray(np.nan, np.float32)})
    quantizer.eval()
    with pytest.raises(RuntimeError, match="the learned scale of this quantizer is not set"):
        call(X[1])
    quantizer.train()
    call(X[1])
    assert_same_bits(core.choose_qparams(q, X[1]).scale, state_of(quantizer)["scale"])


# --- interruptions ----------------------------------------------------------------------------------------------------

STATES = {
    **RULES,
    "mean": SYMMETRIC.replace(source="running_statistic", momentum=None),
    "affine": catalog["uint8_affine_per_tensor"].replace(source="running_statistic"),
    "stochastic": SYMMETRIC.replace(rounding="stochastic", source="running_statistic"),
}


@each_room
@pytest.mark.parametrize("rule", STATES)
def test_a_tensor_that_is_refused_changes_no_state(rule: str, room: str) -> None:
    """Integers are no tensor of training, NaN has no scale: an error, before anything is counted, averaged or drawn."""
    q = STATES[rule]
    quantizer, call = made(room, q)
    other, plain = made(room, q)
    load(other, state_of(quantizer))  # what is drawn is the same
    for n, x in enumerate(X[:4]):
        before = state_of(quantizer)
        with pytest.raises(TypeError, match="`x` must"):
            call(np.arange(3, dtype=np.int32))
        assert_same_states(before, state_of(quantizer))
        learns = q.scale.source == "running_statistic" or n < (q.scale.steps if "steps" in before else 1)
        if room == "torch" and learns:  # eager JAX skips such a tensor, as compiled code does
            with pytest.raises(ValueError, match="finite"):
                call(np.array([1, np.nan, np.inf], np.float32))
            assert_same_states(before, state_of(quantizer))
        assert_same_bits(plain(x), call(x))
        assert_same_states(state_of(other), state_of(quantizer))


@each_room
@pytest.mark.parametrize("rule", ["running_statistic", "learned", "statistic_then_learned"])
def test_a_tensor_of_other_channels_changes_no_state(rule: str, room: str) -> None:
    """Of one channel, too, which would broadcast against the scales that are there."""
    q = catalog["uint8_affine_per_channel"].replace(source=rule, delay=3)
    quantizer, call = made(room, q)
    call(np.outer([1, 2, 3], X[0]).astype(np.float32))
    before = state_of(quantizer)
    for channels in (1, 4):
        with pytest.raises(ValueError, match=rf"`x` must have scales of shape \(3, 1\).*got \({channels}, 1\)"):
            call(np.ones((channels, 3), np.float32))
        assert_same_states(before, state_of(quantizer))


@each_room
@pytest.mark.parametrize("name", ["int8_per_channel", "uint8_affine_per_channel"])
def test_a_history_takes_its_shape_from_the_first_tensor(name: str, room: str) -> None:
    """A row for each tensor of the window, of scales and, where there are any, of zero points."""
    q = catalog[name].replace(source="running_statistic", window=4)
    quantizer, call = made(room, q)
    assert state_of(quantizer)["history"].shape == (0,)
    x = np.outer([1, 2, 3], X[0]).astype(np.float32)
    call(x)
    chosen = [np.asarray(p, np.float32) for p in core.choose_qparams(q, x)[:2] if p is not None]
    history = state_of(quantizer)["history"]
    assert history.shape == (4, 1 + q.affine, 3, 1)
    assert_same_bits(np.stack(chosen), history[-1])
    assert np.isnan(history[:-1]).all()
