"""Layers of jax_backend as flax modules with state: values beside core, training, evaluation, what is refused."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from samebits import core
from samebits.core import PerAxis, PerToken, QParams, catalog
from samebits.jax_backend.nn import QuantConv, QuantHardTanh, QuantIdentity, QuantLinear, QuantMaxPool, QuantReLU
from samebits.jax_backend.tensor_quantizer import TensorQuantizer
from samebits.proofs.inputs.compare import assert_same_bits, same_bits
from samebits.proofs.modes.arrays import to_jax, to_numpy

from ..exact import DTYPES

Array = NDArray[Any]
RUNNING = catalog["uint8_per_tensor"].replace(source="running_statistic")
LEARNED = catalog["int4_per_channel"].replace(source="learned", gradient="learned_scale")
LEARNED_AFFINE = catalog["uint8_affine_per_tensor"].replace(source="learned", gradient="learned_scale")


def random(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


# --- modules ---------------------------------------------------------------------------------------------------------


def network() -> nnx.Sequential:
    """Every kind of state in one network."""
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        QuantConv(1, 8, (3, 3), 2, padding=1, weight_quant=LEARNED, input_quant=RUNNING, rngs=rngs),
        QuantReLU(LEARNED_AFFINE.replace(granularity=PerAxis(-1))),
        lambda x: x.reshape(len(x), -1),
        QuantLinear(
            128, 12, weight_quant="int8_per_channel", input_quant=LEARNED_AFFINE, output_quant=RUNNING, rngs=rngs
        ),
        QuantIdentity(catalog["int8_affine_per_token"]),
        QuantLinear(12, 10, weight_quant="int4_per_channel", input_quant="int8_affine_per_token", rngs=rngs),
    )


def test_modules_compute_the_functions() -> None:
    """In flax's layouts, beside core in its own: eager and jitted, batch 1 and 256."""
    x, image, rngs = random(256, 32), random(2, 8, 7, 3), nnx.Rngs(0)
    q_x, q_w = catalog["uint8_affine_per_tensor"], catalog["int8_per_channel"]
    layer = QuantLinear(32, 5, weight_quant="int8_per_channel", input_quant="uint8_affine_per_tensor", rngs=rngs)
    w, bias = to_numpy(layer.kernel[...]).T, to_numpy(layer.bias[...])
    for rows in (x, x[:1]):
        want = core.linear(q_x, rows, core.choose_qparams(q_x, rows), q_w, w, core.choose_qparams(q_w, w), bias)
        assert_same_bits(want, layer(jnp.asarray(rows)))
        assert_same_bits(want, nnx.jit(lambda m, x: m(x))(layer, jnp.asarray(rows)))
    conv = QuantConv(3, 5, (3, 2), (2, 1), padding=(1, 0), use_bias=False, input_quant=q_x, rngs=rngs)
    w, first = to_numpy(conv.kernel[...]).transpose(3, 2, 0, 1), image.transpose(0, 3, 1, 2)
    parts = q_x, first, core.choose_qparams(q_x, first), q_w, w, core.choose_qparams(q_w, w)
    want = core.conv(*parts, None, (2, 1), (1, 0)).transpose(0, 2, 3, 1)
    for got in (conv(jnp.asarray(image)), nnx.jit(lambda m, x: m(x))(conv, jnp.asarray(image))):
        assert_same_bits(want, got)
    weight_only = QuantLinear(32, 5, weight_quant="int4_per_group32", rngs=rngs)
    w_hat = core.fake_quantize(catalog["int4_per_group32"], to_numpy(weight_only.kernel[...]).T).T
    np.testing.assert_allclose(weight_only(jnp.asarray(x)), x @ w_hat, rtol=1e-4, atol=1e-5)
    plain = QuantConv(3, 5, (3, 3), weight_quant=None, rngs=rngs)
    np.testing.assert_allclose(plain(jnp.asarray(image)), nnx.Conv.__call__(plain, jnp.asarray(image)), atol=1e-5)


