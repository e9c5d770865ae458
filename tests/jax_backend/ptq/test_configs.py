"""quantize_ over pytrees and nnx models, and files between the frameworks, beside torch."""

import copy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from samebits.core import configs as of
from samebits.core.configs import ModuleConfigs
from samebits.jax_backend import interop, ptq
from samebits.jax_backend.nn import QuantLinear
from samebits.jax_backend.ptq import (
    QArray,
    QuantizedLinear,
    load_quantized,
    model_size,
    quantize_,
    read_quantized,
    save_quantized,
)
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.torch_frontend import ptq as in_torch

from ...ptq_cases import rows, weight

INT8, DYNAMIC = of.int8_weight_only(), of.int8_dynamic_activation_int8_weight()
MIXED = ModuleConfigs({"0": DYNAMIC, "re:[2]": of.int4_weight_only(16, "integer"), "4": None})
EXACT = ModuleConfigs({"_default": DYNAMIC})


def torch_model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    linear = torch.nn.Linear
    made = torch.nn.Sequential(linear(64, 64), torch.nn.ReLU(), linear(64, 64), torch.nn.ReLU(), linear(64, 64))
    return made.eval().requires_grad_(False)


def model() -> Any:
    layers = [nnx.Linear(a, b, rngs=nnx.Rngs(0)) for a, b in ((64, 64), (64, 64), (64, 64))]
    made = nnx.Sequential(layers[0], nnx.relu, layers[1], nnx.relu, layers[2])
    interop.load_state_dict(made, {name: t.numpy() for name, t in torch_model().state_dict().items()})
    return made


def tree() -> dict[str, Any]:
    w = jnp.asarray(weight())
    return {"a": {"kernel": w.T, "bias": jnp.zeros(24)}, "b": [{"weight": w}, {"w": w.T, "table": w}]}


def test_pytrees() -> None:
    float_tree = tree()
    new = quantize_(float_tree, DYNAMIC)
    a, b, c = new["a"]["kernel"], new["b"][0]["weight"], new["b"][1]["w"]
    assert (a.shape, b.shape, c.shape) == ((64, 24), (24, 64), (64, 24))
    for part in (a, c):
        assert_same_bits(b.codes, part.codes)
        assert_same_bits(b.scale, part.scale)
    assert isinstance(float_tree["a"]["kernel"], jax.Array)
    assert isinstance(new["b"][1]["table"], jax.Array)
    x = jnp.asarray(rows())
    y = jax.jit(lambda tree, x: (x @ tree["a"]["kernel"], x @ tree["b"][0]["weight"].T))(new, x)
    assert_same_bits(y[0], y[1])
    assert model_size(float_tree) == 4 * (4 * 1536 + 24)
    assert model_size(new) == 3 * (1536 + 4 * 24) + 4 * (1536 + 24)
    some = quantize_(float_tree, ModuleConfigs({"b.1.table": INT8}), lambda name, leaf: name.startswith("b.1"))
    assert isinstance(some["b"][1]["table"], QArray)
    assert isinstance(some["b"][1]["w"], jax.Array)


def test_models_beside_torch() -> None:
    """Codes, scales, sizes, outputs over codes: the same bits, also in a compiled program; and the same files."""
    x = rows()
    mine, theirs = model(), torch_model()
    assert quantize_(mine, EXACT) is mine
    in_torch.quantize_(theirs, EXACT)
    for i in (0, 2, 4):
        layer, held = mine.layers[i], theirs[i].weight
        assert type(layer) is QuantizedLinear
        for part in ("codes", "scale"):
            assert_same_bits(getattr(held, part), getattr(layer.kernel.get_value(), part))
    want = theirs(torch.from_numpy(x))
    assert_same_bits(want, nnx.jit(lambda model, x: model(x))(mine, x))
    assert_same_bits(want, nnx.merge(*nnx.split(mine))(x))
    assert model_size(mine) == in_torch.model_size(theirs)
    assert len(jax.tree.leaves(nnx.state(mine, nnx.Param))) == 3, "biases: codes are no parameters"
    weights = interop.state_dict(mine)
    assert_same_bits(theirs[0].weight.dequantize(), weights["0.weight"])


