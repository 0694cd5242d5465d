"""The edge's page in a browser: a conversation, and the trees of its answers."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from runtime import AsyncEdge, EdgeConfig, Server, ServerConfig
from runtime.api.of_edge import endpoint
from runtime.background import Background
from tests.pages.browser import browser_page, is_too_wide, needs_browser

pytestmark = needs_browser


@pytest.fixture
def url(tiny_pair: tuple[Path, Path]) -> Iterator[str]:
    with serving(tiny_pair, draft=str(tiny_pair[1])) as url:
        yield url


@contextmanager
def serving(tiny_pair: tuple[Path, Path], **options: str) -> Iterator[str]:
    """The URL of an edge that drafts for a server of this process, always."""
    config = ServerConfig(model=str(tiny_pair[0]), port=0, http="", pipeline=False, credits="open")
    background = Background()
    with Server(config) as server:
        edge = EdgeConfig(server=server.address, http="127.0.0.1:0", **options)
        ready: asyncio.Queue[str] = asyncio.Queue()

        async def serve() -> None:
            async with AsyncEdge(edge) as client, endpoint(client) as (address, backend):
                ready.put_nowait(address)
                await backend.stay_connected()

        task = background.run(serve())
        yield background.run(ready.get()).result()
        task.cancel()
        background.stop()


def ask(page: Page, text: str, tokens: int = 60) -> None:
    page.evaluate("tokens => { document.getElementById('max_tokens').value = tokens }", tokens)
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def answers(page: Page) -> list[str]:
    return [said.split("\n", 1)[1] for said in page.locator(".said").all_inner_texts()][1::2]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (380, True)])
def test_a_reader_chats_and_sees_the_trees(
    url: str, tmp_path: Path, width: int, dark: bool
) -> None:
    with browser_page(width, dark) as page:
        page.goto(url)
        expect(page.locator("#status:not(.bad)")).to_contain_text("drafts for")
        ask(page, "<b>Hello</b>")
        expect(page.locator("#log")).to_have_attribute("aria-busy", "false")
        expect(page.locator("#stop")).to_be_disabled()
        (first,) = answers(page)
        assert len(first) >= 1
        assert page.locator("#log b").count() == 2, "what people write is no markup"
        expect(page.locator("#gain")).to_have_text(re.compile("[1-9]"))
        expect(page.locator("#rtt")).to_have_text(re.compile("[0-9]"))
        expect(page.locator("#summary")).to_contain_text("the target's own")
        page.wait_for_selector("#tree svg .accepted, #tree svg .rejected", state="attached")
        assert not is_too_wide(page)
        page.screenshot(path=tmp_path / "edge.png", full_page=True)
        # the same words again, in a new conversation, are answered alike
        page.click("#reset")
        assert answers(page) == []
        ask(page, "<b>Hello</b>")
        expect(page.locator("#stop")).to_be_disabled()
        expect(page.locator(".said span").nth(1)).to_have_text(first)


def test_escape_stops_an_answer(url: str) -> None:
    with browser_page() as page:
        page.goto(url)
        expect(page.locator("#status:not(.bad)")).to_contain_text("drafts for")
        ask(page, "Write for ever", tokens=900)
        expect(page.locator(".said span").nth(1)).not_to_be_empty()
        page.keyboard.press("Escape")
        expect(page.locator("#send")).to_be_enabled()
        expect(page.locator("#prompt")).to_be_focused()
        assert page.locator(".said.error").count() == 0


def test_what_is_refused_is_said(url: str) -> None:
    with browser_page() as page:
        page.goto(url)
        expect(page.locator("#status:not(.bad)")).to_contain_text("drafts for")
        ask(page, "word " * 3000)
        expect(page.locator(".said.error")).to_contain_text("tokens")
        expect(page.locator("#send")).to_be_enabled()


def test_everything_can_be_reached_with_the_keyboard(url: str) -> None:
    with browser_page() as page:
        page.goto(url)
        reached = set()
        for _ in range(14):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate("document.activeElement.id || document.activeElement.tagName")
            )
        assert {"log", "prompt", "send", "reset", "SUMMARY", "tree"} <= reached


def test_a_key_that_is_wanted_can_be_given(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    key = tmp_path / "api.key"
    key.write_text("k" * 40)
    key.chmod(0o600)
    options = {"draft": "none", "tokenizer": str(tiny_pair[0]), "http_key_file": str(key)}
    with serving(tiny_pair, **options) as url, browser_page() as page:
        page.goto(url)
        expect(page.locator("#status")).to_have_text(
            "this edge wants an API key: give it under Options"
        )
        page.fill("#key", "another" * 6)
        expect(page.locator("#status")).to_contain_text("another API key")
        page.fill("#key", "k" * 40)
        expect(page.locator("#status:not(.bad)")).to_contain_text(
            "words looked up in the text draft for"
        )
