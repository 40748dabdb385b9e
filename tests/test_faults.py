"""The fault campaign, a few kills of it; `python -m benchmarks.faults --kills 200` is the long one."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_a_short_fault_campaign():
    names = ["segment", "store", "segment.predict"]
    line = [sys.executable, "-m", "benchmarks.faults", "--kills", "3", "--no-disks", "--only", *names]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "mismatches 0, lost 0, torn 0, tracebacks 0" in done.stdout
