"""The server's page: what it tells, and what a reader sees in a browser."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from playwright.sync_api import expect

from runtime import Edge, EdgeConfig
from tests.pages.browser import browser_page, is_too_wide, needs_browser
from tests.server.process import Process, server_process

TINY = ("--threads", "1", "--no-pipeline", "--credits", "open")


@pytest.fixture
def server(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Iterator[Process]:
    with server_process(tmp_path / "log", *TINY, "--model", str(tiny_pair[0])) as running:
        yield running


def edge_of(server: Process, tiny_pair: tuple[Path, Path], **options: Any) -> Edge:
    host, port = server.address
    return Edge(EdgeConfig(server=f"{host}:{port}", draft=str(tiny_pair[1]), raw=True, **options))


def events(server: Process) -> Iterator[tuple[str, Any]]:
    """What the page's stream says, for ever."""
    with urlopen(f"{server.url}/events", timeout=30) as response:
        kind = ""
        for line in response:
            name, _, value = line.decode().strip().partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)


def test_steps_and_requests_are_told_in_numbers(
    server: Process, tiny_pair: tuple[Path, Path]
) -> None:
    stream = events(server)
    kind, fields = next(stream)
    assert (kind, fields["requests"]) == ("now", [])
    with edge_of(server, tiny_pair, max_tokens=40) as edge:
        answer = edge.generate("secret words")
        prompt = edge.encode("secret words")
        answer.text  # noqa: B018  (it is waited for)
        steps: list[Any] = []
        while sum(len(step["parts"]) for step in steps) < answer.statistics.verifications:
            kind, fields = next(stream)
            assert "secret" not in json.dumps(fields)
            assert "127.0.0.1" not in json.dumps(fields)
            steps += [fields] if kind == "step" else []
    parts = [part for step in steps for part in step["parts"]]
    assert {(edge_number, request) for edge_number, request, _, _ in parts} == {(1, 1)}
    rows, accepted = (sum(part[place] for part in parts) for place in (2, 3))
    stats = answer.statistics
    assert rows == stats.verifications + stats.drafted_nodes
    assert accepted == stats.accepted_nodes
    assert stats.tokens == accepted + len(parts)
    assert sum(step["chunk_rows"] for step in steps) == len(prompt) - 1
    assert all(step["start_s"] < step["end_s"] for step in steps)
    stream.close()  # type: ignore[attr-defined]


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (380, True)])
def test_a_reader_sees_steps_and_requests(
    server: Process, tiny_pair: tuple[Path, Path], tmp_path: Path, width: int, dark: bool
) -> None:
    with (
        edge_of(server, tiny_pair, max_tokens=900) as drafting,
        edge_of(server, tiny_pair, max_tokens=900, max_budget=0) as plain,
        browser_page(width, dark) as page,
    ):
        page.goto(server.url)
        answers = []
        for edge, word in ((drafting, "drafted"), (plain, "plain")):
            while not page.locator(f"#requests:has-text('{word}')").count():
                if (
                    not answers or answers[-1].finish_reason
                ):  # one ends before a slow browser shows it
                    answers.append(edge.generate("a text"))
        expect(page.locator("#summary")).to_contain_text(" ms ")
        expect(page.locator("#tokens")).to_have_text(re.compile("[1-9]"))
        assert page.evaluate(
            "(canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, "
            "canvas.height).data).size > 20)(document.getElementById('timeline'))"
        ), "the timeline is empty"
        assert not is_too_wide(page)
        page.screenshot(path=tmp_path / "server.png", full_page=True)
        for answer in answers:
            answer.cancel()
        expect(page.locator("#requests tr")).to_have_count(0)
        server.process.send_signal(signal.SIGTERM)
        page.wait_for_selector("#status.bad")
        assert server.process.wait(60) == 0, "a page that watches does not hold up the end"
