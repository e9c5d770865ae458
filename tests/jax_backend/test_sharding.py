"""Several devices: `jax.shard_map` with its checks on, and meshes with explicit axes.

Each test runs a function of this file, whose name begins with ``compare``, in a process of its own with four devices,
since JAX counts its devices once. It prints what it compared.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from samebits import core, jax_backend
from samebits.core import QParams, Quantizer, catalog
from samebits.core import straight_through as core_rules
from samebits.core.scales import ScaleSource
from samebits.jax_backend import nn, straight_through
from samebits.jax_backend.ptq import quant_array, shardings
from samebits.jax_backend.ptq.qarray import linear as linear_of_codes
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import special_values

Array = NDArray[Any]
VERBS = (
    "int8_per_tensor",
    "uint8_affine_per_channel",
    "int8_affine_per_token",
    "uint4_affine_per_group32",
    "uint4_affine_float_zero_per_group64",
    "float8_e4m3fn_per_tensor",
    "mxfp4_e2m1",
    "nf4_per_group64",
    "int8_learned_per_tensor",
    "ternary_absmean_per_tensor",
    "int8_percentile_per_tensor",
)
SHARED = {  # in shard_map: one scale for all devices
    "int8_per_tensor": catalog["int8_per_tensor"],
    "uint8_affine_per_tensor": catalog["uint8_affine_per_tensor"],
    "float8_e4m3fn_per_tensor": catalog["float8_e4m3fn_per_tensor"],
    "learned rounding": catalog["int8_per_tensor"].replace(rounding="learned"),
    "width": catalog["int8_learned_per_tensor"].replace(gradient="clipped"),
}
SPECS = (P("a", "b"), P(None, ("b", "a")))
INT8 = catalog["int8_per_tensor"]
LAYERS: dict[str, Callable[[], nnx.Module]] = {
    "codes": lambda: linear(input_quant="uint8_affine_per_tensor"),
    "tokens": lambda: linear(input_quant="int8_affine_per_token", output_quant="int8_per_tensor"),
    "values": lambda: linear(weight_quant="mxfp4_e2m1", input_quant="uint8_affine_per_tensor"),
    "learned": lambda: linear(weight_quant=of_source("int8_per_channel", "learned"), input_quant=INT8),
    "running": lambda: linear(
        weight_quant=of_source("int8_per_channel", "running_statistic"),
        input_quant=of_source("uint8_affine_per_tensor", "running_statistic"),
    ),
    "window": lambda: linear(weight_quant=of_source("int8_per_channel", "running_statistic").replace(window=3)),
    "conv": lambda: nn.QuantConv(64, 32, (3, 3), input_quant="uint8_affine_per_tensor", rngs=nnx.Rngs(0)),
}
QARRAYS = {  # of (32, 64), and how scales lie for codes on ("a", "b")
    "int8_per_tensor": P(),
    "int8_per_channel": P("a", None),
    "uint4_affine_per_group32": P("a", "b"),
    "mxfp4_e2m1": P("a", "b"),
}
FLOATS = ("values", "window")  # contract floats


def linear(**quantizers: Any) -> nn.QuantLinear:
    return nn.QuantLinear(64, 32, rngs=nnx.Rngs(0), **quantizers)


def of_source(name: str, source: str) -> Quantizer:
    return catalog[name].replace(source=ScaleSource(source))


@pytest.mark.parametrize(
    "name",
    [
        "shard_map",
        "straight_through_in_shard_map",
        "layers_in_shard_map",
        "explicit",
        "qarrays",
        pytest.param("explicit_layers", marks=pytest.mark.thorough),
    ],
)
def test_four_devices(name: str) -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    run = subprocess.run(
        [sys.executable, "-m", "tests.jax_backend.test_sharding", name],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert (
        run.stdout.split("\n")[:-1]
        == {
            "shard_map": list(SHARED),
            "straight_through_in_shard_map": ["tensor_clamp", "round_ste"],
            "layers_in_shard_map": ["gradients", "statistics", "a state"],
            "explicit": list(VERBS),
            "qarrays": list(QARRAYS),
            "explicit_layers": list(LAYERS),
        }[name]
    )


def data() -> tuple[Array, Array]:
    """Numbers with special ones that have parameters, and what comes in as gradient."""
    x, g = np.random.default_rng(0).standard_normal((2, 128, 256)).astype(np.float32)
    special = special_values(np.dtype(np.float32))
    x.reshape(-1)[: len(special)] = np.where(np.abs(special) < 4, special, 1.5)
    return x, g


def close(expected: Any, got: Any) -> None:
    """Sums of float32, whose order differs."""
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-3 * (1 + np.abs(a).max())), (a, b)


def compare_shard_map() -> None:
    """Gradients inside and outside, of parameters that all devices share, are those of one device."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    x, g = data()
    for name, q in SHARED.items():
        qparams = core.choose_qparams(q, x)
        zero = None if qparams.zero_point is None else np.asarray(qparams.zero_point, np.float32)
        v = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32) if name == "learned rounding" else None
        width = np.float32(5) if name == "width" else None
        given = qparams._replace(rounding=v, bit_width=width)
        want = core.fake_quantize_vjp(q, x, given, g)
        operands = [x, np.float32(qparams.scale), zero, width, v]
        specs = [P("d"), P(), P(), P(), P("d")]
        moving = tuple(i for i, o in enumerate(operands) if o is not None)

        def of_one(x: Any, s: Any, z: Any, w: Any, v: Any, g: Any, q: Quantizer = q) -> Any:
            return (jax_backend.fake_quantize(q, x, QParams(s, z, w, rounding=v)) * g).sum().reshape(1)

        def inside(*all: Any, f: Any = of_one, moving: Any = moving) -> Any:
            return jax.grad(lambda *a: f(*a)[0], moving)(*all)

        outs = tuple(specs[i] for i in moving)
        sharded = jax.shard_map(of_one, mesh=mesh, in_specs=(*specs, P("d")), out_specs=P("d"))
        within = jax.shard_map(inside, mesh=mesh, in_specs=(*specs, P("d")), out_specs=outs)
        outside = jax.grad(lambda *a, f=sharded: f(*a).sum(), moving)
        for program in (jax.jit(within), jax.jit(outside), outside):
            dx, *others = program(*operands, g)
            assert_same_bits(want.x, dx, call=name, inputs=x)
            found = [d for d in (want.scale, want.zero_point, want.bit_width, want.rounding) if d is not None]
            close(found, others)
        if v is None:
            moves = [None if o is None else np.ones_like(o) for o in operands]
            present = [operands[i] for i in moving], [moves[i] for i in moving]

            def along(*some: Any, operands: Any = operands, moving: Any = moving, f: Any = sharded) -> Any:
                every = list(operands)
                for i, one in zip(moving, some, strict=True):
                    every[i] = one
                return f(*every, g).sum()

            forward = jax.jit(lambda o, m, f=along: jax.jvp(f, tuple(o), tuple(m))[1])(*present)
            reverse = sum(float(np.sum(np.asarray(d, np.float64))) for d in program(*operands, g))
            assert abs(forward - reverse) < 1e-4 * np.abs(g).sum()
        print(name)


