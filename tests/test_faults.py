"""The fault campaign, a few kills of it; `python -m benchmarks.faults --kills 200` is the long one."""

import pytest
from forking import run_forked


@pytest.mark.slow
def test_a_short_fault_campaign():
    names = ["segment", "store", "segment.predict"]
    done = run_forked("benchmarks.faults", "--kills", "3", "--no-disks", "--only", *names)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "mismatches 0, lost 0, torn 0, tracebacks 0" in done.stdout
