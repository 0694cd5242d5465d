"""What reaches a terminal: nothing that it obeys, whoever wrote it, and no traceback at the end."""

import io
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.style import Style

from runtime.console import Terminal
from runtime.logs import InertRecord, JsonFormatter, TextFormatter, fields
from runtime.terminal import fail, importing, inert, run

# clear the screen, set the title, write the clipboard, the 8-bit spelling of ESC [, go back a line
HOSTILE = "a\x1b[2J\x1b]0;t\x07\x1b]52;c;eA==\x1b\\\x9b1A\r\b\x7f\x00\x85b"


def obeyed(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) == "Cc"} - {"\n", "\t"}


def test_every_control_character_is_made_visible_and_nothing_else_is_changed() -> None:
    every = "".join(map(chr, range(0x110000)))
    shown = inert(every)
    assert len(shown) == len(every)
    assert not obeyed(shown)
    assert {a for a, b in zip(every, shown, strict=True) if a != b} == obeyed(every)
    assert inert("\x1b[31m\x9b") == "␛[31m\N{REPLACEMENT CHARACTER}"


@given(cuts=st.lists(st.integers(0, len(HOSTILE)), max_size=6))
def test_a_sequence_in_pieces_is_inert_too(cuts: list[int]) -> None:
    console = Terminal(file=io.StringIO(), force_terminal=True, color_system="standard")
    places = [0, *sorted(cuts), len(HOSTILE)]
    for start, end in pairwise(places):
        console.stream(HOSTILE[start:end], Style(color="green"))
    colours = r"\x1b\[[0-9;]*m"  # those of rich itself
    assert re.sub(colours, "", console.file.getvalue()) == inert(HOSTILE)


def test_a_console_takes_strings_as_they_are() -> None:
    console = Terminal(file=io.StringIO(), width=200)
    console.print("[bold]x[/nope] :smile: {y}", HOSTILE, style="red")
    console.stream("[red]\tx")
    console.stream("\ty\n")
    told = "[bold]x[/nope] :smile: {y} " + inert(HOSTILE) + "\n[red]\tx\ty\n"
    assert console.file.getvalue() == told


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_log_lines_are_inert(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        raised = sys.exc_info()
    record = InertRecord("other", logging.WARNING, "", 0, f"%s {HOSTILE}", (HOSTILE,), raised)
    record.__dict__.update(fields(name=HOSTILE))
    assert not obeyed(formatter.format(record))
    # as a library's own handler writes it
    assert not obeyed(logging.Formatter("%(message)s").format(record).split("\n")[0])


def test_a_failure_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail("runtime.x", ValueError(HOSTILE + "\nruntime.x: all is well")) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert not obeyed(told)


def test_statuses_of_programs_that_are_interrupted() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run("program", interrupted) == 130
    assert run("program", lambda: 7) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "imported", "terminated"),
    [
        (["runtime.server"], "torch", 0),
        (["runtime.server", "--redirect", "127.0.0.1:1"], "torch", 0),
        (["runtime.edge", "--prompt", "Hi"], "rich", 143),
        (["runtime.bench", "ablations"], "torch", 143),
    ],
    ids=["server", "front", "edge", "bench"],
)
def test_a_signal_among_imports_ends_a_program(
    arguments: list[str], imported: str, terminated: int, number: int, tmp_path: Path
) -> None:
    """It comes where a module tries one import after another, whatever they raise."""
    body = f"import os\ntry: os.kill(os.getpid(), {number:d})\nexcept BaseException: pass\n"
    (tmp_path / f"{imported}.py").write_text(body + "print('lives on', flush=True)\nos._exit(7)\n")
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    expected = terminated if number == signal.SIGTERM else 130
    assert (done.returncode, done.stdout, done.stderr) == (expected, "", "")


def test_a_signal_that_is_ignored_stays_ignored_among_imports() -> None:
    """As of a program that a script has in its background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with importing():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_pipe_that_closed_is_no_failure() -> None:
    with pytest.raises(BrokenPipeError):
        fail("runtime.x", BrokenPipeError())


def program(body: str) -> list[str]:
    head = "import sys\nfrom runtime.console import Terminal\nfrom runtime.terminal import run\n"
    return [sys.executable, "-c", f"{head}{body}\nsys.exit(run('program', main))"]


@pytest.mark.parametrize(
    "write", ["Terminal().stream('x' * 99)", "print('x' * 99)", "print('x'); return 0"]
)
def test_nobody_reads_on(write: str) -> None:
    """As in `| head -c 20`: the status of a program that SIGPIPE ends, and not a word."""
    body = f"def main():\n  sys.stdin.read()\n  for _ in range(9999):\n    {write}\n  return 0"
    started = subprocess.Popen(
        program(body), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    started.stdout.close()
    assert started.communicate(b"go")[1] == b""
    assert started.returncode == 141


def test_a_full_disk_is_a_sentence() -> None:
    body = "def main():\n  Terminal().stream('x')\n  return 0"
    with open("/dev/full", "w") as full:
        done = subprocess.run(program(body), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize("write", ["print('x')", "Terminal().stream('x')"])
def test_a_file_that_may_grow_no_more_is_a_sentence(tmp_path: Path, write: str) -> None:
    """A limit of a file's size, which stands for a quota as well."""
    command = program(f"def main():\n  {write}\n  return 0")
    line = f"ulimit -f 0; exec {shlex.join(command)}"
    with (tmp_path / "output").open("w") as output:
        done = subprocess.run(["sh", "-c", line], stdout=output, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.endswith("the output cannot be written: File too large\n")


def test_an_input_that_was_closed_is_at_its_end() -> None:
    body = "def main():\n  try:\n    input()\n  except EOFError:\n    return 7"
    line = f"exec {shlex.join(program(body))} <&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


def test_what_an_encoding_cannot_say_is_replaced() -> None:
    body = "def main():\n  Terminal().stream(input() + '\\ud800€')\n  return 0"
    environment = {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(program(body), input=b"caf\xc3", capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"caf???"


OPENS_ONE_TOO_MANY = """
import resource
from runtime.terminal import leave, run

def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    import this

leave(run("runtime.server", main))
"""


def test_too_few_descriptors_are_a_sentence() -> None:
    """For the module that is imported next, say."""
    command = [sys.executable, "-c", OPENS_ONE_TOO_MANY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = "runtime.server: Too many open files: raise `ulimit -n`\n"
    assert (done.returncode, done.stderr) == (2, told)


SENT_WITHIN_A_WRITE = """
import asyncio, os, signal, socket
from runtime.terminal import end_on_sigterm, leave, run

class Socket(socket.socket):
    def send(self, data, *flags):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().send(data, *flags)

async def serve():
    one, other = socket.socketpair()
    one.setblocking(False)
    own = Socket(fileno=one.detach())
    own.setblocking(False)
    _, writer = await asyncio.open_connection(sock=own)
    writer.write(b"x")
    await asyncio.Event().wait()

end_on_sigterm()
leave(run("test", lambda: asyncio.run(serve())))
"""


def test_a_signal_within_a_write_ends_a_program() -> None:
    command = [sys.executable, "-c", SENT_WITHIN_A_WRITE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (143, "")
