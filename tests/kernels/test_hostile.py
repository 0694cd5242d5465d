"""Wrong arguments end in a ValueError, never in a crash: a crash here ends another process."""

import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).parent / "hostile_cases.py"


def test_no_argument_crashes_an_op():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CASES)]
    tests = subprocess.run(
        command, cwd=CASES.parents[2], capture_output=True, text=True, check=False
    )
    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-4000:]
