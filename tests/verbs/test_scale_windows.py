"""Scales that are a percentile of those of the last tensors, step by step in torch and flax side by side.

Expected states come from `samebits.core`: `choose_qparams` of each batch, put into `running_percentile`; and that is
compared with `numpy.sort` and, where it is the largest, with the delayed scaling of AQT.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch._dynamo.testing
from aqt.jax.v2.flax.delayed_scaling_calibration import DelayedScalingCalibration
from flax import nnx
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from samebits import core
from samebits.core import PerAxis, QParams, Quantizer, ScaleRule, catalog
from samebits.core import running as core_running
from samebits.jax_backend import interop
from samebits.jax_backend import running as jax_running
from samebits.jax_backend.tensor_quantizer import TensorQuantizer as JaxTensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import running as torch_running
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

Array = NDArray[Any]
RUNNING = catalog["int8_per_tensor"].replace(source="running_statistic", window=3)
MEDIAN = catalog["uint8_affine_per_channel"].replace(
    source="running_statistic", window=4, window_percentile=50, momentum=None, granularity=PerAxis(1)
)
THEN_LEARNED = catalog["uint8_affine_per_tensor"].replace(
    source="statistic_then_learned", steps=4, window=3, window_percentile=60, delay=2
)
SIZES = (1.0, 7.0, 0.5, 2.0, 0.1, 0.25, 3.0)


def batches(shape: tuple[int, ...] = (5, 8)) -> list[Array]:
    random = np.random.default_rng(3)
    return [(random.standard_normal(shape) * s + s / 4).astype(np.float32) for s in SIZES]


def percentiles(q: Quantizer, tensors: list[Array]) -> Iterator[tuple[Array, QParams]]:
    """History and state after each tensor, by core."""
    history: Array | None = None
    for x in tensors:
        new = np.stack([np.asarray(p, np.float32) for p in core.choose_qparams(q, x)[:2] if p is not None])
        if history is None:
            history = np.full((q.scale.window or 0, *new.shape), np.nan, np.float32)
        history, chosen = core_running.running_percentile(q, history, new)
        yield history, QParams(*chosen)


def used(q: Quantizer, state: QParams) -> QParams:
    """A state as it quantizes."""
    if state.zero_point is None:
        return state
    return QParams(state.scale, np.clip(np.rint(state.zero_point), q.format.lo, q.format.hi).astype(np.int32))


def state(quantizer: Any, name: str) -> Array:
    held = getattr(quantizer, name)
    return np.array(to_numpy(held.detach() if isinstance(held, torch.Tensor) else held[...]), copy=True)


def test_a_percentile_is_an_element_of_the_sorted_window_everywhere() -> None:
    """Ties, NaN among the old and as the new, windows that are not full; beside numpy.sort and in every mode."""
    random = np.random.default_rng(0)
    for window, percentile, shape in (
        (1, 100, ()),
        (5, 100, (3, 1)),
        (5, 0.001, (6,)),
        (8, 50, (4, 9)),
        (7, 73, (30,)),
    ):
        q = RUNNING.replace(window=window, window_percentile=percentile)
        history = random.choice(np.array([2.0**-126, 0.1, 0.3, 0.3, 1.5, 3e38], np.float32), (window, 2, *shape))
        history[:, 1] = random.integers(-8, 8, (window, *shape))
        history[np.broadcast_to((random.random((window, *shape)) < 0.3)[:, None], history.shape)] = np.nan
        new = np.stack([random.choice(np.array([0.2, 0.3, np.nan], np.float32), shape), np.full(shape, 3, np.float32)])
        kept, want = core_running.running_percentile(q, history, new)
        moved = np.where(np.isnan(new[0]), history, np.concatenate([history[1:], new[None]]))
        assert_same_bits(moved, kept)
        scales = np.sort(moved[:, 0], axis=0)
        count = np.isfinite(scales).sum(0)
        rank = np.maximum(np.floor(0.01 * percentile * count + 0.5).astype(int), 1) - 1
        assert_same_bits(np.take_along_axis(scales, np.asarray(rank)[None], 0)[0], want[0])
        eager = torch_running.running_percentile(q, to_torch(history), to_torch(new))
        jitted = jax_running.running_percentile(q, to_jax(history), to_jax(new))
        results = [eager, jitted]
        if window == 8:
            with jax.disable_jit():
                results.append(jax_running.running_percentile(q, to_jax(history), to_jax(new)))
        for got in results:
            assert_same_bits(kept, got[0])
            assert_same_bits(want, got[1])


def test_of_equal_scales_the_oldest_comes_first_with_its_zero_point() -> None:
    """Of scales 2, 1, 1, 2 the second is the later 1, the third the earlier 2."""
    history = np.array([[np.nan, np.nan], [2, 40], [1, 30], [1, 20]], np.float32)
    for percentile, expected in ((25, [1, 30]), (50, [1, 20]), (75, [2, 40]), (100, [2, 10])):
        q = MEDIAN.replace(window_percentile=percentile)
        for room, convert in ((core_running, np.asarray), (torch_running, to_torch), (jax_running, to_jax)):
            got = room.running_percentile(q, convert(history), convert(np.array([2, 10], np.float32)))[1]
            assert_same_bits(np.array(expected, np.float32), got)


@pytest.mark.parametrize("q", [RUNNING, MEDIAN], ids=["largest", "median"])
def test_the_state_is_a_percentile_of_the_last_tensors_step_by_step(q: Quantizer) -> None:
    """Eager and jitted, in training and in evaluation; the largest leaves the window after `window` tensors."""
    first, second, third = TensorQuantizer(q), JaxTensorQuantizer(q), JaxTensorQuantizer(q)
    step = nnx.jit(lambda m, x: m(x))
    third(to_jax(batches()[0]))  # a state whose shape is not known cannot grow under jit
    interop.load_state_dict(third, {k: np.full_like(v, np.nan) for k, v in interop.state_dict(third).items()})
    tensors = batches()
    for x, (history, wanted) in zip(tensors, percentiles(q, tensors), strict=True):
        want = core.fake_quantize(q, x, used(q, wanted))
        for got in (first(to_torch(x)), second(to_jax(x)), step(third, to_jax(x))):
            assert_same_bits(want, got)
        for quantizer in (first, second, third):
            assert_same_bits(wanted.scale, state(quantizer, "scale"))
            assert_same_bits(history, state(quantizer, "history"))
    largest = [np.abs(x).max() / np.float32(127) for x in tensors]
    if q is RUNNING:
        assert state(first, "scale") == max(largest[-3:]) < max(largest)
    first.eval()
    assert_same_bits(core.fake_quantize(q, tensors[0], used(q, wanted)), first(to_torch(tensors[0])))
    assert_same_bits(history, state(first, "history"))


def test_a_tensor_without_a_scale_leaves_the_window_as_it_is() -> None:
    """Where nothing can be raised; and scales that were given last until a tensor is seen."""
    step = nnx.jit(lambda m, x: m(x))
    quantizer = JaxTensorQuantizer(RUNNING, qparams=QParams(jnp.float32(0.5)))
    step(quantizer, jnp.full((2,), jnp.nan))
    assert_same_bits(np.float32(0.5), state(quantizer, "scale"))
    step(quantizer, jnp.full((2,), 12.7))
    step(quantizer, jnp.full((2,), jnp.inf))
    assert_same_bits(np.float32(12.7) / np.float32(127), state(quantizer, "scale"))
    assert np.isnan(state(quantizer, "history")).sum() == 2


@pytest.mark.parametrize("stage", range(6))
def test_a_window_goes_on_in_the_other_framework_at_every_stage(stage: int, tmp_path: Path) -> None:
    """Unset, while it fills, full, and when the scale is learned; through safetensors, in both directions."""
    tensors = batches()
    for q, names in ((MEDIAN, {"scale", "zero_point", "history"}), (THEN_LEARNED, {"seen"})):
        first, second = TensorQuantizer(q), JaxTensorQuantizer(q)
        for x in tensors[:stage]:
            first(to_torch(x))
            second(to_jax(x))
        save_file({k: v.detach().numpy() for k, v in first.state_dict().items()}, tmp_path / "torch.safetensors")
        save_file(interop.state_dict(second), tmp_path / "flax.safetensors")
        stored = load_file(tmp_path / "torch.safetensors"), load_file(tmp_path / "flax.safetensors")
        assert stored[0].keys() == stored[1].keys() == names | {"scale", "zero_point", "history"}
        for name, value in stored[0].items():
            assert_same_bits(value, stored[1][name])
        fresh, ours = TensorQuantizer(q), JaxTensorQuantizer(q)
        fresh.load_state_dict({k: torch.from_numpy(v) for k, v in stored[1].items()})
        interop.load_state_dict(ours, stored[0])
        wanted = [used(q, w) for _, w in percentiles(q, tensors[: q.scale.steps if q is THEN_LEARNED else None])]
        for n, x in list(enumerate(tensors))[stage:]:
            waits = n < q.delay
            want = x if waits else core.fake_quantize(q, x, wanted[min(n, len(wanted) - 1)])
            for got in (first(to_torch(x)), fresh(to_torch(x)), ours(to_jax(x))):
                assert_same_bits(want, got.detach() if isinstance(got, torch.Tensor) else got)


def test_compiled_code_keeps_the_window_without_compiling_anew() -> None:
    torch._dynamo.reset()
    tensors = batches()
    module = TensorQuantizer(THEN_LEARNED)
    module(to_torch(tensors[0]))  # so that the state is set
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    program = torch.compile(module, backend=counter, fullgraph=True)
    wanted = list(percentiles(THEN_LEARNED, tensors[:4]))
    for n, x in enumerate(tensors[1:], start=1):
        history, after = wanted[min(n, 3)]
        want = x if n < 2 else core.fake_quantize(THEN_LEARNED, x, used(THEN_LEARNED, after))
        assert_same_bits(want, program(to_torch(x)).detach())
        assert_same_bits(history, state(module, "history"))
    assert counter.frame_count == 1


def test_the_batch_itself_may_quantize_while_the_window_learns() -> None:
    for q in (MEDIAN.replace(batch_in_training=True), THEN_LEARNED.replace(batch_in_training=True, delay=0)):
        first, second = TensorQuantizer(q), JaxTensorQuantizer(q)
        for x in batches()[:4]:
            want = core.fake_quantize(q, x)
            assert_same_bits(want, first(to_torch(x)).detach())
            assert_same_bits(want, second(to_jax(x)))
        *_, (history, _) = percentiles(q, batches()[:4])
        assert_same_bits(history, state(first, "history"))
        assert_same_bits(history, state(second, "history"))


def test_oracle_delayed_scaling_of_aqt() -> None:
    """Its bound for a tensor is the largest of the window before it: ours with a tensor is theirs for the next one.

    By its two steps, since the module itself asks for a function that JAX no longer has.
    """
    theirs: Any = DelayedScalingCalibration
    history, bound, tensors = jnp.zeros(3), jnp.zeros(()), batches()
    for x, (_, ours) in zip(tensors, percentiles(RUNNING, tensors), strict=True):
        history = theirs.compute_history(None, to_jax(x), history)
        bound = theirs.compute_bound(None, jnp.max(history), bound)
        assert_same_bits(np.asarray(bound) / np.float32(127), ours.scale)


@pytest.mark.parametrize(
    ("error", "message", "rule"),
    [
        (ValueError, "`window` must be at least 1, got 0", {"window": 0}),
        (TypeError, "`window` must be an int, got 2.0", {"window": 2.0}),
        (ValueError, r"`window_percentile` must be in \(0, 100\], got 0", {"window_percentile": 0}),
        (ValueError, r"`window_percentile` must be in \(0, 100\], got nan", {"window_percentile": float("nan")}),
    ],
)
def test_windows_that_make_no_sense(error: type[Exception], message: str, rule: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        ScaleRule(**rule)


def test_a_window_of_logarithms_is_the_same_in_both_frameworks() -> None:
    """`log_float` scales that are learned later: the window holds logarithms, whose largest may be negative."""
    q = RUNNING.replace(source="statistic_then_learned", steps=5, restriction="log_float")
    first, second = TensorQuantizer(q), JaxTensorQuantizer(q)
    for x in batches():
        first(to_torch(x * np.float32(0.01)))
        second(to_jax(x * np.float32(0.01)))
        assert_same_bits(state(first, "scale"), state(second, "scale"))
