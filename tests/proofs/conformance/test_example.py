"""The example that repairs a quantizer step by step: what it prints, and that it ends well."""

import subprocess
import sys

from ...project.source import ROOT

PROGRAM = ROOT / "examples" / "check_your_own_quantizer.py"


def test_each_step_repairs_what_the_report_said() -> None:
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third, last = done.stdout.strip().split("\n\n")
    assert "rule       reciprocal" in first
    assert "rule       negative zero" in first
    assert "rule       reciprocal" not in second
    assert "rule       negative zero" in second
    assert "exactly the bits of samebits" in third
    assert "exactly the bits of samebits" in last
