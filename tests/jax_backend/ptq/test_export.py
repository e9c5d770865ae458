"""StableHLO programs of quantized models: the bits of the model, from a file, in a process that knows nothing else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.typing import NDArray

from samebits import core
from samebits.core import configs as of
from samebits.jax_backend.ptq import export_stablehlo, load_stablehlo, quant_array, quantize_
from samebits.jax_backend.ptq.qarray import linear
from samebits.proofs.inputs.compare import assert_same_bits

from ...ptq_cases import rows, weight

BIAS = np.linspace(-1, 1, 24, dtype=np.float32)


def by_definition(config: Any, x: NDArray[Any]) -> NDArray[Any]:
    given = core.choose_qparams(config.act_quant, x), core.choose_qparams(config.weight, weight())
    found: NDArray[Any] = core.linear(config.act_quant, x, given[0], config.weight, weight(), given[1], BIAS)
    return found


def test_a_model_in_a_file_has_the_bits_of_core_without_the_model(tmp_path: Path) -> None:
    """At lengths of the batch that it was not exported with, in a process that imports jax alone."""
    config = of.int8_dynamic_activation_int8_weight()
    layer = nnx.Linear(64, 24, rngs=nnx.Rngs(0))
    layer.kernel, layer.bias = nnx.Param(jnp.asarray(weight().T)), nnx.Param(jnp.asarray(BIAS))
    model = nnx.Sequential(layer)
    quantize_(model, config)
    data = export_stablehlo(model, jnp.zeros((2, 64)), path=tmp_path / "m.stablehlo", batch=True)
    assert data == (tmp_path / "m.stablehlo").read_bytes()
    x = rows(7)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import jax, numpy, sys; from jax import export; data = bytearray(open('m.stablehlo', 'rb').read());"
        "numpy.save('y.npy', export.deserialize(data).call(numpy.load('x.npy'))); assert 'samebits' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert_same_bits(by_definition(config, x), np.load(tmp_path / "y.npy"))
    loaded = load_stablehlo(tmp_path / "m.stablehlo")
    assert_same_bits(by_definition(config, x[:3]), loaded.call(x[:3]))
    assert "stablehlo.dot_general" in loaded.mlir_module()


def test_weights_of_codes_as_arguments() -> None:
    """The weight is an argument, so that one program serves every weight that is quantized alike."""
    config = of.DynamicActivation("int8_affine_per_token", "uint8_affine_per_channel")
    held, x = quant_array(config.weight, jnp.asarray(weight()), None, config.act_quant), rows(4)
    program = load_stablehlo(export_stablehlo(linear, x, held, BIAS))
    assert_same_bits(by_definition(config, x), program.call(x, held, BIAS))
    other = quant_array(config.weight, jnp.asarray(-weight()), None, config.act_quant)
    assert_same_bits(jax.jit(linear)(x, other, BIAS), program.call(x, other, BIAS))
    unlike = quant_array(of.int8_weight_only().weight, jnp.asarray(weight()))
    with pytest.raises(ValueError, match=r"PyTree|structure"):
        program.call(x, unlike, BIAS)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"`model` must be an nnx\.Module or a function, got 3"):
        export_stablehlo(3, jnp.zeros(2))
    with pytest.raises(TypeError, match="`args` must be pytrees of arrays, got 'x'"):
        export_stablehlo(lambda x: x, "x")
    with pytest.raises(ValueError, match="`batch` must be False where no argument is one array with axes"):
        export_stablehlo(lambda x: x, jnp.zeros(()), batch=True)
    with pytest.raises(ValueError, match="`batch` must be False: the program depends on the length of the batch"):
        export_stablehlo(lambda x: x if x.shape[0] > 3 else x + 1, jnp.zeros(2), path=tmp_path / "a", batch=True)
    assert not (tmp_path / "a").exists()
    data = export_stablehlo(lambda x: x + 1, jnp.zeros((2, 3)), batch=True)
    for bad in (b"", b"abc", data[:100], data[:-40]):
        with pytest.raises(ValueError, match="`program` must be one of export_stablehlo"):
            load_stablehlo(bad)
    with pytest.raises(ValueError, match=r"Shape mismatch for args\[0\].shape\[1\]"):
        load_stablehlo(data).call(jnp.zeros((2, 4)))
    with pytest.raises(FileNotFoundError):
        load_stablehlo(tmp_path / "none")
