"""The pure parts of `tests.matrix`: what it asks pip for, what it reads from reports, the page it writes."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from .. import matrix
from ..matrix_page import BEGIN, END, Result, differences, generated, load, page, save
from .source import PROJECT, ROOT

FIRST = Result(
    "pinned",
    "pins",
    {"Python": "3.11.7", "numpy": "2.4.6"},
    passed=2100,
    compared=1_000_000,
    divergence={"float32, alone: a against b": 18, "float32, + b: a against b": 5},
    checked="`nvfp4`",
    left_out={"tests/core/test_grid.py": "brevitas"},
)
SECOND = Result(
    "newest",
    "new",
    {"Python": "3.13.0", "numpy": "2.5.5"},
    passed=2099,
    failed=1,
    failures=("`tests.core.test_grid.test_it`: cannot read /" + "home/somebody/x.txt",),
    compared=1_000_000,
    divergence={"float32, alone: a against b": 18, "float32, + b: a against b": 0},
    checked="`nvfp4`",
)


@pytest.mark.parametrize(
    ("line", "name", "oldest"),
    [
        ("numpy>=2.0", "numpy", "numpy==2.0"),
        ("ml_dtypes>=0.5,<1", "ml_dtypes", "ml_dtypes==0.5"),
        ("torch >= 2.13", "torch", "torch ==2.13"),
        ("aqtp==0.9.0", "aqtp", "aqtp==0.9.0"),
        ("build", "build", "build"),
    ],
)
def test_bounds(line: str, name: str, oldest: str) -> None:
    assert matrix.name_of(line) == name
    assert matrix.at_bound(line) == oldest


def test_requirements_are_those_of_every_room_and_the_tools() -> None:
    project = {
        "name": "samebits",
        "dependencies": ["numpy>=2.4"],
        "optional-dependencies": {
            "all": ["samebits[jax,torch]"],
            "jax": ["jax>=0.10", "flax>=0.12"],
            "torch": ["torch>=2.13"],
            "test": ["pytest>=9", "pytest-xdist>=3", "brevitas==0.13.4"],
        },
    }
    wanted = ["flax>=0.12", "jax>=0.10", "numpy>=2.4", "pytest>=9", "pytest-xdist>=3", "torch>=2.13"]
    assert matrix.requirements(project) == wanted
    names = {matrix.name_of(line) for line in matrix.requirements(PROJECT["project"])}
    assert {"torch", "jax", "flax", "numpy", "ml_dtypes", "hypothesis", "pytest"} <= names


def test_environments() -> None:
    lines = ["numpy>=2.4", "pytest>=9"]
    pinned, newest, oldest = matrix.matrix({(3, 11): "eleven", (3, 12): "twelve", (3, 13): "thirteen"}, lines)
    assert (pinned.python, pinned.requirements, pinned.pinned) == ("eleven", ("numpy>=2.4", "pytest>=9"), True)
    assert (newest.python, newest.requirements) == ("thirteen", ("numpy", "pytest"))
    assert (oldest.python, oldest.requirements) == ("eleven", ("numpy==2.4", "pytest>=9"))
    assert "numpy==" in pinned.text
    assert "numpy==2.4.6" not in newest.text


def test_a_missing_python_is_one_line() -> None:
    with pytest.raises(matrix.Refusal, match=r"^needs Python 3\.11 with venv: install it, or put python3\.11 on PATH$"):
        matrix.matrix({(3, 12): "twelve"}, [])


def test_a_python_that_cannot_be_used_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix.main(["--only", "newest", "--python", "no-such-python"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("matrix: ")


def test_files_that_need_other_libraries_are_left_out() -> None:
    files, left_out = matrix.runnable(["numpy", "torch", "jax", "flax", "ml_dtypes", "hypothesis", "pytest"])
    assert left_out["tests/core/test_grid.py"] == "brevitas, torchao"
    assert "tests/torch_frontend/test_quantizer.py" in files
    assert not set(files) & set(left_out)
    assert all((ROOT / file).is_file() for file in [*files, *left_out])
    assert "tests/core/test_rounding.py" in matrix.runnable(["numpy"])[1], "what its own modules import counts too"


def test_report_of_tests() -> None:
    report = """<testsuites><testsuite>
        <testcase classname="tests.core.test_a" name="test_one"/>
        <testcase classname="tests.core.test_a" name="test_two"><skipped message="no torch"/></testcase>
        <testcase classname="tests.core.test_a" name="test_three"><failure message="1 is
            not 2">...</failure></testcase>
        <testcase classname="" name="tests.core.test_b"><error message="collection failure"/></testcase>
    </testsuite></testsuites>"""
    passed, skipped, failures = matrix.counts(ElementTree.fromstring(report))
    assert (passed, skipped) == (1, 1)
    assert failures == ["`tests.core.test_a.test_three`: 1 is not 2", "`tests.core.test_b`: collection failure"]


def test_results_are_kept(tmp_path: Path) -> None:
    save(SECOND, tmp_path / "newest.json")
    assert load(tmp_path / "newest.json") == SECOND
    assert load(tmp_path / "oldest.json") is None


def test_good_is_everything_run_and_nothing_wrong() -> None:
    assert FIRST.good
    assert not SECOND.good
    assert not Result("pinned", "pins").good


def test_what_behaves_differently() -> None:
    assert differences([FIRST, SECOND]) == {"float32, + b: a against b": (5, 0)}
    assert differences([FIRST, FIRST]) == {}
    assert differences([FIRST, Result("oldest", "old")]) == {}, "what did not run is no difference"


def test_page() -> None:
    made = generated([FIRST, SECOND])
    for line in [
        "| Python | 3.11.7 | 3.13.0 |",
        "| tests passed | 2,100 | 2,099 |",
        "| `samebits check`: results that differ | 0 of 1,000,000 | 0 of 1,000,000 |",
        "- newest: `tests.core.test_grid.test_it`: cannot read x.txt",
        "| float32, + b: a against b | 5 | 0 |",
        "`tests/core/test_grid.py` (brevitas)",
    ]:
        assert line in made
    assert "18" not in made
    text = f"by hand\n{BEGIN}\nold\n{END}\nby hand too\n"
    assert page(text, made) == f"by hand\n{BEGIN}\n\n{made}\n\n{END}\nby hand too\n"
    assert page(page(text, "other"), made) == page(text, made)
    assert "Nothing." in generated([FIRST])
    for bad in ("no markers", END + BEGIN, text + text):
        with pytest.raises(ValueError, match="the page must hold the lines"):
            page(bad, made)


def test_the_page_of_the_project_has_a_place_for_it() -> None:
    text = matrix.PAGE.read_text()
    assert page(text, "anything") != text