def test_activations() -> None:
    x, q = random(6, 50), catalog["int8_per_tensor"]
    x[0, :6] = [-0.0, 0.0, 2.0**-149, -(2.0**-149), -(2.0**-126), 3.0]
    assert_same_bits(core.fake_quantize(q, x), QuantIdentity()(jnp.asarray(x)), inputs=x)
    positive = np.maximum(x, 0)
    assert_same_bits(core.fake_quantize(catalog["uint8_per_tensor"], positive), QuantReLU()(jnp.asarray(x)), inputs=x)
    assert_same_bits(np.where(x > 0, x, np.float32(0)), QuantReLU(None)(to_jax(x)), inputs=x)
    assert_same_bits(x, QuantIdentity(None)(to_jax(x)))
    assert np.isnan(QuantReLU(None)(jnp.array([-np.nan, np.nan]))).all()
    slope = jax.grad(lambda v: QuantReLU(None)(v).sum())(to_jax(x))
    assert_same_bits((x > 0).astype(np.float32), slope, inputs=x)


def test_an_output_quantizer_quantizes_the_output() -> None:
    q, x = catalog["int8_per_tensor"], jnp.asarray(random(4, 32))
    inside, rounded = (QuantLinear(32, 5, input_quant=q, output_quant=o, rngs=nnx.Rngs(0)) for o in (None, q))
    assert_same_bits(core.fake_quantize(q, to_numpy(inside(x))), rounded(x))


def test_running_statistic() -> None:
    """The first scale is copied, later ones averaged while training, none in evaluation; the same under jit."""
    for call in (lambda m, x: m(x), nnx.jit(lambda m, x: m(x))):
        quantizer = TensorQuantizer(RUNNING.replace(momentum=0.75))
        batches = [np.array([0.0, peak], np.float32) for peak in (255.0, 510.0, 127.5)]
        want = [1.0, 0.75 * 1 + 0.25 * 2, 0.75 * 1.25 + 0.25 * 0.5]
        for x, scale in zip(batches, want, strict=True):
            y = call(quantizer, jnp.asarray(x))
            assert_same_bits(core.fake_quantize(RUNNING, x, QParams(np.float32(scale))), y)
            assert quantizer.scale is not None
            assert float(quantizer.scale[...]) == scale
        quantizer.eval()
        quantizer(jnp.array([1e9], jnp.float32))
        assert float(quantizer.scale[...]) == want[-1]
        quantizer.train()
        call(quantizer, jnp.array([1e9], jnp.float32))
        assert float(quantizer.scale[...]) > want[-1]
    affine = TensorQuantizer(catalog["uint8_affine_per_tensor"].replace(source="running_statistic", momentum=0.5))
    affine(jnp.array([-1.0, 254.0], jnp.float32))
    affine(jnp.array([-2.0, 253.0], jnp.float32))
    assert affine.zero_point is not None
    assert float(affine.zero_point[...]) == 1.5
    affine.eval()
    assert affine.qparams(jnp.zeros(1, jnp.float32)).zero_point == 2  # 1.5, a tie, to even


def test_bad_batches_leave_a_running_statistic_as_it_is() -> None:
    quantizer = TensorQuantizer(RUNNING)
    quantizer(jnp.array([255.0], jnp.float32))
    nnx.jit(lambda m, x: m(x))(quantizer, jnp.array([jnp.nan], jnp.float32))
    assert quantizer.scale is not None
    assert float(quantizer.scale[...]) == 1
    with pytest.raises(ValueError, match="`x` must be finite"):
        quantizer(jnp.array([jnp.inf], jnp.float32))


