"""Server and edges as processes, started as a person starts them; and everything typed wrong."""

import _thread
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.ports import reserved_port

PROMPTS = [
    "line one: Ünïcödé, 日本語, العربية and Ελληνικά\nline two\ttab",
    "🙂🏽👩‍👩‍👧‍👦 emoji 🇫🇷",
]


def edge(*options: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime.edge", "--threads", "1", *options]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=240)


def server(*options: str) -> subprocess.CompletedProcess[str]:
    # a server that somebody runs has the usual port
    command = [sys.executable, "-m", "runtime.server", "--port", "0", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on standard error of a process that ended with status 2."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def test_four_edges_at_once_write_the_plain_text(
    tiny_pair: tuple[Path, Path], tiny_server: str
) -> None:
    """Four processes; pairs of them ask the same, one with trees and one without."""
    jobs = []
    for prompt in PROMPTS:
        for budget in ("0", "32"):
            jobs.append((prompt, budget))

    def ask(job: tuple[str, str]) -> subprocess.CompletedProcess[str]:
        options = ["--server", tiny_server, "--draft", str(tiny_pair[1]), "--prompt", job[0]]
        sampling = ["--temperature", "1", "--seed", "5", "--max-tokens", "40"]
        return edge(*options, *sampling, "--max-budget", job[1])

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(ask, jobs))
    for plain, drafted in zip(done[::2], done[1::2], strict=True):
        assert plain.returncode == drafted.returncode == 0, plain.stderr + drafted.stderr
        assert plain.stdout == drafted.stdout
        assert plain.stdout.strip()
        assert "1.00 tokens per verification" in plain.stderr
        assert float(re.search(r"([\d.]+) tokens per verification", drafted.stderr)[1]) > 1.2
    assert len({result.stdout for result in done}) == len(PROMPTS)


def test_chat_remembers_forgets_and_ends(tiny_pair: tuple[Path, Path], tiny_server: str) -> None:
    options = ["--server", tiny_server, "--draft", str(tiny_pair[1]), "--max-tokens", "16"]
    typed = "/stats\nhello\nhello\n/reset\nhello\n/stats\n/nonsense\n\n/quit\n"
    done = edge(*options, "--chat", stdin=typed)
    assert done.returncode == 0, done.stderr
    answers = [part for part in done.stdout.split("> ") if "tokens/s" in part]
    # The second answer has seen the first turn; after /reset the first answer comes again.
    texts = [re.split(r"\n\d+ tokens, ", answer)[0] for answer in answers]
    assert texts[0] != texts[1]
    assert texts[0] == texts[2]
    assert done.stdout.count("nothing has been answered yet") == 1
    assert done.stdout.count("/quit leaves") == 2, "at the start and after an unknown command"


def test_the_library_streams_the_same_text(tiny_pair: tuple[Path, Path], tiny_server: str) -> None:
    from runtime import Edge, EdgeConfig

    with Edge(EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), max_tokens=30)) as edge:
        answer = edge.generate("library")
        text = "".join(answer)
        assert text == answer.text
        assert answer.statistics.tokens == len(answer.tokens) == 30
        assert answer.finish_reason == "length"
        for _ in edge.generate("left early"):
            break
        assert edge.generate("library").text == text
        conversation = [{"role": "user", "content": "library"}]
        assert edge.generate(conversation).text == text
        plain = edge.generate("library", max_budget=0)
        assert plain.text == text
        assert plain.statistics.tokens_per_verification == 1.0


def test_ctrl_c_ends_the_answer_and_not_the_edge(
    tiny_pair: tuple[Path, Path], tiny_server: str
) -> None:
    """The interrupt strikes while the program waits for a round."""
    from runtime import Edge, EdgeConfig

    with Edge(EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), max_tokens=30)) as edge:
        whole = edge.generate("again").text
        for _ in range(10):  # ten requests left open would fill the server
            answer = edge.generate("again" * 80, max_tokens=400)
            stream = iter(answer)
            next(stream)
            with pytest.raises(KeyboardInterrupt):
                read_until_interrupted(edge, stream)
            stream.close()
            assert answer.finish_reason == "cancelled"
        assert edge.generate("again").text == whole


