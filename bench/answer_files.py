"""Which of our files run for one answer: what a reader would have to open to follow it.

A file counts if one of its functions is called, in whichever thread, between the question and the
last token. Server and edge are in this process, with the models that ship here; the answer is the
second one, so that nothing is loaded or compiled meanwhile.

    python -m bench.answer_files [--json]
"""

import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import FrameType

import runtime
import specedge_kernels
from bench.harness import option_parser, report
from runtime import Edge, EdgeConfig, Server

PACKAGES = [Path(package.__file__).parent for package in (runtime, specedge_kernels)]
PROMPTS, TOKENS = ("Why is the sky blue?", "Why is the grass green?"), 40


class Calls:
    """The threads that call functions of each file, while `counting`."""

    def __init__(self) -> None:
        self.threads: dict[str, set[str]] = defaultdict(set)
        self.counting = False

    def seen(self, frame: FrameType, event: str, argument: object) -> None:
        """What Python's profiling hook calls."""
        if self.counting and event == "call":
            self.threads[frame.f_code.co_filename].add(threading.current_thread().name)

    def rows(self) -> list[tuple[Path, int, str]]:
        """Our files by name, their lines, and the threads."""
        files = {Path(name): threads for name, threads in self.threads.items()}
        ours = sorted(file for file in files if any(file.is_relative_to(of) for of in PACKAGES))
        return [
            (
                file.relative_to(PACKAGES[0].parent),
                len(file.read_text(encoding="utf-8").splitlines()),
                ", ".join(sorted(files[file])),
            )
            for file in ours
        ]


def main() -> None:
    """Print the report."""
    options = option_parser("bench.answer_files", __doc__).parse_args()
    calls = Calls()
    threading.setprofile(calls.seen)
    sys.setprofile(calls.seen)
    with Server() as server, Edge(EdgeConfig(server=server.address)) as edge:
        for prompt in PROMPTS:
            calls.counting = prompt == PROMPTS[-1]
            for _ in edge.generate(prompt, max_tokens=TOKENS):
                pass
        calls.counting = False
    sys.setprofile(None)
    threading.setprofile(None)
    rows = calls.rows()
    counts = {"files": len(rows), "lines": sum(lines for _, lines, _ in rows)}
    title = f"{counts['files']} files with {counts['lines']} lines run for one answer"
    report(title, ("file", "lines", "threads"), rows, counts, options.json)


if __name__ == "__main__":
    main()
