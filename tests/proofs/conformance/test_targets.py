"""Targets: what they may claim, how names are resolved, and that peers that are missing are named."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samebits.core import QParams, catalog
from samebits.proofs.conformance import peers, targets
from samebits.proofs.conformance.targets import Target, resolve, target

INT8 = catalog["int8_per_tensor"]


def test_a_target_is_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_quantizer.py").write_text(
        "import numpy as np\n"
        "from samebits.proofs.conformance.targets import target\n"
        '@target(like="int8_per_tensor")\n'
        "def mine(x, qparams):\n"
        "    return np.clip(np.rint(x / qparams.scale), -128, 127) * qparams.scale\n"
        "def plain(x, qparams):\n"
        "    return mine(x, qparams)\n"
    )
    monkeypatch.chdir(tmp_path)
    found = resolve("my_quantizer:mine")
    assert (found.name, found.quantizer, found.kind) == ("my_quantizer:mine", INT8, "values")
    x = np.array([0.16, -3], np.float32)
    assert found(x, QParams(np.float32(0.1))).tolist() == [np.float32(0.2), np.float32(-3)]
    plain = resolve("my_quantizer:plain", "int4_per_channel", dtype="bfloat16", kind="codes")
    assert (plain.dtype, plain.kind, plain.quantizer) == ("bfloat16", "codes", catalog["int4_per_channel"])
    with pytest.raises(ValueError, match=r"my_quantizer:plain is a plain function: .* --like"):
        resolve("my_quantizer:plain")
    with pytest.raises(KeyError, match="my_quantizer has no 'others'"):
        resolve("my_quantizer:others")
    sys.modules.pop("my_quantizer")
    sys.path.remove(str(tmp_path))


def test_names_that_are_none() -> None:
    with pytest.raises(KeyError, match=r"did you mean torch\.quantize_per_tensor"):
        resolve("torch.quantise_per_tensor")
    with pytest.raises(ImportError, match="cannot import no_such_package"):
        resolve("no_such_package.module:function", "int8_per_tensor")


CLAIMS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dtype": ({"dtype": "float8"}, ValueError, "`dtype` must be float32, .* got 'float8'"),
    "kind": ({"kind": "bits"}, ValueError, "`kind` must be one of"),
    "function": ({"function": 3}, TypeError, "`function` must be a function"),
    "quantizer": ({"quantizer": "int8"}, TypeError, "`quantizer` must be a Quantizer"),
    "codes of floats": (
        {"kind": "codes", "quantizer": catalog["float8_e5m2_per_tensor"]},
        ValueError,
        "`kind` must be 'values' for float8",
    ),
}


@pytest.mark.parametrize(("changes", "error", "message"), CLAIMS.values(), ids=CLAIMS)
def test_claims_that_cannot_be(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    good = Target("good", lambda x, qparams: x, INT8)
    with pytest.raises(error, match=message):
        replace(good, **changes)
    with pytest.raises(KeyError, match="did you mean int8_per_tensor"):
        target(like="int8_per_tensr")


def test_every_adapter_defines_the_targets_that_are_listed() -> None:
    """A peer that is not installed is named with what installs it; it is in the list all the same."""
    listed = [name for peer in peers.PEERS for name in peer.targets]
    assert len(listed) == len(set(listed)) == len([*targets.names()])
    for peer in peers.PEERS:
        line = peers.missing(peer)
        if line is None:
            module = importlib.import_module(f"samebits.proofs.conformance.adapters.{peer.module}")
            with targets.quiet_imports():
                made = module.targets()
            assert [*made] == [*peer.targets]
            assert all(name == target.name for name, target in made.items())
        else:
            assert line == f"{peer.library} is not installed: pip install 'samebits[{peer.extra}]'"
            with pytest.raises(ImportError, match="is not installed"):
                resolve(peer.targets[0])


def test_a_peer_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = peers.Peer("no_such_library.part", "nothing", "peers-nothing", ("nothing.at_all",))
    monkeypatch.setattr(targets, "PEERS", (nothing,))
    with pytest.raises(ImportError, match=r"no_such_library.part is not installed: pip install 'samebits\[peers-noth"):
        resolve("nothing.at_all")
