"""Flax layers under the transforms of flax and of JAX, in checkpoints, in linen, and as pure functions."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from numpy.typing import NDArray

from samebits.core import PerTensor, catalog, quant
from samebits.jax_backend import functional
from samebits.jax_backend.nn import QuantLinear
from samebits.proofs.inputs.compare import assert_same_bits, same_bits

Array = NDArray[Any]
CONSTANT = catalog["int8_per_tensor"].replace(source="constant", scale_value=2.0**-5)
LEARNED = catalog["int4_per_channel"].replace(source="learned", gradient="learned_scale")
RUNNING = catalog["uint8_affine_per_tensor"].replace(source="running_statistic")
STOCHASTIC = catalog["int8_per_tensor"].replace(rounding="stochastic", source="running_statistic")


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def layer(rngs: nnx.Rngs | int = 0, **quant: Any) -> QuantLinear:
    quantizers = {"input_quant": RUNNING, "weight_quant": LEARNED, "output_quant": STOCHASTIC} | quant
    return QuantLinear(4, 4, rngs=nnx.Rngs(rngs) if isinstance(rngs, int) else rngs, **quantizers)


def paths(module: nnx.Module, kind: Any) -> set[str]:
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module, kind))}


def test_what_is_trained_is_a_parameter_and_statistics_are_not() -> None:
    """What optimizers and `nnx.split` go by."""
    one = layer(input_quant=quant.Int8ActPerTensorFloat)
    assert paths(one, nnx.Param) == {"kernel", "bias", "weight_quant.scale", "input_quant.scale"}
    assert paths(one, nnx.BatchStat) == {"input_quant.seen", "output_quant.scale", "output_quant.step"}
    assert paths(layer(), nnx.Param) == {"kernel", "bias", "weight_quant.scale"}


# --- transforms of flax -----------------------------------------------------------------------------------------------


def test_vmap_over_inputs_and_over_layers() -> None:
    """Each as by itself; layers are made under it, too."""
    x = random(3, 2, 4)
    one = layer(input_quant=CONSTANT, weight_quant="int8_per_channel", output_quant=None)
    assert_same_bits(jnp.stack([one(row) for row in x]), nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(one, x))
    make = partial(layer, input_quant=RUNNING, weight_quant="int8_per_channel", output_quant=None)
    many = nnx.split_rngs(splits=3)(nnx.vmap(make))(nnx.Rngs(0))
    y = nnx.vmap(lambda m, x: m(x))(many, x)
    definition, state = nnx.split(many)
    single = nnx.merge(definition, jax.tree.map(lambda a: a[1], state))
    for variable in (single.input_quant.scale, single.input_quant.zero_point):
        variable.set_value(jnp.full((), jnp.nan))  # as it was before
    assert_same_bits(y[1], single(x[1]))
    assert_same_bits(many.input_quant.scale[...][1], single.input_quant.scale[...])


def test_scan_over_layers_and_recomputation() -> None:
    """A stack of layers in a loop, and gradients with what is computed anew: those of one layer after the other."""
    x = random(2, 4)
    layers = [layer(seed, weight_quant=LEARNED, output_quant=None) for seed in range(2)]
    for one in layers:
        one(x)  # which sets the scales
    definition = nnx.graphdef(layers[0])
    stacked = nnx.merge(definition, jax.tree.map(lambda *a: jnp.stack(a), *map(nnx.state, layers)))

    def in_a_loop(m: Any, x: Any) -> Any:
        return nnx.scan(nnx.remat(lambda x, m: m(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, m)

    def one_by_one(ms: Any, x: Any) -> Any:
        return ms[1](ms[0](x))

    want, slopes = nnx.jit(nnx.value_and_grad(lambda m: one_by_one(m, x).sum()))(nnx.List(layers))
    got, of_stack = nnx.jit(nnx.value_and_grad(lambda m: in_a_loop(m, x).sum()))(stacked)
    assert_same_bits(want, got)
    in_stack = dict(nnx.to_flat_state(of_stack))
    for i in range(2):
        for path, slope in nnx.to_flat_state(slopes[i]):
            assert_same_bits(slope[...], in_stack[path][...][i], call=str(path))
    assert_same_bits(layers[1].input_quant.scale[...], stacked.input_quant.scale[...][1])


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """Scales, averages and what stochastic rounding draws; a fresh layer in another place of the process."""
    one, x = layer(), random(6, 4)
    one(x)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "one", nnx.state(one))
    other = nnx.eval_shape(lambda: layer(1))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        nnx.update(other, checkpointer.restore(tmp_path / "one", nnx.state(other)))
    for seed in range(2):
        assert_same_bits(one(random(6, 4, seed=seed)), other(random(6, 4, seed=seed)))
    assert not same_bits(one(x), one(x)), "nothing is drawn"


# --- linen ------------------------------------------------------------------------------------------------------------


def test_layers_in_linen() -> None:
    """By `nnx.bridge`: parameters and statistics are the collections that linen has for them."""
    x = random(6, 4)
    options = {"input_quant": RUNNING, "weight_quant": LEARNED}
    module = nnx.bridge.to_linen(QuantLinear, 4, 4, **options)
    variables = module.init(jax.random.key(0), x)
    assert {"params", "batch_stats"} <= set(variables)
    y, changed = module.apply(variables, x, mutable=["batch_stats", "params"])
    alike: Any = QuantLinear(4, 4, **options, rngs=nnx.Rngs(0))
    alike.kernel.set_value(variables["params"]["kernel"])
    alike.bias.set_value(variables["params"]["bias"])
    alike(x)
    assert_same_bits(alike(x), y)
    assert_same_bits(alike.input_quant.scale[...], changed["batch_stats"]["input_quant"]["scale"])


# --- pure functions ---------------------------------------------------------------------------------------------------


def test_what_is_taken_apart_is_a_module() -> None:
    with pytest.raises(TypeError, match=r"`make` must give an nnx.Module, gave 3"):
        functional.init(lambda rngs: 3, 0)  # type: ignore[return-value]
    with pytest.raises(TypeError, match="`make` must be a function that makes a module, got a QuantLinear"):
        functional.init(layer(), 0)
    whole = functional.taken_apart(layer())
    with pytest.raises(TypeError, match="`definition` must be that of a Model, got Model"):
        functional.apply(whole, whole.params, whole.state, random(6, 4))


def test_pure_functions_compute_what_the_module_does() -> None:
    x = random(6, 4)
    model = functional.init(lambda rngs: layer(rngs, output_quant=None), jax.random.key(3))
    module = layer(nnx.Rngs(jax.random.key(3)), output_quant=None)
    assert set(model.params) == {"kernel", "bias", "weight_quant"}
    before = jax.tree.map(np.array, (model.params, model.state))
    y, state = functional.apply(model.definition, model.params, model.state, x)
    assert_same_bits(module(x), y)
    assert all(jax.tree.leaves(jax.tree.map(same_bits, before, (model.params, model.state))))
    assert_same_bits(module.input_quant.scale[...], state["input_quant"]["scale"])
    module.eval()
    frozen, unchanged = functional.apply(
        model.definition, nnx.to_pure_dict(nnx.state(module, nnx.Param)), state, x, train=False
    )
    assert_same_bits(module(x), frozen)
    assert all(jax.tree.leaves(jax.tree.map(same_bits, state, unchanged)))


def test_a_step_of_training_by_pure_functions() -> None:
    """Compiled, with optax; the bits and the state are those of `nnx.Optimizer`."""
    x, module = (
        random(6, 4),
        layer(weight_quant=LEARNED.replace(granularity=PerTensor(), scale_value=0.25), output_quant=None),
    )
    model, rule = functional.taken_apart(module), optax.sgd(0.1)

    @partial(jax.jit, static_argnums=0)
    def step(definition: Any, params: Any, state: Any, moments: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            y, new = functional.apply(definition, params, state, x)
            return (y**2).mean(), new

        (value, new), slopes = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = rule.update(slopes, moments)
        return value, optax.apply_updates(params, updates), new, moments

    value, params, state, _ = step(model.definition, model.params, model.state, rule.init(model.params), x)
    optimizer = nnx.Optimizer(module, rule, wrt=nnx.Param)
    want, slopes = nnx.jit(nnx.value_and_grad(lambda m: (m(x) ** 2).mean()))(module)
    optimizer.update(module, slopes)
    assert_same_bits(want, value)
    assert not same_bits(params["weight_quant"]["scale"], model.params["weight_quant"]["scale"])
    found = nnx.to_pure_dict(nnx.state(module, nnx.Param)), nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))
    jax.tree.map(assert_same_bits, found, (params, state))
    with pytest.raises(ValueError, match=r"`params` must hold .* missing \['kernel'\]; unexpected \['kernal'\]"):
        functional.apply(
            model.definition, {name.replace("kernel", "kernal"): a for name, a in params.items()}, state, x
        )
    turned = {**params, "kernel": params["kernel"][:3]}
    with pytest.raises(ValueError, match=r"`params`: \['kernel'\] must have shape \(4, 4\), got \(3, 4\)"):
        functional.apply(model.definition, turned, state, x)


def test_a_module_with_a_learned_scale_that_is_set_may_be_closed_over() -> None:
    x, held = random(6, 4), layer(input_quant=None, output_quant=None)
    want = held(x)
    assert_same_bits(want, nnx.jit(held)(x))
    assert_same_bits(want, jax.jit(lambda x: held(x))(x))
    assert np.isfinite(jax.grad(lambda x: held(x).sum())(x)).all()
