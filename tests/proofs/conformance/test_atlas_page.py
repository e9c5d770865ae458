"""The atlas as a page: self-contained, sound HTML, and what it says is what the targets answer."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samebits.proofs.cli.atlas import example, page, plot
from samebits.proofs.conformance.atlas import rows
from samebits.proofs.conformance.number_line import SPECIFICATION, lines

NAMES = (
    "torch.fake_quantize_per_tensor_affine",
    "textbook.torch_eager",
    "torch.quantize_per_tensor",
    "brevitas.IntQuant",
)
OPEN = {"meta", "path", "br", "link", "input"}


class Checked(HTMLParser):
    """Tags are closed in order; ids are unique; links lead to them; headers have a scope, or sort by a button."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loose: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in OPEN:
            self.stack.append(tag)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if "href" in given else []
        self.loose += [tag] if tag == "th" and "scope" not in given else []
        self.outside += [str(v) for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPEN:
            assert self.stack.pop() == tag


@pytest.fixture(scope="module")
def made() -> str:
    return page(dict(rows(NAMES)))


def test_the_page_is_sound_and_needs_nothing_else(made: str) -> None:
    checked = Checked()
    checked.feed(made)
    assert checked.stack == checked.loose == checked.outside == []
    assert len(set(checked.ids)) == len(checked.ids)
    assert {link[1:] for link in checked.links} == set(NAMES) <= set(checked.ids)
    assert re.search(r"https?://|@import|url\(", made) is None
    assert '<meta name="viewport"' in made


def test_the_first_screen_says_who_agrees(made: str) -> None:
    int8, uint8 = lines(NAMES)
    assert list(int8.codes) == [SPECIFICATION, NAMES[0], NAMES[1], NAMES[3]]
    assert list(uint8.codes) == [SPECIFICATION, NAMES[2]]
    assert int8.differing(NAMES[1], SPECIFICATION) == int8.differing(NAMES[3], SPECIFICATION) == 0
    assert int8.differing(NAMES[0], SPECIFICATION) == int8.differing(NAMES[0], NAMES[1]) > 0
    row = made[made.index(f'<tr data-name="{NAMES[0]}">') :]
    assert re.findall(r'<td class="number \w+">(\d+)</td>', row)[:4] == ["32", "0", "32", "32"]


def test_examples_show_the_difference(made: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run as they stand, they print the code of the target, times the scale."""
    line = lines(NAMES[:1])[0]
    shown = example(NAMES[0], line.x, line.codes[NAMES[0]], line.codes[SPECIFICATION])
    assert "&#39;" in made or shown in made
    exec(shown, {})
    printed = float(capsys.readouterr().out.strip("[]\n"))
    code, usual = (int(n) for n in re.findall(r"code (-?\d+); the default: (-?\d+)", shown)[0])
    assert code != usual
    assert round(printed / 0.1) == code


def test_marks_stand_where_answers_differ() -> None:
    x = np.float32([-3, 0, 1.5, 4])
    drawn = plot(x, np.array([False, True, True, True]))
    assert re.findall(r'<path d="M([\d.]+) 6V22"', drawn) == ["450.0", "675.0"]
    assert 'aria-label="3 of 4 inputs differ"' in drawn


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from samebits.proofs.cli.atlas import atlas

    def run(**named: Any) -> int:
        with pytest.raises((typer.Exit, SystemExit)) as ended:
            atlas(**named)
        return int(getattr(ended.value, "exit_code", 2))

    assert run(out=tmp_path / "a.html", target=[NAMES[1]], json=True) == 0
    assert "textbook.torch_eager" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert '"recognised": true' in capsys.readouterr().out
    assert run(out=tmp_path / "none" / "a.html", target=None, json=False) == 2
    assert run(out=tmp_path / "b.html", target=["torch.fake_quantise"], json=False) == 2
    assert "is no ready target" in capsys.readouterr().err
