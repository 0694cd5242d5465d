"""What a server and an edge of the embedded pair import and take until an answer is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import embedded

# each takes a good part of a second, and none is needed for a GGUF file
NEEDLESS = {"transformers", "huggingface_hub", "triton", "sympy", "scipy", "sklearn", "PIL"}
NEEDLESS |= {"torch._dynamo", "torch._inductor", "pandas", "matplotlib"}
MOST_RESIDENT_BYTES = 0.6e9  # of the server, whose pool of keys and values alone has 1.5e9


def command(*options: str) -> list[str]:
    return [sys.executable, "-X", "importtime", "-m", *options]


def imported(told: str) -> list[str]:
    """The modules that a process has told of with -X importtime, in order."""
    return re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", told, re.MULTILINE)


def needless(modules: list[str]) -> set[str]:
    return {name for name in modules for root in NEEDLESS if f"{name}.".startswith(f"{root}.")}


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> tuple[list[str], list[str], list[str], int]:
    """What the server, an edge and one without a model have imported, and the server's memory,
    after an answer to each."""
    try:
        embedded.target_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("startup")
    logs = [folder / name for name in ("server", "edge", "edge without a model")]
    ports = ("--port", "0", "--http", "127.0.0.1:0")
    question = ("--prompt", "Why is the sky blue?", "--max-tokens", "2")
    with logs[0].open("w") as errors:
        server = subprocess.Popen(
            command("runtime.server", *ports), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            ready = next(line for line in server.stdout if "--server" in line)
            address = ready.split("--server ")[1].split()[0]
            edge = command("runtime.edge", "--server", address, *question)
            for log, options in zip(logs[1:], ([], ["--draft", "none"]), strict=True):
                with log.open("w") as told:
                    answer = subprocess.run(
                        [*edge, *options],
                        stdout=subprocess.PIPE,
                        stderr=told,
                        timeout=120,
                        check=True,
                    )
                assert answer.stdout.strip()
            pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
        finally:
            server.kill()
            server.communicate()
    server_modules, edge_modules, without = (imported(log.read_text()) for log in logs)
    return server_modules, edge_modules, without, pages * os.sysconf("SC_PAGE_SIZE")


def test_nothing_heavy_is_imported_that_is_not_needed(started):
    server, edge, without, _ = started
    for modules in (server, edge):
        assert "torch" in modules
        assert not needless(modules)
    # the server writes no conversations, and an edge serves no pages
    assert "jinja2" not in server
    # and without --openai it has neither an edge nor bodies of requests to read
    assert not [name for name in server if name.startswith(("runtime.edge", "msgspec"))]
    assert not {"starlette", "uvicorn", "prometheus_client"} & set(edge)
    assert not needless(without)
    assert "torch" not in without, "an edge without a model runs nothing that needs it"


def test_nothing_is_imported_twice(started):
    for modules in started[:3]:
        ours = [name for name in modules if name.startswith(("runtime", "specedge"))]
        assert len(ours) == len(set(ours))


def test_memory_is_taken_when_it_is_needed(started):
    assert started[3] < MOST_RESIDENT_BYTES
