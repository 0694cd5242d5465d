"""SIGTERM while an edge is behind with reading: it gets the whole answer."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from runtime.config import EdgeConfig
from runtime.edge.client import Edge
from tests.certificates import self_signed
from tests.faults.processes import Child

TOKENS = 450


def server(model: Path, *more: str) -> Child:
    options = ["--model", str(model), "--port", "0", "--http", "", "--threads", "1"]
    return Child("runtime.server", *options, "--kv-tokens", "2048", "--drain-s", "60", *more)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_an_edge_that_reads_only_after_the_server_has_ended_gets_the_whole_answer(
    tiny_pair: tuple[Path, Path], tmp_path: Path, encrypted: bool
) -> None:
    options: tuple[str, ...] = ()
    if encrypted:
        self_signed(tmp_path, "server")
        options = ("--tls-certificate", str(tmp_path / "server.pem"))
        options += ("--tls-key", str(tmp_path / "server.key"))
    victim = server(tiny_pair[0], *options)
    words = asyncio.run(victim.line_with("--server")).split()
    config = EdgeConfig(
        server=words[words.index("--server") + 1],
        tls=words[words.index("--tls") + 1] if encrypted else "",
        draft=str(tiny_pair[1]),
        max_tokens=TOKENS,
        max_budget=0,  # the server decodes without waiting for this edge
        reconnect_s=0.0,
    )
    with Edge(config) as edge:
        answer = edge.generate("Once upon a time")
        pieces = iter(answer)
        next(pieces)
        os.kill(victim.pid, signal.SIGTERM)
        victim.wait()
        for _ in pieces:
            pass
        assert len(answer.tokens) == TOKENS
    assert asyncio.run(victim.end())[1] == 0
