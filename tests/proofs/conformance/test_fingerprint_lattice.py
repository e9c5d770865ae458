"""Every point of the lattice, as a target, is recognised: as itself, or as one that no question tells apart from it.

The target is core with the arithmetic of the point; that both are the same is looked at on all questions of all blocks,
also those that the fingerprint did not ask.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samebits.core import Quantizer, catalog, fake_quantize, quantize
from samebits.proofs.conformance import lattice
from samebits.proofs.conformance.asking import Block
from samebits.proofs.conformance.fingerprint import fingerprint
from samebits.proofs.conformance.lattice import field_of
from samebits.proofs.conformance.questions import (
    SCALES,
    blocks,
    plain_key,
    pool,
    predicted_keys,
    special_blocks,
    special_questions,
)
from samebits.proofs.conformance.targets import Kind, Target
from samebits.proofs.conformance.verdicts import Verdict

CLAIMS: list[tuple[Quantizer, str, Kind]] = [
    (catalog["int8_per_tensor"], "float32", Kind.VALUES),
    (catalog["uint8_affine_per_tensor"], "float32", Kind.VALUES),
    (catalog["int8_affine_per_tensor"], "bfloat16", Kind.VALUES),
    (catalog["int4_per_channel"], "float16", Kind.CODES),
    (catalog["uint8_affine_per_tensor"], "float32", Kind.CODES),
    (catalog["uint4_affine_float_zero_per_group64"], "float32", Kind.VALUES),
    (catalog["float8_e4m3fn_per_tensor"], "float32", Kind.VALUES),
    (catalog["int8_per_tensor"], "float64", Kind.VALUES),
]
EACH = pytest.mark.parametrize(
    ("q", "dtype", "kind"), CLAIMS, ids=lambda v: str(v.format if isinstance(v, Quantizer) else v)
)


def target_of(point: Quantizer, dtype: str, kind: Kind) -> Target:
    """Core with the arithmetic of a point."""
    compute = fake_quantize if kind is Kind.VALUES else quantize
    return Target("point", lambda x, qparams: compute(point, x, qparams), point, dtype, kind)


def questions(point: Quantizer, dtype: str) -> Iterator[tuple[Block, NDArray[Any]]]:
    """All that may be asked."""
    for block in (*blocks(point, dtype, SCALES), *special_blocks(point, dtype)):
        yield block, pool(plain_key(point), block, dtype)
        yield block, special_questions(point, block, dtype)


def all_answers(point: Quantizer, dtype: str, kind: Kind) -> bytes:
    """What a point answers to all that may be asked."""
    return b"".join(predicted_keys(point, block, x, kind).tobytes() for block, x in questions(point, dtype))


def check(point: Quantizer, dtype: str, kind: Kind) -> Verdict:
    """The verdict on a point is the point, or the same on everything that can be asked."""
    target = target_of(point, dtype, kind)
    verdict = fingerprint(target)
    assert verdict.recognised, (point, verdict.words, verdict.smallest)
    assert verdict.asked * 50 <= verdict.exhaustive
    found = verdict.quantizer
    assert found is not None
    for block, x in questions(point, dtype):
        expected, got = (predicted_keys(q, block, x, kind) for q in (point, found))
        np.testing.assert_array_equal(expected, got, err_msg=f"{point} {found} {block}")
    check_fields(verdict, point)
    return verdict


def check_fields(verdict: Verdict, point: Quantizer) -> None:
    """What the verdict says of each field is so of the point."""
    for name, values in verdict.undetermined.items():
        assert str(field_of(point, name)) in values, (point, name, values)
    for name, value in verdict.fields.items():
        assert str(field_of(point, name)) == value, (point, name, value)


def sample(q: Quantizer, dtype: str, count: int) -> list[Quantizer]:
    """So many points of the lattice, the same ones every time."""
    every = list(lattice.points(lattice.plain(q), dtype))
    return [every[i] for i in np.random.default_rng(0).permutation(len(every))[:count]]


@EACH
def test_points_of_the_lattice_are_recognised(q: Quantizer, dtype: str, kind: Kind) -> None:
    for point in sample(q, dtype, 2):
        check(point, dtype, kind)


@pytest.mark.thorough
@EACH
def test_every_point_of_the_lattice_is_recognised(q: Quantizer, dtype: str, kind: Kind) -> None:
    """Points that answer all questions alike are one black box: the verdict on one of them must hold for each."""
    classes: dict[bytes, list[Quantizer]] = {}
    for point in lattice.points(lattice.plain(q), dtype):
        classes.setdefault(all_answers(point, dtype, kind), []).append(point)
    assert len(classes) >= 8
    for alike in classes.values():
        verdict = check(alike[0], dtype, kind)
        for point in alike:
            check_fields(verdict, point)