def test_a_power_of_two_stays_one_while_its_average_moves() -> None:
    quantizer = TensorQuantizer(catalog["int8_power_of_two_per_tensor"].replace(source="running_statistic"))
    quantizer(jnp.array([127.0], jnp.float32))
    quantizer(jnp.array([4 * 127.0], jnp.float32))
    quantizer.eval()
    assert quantizer.scale is not None
    np.testing.assert_allclose(quantizer.scale[...], 1.3, rtol=1e-6)
    assert quantizer.qparams(jnp.zeros(1, jnp.float32)).scale == 2


def test_learned_scale_starts_at_the_statistic_and_learns() -> None:
    layer = QuantLinear(64, 4, weight_quant=LEARNED, input_quant=LEARNED_AFFINE, rngs=nnx.Rngs(0))
    assert layer.weight_quant is not None
    assert layer.input_quant is not None
    first = random(8, 64)
    layer(jnp.asarray(first))
    w = to_numpy(layer.kernel[...]).T
    assert_same_bits(core.choose_qparams(LEARNED, w).scale, layer.weight_quant.scale[...])
    chosen = core.choose_qparams(LEARNED_AFFINE, first)
    assert_same_bits(chosen.scale, layer.input_quant.scale[...])
    assert_same_bits(chosen.zero_point.astype(np.float32), layer.input_quant.zero_point[...])
    loss = nnx.jit(nnx.grad(lambda m, x: (m(x) ** 2).sum()))
    gradients = loss(layer, jnp.asarray(10 * random(8, 64, seed=1)))
    flat = {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(gradients)}
    names = {"kernel", "bias", "weight_quant.scale", "input_quant.scale", "input_quant.zero_point"}
    assert set(flat) == names
    assert all(np.any(to_numpy(g) != 0) and np.all(np.isfinite(to_numpy(g))) for g in flat.values())


def test_a_learned_scale_that_left_its_domain_is_raised_to_the_floor_and_can_come_back() -> None:
    quantizer = TensorQuantizer(LEARNED.replace(granularity=core.PerTensor(), floor=0.25))
    quantizer(jnp.ones(3, jnp.float32))
    assert quantizer.scale is not None
    quantizer.scale.set_value(jnp.float32(-1))
    y, gradients = nnx.value_and_grad(lambda m: m(jnp.full(3, 10, jnp.float32)).sum())(quantizer)
    assert float(y) == 3 * 0.25 * 7
    assert float(gradients["scale"][...]) > 0


UNMOVED = {"layers.0.input_quant.scale", "layers.3.input_quant.zero_point"}  # of equal data; where nothing is clamped


def state(module: nnx.Module) -> dict[str, Array]:
    """Every variable by name, copied."""
    return {".".join(map(str, k)): np.array(v[...]) for k, v in nnx.to_flat_state(nnx.state(module))}


