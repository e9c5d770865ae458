"""Every law on every quantizer, operation by operation; and wrong implementations, each of which a law must reject.

Hypothesis draws arrays of all shapes; in every mode the cases of `law_cases` are tried. `test_laws_compiled` and
`test_laws_jitted` have the other modes.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samebits import core
from samebits.core import CodebookFormat, QParams, Quantizer, TernaryFormat, catalog, dialects
from samebits.core.granularity import PerAxis, PerBlock, PerGroup, PerTensor, PerToken
from samebits.proofs.inputs import strategies
from samebits.proofs.laws.catalog_of_laws import LAWS, applies
from samebits.proofs.modes.execution import MODES, Implementation, implementation

from ...law_cases import (
    PARAMETER_LAWS,
    VARIANTS,
    check_law,
    in_full,
    laws_for,
    laws_tried,
    tried,
)
from . import test_laws_compiled, test_laws_jitted

Array = NDArray[Any]

EAGER = ("numpy", "torch eager", "jax eager")


@pytest.mark.parametrize(("mode", "name", "law"), laws_tried(*EAGER))
def test_law(mode: str, name: str, law: str) -> None:
    check_law(mode, name, law)


@pytest.mark.parametrize(
    ("mode", "name"), [(mode, name) for mode in EAGER[:2] for name in catalog if in_full(mode, name)]
)
@settings(max_examples=12)
@given(st.data())
def test_all_laws_on_arrays_of_all_shapes(mode: str, name: str, data: st.DataObject) -> None:
    q = catalog[name]
    check_all(implementation(mode), q, *data.draw(strategies.cases(q)))


@pytest.mark.parametrize("mode", ["numpy", "torch eager"])
@settings(max_examples=40)
@given(st.data())
def test_all_laws_on_variants(mode: str, data: st.DataObject) -> None:
    q = data.draw(strategies.variants())
    dtype = data.draw(strategies.dtypes("float32", "bfloat16", "float16", "float64"))
    check_all(implementation(mode), q, *data.draw(strategies.cases(q, dtype=dtype)))


def check_all(f: Implementation, q: Quantizer, x: Array, qparams: QParams, g: Array) -> None:
    for name, law in LAWS.items():
        if applies(name, q):
            law(f, q, x, qparams, g)


def test_laws_are_many_and_say_what_they_promise() -> None:
    assert len(LAWS) >= 15
    for name, law in LAWS.items():
        assert law.__name__ == name
        assert len(law.__doc__ or "") > 40


def test_laws_apply_where_they_are_promised() -> None:
    int8, affine = catalog["int8_per_tensor"], catalog["uint8_affine_per_channel"]
    assert applies("quantize_is_odd", int8)
    assert not applies("quantize_is_odd", int8.replace(rounding="toward_negative"))
    assert not applies("quantize_is_odd", affine)
    assert not applies("blocks_do_not_touch", int8)
    assert applies("blocks_do_not_touch", affine)
    assert applies("zero_point_gradient_is_the_sum", affine)
    assert not applies("zero_point_gradient_is_the_sum", int8)
    assert not applies("fake_quantize_is_idempotent", int8.replace(rounding="toward_zero"))
    assert not applies("gradient_passes_inside_only", int8.replace(gradient="pass_through"))
    other = int8.replace(**dialects["torch_fake_quantize"])
    assert [name for name in LAWS if applies(name, other)] == ["equals_specification"]
    with pytest.raises(KeyError):
        applies("no such law", int8)


# --- wrong implementations -------------------------------------------------------------------------------------------


def test_every_mode_tries_every_law_on_every_granularity_and_kind_of_format() -> None:
    for mode in MODES:
        full = {name: q for name, q in tried(mode).items() if in_full(mode, name)}
        assert {type(q.granularity) for q in full.values()} >= {PerTensor, PerAxis, PerToken, PerGroup, PerBlock}
        assert {type(q.format) for q in full.values()} == {type(q.format) for q in catalog.values()}
        assert {law for name in full for law in laws_for(mode, name)} == set(LAWS)


def test_every_mode_is_tried() -> None:
    others = {mode for file in (test_laws_compiled, test_laws_jitted) for mode in file.MODES_TRIED}
    assert {*EAGER, *others} == set(MODES)


def test_what_is_not_tried_in_full_is_compared_with_the_specification() -> None:
    assert {law.__name__ for law in PARAMETER_LAWS} == {law for law in LAWS if LAWS[law] in PARAMETER_LAWS}
    assert len(PARAMETER_LAWS) == 5
    for mode in MODES:
        for name in tried(mode):
            assert "equals_specification" in laws_for(mode, name)
        assert mode == "torch compiled" or set(tried(mode)) == {*catalog, *VARIANTS}
    assert all(in_full("numpy", name) for name in catalog)


def test_a_threshold_is_rounded_as_the_quotient_is() -> None:
    q = Quantizer(format=TernaryFormat(1 / 3))
    scale = np.float32(4.7019768e-38)
    x = np.array([1.5673257e-38, 1.5673258e-38, -1.5673257e-38], np.float32)  # quotients around the float32 above 1/3
    check_all(implementation("numpy"), q, x, QParams(np.array(scale)), np.ones_like(x))


def test_an_exponent_beyond_the_largest_is_reached_by_rounding_up() -> None:
    q = Quantizer(format=CodebookFormat((0.0, 2.5))).replace(restriction="power_of_two_even")
    x = np.array([1.62985173e308, 1.2e308, 1.0])
    check_all(implementation("numpy"), q, x, core.choose_qparams(q, x), np.ones_like(x))