def compare_straight_through_in_shard_map() -> None:
    """Bounds that all devices share get the sum of their gradients; `round_ste` lets every gradient pass."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    x, g = data()
    lo, hi = np.float32(-0.5), np.float32(0.75)

    def clamped(x: Any, lo: Any, hi: Any, g: Any) -> Any:
        return jax.grad(lambda x, lo, hi: (straight_through.tensor_clamp(x, lo, hi) * g).sum(), (0, 1, 2))(x, lo, hi)

    program = jax.shard_map(clamped, mesh=mesh, in_specs=(P("d"), P(), P(), P("d")), out_specs=(P("d"), P(), P()))
    dx, d_lo, d_hi = core_rules.tensor_clamp_vjp(x, lo, hi, g)
    found = jax.jit(program)(x, lo, hi, g)
    assert_same_bits(dx, found[0], inputs=x)
    close((d_lo.sum(), d_hi.sum()), found[1:])
    print("tensor_clamp")
    shared = jax.shard_map(
        lambda x, g: jax.grad(lambda x: (straight_through.round_ste(x) * g).sum())(x),
        mesh=mesh,
        in_specs=(P(), P("d")),
        out_specs=P(),
    )
    close(g.reshape(4, 32, 256).sum(0), jax.jit(shared)(x[:32], g))
    print("round_ste")


def compare_layers_in_shard_map() -> None:
    """Data-parallel training: gradients of shared parameters are those of the whole batch; statistics are local."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((8, 64)).astype(np.float32), rng.standard_normal((8, 32)).astype(np.float32)
    fixed = INT8.replace(source="learned", scale_value=0.05)
    for quantizers in ({"input_quant": fixed}, {"weight_quant": "mxfp4_e2m1", "input_quant": fixed}, {}):
        step, parameters, rest = step_of(linear(**quantizers))
        whole = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("d"), P("d")), out_specs=(P("d"), P(), P()))
        want, got = jax.jit(step)(parameters, rest, x, g), jax.jit(whole)(parameters, rest, x, g)
        close(want[1], got[1])
        if quantizers.get("weight_quant") is None and quantizers:
            assert_same_bits(want[0], got[0])
    print("gradients")
    step, parameters, rest = step_of(linear(input_quant=INT8))
    outs = (P("d"), P(), P())
    y = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("d"), P("d")), out_specs=outs))
    parts = [jax.jit(step)(parameters, rest, x[i : i + 2], g[i : i + 2])[0] for i in range(0, 8, 2)]
    assert_same_bits(np.concatenate(parts), y(parameters, rest, x, g)[0])
    print("statistics")
    step, parameters, rest = step_of(linear(input_quant=INT8.replace(source="running_statistic")))
    with pytest.raises(ValueError, match="out_specs"):  # each device has another, and JAX does not choose one
        jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("d"), P("d")), out_specs=outs))(
            parameters, rest, x, g
        )
    print("a state")


