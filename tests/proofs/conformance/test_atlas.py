"""The atlas: every ready target gives the verdict that is kept, strictly: a library that changes fails here.

Then `samebits fingerprint --atlas docs/atlas.md` writes what is new, for somebody to look at. Targets that compile or
start JAX operation by operation take seconds each: `make thorough`.
"""

import json
import tomllib
from pathlib import Path

import pytest

from samebits.proofs.conformance import atlas, peers
from samebits.proofs.conformance.targets import names, quiet_imports

from ...project.source import ROOT

PAGE = ROOT / "docs" / "atlas.md"
KEPT = json.loads(PAGE.with_suffix(".json").read_text())
QUICK = (
    "torch.fake_quantize_per_tensor_affine",
    "torch.fake_quantize_per_channel_affine",
    "torch.quantize_per_tensor",
    "torch.quantized_decomposed.bfloat16",
    "torch.float8_e4m3fn",
    "torchao.quantize_affine",
    "brevitas.IntQuant",
    "quanto.quantize_activation.bfloat16",
    "textbook.torch_eager",
    "onnxruntime.QuantizeLinear",
    "onnxruntime.DynamicQuantizeLinear",
    "ml_dtypes.float8_e4m3fn",
)
APART = [name for peer in peers.PEERS if peer.apart for name in peer.targets]


def check(name: str) -> None:
    """The row of a target is the one that is kept."""
    with quiet_imports():
        ((_, row),) = atlas.rows([name])
    assert row == KEPT[name]


def test_the_page_says_what_the_data_says_of_every_target() -> None:
    assert PAGE.read_text() == atlas.markdown(KEPT)
    assert [*KEPT] == [*names()]


@pytest.mark.parametrize("name", QUICK)
def test_targets_compute_what_the_atlas_says(name: str) -> None:
    check(name)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in names() if name not in (*QUICK, *APART)])
def test_the_other_targets_compute_what_the_atlas_says(name: str) -> None:
    check(name)


def test_every_peer_is_asked_here() -> None:
    """The environment of the tests holds all that do not say that they stay apart, so that no row goes unchecked."""
    here = [peer for peer in peers.PEERS if not peer.apart]
    assert {peer.library: peers.missing(peer) for peer in here if peers.missing(peer)} == {}
    assert {*names()} - {*APART} <= {*atlas.installed()}
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {peer.extra for peer in peers.PEERS} <= {*offered, "proofs"}
    assert all(f"| `{group}` |" in (ROOT / "docs" / "fingerprint.md").read_text() for group in atlas.GROUPS)
    assert all(group in (ROOT / "Makefile").read_text() for group in atlas.GROUPS)


def test_rows_of_what_is_not_installed_are_kept(tmp_path: Path) -> None:
    page, name = tmp_path / "atlas.md", "brevitas.IntQuant"
    atlas.write(page, {name: KEPT[name]})
    atlas.write(page, {"ml_dtypes.float8_e5m2": KEPT["ml_dtypes.float8_e5m2"]})
    assert [*json.loads(page.with_suffix(".json").read_text())] == [name, "ml_dtypes.float8_e5m2"]
    assert "| `brevitas.IntQuant` | divide |" in page.read_text()


def test_what_the_named_libraries_compute() -> None:
    """The facts that users are told, once more and by hand."""
    divisions = {name: row["fields"].get("division") for name, row in KEPT.items()}
    assert {name for name in divisions if divisions[name] == "reciprocal"} >= {
        "torch.fake_quantize_per_tensor_affine",
        "torch.fake_quantize_per_channel_affine",
        "torch.quantize_per_tensor",
        "torchao.quantize_affine",
        "qwix.quantize",
        "aqt.IntSymmetric",
        "textbook.jax_eager",
    }
    assert {name for name in divisions if divisions[name] == "divide"} >= {
        "brevitas.IntQuant",
        "quanto.quantize_activation",
        "onnxruntime.QuantizeLinear",
        "textbook.torch_eager",
        "textbook.torch_compiled",
    }
    assert KEPT["torch.quantize_per_tensor"]["fields"]["fused_multiply_add"] == "True"
    assert KEPT["torch.fake_quantize_per_tensor_affine"]["fields"]["rounding"] == "ties_to_even"
    assert not KEPT["torch.fake_quantize_per_channel_affine"]["recognised"], "it overflows an int64"
