"""Runs tests of Triton kernels without a GPU: a child pytest under Triton's interpreter.

The interpreter is chosen by an environment variable before triton is imported, and cross-compiling
needs it off, so the two cannot share a process. Test files in tests/gpu/interpreted/ are ordinary
pytest files; only such a child (or a machine with a GPU) collects them.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
INTERPRETED = Path(__file__).parent / "interpreted"


def run_interpreted(files: Iterable[Path], marks: str) -> None:
    """Runs the tests that `marks` selects; fails with the child's report if one of them fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marks]
    child = subprocess.run(
        [*command, *map(str, files)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, f"under the interpreter:\n{child.stdout}"