@pytest.mark.parametrize("configs", [EXACT, MIXED], ids=["exact", "mixed"])
def test_files_between_the_frameworks(configs: ModuleConfigs, tmp_path: Path) -> None:
    mine, theirs = model(), torch_model()
    quantize_(mine, configs)
    in_torch.quantize_(theirs, configs)
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_quantized(mine, a)
    in_torch.save_quantized(theirs, b)
    assert a.read_bytes() == b.read_bytes()
    x = rows()
    y, y_torch = mine(x), theirs(torch.from_numpy(x))
    for start in (model(), quantize_(model(), INT8)):
        assert_same_bits(y, load_quantized(start, b)(x))
        assert [type(layer) for layer in start.layers] == [type(layer) for layer in mine.layers]
    for other in (torch_model(), torch_model()):
        in_torch.quantize_(other, INT8)
        in_torch.load_quantized(other, a)
        assert_same_bits(y_torch, other(torch.from_numpy(x)))
    held, read = in_torch.read_quantized(a), read_quantized(b)
    assert held.keys() == read.keys() == theirs.state_dict().keys()
    for name, value in read.items():
        assert isinstance(value, QArray) == isinstance(held[name], in_torch.QuantWeight)


def test_pytrees_in_files(tmp_path: Path) -> None:
    file, new = tmp_path / "tree.safetensors", quantize_(tree(), of.int4_weight_only(16))
    save_quantized(new, file)
    names = ["a.bias", "a.weight.codes", "b.0.weight.scale", "b.1.table", "b.1.w.zero_point"]
    assert set(names) <= load_file(file).keys()
    for start in (tree(), new):
        again = load_quantized(start, file)
        assert jax.tree.structure(again) == jax.tree.structure(new)
        for one, other in zip(jax.tree.leaves(new), jax.tree.leaves(again), strict=True):
            assert_same_bits(one, other)
    with pytest.raises(ValueError, match=r"missing c; unexpected a\.bias"):
        load_quantized({"c": jnp.zeros(3)}, file)
    with pytest.raises(TypeError, match="`model` must hold arrays alone"):
        save_quantized({"a": "text"}, file)