def test_training_under_jit_is_training_op_by_op() -> None:
    """Every kind of state: after steps of SGD the loss has fallen, and evaluation has the same bits in both modes."""
    module, x = network(), jnp.asarray(np.abs(random(16, 8, 8, 1)))
    module(x)  # the shape of one scale is not known before
    optimizer = nnx.Optimizer(module, optax.sgd(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(module: Any, optimizer: Any, x: Any) -> Any:
        loss, gradients = nnx.value_and_grad(lambda m: (m(x) ** 2).mean())(module)
        optimizer.update(module, gradients)
        return loss

    before = state(module)
    losses = [float(step(module, optimizer, x)) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert {name for name, a in state(module).items() if same_bits(a, before[name])} == UNMOVED
    module.eval()
    before = state(module)
    want = module(x)
    assert_same_bits(want, nnx.jit(lambda m, x: m(x))(module, x))
    assert_same_bits(want[:1], nnx.jit(lambda m, x: m(x))(module, x[:1]))
    assert all(same_bits(before[name], a) for name, a in state(module).items())
    fresh = network()
    fresh(x)
    nnx.update(fresh, nnx.state(module))
    fresh.eval()
    assert_same_bits(want, fresh(x))


def test_a_state_stays_as_it_is_laid_out_on_a_mesh() -> None:
    """Scales and their history split over the channels: the bits and the scales of one device."""
    q = catalog["int8_per_channel"].replace(source="running_statistic", window=2)
    xs = [random(3, 8, seed=seed) for seed in range(3)]
    plain, split = TensorQuantizer(q, (3, 8)), TensorQuantizer(q, (3, 8))
    mesh = jax.make_mesh((1,), ("a",), axis_types=(AxisType.Explicit,))
    lies = {"scale": P("a", None), "history": P(None, None, "a", None)}
    with jax.set_mesh(mesh):
        for name, spec in lies.items():
            variable = getattr(split, name)
            variable.set_value(jax.device_put(variable[...], NamedSharding(mesh, spec)))
        got = [split(jax.device_put(x, NamedSharding(mesh, P()))) for x in xs]
        assert {name: jax.typeof(getattr(split, name)[...]).sharding.spec for name in lies} == lies
    assert_same_bits(tuple(plain(to_jax(x)) for x in xs), tuple(got))
    assert_same_bits(plain.scale[...], split.scale[...])


def test_an_unset_scale_in_evaluation_says_what_to_do() -> None:
    for q in (RUNNING, LEARNED_AFFINE):
        quantizer = TensorQuantizer(q)
        quantizer.eval()
        with pytest.raises(RuntimeError, match=r"not set: run a batch in training mode"):
            quantizer(jnp.ones(3, jnp.float32))


def test_shared_quantizers_share_their_state() -> None:
    shared = TensorQuantizer(RUNNING)
    first, second = QuantIdentity(shared), QuantReLU(shared)
    nnx.Sequential(first, second)(jnp.asarray(np.abs(random(9))))
    assert first.act_quant is second.act_quant is shared


def _rngs(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: call(*args, rngs=nnx.Rngs(0), **kwargs)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (KeyError, "unknown quantizer 'int8'; did you mean", _rngs(QuantLinear, 3, 2, weight_quant="int8")),
        (TypeError, "`act_quant`: must be a catalog name or a Quantizer, .* got 8", lambda: QuantIdentity(8)),
        (ValueError, "`kernel_size` must be one to three positive ints, got 0", _rngs(QuantConv, 1, 1, 0)),
        (ValueError, "`strides` must be a positive int, or one for each", _rngs(QuantConv, 1, 1, (3, 3), (1, 1, 1))),
        (ValueError, "`padding` must be 'SAME', 'VALID'", _rngs(QuantConv, 1, 1, (3, 3), padding="same")),
        (TypeError, "QuantLinear has no keyword `dilation`", _rngs(QuantLinear, 1, 1, dilation=2)),
        (
            ValueError,
            "must be per tensor or per axis, got per token",
            lambda: QuantReLU(RUNNING.replace(granularity=PerToken())),
        ),
        (
            ValueError,
            r"`x` must have 3 features on its last axis, got shape \(2, 4\)",
            lambda: _rngs(QuantLinear, 3, 2)()(jnp.ones((2, 4))),
        ),
        (
            ValueError,
            r"`x` must be \(batch, height, width, channels\), got shape \(2, 4\)",
            lambda: _rngs(QuantConv, 4, 2, (3, 3))()(jnp.ones((2, 4))),
        ),
        (
            ValueError,
            r"`x` must have 2 lengths and channels, got shape \(4,\)",
            lambda: QuantMaxPool((2, 2))(jnp.ones(4)),
        ),
        (TypeError, "`x` must have dtype float32.*got int32", lambda: QuantReLU()(jnp.ones(4, int))),
        (TypeError, "`x` must have dtype float32.*got complex64", lambda: QuantHardTanh()(jnp.ones(4, complex))),
        (TypeError, "`x` must not be float64 unless", lambda: QuantReLU()(np.ones(4))),
        (TypeError, "`x` must not be float64 unless", lambda: QuantHardTanh(None)(np.full(4, -3.0))),
    ],
)
def test_modules_refuse(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        call()