def step_of(layer: nnx.Module) -> tuple[Callable[..., Any], Any, Any]:
    """Output, gradients of the parameters and other state of one step; parameters and state, in NumPy."""
    graph, *state = nnx.split(layer, nnx.Param, ...)
    parameters, rest = (jax.tree.map(np.asarray, part) for part in state)

    def step(parameters: Any, rest: Any, x: Any, g: Any) -> Any:
        def output(parameters: Any) -> Any:
            module = nnx.merge(graph, parameters, jax.tree.map(jnp.asarray, rest))
            y = module(x)
            return y, nnx.state(module, nnx.Not(nnx.Param))

        y, pull, after = jax.vjp(output, parameters, has_aux=True)
        lies = jax.typeof(y).sharding
        g = jax.sharding.reshard(g, lies) if AxisType.Explicit in lies.mesh.axis_types else g
        return y, pull(g)[0], after

    return step, parameters, rest


def compare_explicit() -> None:
    """Every verb, with x split along both axes of the mesh, in turn one way or the other; the first one both ways."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    x, g = data()
    for turn, name in enumerate(VERBS):
        q = catalog[name]
        qparams = core.choose_qparams(q, x)
        codes, fake = core.quantize(q, x, qparams), core.fake_quantize(q, x, qparams)
        d = core.fake_quantize_vjp(q, x, qparams, g)

        def everything(x: Any, c: Any, g: Any, s: Any, q: Quantizer = q, zero: Any = qparams.zero_point) -> Any:
            used = QParams(s, zero)
            y, pull = jax.vjp(lambda x, s: jax_backend.fake_quantize(q, x, QParams(s, zero)), x, s)
            moved = jax.jvp(lambda x: jax_backend.fake_quantize(q, x, used), (x,), (g,))[1]
            direct = jax_backend.fake_quantize_vjp(q, x, used, g).x
            chosen = tuple(jax_backend.choose_qparams(q, x)[:2])
            values = jax_backend.dequantize(q, c, used), jax_backend.fake_quantize(q, x)
            return chosen, jax_backend.quantize(q, x, used), y, *values, direct, moved, *pull(g)

        for spec in SPECS if name == VERBS[0] else (SPECS[turn % 2],):
            x_here, codes_here, g_here = (jax.device_put(a, NamedSharding(mesh, spec)) for a in (x, codes, g))
            for program in (everything, jax.jit(everything)) if name == VERBS[0] else (jax.jit(everything),):
                *bits, d_scale = program(x_here, codes_here, g_here, qparams.scale)
                wants = (tuple(qparams[:2]), codes, fake, core.dequantize(q, codes, qparams), fake, d.x, d.x, d.x)
                for i, (want, got) in enumerate(zip(wants, bits, strict=True)):
                    assert_same_bits(want, got, call=f"{name}, {spec}, result {i}")
                close(d.scale, d_scale)
                assert jax.typeof(bits[2]).sharding.spec == jax.typeof(x_here).sharding.spec
        print(name)


def compare_explicit_layers() -> None:
    """A step of training with rows, inputs and outputs split, each layer two ways of the four in turn, the first all.

    An error that says what to do where rows and outputs could split.
    """
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    rng = np.random.default_rng(0)
    ways = (
        ("a", None, None, "b"),
        (None, "a", "a", None),
        ("a", "b", "a", None),
        ("a", None, None, "a"),
    )
    for turn, (name, make) in enumerate(LAYERS.items()):
        axes = (None, None) if name == "conv" else ()
        shape = (8, *(6 for _ in axes))
        x, g = (rng.standard_normal((*shape, n)).astype(np.float32) for n in (64, 32))
        step, parameters, rest = step_of(make())
        want = jax.jit(step)(parameters, rest, x, g)
        for rows, inputs, contracted, outputs in ways[turn % 2 :: 2] if turn else ways:
            kernel = NamedSharding(mesh, P(*axes, contracted, outputs))
            whole = NamedSharding(mesh, P())
            state = [
                jax.tree.map(lambda a, k=kernel, w=whole: jax.device_put(a, k if a.shape[-2:] == (64, 32) else w), part)
                for part in (parameters, rest)
            ]
            here = jax.device_put(x, NamedSharding(mesh, P(rows, *axes, inputs))), jax.device_put(g, whole)
            with jax.set_mesh(mesh):
                if rows is not None and rows == outputs:
                    with pytest.raises(ValueError, match=r"along 'a' of the mesh.*jax\.sharding\.reshard"):
                        jax.jit(step)(*state, *here)
                    continue
                got = jax.jit(step)(*state, *here)
            if name in FLOATS:
                close(want[0], got[0])
            else:
                assert_same_bits(want[0], got[0], call=f"{name}, {rows}, {inputs}, {outputs}")
            close(want[1], got[1])
            for before, after in zip(jax.tree.leaves(want[2]), jax.tree.leaves(got[2]), strict=True):
                assert_same_bits(before, after, call=f"{name}: state")
        print(name)


def compare_qarrays() -> None:
    """Weights of codes lie with their scales, put there or asked for inside a program, whose bits stay."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    w, x = (np.random.default_rng(i).standard_normal((n, 64)).astype(np.float32) for i, n in enumerate((32, 8)))
    for name, of_scales in QARRAYS.items():
        held = quant_array(catalog[name], jnp.asarray(w), None, catalog["int8_per_token"])
        codes_at = NamedSharding(mesh, P("a", "b"))
        wanted = shardings(held, codes_at)
        put = jax.device_put(held, wanted)
        asked = jax.jit(lambda v, wanted=wanted: jax.lax.with_sharding_constraint(v, wanted))(held)
        for there in (put, asked):
            assert there.codes.sharding.is_equivalent_to(codes_at, 2)
            assert there.scale.sharding.is_equivalent_to(NamedSharding(mesh, of_scales), there.scale.ndim)
            assert_same_bits(held.dequantize(), jax.jit(lambda v: v.dequantize())(there))
        turned = shardings(held.T, NamedSharding(mesh, P("b", "a")))
        assert jax.tree.leaves(turned) == jax.tree.leaves(wanted)
        if name == "int8_per_channel":
            assert_same_bits(jax.jit(linear_of_codes)(x, held), jax.jit(linear_of_codes)(x, put))
        print(name)
    refused = [
        (lambda: shardings(held, P("a")), TypeError, "`sharding` must be a NamedSharding"),
        (lambda: shardings(held, NamedSharding(mesh, P(None, None, "a"))), ValueError, "an entry for each of 2 axes"),
        (
            lambda: shardings(held[:3], NamedSharding(mesh, P("a"))),
            ValueError,
            "must divide axis 0 of codes, of 3 elem",
        ),
    ]
    for call, error, words in refused:
        with pytest.raises(error, match=words):
            call()


if __name__ == "__main__":
    globals()[f"compare_{sys.argv[1]}"]()
