"""Jobs in local processes: what happens when one dies or wants to be replaced, and which cores each has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samebits.proofs.certificates.schedule import ask_for_fresh_process, run_anywhere


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    """The job is code; one of them ends its process the first time it is run."""
    marker = tmp_path / "died"
    deadly = f"import os, pathlib; p = pathlib.Path({str(marker)!r}); p.exists() or (p.touch(), os._exit(3))"
    assert sorted(i for i, _ in run_anywhere(exec, ["1", deadly, "2", "3"], workers=2)) == [0, 1, 2, 3]
    assert marker.exists()


def test_a_job_may_ask_for_a_fresh_process(tmp_path: Path) -> None:
    """Each job but the first of its process does: every one is done once, by a process of its own."""
    job = (
        "import builtins, os, pathlib; from samebits.proofs.certificates.schedule import ask_for_fresh_process; "
        f"hasattr(builtins, 'used') and ask_for_fresh_process(); builtins.used = True; "
        f"(pathlib.Path({str(tmp_path)!r}) / str(os.getpid())).touch(exist_ok=False)"
    )
    assert [i for i, _ in run_anywhere(exec, [job] * 3, workers=1)] == [0, 1, 2]
    assert len(list(tmp_path.iterdir())) == 3
    ask_for_fresh_process()  # elsewhere nothing happens


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell cores apart")
def test_processes_share_the_cores_out() -> None:
    mine = sorted(os.sched_getaffinity(0))
    found = dict(run_anywhere(eval, ["sorted(__import__('os').sched_getaffinity(0))"] * 2, workers=2))
    shares = [mine[::2], mine[1::2] or mine]
    assert sorted(found.values()) == sorted(shares)


def test_a_job_that_always_kills_its_process_is_given_up() -> None:
    with pytest.raises(RuntimeError, match="ended 4 processes"):
        list(run_anywhere(exec, ["import os; os._exit(3)"], workers=1))


def test_processes_end_with_the_one_that_started_them() -> None:
    """They hold its standard output: it ends for the reader when the last of them does."""
    program = "from samebits.proofs.certificates.schedule import run_anywhere\nif __name__ == '__main__':\n    "
    program += "list(run_anywhere(exec, [\"print('begun', flush=True); import time; time.sleep(600)\"], workers=1))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as main:
        assert main.stdout is not None
        assert main.stdout.readline() == "begun\n"
        main.kill()
        assert main.communicate(timeout=60)[0] == ""
