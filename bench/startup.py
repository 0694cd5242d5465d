"""How long a person waits: from the command to a server that is ready, and to an edge's first text.

Real processes, in turns: an interpreter that imports torch and ends, the server up to its last
line, an edge up to the first character of its answer. CPU seconds are a process's own, user and
system together, and say on a busy machine what wall time does not. Memory is what is resident, of
the server also after the answer, beside what torch alone takes. The answer must be the same every
time.

    python -m bench.startup [--model smollm2] [--draft smollm2-draft] [--rounds 5] [--json]
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO

from bench.harness import option_parser, report, whole_number
from runtime.bench.figures import spread
from runtime.bench.machine import resident_bytes
from runtime.bench.table import show

READY = re.compile(r"python -m runtime\.edge --server (\S+)")
PORTS = ("--port", "0", "--http", "127.0.0.1:0")
QUESTION, TOKENS = "Why is the sky blue?", 24
# reports, and stays until its input ends, as the others do
IMPORTS = "import sys, torch; print('imported', flush=True); sys.stdin.read()"
GOAL_S = 3.0


@dataclass(frozen=True)
class Reached:
    """What a process has taken up to now."""

    wall_s: float
    cpu_s: float
    rss_mib: float


def main() -> None:
    """Print the report."""
    options = _options()
    rounds = [_round(options) for _ in range(options.rounds)]
    answers = {answer for answer, _ in rounds}
    assert len(answers) == 1, f"the same question has {len(answers)} answers"
    reached = {name: [of[name] for _, of in rounds] for name in rounds[0][1]}
    table, numbers = [], {"goal, s": GOAL_S}
    for name, several in reached.items():
        row = [name]
        for figure in ("wall_s", "cpu_s", "rss_mib"):
            values = [getattr(one, figure) for one in several]
            numbers[f"{name}: {figure}"], _, _ = seen = spread(values)
            row.append(show(seen, 2))
        table.append(row)
    title = (
        f"{options.model} and {options.draft}, torch {version('torch')}, "
        f"{options.rounds} rounds: median [least-most]"
    )
    report(title, ("up to", "wall s", "CPU s", "resident MiB"), table, numbers, options.json)


def _round(options: argparse.Namespace) -> tuple[str, dict[str, Reached]]:
    """The answer, and what was reached when."""
    with _started("-c", IMPORTS) as (process, lines, begun_s):
        next(lines)
        imported = _reached(process, begun_s)
    server = ("-m", "runtime.server", "--model", options.model, *PORTS)
    with _started(*server) as (process, lines, begun_s):
        address = next(match[1] for line in lines if (match := READY.search(line)))
        ready = _reached(process, begun_s)
        answer, first = _ask(address, options.draft)
        answered = _reached(process, begun_s)
    return answer, {
        "torch imported": imported,
        "server ready": ready,
        "edge's first text": first,
        "server after the answer": answered,
    }


def _ask(address: str, draft: str) -> tuple[str, Reached]:
    question = ("--prompt", QUESTION, "--max-tokens", str(TOKENS), "--no-stats")
    edge = ("-m", "runtime.edge", "--server", address, "--draft", draft, *question)
    with _started(*edge) as (process, _, begun_s):
        assert process.stdout is not None
        first_byte = os.read(process.stdout.fileno(), 1)
        first = _reached(process, begun_s)
        rest = b"".join(iter(lambda: os.read(process.stdout.fileno(), 1 << 16), b""))
    return (first_byte + rest).decode(), first


@contextmanager
def _started(*command: str) -> Iterator[tuple[subprocess.Popen[bytes], Iterator[str], float]]:
    """A Python process, the lines it prints, and when it began; it ends with the context."""
    begun_s = time.monotonic()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *command], **pipes) as process:
        try:
            yield process, _lines(process.stdout), begun_s
        finally:
            process.terminate()


def _lines(output: IO[bytes] | None) -> Iterator[str]:
    assert output is not None
    for line in output:
        yield line.decode()
    raise SystemExit("a process ended before it was ready; what it said stands above")


def _reached(process: subprocess.Popen[bytes], begun_s: float) -> Reached:
    """From /proc, of a process that still runs."""
    wall_s = time.monotonic() - begun_s
    # behind the name, which may have blanks and brackets in it
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    cpu_s = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return Reached(wall_s, cpu_s, resident_bytes(process.pid) / 2**20)


def _options() -> argparse.Namespace:
    parser = option_parser("bench.startup", __doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--draft", default="smollm2-draft")
    parser.add_argument("--rounds", type=whole_number, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
