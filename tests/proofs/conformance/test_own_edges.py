"""`conformance` asks a function at edges of its own, too: what is wrong between two knife edges of the quantizer."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from samebits.core import catalog
from samebits.core.blocks import expand_blocks
from samebits.proofs import conformance

from .test_conform import in_numpy, ours


def in_16_bits(x: Any, scale: Any) -> Any:
    """Codes that are right but between 2**15 and 2**16 steps, where 16 bits wrap: beyond, the clamp in floats helps."""
    steps = np.clip(np.round(x / scale), -70_000, 70_000).astype(np.int32)
    return np.clip(steps.astype(np.int16), -128, 127)


def with_a_hole(name: str, x: Any, scale: Any, zero: Any = None) -> Any:
    """Ours, but 0 from 2**15 to 2**16 steps."""
    right = ours(name, x, scale, zero)
    u = x / expand_blocks(scale, catalog[name].granularity, x.shape)
    return np.where((u >= 2**15) & (u < 2**16), x.dtype.type(0), right)


def with_a_wrong_entry(x: Any, scale: Any) -> Any:
    """Right but for one number of bfloat16, far from every knife edge."""
    right = np.clip(np.round(x.astype(np.float32) / scale), -128, 127) + np.float32(0)
    return (np.where(x == x.dtype.type(1.296875 * 2.0**-60), np.float32(99), right) * scale).astype(x.dtype)


def stops(x: Any, scale: Any) -> Any:
    if ((x > 2.0**90) & (x < 2.0**91)).any():
        raise OverflowError("more than I can do")
    return in_numpy(x, scale)


def test_codes_that_wrap_between_knife_edges_are_found_by_edges_of_their_own() -> None:
    assert conformance(in_16_bits, "int8_per_channel", spacing=0).same
    report = conformance(in_16_bits, "int8_per_channel")
    (own,) = (finding for finding in report.findings if not finding.same)
    assert own.case == "edges of its own"
    # on either side of 0 it falls at 2**15 steps and rises by 255 steps before 2**16: 256 edges, two ends, four scales
    assert own.differing == 4 * 2 * 2 * 255
    assert "x / scale is 32767.5, the code must be 127" in str(report)


@pytest.mark.parametrize(
    "name", ["int8_per_tensor", "int4_per_group32", "int8_per_block", "int8_affine_per_token", "mxfp4_e2m1"]
)
def test_own_edges_are_found_whatever_shares_a_scale(name: str) -> None:
    function, right = partial(with_a_hole, name), partial(ours, name)
    found = [conformance(function, name, library="numpy", shapes=False, spacing=n) for n in (0, None)]
    assert [report.same for report in found] == [True, False]
    assert all(finding.same or finding.case.startswith("edges of its own") for finding in found[1].findings)
    reports = [conformance(right, name, library="numpy", shapes=False, spacing=n) for n in (0, None)]
    assert reports[0].findings == reports[1].findings  # none that knife edges have not


def test_looking_for_own_edges_costs_few_calls_of_one_shape() -> None:
    """Bisection begins at the knife edges, so that there is nothing left to halve where the function is right."""
    shapes: list[tuple[int, ...]] = []

    def counted(x: Any, scale: Any) -> Any:
        shapes.append(x.shape)
        return in_numpy(x, scale)

    for spacing in (0, None):
        assert conformance(counted, "int8_per_channel", shapes=False, library="numpy", spacing=spacing).same
    assert len(shapes) <= 4 + 4 + 16
    assert len(set(shapes)) == 1


def test_a_single_wrong_entry_is_found_where_everything_is_asked() -> None:
    assert conformance(with_a_wrong_entry, dtype="bfloat16", spacing=0, shapes=False).same
    report = conformance(with_a_wrong_entry, dtype="bfloat16", spacing=1, shapes=False)
    assert " = 0x1.4cp-60 (bfloat16 bits 0x21a6)" in str(report)


def test_what_a_function_raises_at_its_own_edges_is_said() -> None:
    assert conformance(stops, spacing=0).same
    report = conformance(stops)
    assert "edges of its own, scale 0.1 (and 3 other cases): raised OverflowError: more than I can do" in str(report)


def test_a_function_that_does_not_round_is_asked_where_it_was_seen_to_change() -> None:
    report = conformance(lambda x, s: np.clip(x, -128 * s, 127 * s) + np.float32(0), shapes=False)
    own = [finding for finding in report.findings if finding.case.startswith("edges of its own")]
    assert len(own) == 4
    assert all(finding.differing > 1000 for finding in own)
