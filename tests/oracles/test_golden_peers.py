"""Libraries that the environment of the tests does not hold: what they answered, kept, beside the specification.

`tests/data/peers.json` holds inputs and answers as hexadecimal digits of their bytes, and the versions that gave them,
on x86-64. The questions are knife edges and special values, thinned; when the file is written, all of those of 100
scales are asked, and must agree. What the libraries compute otherwise is left out by `asked`, with the cause.

To write it anew, with what is installed: ``python -m tests.oracles.test_golden_peers``; the rest of the file stays.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import (
    PerGroup,
    PerTensor,
    QParams,
    Quantizer,
    catalog,
    choose_qparams,
    dialects,
    fake_quantize,
    quantize,
)
from samebits.proofs.conformance.targets import Target, resolve
from samebits.proofs.inputs.compare import assert_same_bits
from samebits.proofs.inputs.knife_edges import knife_edges
from samebits.proofs.inputs.ranges import knife_edge_ranges
from samebits.proofs.modes.execution import implementation

from ..exact import DTYPES
from ..oracle_inputs import blocks

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
Array = NDArray[Any]
FILE = Path(__file__).parents[1] / "data" / "peers.json"
KEPT = json.loads(FILE.read_text()) if FILE.exists() else {}
EXTREME = (2.0**-126, 2.0**127)
SIGNED_AFFINE = "int8_affine_per_tensor"


@dataclass(frozen=True)
class Case:
    """A ready target, the dialect that it is, and the catalog entry (which may be narrow)."""

    target: str
    dialect: str
    entry: str
    narrow: bool = False

    @property
    def quantizer(self) -> Quantizer:
        q = catalog[self.entry].replace(granularity=PerTensor())
        return (q.replace(narrow=True) if self.narrow else q).replace(**dialects[self.dialect])

    @property
    def library(self) -> str:
        known = self.target.partition(".")[0]
        return "ai_edge_litert" if known == "litert" else known


GIVEN = [
    Case("compressed_tensors.quantize", "compressed_tensors", SIGNED_AFFINE),
    Case("compressed_tensors.quantize.int4", "compressed_tensors", "int4_per_channel"),
    Case("compressed_tensors.quantize.float16", "compressed_tensors", "int8_per_tensor"),
    Case("compressed_tensors.fake_quantize", "compressed_tensors", "int8_per_tensor"),
    Case("compressed_tensors.fake_quantize.bfloat16", "compressed_tensors", "int8_per_tensor"),
    Case("compressed_tensors.fake_quantize.float8", "compressed_tensors", "float8_e4m3fn_per_tensor"),
    Case("compressed_tensors.fake_quantize.float4", "compressed_tensors", "float4_e2m1_per_tensor"),
    Case("litert.QUANTIZE", "litert", SIGNED_AFFINE),
    Case("litert.QUANTIZE.uint8", "litert", "uint8_affine_per_tensor"),
    Case("litert.QUANTIZE.reference", "litert_reference", SIGNED_AFFINE),
    Case("litert.QUANTIZE.uint8.reference", "litert_reference", "uint8_affine_per_tensor"),
    Case("ai_edge_quantizer.uniform_quantize", "ai_edge_quantizer", SIGNED_AFFINE),
    Case("ai_edge_quantizer.uniform_quantize.symmetric", "ai_edge_quantizer", "int8_per_tensor", narrow=True),
    Case("nncf.do_integer_quantization", "ai_edge_quantizer", "uint8_affine_per_tensor"),
    Case("qonnx.int_quant", "brevitas", SIGNED_AFFINE),
]
CHOSEN = [
    Case("compressed_tensors.calculate_qparams", "compressed_tensors", "int8_per_tensor"),
    Case("compressed_tensors.calculate_qparams.affine", "compressed_tensors", SIGNED_AFFINE),
    Case("ai_edge_quantizer.uniform_quantize.chosen", "ai_edge_quantizer", "int8_per_tensor", narrow=True),
    Case("ai_edge_quantizer.uniform_quantize.affine.chosen", "ai_edge_quantizer", SIGNED_AFFINE),
]
# Of blocks with a scale of their own: what each target gives, as a quantizer of ours
BLOCKS = {
    "compressed_tensors.mxfp4": catalog["mxfp4_e2m1_even"].replace(zero_point_order="before_rounding"),
    "compressed_tensors.mxfp6": catalog["mxfp6_e2m3"].replace(
        restriction="power_of_two_even", zero_point_order="before_rounding"
    ),
    "bitsandbytes.quantize_4bit.nf4": catalog["nf4_per_group64"].replace(division="reciprocal"),
    "mlx.quantize.mxfp8": catalog["mxfp8_e4m3_rceil"],
}


def parameters(q: Quantizer, scale: np.float32, zero: int, dtype: np.dtype[Any]) -> QParams:
    """Those of a question: the scale is a number of the dtype."""
    own = np.asarray(scale).astype(dtype).astype(np.float32)
    return QParams(own, np.asarray(zero, np.int32) if q.affine else None)


def asked(case: Case, qparams: QParams, dtype: np.dtype[Any]) -> Array:
    """Knife edges and special values, without what a library computes otherwise.

    The reference kernel of LiteRT casts to int32 before it clamps: what leaves int32 wraps around, and so does NaN with
    a negative zero point.
    compressed-tensors' codes of NaN are 0, where the dialect keeps NaN and refuses such codes.
    """
    x = knife_edges(case.quantizer, qparams.scale, qparams.zero_point, dtype)
    if case.dialect == "litert_reference":
        negative = qparams.zero_point is not None and int(qparams.zero_point) < 0
        return x[(np.abs(x.astype(np.float64)) < 2.0**30 * float(qparams.scale)) | (np.isnan(x) & (not negative))]
    return x[~np.isnan(x)] if ".quantize" in case.target and case.dialect == "compressed_tensors" else x


def answer(case: Case, x: Array, qparams: QParams, dtype: str) -> Array:
    """What the specification gives, as the target does: codes or values."""
    codes = resolved(case).kind == "codes" if find_spec(case.library) else KEPT["given"][case.target]["codes"]
    return (quantize if codes else fake_quantize)(case.quantizer, x, qparams)


def resolved(case: Case) -> Target:
    return resolve(case.target)


def questions(case: Case, dtype: np.dtype[Any], count: int) -> Iterator[tuple[Array, QParams]]:
    """For each scale what is asked, always the same; of float32 the smallest, and one with a subnormal inverse."""
    rng, lo, hi = np.random.default_rng(0), case.quantizer.format.lo, case.quantizer.format.hi
    least = -4 if dtype == DTYPES["float16"] else -9
    ends = np.array(EXTREME if dtype == DTYPES["float32"] else (), np.float32)
    for scale in np.concatenate([ends, np.exp(rng.uniform(least, 5, count)).astype(np.float32)]):
        zero = int(rng.integers(lo, hi + 1)) if case.quantizer.affine else 0
        qparams = parameters(case.quantizer, scale, zero, dtype)
        yield asked(case, qparams, dtype), qparams


def record_given(case: Case) -> dict[str, Any]:
    """Asks all knife edges of 100 scales, which must agree; keeps some of the first."""
    target = resolved(case)
    dtype, kept, total = DTYPES[target.dtype], [], 0
    for i, (x, qparams) in enumerate(questions(case, dtype, 100)):
        theirs = np.asarray(target.function(x, qparams))
        assert_same_bits(theirs, answer(case, x, qparams, target.dtype), call=f"{case} {qparams}", inputs=x)
        total += x.size
        if i < 5:
            at = np.unique(np.linspace(0, x.size - 1, 240).astype(int))
            kept.append(
                {
                    "scale": np.asarray(qparams.scale).tobytes().hex(),
                    "zero_point": 0 if qparams.zero_point is None else int(qparams.zero_point),
                    "x": x[at].tobytes().hex(),
                    "answers": theirs[at].tobytes().hex(),
                }
            )
    print(f"{case.target}: 0 of {total:,} differ")
    return {"dtype": target.dtype, "codes": target.kind == "codes", "blocks": kept}


def rows(q: Quantizer) -> Array:
    """Blocks of two numbers, float32, whose ranges parameters are decided at."""
    dtype = DTYPES["float32"]
    ends = [np.stack([x.min(-1), x.max(-1)], -1) for x in blocks(dtype)]
    found = np.concatenate([knife_edge_ranges(q, dtype, 60), *(e[:2] for e in ends)])
    return np.asarray(found[(np.abs(found) < 1e38).all(1)])


def record_chosen(case: Case) -> dict[str, Any]:
    """Asks for the parameters of every row, which must be ours."""
    q, target, scales, zeros = case.quantizer, resolved(case), [], []
    for x in rows(q):
        _, theirs = target.function(x, None)
        scales.append(np.asarray(theirs.scale))
        zeros.append(0 if theirs.zero_point is None else int(theirs.zero_point))
        same_parameters(q, x, scales[-1], zeros[-1])
    print(f"{case.target}: 0 of {len(scales)} differ")
    return {"x": rows(q).tobytes().hex(), "scales": np.stack(scales).tobytes().hex(), "zero_points": zeros}


def size_of(q: Quantizer) -> int:
    assert isinstance(q.granularity, PerGroup)
    return q.granularity.size


def of_blocks(q: Quantizer, count: int) -> Array:
    """Float32 numbers, one row of so many blocks: those of some magnitude, half of them knife edges at the scale."""
    rng, size = np.random.default_rng(0), size_of(q)
    x = (rng.standard_normal((count, size)) * 2.0 ** rng.integers(-20, 20, (count, 1))).astype(np.float32)
    for row, scale in zip(x, choose_qparams(q, x).scale.reshape(-1), strict=True):
        edges = knife_edges(q.replace(granularity=PerTensor()), scale, None, row.dtype)
        edges = edges[np.abs(edges) < np.abs(row).max()]
        at = np.abs(row).argsort()[: size // 2]  # the largest stays
        row[at] = rng.choice(edges, len(at))
    return x.reshape(1, -1)


def record_blocks(target: str) -> dict[str, str]:
    """Asks 1000 blocks, which must agree; keeps the first."""
    x, q = of_blocks(BLOCKS[target], 1000), BLOCKS[target]
    theirs = np.asarray(resolve(target).function(x, None))
    assert_same_bits(theirs, fake_quantize(q, x), call=target, inputs=x)
    print(f"{target}: 0 of {x.size:,} differ")
    first = slice(0, 12 * size_of(q))
    return {"x": x[0, first].tobytes().hex(), "answers": theirs[0, first].tobytes().hex()}


def same_parameters(q: Quantizer, x: Array, scale: Array, zero: int) -> None:
    ours = choose_qparams(q, x)
    assert_same_bits(np.asarray(scale, np.float32), ours.scale, call=f"scale of {q}", inputs=x)
    assert not q.affine or int(ours.zero_point) == zero, f"zero point of {x}: {zero}, not {ours.zero_point}"


def write() -> None:
    """The file: what is installed anew, the rest as it was."""
    found = {key: dict(KEPT.get(key, {})) for key in ("versions", "given", "chosen", "blocks")}
    for case in [*GIVEN, *CHOSEN]:
        if find_spec(case.library) is not None:
            found["versions"][case.library] = version(case.library)
            key, record = ("given", record_given) if case in GIVEN else ("chosen", record_chosen)
            found[key][case.target] = record(case)
    for target in BLOCKS:
        if find_spec(library := target.partition(".")[0]) is not None:
            found["versions"][library] = version(library)
            found["blocks"][target] = record_blocks(target)
    FILE.write_text(json.dumps(found, indent=1) + "\n")


def unpacked(digits: str, dtype: Any) -> Array:
    return np.frombuffer(bytes.fromhex(digits), dtype)


@pytest.mark.parametrize("case", GIVEN, ids=lambda case: case.target)
def test_codes_and_values(case: Case) -> None:
    kept, q = KEPT["given"][case.target], case.quantizer
    dtype = DTYPES[kept["dtype"]]
    assert sum(unpacked(block["x"], dtype).size for block in kept["blocks"]) > 500
    for block in kept["blocks"]:
        zero = np.asarray(block["zero_point"], np.int32) if q.affine else None
        qparams = QParams(unpacked(block["scale"], np.float32)[0], zero)
        x = unpacked(block["x"], dtype)
        ours = (quantize if kept["codes"] else fake_quantize)(q, x, qparams)
        assert_same_bits(unpacked(block["answers"], ours.dtype), ours, call=f"{case}, {qparams}", inputs=x)


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.target)
def test_parameters(case: Case) -> None:
    kept, q = KEPT["chosen"][case.target], case.quantizer
    x, scales = unpacked(kept["x"], np.float32).reshape(-1, 2), unpacked(kept["scales"], np.float32)
    assert len(x) == len(scales) > 60
    for row, scale, zero in zip(x, scales, kept["zero_points"], strict=True):
        same_parameters(q, row, np.asarray(scale), zero)


@pytest.mark.parametrize("target", BLOCKS)
def test_blocks(target: str) -> None:
    x, answers = (unpacked(KEPT["blocks"][target][key], np.float32).reshape(1, -1) for key in ("x", "answers"))
    assert x.size >= 12 * 32
    assert_same_bits(answers, fake_quantize(BLOCKS[target], x), call=target, inputs=x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_of_zero_is_replaced_in_every_dtype(dtype: str) -> None:
    """compressed-tensors takes epsilon of the dtype; the dialect that of float32."""
    for room in (choose_qparams, implementation("torch eager").choose_qparams):
        for entry in ("int8_per_tensor", SIGNED_AFFINE):
            chosen = room(catalog[entry].replace(**dialects["compressed_tensors"]), np.zeros(4, DTYPES[dtype]))
            assert float(np.asarray(chosen.scale)) == 2.0**-23
            assert not np.any(0 if chosen.zero_point is None else np.asarray(chosen.zero_point))


def test_every_dialect_of_such_a_library_is_kept() -> None:
    assert {*KEPT["given"]} == {case.target for case in GIVEN}
    assert {*KEPT["chosen"]} == {case.target for case in CHOSEN}
    assert {*KEPT["blocks"]} == {*BLOCKS}
    libraries = {case.library for case in [*GIVEN, *CHOSEN]} | {target.partition(".")[0] for target in BLOCKS}
    assert {*KEPT["versions"]} == libraries


if __name__ == "__main__":
    write()
