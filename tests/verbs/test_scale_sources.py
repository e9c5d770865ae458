"""Where the layers take their scales from: what each source gives, step by step, in torch and flax side by side.

Expected states come from `samebits.core`: `choose_qparams` of each batch, averaged by `running_average`.
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
from flax import nnx
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from samebits import core, jax_backend, torch_frontend
from samebits.core import PerAxis, QParams, Quantizer, ScaleRule, catalog
from samebits.core import running as core_running
from samebits.jax_backend import interop
from samebits.jax_backend import nn as flax_nn
from samebits.jax_backend import running as jax_running
from samebits.jax_backend.tensor_quantizer import TensorQuantizer as JaxTensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy, to_torch
from samebits.torch_frontend import nn as torch_nn
from samebits.torch_frontend import running as torch_running
from samebits.torch_frontend.tensor_quantizer import TensorQuantizer

Array = NDArray[Any]
AFFINE = catalog["uint8_affine_per_tensor"]
THEN_LEARNED = AFFINE.replace(source="statistic_then_learned", steps=3, momentum=0.75)
STEPS = 6


def batches(seed: int = 0, shape: tuple[int, ...] = (5, 8)) -> list[Array]:
    random = np.random.default_rng(seed)
    return [(random.standard_normal(shape) * s).astype(np.float32) for s in (1.0, 3.0, 0.5, 2.0, 7.0, 0.1)[:STEPS]]


def averages(q: Quantizer, tensors: list[Array]) -> Iterator[QParams]:
    """The running statistic after each tensor, by core."""
    state: list[Array] | None = None
    for seen, x in enumerate(tensors):
        new = [np.asarray(p, np.float32) for p in core.choose_qparams(q, x)[:2] if p is not None]
        old = [np.full_like(n, np.nan) for n in new] if state is None else state
        state = [core_running.running_average(q, o, n, seen) for o, n in zip(old, new, strict=True)]
        yield QParams(*state)


def used(q: Quantizer, state: QParams) -> QParams:
    """A state as it quantizes."""
    zero = None
    if state.zero_point is not None:
        zero = np.clip(np.rint(state.zero_point), q.format.lo, q.format.hi).astype(np.int32)
    return QParams(state.scale, zero)


def states(quantizer: Any) -> list[Array]:
    """Copies of scale and zero point."""
    held = [getattr(quantizer, name) for name in ("scale", "zero_point") if getattr(quantizer, name) is not None]
    return [np.array(to_numpy(v.detach() if isinstance(v, torch.Tensor) else v[...]), copy=True) for v in held]


# --- the average ------------------------------------------------------------------------------------------------------

SPECIAL = np.array([np.nan, 2.0**-126, 1.1 * 2.0**-126, 0.1, 1.0, 3.4e38, -3.5, 0.0, 255.0], np.float32)


@pytest.mark.parametrize("momentum", [0.9, 0.0, 0.123, None])
def test_an_average_has_the_same_bits_everywhere(momentum: float | None) -> None:
    """Also where a product is subnormal, which XLA would flush."""
    q = AFFINE.replace(source="running_statistic", momentum=momentum)
    old, new = (a.ravel() for a in np.meshgrid(SPECIAL, SPECIAL))
    for seen in (0, 1, 2, 1000, 2**24 - 2):
        want = core_running.running_average(q, old, new, seen)
        got = torch_running.running_average(q, to_torch(old), to_torch(new), torch.tensor(seen))
        assert_same_bits(want, got)
        count = jnp.asarray(seen, np.uint32)
        assert_same_bits(want, jax_running.running_average(q, to_jax(old), to_jax(new), count))
        with jax.disable_jit():
            assert_same_bits(want, jax_running.running_average(q, to_jax(old), to_jax(new), count))
    finite = ~np.isnan(old) & ~np.isnan(new)
    if momentum is None:
        exact = (old.astype(np.float64) * 3 + new) / 4
        mean = core_running.running_average(q, old, new, 3)
        assert np.all(
            np.abs(mean - exact)[finite]
            <= 2.0**-22 * np.abs(old[finite]).astype(float) + 2.0**-22 * np.abs(new[finite]) + 1e-44
        )


def test_a_mean_is_the_mean() -> None:
    q = AFFINE.replace(source="running_statistic", momentum=None)
    *_, last = averages(q, batches())
    scales = [float(core.choose_qparams(q, x).scale) for x in batches()]
    assert float(last.scale) == pytest.approx(np.mean(scales), rel=1e-6)
    for kind, convert in ((TensorQuantizer, to_torch), (JaxTensorQuantizer, to_jax)):
        quantizer = kind(q)
        for x in batches():
            quantizer(convert(x))
        for want, got in zip(last[:2], states(quantizer), strict=True):
            assert_same_bits(want, got)


def test_the_batch_itself_quantizes_in_training_and_the_average_in_evaluation() -> None:
    q = AFFINE.replace(source="running_statistic", momentum=0.9, batch_in_training=True)
    for kind, convert in ((TensorQuantizer, to_torch), (JaxTensorQuantizer, to_jax)):
        quantizer = kind(q)
        for x in batches():
            assert_same_bits(core.fake_quantize(q, x), quantizer(convert(x)))
        *_, last = averages(q, batches())
        quantizer.eval()
        x = batches()[0]
        assert_same_bits(core.fake_quantize(q, x, used(q, last)), quantizer(convert(x)))


# --- constants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_constants_are_given_in_all_rooms(dtype: str) -> None:
    """Whatever the tensor: NaN, infinities, empty, 0-d; dtype of the scale; raised and restricted as any other."""
    random = np.random.default_rng(0)
    given = [(), (0, 4), (3, 4)]
    for q, scale in (
        (catalog["int8_per_tensor"].replace(source="constant", scale_value=0.1), 0.1),
        (AFFINE.replace(source="constant", scale_value=0.1, zero_point_value=3), 0.1),
        (catalog["int8_power_of_two_per_tensor"].replace(source="constant", scale_value=0.3), 0.5),
        (catalog["int8_per_tensor"].replace(source="constant", scale_value=2.0**-126, floor=0.25), 0.25),
    ):
        for shape in given:
            x = random.standard_normal(shape).astype(np.float32)
            x = np.where(np.abs(x) > 1, np.float32(np.nan), x)
            with np.errstate(all="ignore"):
                x = to_torch(x).to(getattr(torch, dtype))
            array = np.asarray(to_numpy(x))
            want = core.choose_qparams(q, array)
            wide = np.float64 if dtype == "float64" else np.float32
            assert_same_bits(np.full((), scale, wide), want.scale)
            if q.affine:
                assert_same_bits(np.full((), 3, np.int32), want.zero_point)
            with jax.enable_x64(dtype == "float64"):
                mine, ours = torch_frontend.choose_qparams(q, x), jax_backend.choose_qparams(q, to_jax(array))
                for got in (mine, ours):
                    for w, g in zip(want[:2], got[:2], strict=True):
                        assert (w is None) == (g is None)
                        if w is not None:
                            assert_same_bits(w, g)
                assert_same_bits(core.fake_quantize(q, array), torch_frontend.fake_quantize(q, x))
                run = jax.jit(jax_backend.fake_quantize, static_argnums=0)
                assert_same_bits(core.fake_quantize(q, array), run(q, to_jax(array)))


def test_a_constant_per_channel_has_the_shape_of_the_channels() -> None:
    q = catalog["int8_per_channel"].replace(source="constant", scale_value=0.5)
    for room, x in (
        (core, np.ones((3, 4), np.float32)),
        (torch_frontend, torch.ones(3, 4)),
        (jax_backend, jnp.ones((3, 4))),
    ):
        assert_same_bits(np.full((3, 1), 0.5, np.float32), room.choose_qparams(q, x).scale)


def test_constants_have_no_state_and_layers_take_them() -> None:
    q = catalog["int8_per_tensor"].replace(source="constant", scale_value=0.125)
    layer = torch_nn.QuantLinear(4, 3, weight_quant=q, input_quant=q)
    assert set(layer.state_dict()) == {"weight", "bias"}
    ours = flax_nn.QuantLinear(4, 3, weight_quant=q, input_quant=q, rngs=nnx.Rngs(0))
    interop.load_state_dict(ours, {k: v.numpy() for k, v in layer.state_dict().items()})
    x = batches(shape=(5, 4))[0]
    assert_same_bits(layer(to_torch(x)).detach(), ours(to_jax(x)))
    with pytest.raises(TypeError, match="`qparams` must be None for a quantizer without state"):
        JaxTensorQuantizer(q, qparams=QParams(jnp.ones(())))


def test_learned_scales_may_start_at_a_value() -> None:
    """From the start where the shape is known; evaluation needs no batch of training first."""
    q = AFFINE.replace(source="learned", scale_value=0.1, zero_point_value=7)
    x = batches()[0]
    want = core.fake_quantize(q, x, QParams(np.float32(0.1), np.int32(7)))
    for kind, convert in ((TensorQuantizer, to_torch), (JaxTensorQuantizer, to_jax)):
        quantizer = kind(q)
        assert [float(s) for s in states(quantizer)] == [np.float32(0.1), 7]
        quantizer.eval()
        assert_same_bits(want, quantizer(convert(x)))
        per_axis = kind(q.replace(granularity=PerAxis(1)))
        per_axis.eval()
        assert_same_bits(want, per_axis(convert(x)))
        assert states(per_axis)[0].shape == (1, 8)
    module = TensorQuantizer(q)
    module(to_torch(x)).sum().backward()
    assert module.scale is not None
    assert module.scale.grad is not None
    assert module.scale.grad != 0


# --- a statistic that is learned later --------------------------------------------------------------------------------


def trained(first: Any, second: Any, tensors: list[Array], rate: float) -> Iterator[tuple[Any, ...]]:
    """Outputs, and gradients of scale and zero point, in torch and flax, one step of SGD after the other."""

    @nnx.jit
    def step(module: Any, x: Any) -> Any:
        (_, y), grads = nnx.value_and_grad(lambda m: ((y := m(x)).sum(), y), has_aux=True)(module)
        return y, grads

    for x in tensors:
        y = first(to_torch(x))
        first.zero_grad()
        y.sum().backward()
        mine, grads = step(second, to_jax(x))
        slopes = {"scale": first.scale.grad.numpy().copy(), "zero_point": first.zero_point.grad.numpy().copy()}
        yield y.detach().numpy(), np.asarray(mine), slopes, {n: np.asarray(grads[n][...]) for n in slopes}
        with torch.no_grad():
            for name in ("scale", "zero_point"):
                getattr(first, name).sub_(to_torch(np.float32(rate)) * getattr(first, name).grad)
        for name in ("scale", "zero_point"):  # the gradient of torch, since sums may differ by an ulp
            variable = getattr(second, name)
            variable.set_value(variable[...] - np.float32(rate) * slopes[name])


def test_a_statistic_freezes_at_the_right_step_and_learns_from_there() -> None:
    """Three batches of averages with no gradient, then a parameter that data no longer moves."""
    q = THEN_LEARNED
    first, second = TensorQuantizer(q), JaxTensorQuantizer(q)
    tensors = batches()
    wanted = list(averages(q, tensors))
    expected: list[Array] = []
    for n, (y, mine, slopes, mine_slopes) in enumerate(trained(first, second, tensors, 1e-6)):
        assert_same_bits(y, mine)
        state = states(first)
        for want, got in zip(wanted[n][:2] if n < 3 else expected, state, strict=True):
            assert_same_bits(want, got)
        assert_same_bits(core.fake_quantize(q, tensors[n], used(q, QParams(*state))), y)
        for name, slope in slopes.items():
            if n < 3:
                assert_same_bits(np.float32(0), slope)
                assert_same_bits(np.float32(0), mine_slopes[name])
            else:
                assert mine_slopes[name] == pytest.approx(slope, rel=1e-5)
        assert (slopes["scale"] != 0) == (n >= 3)
        expected = [p - np.float32(1e-6) * slope for p, slope in zip(state, slopes.values(), strict=True)]
        assert int(first.seen) == int(second.seen[...]) == min(n + 1, 3)
        for a, b in zip(states(first), states(second), strict=True):
            assert_same_bits(a, b)
    assert isinstance(first.scale, torch.nn.Parameter)
    assert isinstance(second.scale, nnx.Param)


def test_the_batch_itself_may_quantize_while_a_statistic_is_collected() -> None:
    q = THEN_LEARNED.replace(batch_in_training=True)
    first, second = TensorQuantizer(q), JaxTensorQuantizer(q)
    wanted = list(averages(q, batches()))
    for n, x in enumerate(batches()):
        want = core.fake_quantize(q, x) if n < 3 else core.fake_quantize(q, x, used(q, wanted[2]))
        assert_same_bits(want, first(to_torch(x)))
        assert_same_bits(want, second(to_jax(x)))


@pytest.mark.parametrize("stage", range(5))
def test_a_checkpoint_goes_on_in_the_other_framework_at_every_stage(stage: int, tmp_path: Path) -> None:
    """Unset, while collecting, at the last collected tensor, when frozen; through safetensors, in both directions."""
    q, tensors = THEN_LEARNED.replace(delay=2), batches()
    first, second = TensorQuantizer(q), JaxTensorQuantizer(q)
    for x in tensors[:stage]:
        first(to_torch(x))
        second(to_jax(x))
    save_file({k: v.detach().numpy() for k, v in first.state_dict().items()}, tmp_path / "torch.safetensors")
    save_file(interop.state_dict(second), tmp_path / "flax.safetensors")
    stored = load_file(tmp_path / "torch.safetensors"), load_file(tmp_path / "flax.safetensors")
    assert stored[0].keys() == stored[1].keys() == {"scale", "zero_point", "seen"}
    for name, value in stored[0].items():
        assert_same_bits(value, stored[1][name])
    fresh, ours = TensorQuantizer(q), JaxTensorQuantizer(q)
    fresh.load_state_dict({k: torch.from_numpy(v) for k, v in stored[1].items()})
    interop.load_state_dict(ours, stored[0])
    for x in tensors[stage:]:
        want = first(to_torch(x))
        assert_same_bits(want, fresh(to_torch(x)))
        assert_same_bits(want, ours(to_jax(x)))
    for a, b in zip(states(first), states(ours), strict=True):
        assert_same_bits(a, b)


def test_compiled_code_sees_delay_and_freezing_without_compiling_anew() -> None:
    q, tensors = THEN_LEARNED.replace(delay=2, gradient="learned_scale"), batches()
    torch._dynamo.reset()
    eager, module = TensorQuantizer(q), TensorQuantizer(q)
    for quantizer in (eager, module):
        quantizer(to_torch(tensors[0]))  # so that the state is set
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    program = torch.compile(module, backend=counter, fullgraph=True)
    for x in tensors[1:]:
        pair = [to_torch(x).requires_grad_() for _ in range(2)]
        eager.zero_grad()
        module.zero_grad()
        want, got = eager(pair[0]), program(pair[1])
        assert_same_bits(want.detach(), got.detach())
        want.sum().backward()
        got.sum().backward()
        assert_same_bits(pair[0].grad, pair[1].grad)
        for p, p_twin in zip(eager.parameters(), module.parameters(), strict=True):
            assert_same_bits(p.detach(), p_twin.detach())
            slope = torch.zeros(()) if p.grad is None else p.grad  # eager code does not touch it during the delay
            assert p_twin.grad is not None
            torch.testing.assert_close(slope, p_twin.grad, rtol=1e-5, atol=1e-6)
        assert int(eager.seen) == int(module.seen)
    assert counter.frame_count == 1


# --- delay ------------------------------------------------------------------------------------------------------------


def test_a_delay_passes_tensors_and_gradients_while_the_state_learns() -> None:
    q = AFFINE.replace(source="running_statistic", delay=2)
    x = batches()[1]
    x[0, :3] = [-0.0, 1e9, -1e9]
    after = list(averages(q, [x] * 4))
    for jitted in (False, True):
        first, second = TensorQuantizer(q), JaxTensorQuantizer(q)

        def run(module: Any, v: Any) -> Any:
            def loss(m: Any, u: Any) -> Any:
                y = m(u)
                return (y * jnp.full_like(y, -0.0)).sum(), y

            (_, y), slope = nnx.value_and_grad(loss, argnums=1, has_aux=True)(module, v)
            return y, slope

        step = nnx.jit(run) if jitted else run
        for n in range(4):
            leaf = to_torch(x).requires_grad_()
            y = first(leaf)
            want = x if n < 2 else core.fake_quantize(q, x, used(q, after[n]))
            assert_same_bits(want, y.detach())
            y.backward(torch.full_like(y, -0.0))
            if n == 1:  # in evaluation as well
                assert_same_bits(core.fake_quantize(q, x, used(q, after[n])), first.eval()(leaf).detach())
            first.train()
            mine, slope = step(second, to_jax(x))
            assert_same_bits(want, mine)
            assert_same_bits(leaf.grad, slope)
            for a, b in zip(after[n][:2], states(first), strict=True):
                assert_same_bits(a, b)
            for a, b in zip(states(first), states(second), strict=True):
                assert_same_bits(a, b)


def test_layers_contract_floats_during_a_delay_and_codes_after_it() -> None:
    q_x = catalog["int8_per_tensor"].replace(source="running_statistic", delay=2)
    q_w = catalog["int8_per_channel"].replace(delay=1)
    layer = torch_nn.QuantLinear(8, 3, weight_quant=q_w, input_quant=q_x)
    ours = flax_nn.QuantLinear(8, 3, weight_quant=q_w, input_quant=q_x, rngs=nnx.Rngs(0))
    interop.load_state_dict(ours, {k: v.detach().numpy() for k, v in layer.state_dict().items()})
    jitted = nnx.jit(lambda m, x: m(x))
    w, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    wanted = list(averages(q_x, batches()))
    for n, x in enumerate(batches()[:4]):
        y, mine = layer(to_torch(x)).detach(), jitted(ours, to_jax(x))
        w_hat = w if n < 1 else core.fake_quantize(q_w, w)
        if n < 2:
            np.testing.assert_allclose(y, x @ w_hat.T + bias, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(mine, x @ w_hat.T + bias, rtol=1e-5, atol=1e-5)
        else:
            want = core.linear(q_x, x, used(q_x, wanted[n]), q_w, w, core.choose_qparams(q_w, w), bias)
            assert_same_bits(want, y)
            assert_same_bits(want, mine)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "rule"),
    [
        (ValueError, "`scale_value` must be a number for 'constant' scales", {"source": "constant"}),
        (ValueError, "`scale_value` must be a number for .* with a `zero_point_value`", {"zero_point_value": 1}),
        (ValueError, "`scale_value` must be None for 'statistic' scales, got 0.1", {"scale_value": 0.1}),
        (
            ValueError,
            "`scale_value` must be a positive normal float32, got 0",
            {"source": "constant", "scale_value": 0},
        ),
        (ValueError, "must be a positive normal float32, got nan", {"source": "constant", "scale_value": float("nan")}),
        (ValueError, "must be a positive normal float32, got inf", {"source": "learned", "scale_value": float("inf")}),
        (ValueError, "`steps` must be at least 1, got 0", {"source": "statistic_then_learned", "steps": 0}),
        (TypeError, "`steps` must be an int, got 1.5", {"steps": 1.5}),
        (TypeError, "`batch_in_training` must be a bool, got 1", {"batch_in_training": 1}),
        (ValueError, r"`momentum` must be in \[0, 1\), got 1", {"momentum": 1}),
    ],
)
def test_rules_that_make_no_sense(error: type[Exception], message: str, rule: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        ScaleRule(**rule)
