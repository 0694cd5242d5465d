"""What moves while a person waits: on a terminal, and nowhere else."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from runtime.console import Terminal, loading_bar, saying, waiting
from runtime.edge.answer import Answer, Stream
from runtime.edge.answer_text import Piece
from runtime.edge.chat import reading, stream_answer
from runtime.edge.statistics import Statistics


class Screen(io.StringIO):
    """What a terminal was sent; `seen` waits for a text in it."""

    def __init__(self) -> None:
        super().__init__()
        self._more = threading.Condition()

    def write(self, text: str) -> int:
        with self._more:
            self._more.notify_all()
            return super().write(text)

    def seen(self, text: str) -> bool:
        with self._more:
            return self._more.wait_for(lambda: text in self.getvalue(), timeout=60)


@pytest.mark.parametrize("columns", ["0", "1", "80", "many"])
def test_a_text_is_shown_whatever_the_width_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    screen = Screen()
    it = Terminal(file=screen)
    it.stream("an ")
    it.stream("answer")
    it.print("\na line of its own", soft_wrap=True)
    assert screen.getvalue() == "an answer\na line of its own\n"


def terminal(screen: Screen) -> Terminal:
    return Terminal(file=screen, force_terminal=True, width=80)


def test_a_bar_counts_bytes_and_goes_away() -> None:
    screen = Screen()
    with loading_bar(terminal(screen), "a\x1b[2Jmodel") as progress:
        progress(3_000_000, 6_000_000)
        assert screen.seen("3.0/6.0 MB")
    assert "loading a␛[2Jmodel" in screen.getvalue()
    assert screen.getvalue().endswith("\x1b[2K"), "the line is erased"


def test_a_line_is_what_there_is_to_say() -> None:
    screen, said = Screen(), ["first"]
    with waiting(terminal(screen), lambda: said[-1]):
        assert screen.seen("first")
        said.append("second\x1b]0;x")
        assert screen.seen("second␛]0;x")
    assert screen.getvalue().endswith("\x1b[2K")
    screen = Screen()
    with saying(terminal(screen)) as say:
        say("run 1 of 2")
        assert screen.seen("run 1 of 2")


@pytest.mark.parametrize("options", [{}, {"force_terminal": True, "quiet": True}])
def test_nothing_is_shown_to_nobody(options: dict[str, bool]) -> None:
    screen = Screen()
    console = Terminal(file=screen, **options)
    with (
        loading_bar(console, "model") as progress,
        waiting(console, lambda: "x"),
        saying(console) as say,
    ):
        progress(1, 2)
        say("y")
    assert screen.getvalue() == ""


def test_how_far_a_prompt_has_been_read() -> None:
    assert reading(Statistics(prompt_tokens=100)) == ""
    told = reading(Statistics(prompt_tokens=100, read_tokens=25))
    assert told == "reading the prompt: 25 of 100 tokens, 25%"
    assert reading(Statistics(prompt_tokens=100, read_tokens=100)) == ""


def test_an_answer_takes_the_place_of_what_was_said_of_its_prompt() -> None:
    screen, stream, writing = Screen(), Stream(), Future()
    stream.statistics.prompt_tokens, stream.statistics.read_tokens = 100, 40
    answer = Answer(stream, writing, lambda: None)
    printing = threading.Thread(target=stream_answer, args=(answer, terminal(screen)))
    printing.start()
    assert screen.seen("reading the prompt: 40 of 100 tokens, 40%")
    stream.add([Piece("the answer", drafted=False, end=1)], [1])
    writing.set_result("stop")
    printing.join(60)
    *_, last = re.split(r"\x1b\[2K", screen.getvalue())
    assert "the answer" in last
    assert "reading" not in last


def test_an_edge_shows_in_a_terminal_what_it_loads(
    tiny_pair: tuple[Path, Path], tiny_server: str
) -> None:
    """And in a pipe nothing but the text."""
    command = [sys.executable, "-m", "runtime.edge", "--server", tiny_server, "--threads", "1"]
    command += ["--draft", str(tiny_pair[1]), "--prompt", "x", "--max-tokens", "3", "--no-stats"]
    piped = subprocess.run(command, capture_output=True, timeout=120)
    assert piped.stderr == b""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: read(ours), b""))
        assert process.stdout is not None
        assert process.stdout.read() == piped.stdout
    os.close(ours)
    assert b"loading" in shown


def read(terminal: int) -> bytes:
    """What a terminal shows next; nothing when its program has ended."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""