def read_until_interrupted(edge: object, stream: Iterator[str]) -> None:
    async def interrupt() -> None:
        _thread.interrupt_main()

    edge._background.run(interrupt())
    for _ in stream:
        pass
    threading.Event().wait(60)


def test_a_demo_without_a_server_says_so() -> None:
    command = [sys.executable, "-m", "runtime.demo"]
    environment = {**os.environ, "SPECEDGE_WEIGHTS": "int4"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "--weights is 'int4'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_demo_compares_answers_in_turns(tiny_pair: tuple[Path, Path], tiny_server: str) -> None:
    from runtime.config import EdgeConfig
    from runtime.demo import in_turns
    from runtime.edge.client import Edge

    config = EdgeConfig(server=tiny_server, draft=str(tiny_pair[1]), max_tokens=40)
    with Edge(config) as edge:
        drafted, plain = in_turns(edge, "again", rounds=2)
    assert len({tuple(answer.tokens) for answer in (*drafted, *plain)}) == 1
    assert [answer.tokens_per_verification for answer in plain] == [1.0, 1.0]
    for with_, without in zip(drafted, plain, strict=True):
        assert with_.tokens_per_verification > 1
        assert with_.bytes_per_round > without.bytes_per_round


def test_the_demo_says_what_drafting_is_worth_here() -> None:
    from runtime.demo import verdict

    assert "Drafting pays" in verdict(1.5)
    assert "1.50 times" in verdict(1.5)
    for gain in (0.98, 1.0, 1.02):
        assert "nothing is lost" in verdict(gain)
    assert "8% slower" in verdict(0.92)


def test_a_server_that_cannot_start_says_why(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in one_line(server("--port", str(port)))
    assert "nowhere" in one_line(server("--model", str(tmp_path / "nowhere")))
    assert "config.json" in one_line(server("--model", str(tmp_path)))
    (tmp_path / "file.gguf").write_bytes(b"not a model")
    assert "file.gguf" in one_line(server("--model", str(tmp_path / "file.gguf")))
    assert "did you mean --model?" in one_line(server("--modle", "smollm2"))
    assert "no.such.host.invalid" in one_line(server("--host", "no.such.host.invalid"))
    assert "CUDA" in one_line(server("--model", str(tiny_pair[0]), "--device", "cuda"))


def test_an_edge_that_cannot_start_says_why(
    tiny_pair: tuple[Path, Path], tiny_server: str, tmp_path: Path
) -> None:
    draft = str(tiny_pair[1])
    here = ["--server", tiny_server, "--prompt", "x"]
    assert '--prompt "a question", --chat or --serve' in one_line(edge("--draft", draft))
    assert "nowhere" in one_line(edge(*here, "--draft", str(tmp_path / "nowhere")))
    with reserved_port() as port:
        gone = one_line(edge("--server", f"127.0.0.1:{port}", "--draft", draft, "--prompt", "x"))
    assert "nothing listens there" in gone
    assert "did you mean --draft?" in one_line(edge("--darft", draft))
    long = one_line(edge("--server", tiny_server, "--draft", draft, "--prompt", "x" * 3000))
    assert "the prompt has 30" in long
    assert "empty" in one_line(edge(*here[:2], "--draft", draft, "--raw", "--prompt", ""))


def test_a_draft_with_another_vocabulary_is_refused(
    tiny_pair: tuple[Path, Path], tiny_server: str, tmp_path: Path
) -> None:
    """The same model with one token spelled differently."""
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_pair[1], other)
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<|start|>", "<|begin|>"))
    for file in other.glob("*.json"):
        file.write_text(file.read_text().replace("<|start|>", "<|begin|>"))
    done = edge("--server", tiny_server, "--draft", str(other), "--prompt", "x")
    line = one_line(done)
    assert "different vocabularies" in line
    assert "'other'" in line
    assert str(tmp_path) not in line, "a path is the edge's own business"
