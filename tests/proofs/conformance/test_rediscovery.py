"""Documented faults are found, and named as `faults.toml` says, exactly; without the fault nothing is found.

The verdicts were written down once, looked at, and are strict both ways: a library that is repaired fails here, too.
"""

import pytest

from samebits.proofs.conformance.targets import quiet_imports

from .faults import FAULTS, PAGE, QUESTIONS, Fault, page


@pytest.mark.filterwarnings("ignore")  # special values, and what other libraries warn of
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_documented_fault_is_named(fault: Fault) -> None:
    question = QUESTIONS[fault.name]
    with quiet_imports():
        assert question.wrong() == fault.verdict
        assert question.right() == ""


def test_the_page_says_what_the_data_says() -> None:
    """Else: ``python -m tests.proofs.conformance.faults``."""
    assert PAGE.read_text() == page()


def test_there_are_as_many_as_promised_and_each_is_asked_once() -> None:
    assert len(FAULTS) >= 40
    assert sorted(QUESTIONS) == sorted(fault.name for fault in FAULTS)
    assert all(fault.verdict for fault in FAULTS)
    assert {QUESTIONS[fault.name].instrument.partition(",")[0] for fault in FAULTS} == {
        "conformance",
        "fingerprint",
        "fingerprint of a file",
        "verify",
        "causes",
        "laws",
    }
