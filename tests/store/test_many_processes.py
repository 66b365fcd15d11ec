"""Killed and crowded: a small part of what tests/kill.py and tests/together.py do at length."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow("kills and races")
@pytest.mark.parametrize(("script", "arguments", "last"), [
    ("kill.py", ["--number", "10", "--small"], "studies: the same bytes"),
    ("together.py", ["--times", "3"], "16 processes at once, 3 times: 0 times something went wrong"),
])  # fmt: skip
def test_processes_that_are_killed_or_start_together_leave_the_bytes_of_one(script, arguments, last) -> None:
    command = [sys.executable, TESTS / script, *arguments]
    where = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, env=where, timeout=900)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].endswith(last), done.stdout + done.stderr[-2000:]
