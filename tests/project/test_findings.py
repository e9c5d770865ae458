"""The form of findings: what each script states, installs and compares. Not run here, as they install packages."""

import re
import subprocess
from pathlib import Path

import pytest

from .source import ROOT

FOLDER = ROOT / "findings"
FINDINGS = sorted(FOLDER.glob("*.sh"))
STATED = ("Finding", "Packages", "Input", "Expected", "Seen", "Matters")
LINES = 70

GOOD = """#!/usr/bin/env bash
# Finding: one and one
# Packages: numpy==2.4.6
# Input: 1 and 1
# Expected: 2
# Seen: 3
# Matters: sums
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet numpy==2.4.6

stated=3
seen=$("$folder/bin/python" -c 'print(3)')
printf '%s\\n' "$seen"
if [ "$seen" != "$stated" ]; then
    printf 'the behaviour has changed\\n' >&2
    exit 1
fi
"""

# what is replaced in the good one, by what, and what must be said of it
BAD = [
    ("#!/usr/bin/env bash", "#!/bin/sh", "no `#!/usr/bin/env bash`"),
    ("# Expected: 2\n", "", "states no `# Expected:`"),
    ("# Seen: 3", "# Seen:", "states no `# Seen:`"),
    ("set -euo pipefail", "set -e", "no line `set -euo pipefail`"),
    ("$(mktemp -d)", "here", "no folder of `mktemp -d`"),
    ("trap 'rm -rf \"$folder\"' EXIT\n", "", "does not remove its folder"),
    ("# Packages: numpy==2.4.6", "# Packages: numpy==2.4.5", "installs numpy==2.4.6, states numpy==2.4.5"),
    ("numpy==2.4.6", "numpy>=2", "not pinned: numpy>=2"),
    ("numpy==2.4.6", "numpy", "not pinned: numpy"),
    ("print(3)", "import samebits", "names samebits"),
    ("    exit 1\n", "", "never ends with `exit 1`"),
    ("printf '%s\\n' \"$seen\"", "\n" * LINES, f"has {21 + LINES} lines, at most {LINES} are read"),
]


def complaints(text: str) -> list[str]:
    """What is wrong with the form of a finding."""
    lines = text.splitlines()
    stated = dict(re.findall(r"^# (\w+): (\S.*)$", text, re.MULTILINE))
    found = [f"states no `# {name}:`" for name in STATED if name not in stated]
    installed = [word for line in re.findall(r'pip" install (.*)', text) for word in line.split() if word[0] != "-"]
    named = stated.get("Packages", "").split()
    found += [f"not pinned: {word}" for word in installed if not re.fullmatch(r"[\w.-]+==[\w.]+", word)]
    if installed != named:
        found.append(f"installs {' '.join(installed) or 'nothing'}, states {' '.join(named) or 'nothing'}")
    wanted = [
        ("#!/usr/bin/env bash" in lines[:1], "no `#!/usr/bin/env bash`"),
        ("set -euo pipefail" in lines, "no line `set -euo pipefail`"),
        ("folder=$(mktemp -d)" in lines, "no folder of `mktemp -d`"),
        ("trap 'rm -rf \"$folder\"' EXIT" in lines, "does not remove its folder"),
        (re.search(r'^if \[ "\$seen" != "\$stated" \]; then$', text, re.MULTILINE), "does not compare"),
        (re.search(r"^ +exit 1$", text, re.MULTILINE), "never ends with `exit 1`"),
        ("samebits" not in text.lower(), "names samebits"),
        (len(lines) <= LINES, f"has {len(lines)} lines, at most {LINES} are read"),
    ]
    return found + [words for good, words in wanted if not good]


def test_there_are_findings() -> None:
    assert len(FINDINGS) >= 3


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    assert not complaints(path.read_text())


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_bash_can_read_it(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_good_one_is_good() -> None:
    assert not complaints(GOOD)


@pytest.mark.parametrize(("old", "new", "words"), BAD, ids=[words for *_, words in BAD])
def test_bad_ones_are_seen(old: str, new: str, words: str) -> None:
    assert old in GOOD
    assert words in complaints(GOOD.replace(old, new))


def test_files_that_are_there() -> None:
    """Findings and the page that states their form; nothing that a run leaves behind."""
    others = {path.name for path in FOLDER.iterdir()} - {path.name for path in FINDINGS}
    assert others == {"README.md"}
    assert 5 <= len((FOLDER / "README.md").read_text().splitlines()) <= 60
