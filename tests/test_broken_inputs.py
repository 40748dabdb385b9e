"""Every command on broken inputs: a sample of `python -m benchmarks.broken_inputs`."""

import json
import sys

import pytest
from forking import run_forked


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_traceback_no_hang_and_little_memory(tmp_path):
    sample = ["--every", "60", "--json", str(tmp_path / "outcome.json")]
    done = run_forked("benchmarks.broken_inputs", *sample)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads((tmp_path / "outcome.json").read_text())
    assert len(outcomes) >= 8
    assert sum(outcome["code"] in (1, 2) for outcome in outcomes.values()) >= 5