def test_tensors_in_files(tmp_path: Path) -> None:
    """By name, without a model, in both frameworks: the same bytes, also of a tensor without axes."""
    w, one = weight(), np.float32(0.5)
    q = of.int4_weight_only(16).weight
    mine: dict[str, Any] = {"a.scale": jnp.asarray(one), "b": ptq.quant_array(q, jnp.asarray(w), None, None, "packed")}
    theirs = {"a.scale": torch.tensor(one), "b": in_torch.quant_weight(q, torch.tensor(w), None, None, "packed")}
    a, b = tmp_path / "a", tmp_path / "b"
    ptq.write_quantized(mine, a)
    in_torch.write_quantized(theirs, b)
    assert a.read_bytes() == b.read_bytes()
    read = read_quantized(a)
    assert read["a.scale"].shape == ()
    assert_same_bits(read["b"].codes, mine["b"].codes)
    save_quantized({"a": jnp.asarray(one)}, a)
    assert load_quantized({"a": jnp.zeros(())}, a)["a"] == one
    for room, turned in ((ptq, mine["b"].T), (in_torch, theirs["b"].t())):
        with pytest.raises(ValueError, match="`b` must not be transposed"):
            room.write_quantized({"b": turned}, a)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    """A file of something else, another version, damaged codes, another model: named, and nothing changes."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    saved = quantize_(model(), INT8)
    save_quantized(saved, good)
    tensors = load_file(good)
    metadata = _metadata(good)
    small = {**tensors, "0.weight.codes": tensors["0.weight.codes"][:40]}
    zero = {**tensors, "0.weight.scale": 0 * tensors["0.weight.scale"]}
    cases: list[tuple[Any, Any, str]] = [
        (tensors, {}, "a file that save_quantized wrote"),
        (tensors, {"samebits": metadata["samebits"].replace('"version": 1', '"version": 7')}, "must have version 1"),
        ({k: v for k, v in tensors.items() if k != "0.weight.scale"}, metadata, r"without 0\.weight\.scale"),
        ({k: v for k, v in tensors.items() if k != "0.bias"}, metadata, r"missing 0\.bias"),
        ({**tensors, "extra": tensors["0.bias"]}, metadata, "unexpected extra"),
        (small, metadata, r"`0\.weight` of the file: `qparams.scale` must have shape"),
        (zero, metadata, r"`0\.weight` of the file: .*scale"),
        ({**tensors, "0.bias": tensors["0.bias"][:40]}, metadata, r"`0\.bias` must have shape \(64,\)"),
    ]
    for wrong, described, words in cases:
        save_file(wrong, bad, described)
        mine, theirs = model(), torch_model()
        before = nnx.state(mine)
        with pytest.raises(ValueError, match=words):
            load_quantized(mine, bad)
        with pytest.raises(ValueError, match=words):
            in_torch.load_quantized(theirs, bad)
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), before, nnx.state(mine)))
        want = torch_model().state_dict()
        assert all(torch.equal(t, want[name]) for name, t in theirs.state_dict().items())
    bad.write_bytes(b"not a file")
    for load, target in ((load_quantized, model()), (in_torch.load_quantized, torch_model())):
        with pytest.raises(ValueError, match="`path` must be a safetensors file"):
            load(target, bad)
        with pytest.raises(FileNotFoundError):
            load(target, tmp_path / "none")
    half = torch_model().bfloat16()
    with pytest.raises(TypeError, match=r"must have dtype bfloat16, got float32 in the file"):
        in_torch.load_quantized(half, good)


def _metadata(path: Path) -> Any:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("start", "config", "takes", "words"),
    [
        (tree, INT8, lambda name, leaf: False, "no layer to quantize"),
        (tree, INT8, lambda name, leaf: name == "a.bias", "layer 'a.bias': a weight must have at least two axes"),
        (tree, of.int4_weight_only(24), None, "'a.kernel': `in_features` must be a multiple .* 24, got 64"),
        (tree, ModuleConfigs({"c": INT8}), None, "'c' of `configs` fits no layer; layers are a.kernel"),
        (lambda: quantize_(tree(), INT8), INT8, None, "no layer to quantize"),
        (lambda: quantize_(tree(), INT8), INT8, lambda name, leaf: True, "must be an array of floats"),
        (model, of.int4_weight_only(48), None, "layer '0': `in_features` must be a multiple .* 48, got 64"),
        (model, INT8, lambda name, part: name == "", "layer '' .* must be an nnx.Linear that is not quantized yet"),
        (lambda: quantize_(model(), INT8), INT8, None, "no layer to quantize"),
    ],
)
def test_what_is_refused(start: Any, config: Any, takes: Any, words: str) -> None:
    given = start()
    before = copy.deepcopy(given) if isinstance(given, nnx.Module) else None
    with pytest.raises(ValueError, match=words):
        quantize_(given, config, takes)
    if before is not None:
        assert [type(part) for _, part in nnx.iter_modules(given)] == [
            type(part) for _, part in nnx.iter_modules(before)
        ]


def test_layers_of_other_kinds_stay() -> None:
    class Two(nnx.Module):
        def __init__(self) -> None:
            self.float = nnx.Linear(64, 8, use_bias=False, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
            self.ours = QuantLinear(64, 8, rngs=nnx.Rngs(0))

    two = quantize_(Two(), DYNAMIC)
    assert (type(two.float), type(two.ours)) == (QuantizedLinear, QuantLinear)
    y = two.float(jnp.asarray(rows()))
    assert (y.shape, y.dtype) == ((7, 8), jnp.bfloat16)
    with pytest.raises(TypeError, match="`config` must be"):
        quantize_(tree(), "int8")
    broken = model()
    broken.layers[0].kernel[...] = broken.layers[0].kernel[...].at[0, 0].set(np.nan)
    with pytest.raises(ValueError, match=r"layer '0': .*finite"):
        quantize_(broken, INT8)
