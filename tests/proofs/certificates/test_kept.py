"""Which certificates are kept, and the table of them."""

from pathlib import Path

import pytest

from samebits.proofs.certificates import kept
from samebits.proofs.certificates.certificate import RESULTS, load

DOCS = Path(__file__).parents[3] / "docs" / "certificates"
KEPT = sorted(path for path in DOCS.glob("*.json") if path.name != "schema.json")


def test_the_table_is_made_of_the_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a page whose rows are gone the command makes the page as it is, and writes nothing else."""
    text = (DOCS.parent / "certificates.md").read_text(encoding="utf-8")
    page = tmp_path / "certificates.md"
    page.write_text(kept.rewrite(text, ""), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != text
    (tmp_path / "certificates").symlink_to(DOCS)
    monkeypatch.setattr("sys.argv", ["kept", str(tmp_path / "certificates")])
    kept.main()
    assert page.read_text(encoding="utf-8") == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["certificates", "certificates.md"]
    with pytest.raises(ValueError, match="one table of certificates, got 0"):
        kept.rewrite("nothing", "")


def test_entries_to_be_kept() -> None:
    every = kept.boundary()
    assert {"int8_per_tensor", "uint8_dpu_power_of_two_per_tensor", "uint2_affine_per_group32", "mxint8"} <= set(every)
    assert {"binary_per_tensor", "ternary_per_channel", "mxfp4_e2m1", "nvfp4"} <= set(every)
    assert not {"int16_per_tensor", "nf4_per_group64", "mxfp8_e4m3"} & set(every)
    assert kept.scales() == ["mxfp8_e4m3", "mxfp8_e4m3_rceil", "mxfp4_e2m1_ceil", "mxfp4_e2m1_even"]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_the_docs_list_kept_certificates(path: Path) -> None:
    certificate, request = load(path)
    tiles, results = (sum(part[key] for part in certificate["domain"]) for key in ("tiles", RESULTS))
    row = f"| {request.engine} | {len(request.modes)} | {tiles:,} | {results:,} | complete |"
    assert f"| [{path.stem}](certificates/{path.name}) {row}\n" in (DOCS.parent / "certificates.md").read_text()
