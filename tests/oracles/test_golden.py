"""torch's native quantized tensors, kept: they are to be removed from torch (pytorch#184982), and their bits remain.

`tests/data/torch_native.npz` holds inputs, codes, values and chosen parameters as torch 2.13.0 gave them on x86-64.
The specification is compared with the file always, the file with torch as long as torch has the operators. To write it
anew: ``python -m tests.oracles.test_golden``.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from samebits.core import QParams, Quantizer, catalog, choose_qparams, dequantize, dialects, quantize
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.modes.arrays import to_numpy, to_torch

from ..exact import DTYPES
from ..oracle_inputs import blocks
from .test_torch_and_onnxruntime import channels, inputs

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]
Arrays = dict[str, NDArray[Any]]
FILE = Path(__file__).parents[1] / "data" / "torch_native.npz"
OPERATORS = ("quantize_per_tensor", "quantize_per_channel", "quantize_per_tensor_dynamic")
NATIVE = pytest.mark.skipif(not all(hasattr(torch, name) for name in OPERATORS), reason="torch has them no longer")
FLOAT32 = DTYPES["float32"]
TENSORS = [("int8", 0.1, 0), ("uint8", 1 / 3, 0), ("uint8", 0.00372, 7), ("uint8", 1.7, 255), ("uint8", 0.1, 128)]
KINDS = {"int8": "int8_per_tensor", "uint8": "uint8_affine_per_tensor"}
SIGNED_AFFINE = catalog["uint8_affine_per_tensor"].replace(signed=True)
DYNAMIC = {"uint8": catalog["uint8_affine_per_tensor"], "int8": SIGNED_AFFINE}


def data() -> Arrays:
    """What is asked, by name: one array per tensor and channel case, one matrix whose rows choose parameters."""
    found = {}
    for kind, scale, zero in TENSORS:
        q = catalog[KINDS[kind]]
        found[f"{kind}_{scale:.3g}_{zero}"] = inputs(q, np.float32(scale), zero, FLOAT32, random=150)
    for kind in KINDS:
        x = channels(catalog[f"{KINDS[kind][:-10]}per_channel"], FLOAT32)[1][:, ::7].copy()
        x[:, -3:] = np.nan, np.inf, -np.inf
        found[f"channels_{kind}"] = x
    rows = np.concatenate([x[:2, :6] for x in blocks(FLOAT32, powers=(-38, -9, -5, -4, -2, 0, 3))])
    found["rows"] = rows
    return found


def record(asked: Arrays) -> Arrays:
    """What torch answers."""
    answers: Arrays = {}
    for kind, scale, zero in TENSORS:
        name = f"{kind}_{scale:.3g}_{zero}"
        made = torch.quantize_per_tensor(
            to_torch(asked[name]), float(np.float32(scale)), zero, getattr(torch, "q" + kind)
        )
        answers |= {f"{name}/codes": to_numpy(made.int_repr()), f"{name}/values": to_numpy(made.dequantize())}
    for kind in KINDS:
        name, qparams = f"channels_{kind}", channel_parameters(kind)
        zeros = np.zeros(4) if qparams.zero_point is None else qparams.zero_point.reshape(-1)
        parts = torch.from_numpy(qparams.scale.reshape(-1)), torch.from_numpy(zeros.astype(np.int64))
        made = torch.quantize_per_channel(to_torch(asked[name]), *parts, 0, getattr(torch, "q" + kind))
        answers |= {f"{name}/codes": to_numpy(made.int_repr()), f"{name}/values": to_numpy(made.dequantize())}
    for kind in DYNAMIC:
        made = [
            torch.quantize_per_tensor_dynamic(to_torch(x), getattr(torch, "q" + kind), False) for x in asked["rows"]
        ]
        answers |= {
            f"rows_{kind}/scales": np.array([v.q_scale() for v in made]),
            f"rows_{kind}/zero_points": np.array([v.q_zero_point() for v in made], np.int32),
            f"rows_{kind}/codes": np.stack([to_numpy(v.int_repr()) for v in made]),
            f"rows_{kind}/values": np.stack([to_numpy(v.dequantize()) for v in made]),
        }
    return answers


def channel_parameters(kind: str) -> QParams:
    return channels(catalog[f"{KINDS[kind][:-10]}per_channel"], FLOAT32)[0]


def write() -> None:
    """The file, anew, from the installed torch."""
    asked = data()
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **asked, **record(asked))


@pytest.fixture(scope="module")
def golden() -> Arrays:
    with np.load(FILE) as found:
        return dict(found)


@NATIVE
def test_torch_still_gives_the_golden_vectors(golden: Arrays) -> None:
    answers = record({name: x for name, x in golden.items() if "/" not in name})
    assert set(answers) == {name for name in golden if "/" in name}
    for name, answer in answers.items():
        assert_same_bits(golden[name], answer, call=name)


def same(q: Quantizer, golden: Arrays, name: str, x: NDArray[Any], qparams: QParams, codes: NDArray[Any]) -> None:
    assert_same_bits(quantize(q, x, qparams), codes, call=name, inputs=x)
    assert_same_bits(dequantize(q, codes, qparams), golden[f"{name}/values"], call=name, inputs=codes)


@pytest.mark.parametrize(("kind", "scale", "zero"), TENSORS)
def test_golden_oracle_of_tensors(kind: str, scale: float, zero: int, golden: Arrays) -> None:
    q, name = catalog[KINDS[kind]].replace(**dialects["torch_quantize"]), f"{kind}_{scale:.3g}_{zero}"
    qparams = QParams(np.float32(scale), np.int32(zero) if q.affine else None)
    assert golden[name].size > 500
    same(q, golden, name, golden[name], qparams, golden[f"{name}/codes"])


@pytest.mark.parametrize("kind", KINDS)
def test_golden_oracle_of_channels(kind: str, golden: Arrays) -> None:
    q = catalog[f"{KINDS[kind][:-10]}per_channel"].replace(**dialects["torch_quantize_per_channel"])
    name = f"channels_{kind}"
    same(q, golden, name, golden[name], channel_parameters(kind), golden[f"{name}/codes"])


@pytest.mark.parametrize("kind", DYNAMIC)
def test_golden_oracle_of_chosen_parameters(kind: str, golden: Arrays) -> None:
    q, name = DYNAMIC[kind].replace(**dialects["torch_dynamic"]), f"rows_{kind}"
    for i, x in enumerate(golden["rows"]):
        qparams = choose_qparams(q, x)
        assert qparams.scale == np.float32(golden[f"{name}/scales"][i])
        assert qparams.zero_point == golden[f"{name}/zero_points"][i]
        assert_same_bits(quantize(q, x, qparams), golden[f"{name}/codes"][i], inputs=x)
        assert_same_bits(dequantize(q, golden[f"{name}/codes"][i], qparams), golden[f"{name}/values"][i], inputs=x)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write()
