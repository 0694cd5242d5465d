"""Files are counted by what is called in them, in every thread, and only while an answer runs."""

import sys
import threading
from pathlib import Path

from bench.answer_files import Calls
from runtime.history import History
from runtime.tree import Tree

ROOT = Path(__file__).parent.parent.parent


def test_ours_that_are_called_meanwhile_count_with_their_lines_and_threads() -> None:
    calls = Calls()
    threading.setprofile(calls.seen)
    sys.setprofile(calls.seen)
    try:
        History((), ())
        calls.counting = True
        sorted([3, 1], key=lambda number: -number)  # not of ours
        thread = threading.Thread(target=Tree((5,), (0,)).depths, name="another")
        thread.start()
        thread.join()
        calls.counting = False
        History((), ())
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    lines = len((ROOT / "runtime/tree.py").read_text(encoding="utf-8").splitlines())
    assert calls.rows() == [(Path("runtime/tree.py"), lines, "another")]
